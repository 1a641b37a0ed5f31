//! `make sim`: many fresh seeds, in parts. What has passed is noted with the commit, and counts as long as what is under test stays the same.
//!
//! Every second seed runs in `async`, the others in the modes that lose nothing; every fourth has a swarm of its own instead of all faults.

#![expect(clippy::expect_used, reason = "tests")]

#[path = "integration/tree.rs"]
mod tree;

use pgbaton::{
    clock,
    model::policy::Durability,
    sim::{Options, Outcome, Swarm, run},
};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// So many seeds are one line of the log.
const PART: u64 = 500;

const HEAD: &str = "commit, first, seeds, decisions, changes, seconds, verdict";

const SWARMS: [Swarm; 7] = [Swarm::Policy, Swarm::Etcd, Swarm::Clocks, Swarm::Data, Swarm::Queues, Swarm::Members, Swarm::Operators];

fn options(seed: u64) -> Options {
    let waits = [Durability::Quorum, Durability::Auto, Durability::Quorum, Durability::StrictQuorum];
    let pick = |count: usize, of: u64| usize::try_from(of % count as u64).unwrap_or_default();
    Options {
        durability: if seed.is_multiple_of(2) { Durability::Async } else { waits[pick(4, seed / 2)] },
        swarm: if seed / 2 % 4 == 3 { SWARMS[pick(7, seed / 8)] } else { Swarm::All },
        ..Options::default()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect(name))
}

fn log() -> PathBuf {
    let name = std::env::var("SIM_LOG").unwrap_or_else(|_| "lab-out/simulation.csv".to_owned());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// How many seeds have passed for the commits that count, and which is the next one.
fn passed(log: &str, counts: impl Fn(&str) -> bool) -> (u64, Option<u64>) {
    let rows = log.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split(", ").collect();
        let [commit, first, seeds, .., "passed"] = columns.as_slice() else { return None };
        Some((*commit, first.parse::<u64>().ok()?, seeds.parse::<u64>().ok()?))
    });
    let ours = rows.filter(|(commit, ..)| counts(commit));
    ours.fold((0, None), |(sum, next), (_, first, seeds)| (sum + seeds, next.max(Some(first + seeds))))
}

/// Runs so many seeds on all cores.
fn part(first: u64, seeds: u64) -> Vec<Result<Outcome, u64>> {
    let next = AtomicU64::new(first);
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, options(seed)))).map_err(|_| seed);
                    outcomes.lock().expect("no panic").push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().expect("no panic")
}

fn tell(outcome: &Result<Outcome, u64>) -> Option<String> {
    let (seed, what) = match outcome {
        Err(seed) => (*seed, "O18: it panics".to_owned()),
        Ok(outcome) if outcome.violations.is_empty() => return None,
        Ok(outcome) => (outcome.seed, outcome.violations.join("\n  ")),
    };
    let Options { durability, swarm, .. } = options(seed);
    Some(format!(
        "seed {seed}: {what}\n  again: MODE={durability:?} SWARM={swarm:?} SEED={seed} cargo test --test simulation one_seed -- --ignored --nocapture"
    ))
}

#[test]
#[ignore = "many minutes; run by `make sim`"]
fn sim_fresh_seeds() {
    let (wanted, log, commit) = (number("SEEDS").unwrap_or(20_000), log(), tree::commit());
    let ends = number("SIM_PART").map(|minutes| clock::unix_seconds() + minutes * 60);
    loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let (done, next) = passed(&text, |of| of == commit || tree::is_under_test(of, &commit));
        let left = wanted.saturating_sub(done);
        if left == 0 || ends.is_some_and(|ends| clock::unix_seconds() >= ends) {
            println!("{left} of {wanted} seeds are left for {commit}");
            return;
        }
        let first = next.or_else(|| number("FIRST")).unwrap_or_else(clock::unix_seconds);
        let (seeds, began) = (left.min(PART), clock::boot());
        let outcomes = part(first, seeds);
        let took = clock::boot().since(began).as_millis() / 1_000;
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().flatten().map(of).sum::<u64>();
        let broken: Vec<String> = outcomes.iter().filter_map(tell).collect();
        let verdict = if broken.is_empty() { "passed".to_owned() } else { format!("{} BROKEN", broken.len()) };
        let (decisions, changes) = (sum(|outcome| outcome.coverage.steps), sum(|outcome| outcome.coverage.leaderships));
        let line = format!("{commit}, {first}, {seeds}, {decisions}, {changes}, {took}, {verdict}");
        println!("{line}");
        if !log.exists() {
            tree::note(&log, HEAD);
        }
        tree::note(&log, &line);
        assert!(broken.is_empty(), "{}", broken.join("\n"));
    }
}

#[test]
fn what_has_passed_for_the_same_tree_counts() {
    let log = format!(
        "{HEAD}\nc1, 100, 500, 1, 1, 1, passed\nc0, 900, 500, 1, 1, 1, passed\nc1, 600, 500, 1, 1, 1, passed\nc1, 1100, 500, 1, 1, 1, 2 BROKEN\n"
    );
    assert_eq!(passed(&log, |of| of == "c1"), (1_000, Some(1_100)));
    assert_eq!(passed("", |_| true), (0, None));
}

#[test]
fn every_mode_and_every_swarm_is_among_the_seeds() {
    let all: Vec<Options> = (0..500).map(options).collect();
    for swarm in SWARMS {
        for waits in [false, true] {
            assert!(all.iter().any(|of| of.swarm == swarm && (of.durability != Durability::Async) == waits), "{swarm:?} {waits}");
        }
    }
}
