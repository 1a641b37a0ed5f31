//! `doctor`.

use super::{etcd::Etcds, host::Host, host::run, published::primary};
use pgbaton::model::moment::Span;
use serde_json::Value;

fn rows(text: &str) -> Vec<(String, String, String)> {
    let rows: Vec<Value> = serde_json::from_str(text).expect("json");
    let word = |row: &Value, key: &str| row[key].as_str().expect("a text").to_owned();
    rows.iter()
        .map(|row| (word(row, "verdict"), word(row, "subject"), format!("{}; {}", word(row, "found"), word(row, "remedy"))))
        .collect()
}

fn find<'a>(rows: &'a [(String, String, String)], subject: &str) -> &'a (String, String, String) {
    rows.iter().find(|row| row.1 == subject).unwrap_or_else(|| panic!("no row {subject} in {rows:#?}"))
}

#[test]
fn a_host_is_looked_at_with_a_row_for_each_thing() {
    let etcd = Etcds::one();
    let host = Host::with_etcd(&etcd.url(0));
    let ran = host.run(&["doctor", "-o", "json"]);
    let rows = rows(&ran.stdout);
    for (subject, verdict) in [
        ("configuration", "ok"),
        ("agent", "warn"),
        ("PostgreSQL", "ok"),
        ("etcd", "ok"),
        ("etcd cluster", "warn"),
        ("etcd records", "ok"),
        ("disk", "ok"),
    ] {
        assert_eq!(find(&rows, subject).0, verdict, "{rows:#?}");
    }
    assert!(find(&rows, "etcd cluster").2.starts_with("1 member; run three"), "{rows:#?}");
    for subject in ["clock", "fencing", "ports", "rights"] {
        find(&rows, subject);
    }
    // With an agent that runs, its own word on fencing and ports counts.
    let _agent = host.agent(primary(Span::from_secs(600)).build());
    let rows = self::rows(&host.run(&["doctor", "-o", "json"]).stdout);
    assert_eq!(find(&rows, "agent").0, "ok");
    assert_eq!(find(&rows, "fencing").2, "the guard's self-test passed (namespace); ");
    assert_eq!(find(&rows, "ports").2, "in use by the node itself; ");
}

#[test]
fn what_is_not_well_ends_with_8() {
    let host = Host::new();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = busy.local_addr().expect("address").port().to_string();
    let text = std::fs::read_to_string(host.path("orders.toml")).expect("read").replace("127.0.0.1:8008", &format!("127.0.0.1:{port}"));
    host.write("orders.toml", &text);
    let ran = host.run(&["doctor", "--quiet", "-o", "json"]);
    assert_eq!(ran.code, 8);
    let rows = rows(&ran.stdout);
    assert!(rows.iter().all(|row| row.0 != "ok"));
    assert!(rows.iter().any(|row| row.0 == "fail" && row.2.contains(&format!("port {port} is in use"))), "{rows:#?}");
    assert!(find(&rows, "etcd cluster").2.starts_with("no endpoint answers"), "{rows:#?}");
}

#[test]
fn faults_of_the_configuration_are_rows() {
    let host = Host::new();
    let file = host.write("bad.toml", "cluster = \"orders\"\nnonsense = 1\n").display().to_string();
    let ran = run(&["doctor", "--config", &file]);
    assert_eq!(ran.code, 8);
    assert!(ran.stdout.contains("FAIL  configuration  ") && ran.stdout.contains("nonsense"), "{}", ran.stdout);
}

#[test]
fn a_configuration_that_the_host_does_not_meet_has_one_verdict() {
    let host = Host::new();
    let text = std::fs::read_to_string(host.path("orders.toml")).expect("read").replace("/usr/lib/postgresql/15/bin", "/nonexistent");
    host.write("orders.toml", &text);
    let ran = host.run(&["doctor", "-o", "json"]);
    assert_eq!(ran.code, 8);
    let rows = rows(&ran.stdout);
    let verdicts: Vec<&str> = rows.iter().filter(|row| row.1 == "configuration").map(|row| row.0.as_str()).collect();
    assert_eq!(verdicts, ["fail"], "{rows:#?}");
    assert!(find(&rows, "configuration").2.contains("postgres.bin_dir: /nonexistent"), "{rows:#?}");
}
