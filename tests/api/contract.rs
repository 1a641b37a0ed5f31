//! patroni-contract.md, row by row.

use super::{
    published::{Builder, primary, replica},
    seat::{Api, now},
};
use pgbaton::{
    clock,
    model::{
        moment::Span,
        record::{LeaderState, Tags},
    },
};
use std::time::Duration;

const LONG: Span = Span::from_secs(30);

/// Rows 1 and 7.
#[test]
fn a_primary_answers_200_to_every_method_and_a_replica_503() {
    let leader = Api::showing(primary(LONG).build());
    let standby = Api::showing(replica().build());
    for path in ["/", "/primary", "/master", "/read-write", "/leader", "/primary?tag_x=y", "/primary/", "/?lag=1"] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert_eq!(leader.ask(method, path).0, 200, "{method} {path}");
            assert_eq!(standby.ask(method, path).0, 503, "{method} {path}");
        }
    }
    for path in ["/replica", "/replica?lag=10MB", "/read-only", "/health"] {
        assert_eq!(standby.status(path), 200, "{path}");
    }
    assert_eq!((leader.status("/replica"), leader.status("/read-only"), leader.status("/health")), (503, 200, 200));
}

#[test]
fn only_get_answers_with_the_state_of_the_node() {
    let api = Api::showing(primary(LONG).build());
    let (_, body) = api.ask("GET", "/primary");
    let body: serde_json::Value = serde_json::from_str(&body).expect("json");
    assert_eq!((&body["role"], &body["state"], &body["timeline"]), (&"primary".into(), &"running".into(), &2.into()));
    assert_eq!(body["patroni"]["scope"], "orders");
    assert_eq!(body["server_version"], 150_006);
    for method in ["HEAD", "OPTIONS"] {
        assert_eq!(api.ask(method, "/primary"), (200, String::new()), "{method}");
    }
    let answer = api.raw("GET / HTTP/1.0\r\n\r\n").to_ascii_lowercase();
    assert!(answer.contains("content-type: application/json") && answer.contains("x-pgbaton-lease-left-ms: "), "{answer}");
}

/// Row 2.
#[test]
fn a_replica_is_offered_up_to_the_limit_of_its_lag() {
    let api = Api::showing(Builder { behind: 10 << 20, ..replica() }.build());
    assert_eq!(api.status("/replica?lag=10MB"), 200);
    assert_eq!(api.status("/replica?lag=10485759"), 503);
    assert_eq!(api.status("/read-only?lag=9MB"), 503);
    // A limit that is none is no limit; and a limit says nothing about writes.
    assert_eq!(api.status("/replica?lag=abc"), 200);
    assert_eq!(Api::showing(primary(LONG).build()).status("/primary?lag=0"), 200);
}

/// Row 3.
#[test]
fn a_node_tagged_against_load_balancing_is_not_offered_to_readers() {
    let tags = Tags { no_load_balance: true, ..Tags::default() };
    let standby = Api::showing(Builder { tags: tags.clone(), ..replica() }.build());
    assert_eq!((standby.status("/replica"), standby.status("/read-only"), standby.status("/health")), (503, 503, 200));
    let leader = Api::showing(Builder { tags, ..primary(LONG) }.build());
    assert_eq!((leader.status("/read-only"), leader.status("/primary")), (200, 200));
}

/// Row 4.
#[test]
fn tags_count_for_readers_and_not_for_writers() {
    let api = Api::showing(replica().build());
    for (query, expected) in [("tag_zone=a", 200), ("tag_zone=b", 503), ("tag_x=y", 503), ("tag_nofailover=false", 200), ("x=y", 200)] {
        for path in ["/replica", "/read-only", "/health"] {
            assert_eq!(api.status(&format!("{path}?{query}")), expected, "{path}?{query}");
        }
    }
    let leader = Api::showing(primary(LONG).build());
    assert_eq!((leader.status("/primary?tag_x=y"), leader.status("/read-only?tag_x=y"), leader.status("/health?tag_x=y")), (200, 503, 503));
}

