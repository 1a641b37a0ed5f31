//! What stands on an etcd lease, and what is kept as a journal.

mod support;

use pgbaton::{
    clock,
    dcs::{Etcd, Hedge, TxnOutcome},
    model::{
        key::{Compare, Key, Txn, Write},
        moment::Span,
        node::NodeName,
        term::Term,
    },
};
use std::time::Duration;
use support::etcd::{Etcds, Options, now};

const DEADLINE: Span = Span::from_secs(3);

#[tokio::test]
async fn a_member_outlives_its_agent_by_its_time_to_live_and_no_longer() {
    let etcds = Etcds::start(Options { members: 1, timing: Some((50, 500)), ..Options::default() });
    let mut settings = etcds.settings();
    settings.member_ttl = Span::from_secs(2);
    let (kept, left) = (Etcd::connect(settings.clone()).await.expect("connect"), Etcd::connect(settings).await.expect("connect"));
    let names: [NodeName; 2] = ["kept".parse().expect("name"), "left".parse().expect("name")];
    kept.put_member(&names[0], "1".to_owned(), DEADLINE).await.expect("put");
    left.put_member(&names[1], "1".to_owned(), DEADLINE).await.expect("put");
    let script = async {
        let start = now();
        let gone = loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let members: Vec<Key> = kept.list(DEADLINE).await.expect("list").entries.into_iter().map(|(key, ..)| key).collect();
            assert!(members.contains(&Key::Member(names[0].clone())), "the kept one vanished after {:?}", start.elapsed());
            if members.len() == 1 {
                break start.elapsed();
            }
            assert!(start.elapsed() < Duration::from_secs(6), "it never vanished");
        };
        println!("the left one vanished after {gone:?}");
        assert!(gone > Duration::from_millis(1_500), "{gone:?}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(kept.list(DEADLINE).await.expect("list").entries.len(), 1, "the kept one is kept");
    };
    tokio::select! {
        () = kept.clone().keep_up() => panic!("the upkeep ended"),
        () = script => {}
    }
    // A lease that ended meanwhile is noticed and granted anew.
    left.put_member(&names[1], "2".to_owned(), DEADLINE).await.expect("put");
    assert_eq!(left.list(DEADLINE).await.expect("list").entries.len(), 2);
}

#[tokio::test]
async fn a_lease_revoked_behind_our_back_is_granted_anew() {
    let etcds = Etcds::one();
    let etcd = Etcd::connect(etcds.settings()).await.expect("connect");
    let node: NodeName = "n1".parse().expect("name");
    etcd.put_member(&node, "1".to_owned(), DEADLINE).await.expect("put");
    let lease = etcds.must(&["lease", "list"]).lines().last().expect("a lease").to_owned();
    etcds.must(&["lease", "revoke", &lease]);
    etcd.put_member(&node, "2".to_owned(), DEADLINE).await.expect("put");
    assert_eq!(etcd.list(DEADLINE).await.expect("list").entries.len(), 1);
}

/// Connections of this network namespace that were refused so far.
fn refused() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/net/snmp").ok()?;
    let mut tcp = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (tcp.next()?, tcp.next()?);
    let at = names.split(' ').position(|name| name == "AttemptFails")?;
    values.split(' ').nth(at)?.parse().ok()
}

/// A follower that is asked to renew hands it on to its leader, and calls a dead one thousands of times a second.
#[tokio::test]
async fn renewals_do_not_drive_followers_mad_while_etcd_has_no_leader() {
    let mut etcds = Etcds::start(Options { members: 3, timing: Some((100, 3_000)), ..Options::default() });
    let leader = etcds.leader();
    let mut settings = etcds.settings();
    settings.member_ttl = Span::from_secs(8);
    // The one that is preferred as long as nothing fails is a follower.
    settings.endpoints.swap(0, (leader + 1) % 3);
    let etcd = Etcd::connect(settings).await.expect("connect");
    etcd.put_member(&"n1".parse().expect("name"), "1".to_owned(), DEADLINE).await.expect("put");
    let script = async {
        // Renewed once, so that it is known who leads; the next one is due while nobody does.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        etcds.kill(leader);
        let before = refused().expect("the kernel's counter");
        tokio::time::sleep(Duration::from_millis(3_200)).await;
        let calls = refused().expect("the kernel's counter") - before;
        println!("{calls} refused connections");
        assert!(calls < 1_500, "{calls} refused connections");
        etcd.list(Span::from_secs(10)).await.expect("a new leader");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(etcd.list(DEADLINE).await.expect("list").entries.len(), 1, "the lease lives on under the new leader");
    };
    tokio::select! {
        () = etcd.clone().keep_up() => panic!("the upkeep ended"),
        () = script => {}
    }
}

