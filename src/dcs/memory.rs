//! An in-memory store with the same behaviour as [`super::Etcd`], for tests: revisions, refusals with present values, a watch.
//!
//! It can be made unreachable, wiped, and restored from an earlier snapshot.

use super::{Error, Hedge, Listing, Present, TxnOutcome, TxnReply, Update, etcd::touched, view::Order};
use crate::{
    clock,
    model::{
        key::{Compare, Key, Txn, Write},
        moment::Span,
        node::{NodeName, Nonce},
        term::Term,
    },
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{mpsc::Sender, watch};

/// The contents at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// etcd's revision.
    pub revision: u64,
    /// What stands there, and the revision that wrote it.
    pub entries: BTreeMap<Key, (String, u64)>,
}

impl Contents {
    /// What a transaction comes to, with the changes that it makes.
    pub fn apply(&mut self, txn: &Txn) -> (TxnOutcome, Vec<Present>) {
        let holds = |compare: &Compare| match compare {
            Compare::Is(key, text) => self.entries.get(key).is_some_and(|(present, _)| present == text),
            Compare::Missing(key) => !self.entries.contains_key(key),
        };
        if !txn.when.iter().all(holds) {
            let values = touched(txn).into_iter().map(|key| self.present(key)).collect();
            return (TxnOutcome::Refused { values, revision: self.revision, unsettled: false }, Vec::new());
        }
        let next = self.revision + 1;
        let mut changes = Vec::new();
        for write in &txn.then {
            match write {
                Write::Put(key, text) => {
                    self.entries.insert(key.clone(), (text.clone(), next));
                    changes.push((key.clone(), Some(text.clone()), next));
                }
                Write::Delete(key) => {
                    if self.entries.remove(key).is_some() {
                        changes.push((key.clone(), None, next));
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision = next;
        }
        (TxnOutcome::Applied { revision: self.revision }, changes)
    }

    fn present(&self, key: &Key) -> Present {
        match self.entries.get(key) {
            Some((text, revision)) => (key.clone(), Some(text.clone()), *revision),
            None => (key.clone(), None, 0),
        }
    }
}

#[derive(Default)]
struct State {
    contents: Contents,
    log: Vec<Present>,
    unreachable: bool,
}

/// The store. All clones share the same contents.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    bell: Arc<watch::Sender<u64>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { state: Arc::default(), bell: Arc::new(watch::Sender::new(0)) }
    }
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        self.bell.send_modify(|count| *count += 1);
    }

    /// What stands there now.
    pub fn contents(&self) -> Contents {
        self.state().contents.clone()
    }

    /// From now on nobody reaches it, or everybody does again.
    pub fn set_reach(&self, reach: Reach) {
        self.state().unreachable = reach == Reach::Nobody;
        self.ring();
    }

    /// Goes back (or on) to other contents, as a restored snapshot does.
    pub fn restore(&self, contents: Contents) {
        let mut state = self.state();
        state.contents = contents;
        state.log.clear();
        drop(state);
        self.ring();
    }

    /// As [`super::Etcd::txn`].
    ///
    /// # Errors
    /// [`Error::Unreachable`] while it is.
    pub async fn txn(&self, txn: &Txn, _hedge: Hedge, _deadline: Span) -> Result<TxnReply, Error> {
        let sent_at = clock::boot();
        let mut state = self.state();
        if state.unreachable {
            return Err(Error::Unreachable("the store in memory is switched off".to_owned()));
        }
        let (outcome, changes) = state.contents.apply(txn);
        state.log.extend(changes);
        drop(state);
        self.ring();
        Ok(TxnReply { outcome, sent_at })
    }

    /// As [`super::Etcd::list`].
    ///
    /// # Errors
    /// [`Error::Unreachable`] while it is.
    pub async fn list(&self, _deadline: Span) -> Result<Listing, Error> {
        let sent_at = clock::boot();
        let state = self.state();
        if state.unreachable {
            return Err(Error::Unreachable("the store in memory is switched off".to_owned()));
        }
        let records = state.contents.entries.iter().filter(|(key, _)| !matches!(key, Key::History(_) | Key::Audit(_)));
        let entries = records.map(|(key, (text, revision))| (key.clone(), text.clone(), *revision)).collect();
        Ok(Listing { entries, unknown: 0, revision: state.contents.revision, sent_at, cluster_id: 1, raft_term: 1 })
    }

