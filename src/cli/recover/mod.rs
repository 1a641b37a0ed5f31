//! `etcd recover`: the records written anew, after etcd was wiped or restored from a backup (protocol 1.2, *suspect etcd*).
//!
//! Every node that can be reached is asked what it knows ([`witness`]); from that [`plan`] makes the records, or says why not;
//! `notes` say what may be lost with them.

mod notes;
pub mod plan;
pub mod witness;

use super::{
    arguments::{Output, RecoverOptions},
    exit::{Exit, Failure},
    store, table,
    target::Target,
};
use crate::{
    agent::{change::Stamp, handle::Asker},
    clock,
    dcs::{Etcd, Listing},
    model::{moment::Span, node::NodeName},
};
use anyhow::Context;
use plan::{Choice, Plan, plan};
use serde_json::json;
use std::collections::BTreeSet;

/// How long writing may take.
const DEADLINE: Span = Span::from_secs(10);

pub(super) async fn run(target: &Target, options: &RecoverOptions) -> anyhow::Result<Exit> {
    let config = target.config()?;
    let etcd = store::open(&config).await?;
    // What still stands there: it may be older than what the nodes know, and whom it names counts all the same.
    let listing = etcd.list(store::DEADLINE).await.context("etcd has to answer before its records can be written")?;
    let there = listing.records();
    let choice = choice(options)?;
    let asked = witness::ask_all(&config, &options.peer, &there).await?;
    for (place, why) in &asked.silent {
        eprintln!("Note: {place} does not answer: {why}");
    }
    let stamp = Stamp { nonce: clock::nonce(), seconds: clock::unix_seconds(), wall: clock::wall() };
    let plan = plan(&asked.witnesses, &there, &choice, &stamp).map_err(|reasons| {
        let lines: String = reasons.iter().map(|reason| format!("\n  - {reason}")).collect();
        Failure::of(Exit::Refused, format!("the records cannot be recovered:{lines}"))
    })?;
    show(target, &plan)?;
    if !options.confirm {
        eprintln!("Nothing was written. To write this, add --confirm.");
        return Ok(Exit::Refused);
    }
    write(&etcd, &listing, &plan, &choice, &stamp).await?;
    eprintln!("Written. {} may become primary now; pgbaton list shows it.", plan.primary.node);
    Ok(Exit::Done)
}

fn choice(options: &RecoverOptions) -> anyhow::Result<Choice> {
    let name = |text: &String| text.parse::<NodeName>().map_err(|error| Failure::of(Exit::Usage, error.to_string()));
    let assert_dead = options.assert_dead.iter().map(name).collect::<Result<BTreeSet<_>, _>>()?;
    Ok(Choice { primary: options.primary.as_ref().map(name).transpose()?, assert_dead })
}

fn show(target: &Target, plan: &Plan) -> anyhow::Result<()> {
    let records: Vec<_> = plan.records.iter().map(|(key, text)| json!({ "key": key, "value": text })).collect();
    match target.output() {
        Output::Json => {
            let shown = json!({ "primary": plan.primary, "term": plan.term, "generation": plan.generation, "records": records, "notes": plan.notes });
            table::print(&table::json(&shown)?)?;
        }
        Output::Table => {
            eprintln!("Generation {}, term {}; the only node that may become primary: {}.", plan.generation, plan.term, plan.primary.node);
            plan.notes.iter().for_each(|note| eprintln!("  {note}"));
            eprintln!("The records:");
            let lines: String = plan.records.iter().map(|(key, text)| format!("{key} = {text}\n")).collect();
            table::print(&lines)?;
        }
    }
    Ok(())
}

async fn write(etcd: &Etcd, listing: &Listing, plan: &Plan, choice: &Choice, stamp: &Stamp) -> anyhow::Result<()> {
    let asserted: Vec<&NodeName> = choice.assert_dead.iter().collect();
    let after = json!({ "primary": plan.primary, "term": plan.term, "generation": plan.generation, "asserted_dead": asserted });
    let actor = format!("{} (uid {})", super::target::person().unwrap_or_else(|| "somebody".to_owned()), nix::unistd::getuid());
    let asker = Asker { actor, from: "local".to_owned(), reason: None };
    // The trace first: an attempt that breaks off has one too.
    let mut records = vec![stamp.audited("etcd-recover", asker, serde_json::Value::Null, after)];
    records.extend(plan.records.iter().cloned());
    etcd.write_all(&records, listing, DEADLINE).await.context("not everything may be written: run it again")
}
