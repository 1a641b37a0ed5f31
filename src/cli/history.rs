//! `history`: every change of primary.

use super::{
    arguments::{HistoryOptions, Output},
    exit::Exit,
    store,
    table::{self, Align, bytes, columns, millis},
    target::{self, Target},
};
use crate::model::record::HistoryRecord;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct History {
    history: Vec<HistoryRecord>,
}

pub(super) async fn run(target: &Target, options: &HistoryOptions) -> anyhow::Result<Exit> {
    let client = target.client()?;
    let mut history = match client.get_json::<History>("/v1/history").await {
        Ok(history) => history,
        Err(error) if target::is_down(&error) && !target.is_remote() => {
            eprintln!("Note: could not {error}; etcd itself is asked");
            from_etcd(target).await?
        }
        Err(error) => return Err(error.into()),
    };
    history.history.truncate(options.limit);
    let text = match target.output() {
        Output::Json => table::json(&history)?,
        Output::Table if history.history.is_empty() => "There has been no change of primary yet.\n".to_owned(),
        Output::Table => render(&history.history),
    };
    table::print(&text)?;
    Ok(Exit::Done)
}

async fn from_etcd(target: &Target) -> anyhow::Result<History> {
    let etcd = store::open(&target.config()?).await?;
    let texts = etcd.read_history(store::DEADLINE).await?;
    // A record of a newer version that cannot be read is left out.
    Ok(History { history: texts.iter().filter_map(|(_, text)| serde_json::from_str(text).ok()).collect() })
}

const HEADS: [(&str, Align); 9] = [
    ("TERM", Align::Right),
    ("WHEN", Align::Left),
    ("PRIMARY", Align::Left),
    ("FROM", Align::Left),
    ("TL", Align::Right),
    ("TOOK", Align::Right),
    ("LOST", Align::Right),
    ("UNSEEN", Align::Right),
    ("WHY", Align::Left),
];

fn render(history: &[HistoryRecord]) -> String {
    let row = |record: &HistoryRecord| {
        vec![
            record.term.to_string(),
            record.at.clone(),
            record.primary.to_string(),
            record.from.as_ref().map(ToString::to_string).unwrap_or_default(),
            record.tli.to_string(),
            millis(record.phases.values().sum()),
            if record.from.is_some() { bytes(record.loss_bound) } else { String::new() },
            if record.unseen_ms == 0 { String::new() } else { millis(record.unseen_ms) },
            why(record),
        ]
    };
    columns(&HEADS, &history.iter().map(row).collect::<Vec<_>>())
}

/// The trigger, and the claims before it that came to nothing.
fn why(record: &HistoryRecord) -> String {
    let given_up = record.given_up.iter().map(|given| {
        let (node, term, tli) = (&given.node, given.term, given.tli);
        format!("; {node} claimed term {term} and never served: what it acknowledged on timeline {tli} is lost")
    });
    std::iter::once(record.why.clone()).chain(given_up).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_a_table_with_the_newest_first() {
        let text = r#"[
          {"term":3,"primary":"n2","from":"n1","why":"n1 has not renewed term 2 for 3.3s","tli":3,"switch":"0/5000000","former_lsn":"0/5000060",
           "loss_bound":96,"unseen_ms":3300,"given_up":[{"tli":2,"node":"n3","term":2,"unseen_ms":3300}],"phases":{"claim":4,"vote":300,"prepare":20,"promote":110,"serve":30},"at":"2026-01-02T03:04:05.678Z"},
          {"term":1,"primary":"n1","from":null,"why":"the first claim","tli":1,"switch":null,"former_lsn":null,"loss_bound":null,"phases":{},"at":"2026-01-01T00:00:00.000Z"}
        ]"#;
        let records: Vec<HistoryRecord> = serde_json::from_str(text).expect("records");
        let expected = "\
TERM  WHEN                      PRIMARY  FROM  TL   TOOK  LOST  UNSEEN  WHY
   3  2026-01-02T03:04:05.678Z  n2       n1     3  464ms  96 B    3.3s  n1 has not renewed term 2 for 3.3s; n3 claimed term 2 and never served: what it acknowledged on timeline 2 is lost
   1  2026-01-01T00:00:00.000Z  n1       -      1     0s     -       -  the first claim
";
        assert_eq!(render(&records), expected);
    }
}