#[test]
fn a_replica_tells_whether_it_streams() {
    let streams = Api::showing(replica().build());
    assert_eq!(streams.status("/replica?replication_state=streaming"), 200);
    assert_eq!(streams.status("/replica?replication_state=in%20archive%20recovery"), 503);
    let mut archived = Builder { streaming: false, ..replica() };
    archived.policy.parameters.insert("restore_command".to_owned(), "cp /a/%f %p".to_owned());
    let archived = Api::showing(archived.build());
    assert_eq!(archived.status("/replica?replication_state=streaming"), 503);
    assert_eq!(archived.status("/replica?replication_state=in+archive+recovery"), 200);
}

/// Row 5: the deadline counts, whoever hangs.
#[test]
fn a_primary_answers_503_from_its_deadline_on_without_a_further_decision() {
    let published = primary(Span::from_millis(400)).build();
    let until = published.decision.routing.writes.expect("writes").until;
    let api = Api::showing(published);
    let mut answers = 0;
    loop {
        let before = clock::boot();
        let status = api.status("/primary");
        let after = clock::boot();
        if after < until {
            assert_eq!(status, 200);
            answers += 1;
        } else if before >= until {
            assert_eq!(status, 503);
            break;
        }
    }
    assert!(answers > 3, "{answers}");
    for path in ["/", "/leader", "/read-only", "/read-write"] {
        assert_eq!(api.status(path), 503, "{path}");
    }
    assert_eq!(api.status("/health"), 200);
}

/// The key `pause` is there when it is true, as Patroni has it.
#[test]
fn a_paused_cluster_says_so_and_its_primary_stays_one() {
    let mut paused = primary(LONG).build();
    let (_, body) = Api::showing(paused.clone()).ask("GET", "/primary");
    assert!(!body.contains("pause"), "{body}");
    let records = std::sync::Arc::make_mut(&mut paused.snapshot.etcd.records);
    records.leader.as_mut().expect("leader").record.state = LeaderState::Paused(Box::default());
    let (status, body) = Api::showing(paused).ask("GET", "/primary");
    assert!(status == 200 && body.contains("\"pause\":true") && !body.contains("cluster_unlocked"), "{status} {body}");
}

/// Row 7, second half; and an agent that has decided nothing yet.
#[test]
fn a_node_whose_postgresql_starts_is_offered_to_nobody() {
    let starting = Api::showing(Builder { running: false, ..replica() }.build());
    let blank = Api::start();
    for api in [&starting, &blank] {
        for path in ["/", "/primary", "/replica", "/read-only", "/health"] {
            let (status, body) = api.ask("GET", path);
            assert_eq!(status, 503, "{path}");
            assert!(body.contains("\"state\":\"starting\""), "{body}");
        }
    }
}

#[test]
fn a_replica_whose_loop_hangs_is_not_offered_for_ever() {
    let mut builder = replica();
    builder.now.boot = builder.now.boot.minus(Span::from_secs(6));
    let api = Api::showing(builder.build());
    assert_eq!((api.status("/replica"), api.status("/read-only"), api.status("/health")), (503, 503, 503));
}

/// Section 1: an unknown old path answers 503 with the state, not 404; an unknown POST 501.
#[test]
fn unknown_old_paths_answer_503_with_the_state_of_the_node() {
    let api = Api::showing(primary(LONG).build());
    for path in ["/nonsense", "/patroni/x", "/primaryx", "/v2/status"] {
        let (status, body) = api.ask("GET", path);
        assert_eq!(status, 503, "{path}");
        assert!(body.contains("\"role\":\"primary\""), "{body}");
    }
    assert_eq!(api.ask("POST", "/switchover").0, 501);
    assert_eq!(api.ask("DELETE", "/restart").0, 501);
}

#[test]
fn health_is_answered_in_less_than_ten_milliseconds() {
    let api = Api::showing(primary(LONG).build());
    let mut took: Vec<Duration> = (0..50)
        .map(|_| {
            let begun = now();
            assert_eq!(api.status("/primary"), 200);
            begun.elapsed()
        })
        .collect();
    took.sort();
    assert!(took[25] < Duration::from_millis(10), "median {:?}", took[25]);
}
