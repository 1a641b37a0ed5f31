//! What changes something: the plan, the question, the request, and how it ends.

use super::{
    host::{Agent, Host},
    published::{Builder, primary},
};
use pgbaton::{
    agent::{
        change::{self, Stamp},
        handle::Command,
    },
    model::{key::Key, moment::Span, record::PolicyRecord},
};
use std::sync::mpsc::{Receiver, sync_channel};

const LONG: Span = Span::from_secs(600);

fn builder() -> Builder {
    primary(LONG)
}

fn stamp() -> Stamp {
    Stamp { nonce: "x1".parse().expect("nonce"), seconds: 1, wall: "2026-01-01T00:00:00.000Z".to_owned() }
}

/// Serves one command in a thread of its own, as the agent does, and tells who asked. `drops`: the holder drops the request.
fn serve(agent: Agent, drops: bool) -> Receiver<(Option<String>, String)> {
    let (heard, hears) = sync_channel(4);
    std::thread::spawn(move || {
        // The whole of it: the sockets are open as long as it lives.
        let mut agent = agent;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            while let Some(command) = agent.seat.command().await {
                let records = builder().build().snapshot.etcd.records;
                match command {
                    Command::ReplacePolicy { policy, version, asker, reply } => {
                        heard.send((asker.reason.clone(), asker.actor.clone())).expect("send");
                        let outcome = change::replace_policy(&records, *policy, version, asker, &stamp());
                        reply.send(outcome.map(|(record, _)| record)).expect("reply");
                    }
                    Command::PutIntent { request, term, asker, reply } => {
                        heard.send((asker.reason.clone(), asker.actor.clone())).expect("send");
                        let outcome = change::put_intent(&records, request, term, asker, &stamp());
                        reply.send(outcome.map(|(record, _)| record)).expect("reply");
                        let mut done = builder().build();
                        if !drops {
                            for path in ["nodes/n4", "members/n4"] {
                                let key: Key = path.parse().expect("key");
                                std::sync::Arc::make_mut(&mut done.snapshot.etcd.records).apply(&key, None, 11);
                            }
                        }
                        agent.seat.publish(done);
                    }
                    Command::History { reply } => drop(reply.send(Ok(Vec::new()))),
                    Command::Audit { reply, .. } => drop(reply.send(Ok(Vec::new()))),
                }
            }
        });
    });
    hears
}

#[test]
fn removing_says_what_it_will_do_and_does_it_when_told_to() {
    let host = Host::new();
    let hears = serve(host.agent(builder().build()), false);
    let plan = host.run(&["remove", "n4", "--dry-run"]);
    assert_eq!((plan.code, plan.stdout.as_str()), (0, ""));
    for expected in ["nodes/n4", "pgbaton_n4", "term 5", "--dry-run"] {
        assert!(plan.stderr.contains(expected), "{expected} in {}", plan.stderr);
    }
    assert!(hears.try_recv().is_err(), "nothing was asked for");
    // Without a terminal nobody can be asked.
    let ran = host.run(&["remove", "n4"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("--yes"), "{}", ran.stderr);
    assert!(hears.try_recv().is_err(), "nothing was asked for");
    let ran = host.run(&["remove", "n4", "--yes", "--reason", "scrapped"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (reason, actor) = hears.recv().expect("asked");
    assert_eq!((reason.as_deref(), actor), (Some("scrapped"), format!("ann (uid {})", nix::unistd::geteuid())));
    assert!(ran.stderr.ends_with("n4 is removed.\n"), "{}", ran.stderr);
}

#[test]
fn removing_the_primary_or_nobody_is_refused_before_anything_is_asked_for() {
    let host = Host::new();
    let agent = host.agent(builder().build());
    let ran = host.run(&["remove", "n1", "--yes"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("is the primary and cannot be removed: stop its agent with SIGINT"), "{}", ran.stderr);
    assert_eq!(host.run(&["remove", "n9", "--yes"]).code, 5);
    // Over TCP the node itself refuses.
    let ran = super::host::run(&["remove", "n4", "--yes", "--url", &format!("http://{}", agent.address())]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("over the Unix socket"), "{}", ran.stderr);
}

#[test]
fn a_request_that_the_primary_drops_is_no_success() {
    let host = Host::new();
    let _hears = serve(host.agent(builder().build()), true);
    let ran = host.run(&["remove", "n4", "--yes"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("was dropped"), "{}", ran.stderr);
}

#[test]
fn a_member_that_still_runs_is_warned_of() {
    let host = Host::new();
    let _agent = host.agent(builder().build());
    let ran = host.run(&["remove", "n2", "--dry-run"]);
    assert!(ran.stderr.contains("stopped first") && ran.stderr.contains("no node may take over"), "{}", ran.stderr);
}

#[test]
fn a_policy_is_shown_changed_and_applied_again() {
    let host = Host::new();
    let hears = serve(host.agent(builder().build()), false);
    let shown = host.run(&["config", "show"]);
    assert_eq!(shown.code, 0);
    assert!(shown.stdout.starts_with("# version 3\n"), "{}", shown.stdout);
    let file = host.write("policy.toml", &shown.stdout);
    let file = file.display().to_string();
    let ran = host.run(&["config", "apply", &file, "--yes"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.starts_with("Nothing changes"), "{}", ran.stderr);
    host.write("policy.toml", &shown.stdout.replace("max_lag = \"1MB\"", "max_lag = \"5MB\""));
    let ran = host.run(&["config", "apply", &file, "--dry-run"]);
    assert!(ran.stderr.contains("max_lag: \"1MB\" -> \"5MB\""), "{}", ran.stderr);
    assert!(hears.try_recv().is_err(), "nothing was asked for");
    let ran = host.run(&["config", "apply", &file, "--yes", "--reason", "more", "-o", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let record: PolicyRecord = serde_json::from_str(&ran.stdout).expect("json");
    assert_eq!(record.version, 4);
    assert_eq!(hears.recv().expect("asked").0.as_deref(), Some("more"));
    // Somebody else was quicker.
    let ran = host.run(&["config", "apply", &file, "--yes", "--version", "2"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("version 3"), "{}", ran.stderr);
}

#[test]
fn a_policy_with_faults_is_not_sent() {
    let host = Host::new();
    let _agent = host.agent(builder().build());
    let file = host.write("policy.toml", "preset = \"slow\"\nnonsense = 1\n").display().to_string();
    let ran = host.run(&["config", "apply", &file, "--yes"]);
    assert_eq!(ran.code, 7);
    assert!(ran.stderr.contains("preset") && ran.stderr.contains("nonsense"), "{}", ran.stderr);
}

#[test]
fn an_empty_history_says_so() {
    let host = Host::new();
    let _hears = serve(host.agent(builder().build()), false);
    let ran = host.run(&["history"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "There has been no change of primary yet.\n"));
}
