//! Lost answers, dead and frozen members, no quorum, no space: what may be believed, and how long it takes.

#![expect(clippy::expect_used, reason = "this is test code")]

mod support;

use pgbaton::{
    clock,
    dcs::{Error, Etcd, Hedge, Listing, Outcome, TxnOutcome, TxnReply},
    model::{
        key::{Compare, Key, Txn, Write},
        moment::Span,
    },
};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use support::{
    etcd::{Etcds, Options, now},
    relay::{Answers, Relay},
};

const DEADLINE: Span = Span::from_secs(3);

/// A compare-and-swap of the lease with a text that no other has.
fn swap(from: Option<&str>) -> (Txn, String) {
    let nonce = clock::nonce();
    let text = format!("{{\"nonce\":\"{nonce}\"}}");
    let when = from.map_or(Compare::Missing(Key::Leader), |from| Compare::Is(Key::Leader, from.to_owned()));
    (Txn { nonce, when: vec![when], then: vec![Write::Put(Key::Leader, text.clone())] }, text)
}

fn leader_in(reply: &TxnReply) -> Option<String> {
    match &reply.outcome {
        TxnOutcome::Refused { values, .. } => values.iter().find(|(key, ..)| *key == Key::Leader).and_then(|(_, text, _)| text.clone()),
        TxnOutcome::Applied { .. } => None,
    }
}

/// What one writer believes of its swaps.
#[derive(Default)]
struct Beliefs {
    applied: Vec<String>,
    not_done: Vec<String>,
    unknown: usize,
    longest_gap: Duration,
}

/// Swaps `leader` again and again, from whatever it believes to stand there, until it succeeded ten times after the fault.
async fn swap_on(etcd: &Etcd, fault: &AtomicBool, pause: Duration) -> Beliefs {
    let mut beliefs = Beliefs::default();
    let (deadline, mut last) = (now() + Duration::from_secs(60), now());
    let mut present: Option<String> = None;
    let mut after = 0;
    while after < 10 {
        assert!(now() < deadline, "no write passes after the fault: {} before, {} unknown", beliefs.applied.len(), beliefs.unknown);
        let late = fault.load(Ordering::Acquire);
        let (txn, text) = swap(present.as_deref());
        match etcd.txn(&txn, Hedge::Allowed, Span::from_secs(1)).await {
            Ok(reply) => match &reply.outcome {
                TxnOutcome::Applied { .. } => {
                    beliefs.longest_gap = beliefs.longest_gap.max(last.elapsed());
                    last = now();
                    after += u32::from(late);
                    beliefs.applied.push(text.clone());
                    present = Some(text);
                }
                TxnOutcome::Refused { unsettled, .. } => {
                    if !unsettled {
                        beliefs.not_done.push(text);
                    }
                    present = leader_in(&reply);
                }
            },
            Err(error) if error.outcome() == Outcome::NotDone => beliefs.not_done.push(text),
            Err(_) => beliefs.unknown += 1,
        }
        tokio::time::sleep(pause).await;
    }
    beliefs
}

/// Scenarios 30 to 32: a register checker over an etcd leader's death, with two contending writers, TLS and users.
#[tokio::test]
async fn the_death_of_etcds_leader_makes_nobody_believe_a_wrong_thing() {
    let mut etcds = Etcds::secured(Options { members: 3, ..Options::default() });
    let settings = etcds.client_settings();
    let (one, two) = (Etcd::connect(settings.clone()).await.expect("connect"), Etcd::connect(settings).await.expect("connect"));
    let happened = AtomicBool::new(false);
    let fault = async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        let leader = etcds.leader();
        etcds.kill(leader);
        happened.store(true, Ordering::Release);
    };
    let (one, two, ()) =
        tokio::join!(swap_on(&one, &happened, Duration::from_millis(20)), swap_on(&two, &happened, Duration::from_millis(150)), fault);
    let history: BTreeSet<String> = etcds.values_of("/pgbaton/c1/leader").into_iter().collect();
    println!("longest gap between renewals: {:?}", one.longest_gap);
    for beliefs in [&one, &two] {
        println!("applied {}, not done {}, unknown {}", beliefs.applied.len(), beliefs.not_done.len(), beliefs.unknown);
        assert!(beliefs.applied.iter().all(|text| history.contains(text)), "believed applied, and is not there");
        assert!(!beliefs.not_done.iter().any(|text| history.contains(text)), "believed not done, and is there");
    }
    assert!(one.longest_gap > Duration::from_millis(200), "the fault did not bite");
}

