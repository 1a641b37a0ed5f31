//! `pgbaton demo` as a person starts it.

use pgbaton::lab::command::{command, run, wait_until};
use pgbaton::model::moment::Span;
use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");

fn leftovers(pid: u32) -> Vec<String> {
    let entries = fs::read_dir("/var/tmp").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&format!("pgbaton-lab-{pid}-")))
        .collect()
}

/// Every fault once: nobody is harmed in a way that was not announced, and nothing is left.
#[test]
#[ignore = "two minutes"]
fn slow_demo_script() {
    let text = run(&[PROGRAM, "demo", "--script", "--preset", "fast"], "", Span::from_secs(400)).expect("the tour ends well");
    for fault in ["postmaster-kill", "power-off", "partition", "freeze", "agent-kill", "agent-loss", "etcd-leader-kill"] {
        assert!(text.contains(fault), "{text}");
    }
    assert_eq!(text.lines().filter(|line| line.contains(" never ")).count(), 7, "{text}");
}

#[test]
fn a_demo_without_a_terminal_says_what_to_do_instead() {
    let refused = run(&[PROGRAM, "demo"], "", Span::from_secs(10)).expect_err("no terminal");
    assert!(format!("{refused:#}").contains("try: pgbaton demo --script"), "{refused:#}");
}

/// Killed in the middle of its work: processes and files are gone all the same.
#[test]
fn a_demo_that_was_killed_leaves_nothing() {
    let mut demo = command(PROGRAM);
    demo.args(["demo", "--script"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut demo = demo.spawn().expect("start");
    let pid = demo.id();
    let lines = BufReader::new(demo.stderr.take().expect("stderr")).lines().map_while(Result::ok);
    let begun = lines.take_while(|line| !line.contains("agents")).count();
    assert!(begun > 3, "it came as far as the agents");
    assert_eq!(leftovers(pid).len(), 1);
    demo.kill().expect("kill");
    demo.wait().expect("wait");
    wait_until("everything to go", Span::from_secs(20), || leftovers(pid).is_empty().then_some(())).expect("gone");
}
