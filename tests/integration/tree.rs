//! Which tree is under test, and logs of what has passed on it: a long test may be run in parts.

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
    if of.is_empty() || of.ends_with(CHANGED) || commit.ends_with(CHANGED) {
        return false;
    }
    let difference = [&["diff", "--quiet", of, commit, "--"], paths].concat();
    let status = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(difference).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Appends a line to a log.
pub(crate) fn note(path: &Path, line: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("make the log's directory");
    let mut file = OpenOptions::new().create(true).append(true).open(path).expect("open the log");
    writeln!(file, "{line}").expect("write the log");
}

#[test]
fn only_passes_of_a_tree_that_is_known_to_be_the_same_are_taken_over() {
    for (of, commit) in [("c1+", "c1+"), ("c1", "c1+"), ("c1+", "c1"), ("", ""), ("no-such-commit", "HEAD")] {
        assert!(!is_under_test(REAL, of, commit), "{of:?} {commit:?}");
    }
    for paths in [REAL, SIMULATED] {
        let head = commit(paths);
        assert!(head.trim_end_matches(CHANGED).is_empty() || is_under_test(paths, "HEAD", head.trim_end_matches(CHANGED)));
    }
}
