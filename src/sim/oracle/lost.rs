//! What was acknowledged and is lost (O2), and the bound that is published of it (O3).

use super::Ack;
use crate::{
    model::{key::Key, record::HistoryRecord, term::Term},
    sim::world::World,
};

impl World {
    /// A server came up in place, as primary again: what its log does not have up to `end` is gone.
    pub(in crate::sim) fn judge_restart(&mut self, node: usize, branch: usize, end: u64) {
        let term = self.nodes[node].guard.as_ref().map_or(Term::ZERO, |guard| guard.term);
        if !self.is_overtaken(node, term) {
            self.mark_lost(branch, end, term, self.oracle.accepted_at);
        }
    }

    /// What was under way when its machine was frozen, and ends when others have long followed, leads nowhere.
    pub(super) fn is_overtaken(&self, node: usize, term: Term) -> bool {
        self.nodes[node].is_excused(self.now) && self.oracle.newest.keys().next_back().is_some_and(|newest| *newest > term)
    }

    /// Which acknowledged commits the log of a new primary does not have. `accepted`: when an operator accepted the loss of what was
    /// acknowledged before.
    pub(super) fn mark_lost(&mut self, branch: usize, end: u64, term: Term, accepted: Option<u64>) {
        let mut promised = Vec::new();
        for ack in &mut self.oracle.acks {
            if ack.lost_in.is_none() && !self.wal.holds(branch, end, ack.row) {
                ack.lost_in = Some(term);
                let counts = ack.lossless && accepted.is_none_or(|accepted| ack.at > accepted);
                promised.extend(counts.then_some((ack.row, ack.at)));
            }
        }
        if let Some((row, at)) = promised.first() {
            let text = format!(
                "{} commits, the first at {} on branch {} acknowledged at {:.3}s, are not with the primary of term {term}",
                promised.len(),
                crate::model::lsn::Lsn::new(row.1),
                row.0,
                *at as f64 / 1e9
            );
            self.violation("O2", text);
        }
    }

    /// The published bound must cover what was lost (oracle O3).
    pub(in crate::sim) fn judge_history(&mut self, record: &HistoryRecord) {
        // Records that an operator had made anew know nothing of how long the last primary went on.
        if record.why.contains("etcd was recovered") || self.may_mislead() {
            return;
        }
        let lost = self.oracle.acks.iter().filter(|ack| ack.lost_in == Some(record.term) && !ack.lossless);
        let (Some(_), lost) = (record.switch, lost) else { return };
        // An operator's choice, of a node whose word the last primary did not need: the record says that nothing bounds the loss.
        if record.loss_bound.is_none() && record.by.is_some() && self.policy.failsafe {
            return;
        }
        let lost: Vec<Ack> = lost.cloned().collect();
        let former = record.former_lsn.map_or(0, |lsn| lsn.get());
        let last_write = self.oracle.newest.range(..record.term).next_back().map_or(0, |(_, written)| written.at);
        // What peers were told of while etcd was silent counts as well: the new primary was bound by the last such word.
        let last_write = last_write.max(self.oracle.words.get(&record.primary).map_or(0, |word| word.at));
        let bound = self.policy.timers().kill_bound.as_nanos();
        let made = self.oracle.made.iter().find(|(_, term)| **term == record.term).map(|(branch, _)| *branch);
        let parent = made.and_then(|made| self.wal.branches[made].parent).map(|(parent, _)| parent);
        let mut found = Vec::new();
        for ack in lost {
            let at = ack.row.1;
            // On a timeline that never came to serve: the record says so.
            let tli = self.wal.branches[self.wal.branch_at(ack.row.0, at)].tli;
            if record.given_up.iter().any(|given| given.tli == tli) {
                continue;
            }
            let text = crate::model::lsn::Lsn::new(at);
            // On another branch than the new one's parent no position says anything: only the time does. By an operator's choice a node
            // of an older timeline may lead, and lacks all of the newer ones.
            let grew = record.by.is_some() && parent.is_some_and(|parent| self.wal.shared(ack.row.0, parent).is_some());
            let beyond = at > former || (Some(ack.row.0) != parent && !grew);
            if beyond && record.unseen_ms == 0 {
                found.push(format!(
                    "a commit at {text} is lost, and term {} says that nothing beyond {former:?} can be",
                    record.term,
                    former = record.former_lsn
                ));
            }
            let unseen = record.unseen_ms * 1_000_000 + bound;
            if beyond && ack.at > last_write + unseen {
                found.push(format!(
                    "a commit at {text} is lost {:.3}s after the last renewal; term {} allows {}ms",
                    (ack.at - last_write) as f64 / 1e9,
                    record.term,
                    record.unseen_ms
                ));
            }
        }
        if let Some(first) = found.into_iter().next() {
            self.violation("O3", first);
        }
    }

    /// At the end: what was lost for good.
    pub(in crate::sim) fn count_lost(&mut self) {
        self.coverage.acks = self.oracle.acks.len() as u64;
        self.coverage.lossless = self.oracle.acks.iter().filter(|ack| ack.lossless).count() as u64;
        self.coverage.lost = self.oracle.acks.iter().filter(|ack| ack.lost_in.is_some()).count() as u64;
        let burnt = self.store.entries.iter().filter(|(key, entry)| matches!(key, Key::Timeline(_)) && entry.text.contains("\"burnt\""));
        self.coverage.burnt = burnt.count() as u64;
    }
}
