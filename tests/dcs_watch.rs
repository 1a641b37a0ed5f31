//! The watch on a real etcd: compaction, a wiped prefix, a restored snapshot, silence.

#![expect(clippy::expect_used, clippy::panic, reason = "this is test code")]

mod support;

use pgbaton::{
    agent::{event::Event, state::State},
    clock,
    dcs::{Etcd, Hedge, Listing, TxnOutcome, Update},
    decide::snapshot::{Fresh, Me},
    model::{
        key::{Key, Txn, Write},
        moment::{Clocks, Span},
        node::Address,
        node_file::NodeFile,
        policy::ClusterPolicy,
        record::Tags,
    },
};
use std::time::Duration;
use support::etcd::{Etcds, Options, now};
use tokio::sync::mpsc::{Receiver, channel};

const DEADLINE: Span = Span::from_secs(3);

async fn put(etcd: &Etcd, key: &Key, text: &str) -> u64 {
    let txn = Txn { nonce: clock::nonce(), when: Vec::new(), then: vec![Write::Put(key.clone(), text.to_owned())] };
    match etcd.txn(&txn, Hedge::Allowed, DEADLINE).await.expect("put").outcome {
        TxnOutcome::Applied { revision } => revision,
        TxnOutcome::Refused { .. } => panic!("an unconditional put was refused"),
    }
}

#[expect(clippy::disallowed_methods, reason = "tests have no task table")]
fn watch(etcd: &Etcd, room: usize) -> Receiver<Update> {
    let (sender, receiver) = channel(room);
    tokio::spawn(etcd.clone().watch(sender));
    receiver
}

/// Waits for an update that `wanted` accepts; returns it and how long it took.
async fn until(updates: &mut Receiver<Update>, wanted: impl Fn(&Update) -> bool) -> (Update, Duration) {
    let start = now();
    let mut seen = Vec::new();
    loop {
        let left = Duration::from_secs(10).saturating_sub(start.elapsed());
        match tokio::time::timeout(left, updates.recv()).await {
            Ok(Some(update)) if wanted(&update) => return (update, start.elapsed()),
            Ok(Some(update)) => seen.push(update),
            _ => panic!("it never came; seen: {:?}", seen.iter().rev().take(5).collect::<Vec<_>>()),
        }
    }
}

/// Whether the update shows `key` with `text`.
fn shows(update: &Update, key: &Key, text: Option<&str>) -> bool {
    match update {
        Update::Listed { listing, .. } => listing.entries.iter().find(|(other, ..)| other == key).map(|(_, text, _)| text.as_str()) == text,
        Update::Changed { changes, .. } => changes.iter().any(|(other, present, _)| other == key && present.as_deref() == text),
        Update::Silent { .. } => false,
    }
}

#[tokio::test]
async fn changes_arrive_in_order_and_without_journals() {
    let etcds = Etcds::secured(Options::default());
    let etcd = Etcd::connect(etcds.client_settings()).await.expect("connect");
    let mut updates = watch(&etcd, 64);
    until(&mut updates, |update| matches!(update, Update::Listed { .. })).await;
    let mut last = 0;
    for number in 0..200 {
        last = put(&etcd, &Key::Leader, &format!("v{number}")).await;
        if number % 50 == 0 {
            etcd.append_history(pgbaton::model::term::Term::new(number), "h".to_owned(), DEADLINE).await.expect("history");
        }
    }
    let (mut numbers, mut revisions) = (Vec::new(), Vec::new());
    while revisions.last() != Some(&last) {
        match updates.recv().await.expect("an update") {
            Update::Changed { changes, revision } => {
                revisions.push(revision);
                for (key, text, _) in changes {
                    assert_eq!(key, Key::Leader);
                    numbers.push(text.expect("text"));
                }
            }
            Update::Listed { listing, went_back } => {
                assert!(!went_back);
                revisions.push(listing.revision);
                numbers.extend(listing.entries.into_iter().map(|(_, text, _)| text));
            }
            Update::Silent { why, .. } => panic!("{why}"),
        }
    }
    assert!(revisions.is_sorted(), "{revisions:?}");
    assert_eq!(numbers.last().map(String::as_str), Some("v199"));
    let order: Vec<u32> = numbers.iter().map(|text| text[1..].parse().expect("number")).collect();
    assert!(order.is_sorted(), "{order:?}");
}

