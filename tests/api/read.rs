//! What is read under `/v1`, and `/metrics`.

use super::{
    published::{Builder, primary, reason, replica},
    seat::{Api, settings},
};
use pgbaton::{api::status::Status, decide::decision::ReasonKind, model::moment::Span};
use serde_json::Value;
use std::sync::Arc;

#[tokio::test]
async fn status_tells_of_the_node_and_of_its_cluster() {
    let reasons = vec![reason(ReasonKind::Because, "serve", "serves"), reason(ReasonKind::Alarm, "disk", "the disk is full")];
    let api = Api::showing(Builder { reasons, ..primary(Span::from_secs(30)) }.build());
    let status: Status = api.local().get_json("/v1/status").await.expect("status");
    assert_eq!((status.cluster.as_str(), status.node.as_str(), status.term.get()), ("orders", "n1", 5));
    let leader = status.leader.as_ref().expect("leader");
    assert_eq!((leader.node.as_str(), leader.state.as_str()), ("n1", "serving"));
    assert!(status.lease_seconds_left.is_some_and(|left| left > 20.0 && left <= 30.0), "{:?}", status.lease_seconds_left);
    assert!(status.routing.writes && !status.routing.reads);
    let names: Vec<(&str, bool, bool)> = status.members.iter().map(|m| (m.node.as_str(), m.leader, m.electable)).collect();
    assert_eq!(names, [("n1", true, false), ("n2", false, true), ("n3", false, false), ("n4", false, false)]);
    // What the primary's own walsender shows goes before what the replica last published.
    assert_eq!((status.members[2].lag.sent, status.members[2].lag.replay), (Some(0), Some(2 << 20)));
    assert_eq!(status.members[3].state, "silent");
    assert_eq!(status.alarms.len(), 1);
    assert_eq!(status.file.term, status.term);
    // Over TCP the same may be read.
    let remote: Status = api.remote().get_json("/v1/status").await.expect("status");
    assert_eq!(remote.members, status.members);
}

#[tokio::test]
async fn reasons_members_records_and_the_waiting_request_are_read_from_memory() {
    let reasons = vec![reason(ReasonKind::Waits, "wait", "waits 2s")];
    let api = Api::showing(Builder { reasons, intent: true, ..replica() }.build());
    let reasons: Value = api.local().get_json("/v1/reasons").await.expect("reasons");
    assert_eq!(reasons["reasons"][0]["text"], "waits 2s");
    let members: Value = api.local().get_json("/v1/members").await.expect("members");
    assert_eq!(members["members"].as_array().map(Vec::len), Some(4));
    let records: Value = api.local().get_json("/v1/records").await.expect("records");
    assert_eq!(records["records"]["leader"]["record"]["state"], "serving");
    let intent: Value = api.local().get_json("/v1/intent").await.expect("intent");
    assert_eq!(intent["intent"]["request"]["node"], "n4");
    let policy: Value = api.local().get_json("/v1/policy").await.expect("policy");
    assert_eq!((&policy["version"], &policy["policy"]["preset"]), (&3.into(), &"default".into()));
    assert!(api.raw("GET /v1/policy HTTP/1.0\r\n\r\n").to_ascii_lowercase().contains("etag: \"3\""));
}

#[test]
fn an_agent_that_has_decided_nothing_says_so() {
    let api = Api::start();
    let (status, body) = api.ask("GET", "/v1/status");
    assert_eq!(status, 503);
    assert!(body.contains("urn:pgbaton:problem:starting"), "{body}");
}

#[test]
fn metrics_are_those_that_the_agent_renders_and_requests_are_counted() {
    let mut settings = settings();
    let metrics = Arc::new(pgbaton::telemetry::Metrics::new(&"orders".parse().expect("name"), &"n1".parse().expect("name")));
    let rendered = Arc::clone(&metrics);
    settings.render = Arc::new(move || rendered.render());
    settings.metrics = Some(metrics);
    let api = Api::with(settings);
    assert_eq!(api.ask("GET", "/nonsense").0, 503);
    let (status, text) = api.ask("GET", "/metrics");
    assert_eq!(status, 200);
    assert!(text.contains("pgbaton_api_request_duration_seconds_count{") && text.contains("path=\"other\""), "{text}");
}

#[test]
fn what_is_not_there_is_a_problem_under_v1() {
    let api = Api::showing(replica().build());
    for (method, path, expected) in [("GET", "/v1/nonsense", 404), ("DELETE", "/v1/policy", 405), ("GET", "/v1/audit?limit=x", 400)] {
        let answer = api.raw(&format!("{method} {path} HTTP/1.0\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.0 {expected}")) && answer.contains("application/problem+json"), "{answer}");
    }
}
