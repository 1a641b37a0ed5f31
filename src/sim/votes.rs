//! What promises and confirmations are worth (O7, I2): who has promised confirms no more, and has what it once confirmed.

use super::world::World;
use crate::model::{node::Replica, term::Term};

impl World {
    /// The store has taken a promise of this run of a node's agent: it is in the file first (O7).
    pub(super) fn judge_promise(&mut self, term: Term, node: usize, run: u64) {
        let of = &mut self.nodes[node];
        let (name, noted) = (of.who(), of.file.promised);
        // It was on its way when its machine was set back, and says what was so then.
        let late = of.spoilt.contains(&of.file.data) && of.agent_of(run).is_none();
        if !late {
            if noted < term {
                self.violation("O7", format!("{name} has published a promise for term {term}, and its file knows of {noted}"));
            }
            self.judge_word(node, term, false);
            self.judge_whole(term, node);
        }
        let end = self.nodes[node].disk.as_ref().map_or(0, |data| data.end);
        let before = self.oracle.promised.get(&node).map_or(Term::ZERO, |(before, ..)| *before);
        self.oracle.promised.insert(node, (term.max(before), end, self.nodes[node].file.data.clone()));
    }

    /// Whoever has promised confirms nothing more to a primary of a lower term (O7), in the modes where that is what commits wait for.
    pub(super) fn judge_confirmation(&mut self, node: usize, to: usize, flush: u64) {
        self.note_confirmed(node, to, flush);
        let Some((promised, end, data)) = self.oracle.promised.get(&node) else { return };
        let (promised, more) = (*promised, flush > *end && *data == self.nodes[node].file.data);
        let by = &self.nodes[to].name;
        let former = self.oracle.newest.values().rev().find(|written| written.record.holder.node == *by).map(|written| written.record.term);
        let former = former.unwrap_or(Term::ZERO);
        if more && former < promised && self.nodes[to].is_primary() && self.waits(to) {
            let text = format!(
                "{} confirms commits to {} of term {former}, and has promised term {promised}",
                self.nodes[node].name, self.nodes[to].name
            );
            self.violation("O7", text);
        }
    }

    /// What a standby confirms to a primary it has for as long as this life of its data lasts.
    fn note_confirmed(&mut self, node: usize, to: usize, flush: u64) {
        let Some(data) = self.nodes[node].disk.as_ref().filter(|_| self.nodes[to].is_primary()) else { return };
        let end = self.wal.whole(data.branch, flush);
        let row = (self.wal.branch_at(data.branch, end), end);
        self.oracle.confirmed.insert((node, self.nodes[node].file.data.clone()), row);
    }

    /// Whoever votes has what it has confirmed: the commits that were acknowledged by that are found through it (I2).
    fn judge_whole(&mut self, term: Term, node: usize) {
        let name = self.nodes[node].who();
        let me = Replica::new(self.nodes[node].name.clone(), self.nodes[node].file.data.clone());
        let votes = self.sync_in_force().is_some_and(|sync| sync.voters.contains(&me));
        // What a machine has confirmed its copy has to have as well, while it calls its data the same.
        let rows = self.oracle.confirmed.iter().filter(|((_, data), _)| votes && *data == me.data).map(|(_, row)| *row);
        // Of a directory that was wiped a moment ago its word still tells what it had: whoever has as much lacks nothing.
        let told = self.nodes[node].is_just_wiped(self.now);
        let holds = |row: &(usize, u64)| self.nodes[node].disk.as_ref().is_some_and(|disk| self.wal.holds(disk.branch, disk.end, *row));
        let lacks = |row: &(usize, u64)| !told && !holds(row);
        if let Some(row) = rows.into_iter().find(lacks) {
            let (tli, end) = (self.wal.branches[row.0].tli, crate::model::lsn::Lsn::new(row.1));
            self.violation("I2", format!("{name} has promised term {term}, and lacks {end} of timeline {tli}, which it has confirmed"));
        }
    }
}
