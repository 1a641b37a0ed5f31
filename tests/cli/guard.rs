//! `guard`, started by hand.

use super::host::Host;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgbaton::{
    lab::{command::wait_until, procfs},
    model::moment::Span,
};

/// The guards of this host.
fn guards(host: &Host) -> Vec<i32> {
    let config = host.path("orders.toml").display().to_string();
    procfs::all().iter().map(|process| process.pid).filter(|pid| procfs::arguments(*pid).contains(&config)).collect()
}

#[test]
fn a_guard_that_is_started_by_hand_listens_where_the_agent_looks_for_it() {
    let host = Host::new();
    let ran = host.run(&["guard"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let there = guards(&host);
    assert!(!there.is_empty() && host.path("run/guard.sock").exists());
    let second = host.run(&["guard"]);
    assert_eq!(second.code, 1);
    assert!(second.stderr.contains("another guard"), "{}", second.stderr);
    for pid in there {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    wait_until("the guard to end", Span::from_secs(20), || guards(&host).is_empty().then_some(())).expect("gone");
}

#[test]
fn a_guard_without_a_configuration_says_how_to_name_one() {
    let ran = super::host::run(&["guard"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("--config"), "{}", ran.stderr);
}
