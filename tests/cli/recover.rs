//! `etcd recover` (protocol 1.2, *suspect etcd*): on a real etcd that was wiped.

use super::{
    etcd::Etcds,
    fallback::fill,
    host::{Agent, Host},
    published::{Builder, primary, replica},
    requests::believing,
};
use pgbaton::{
    agent::handle::Published,
    clock,
    dcs::Etcd,
    decide::snapshot::Scanned,
    model::{
        failsafe::Ack,
        instance::{Armed, ControlData, ControlState, DataDir, DiskFacts, Process, Whole},
        lsn::Lsn,
        moment::Span,
        node::SystemId,
        node_file::{Boundary, Promoted},
        observed::Observed,
        record::LeaderState,
        records::Records,
        term::Term,
        timeline::TimelineId,
        wal_layout::Layout,
    },
};
use serde_json::json;
use std::collections::BTreeMap;

/// Suspects its etcd, and has a file that knows the cluster. `stopped`: nothing of PostgreSQL lives.
fn suspicious(builder: Builder, stopped: bool) -> Published {
    let primary = builder.primary;
    let mut published = builder.build();
    let s = &mut published.snapshot;
    s.etcd.suspect = Some("nothing is left under this cluster's prefix".to_owned());
    s.file.floors.uuid = Some("u1".parse().expect("uuid"));
    s.file.floors.generation = 1;
    s.file.floors.seq = 9;
    s.file.term = Term::new(7);
    s.file.boundary = Some(Boundary { tli: TimelineId::new(2).expect("tli"), lsn: "0/5000000".parse().expect("lsn") });
    if primary {
        s.file.claimed = Some(Term::new(5));
        s.file.promoted = Some(Promoted { tli: TimelineId::new(2).expect("tli"), term: Term::new(5) });
    }
    if stopped && let Observed::Known { value, .. } = &mut s.guard {
        value.process = Process::Empty { last: None };
        value.armed = None;
        let end = s.file.boundary.expect("boundary");
        s.whole = Some(Scanned { whole: Whole { tli: end.tli, lsn: end.lsn }, run: None, at: s.now.boot });
    }
    published.decision.routing.writes = None;
    published
}

struct Cluster {
    etcd: Etcds,
    n1: Host,
    n2: Host,
}

impl Cluster {
    fn new() -> Self {
        let etcd = Etcds::one();
        let (n1, n2) = (Host::with_etcd(&etcd.url(0)), Host::with_etcd(&etcd.url(0)));
        Self { etcd, n1, n2 }
    }

    fn records(&self) -> Records {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let mut settings = self.etcd.settings();
        settings.cluster = "orders".parse().expect("name");
        runtime.block_on(async {
            let etcd = Etcd::connect(settings).await.expect("connect");
            etcd.list(Span::from_secs(3)).await.expect("list").records()
        })
    }

    fn first(&self, stopped: bool) -> Agent {
        self.n1.agent(suspicious(primary(Span::from_secs(600)), stopped))
    }

    fn second(&self) -> Agent {
        self.n2.agent(suspicious(replica(), false))
    }
}

