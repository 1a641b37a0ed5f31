//! `make sim`: many fresh seeds, in parts. What has passed is noted with the commit, and counts as long as what is under test stays the same.

#![expect(clippy::expect_used, reason = "tests")]

#[path = "integration/tree.rs"]
mod tree;

#[path = "support/seeds.rs"]
mod seeds;

use pgbaton::{
    clock,
    model::policy::Durability,
    sim::{Coverage, Options, Outcome, Swarm},
};
use seeds::{failures, fresh, print_coverage, run_all_by, too_little};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// So many seeds are one line of the log.
const PART: u64 = 500;

const HEAD: &str = "commit, first, seeds, decisions, changes, seconds, verdict";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect(name))
}

fn log() -> PathBuf {
    let name = std::env::var("SIM_LOG").unwrap_or_else(|_| "lab-out/simulation.csv".to_owned());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// How many seeds have passed for the commits that count, since one last broke them, and which is the next one.
fn passed(log: &str, counts: impl Fn(&str) -> bool) -> (u64, Option<u64>) {
    let rows = log.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split(", ").collect();
        let [commit, first, seeds, .., verdict] = columns.as_slice() else { return None };
        Some((*commit, first.parse::<u64>().ok()?, seeds.parse::<u64>().ok()?, *verdict == "passed"))
    });
    let ours = rows.filter(|(commit, ..)| counts(commit));
    ours.fold((0, None), |(sum, next), (_, first, seeds, well)| (if well { sum + seeds } else { 0 }, next.max(Some(first + seeds))))
}

#[test]
#[ignore = "many minutes; run by `make sim`"]
fn sim_fresh_seeds() {
    let (wanted, log, commit) = (number("SEEDS").unwrap_or(20_000), log(), tree::commit(tree::SIMULATED));
    let ends = number("SIM_PART").map(|minutes| clock::unix_seconds() + minutes * 60);
    let mut here = 0;
    loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let (before, _) = passed(&text, |of| tree::counts(tree::SIMULATED, of, &commit));
        // New seeds for a tree that differs from its commit too, but of such a tree nothing is taken over: what passes now counts for this call alone.
        let (_, next) = passed(&text, |of| of == commit || tree::counts(tree::SIMULATED, of, &commit));
        let done = if tree::is_changed(&commit) { here } else { before };
        let left = wanted.saturating_sub(done);
        if left == 0 || ends.is_some_and(|ends| clock::unix_seconds() >= ends) {
            println!("{left} of {wanted} seeds are left for {commit}");
            return;
        }
        let first = next.or_else(|| number("FIRST")).unwrap_or_else(clock::unix_seconds);
        let (seeds, began) = (left.min(PART), clock::boot());
        if !log.exists() {
            tree::note(&log, HEAD);
        }
        let begun = format!("{commit}, {first}, {seeds}, -, -, -, begun");
        tree::note(&log, &begun);
        let outcomes = run_all_by(first..first + seeds, fresh);
        let took = clock::boot().since(began).as_millis() / 1_000;
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
        let failed: Vec<String> = outcomes.iter().filter(|of| !of.violations.is_empty()).map(|of| of.seed.to_string()).collect();
        let coverage: Vec<Coverage> = outcomes.iter().map(|outcome| outcome.coverage.clone()).collect();
        let idle = if seeds == PART { [too_little(&outcomes), Coverage::gaps(&coverage)].concat() } else { Vec::new() };
        let verdict = match (failed.is_empty(), idle.is_empty()) {
            (true, true) => "passed".to_owned(),
            (true, false) => idle.join("; "),
            (false, _) => format!("{} BROKEN: {}", failed.len(), failed.join(" ")),
        };
        let (decisions, changes) = (sum(|outcome| outcome.coverage.steps), sum(|outcome| outcome.coverage.leaderships));
        let line = format!("{commit}, {first}, {seeds}, {decisions}, {changes}, {took}, {verdict}");
        print_coverage(&outcomes);
        println!("{line}");
        tree::end(&log, &begun, &line);
        assert!(failed.is_empty(), "{}", failures(&outcomes, fresh).join("\n"));
        assert!(idle.is_empty(), "{}", idle.join("; "));
        here += seeds;
    }
}

#[test]
fn what_has_passed_for_the_same_tree_counts() {
    let log = format!(
        "{HEAD}\nc1, 100, 500, 1, 1, 1, passed\nc0, 900, 500, 1, 1, 1, passed\nc1, 600, 500, 1, 1, 1, passed\nc1, 1100, 500, 1, 1, 1, 2 BROKEN\n"
    );
    assert_eq!(passed(&log, |of| of == "c1"), (0, Some(1_600)), "what broke counts no more, and the next seeds are others");
    let mended = log + "c1, 1600, 500, 1, 1, 1, passed\n";
    assert_eq!(passed(&mended, |of| of == "c1"), (500, Some(2_100)));
    assert_eq!(passed(&mended, |of| of == "c0"), (500, Some(1_400)));
    assert_eq!(passed("", |_| true), (0, None));
    let vanished = mended + "c1, 2100, 500, -, -, -, begun\n";
    assert_eq!(passed(&vanished, |of| of == "c1"), (0, Some(2_600)), "what never ended has not passed, and is not tried again unseen");
}

#[test]
fn every_mode_and_every_swarm_is_among_the_seeds() {
    let all: Vec<Options> = (0..500).map(fresh).collect();
    for swarm in Swarm::EVERY {
        for waits in [false, true] {
            assert!(all.iter().any(|of| of.swarm == swarm && (of.durability != Durability::Async) == waits), "{swarm:?} {waits}");
        }
    }
}
