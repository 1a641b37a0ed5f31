//! Every fault many times in a row. What has passed for a commit is not run again: a soak may be run in parts.

use super::{
    faults::{FULL, Row, all},
    support::{Cluster, small_disks, spec},
    tree,
};
use pgbaton::{
    clock,
    lab::LabSpec,
    model::{
        moment::{Moment, Span},
        policy::Reclone,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What stands for the result of a round that is on its way, or has vanished.
const BEGUN: &str = "begun";

/// A line a round: commit, fault, round, result.
struct Log {
    path: PathBuf,
    commit: String,
    passed: BTreeSet<(String, u32)>,
}

impl Log {
    fn open() -> Self {
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("lab-out/soak.log");
        let path = std::env::var_os("SOAK_LOG").map_or_else(default, PathBuf::from);
        let commit = tree::commit(tree::REAL);
        let passed = passed(&fs::read_to_string(&path).unwrap_or_default(), |of| tree::is_under_test(tree::REAL, of, &commit));
        Self { path, commit, passed }
    }

    fn line(&self, fault: &str, round: u32, result: &str) -> String {
        format!("{}, {fault}, {round}, {}", self.commit, result.replace('\n', " | "))
    }

    fn begin(&self, fault: &str, round: u32) {
        tree::note(&self.path, &self.line(fault, round, BEGUN));
    }

    fn end(&self, fault: &str, round: u32, result: &str) {
        tree::end(&self.path, &self.line(fault, round, BEGUN), &self.line(fault, round, result));
    }
}

/// What has passed in a row for the commits that count: a failure takes the fault's earlier passes away, and so does a round that vanished.
fn passed(log: &str, counts: impl Fn(&str) -> bool) -> BTreeSet<(String, u32)> {
    let mut passed = BTreeSet::new();
    let mut known: BTreeMap<&str, bool> = BTreeMap::new();
    for line in log.lines() {
        let parts: Vec<&str> = line.split(", ").collect();
        let [of, fault, round, result @ ..] = parts.as_slice() else { continue };
        if !*known.entry(of).or_insert_with(|| counts(of)) {
            continue;
        }
        if result == ["passed"] {
            passed.extend(round.parse().ok().map(|round| ((*fault).to_owned(), round)));
        } else {
            passed.retain(|(name, _): &(String, u32)| name != fault);
        }
    }
    passed
}

fn rounds() -> u32 {
    std::env::var("SOAK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// After `SOAK_MINUTES` no further round begins: what is left is for the next part.
fn ends() -> Option<Moment> {
    let minutes: u64 = std::env::var("SOAK_MINUTES").ok()?.parse().ok()?;
    Some(clock::boot().plus(Span::from_secs(minutes * 60)))
}

/// Each row so many times in a row; a row that failed once is left for the next soak. Returns the failures.
fn soak(spec: &LabSpec, rows: impl Iterator<Item = &'static Row>, ends: Option<Moment>) -> Vec<String> {
    let log = Log::open();
    let mut cluster: Option<Cluster> = None;
    let mut failures = Vec::new();
    for row in rows {
        for round in (1..=rounds()).filter(|round| !log.passed.contains(&(row.name.to_owned(), *round))) {
            if ends.is_some_and(|ends| clock::boot() >= ends) {
                println!("the time is over before {} {round}", row.name);
                return failures;
            }
            log.begin(row.name, round);
            let at_work = cluster.take().map_or_else(|| Cluster::start(spec), Ok);
            let result = at_work.and_then(|mut at_work| {
                at_work.run(row.name, row.alarms, row.what)?;
                at_work.forget_losses()?;
                Ok(at_work)
            });
            let text = result.as_ref().err().map_or_else(|| "passed".to_owned(), |error| format!("FAILED: {error:#}"));
            log.end(row.name, round, &text);
            println!("{} {round}: {text}", row.name);
            match result {
                Ok(at_work) => cluster = Some(at_work),
                Err(_) => {
                    failures.push(format!("{} in round {round}: {text}", row.name));
                    break;
                }
            }
        }
    }
    failures
}

/// `make soak`.
#[test]
#[ignore = "takes an hour; run by `make soak`"]
fn soak_every_fault_many_times_in_a_row() {
    let ends = ends();
    let mut failures = soak(&spec(|spec| spec.policy.reclone = Reclone::WhenRewindFails), all(), ends);
    failures.extend(soak(&small_disks(), FULL.iter(), ends));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_failure_takes_the_earlier_passes_of_its_fault_away() {
    let log =
        "c1, a, 1, passed\nc1, b, 1, passed\nc1, a, 2, passed\nc1, a, 3, FAILED: before, the fault\nc1, a, 1, passed\nc0, b, 2, passed\n";
    assert_eq!(passed(log, |of| of == "c1"), BTreeSet::from([("a".to_owned(), 1), ("b".to_owned(), 1)]));
    let vanished = format!("{log}c1, a, 2, {BEGUN}\n");
    assert_eq!(passed(&vanished, |of| of == "c1"), BTreeSet::from([("b".to_owned(), 1)]));
}
