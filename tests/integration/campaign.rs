//! `make torture`: many runs of torture, each with a seed of its own. What has passed for a commit and a mode counts, so that it may be run in parts.

use super::{
    torture::{Plan, Run, fresh_seed},
    tree,
};
use anyhow::{Context, Result};
use pgbaton::{
    clock,
    model::{moment::Span, policy::Durability},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// One run is no longer than this where no seed is given: each begins with a new cluster, and its evidence is held in memory.
const LONGEST: u64 = 5;

const HEAD: &str = "commit, mode, seed, minutes, faults, changes, operations, unclear, lost, verdict";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect(name))
}

fn log() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("lab-out/torture.csv");
    // Of the package, wherever the test is started.
    std::env::var_os("TORTURE_LOG").map_or_else(default, |path| Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
}

/// What stands for the verdict of a run that is on its way, or has vanished.
const BEGUN: &str = "begun";

/// How many minutes of a mode have passed for the commits that count: a failure takes what passed before it away, and so does a run that vanished.
fn passed(log: &str, mode: &str, counts: impl Fn(&str) -> bool) -> u64 {
    let rows = log.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split(", ").collect();
        let [commit, of, _, minutes, .., verdict] = columns.as_slice() else { return None };
        Some((*commit, *of, minutes.parse::<u64>().ok()?, *verdict))
    });
    let ours = rows.filter(|(commit, of, ..)| *of == mode && counts(commit));
    ours.fold(0, |sum, (_, _, minutes, verdict)| if verdict == "passed" { sum + minutes } else { 0 })
}

fn begun(commit: &str, plan: &Plan) -> String {
    format!("{}, -, -, -, -, -, {BEGUN}", head(commit, plan))
}

fn head(commit: &str, plan: &Plan) -> String {
    format!("{commit}, {}, {}, {}", plan.mode(), plan.seed, plan.minutes)
}

fn row(commit: &str, plan: &Plan, result: &Result<Run>) -> String {
    let begin = head(commit, plan);
    match result {
        Ok(run) => {
            let verdict = &run.verdict;
            let counts = [run.faults(), run.changes(), verdict.operations, verdict.unclear, verdict.lost()].map(|count| count.to_string());
            format!("{begin}, {}, passed", counts.join(", "))
        }
        // What it counted is in lab-out.
        Err(error) => format!("{begin}, -, -, -, -, -, FAILED: {}", format!("{error:#}").replace('\n', " | ").replace(", ", "; ")),
    }
}

fn run(plan: &Plan, commit: &str) -> Result<()> {
    let log = log();
    if !log.exists() {
        tree::note(&log, HEAD);
    }
    let begun = begun(commit, plan);
    tree::note(&log, &begun);
    let result = plan.run().map(|(run, _)| run);
    let line = row(commit, plan, &result);
    println!("{line}");
    tree::end(&log, &begun, &line);
    result.map(|_| ())
}

/// `make torture`.
#[test]
#[ignore = "takes as long as wanted; run by `make torture`"]
fn torture_for_so_many_minutes() -> Result<()> {
    let mode = std::env::var("TORTURE_MODE").unwrap_or_else(|_| "quorum".to_owned());
    let durability: Durability = serde_json::from_value(mode.clone().into()).with_context(|| format!("TORTURE_MODE={mode}"))?;
    let (minutes, commit) = (number("TORTURE_MINUTES").unwrap_or(LONGEST), tree::commit(tree::REAL));
    if let Some(seed) = number("TORTURE_SEED") {
        return run(&Plan { durability, seed, minutes }, &commit);
    }
    let ends = number("TORTURE_PART").map(|part| clock::boot().plus(Span::from_secs(part * 60)));
    let mut here = 0;
    loop {
        let text = fs::read_to_string(log()).unwrap_or_default();
        // Of a tree that differs from its commit nothing is taken over: what passes now counts for this call alone.
        let before = if tree::is_changed(&commit) { here } else { passed(&text, &mode, |of| tree::counts(tree::REAL, of, &commit)) };
        let left = minutes.saturating_sub(before);
        if left == 0 || ends.is_some_and(|ends| clock::boot() >= ends) {
            println!("{left} of {minutes} minutes of {mode} are left for {commit}");
            return Ok(());
        }
        run(&Plan { durability, seed: fresh_seed(), minutes: left.min(LONGEST) }, &commit)?;
        here += left.min(LONGEST);
    }
}

#[test]
fn a_failure_takes_the_earlier_minutes_of_its_mode_away() {
    let log = format!(
        "{HEAD}\nc1, quorum, 1, 5, 9, 3, 4000, 7, 0, passed\nc0, quorum, 2, 5, 9, 3, 4000, 7, 0, passed\nc1, async, 3, 5, -, -, -, -, -, FAILED: x\n"
    );
    let minutes = |log: &str, mode| passed(log, mode, |of| of == "c1");
    assert_eq!((minutes(&log, "quorum"), minutes(&log, "async")), (5, 0));
    let later = format!("{log}c1, quorum, 4, 5, -, -, -, -, -, FAILED: before; the end\nc1, quorum, 5, 2, 9, 3, 4000, 7, 0, passed\n");
    assert_eq!(minutes(&later, "quorum"), 2);
    let vanished = format!("{later}{}\n", begun("c1", &Plan { durability: Durability::Quorum, seed: 6, minutes: 5 }));
    assert_eq!((minutes(&vanished, "quorum"), minutes(&vanished, "async")), (0, 0), "a run that vanished is no run that passed");
    assert_eq!(minutes(&format!("{vanished}c1, quorum, 7, 5, 9, 3, 4000, 7, 0, passed\n"), "quorum"), 5);
}
