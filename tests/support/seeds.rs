//! Seeds of the simulator: run on all cores, judged, and told.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends here")]

use pgbaton::{
    model::policy::Durability,
    sim::{Coverage, Options, Outcome, Swarm, run, shrink},
};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Decisions are many small allocations: with it a seed takes two thirds of the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs every seed, each by its own options, on all cores; in the order of seeds.
pub fn run_all_by(seeds: std::ops::Range<u64>, options: impl Fn(u64) -> Options + Sync) -> Vec<Outcome> {
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, options(seed))))
                        .unwrap_or_else(|_| panic!("O18: seed {seed} panics; see it again with {}", command(seed, options(seed), "")));
                    outcomes.lock().unwrap().push(outcome);
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// What shows one seed again. `keep`: the faults that it needs, if not all.
pub fn command(seed: u64, Options { durability, swarm, .. }: Options, keep: &str) -> String {
    format!("MODE={durability:?} SWARM={swarm:?} {keep}SEED={seed} cargo test --test simulation one_seed -- --ignored --nocapture")
}

pub fn median(outcomes: &[Outcome], of: impl Fn(&Coverage) -> u64) -> u64 {
    let mut values: Vec<u64> = outcomes.iter().map(|outcome| of(&outcome.coverage)).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

pub fn sum(outcomes: &[Outcome], of: impl Fn(&Coverage) -> u64) -> u64 {
    outcomes.iter().map(|outcome| of(&outcome.coverage)).sum()
}

/// One figure of a run.
pub type Figure = fn(&Coverage) -> u64;

pub fn print_coverage(outcomes: &[Outcome]) {
    let coverages: Vec<Coverage> = outcomes.iter().map(|outcome| outcome.coverage.clone()).collect();
    print!("{}", Coverage::table(&coverages));
    let mut alarms: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, count) in outcomes.iter().flat_map(|outcome| &outcome.alarms) {
        *alarms.entry(name).or_default() += count;
    }
    println!("{:>22}: {alarms:?}", "alarms");
}

/// Each seed that broke something, the first with the faults that it needs alone.
pub fn failures(outcomes: &[Outcome], options: impl Fn(u64) -> Options) -> Vec<String> {
    let broken = outcomes.iter().filter(|outcome| !outcome.violations.is_empty());
    broken.enumerate().map(|(index, outcome)| tell(outcome, options(outcome.seed), index == 0)).collect()
}

/// How a fresh seed is run. Every second one in `async`, the others in the modes that lose nothing; every fourth with a swarm of its own instead of
/// all faults.
pub fn fresh(seed: u64) -> Options {
    let waits = [Durability::Quorum, Durability::Auto, Durability::Quorum, Durability::StrictQuorum];
    let pick = |count: usize, of: u64| usize::try_from(of % count as u64).unwrap_or_default();
    // `All` is the first.
    let swarms = &Swarm::EVERY[1..];
    Options {
        durability: if seed.is_multiple_of(2) { Durability::Async } else { waits[pick(4, seed / 2)] },
        swarm: if seed / 2 % 4 == 3 { swarms[pick(swarms.len(), seed / 8)] } else { Swarm::All },
        ..Options::default()
    }
}

/// What makes these seeds prove too little (oracle O19).
pub fn too_little(outcomes: &[Outcome]) -> Vec<String> {
    let mut found = Vec::new();
    if median(outcomes, |c| c.leaderships) < 3 {
        found.push("too little happens: the faults prove nothing".to_owned());
    }
    if median(outcomes, |c| c.faults) < 10 {
        found.push("too little goes wrong".to_owned());
    }
    found
}

/// What a few dozen seeds should have exercised, and did not. Of some hundred seeds [`Coverage::gaps`] asks for more.
pub fn seldom(outcomes: &[Outcome]) -> Vec<String> {
    let rare: [(&str, Figure); 6] = [
        ("unknown claims", |c| c.ambiguous_claims),
        ("half rewinds and copies", |c| c.half_done),
        ("late promotions", |c| c.late_promotions),
        ("burnt timelines", |c| c.burnt),
        ("words of peers", |c| c.acked),
        ("pauses", |c| c.pauses),
    ];
    let never = rare.iter().filter(|(_, of)| outcomes.len() >= 40 && sum(outcomes, *of) == 0);
    never.map(|(name, _)| format!("never exercised: {name}")).collect()
}

/// One failing seed: what it broke and, where that is to be found out, by which faults.
pub fn tell(outcome: &Outcome, options: Options, shorten: bool) -> String {
    let again = |keep: &str| command(outcome.seed, options, keep);
    let head = format!("seed {} ({:?}): {}", outcome.seed, options.durability, outcome.violations.join("\n  "));
    let Some(shrunk) = shorten.then(|| shrink(outcome.seed, options, 150)).flatten() else {
        return format!("{head}\n  again: {}", again(""));
    };
    let (places, faults): (Vec<String>, Vec<String>) =
        shrunk.outcome.struck.iter().map(|(index, text)| (index.to_string(), format!("\n    {text}"))).unzip();
    let keep = format!("KEEP={} ", places.join(","));
    format!(
        "{head}\n  with these faults alone:{}\n  {}\n  again: {}",
        faults.concat(),
        shrunk.outcome.violations.join("\n  "),
        again(&keep)
    )
}
