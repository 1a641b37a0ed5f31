//! What is changed, by whom, and what is refused.

use super::{
    published::{name, primary},
    seat::{Api, settings},
};
use pgbaton::{
    agent::{
        change::{self, Stamp},
        handle::{Asker, Command, Refusal},
    },
    api::client::{Client, Error},
    model::{
        key::{Compare, Key, Write},
        moment::Span,
        policy::{ClusterPolicy, Durability},
        record::{AuditRecord, IntentRecord, PolicyRecord},
        records::Records,
        request::Request,
        term::Term,
    },
};
use serde_json::{Value, json};

fn api() -> Api {
    Api::showing(primary(Span::from_secs(30)).build())
}

fn records() -> Records {
    primary(Span::from_secs(30)).build().snapshot.etcd.records.as_ref().clone()
}

fn refused(outcome: Result<Value, Error>) -> (u16, String, Vec<String>) {
    match outcome {
        Err(Error::Refused(refused)) => (refused.status, refused.kind, refused.faults),
        other => panic!("{other:?}"),
    }
}

async fn put(client: &Client, version: Option<u64>, body: Value) -> Result<Value, Error> {
    client.put_json("/v1/policy", version, &body).await
}

fn stamp() -> Stamp {
    Stamp { nonce: "x1".parse().expect("nonce"), seconds: 1_767_225_600, wall: "2026-01-01T00:00:00.000Z".to_owned() }
}

#[tokio::test]
async fn a_policy_is_replaced_by_version_and_the_agent_hears_who_asked() {
    let mut api = api();
    let client = api.local().on_behalf_of("ann");
    let body = json!({ "version": 3, "policy": { "preset": "fast" }, "reason": "faster" });
    let serve = async {
        let Some(Command::ReplacePolicy { policy, version, asker, reply }) = api.seat.command().await else { panic!("another command") };
        assert_eq!((version, asker.reason.as_deref(), asker.from.as_str()), (3, Some("faster"), "local"));
        assert_eq!(asker.actor, format!("ann (uid {})", nix::unistd::geteuid()));
        let outcome = change::replace_policy(&records(), *policy, version, asker, &stamp()).map(|(record, _)| record);
        reply.send(outcome).expect("answer");
    };
    let (answer, ()) = tokio::join!(put(&client, None, body), serve);
    let record: PolicyRecord = serde_json::from_value(answer.expect("accepted")).expect("record");
    assert_eq!(record.version, 4);
}

#[tokio::test]
async fn a_policy_with_many_faults_is_refused_with_all_of_them() {
    let api = api();
    let body = json!({ "preset": "slow", "nonsense": 1, "max_lag": 5, "stop_timeout": "60s" });
    let (status, kind, faults) = refused(put(&api.local(), Some(3), body).await);
    assert_eq!((status, kind.as_str(), faults.len()), (422, "invalid", 3), "{faults:?}");
    assert!(faults.iter().any(|fault| fault.starts_with("nonsense: unknown field")), "{faults:?}");
    let body = json!({ "take_after": "1s", "parameters": { "port": "1" }, "hba": ["x"] });
    let (status, _, faults) = refused(put(&api.local(), Some(3), body).await);
    assert_eq!((status, faults.len()), (422, 3), "{faults:?}");
}

#[tokio::test]
async fn a_policy_needs_the_version_that_it_replaces() {
    let api = api();
    let (status, kind, _) = refused(put(&api.local(), None, json!({})).await);
    assert_eq!((status, kind.as_str()), (428, "version-required"));
    let (status, _, _) = refused(put(&api.local(), Some(3), json!([1])).await);
    assert_eq!(status, 422);
}

#[tokio::test]
async fn what_the_agent_refuses_is_told_with_its_kind() {
    let mut api = api();
    let cases = [
        (Refusal::Conflict("the policy is at version 4".to_owned()), 409, "conflict"),
        (Refusal::NotNow("not now".to_owned()), 409, "refused"),
        (Refusal::Unreachable("silence".to_owned()), 503, "etcd-unreachable"),
        (Refusal::Unknown("silence".to_owned()), 504, "outcome-unknown"),
    ];
    for (refusal, status, kind) in cases {
        let client = api.local();
        let serve = async {
            let Some(Command::ReplacePolicy { reply, .. }) = api.seat.command().await else { panic!("another command") };
            reply.send(Err(refusal)).expect("answer");
        };
        let (answer, ()) = tokio::join!(put(&client, Some(3), json!({})), serve);
        let (there, word, _) = refused(answer);
        assert_eq!((there, word.as_str()), (status, kind));
    }
}

