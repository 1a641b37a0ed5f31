//! `simulate`: the decisions against a simulated world.

use super::{arguments::Output, exit::Exit, table, target::Target};
use crate::{
    config,
    decide::found_gone_after,
    model::policy::{ClusterPolicy, Depose, Durability},
    sim::{self, Coverage, Options, Outcome, Swarm},
};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};

/// `simulate`.
#[derive(Debug, Args)]
pub struct SimulateOptions {
    /// What decides everything
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub seed: u64,
    /// So many seeds, one after the other; 1 unless said otherwise, 20 with --policy
    #[arg(long, value_name = "COUNT")]
    pub seeds: Option<u64>,
    /// What commits wait for
    #[arg(long, default_value = "async", value_name = "MODE", conflicts_with = "policy", value_parser = durability())]
    pub durability: Durability,
    /// Which faults: all, or one kind of trouble
    #[arg(long, default_value = "all", value_name = "NAME", conflicts_with = "policy", value_parser = swarm())]
    pub swarm: Swarm,
    /// Print what happened, line by line
    #[arg(long)]
    pub trace: bool,
    /// How long writes are away under this policy (TOML), by fault
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    pub policy: Option<PathBuf>,
}

const MODES: [(&str, Durability); 4] =
    [("async", Durability::Async), ("auto", Durability::Auto), ("quorum", Durability::Quorum), ("strict-quorum", Durability::StrictQuorum)];

fn durability() -> impl TypedValueParser<Value = Durability> {
    PossibleValuesParser::new(MODES.map(|(name, _)| name))
        .map(|name| MODES.iter().find(|(known, _)| *known == name).map_or(Durability::Async, |(_, mode)| *mode))
}

fn swarm() -> impl TypedValueParser<Value = Swarm> {
    let names = Swarm::EVERY.map(|swarm| PossibleValue::new(format!("{swarm:?}").to_ascii_lowercase()));
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Swarm>())
}

pub(super) fn run(target: &Target, options: &SimulateOptions) -> anyhow::Result<Exit> {
    if let Some(file) = &options.policy {
        return survey(target, options, file);
    }
    let mut failed = false;
    let mut coverages = Vec::new();
    let of = Options { trace: options.trace, durability: options.durability, swarm: options.swarm, ..Options::default() };
    for seed in seeds(options) {
        let outcome = sim::run(seed, of);
        failed |= !outcome.violations.is_empty();
        let text = match target.output() {
            Output::Table => render(&outcome),
            Output::Json => format!(
                "{}\n",
                json!({
                    "seed": seed, "digest": outcome.digest, "violations": outcome.violations, "alarms": outcome.alarms,
                    "coverage": outcome.coverage.figures().into_iter().collect::<BTreeMap<_, _>>()
                })
            ),
        };
        coverages.push(outcome.coverage);
        if table::print(&text)? == table::Reader::Gone {
            return Ok(if failed { Exit::Unhealthy } else { Exit::Done });
        }
    }
    if target.output() == Output::Table {
        table::print(&format!("\n{}", Coverage::table(&coverages)))?;
    }
    Ok(if failed { Exit::Unhealthy } else { Exit::Done })
}

fn seeds(options: &SimulateOptions) -> std::ops::Range<u64> {
    let seeds = match (options.seeds, &options.policy) {
        (Some(seeds), _) => seeds,
        (None, Some(_)) => 20,
        (None, None) => 1,
    };
    options.seed..options.seed.saturating_add(seeds)
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

/// How long writes are away with one policy, and after which faults.
fn survey(target: &Target, options: &SimulateOptions, file: &Path) -> anyhow::Result<Exit> {
    let policy = config::read_policy(file)?;
    let mut hits: BTreeMap<String, (u64, Vec<u64>)> = BTreeMap::new();
    let mut broken = Vec::new();
    for seed in seeds(options) {
        let outcome = sim::run_with(seed, Options::default(), &policy);
        for (fault, (struck, outages)) in outcome.hits {
            let all = hits.entry(fault).or_default();
            all.0 += struck;
            all.1.extend(outages);
        }
        broken.extend(outcome.violations.into_iter().map(|text| format!("seed {seed}: {text}")));
    }
    hits.values_mut().for_each(|(_, outages)| outages.sort_unstable());
    let text = match target.output() {
        Output::Table => told(&policy, &hits, &broken),
        Output::Json => {
            let rows: Vec<_> =
                hits.iter().map(|(fault, (struck, ms))| json!({ "fault": fault, "struck": struck, "outages_ms": ms })).collect();
            table::json(&json!({ "faults": rows, "violations": broken }))?
        }
    };
    table::print(&text)?;
    Ok(if broken.is_empty() { Exit::Done } else { Exit::Unhealthy })
}

/// What a silent etcd costs.
fn survives(policy: &ClusterPolicy) -> String {
    let timers = policy.timers();
    let alone = timers.hold.as_millis().saturating_sub(timers.renew_every.as_millis()).saturating_sub(timers.soft_stop.as_millis());
    let for_longer = if policy.failsafe {
        "; for longer where its replicas give their word (failsafe, which needs `peer_key_file` on the nodes)"
    } else {
        ", and then stops (failsafe is off)"
    };
    format!("While etcd is silent the primary goes on for {alone} ms by itself, counted from the worst moment{for_longer}.")
}

/// When others follow a primary that is lost.
fn follows(policy: &ClusterPolicy) -> String {
    let timers = policy.timers();
    let wait = timers.wait.as_millis();
    let missed = found_gone_after(timers.renew_every).as_millis();
    match policy.durability {
        _ if policy.depose != Depose::ByQuorum => {
            format!("A primary whose host is lost is followed after {wait} ms; one that is released, at once.")
        }
        Durability::Async => {
            format!("A primary whose host is lost is followed after {wait} ms at the earliest; one that is released, at once.")
        }
        Durability::Auto => format!(
            "A primary whose host is lost is followed after {wait} ms at the earliest, with commits that wait (from two replicas on) after about \
             {missed} ms, where its voters find it gone; one that is released, at once."
        ),
        Durability::Quorum | Durability::StrictQuorum => format!(
            "A primary whose host is lost is followed after about {missed} ms where its voters find it gone, else after {wait} ms; one that is \
             released, at once."
        ),
    }
}

fn told(policy: &ClusterPolicy, hits: &BTreeMap<String, (u64, Vec<u64>)>, broken: &[String]) -> String {
    let mut all: Vec<u64> = hits.values().flat_map(|(_, outages)| outages.iter().copied()).collect();
    all.sort_unstable();
    let mut text = format!(
        "{}\n{}\n\n{:<18} {:>7} {:>8} {:>9} {:>9} {:>9}\n",
        survives(policy),
        follows(policy),
        "after",
        "struck",
        "outages",
        "median",
        "9 of 10",
        "longest"
    );
    let rows = hits.iter().map(|(fault, (struck, outages))| (fault.as_str(), *struck, outages.as_slice()));
    let total = hits.values().map(|(struck, _)| struck).sum();
    for (fault, struck, outages) in rows.chain([("any", total, all.as_slice())]) {
        let at = |part: usize| {
            outages
                .get((outages.len() * part / 100).min(outages.len().saturating_sub(1)))
                .map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"))
        };
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{fault:<18} {struck:>7} {:>8} {:>9} {:>9} {:>9}", outages.len(), at(50), at(90), at(100));
    }
    text.push_str(
        "\nAn outage counts for the fault that came last before it; many faults last longer than one, and some come while another lasts.\n",
    );
    broken.iter().for_each(|line| text.push_str(&format!("BROKEN: {line}\n")));
    text
}