    /// As [`super::Etcd::watch`]: a list at first and after each restore, then changes.
    pub async fn watch(self, updates: Sender<Update>) {
        let mut bell = self.bell.subscribe();
        let mut order = Order::default();
        let mut heard = clock::boot();
        let mut behind = true;
        loop {
            let update = match self.list(Span::ZERO).await {
                Err(error) => {
                    behind = true;
                    Some(Update::Silent { since: heard, why: error.to_string() })
                }
                Ok(listing) => {
                    heard = clock::boot();
                    if behind || listing.revision < order.seen() {
                        behind = false;
                        order.listed(listing, heard)
                    } else {
                        let changes: Vec<Present> = self.state().log.iter().filter(|(_, _, at)| *at > order.seen()).cloned().collect();
                        let records = changes.into_iter().filter(|(key, _, _)| !matches!(key, Key::History(_) | Key::Audit(_)));
                        order.changed(records.collect(), listing.revision, heard)
                    }
                }
            };
            if let Some(update) = update
                && updates.send(update).await.is_err()
            {
                return;
            }
            tokio::select! {
                biased;
                () = updates.closed() => return,
                rung = bell.changed() => if rung.is_err() { return },
            }
        }
    }

    /// As [`super::Etcd::put_member`], without a lease.
    ///
    /// # Errors
    /// [`Error::Unreachable`] while it is.
    pub async fn put_member(&self, node: &NodeName, text: String, deadline: Span) -> Result<u64, Error> {
        self.put(Key::Member(node.clone()), text, deadline).await
    }

    /// As [`super::Etcd::append_history`].
    ///
    /// # Errors
    /// [`Error::Unreachable`] while it is.
    pub async fn append_history(&self, term: Term, text: String, deadline: Span) -> Result<(), Error> {
        self.put(Key::History(term), text, deadline).await.map(drop)
    }

    /// As [`super::Etcd::append_audit`].
    ///
    /// # Errors
    /// [`Error::Unreachable`] while it is.
    pub async fn append_audit(&self, id: Nonce, text: String, deadline: Span) -> Result<(), Error> {
        self.put(Key::Audit(id), text, deadline).await.map(drop)
    }

    async fn put(&self, key: Key, text: String, deadline: Span) -> Result<u64, Error> {
        let txn = Txn { nonce: clock::nonce(), when: Vec::new(), then: vec![Write::Put(key, text)] };
        match self.txn(&txn, Hedge::Allowed, deadline).await?.outcome {
            TxnOutcome::Applied { revision } | TxnOutcome::Refused { revision, .. } => Ok(revision),
        }
    }
}

/// Whether the store in memory answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It answers.
    Everybody,
    /// It does not.
    Nobody,
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::channel;

    fn swap(from: Option<&str>, to: &str) -> Txn {
        let when = match from {
            Some(text) => Compare::Is(Key::Leader, text.to_owned()),
            None => Compare::Missing(Key::Leader),
        };
        Txn { nonce: clock::nonce(), when: vec![when], then: vec![Write::Put(Key::Leader, to.to_owned())] }
    }

    #[tokio::test]
    async fn a_refusal_carries_the_present_values() {
        let memory = Memory::default();
        let deadline = Span::from_secs(1);
        let made = memory.txn(&swap(None, "a"), Hedge::Never, deadline).await.expect("reply");
        assert_eq!(made.outcome, TxnOutcome::Applied { revision: 1 });
        let refused = memory.txn(&swap(None, "b"), Hedge::Never, deadline).await.expect("reply").outcome;
        let values = vec![(Key::Leader, Some("a".to_owned()), 1)];
        assert_eq!(refused, TxnOutcome::Refused { values, revision: 1, unsettled: false });
    }

    #[tokio::test]
    async fn a_watcher_sees_changes_and_a_restore() {
        let memory = Memory::default();
        let deadline = Span::from_secs(1);
        memory.txn(&swap(None, "a"), Hedge::Never, deadline).await.expect("reply");
        let early = memory.contents();
        let (sender, mut updates) = channel(16);
        let watching = memory.clone().watch(sender);
        let script = async {
            assert!(matches!(updates.recv().await, Some(Update::Listed { went_back: false, .. })));
            memory.txn(&swap(Some("a"), "b"), Hedge::Never, deadline).await.expect("reply");
            let changes = vec![(Key::Leader, Some("b".to_owned()), 2)];
            assert_eq!(updates.recv().await, Some(Update::Changed { changes, revision: 2 }));
            memory.restore(early);
            assert!(matches!(updates.recv().await, Some(Update::Listed { went_back: true, .. })));
            memory.set_reach(Reach::Nobody);
            assert!(matches!(updates.recv().await, Some(Update::Silent { .. })));
            drop(updates);
        };
        tokio::join!(watching, script);
    }
}