#[tokio::test]
async fn a_node_is_removed_by_an_intent_at_the_term_that_was_seen() {
    let mut api = api();
    let client = api.local();
    let body = json!({ "kind": "remove", "node": "n4", "term": 5, "reason": "gone" });
    let serve = async {
        let Some(Command::PutIntent { request, term, asker, reply }) = api.seat.command().await else { panic!("another command") };
        let (record, _) = change::put_intent(&records(), request, term, asker, &stamp()).expect("accepted");
        reply.send(Ok(record)).expect("answer");
    };
    let (answer, ()) = tokio::join!(client.post_json::<_, IntentRecord>("/v1/intent", &body), serve);
    let record = answer.expect("accepted");
    assert_eq!((record.request, record.term), (Request::Remove { node: name("n4") }, Term::new(5)));
    // Without the term nobody knows what the operator saw.
    let (status, _, _) = refused(api.local().post_json("/v1/intent", &json!({ "kind": "remove", "node": "n4" })).await);
    assert_eq!(status, 422);
    let (status, _, _) = refused(api.local().post_json("/v1/intent", &json!({ "kind": "explode", "term": 5 })).await);
    assert_eq!(status, 422);
}

#[tokio::test]
async fn over_tcp_nothing_can_be_changed() {
    let api = api();
    let (status, kind, _) = refused(put(&api.remote(), Some(3), json!({})).await);
    assert_eq!((status, kind.as_str()), (403, "not-authorised"));
    let (status, _, _) = refused(api.remote().post_json("/v1/intent", &json!({ "kind": "remove", "node": "n4", "term": 5 })).await);
    assert_eq!(status, 403);
}

#[tokio::test]
async fn a_local_user_who_is_neither_root_nor_the_service_user_changes_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: another user can be tried as root only");
        return;
    }
    let api = api();
    std::fs::set_permissions(api.socket(), std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("mode");
    std::fs::set_permissions(api.socket().parent().expect("parent"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    let socket = api.socket();
    let answer = std::thread::spawn(move || {
        // Only this thread becomes somebody else.
        let (uid, same) = (65_534, nix::libc::uid_t::MAX);
        let became = {
            #[expect(unsafe_code, reason = "the wrapper of libc changes every thread")]
            // SAFETY: the call takes numbers alone.
            unsafe {
                nix::libc::syscall(nix::libc::SYS_setresuid, same, uid, same)
            }
        };
        assert_eq!(became, 0);
        let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connect");
        let request = "PUT /v1/policy HTTP/1.0\r\nIf-Match: \"3\"\r\nContent-Length: 2\r\n\r\n{}";
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("write");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).expect("read");
        answer
    });
    let answer = answer.join().expect("thread");
    assert!(answer.starts_with("HTTP/1.0 403") && answer.contains("only root"), "{answer}");
}

#[test]
fn the_socket_is_for_owner_and_group() {
    let api = Api::with(settings());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(api.socket()).expect("metadata").permissions());
    assert_eq!(mode & 0o777, 0o660);
}

// ---- the transactions ----

fn asker() -> Asker {
    Asker { actor: "ann".to_owned(), from: "local".to_owned(), reason: Some("why".to_owned()) }
}

#[test]
fn a_change_and_its_audit_record_are_one_transaction() {
    let records = records();
    let (record, txn) = change::replace_policy(&records, ClusterPolicy::default(), 3, asker(), &stamp()).expect("accepted");
    assert_eq!(record.version, 4);
    assert_eq!(txn.when, [Compare::Is(Key::Policy, records.policy.as_ref().expect("policy").text.clone())]);
    let [Write::Put(Key::Policy, _), Write::Put(Key::Audit(id), text)] = txn.then.as_slice() else { panic!("{txn:?}") };
    assert_eq!(id.as_str(), "001767225600-x1");
    let audit: AuditRecord = serde_json::from_str(text).expect("record");
    assert_eq!((audit.actor.as_str(), audit.verb.as_str(), audit.reason.as_deref()), ("ann", "policy", Some("why")));
    assert_eq!((&audit.before["version"], &audit.after["version"]), (&3.into(), &4.into()));
}

#[test]
fn the_first_policy_of_all_is_version_one() {
    let (record, txn) = change::replace_policy(&Records::default(), ClusterPolicy::default(), 0, asker(), &stamp()).expect("accepted");
    assert_eq!((record.version, txn.when), (1, vec![Compare::Missing(Key::Policy)]));
}

