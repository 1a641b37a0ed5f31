//! What a fault cost, as data and as text.

use super::{act::Act, watch::Told};
use crate::{
    cli::table::{self, Align},
    lab::{
        Outage,
        verdict::{LostTail, TwoWriters},
    },
    model::{
        moment::{Moment, Span},
        record::HistoryRecord,
    },
};
use serde::Serialize;

/// The phases that lie between the last write before an outage and the first one after it, in their order.
const WITHIN: [&str; 4] = ["claim", "vote", "prepare", "promote"];

/// What a fault cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    /// What was done.
    pub(super) act: Act,
    /// To whom.
    pub(super) fault: String,
    /// The outage that the writer saw.
    pub(super) outage: Outage,
    /// The change of primary that it caused.
    pub(super) record: Option<HistoryRecord>,
    /// Whether writes flow again.
    pub(super) flows: bool,
    /// How many rows were acknowledged since the beginning, to all clients.
    pub(super) acked: usize,
    /// Acknowledged rows that are missing since this fault.
    pub(super) lost: Vec<LostTail>,
    /// Proof of two writers.
    pub(super) two_writers: Vec<TwoWriters>,
    /// From the return of what failed to all nodes streaming.
    pub(super) back: Option<Span>,
    /// What the nodes said about it, with how long after the fault.
    #[serde(skip)]
    pub(super) reasons: Vec<(Span, Told)>,
}

