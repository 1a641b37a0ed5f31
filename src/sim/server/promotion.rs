//! Promotion: the new timeline's id, its history file, and what the ledger says of it.

use crate::{
    model::{
        instance::{ControlState, RecoveryTarget},
        key::Key,
        lsn::Lsn,
        record::{TimelineRecord, TimelineState},
        timeline::{TimelineHistory, TimelineId},
    },
    sim::{node::Data, wal::lsn, world::World},
};

impl World {
    /// `pg_promote`: the id is the one after the newest history file that follows ours without a gap.
    pub(in crate::sim) fn promote_server(&mut self, node: usize) {
        let Some(server) = &mut self.nodes[node].server else { return };
        let id = server.id;
        (server.promoting, server.upstream) = (true, None);
        if self.has_bad_luck(10) {
            return; // It never ends.
        }
        let slow = if self.has_bad_luck(80) { 10 } else { 1 };
        let slower = if self.nodes[node].slow_server > self.now { self.random.millis(0, 12_000) } else { 0 };
        let takes = self.random.millis(40, 200 * slow) + slower;
        self.coverage.late_promotions += u64::from(takes > 1_000_000_000);
        if self.has_bad_luck(20) {
            self.in_server(node, id, takes, move |world| world.end_server(node, "signal 6", false));
            return;
        }
        self.in_server(node, id, takes * 4 / 5, move |world| {
            world.write_own_history(node);
            world.in_server(node, id, takes / 5, move |world| world.promoted(node, id));
        });
    }

    /// The history file, and the last segment under its new name: data that dies now lies on a timeline without a record.
    ///
    /// The parent that it names is recovery's target, also where recovery has not come to it.
    fn write_own_history(&mut self, node: usize) {
        let aims = self.nodes[node].server.as_ref().map(|server| server.target).unwrap_or_default();
        let Some(data) = self.nodes[node].disk.as_ref() else { return };
        let at = self.wal.whole(data.branch, data.end);
        let parent = self.wal.branch_at(data.branch, at);
        let own = self.wal.branches[parent].tli;
        let target = match aims {
            RecoveryTarget::Latest => target(data, own, lsn(at)),
            RecoveryTarget::Current => data.tli(),
            RecoveryTarget::Timeline(tli) => tli,
        };
        let before = data.histories.get(&target).cloned().unwrap_or_default();
        let text = format!("{before}{target}\t{}\tno recovery target specified\n", lsn(at));
        let tli = newest_consecutive(data, own).next();
        let given = self.ledger(tli).and_then(|entry| entry.parent);
        if target != own && given.is_some_and(|parent| parent != target) {
            let name = &self.nodes[node].name;
            self.violation("I7", format!("{name} names timeline {target} as the parent of {tli}, and has not come to it: {text:?}"));
        }
        let branch = self.wal.fork(parent, at, tli);
        if let Some(data) = &mut self.nodes[node].disk {
            data.histories.insert(tli, text);
            (data.branch, data.end, data.standby_signal) = (branch, at, false);
        }
    }

    fn promoted(&mut self, node: usize, id: u64) {
        let Some(branch) = self.nodes[node].disk.as_ref().map(|data| data.branch) else { return };
        let tli = self.wal.branches[branch].tli;
        let end = self.wal.append(branch, 42);
        if let Some(data) = &mut self.nodes[node].disk {
            (data.end, data.control) = (end, ControlState::InProduction);
            data.min_recovery = (end, Some(tli));
        }
        self.coverage.promotions += 1;
        self.judge_branch(node, branch);
        self.opened(node, id, end);
        self.after_promotion(node);
    }

    /// What the ledger has for this id.
    pub(in crate::sim) fn ledger(&self, tli: TimelineId) -> Option<TimelineRecord> {
        let entry = self.store.entries.get(&Key::Timeline(tli))?;
        serde_json::from_str(&entry.text).ok()
    }

    pub(in crate::sim) fn ledger_reserves(&self, tli: TimelineId, node: usize) -> bool {
        // An etcd that was set back meanwhile does not know what it once gave out.
        let before = self.store.before.as_ref().and_then(|saved| saved.timeline(tli));
        self.ledger(tli).or(before).is_some_and(|entry| entry.state == TimelineState::Reserved && entry.owner.node == self.nodes[node].name)
    }
}

/// What a standby on timeline `own` that has replayed to `at` aims at: the newest timeline that goes on from there (`rescanLatestTimeLine`).
fn target(data: &Data, own: TimelineId, at: Lsn) -> TimelineId {
    let leads_there = |text: &str| TimelineHistory::left(text, own).is_some_and(|fork| fork >= at);
    let later = data.histories.iter().rev().filter(|(tli, _)| **tli > own);
    later.filter(|(_, text)| leads_there(text)).map(|(tli, _)| *tli).next().unwrap_or(own)
}

/// The newest history file that follows `from` without a gap.
pub(super) fn newest_consecutive(data: &Data, from: TimelineId) -> TimelineId {
    let mut newest = from;
    while data.histories.contains_key(&newest.next()) {
        newest = newest.next();
    }
    newest
}
