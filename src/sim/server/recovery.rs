//! From the start to an open server: which timeline recovery takes, how far, and what is cut off for good.

use super::promotion::newest_consecutive;
use crate::{
    model::{
        instance::{ControlState, RecoveryTarget, StartAs},
        timeline::TimelineHistory,
    },
    sim::{Mutation, wal::lsn, world::World},
};

impl World {
    pub(super) fn recovered(&mut self, node: usize, id: u64, start: StartAs) {
        let back = self.random.below(20_000);
        if start == StartAs::Standby {
            self.leave_unreplayed(node);
        }
        let Some(data) = &self.nodes[node].disk else { return };
        match start {
            StartAs::Standby => {
                let from = self
                    .wal
                    .boundary_before(data.branch, data.end, back)
                    .max(data.min_recovery.0.min(self.wal.whole(data.branch, data.end)))
                    .min(self.recovery_ends(node));
                let stuck = self.lured(node);
                if let Some(data) = &mut self.nodes[node].disk {
                    data.control = ControlState::InArchiveRecovery;
                }
                if let Some(why) = stuck {
                    self.trace.line(self.now, &self.nodes[node].who(), &format!("postgres is lured: {why}"));
                    if !why.is_empty() {
                        self.end_server(node, &why, false);
                    }
                    return;
                }
                let consistent = self.nodes[node].disk.as_ref().is_some_and(|data| from >= data.min_recovery.0);
                if let Some(server) = self.server_of(node, id) {
                    (server.replay, server.ready, server.inconsistent) = (from, consistent, !consistent);
                }
                self.label_is_over(node, from);
                self.tick(node, id);
            }
            StartAs::Primary => {
                self.open_in_place(node, id);
                self.tick(node, id);
            }
        }
    }

    /// Up to where recovery reads: a timeline that is newer than its target is none of its history.
    pub(super) fn recovery_ends(&self, node: usize) -> u64 {
        let (Some(server), Some(data)) = (&self.nodes[node].server, &self.nodes[node].disk) else { return u64::MAX };
        let target = match server.target {
            RecoveryTarget::Latest => return u64::MAX,
            RecoveryTarget::Current => data.tli(),
            RecoveryTarget::Timeline(tli) => tli,
        };
        let of = self.wal.ancestor_of(data.branch, target);
        of.and_then(|of| self.wal.shared(data.branch, of)).unwrap_or(u64::MAX)
    }

    /// WAL that was not replayed, of a timeline that is not in the history of the one that recovery takes for its target, is never read.
    fn leave_unreplayed(&mut self, node: usize) {
        loop {
            let of = &self.nodes[node];
            let latest = of.server.as_ref().is_some_and(|server| server.target == RecoveryTarget::Latest);
            let Some(data) = of.disk.as_ref().filter(|_| latest) else { return };
            let target = newest_consecutive(data, data.checkpoint_tli);
            let Some(history) = data.histories.get(&target).and_then(|text| text.parse::<TimelineHistory>().ok()) else { return };
            let branch = &self.wal.branches[data.branch];
            let expected = branch.tli == target || history.leaves(branch.tli).is_some();
            let Some((parent, at)) = branch.parent.filter(|_| !expected && !history.forks().is_empty()) else { return };
            if data.min_recovery.0 > at || data.redo > at {
                return;
            }
            if let Some(data) = &mut self.nodes[node].disk {
                (data.branch, data.end) = (parent, data.end.min(at));
            }
        }
    }

    /// At a start: the newest history file without a gap, from the timeline of `pg_control` on.
    pub(super) fn aim_first(&mut self, node: usize) {
        let Some(data) = self.nodes[node].disk.as_ref() else { return };
        let control = data.checkpoint_tli.max(self.wal.branches[self.wal.branch_at(data.branch, data.redo)].tli);
        let aims = newest_consecutive(data, control);
        let real =
            data.histories.get(&aims).is_some_and(|text| text.parse::<TimelineHistory>().is_ok_and(|history| history.last().is_some()));
        if let Some(server) = self.nodes[node].server.as_mut() {
            server.aims = if real { aims } else { control };
        }
    }

    /// `rescanLatestTimeLine`, each time before a walreceiver is started.
    pub(super) fn aim_anew(&mut self, node: usize) {
        let of = &mut self.nodes[node];
        let (Some(server), Some(data)) = (of.server.as_mut(), of.disk.as_ref()) else { return };
        let newest = newest_consecutive(data, server.aims);
        if data.histories.get(&newest).is_some_and(|text| TimelineHistory::left(text, server.aims).is_some()) {
            server.aims = newest;
        }
    }

    /// Whether the sender was ever on the timeline that the standby aims at: of another one it sends nothing, and says so.
    pub(super) fn knows_the_target(&self, node: usize, from: usize) -> bool {
        let (Some(server), Some(theirs)) = (&self.nodes[node].server, &self.nodes[from].disk) else { return true };
        self.wal.path(theirs.branch).iter().any(|branch| self.wal.branches[*branch].tli == server.aims)
    }