#[test]
fn the_last_primary_may_go_on_once_the_others_are_accounted_for() {
    let cluster = Cluster::new();
    let (_n1, n2) = (cluster.first(true), cluster.second());
    let peer = n2.address();
    // n3 and n4 are known by the records that n1 believed, and do not answer.
    let ran = cluster.n1.run(&["etcd", "recover", "--peer", &peer, "--confirm"]);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("--assert-dead n3") && ran.stderr.contains("--assert-dead n4"), "{}", ran.stderr);
    // n2 answers for itself: its PostgreSQL is in recovery.
    assert!(!ran.stderr.contains("--assert-dead n2"), "{}", ran.stderr);
    let arguments = ["etcd", "recover", "--peer", &peer, "--assert-dead", "n3", "--assert-dead", "n4"];
    let shown = cluster.n1.run(&arguments);
    assert_eq!(shown.code, 4, "{}", shown.stderr);
    assert!(shown.stderr.contains("--confirm") && shown.stdout.contains("\nleader = {"), "{}", shown.stdout);
    assert!(cluster.records().is_blank(), "nothing is written without --confirm");
    let ran = cluster.n1.run(&[&arguments[..], &["--confirm"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let records = cluster.records();
    let leader = &records.leader.as_ref().expect("leader").record;
    assert!(matches!(leader.state, LeaderState::Vacant { .. }));
    // Above the highest term that any file knows.
    assert_eq!((leader.term, leader.seq, leader.tli.get()), (Term::new(8), 10, 2));
    let sync = &records.sync.as_ref().expect("sync").record;
    assert_eq!((sync.primary.node.as_str(), sync.electable.as_slice()), ("n1", std::slice::from_ref(&sync.primary)));
    // Its own claim makes it the owner, which starts in place.
    assert_eq!(sync.term, Term::new(5));
    assert_eq!(records.cluster.as_ref().map(|cluster| cluster.record.generation), Some(2));
    assert_eq!(records.policy.as_ref().map(|policy| policy.record.version), Some(3));
    assert!(cluster.etcd.must(&["get", "--prefix", "/pgbaton/orders/audit/"]).contains("etcd-recover"));
}

/// What crashed while etcd is silent is started again in the same term, by the word of its peers.
#[test]
fn whoever_may_be_started_again_is_not_dead_and_whoever_is_bound_says_so() {
    let cluster = Cluster::new();
    let mut crashed = suspicious(primary(Span::from_secs(600)), true);
    let Observed::Known { value: guard, .. } = &mut crashed.snapshot.guard else { panic!("a guard") };
    guard.armed = Some(Armed { term: Term::new(5), until: clock::boot().plus(Span::from_secs(600)) });
    let mut bound = suspicious(replica(), false);
    bound.snapshot.file.ack = Some(Ack {
        holder: crashed.snapshot.myself(),
        term: Term::new(7),
        wait: Span::from_secs(600),
        tli: TimelineId::new(2).expect("tli"),
        lsn: "0/5000000".parse().expect("lsn"),
        nonce: "q1".parse().expect("nonce"),
        boot: bound.snapshot.me.boot.clone(),
        at: clock::boot(),
    });
    let (n1, _n2) = (cluster.n1.agent(crashed), cluster.n2.agent(bound));
    let dead = ["--assert-dead", "n3", "--assert-dead", "n4"];
    let peer = n1.address();
    let arguments = [&["etcd", "recover", "--peer", &peer, "--primary", "n2", "--confirm"][..], &dead].concat();
    let ran = cluster.n2.run(&arguments);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("--assert-dead n1"), "{}", ran.stderr);
    assert!(ran.stderr.contains("n1 goes on as primary in term 7 without etcd, by the word of n2"), "{}", ran.stderr);
    assert!(cluster.records().is_blank(), "{}", ran.stderr);
}

#[test]
fn data_that_were_not_compared_with_what_was_noted_of_them_are_not_chosen() {
    let cluster = Cluster::new();
    let mut published = suspicious(primary(Span::from_secs(600)), true);
    published.snapshot.whole = None;
    let (_n1, n2) = (cluster.n1.agent(published), cluster.second());
    let arguments = ["etcd", "recover", "--peer", &n2.address(), "--assert-dead", "n3", "--assert-dead", "n4", "--confirm"];
    let ran = cluster.n1.run(&arguments);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("was not looked at yet"), "{}", ran.stderr);
}