async fn connect(etcds: &Etcds) -> Etcd {
    Etcd::connect(etcds.client_settings()).await.expect("connect")
}

#[tokio::test]
async fn without_a_quorum_nothing_is_known_and_the_deadline_holds() {
    let mut etcds = Etcds::secured(Options { members: 3, timing: Some((50, 500)), ..Options::default() });
    let etcd = connect(&etcds).await;
    let (first, text) = swap(None);
    etcd.txn(&first, Hedge::Allowed, DEADLINE).await.expect("a quorum is there");
    etcds.kill(1);
    etcds.kill(2);
    for hedge in [Hedge::Allowed, Hedge::Never] {
        let start = now();
        let error = etcd.txn(&swap(Some(&text)).0, hedge, Span::from_secs(1)).await.expect_err("no quorum");
        assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
        assert!(start.elapsed() < Duration::from_secs(4), "a call of one second takes {:?}", start.elapsed());
    }
    assert!(matches!(etcd.list(Span::from_millis(500)).await, Err(Error::NoAnswer(_))), "a stale read is no answer");
    etcds.run(1);
    let deadline = now() + Duration::from_secs(10);
    while etcd.list(Span::from_secs(1)).await.is_err() {
        assert!(now() < deadline, "it does not recover");
    }
}

#[tokio::test]
async fn when_nobody_listens_nothing_was_done() {
    let mut etcds = Etcds::one();
    let etcd = connect(&etcds).await;
    etcd.list(DEADLINE).await.expect("list");
    etcds.kill(0);
    let error = etcd.txn(&swap(None).0, Hedge::Allowed, Span::from_millis(600)).await.expect_err("dead");
    // The first attempt may have met a connection that only then turned out to be closed.
    let again = etcd.txn(&swap(None).0, Hedge::Allowed, Span::from_millis(600)).await.expect_err("dead");
    assert!(matches!(again, Error::Unreachable(_)), "{error}, then {again}");
    assert_eq!(again.outcome(), Outcome::NotDone);
}

/// Scenarios 45, 47: a dead endpoint and one that accepts and says nothing stand first in the list.
#[tokio::test]
async fn dead_and_silent_endpoints_do_not_hold_up_a_write() {
    let etcds = Etcds::one();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let mut settings = etcds.settings();
    settings.endpoints.insert(0, format!("http://{}", silent.local_addr().expect("address")));
    settings.endpoints.insert(0, "http://127.0.0.1:1".to_owned());
    let etcd = Etcd::connect(settings).await.expect("connect");
    let start = now();
    let (txn, text) = swap(None);
    let reply = etcd.txn(&txn, Hedge::Never, DEADLINE).await.expect("reply");
    println!("the first write took {:?}, unhedged", start.elapsed());
    assert!(matches!(reply.outcome, TxnOutcome::Applied { .. }), "{reply:?}");
    // The endpoint that answered is asked first. Of three writes the fastest counts: the machine may be busy.
    let (mut costs, mut before) = (Vec::new(), text);
    for _ in 0..3 {
        let start = now();
        let (txn, next) = swap(Some(&before));
        etcd.txn(&txn, Hedge::Allowed, DEADLINE).await.expect("reply");
        costs.push(start.elapsed());
        before = next;
    }
    assert!(costs.iter().any(|cost| *cost < Duration::from_millis(100)), "{costs:?}");
    let status = etcd.status(Span::from_millis(300)).await;
    let well: Vec<bool> = status.iter().map(|endpoint| endpoint.state.is_ok()).collect();
    assert_eq!(well, [false, false, true], "{status:?}");
    let member = status[2].state.clone().expect("well");
    assert!(member.version.starts_with("3.") && member.members == 1 && member.leader == member.member && !member.no_space, "{member:?}");
}

