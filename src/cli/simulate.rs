//! `simulate`: the decisions against a simulated world.

use super::{
    arguments::{Output, SimulateOptions},
    exit::Exit,
    table,
    target::Target,
};
use crate::sim::{self, Options, Outcome};
use serde_json::json;
use std::fmt::Write;

pub(super) fn run(target: &Target, options: &SimulateOptions) -> anyhow::Result<Exit> {
    let mut failed = false;
    for seed in options.seed..options.seed.saturating_add(options.seeds) {
        let outcome = sim::run(seed, Options { trace: options.trace, ..Options::default() });
        failed |= !outcome.violations.is_empty();
        let text = match target.output() {
            Output::Table => render(&outcome),
            Output::Json => format!(
                "{}\n",
                json!({ "seed": seed, "digest": outcome.digest, "violations": outcome.violations, "alarms": outcome.alarms })
            ),
        };
        if table::print(&text)? == table::Reader::Gone {
            break;
        }
    }
    Ok(if failed { Exit::Unhealthy } else { Exit::Done })
}

fn render(outcome: &Outcome) -> String {
    let mut text = outcome.trace.clone();
    let verdict = if outcome.violations.is_empty() { "all well" } else { "BROKEN" };
    // Writing into a string cannot fail.
    let _ = writeln!(text, "seed {}: {verdict}, digest {:016x}", outcome.seed, outcome.digest);
    for violation in &outcome.violations {
        let _ = writeln!(text, "  {violation}");
    }
    text
}
