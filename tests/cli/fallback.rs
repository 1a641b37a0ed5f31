//! Without an agent: etcd itself is asked.

use super::{etcd::Etcds, host::Host, published::primary};
use pgbaton::model::{moment::Span, records::Records};

/// Puts these records into etcd, as the cluster of [`Host`].
pub(super) fn fill(etcd: &Etcds, records: &Records) {
    for key in records.keys() {
        etcd.must(&["put", &format!("/pgbaton/orders/{key}"), records.text(&key).expect("text")]);
    }
}

#[test]
fn list_and_history_come_from_etcd_with_a_note_when_the_agent_is_down() {
    let etcd = Etcds::one();
    let host = Host::with_etcd(&etcd.url(0));
    let records = primary(Span::from_secs(1)).build().snapshot.etcd.records;
    fill(&etcd, &records);
    let ran = host.run(&["list"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("Note: could not reach the agent at <host>/run/agent.sock: "), "{}", ran.stdout);
    assert!(ran.stdout.contains("Cluster orders (7000000000000000001), term 5: n1 is primary on timeline 2\n"), "{}", ran.stdout);
    assert!(
        ran.stdout.contains("\nn3    replica  streaming   2  0/5000000  0 B    2 MB  2.0s  no        restart pending\n"),
        "{}",
        ran.stdout
    );
    let record = r#"{"v":1,"term":5,"primary":"n1","from":"n2","why":"n2 released","tli":2,"switch":null,"former_lsn":null,"loss_bound":0,"phases":{"claim":5},"at":"2026-01-01T00:00:00.000Z"}"#;
    etcd.must(&["put", "/pgbaton/orders/history/5", record]);
    let ran = host.run(&["history"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("etcd itself is asked"), "{}", ran.stderr);
    assert!(ran.stdout.contains("n2 released"), "{}", ran.stdout);
    // What needs the agent does not guess.
    assert_eq!(host.run(&["status"]).code, 3);
}

#[test]
fn what_is_said_when_neither_the_agent_nor_etcd_answers_is_one_sentence() {
    let host = Host::new();
    let no_agent = "could not reach the agent at <host>/run/agent.sock: ";
    let neither = "; etcd does not answer either: could not reach etcd: ";
    let begun = "pgbaton: etcd has to answer before its records can be written: could not reach etcd: ";
    let cases: [(&[&str], [&str; 2]); 4] = [
        (&["list"], ["pgbaton: could not reach", neither]),
        (&["dsn"], ["pgbaton: could not reach", neither]),
        (&["history"], ["Note: could not reach", "\npgbaton: could not reach etcd: "]),
        (&["etcd", "recover"], ["pgbaton: etcd has to answer", begun]),
    ];
    // Each waits for etcd: all of them at once.
    std::thread::scope(|scope| {
        for (verb, [begin, then]) in cases {
            let host = &host;
            scope.spawn(move || {
                let ran = host.run(verb);
                assert_eq!(ran.code, 3, "{verb:?}: {}", ran.stderr);
                assert!(ran.stderr.starts_with(begin) && ran.stderr.contains(then), "{verb:?}: {}", ran.stderr);
                assert!(verb[0] == "etcd" || ran.stderr.contains(no_agent), "{verb:?}: {}", ran.stderr);
                assert!(!ran.stderr.contains("could not could not") && !ran.stderr.contains(": reach"), "{verb:?}: {}", ran.stderr);
            });
        }
    });
}