/// Scenario 36.
#[tokio::test]
async fn compaction_under_a_stopped_watcher_ends_in_a_new_list() {
    const EVENTS: usize = 500;
    let etcds = Etcds::secured(Options::default());
    let etcd = Etcd::connect(etcds.client_settings()).await.expect("connect");
    // Room for one update, and nobody drains: the watcher stands still until more waits than buffers hold.
    let mut updates = watch(&etcd, 1);
    until(&mut updates, |update| matches!(update, Update::Listed { .. })).await;
    let mut revision = 0;
    for number in 0..EVENTS {
        revision = put(&etcd, &Key::Leader, &format!("{number} {}", "x".repeat(30_000))).await;
    }
    etcds.must(&["compact", &revision.to_string()]);
    let mut changes = 0;
    let last = loop {
        match updates.recv().await.expect("an update") {
            Update::Changed { changes: more, .. } => changes += more.len(),
            update @ Update::Listed { .. } => break update,
            Update::Silent { why, .. } => panic!("{why}"),
        }
    };
    assert!(changes < EVENTS, "compaction took nothing away: the test tests nothing");
    assert!(matches!(&last, Update::Listed { listing, went_back: false } if listing.revision == revision), "the newest state");
    put(&etcd, &Key::Leader, "after").await;
    until(&mut updates, |update| shows(update, &Key::Leader, Some("after"))).await;
}

/// Scenario 40: what it looks like; what follows from it is decided elsewhere.
#[tokio::test]
async fn a_wiped_prefix_is_seen_as_deletions() {
    let etcds = Etcds::secured(Options::default());
    let etcd = Etcd::connect(etcds.client_settings()).await.expect("connect");
    put(&etcd, &Key::Leader, "l").await;
    put(&etcd, &Key::Sync, "s").await;
    let mut updates = watch(&etcd, 64);
    until(&mut updates, |update| shows(update, &Key::Leader, Some("l"))).await;
    etcds.must(&["del", "--prefix", "/pgbaton/"]);
    let (update, _) = until(&mut updates, |update| shows(update, &Key::Leader, None)).await;
    assert!(shows(&update, &Key::Sync, None), "{update:?}");
}

/// Why an agent that was shown these lists does not believe etcd.
fn suspicion(lists: [Listing; 2]) -> Option<String> {
    let me = Me {
        node: "n1".parse().expect("node"),
        agent: clock::incarnation(),
        postgres: Address { host: "n1".to_owned(), port: 5432 },
        api: None,
        zone: String::new(),
        tags: Tags::default(),
        version: String::new(),
        first_policy: ClusterPolicy::default(),
        adopted_durability: pgbaton::model::policy::Durability::Async,
        major: 15,
        boot: clock::incarnation(),
        boot_is_named: true,
        peer_key: false,
    };
    let at = |boot| Clocks { boot, mono: boot };
    let file = NodeFile::fresh("test".parse().expect("cluster"), me.node.clone(), clock::data_incarnation());
    let mut state = State::new(me, file, at(lists[0].sent_at));
    for Listing { entries, revision, sent_at, .. } in lists {
        state.apply(Event::Listed { entries, revision, sent: sent_at }, at(sent_at));
    }
    let fresh = Fresh { nonce: clock::nonce(), data: clock::data_incarnation(), uuid: clock::incarnation(), wall: String::new() };
    state.snapshot(clock::now(), fresh).etcd.suspect
}