/// Of three freezes the one that cost least counts: a machine that is busy for a moment says nothing of the client.
#[tokio::test]
async fn a_frozen_member_costs_a_renewal_less_than_300_ms() {
    let etcds = Etcds::three();
    let frozen = (etcds.leader() + 1) % 3;
    let (mut costs, mut before) = (Vec::new(), None);
    for _ in 0..3 {
        let mut settings = etcds.settings();
        settings.endpoints.rotate_left(frozen);
        let etcd = Etcd::connect(settings).await.expect("connect");
        let mut slowest = Duration::ZERO;
        for round in 0..20 {
            if round == 5 {
                etcds.freeze(frozen);
            }
            let start = now();
            let (txn, next) = swap(before.as_deref());
            let reply = etcd.txn(&txn, Hedge::Allowed, DEADLINE).await.expect("reply");
            assert!(matches!(reply.outcome, TxnOutcome::Applied { .. }), "{reply:?}");
            before = Some(next);
            slowest = slowest.max(if round < 5 { Duration::ZERO } else { start.elapsed() });
        }
        etcds.thaw(frozen);
        costs.push(slowest);
    }
    println!("slowest renewals: {costs:?}");
    let least = costs.iter().min().expect("three");
    assert!(*least > Duration::from_millis(100) && *least < Duration::from_millis(300), "{costs:?}");
}

/// Scenario 32: the first attempt is applied and its answer lost; the second sees its own nonce.
#[tokio::test]
async fn a_lost_answer_is_settled_by_the_nonce_and_counts_from_the_first_send() {
    let etcds = Etcds::one();
    let relay = Relay::to(etcds.port(0)).await;
    let mut settings = etcds.settings();
    settings.endpoints.insert(0, relay.url());
    let etcd = Etcd::connect(settings).await.expect("connect");
    let (txn, text) = swap(None);
    etcd.txn(&txn, Hedge::Allowed, DEADLINE).await.expect("reply");
    relay.set(Answers::Held);
    let before = clock::boot();
    let (txn, text) = swap(Some(&text));
    let reply = etcd.txn(&txn, Hedge::Allowed, DEADLINE).await.expect("reply");
    assert!(matches!(reply.outcome, TxnOutcome::Applied { .. }), "{reply:?}");
    // The second attempt is sent 100 ms after the first, and it is the one that is answered.
    let counted = clock::boot().since(reply.sent_at);
    assert!(reply.sent_at >= before && counted >= Span::from_millis(100), "counted from {counted} before the answer");
    let present = etcd.list(DEADLINE).await.expect("list").entries;
    assert!(matches!(present.as_slice(), [(Key::Leader, present, _)] if *present == text), "{present:?}");
}