/// As many replicas as have to confirm are there; what stands already is no reason to refuse another change.
#[test]
fn more_than_there_are_cannot_confirm() {
    let mut records = records();
    records.apply(&Key::Node(name("n4")), None, 11);
    let version = records.policy.as_ref().expect("policy").record.version;
    let put = |records: &Records, version: u64, durability: Durability, quorum_standbys: u32| {
        let policy = ClusterPolicy { durability, quorum_standbys, ..ClusterPolicy::default() };
        change::replace_policy(records, policy, version, asker(), &stamp())
    };
    assert_eq!(records.nodes.keys().map(ToString::to_string).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    for durability in [Durability::Quorum, Durability::StrictQuorum] {
        assert!(put(&records, version, durability, 2).is_ok());
        let Err(Refusal::Invalid(faults)) = put(&records, version, durability, 3) else { panic!("accepted") };
        assert_eq!((faults.len(), faults[0].key.as_str()), (1, "quorum_standbys"));
        let said = "3 replicas would have to confirm each commit, and there are 2 that may (n2, n3)";
        assert_eq!(faults[0].what, said);
    }
    assert!(put(&records, version, Durability::Auto, 3).is_ok(), "it waits for nobody until they are there");
    let mut stands = records.clone();
    let (record, _) = put(&records, version, Durability::StrictQuorum, 2).expect("accepted");
    stands.apply(&Key::Policy, Some(&serde_json::to_string(&record).expect("json")), 12);
    stands.apply(&Key::Node(name("n3")), None, 13);
    assert!(put(&stands, version + 1, Durability::StrictQuorum, 2).is_ok(), "n3 has left since");
    assert!(put(&stands, version + 1, Durability::Quorum, 2).is_ok(), "it asks for less");
    assert!(put(&stands, version + 1, Durability::StrictQuorum, 3).is_err());
}

fn failover(to: &str, accept_loss: bool, assert_dead: bool) -> Request {
    Request::Failover { to: name(to), accept_loss, assert_dead }
}

/// The records with some fields of `leader` changed; `None` takes one away. `n1`: whether its agent acts for the holder.
fn with_leader(fields: &[(&str, Value)], n1: bool) -> Records {
    let mut records = records();
    let mut leader = serde_json::to_value(&records.leader.as_ref().expect("leader").record).expect("json");
    fields.iter().for_each(|(field, value)| leader[*field] = value.clone());
    records.apply(&Key::Leader, Some(&leader.to_string()), 11);
    if !n1 {
        records.apply(&Key::Member(name("n1")), None, 11);
    }
    records
}

/// What is refused says what is missing; with that it is accepted.
#[test]
fn a_refusal_names_what_would_make_it_possible() {
    let put =
        |records: &Records, request: &Request| change::put_intent(records, request.clone(), Term::new(5), asker(), &stamp()).map(drop);
    let says = |records: &Records, request: Request, expected: &str| {
        let said = put(records, &request).expect_err("refused");
        assert!(matches!(&said, Refusal::NotNow(why) if why.contains(expected)), "{said:?}");
    };
    let paused = [("state", json!("paused")), ("by", json!("bob")), ("reason", json!("work")), ("at", json!("2026-01-01T00:00:00Z"))];
    let there = with_leader(&paused, true);
    says(&there, Request::Pause { reason: String::new(), until: None }, "paused already, by bob since 2026-01-01T00:00:00Z: work");
    says(&there, Request::Resume { assert_dead: true }, "ask without");
    assert_eq!(put(&there, &Request::Resume { assert_dead: false }), Ok(()));
    assert_eq!(put(&there, &failover("n2", false, false)), Ok(()));
    says(&with_leader(&[], false), Request::Pause { reason: String::new(), until: None }, "the agent of n1 is not there");
    let gone = with_leader(&paused, false);
    says(&gone, Request::Resume { assert_dead: false }, "ask with --assert-dead");
    says(&gone, failover("n2", false, false), "ask with --assert-dead");
    assert_eq!(put(&gone, &Request::Resume { assert_dead: true }), Ok(()));
    let vacant = with_leader(&[("state", json!("vacant"))], false);
    says(&vacant, failover("n3", false, false), "with --accept-loss and --assert-dead");
    says(&vacant, failover("n3", true, false), "with --assert-dead");
    says(&vacant, failover("n3", false, true), "with --accept-loss");
    assert_eq!(put(&vacant, &failover("n3", true, true)), Ok(()));
    // One that waits as a copy would says nothing in etcd.
    says(&vacant, failover("n4", true, false), "with --accept-loss and --assert-dead");
    assert_eq!(put(&vacant, &failover("n4", true, true)), Ok(()));
    let stopped = with_leader(&[("failovers", json!({"ages": [], "stopped": true}))], true);
    assert_eq!(put(&stopped, &Request::Acknowledge), Ok(()));
}

/// An operator who sees that nobody takes a request says more; other requests wait for their turn.
#[test]
fn a_request_that_nobody_takes_can_be_replaced_by_a_stronger_one() {
    let mut records = with_leader(&[("state", json!("vacant"))], false);
    let put = |records: &Records, request: Request| change::put_intent(records, request, Term::new(5), asker(), &stamp());
    let (record, _) = put(&records, failover("n2", false, false)).expect("accepted");
    records.apply(&Key::Intent, Some(&serde_json::to_string(&record).expect("json")), 12);
    let pause = Request::Pause { reason: String::new(), until: None };
    assert!(matches!(put(&records, pause.clone()), Err(Refusal::Conflict(_))));
    let (_, txn) = put(&records, failover("n2", true, true)).expect("accepted");
    assert_eq!(txn.when, [Compare::Is(Key::Intent, records.intent.as_ref().expect("intent").text.clone())]);
    let audit = txn.then.iter().find_map(|write| match write {
        Write::Put(Key::Audit(_), text) => serde_json::from_str::<AuditRecord>(text).ok(),
        _ => None,
    });
    let audit = audit.expect("audited");
    assert_eq!((audit.actor.as_str(), audit.verb.as_str(), &audit.after["request"]["assert_dead"]), ("ann", "failover", &json!(true)));
}

#[tokio::test]
async fn a_pause_carries_its_reason_and_for_how_long() {
    let mut api = api();
    let client = api.local();
    let body = json!({ "kind": "pause", "until": "1h", "term": 5, "reason": "kernel upgrade" });
    let serve = async {
        let Some(Command::PutIntent { request, term, asker, reply }) = api.seat.command().await else { panic!("another command") };
        assert_eq!(asker.reason.as_deref(), Some("kernel upgrade"));
        let (record, _) = change::put_intent(&records(), request, term, asker, &stamp()).expect("accepted");
        reply.send(Ok(record)).expect("answer");
    };
    let (answer, ()) = tokio::join!(client.post_json::<_, IntentRecord>("/v1/intent", &body), serve);
    let wanted = Request::Pause { reason: "kernel upgrade".to_owned(), until: Some(Span::from_secs(3_600)) };
    assert_eq!(answer.expect("accepted").request, wanted);
}

#[test]
fn requests_that_cannot_be_carried_out_are_refused_before_they_are_written() {
    let records = records();
    let remove = |node: &str| Request::Remove { node: name(node) };
    let put = |request, term| change::put_intent(&records, request, Term::new(term), asker(), &stamp()).map(|(record, _)| record.id);
    assert!(matches!(put(remove("n4"), 4), Err(Refusal::Conflict(_))));
    assert!(matches!(put(remove("n1"), 5), Err(Refusal::NotNow(why)) if why.contains("is the primary")));
    assert!(matches!(put(remove("n9"), 5), Err(Refusal::NotNow(_))));
    assert!(put(remove("n4"), 5).is_ok());
    for (request, expected) in [
        (Request::Resume { assert_dead: false }, "is not paused"),
        (Request::Acknowledge, "nothing is to be acknowledged"),
        (failover("n9", false, false), "no node n9"),
        (failover("n1", false, false), "is the primary already"),
        (failover("n4", false, false), "the agent of n4 says nothing"),
        (failover("n2", false, true), "--assert-dead is for a node that is gone"),
        // n3 streams and is not listed.
        (failover("n3", true, false), "(n2 may): it may once it streams from n1"),
    ] {
        assert!(matches!(put(request.clone(), 5), Err(Refusal::NotNow(why)) if why.contains(expected)), "{request:?}");
    }
    assert!(put(failover("n2", false, false), 5).is_ok());
    assert!(put(Request::Pause { reason: String::new(), until: None }, 5).is_ok());
    let blank = change::put_intent(&Records::default(), remove("n4"), Term::new(5), asker(), &stamp());
    assert!(matches!(blank, Err(Refusal::NotNow(_))));
}