#[test]
fn data_that_need_wal_which_is_not_there_are_not_chosen() {
    let cluster = Cluster::new();
    let mut published = suspicious(primary(Span::from_secs(600)), true);
    let tli = TimelineId::new(2).expect("tli");
    let control = ControlData {
        system_id: SystemId::new(7),
        state: ControlState::InArchiveRecovery,
        checkpoint_tli: tli,
        checkpoint: Lsn::ZERO,
        redo: Lsn::ZERO,
        min_recovery: "0/6000000".parse().expect("lsn"),
        min_recovery_tli: Some(tli),
        can_rewind: true,
        wal_segment: Layout::DEFAULT.segment,
    };
    let (standby_signal, backup_label, started, rewind, histories) = (true, false, true, None, BTreeMap::new());
    let facts = DiskFacts { major: 15, copied: None, control, standby_signal, backup_label, started, rewind, histories };
    published.snapshot.disk = Observed::known(DataDir::Present(facts), published.snapshot.now.boot);
    let (_n1, n2) = (cluster.n1.agent(published), cluster.second());
    let arguments = ["etcd", "recover", "--peer", &n2.address(), "--assert-dead", "n3", "--assert-dead", "n4", "--confirm"];
    let ran = cluster.n1.run(&arguments);
    assert_eq!(ran.code, 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("nobody can lead from the data of n1") && ran.stderr.contains("0/6000000"), "{}", ran.stderr);
}

#[test]
fn another_node_becomes_primary_only_when_the_last_one_is_dead() {
    let cluster = Cluster::new();
    let (n1, _n2) = (cluster.first(false), cluster.second());
    let peer = n1.address();
    let wish = ["etcd", "recover", "--peer", &peer, "--primary", "n2", "--assert-dead", "n3", "--assert-dead", "n4", "--confirm"];
    let ran = cluster.n2.run(&wish);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("n1 runs as primary"), "{}", ran.stderr);
    n1.seat.publish(suspicious(primary(Span::from_secs(600)), true));
    let ran = cluster.n2.run(&wish);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let records = cluster.records();
    let sync = &records.sync.as_ref().expect("sync").record;
    assert_eq!(sync.primary.node.as_str(), "n2");
    // No claim of its own, and the timeline is another's: it is no owner, and promotes.
    assert_eq!(sync.term, Term::new(8));
    assert_ne!(records.base.as_ref().expect("base").record.owner, sync.primary);
}