#[tokio::test]
async fn a_lost_answer_that_cannot_be_settled_is_said_to_be_unsettled() {
    let etcds = Etcds::one();
    let relay = Relay::to(etcds.port(0)).await;
    let mut settings = etcds.settings();
    settings.endpoints.insert(0, relay.url());
    let etcd = Etcd::connect(settings.clone()).await.expect("connect");
    let (txn, text) = swap(None);
    etcd.txn(&txn, Hedge::Allowed, DEADLINE).await.expect("reply");
    relay.set(Answers::Held);
    let delete = Txn { nonce: clock::nonce(), when: vec![Compare::Is(Key::Leader, text)], then: vec![Write::Delete(Key::Leader)] };
    let reply = etcd.txn(&delete, Hedge::Allowed, DEADLINE).await.expect("reply");
    assert!(matches!(reply.outcome, TxnOutcome::Refused { unsettled: true, .. }), "{reply:?}");
    // And what may be sent only once is sent only once.
    settings.endpoints.truncate(1);
    let etcd = Etcd::connect(settings).await.expect("connect");
    relay.set(Answers::Passed);
    etcd.list(DEADLINE).await.expect("list");
    relay.set(Answers::Held);
    let start = clock::boot();
    let (once, text) = swap(None);
    let error = etcd.txn(&once, Hedge::Never, DEADLINE).await.expect_err("no answer");
    assert_eq!(error.outcome(), Outcome::Unknown, "{error}");
    assert!(clock::boot().since(start) < Span::from_millis(600), "it waited for more than one attempt");
    assert_eq!(etcds.values_of("/pgbaton/c1/leader").last(), Some(&text), "it was done all the same");
}

/// A member stands still between the request and its answer, longer than an attempt.
#[tokio::test]
async fn a_frozen_etcd_leaves_a_swap_unknown_and_later_settled() {
    let etcds = Etcds::one();
    let etcd = connect(&etcds).await;
    let (txn, text) = swap(None);
    etcd.txn(&txn, Hedge::Allowed, DEADLINE).await.expect("reply");
    etcds.freeze(0);
    let (txn, next) = swap(Some(&text));
    let thaw = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        etcds.thaw(0);
    };
    let (reply, ()) = tokio::join!(etcd.txn(&txn, Hedge::Allowed, DEADLINE), thaw);
    let reply = reply.expect("etcd goes on");
    assert!(matches!(reply.outcome, TxnOutcome::Applied { .. }), "{reply:?}");
    assert!(clock::boot().since(reply.sent_at) >= Span::from_millis(800), "the first attempt may be the one that counts");
    let swapped: Vec<String> = etcds.values_of("/pgbaton/c1/leader");
    assert_eq!(swapped, [text, next], "applied once");
}

#[tokio::test]
async fn a_full_database_is_an_error_of_its_own_and_the_write_may_be_done_all_the_same() {
    let etcds = Etcds::secured(Options { members: 1, quota: Some(1 << 20), ..Options::default() });
    let etcd = connect(&etcds).await;
    let mut written = 0;
    let error = loop {
        let text = format!("{written} {}", "x".repeat(200_000));
        let txn = Txn { nonce: clock::nonce(), when: Vec::new(), then: vec![Write::Put(Key::Policy, text)] };
        match etcd.txn(&txn, Hedge::Allowed, DEADLINE).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        // The size is that of the last commit to disk, every 100 ms or so: some more pass.
        assert!(written < 2_000, "the quota does not bite");
    };
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
    // The write that finds the space gone when etcd applies it raises the alarm, is answered with the error, and is there.
    assert_eq!(error.outcome(), Outcome::Unknown);
    let listing = etcd.list(DEADLINE).await.expect("reads go on");
    let number = |listing: &Listing| listing.entries[0].1.split_once(' ').and_then(|(number, _)| number.parse::<i32>().ok());
    let present = number(&listing).expect("a number");
    println!("{written} was refused, {present} is there");
    assert!([written - 1, written].contains(&present), "{present} is there, {written} was refused");
    // Under the alarm nothing is applied any more.
    let later = Txn { nonce: clock::nonce(), when: Vec::new(), then: vec![Write::Put(Key::Policy, "-1 later".to_owned())] };
    let error = etcd.txn(&later, Hedge::Allowed, DEADLINE).await.expect_err("no space");
    assert!(matches!(error, Error::NoSpace(_)), "{error}");
    assert_eq!(number(&etcd.list(DEADLINE).await.expect("list")), Some(present));
    let status = etcd.status(Span::from_millis(500)).await;
    assert!(status[0].state.as_ref().is_ok_and(|member| member.no_space), "{status:?}");
}