impl Report {
    /// Where the outage's time went: the phases that the new primary recorded, and before them what was left.
    pub(super) fn phases(&self) -> Vec<(&'static str, Span)> {
        if self.record.is_none() {
            return Vec::new();
        }
        let recorded: Vec<(&'static str, Span)> =
            WITHIN.into_iter().filter_map(|name| Some((name, self.outage.phases.get(name).copied()?))).collect();
        let known = recorded.iter().fold(Span::ZERO, |sum, (_, span)| sum.plus(*span));
        std::iter::once(("notice", self.outage.gap.length().minus(known))).chain(recorded).collect()
    }

    /// Whether nobody could have been harmed in a way that was not announced.
    pub(super) fn is_good(&self) -> bool {
        self.two_writers.is_empty() && self.lost.iter().all(LostTail::is_announced)
    }

    /// How many acknowledged rows are missing.
    pub(super) fn lost_rows(&self) -> usize {
        self.lost.iter().map(|tail| tail.rows).sum()
    }

    /// It as a few lines for people.
    pub(super) fn lines(&self) -> Vec<String> {
        let outage = &self.outage;
        let usual = outage.usual.as_ref().map(|usual| format!(" (usual: {})", short(usual.length()))).unwrap_or_default();
        let mut lines = vec![match (outage.is_felt(), self.flows) {
            (_, false) => format!("no write since {} and counting", short(outage.gap.length())),
            (true, true) => format!("outage {}{usual}: {}", short(outage.gap.length()), between(outage)),
            (false, true) => format!("no outage: longest gap {}{usual}", short(outage.gap.length())),
        }];
        let phases: Vec<String> = self.phases().iter().map(|(name, span)| format!("{name} {}", short(*span))).collect();
        if !phases.is_empty() {
            lines.push(format!("  = {}", phases.join(" + ")));
        }
        lines.push(self.loss());
        lines.extend(self.lost.iter().map(|tail| {
            let examples: Vec<String> = tail.examples.iter().take(3).map(|row| format!("{}#{}", row.client, row.seq)).collect();
            format!("  timeline {} of {}: {} …", tail.tli, join(&tail.nodes), examples.join(", "))
        }));
        lines.push(match self.two_writers.first() {
            None => "two writers: never".to_owned(),
            Some(proof) => format!("TWO WRITERS for {}: {} and {}, {} rows", proof.span, proof.older.0, proof.newer.0, proof.acks),
        });
        if let Some(record) = &self.record {
            lines.push(format!("why: {}", record.why));
            lines.push(format!("recorded: {}", bound(record)));
        }
        if let Some(back) = self.back {
            lines.push(format!("all stream again {} after the return", short(back)));
        }
        lines
    }

    fn loss(&self) -> String {
        let checked = format!("of {} acknowledged", self.acked);
        match self.lost_rows() {
            0 => format!("lost: 0 rows {checked}, each looked up on the primary"),
            rows if self.is_good() => format!("lost: {rows} rows {checked}, within what was recorded:"),
            rows => format!("LOST: {rows} rows {checked}, more than was recorded:"),
        }
    }
}

fn join(nodes: &std::collections::BTreeSet<String>) -> String {
    nodes.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn between(outage: &Outage) -> String {
    let name = |node: &Option<String>| node.clone().unwrap_or_else(|| "nobody".to_owned());
    format!("{} → {}", name(&outage.gap.before), name(&outage.gap.after))
}

/// What the promotion recorded about what it may lose.
fn bound(record: &HistoryRecord) -> String {
    let bytes =
        record.loss_bound.map_or_else(|| "no bound is known".to_owned(), |bound| format!("at most {} lost", table::bytes(Some(bound))));
    match record.unseen_ms {
        0 => bytes,
        unseen => format!("{bytes}, and what was acknowledged unseen in {}", table::millis(unseen)),
    }
}

/// Seconds with as many digits as say something.
pub(super) fn short(span: Span) -> String {
    match span.as_millis() {
        millis @ 0..1_000 => format!("{millis} ms"),
        millis @ 1_000..120_000 => format!("{:.2} s", millis as f64 / 1_000.0),
        millis => format!("{} min", millis / 60_000),
    }
}

const HEADS: [(&str, Align); 8] = [
    ("FAULT", Align::Left),
    ("OUTAGE", Align::Right),
    ("USUAL", Align::Right),
    ("PRIMARY", Align::Left),
    ("PHASES", Align::Left),
    ("LOST", Align::Left),
    ("TWO WRITERS", Align::Left),
    ("BACK", Align::Right),
];

/// All reports of a tour as a table.
pub(super) fn table(reports: &[Report]) -> String {
    table::columns(&HEADS, &reports.iter().map(row).collect::<Vec<_>>())
}

fn row(report: &Report) -> Vec<String> {
    let outage = &report.outage;
    let phases: Vec<String> = report.phases().iter().map(|(name, span)| format!("{name} {}", span.as_millis())).collect();
    let lost = match (report.lost_rows(), report.is_good()) {
        (0, _) => "0 rows".to_owned(),
        (rows, true) => format!("{rows} rows, as recorded"),
        (rows, false) => format!("{rows} rows, NOT RECORDED"),
    };
    vec![
        report.fault.clone(),
        if outage.is_felt() { short(outage.gap.length()) } else { "none".to_owned() },
        outage.usual.as_ref().map(|usual| short(usual.length())).unwrap_or_default(),
        if outage.gap.before == outage.gap.after { outage.gap.after.clone().unwrap_or_default() } else { between(outage) },
        if phases.is_empty() { String::new() } else { format!("{} ms", phases.join(", ")) },
        lost,
        if report.two_writers.is_empty() { "never".to_owned() } else { "YES".to_owned() },
        report.back.map(short).unwrap_or_default(),
    ]
}

/// What the nodes said since a moment, without what only ended and without what was said twice.
pub(super) fn reasons_since(told: &[Told], at: Moment, until: Moment) -> Vec<(Span, Told)> {
    let mut reasons: Vec<(Span, Told)> = Vec::new();
    for one in told.iter().filter(|one| one.at >= at && one.at <= until && one.kind != "ended") {
        if !reasons.iter().any(|(_, other)| other.text == one.text && (other.node == one.node || one.kind == "leader")) {
            reasons.push((one.at.since(at), one.clone()));
        }
    }
    reasons
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::lab::journal::Gap;

    pub(in crate::cli::demo) fn report() -> Report {
        let at = |millis| Moment::ZERO.plus(Span::from_millis(millis));
        let gap = |from, to, after: &str| Gap { from: at(from), to: at(to), before: Some("n1".into()), after: Some(after.into()) };
        let record: HistoryRecord = serde_json::from_str(
            r#"{"term":2,"primary":"n2","from":"n1","why":"n1 has not renewed term 1 for 3.3s","tli":2,"switch":"0/5000000","former_lsn":"0/5000060",
               "loss_bound":96,"unseen_ms":3300,"phases":{"claim":4,"vote":30,"prepare":20,"promote":110,"serve":30},"at":"2026-01-02T03:04:05.678Z"}"#,
        )
        .expect("record");
        let outage = Outage {
            gap: gap(1_000, 4_600, "n2"),
            usual: Some(gap(500, 520, "n1")),
            went_on: Span::from_millis(3),
            phases: Default::default(),
        };
        Report {
            act: Act::PowerOff,
            fault: "power-off n1".into(),
            outage: outage.with_history(&record),
            record: Some(record),
            flows: true,
            acked: 4_211,
            lost: Vec::new(),
            two_writers: Vec::new(),
            back: None,
            reasons: Vec::new(),
        }
    }

    #[test]
    fn a_report_says_where_the_time_went_and_what_was_lost() {
        let expected = [
            "outage 3.60 s (usual: 20 ms): n1 → n2",
            "  = notice 3.44 s + claim 4 ms + vote 30 ms + prepare 20 ms + promote 110 ms",
            "lost: 0 rows of 4211 acknowledged, each looked up on the primary",
            "two writers: never",
            "why: n1 has not renewed term 1 for 3.3s",
            "recorded: at most 96 B lost, and what was acknowledged unseen in 3.3s",
        ];
        assert_eq!(report().lines(), expected);
    }

    #[test]
    fn a_tour_ends_with_a_table() {
        let unfelt = {
            let mut report = report();
            report.fault = "etcd-leader-kill".into();
            report.record = None;
            report.outage.usual = Some(report.outage.gap.clone());
            report.back = Some(Span::from_millis(1_250));
            report
        };
        let expected = "\
FAULT             OUTAGE   USUAL  PRIMARY  PHASES                                                   LOST    TWO WRITERS    BACK
power-off n1      3.60 s   20 ms  n1 → n2  notice 3436, claim 4, vote 30, prepare 20, promote 110 ms  0 rows  never             -
etcd-leader-kill    none  3.60 s  n1 → n2  -                                                        0 rows  never        1.25 s
";
        let squeeze = |text: &str| text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
        assert_eq!(squeeze(&table(&[report(), unfelt])), squeeze(expected));
    }
}