#[test]
fn a_former_primary_that_does_not_answer_must_be_asserted_dead() {
    let cluster = Cluster::new();
    let _n2 = cluster.second();
    let others = ["etcd", "recover", "--primary", "n2", "--assert-dead", "n3", "--assert-dead", "n4", "--confirm"];
    let ran = cluster.n2.run(&others);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("n1 was primary or claimed to be") && ran.stderr.contains("--assert-dead n1"), "{}", ran.stderr);
    let ran = cluster.n2.run(&[&others[..], &["--assert-dead", "n1"]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn what_the_records_know_and_the_chosen_node_lacks_is_told() {
    let cluster = Cluster::new();
    let n2 = cluster.second();
    let arguments = ["etcd", "recover", "--primary", "n2", "--assert-dead", "n1", "--assert-dead", "n3", "--assert-dead", "n4"];
    let ran = cluster.n2.run(&arguments);
    assert!(ran.stderr.contains("only node that may become primary: n2"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("may be lost"), "{}", ran.stderr);
    // What was noted of the chosen node itself was compared with its data already.
    let fields =
        [("leader", "lsn", json!("0/6000000")), ("nodes/n3", "whole", json!("0/5800000")), ("nodes/n2", "whole", json!("0/5800000"))];
    n2.seat.publish(believing(suspicious(replica(), false), &fields));
    let ran = cluster.n2.run(&arguments);
    let told: Vec<&str> = ran.stderr.lines().map(str::trim).filter(|line| line.contains("may be lost")).collect();
    let expected = [
        "Warning: `leader` says that the last primary n1 had acknowledged up to 0/6000000 on timeline 2, n2 is at 0/5000000 on timeline 2: 16 MB may be lost",
        "Warning: n3 had noted 0/5800000 on timeline 2, n2 is at 0/5000000 on timeline 2: 8 MB may be lost",
    ];
    assert_eq!(told, expected, "{}", ran.stderr);
}

#[test]
fn a_node_that_answers_and_has_more_is_told_of_once() {
    let cluster = Cluster::new();
    let fields = [("leader", "lsn", json!("0/5800000")), ("nodes/n1", "whole", json!("0/5800000"))];
    let mut ahead = suspicious(primary(Span::from_secs(600)), true);
    if let Some(scanned) = &mut ahead.snapshot.whole {
        scanned.whole.lsn = "0/6000000".parse().expect("lsn");
    }
    let (n1, _n2) = (cluster.n1.agent(ahead), cluster.n2.agent(believing(suspicious(replica(), false), &fields)));
    let peer = n1.address();
    let dead = ["--assert-dead", "n1", "--assert-dead", "n3", "--assert-dead", "n4"];
    let ran = cluster.n2.run(&[&["etcd", "recover", "--peer", &peer, "--primary", "n2"][..], &dead].concat());
    let told: Vec<&str> = ran.stderr.lines().map(str::trim).filter(|line| line.contains("may be lost")).collect();
    let expected = ["Warning: n1 is at 0/6000000 on timeline 2, n2 is at 0/5000000 on timeline 2: 16 MB may be lost"];
    assert_eq!(told, expected, "{}", ran.stderr);
}

#[test]
fn voters_that_may_alone_have_what_was_acknowledged_are_told_of_unless_they_answer() {
    let cluster = Cluster::new();
    let voters = json!([{ "node": "n2", "data": "00000002" }, { "node": "n3", "data": "00000003" }]);
    let fields = [("sync", "mode", json!("quorum")), ("sync", "k", json!(1)), ("sync", "voters", voters)];
    let voter = |builder: Builder| believing(suspicious(builder, false), &fields);
    let third = || voter(Builder { node: "n3", ..replica() });
    let _n2 = cluster.n2.agent(voter(replica()));
    let dead = ["--primary", "n2", "--assert-dead", "n1", "--assert-dead", "n3", "--assert-dead", "n4"];
    let ran = cluster.n2.run(&[&["etcd", "recover"][..], &dead].concat());
    let silent = "Warning: commits wait for 1 of n2, n3, and n3 did not answer: what was acknowledged may be on them alone; start their agents first";
    assert!(ran.stderr.contains(silent), "{}", ran.stderr);
    let host = Host::with_etcd(&cluster.etcd.url(0));
    let n3 = host.agent(third());
    let peer = n3.address();
    let with_peer = [&["etcd", "recover", "--peer", &peer][..], &dead].concat();
    let ran = cluster.n2.run(&with_peer);
    assert!(ran.stderr.contains("only node that may become primary: n2"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("commits wait"), "{}", ran.stderr);
    // Another life of its data has confirmed nothing.
    let mut copied = third();
    copied.snapshot.file.data = "000000b3".parse().expect("id");
    n3.seat.publish(copied);
    let ran = cluster.n2.run(&with_peer);
    assert!(ran.stderr.contains("the data of n3 were replaced: what was acknowledged may be lost"), "{}", ran.stderr);
}

#[test]
fn whole_and_believed_records_are_not_recovered() {
    let cluster = Cluster::new();
    fill(&cluster.etcd, &primary(Span::from_secs(1)).build().snapshot.etcd.records);
    cluster.etcd.must(&["put", "/pgbaton/orders/term", r#"{"v":1,"term":5,"holder":{"node":"n1","data":"00000001"}}"#]);
    let _n1 = cluster.n1.agent(primary(Span::from_secs(600)).build());
    let ran = cluster.n1.run(&["etcd", "recover", "--confirm"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("nothing to recover"), "{}", ran.stderr);
}

#[test]
fn nobody_who_answers_is_nobody_to_recover_from() {
    let cluster = Cluster::new();
    let ran = cluster.n1.run(&["etcd", "recover", "--confirm"]);
    assert_eq!(ran.code, 4);
    assert!(ran.stderr.contains("no agent of this cluster answers"), "{}", ran.stderr);
}
