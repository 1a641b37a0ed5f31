//! `pause`, `resume`, `failover`, `acknowledge`: what they say before, what they ask for, and how they end.

use super::{
    host::{Agent, Host},
    published::{Builder, primary},
};
use pgbaton::{
    agent::{
        change::{self, Stamp},
        handle::{Command, Published},
    },
    model::{key::Key, moment::Span, request::Request},
};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    mpsc::{Receiver, sync_channel},
};

const LONG: Span = Span::from_secs(600);

fn builder() -> Builder {
    primary(LONG)
}

/// The same published state, but for some fields of the records that its agent believes.
pub(super) fn believing(mut published: Published, fields: &[(&str, &str, Value)]) -> Published {
    let records = Arc::make_mut(&mut published.snapshot.etcd.records);
    for (path, field, value) in fields {
        let key: Key = path.parse().expect("key");
        let mut record: Value = serde_json::from_str(records.text(&key).expect("a record")).expect("json");
        record[*field] = value.clone();
        records.apply(&key, Some(&record.to_string()), 11);
    }
    assert!(records.unreadable.is_empty(), "{:?}", records.unreadable);
    published
}

fn with(fields: &[(&str, &str, Value)]) -> Published {
    believing(builder().build(), fields)
}

/// Serves one request as the agent does; the cluster shows `after` then.
fn serve(agent: Agent, before: Published, after: Published) -> Receiver<(Request, Option<String>)> {
    let (heard, hears) = sync_channel(4);
    std::thread::spawn(move || {
        // The whole of it: the sockets are open as long as it lives.
        let mut agent = agent;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            while let Some(command) = agent.seat.command().await {
                let Command::PutIntent { request, term, asker, reply } = command else { continue };
                heard.send((request.clone(), asker.reason.clone())).expect("send");
                let stamp = Stamp { nonce: "x1".parse().expect("nonce"), seconds: 1, wall: "2026-01-01T00:00:00Z".to_owned() };
                let outcome = change::put_intent(&before.snapshot.etcd.records, request, term, asker, &stamp);
                reply.send(outcome.map(|(record, _)| record)).expect("reply");
                agent.seat.publish(after.clone());
            }
        });
    });
    hears
}

fn paused() -> Published {
    with(&[("leader", "state", json!("paused")), ("leader", "by", json!("ann")), ("leader", "reason", json!("work"))])
}

#[test]
fn a_pause_says_what_it_costs_and_is_shown_by_list_and_status() {
    let host = Host::new();
    let hears = serve(host.agent(builder().build()), builder().build(), paused());
    let plan = host.run(&["pause", "--until", "1h", "--dry-run"]);
    assert_eq!((plan.code, plan.stdout.as_str()), (0, ""));
    insta::assert_snapshot!("pause_plan", plan.stderr);
    assert!(hears.try_recv().is_err(), "nothing was asked for");
    assert_eq!(host.run(&["pause", "--until", "soon", "--yes"]).code, 2);
    let ran = host.run(&["pause", "--until", "1h", "--reason", "work", "--yes"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let wanted = Request::Pause { reason: "work".to_owned(), until: Some(Span::from_secs(3_600)) };
    assert_eq!(hears.recv().expect("asked"), (wanted, Some("work".to_owned())));
    assert!(ran.stderr.ends_with("The cluster is paused.\n"), "{}", ran.stderr);
    let list = host.run(&["list"]);
    assert!(list.stdout.contains("paused (by ann: work); n1 is primary"), "{}", list.stdout);
    let status = host.run(&["status"]).stdout;
    assert!(status.contains("paused (by ann: work)") && status.contains("none runs while the cluster is paused"), "{status}");
}

#[test]
fn a_resumption_without_proof_is_refused_with_what_would_do() {
    let host = Host::new();
    let mut gone = paused();
    let key: Key = "members/n1".parse().expect("key");
    Arc::make_mut(&mut gone.snapshot.etcd.records).apply(&key, None, 12);
    let _hears = serve(host.agent(gone.clone()), gone, builder().build());
    let ran = host.run(&["resume", "--yes"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("--assert-dead"), "{}", ran.stderr);
    let ran = host.run(&["resume", "--yes", "--assert-dead"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("RISK: you assert that PostgreSQL of n1 is dead") && ran.stderr.contains("The pause is over."),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_failover_prints_its_risks_and_ends_when_the_node_serves() {
    let host = Host::new();
    let holder = json!({"node": "n2", "data": "00000002", "guard": "g2", "postgres": "10.0.0.2:5432"});
    let after = with(&[("leader", "term", json!(6)), ("leader", "holder", holder)]);
    let hears = serve(host.agent(builder().build()), builder().build(), after);
    let plan = host.run(&["failover", "--to", "n3", "--accept-loss", "--assert-dead", "--dry-run"]);
    insta::assert_snapshot!("failover_plan", plan.stderr);
    let ran = host.run(&["failover", "--to", "n1", "--yes"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("n1 is the primary already"), "{}", ran.stderr);
    hears.recv().expect("asked");
}

#[test]
fn a_failover_that_was_carried_out_names_the_new_primary() {
    let host = Host::new();
    let holder = json!({"node": "n2", "data": "00000002", "guard": "g2", "postgres": "10.0.0.2:5432"});
    let after = with(&[("leader", "term", json!(6)), ("leader", "holder", holder)]);
    let hears = serve(host.agent(builder().build()), builder().build(), after);
    let ran = host.run(&["failover", "--to", "n2", "--yes", "--reason", "why not"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (request, reason) = hears.recv().expect("asked");
    let wanted = Request::Failover { to: "n2".parse().expect("name"), accept_loss: false, assert_dead: false };
    assert_eq!((request, reason.as_deref()), (wanted, Some("why not")));
    assert!(ran.stderr.ends_with("n2 is the primary.\n"), "{}", ran.stderr);
}

#[test]
fn a_request_that_a_node_took_and_refused_says_why() {
    let host = Host::new();
    let after = with(&[("members/n1", "answer", json!({"id": "x1", "refused": "n2 does not stream from n1 at this moment"}))]);
    let _hears = serve(host.agent(builder().build()), builder().build(), after);
    let ran = host.run(&["failover", "--to", "n2", "--yes"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("n1 refuses: n2 does not stream from n1 at this moment"), "{}", ran.stderr);
}

#[test]
fn failovers_that_were_too_many_are_acknowledged() {
    let host = Host::new();
    let stopped = with(&[("leader", "failovers", json!({"ages": ["1min", "2min", "3min"], "stopped": true}))]);
    let hears = serve(host.agent(stopped.clone()), stopped, builder().build());
    let ran = host.run(&["acknowledge", "--yes"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(hears.recv().expect("asked").0, Request::Acknowledge);
    let ran = host.run(&["acknowledge", "--yes", "--timeout", "1", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).expect("json")["term"], json!(5));
}