    /// A real history file of a newer timeline that left ours before our checkpoint is fatal at a start (EXP-30 ii).
    fn lured(&self, node: usize) -> Option<String> {
        let server = self.nodes[node].server.as_ref()?;
        let data = self.nodes[node].disk.as_ref()?;
        if server.target != RecoveryTarget::Latest {
            return None;
        }
        let own = self.wal.branches[self.wal.branch_at(data.branch, data.redo)].tli;
        let control = data.checkpoint_tli.max(own);
        let newest = newest_consecutive(data, control);
        let text = data.histories.get(&newest).filter(|_| newest != control)?;
        let history: TimelineHistory = text.parse().unwrap_or_default();
        if history.forks().is_empty() {
            // It takes the burnt id for its target, is never consistent, and lets nobody in.
            return self.options.burnt_ids_are_fatal.then(String::new);
        }
        let (least, of) = data.min_recovery;
        let contains = of.is_none_or(|of| of == newest || history.leaves(of).is_some_and(|at| at.get() >= least));
        if !contains {
            return Some(format!("exit code 1: requested timeline {newest} does not contain minimum recovery point {}", lsn(least)));
        }
        let child = history.leaves(own).is_some_and(|at| at.get() >= data.redo);
        (!child).then(|| format!("exit code 1: requested timeline {newest} is not a child of this server's history"))
    }

    /// Crash recovery without standby.signal: on the timeline that pg_control names.
    fn open_in_place(&mut self, node: usize, id: u64) {
        let Some(data) = self.nodes[node].disk.clone() else { return };
        let control = data.tli();
        let mut branch = data.branch;
        while self.wal.branches[branch].tli > control {
            let Some((parent, _)) = self.wal.branches[branch].parent else { break };
            branch = parent;
        }
        let end = if branch == data.branch { data.end } else { u64::MAX };
        let whole = self.wal.whole(branch, end.min(data.end));
        self.judge_restart(node, branch, whole);
        self.cut_branch(branch, whole, node);
        let end = self.wal.append(branch, 114);
        if let Some(data) = &mut self.nodes[node].disk {
            (data.branch, data.end, data.control) = (branch, end, ControlState::InProduction);
            (data.redo, data.checkpoint_tli, data.min_recovery) = (whole, self.wal.branches[branch].tli, (0, None));
        }
        self.coverage.restarts_in_place += 1;
        self.opened(node, id, end);
    }

    /// What lay beyond `position` on a branch is gone from this disk for good; torn bytes of it elsewhere mean nothing.
    pub(super) fn cut_branch(&mut self, branch: usize, position: u64, owner: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != owner) {
            let Some(data) = &self.nodes[other].disk else { continue };
            let Some(shared) = self.wal.shared(data.branch, branch) else { continue };
            let has = self.wal.whole(data.branch, data.end).min(shared);
            if has > position && data.branch == branch {
                let text = format!(
                    "{} holds timeline {} to {} beyond what its primary has ({})",
                    self.nodes[other].name,
                    self.wal.branches[branch].tli,
                    lsn(has),
                    lsn(position)
                );
                self.violation("O5", text);
            }
            if let Some(data) = &mut self.nodes[other].disk
                && data.branch == branch
            {
                data.end = data.end.min(position);
            }
        }
        // What a snapshot holds beyond it would be another history under the same name.
        let wal = &self.wal;
        for of in &mut self.nodes {
            of.saved.retain(|(_, _, data)| {
                wal.shared(data.branch, branch).is_none_or(|shared| wal.whole(data.branch, data.end).min(shared) <= position)
            });
        }
        self.wal.truncate(branch, position);
    }

    /// A timeline that was made and never written to is left again without a trace, once its history file is replaced.
    pub(super) fn leave_empty_branch(&mut self, node: usize) {
        let Some(data) = self.nodes[node].disk.as_ref() else { return };
        let of = &self.wal.branches[data.branch];
        let replaced = data.histories.get(&of.tli).is_none_or(|text| text.starts_with('#'));
        if let (true, true, Some((parent, at))) = (of.ends.is_empty(), replaced, of.parent)
            && let Some(data) = &mut self.nodes[node].disk
        {
            (data.branch, data.end) = (parent, at);
        }
    }

    /// Out of recovery: from now on it can acknowledge.
    pub(super) fn opened(&mut self, node: usize, id: u64, at: u64) {
        if let Some(server) = self.server_of(node, id) {
            (server.primary, server.ready, server.replay, server.promoting) = (true, true, at, false);
            (server.upstream, server.conninfo, server.came_up_with) = (None, None, at);
        }
        let who = self.nodes[node].who();
        let tli = self.nodes[node].disk.as_ref().map(|data| self.wal.branches[data.branch].tli.get()).unwrap_or_default();
        self.trace.line(self.now, &who, &format!("postgres accepts writes on timeline {tli}"));
        self.judge_primary(node);
        if self.options.mutation == Mutation::LateFlag {
            self.in_server(node, id, 3_000_000_000, move |world| world.heard_by_checkpointer(node, id));
        }
        self.in_server(node, id, 20_000_000, move |world| {
            if let Some(data) = &mut world.nodes[node].disk {
                data.standby_signal = true;
            }
        });
    }
}