#[tokio::test]
async fn bootstrap_is_created_once_and_on_a_lease() {
    let etcds = Etcds::one();
    let (one, two) = (Etcd::connect(etcds.settings()).await.expect("connect"), Etcd::connect(etcds.settings()).await.expect("connect"));
    let create = |text: &str| Txn {
        nonce: clock::nonce(),
        when: vec![Compare::Missing(Key::Bootstrap), Compare::Missing(Key::Cluster)],
        then: vec![Write::Put(Key::Bootstrap, text.to_owned())],
    };
    let won = one.txn(&create("one"), Hedge::Never, DEADLINE).await.expect("reply").outcome;
    assert!(matches!(won, TxnOutcome::Applied { .. }), "{won:?}");
    let lost = two.txn(&create("two"), Hedge::Never, DEADLINE).await.expect("reply").outcome;
    let TxnOutcome::Refused { values, unsettled: false, .. } = lost else { panic!("{lost:?}") };
    assert_eq!(values[0].1.as_deref(), Some("one"));
    let leases = etcds.must(&["lease", "list"]);
    let attached = leases.lines().filter(|lease| lease.len() == 16).any(|lease| {
        let shown = etcds.must(&["lease", "timetolive", lease, "--keys"]);
        shown.contains("granted with TTL(60s)") && shown.contains("/pgbaton/c1/bootstrap")
    });
    assert!(attached, "{leases}");
}

#[tokio::test]
async fn the_newest_thousand_changes_of_leadership_are_kept() {
    let etcds = Etcds::one();
    let etcd = Etcd::connect(etcds.settings()).await.expect("connect");
    let old: Vec<(Key, String)> = (1..=1_250).map(|term| (Key::History(Term::new(term)), format!("term {term}"))).collect();
    let present = etcd.list(DEADLINE).await.expect("list");
    etcd.write_all(&old, &present, DEADLINE).await.expect("write");
    etcd.append_history(Term::new(1_251), "term 1251".to_owned(), DEADLINE).await.expect("append");
    let kept = etcd.read_history(DEADLINE).await.expect("read");
    assert_eq!(kept.len(), 1_000);
    assert_eq!(kept.first(), Some(&(Term::new(1_251), "term 1251".to_owned())));
    assert_eq!(kept[999].0, Term::new(252));
    for number in 0..5 {
        let id = format!("a{number}").parse().expect("id");
        etcd.append_audit(id, format!("audit {number}"), DEADLINE).await.expect("append");
    }
    let newest: Vec<String> = etcd.read_audit(2, DEADLINE).await.expect("read").into_iter().map(|(_, text)| text).collect();
    assert_eq!(newest, ["audit 4", "audit 3"]);
    assert_eq!(etcd.list(DEADLINE).await.expect("list").entries, Vec::new(), "journals are no part of the view");
}

#[tokio::test]
async fn a_recovery_writes_over_what_it_saw_and_nothing_else() {
    let etcds = Etcds::one();
    let etcd = Etcd::connect(etcds.settings()).await.expect("connect");
    let put = |text: &str| Txn { nonce: clock::nonce(), when: Vec::new(), then: vec![Write::Put(Key::Leader, text.to_owned())] };
    etcd.txn(&put("lost its way"), Hedge::Never, DEADLINE).await.expect("put");
    let seen = etcd.list(DEADLINE).await.expect("list");
    let mut anew: Vec<(Key, String)> = (1..=130).map(|n| (Key::History(Term::new(n)), format!("term {n}"))).collect();
    anew.extend([(Key::Cluster, "cluster".to_owned()), (Key::Leader, "leader".to_owned())]);
    etcd.write_all(&anew, &seen, DEADLINE).await.expect("write");
    let written = etcd.list(DEADLINE).await.expect("list");
    let texts: Vec<&str> = written.entries.iter().map(|(_, text, _)| text.as_str()).collect();
    assert_eq!(texts, ["cluster", "leader"]);
    etcd.txn(&put("a holder"), Hedge::Never, DEADLINE).await.expect("put");
    let error = etcd.write_all(&anew, &written, DEADLINE).await.expect_err("the lease has moved on");
    assert!(error.to_string().contains("changed meanwhile"), "{error}");
}
