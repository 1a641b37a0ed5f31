//! Which tree is under test, and logs of what has passed on it: a long test may be run in parts.
//!
//! A part that has begun has a line of its own until its result takes that line's place: one that was killed, or panicked, stays in the log as begun.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

/// Ends the name of a commit that the tree differs from.
pub(crate) const CHANGED: char = '+';

/// What real processes are made of and tried with: documents and other tests may differ, and so may the simulator and the log itself.
pub(crate) const REAL: &[&str] = &["src", "migrations", "Cargo.toml", "Cargo.lock", "tests/integration", ":(exclude)src/sim"];

/// What the simulator runs.
pub(crate) const SIMULATED: &[&str] = &[
    "src/model",
    "src/decide",
    "src/agent/state",
    "src/agent/state.rs",
    "src/agent/event.rs",
    "src/sim",
    "tests/support/seeds.rs",
    "Cargo.lock",
];

/// The commit whose `paths` are under test; with a mark where the tree differs from it.
#[expect(clippy::disallowed_methods, reason = "asks git for the commit")]
pub(crate) fn commit(paths: &[&str]) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
    };
    let head = git(&["rev-parse", "--short=12", "HEAD"]);
    let status = [&["status", "--porcelain", "--"], paths].concat();
    if git(&status).is_empty() { head } else { format!("{head}{CHANGED}") }
}

/// Whether these `paths`, which are under test, are the same in both commits. Nothing counts of a tree that differs from its commit: two of that mark may be
/// different trees.
#[expect(clippy::disallowed_methods, reason = "asks git for the difference")]
pub(crate) fn is_under_test(paths: &[&str], of: &str, commit: &str) -> bool {
    if is_changed(of) || is_changed(commit) {
        return false;
    }
    let difference = [&["diff", "--quiet", of, commit, "--"], paths].concat();
    let status = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(difference).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Whether the tree under test differs from its commit.
pub(crate) fn is_changed(commit: &str) -> bool {
    commit.is_empty() || commit.ends_with(CHANGED)
}

/// Whether what has passed for a commit counts for this one. Also where git knows the commit by no other name.
pub(crate) fn counts(paths: &[&str], of: &str, commit: &str) -> bool {
    !is_changed(commit) && (of == commit || is_under_test(paths, of, commit))
}

/// Appends a line to a log.
pub(crate) fn note(path: &Path, line: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("make the log's directory");
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("open the log");
    writeln!(file, "{line}").expect("write the log");
}

/// Says what a part has come to, in the place of the line that said that it began.
pub(crate) fn end(path: &Path, begun: &str, line: &str) {
    let text = fs::read_to_string(path).expect("read the log");
    let mut lines: Vec<&str> = text.lines().collect();
    match lines.iter().rposition(|of| *of == begun) {
        Some(at) => lines[at] = line,
        None => lines.push(line),
    }
    // In one step: a log that was cut off would forget what failed.
    let other = path.with_extension("new");
    fs::write(&other, lines.join("\n") + "\n").expect("write the log");
    fs::rename(&other, path).expect("replace the log");
}

#[test]
fn a_result_takes_the_place_of_the_begin() {
    let path = std::env::temp_dir().join(format!("pgbaton-tree-{}.csv", std::process::id()));
    ["head", "c1, 1, begun", "c1, 2, begun"].iter().for_each(|line| note(&path, line));
    end(&path, "c1, 2, begun", "c1, 2, passed");
    end(&path, "c1, 3, begun", "c1, 3, passed");
    let text = fs::read_to_string(&path).expect("read");
    fs::remove_file(&path).expect("remove");
    assert_eq!(text, "head\nc1, 1, begun\nc1, 2, passed\nc1, 3, passed\n");
}

#[test]
fn only_passes_of_a_tree_that_is_known_to_be_the_same_are_taken_over() {
    for (of, commit) in [("c1+", "c1+"), ("c1", "c1+"), ("c1+", "c1"), ("", ""), ("no-such-commit", "HEAD")] {
        assert!(!is_under_test(REAL, of, commit) && !counts(REAL, of, commit), "{of:?} {commit:?}");
    }
    for paths in [REAL, SIMULATED] {
        let head = commit(paths);
        assert!(head.trim_end_matches(CHANGED).is_empty() || is_under_test(paths, "HEAD", head.trim_end_matches(CHANGED)));
    }
}