/// Scenario 39, EXP-26.
#[tokio::test]
async fn a_restored_snapshot_is_seen_as_gone_back() {
    let mut etcds = Etcds::secured(Options { members: 3, timing: Some((50, 500)), ..Options::default() });
    let etcd = Etcd::connect(etcds.client_settings()).await.expect("connect");
    put(&etcd, &Key::Cluster, r#"{"v":1,"system_id":"7","uuid":"u1","generation":1,"initialised_by":"n1","initialised_at":""}"#).await;
    put(&etcd, &Key::Leader, "old").await;
    let snapshot = etcds.path().join("snapshot.db");
    // etcdctl takes a snapshot from one endpoint alone.
    etcds.must_at(0, &["snapshot", "save", &snapshot.display().to_string()]);
    for number in 0..20 {
        put(&etcd, &Key::Leader, &format!("new{number}")).await;
    }
    let mut updates = watch(&etcd, 64);
    let (before, _) = until(&mut updates, |update| shows(update, &Key::Leader, Some("new19"))).await;
    etcds.restore(&snapshot);
    let (after, _) = until(&mut updates, |update| matches!(update, Update::Listed { went_back: true, .. })).await;
    assert!(shows(&after, &Key::Leader, Some("old")), "{after:?}");
    let (Update::Listed { listing: before, .. }, Update::Listed { listing: after, .. }) = (before, after) else {
        panic!("both are lists");
    };
    // Neither the cluster's id nor its raft term tells.
    assert_eq!(before.cluster_id, after.cluster_id);
    let (was, is) = (before.revision, after.revision);
    let why = suspicion([before, after]).expect("an agent does not believe it");
    assert!(why.starts_with(&format!("its revision is {is}, and this node has seen {was}")), "{why}");
    // And the watch goes on from there.
    put(&etcd, &Key::Leader, "next").await;
    until(&mut updates, |update| shows(update, &Key::Leader, Some("next"))).await;
}

/// Scenarios 34, 47: a member that stands still keeps its connections open and says nothing.
#[tokio::test]
async fn a_watch_on_a_frozen_member_is_moved_to_another() {
    let etcds = Etcds::three();
    let frozen = (etcds.leader() + 1) % 3;
    let mut settings = etcds.settings();
    settings.endpoints.rotate_left(frozen);
    let etcd = Etcd::connect(settings.clone()).await.expect("connect");
    let mut updates = watch(&etcd, 64);
    put(&etcd, &Key::Leader, "before").await;
    until(&mut updates, |update| shows(update, &Key::Leader, Some("before"))).await;
    // Another client writes, by the members that are well.
    settings.endpoints.remove(0);
    let other = Etcd::connect(settings).await.expect("connect");
    etcds.freeze(frozen);
    put(&other, &Key::Leader, "while frozen").await;
    let (_, took) = until(&mut updates, |update| shows(update, &Key::Leader, Some("while frozen"))).await;
    println!("a change came {took:?} after the watched member had been frozen");
    assert!(took < Duration::from_secs(2), "{took:?}");
    // And by events again, not only by polls.
    tokio::time::timeout(Duration::from_secs(5), async {
        for number in 0.. {
            put(&other, &Key::Leader, &format!("n{number}")).await;
            let (update, _) = until(&mut updates, |update| shows(update, &Key::Leader, Some(&format!("n{number}")))).await;
            if matches!(update, Update::Changed { .. }) {
                break;
            }
        }
    })
    .await
    .expect("the watch goes on elsewhere");
    etcds.thaw(frozen);
}

#[tokio::test]
async fn silence_is_told_and_ends() {
    let mut etcds = Etcds::secured(Options::default());
    let etcd = Etcd::connect(etcds.client_settings()).await.expect("connect");
    let mut updates = watch(&etcd, 64);
    until(&mut updates, |update| matches!(update, Update::Listed { .. })).await;
    let died = clock::boot();
    etcds.kill(0);
    let (update, _) = until(&mut updates, |update| matches!(update, Update::Silent { .. })).await;
    let Update::Silent { since, why } = update else { panic!("silent") };
    assert!(since <= clock::boot() && died.since(since) < Span::from_secs(3), "{why}");
    etcds.run(0);
    let (_, took) = until(&mut updates, |update| matches!(update, Update::Listed { went_back: false, .. })).await;
    println!("listed again {took:?} after the start of etcd");
}

#[tokio::test]
async fn an_idle_watch_is_not_broken_by_its_own_questions() {
    let etcds = Etcds::one();
    let mut settings = etcds.settings();
    settings.poll = Span::from_millis(100);
    let etcd = Etcd::connect(settings).await.expect("connect");
    let mut updates = watch(&etcd, 256);
    until(&mut updates, |update| matches!(update, Update::Listed { .. })).await;
    let start = now();
    let mut lists = 0;
    while start.elapsed() < Duration::from_secs(2) {
        match updates.recv().await.expect("an update") {
            Update::Listed { .. } => lists += 1,
            other => panic!("{other:?}"),
        }
    }
    // P is 100 ms: about 20, and never a storm.
    assert!((10..=25).contains(&lists), "{lists} lists in 2 s");
}
