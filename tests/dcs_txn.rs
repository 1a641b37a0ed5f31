//! Transactions on a real etcd: answers, refusals, lost answers, and who may be believed.

mod support;

use pgbaton::{
    clock,
    dcs::{Error, Etcd, Hedge, Memory, Outcome, TxnOutcome},
    model::{
        key::{Compare, Key, Txn, Write},
        moment::Span,
    },
};
use support::etcd::Etcds;

const DEADLINE: Span = Span::from_secs(3);

fn txn(when: &[Compare], then: &[Write]) -> Txn {
    Txn { nonce: clock::nonce(), when: when.to_vec(), then: then.to_vec() }
}

fn is(key: &Key, text: &str) -> Compare {
    Compare::Is(key.clone(), text.to_owned())
}

fn put(key: &Key, text: &str) -> Write {
    Write::Put(key.clone(), text.to_owned())
}

/// The store in memory is what other tests stand on: it must answer as etcd does.
#[tokio::test]
async fn etcd_and_the_store_in_memory_answer_alike() {
    let etcds = Etcds::one();
    let etcd = Etcd::connect(etcds.settings()).await.expect("connect");
    let memory = Memory::default();
    let node: Key = "nodes/n1".parse().expect("key");
    let steps = [
        txn(&[Compare::Missing(Key::Leader)], &[put(&Key::Leader, "a"), put(&Key::Term, "1")]),
        txn(&[Compare::Missing(Key::Leader)], &[put(&Key::Leader, "b")]),
        txn(&[is(&Key::Leader, "a"), is(&Key::Sync, "")], &[put(&Key::Leader, "b")]),
        txn(&[is(&Key::Leader, "a"), Compare::Missing(Key::Sync)], &[put(&Key::Leader, "b"), put(&Key::Sync, "s")]),
        txn(&[is(&Key::Leader, "a")], &[put(&Key::Leader, "c"), put(&node, "n")]),
        txn(&[is(&Key::Sync, "s")], &[Write::Delete(Key::Sync)]),
        txn(&[is(&Key::Sync, "s")], &[Write::Delete(Key::Sync)]),
        txn(&[], &[put(&node, "n")]),
    ];
    for (number, step) in steps.iter().enumerate() {
        let real = etcd.txn(step, Hedge::Never, DEADLINE).await.expect("etcd answers").outcome;
        let model = memory.txn(step, Hedge::Never, DEADLINE).await.expect("memory answers").outcome;
        // A fresh etcd begins at revision 1.
        assert_eq!(lowered(real), model, "step {number}");
    }
    let mut real: Vec<_> = etcd.list(DEADLINE).await.expect("list").entries;
    real.iter_mut().for_each(|(_, _, revision)| *revision -= 1);
    real.sort();
    let mut model = memory.list(DEADLINE).await.expect("list").entries;
    model.sort();
    assert_eq!(real, model);
}

fn lowered(outcome: TxnOutcome) -> TxnOutcome {
    match outcome {
        TxnOutcome::Applied { revision } => TxnOutcome::Applied { revision: revision - 1 },
        TxnOutcome::Refused { mut values, revision, unsettled } => {
            values.iter_mut().for_each(|(_, _, revision)| *revision = revision.saturating_sub(1));
            TxnOutcome::Refused { values, revision: revision - 1, unsettled }
        }
    }
}

#[tokio::test]
async fn a_request_that_etcd_refuses_is_not_done() {
    let etcds = Etcds::one();
    let etcd = Etcd::connect(etcds.settings()).await.expect("connect");
    // Larger than etcd takes, and larger than its gRPC layer takes.
    for size in [1_700_000, 4_000_000] {
        let refused = etcd.txn(&txn(&[], &[put(&Key::Policy, &"x".repeat(size))]), Hedge::Allowed, DEADLINE).await;
        let error = refused.expect_err("too large");
        assert!(matches!(error, Error::Rejected(_)), "{error}");
        assert_eq!(error.outcome(), Outcome::NotDone);
    }
    assert_eq!(etcd.list(DEADLINE).await.expect("list").entries, Vec::new());
}

/// A name with several addresses of which the first refuses: `localhost` is `::1` first, and etcd listens on 127.0.0.1.
#[tokio::test]
async fn a_name_is_tried_address_by_address() {
    let etcds = Etcds::one();
    let mut settings = etcds.settings();
    settings.endpoints = vec![format!("http://localhost:{}", etcds.port(0))];
    let etcd = Etcd::connect(settings).await.expect("connect");
    etcd.txn(&txn(&[], &[put(&Key::Leader, "a")]), Hedge::Never, DEADLINE).await.expect("reply");
}

/// A measurement, and a guard against a regression by an order of magnitude.
#[tokio::test]
async fn a_renewal_on_a_healthy_etcd_takes_milliseconds() {
    let etcds = Etcds::three();
    let etcd = Etcd::connect(etcds.settings()).await.expect("connect");
    etcd.txn(&txn(&[], &[put(&Key::Leader, "0")]), Hedge::Allowed, DEADLINE).await.expect("reply");
    let mut times = Vec::new();
    for number in 0..100 {
        let start = clock::boot();
        let swap = txn(&[is(&Key::Leader, &number.to_string())], &[put(&Key::Leader, &(number + 1).to_string())]);
        let reply = etcd.txn(&swap, Hedge::Allowed, DEADLINE).await.expect("reply");
        assert!(matches!(reply.outcome, TxnOutcome::Applied { .. }), "{reply:?}");
        times.push(clock::boot().since(start));
    }
    times.sort();
    println!("renewal: median {}, slowest {}", times[50], times[99]);
    assert!(times[50] < Span::from_millis(100), "{}", times[50]);
}
