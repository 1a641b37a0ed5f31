//! The lease: our writes of `leader` with their sends, and for how long the present value has stood still.

use super::State;
use crate::{
    agent::event::TxnOutcome,
    decide::{
        decision::Task,
        snapshot::{Attempt, Me, Standing, is_held},
    },
    model::{
        key::{Compare, Key, Txn, Write},
        moment::{Clocks, Moment, Span},
        node::Nonce,
        node_file::NodeFile,
        record::{LeaderRecord, LeaderState, SyncRecord},
    },
};

/// So many writes of `leader` without an answer are kept, the newest: they outlast the longest hold, and an outage of etcd does
/// not fill the memory.
pub(super) const UNSETTLED_KEPT: usize = 256;

/// A transaction on its way.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) txn: Txn,
    /// What it would give us, of a write of `leader`.
    pub(super) attempt: Option<Attempt>,
}

impl State {
    pub(super) fn observe_leader(&mut self, now: Clocks) {
        let Some(leader) = &self.records.leader else {
            self.standing = None;
            return;
        };
        let same = |standing: &Standing| standing.nonce == leader.record.nonce && !now.slept_since(standing.suspended);
        if !self.standing.as_ref().is_some_and(same) {
            self.standing = Some(Standing { nonce: leader.record.nonce.clone(), since: now.mono, suspended: now.suspended() });
        }
    }

    pub(super) fn txn_sent(&mut self, nonce: &Nonce, at: Moment) {
        let Some(attempt) = self.pending.get(nonce).and_then(|pending| pending.attempt.clone()) else { return };
        self.lease.unsettled.push(Attempt { sent: at, ..attempt });
        if self.lease.unsettled.len() > UNSETTLED_KEPT {
            self.lease.unsettled.remove(0);
        }
    }

    /// Whether sending this leaves the time that we may act as it was: no write of `leader`, or one that gives no less.
    pub(super) fn keeps_its_time(&self, nonce: &Nonce) -> bool {
        let attempt = self.pending.get(nonce).and_then(|pending| pending.attempt.as_ref());
        let confirmed = self.lease.confirmed.as_ref();
        attempt.is_none_or(|attempt| {
            attempt.holds && confirmed.is_some_and(|confirmed| confirmed.term == attempt.term && confirmed.hold <= attempt.hold)
        })
    }

    pub(super) fn txn_done(&mut self, nonce: &Nonce, task: Task, outcome: TxnOutcome, now: Clocks) {
        let pending = self.pending.remove(nonce);
        let failed = match outcome {
            TxnOutcome::Applied { revision, .. } => {
                self.settle(nonce);
                if let Some(pending) = pending {
                    self.applied(&pending.txn, revision, now);
                }
                None
            }
            TxnOutcome::Refused { values, revision, sent } => {
                self.lease.unsettled.retain(|attempt| attempt.nonce != *nonce);
                self.refused(values, revision, sent, now);
                None
            }
            TxnOutcome::NotDone { why } => {
                self.lease.unsettled.retain(|attempt| attempt.nonce != *nonce);
                self.answered.lost(now.boot, why.clone());
                Some(why)
            }
            TxnOutcome::Unknown { why } => {
                if let Some((replaced, written)) = pending.as_ref().and_then(|pending| replaced_sync(&pending.txn)) {
                    let before = self.sync_unsettled.take().filter(|(text, _)| *text == replaced);
                    let mut all = before.map(|(_, all)| all).unwrap_or_default();
                    // However long etcd is silent, the same is written again and again.
                    all.retain(|other| SyncRecord { nonce: written.nonce.clone(), ..other.clone() } != written);
                    all.push(written);
                    self.sync_unsettled = Some((replaced, all));
                }
                self.answered.lost(now.boot, why.clone());
                Some(why)
            }
        };
        self.done(task, failed.map_or(Ok(()), Err), now.boot);
    }

    /// This write of ours is committed: earlier ones that are not settled can never be.
    pub(super) fn settle(&mut self, nonce: &Nonce) {
        let Some(index) = self.lease.unsettled.iter().position(|attempt| attempt.nonce == *nonce) else { return };
        let later = self.lease.unsettled.split_off(index + 1);
        self.lease.confirmed = self.lease.unsettled.pop();
        self.lease.unsettled = later;
    }

    /// Shows the applied writes of a transaction at once, as the watch will in a moment.
    fn applied(&mut self, txn: &Txn, revision: u64, now: Clocks) {
        let changes = txn.then.iter().map(|write| match write {
            Write::Put(key, text) => (key.clone(), Some(text.clone()), revision),
            Write::Delete(key) => (key.clone(), None, revision),
        });
        self.changed(changes.collect(), revision, now);
    }
}

impl State {
    /// Writes of `sync` of which nothing is known, while what they replace still stands.
    pub(super) fn unsettled_sync(&self) -> Option<&[SyncRecord]> {
        let (replaced, written) = self.sync_unsettled.as_ref()?;
        (self.records.text(&Key::Sync) == Some(replaced)).then_some(written.as_slice())
    }

    /// The same, and those on their way.
    pub(super) fn written_sync(&self) -> Vec<SyncRecord> {
        let pending = self.pending.values().filter_map(|pending| replaced_sync(&pending.txn)).map(|(_, written)| written);
        self.unsettled_sync().unwrap_or_default().iter().cloned().chain(pending).collect()
    }
}

/// The `sync` that a transaction replaces, and by what.
fn replaced_sync(txn: &Txn) -> Option<(String, SyncRecord)> {
    let written = txn.then.iter().find_map(|write| match write {
        Write::Put(Key::Sync, text) => serde_json::from_str(text).ok(),
        _ => None,
    })?;
    let replaced = txn.when.iter().find_map(|compare| match compare {
        Compare::Is(Key::Sync, text) => Some(text.clone()),
        _ => None,
    })?;
    Some((replaced, written))
}

/// The write of `leader` in a transaction, as an attempt without its send.
pub(super) fn leader_attempt(me: &Me, file: &NodeFile, txn: &Txn) -> Option<Attempt> {
    let text = txn.then.iter().find_map(|write| match write {
        Write::Put(Key::Leader, text) => Some(text),
        _ => None,
    })?;
    let record: LeaderRecord = serde_json::from_str(text).ok()?;
    let ours = record.holder.node == me.node && record.holder.data == file.data;
    let handed = matches!(record.state, LeaderState::Handoff { .. });
    Some(Attempt {
        nonce: txn.nonce.clone(),
        term: record.term,
        sent: Moment::ZERO,
        hold: if ours { record.hold } else { Span::ZERO },
        holds: ours && is_held(&record) && !handed,
    })
}
