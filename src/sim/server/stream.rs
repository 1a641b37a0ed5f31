//! Replication: who streams from whom, how far WAL comes, and what is said of it.

use super::{STREAM_TIMEOUT, Sender, Upstream};
use crate::{
    decide::decision::Follow,
    model::instance::RecoveryTarget,
    sim::{wal::lsn, world::World},
};
use std::collections::BTreeMap;

impl World {
    pub(super) fn stream(&mut self, node: usize, id: u64) {
        let now = self.now;
        let Some(server) = self.nodes[node].server.as_ref() else { return };
        let Some(upstream) = &server.upstream else {
            if let Some(follow) = server.conninfo.clone().filter(|_| server.target == RecoveryTarget::Latest) {
                self.aim_anew(node);
                self.connect(node, id, &follow);
            }
            return;
        };
        let (from, from_id, heard) = (upstream.node, upstream.id, upstream.heard);
        let reaches = self.network.reaches(from, node, now) && self.nodes[from].asleep_until <= now && self.nodes[from].up;
        let lives = self.nodes[from].server.as_ref().is_some_and(|there| there.id == from_id && there.ready);
        let frozen = self.nodes[from].server.as_ref().is_some_and(|there| there.frozen_until > now);
        if (!reaches || frozen) && now.saturating_sub(heard) < STREAM_TIMEOUT {
            return;
        }
        if !reaches || frozen || !lives || !self.transfer(node, from) {
            self.hang_up(node, id);
            return;
        }
        self.acknowledge(node, id, from);
    }

    /// A walreceiver that was about to be started with what the settings said before connects after all, and lives until that is noticed (EXP-16).
    pub(in crate::sim) fn start_late(&mut self, node: usize, id: u64, former: Follow) {
        let (after, lives) = (self.random.millis(5, 400), self.random.millis(50, 1_500));
        let to = self.at_address(&former.address);
        // A port that nobody listens on has refused it at once.
        let refused = to.is_some_and(|to| self.network.talks(node, to, self.now) && self.nodes[to].up && self.nodes[to].server.is_none());
        if refused {
            return;
        }
        self.in_server(node, id, after, move |world| {
            let idle = world.nodes[node].server.as_ref().is_some_and(|server| {
                server.conninfo.is_none() && server.upstream.is_none() && server.postmaster && !server.primary && !server.promoting
            });
            if !idle {
                return;
            }
            world.connect(node, id, &former);
            world.in_server(node, id, lives, move |world| {
                if let Some(server) = world.server_of(node, id).filter(|server| server.conninfo.is_none()) {
                    server.drop_upstream();
                }
            });
        });
    }

    fn connect(&mut self, node: usize, id: u64, follow: &Follow) {
        let now = self.now;
        let Some(server) = self.nodes[node].server.as_ref() else { return };
        let name = server.application_name.clone();
        let slot = follow.slot.clone();
        let Some(to) = self.at_address(&follow.address).filter(|to| *to != node) else { return };
        if !self.network.talks(node, to, now) || self.nodes[to].asleep_until > now || self.is_cut_off(node, to) {
            return;
        }
        let has_slot = self.nodes[to].disk.as_ref().is_some_and(|data| slot.as_ref().is_none_or(|slot| data.slots.contains(slot)));
        let Some(there) = self.nodes[to].server.as_mut() else { return };
        if !there.ready || !there.postmaster || there.stopping.is_some() || there.frozen_until > now || !has_slot {
            return;
        }
        let there_id = there.id;
        if !self.knows_the_target(node, to) {
            return;
        }
        let Some(there) = self.nodes[to].server.as_mut() else { return };
        let reply = i64::try_from(now / 1_000).unwrap_or_default();
        let names = there.names.clone();
        there.senders.insert(node, Sender { name, flush: 0, replay: 0, reply, heard: now, names });
        self.judge_names(to);
        if let Some(server) = self.server_of(node, id) {
            server.upstream = Some(Upstream { node: to, id: there_id, heard: now });
        }
    }

    fn hang_up(&mut self, node: usize, id: u64) {
        let now = self.now;
        let Some(server) = self.server_of(node, id) else { return };
        let Some(upstream) = server.upstream.take() else { return };
        if self.network.reaches(node, upstream.node, now)
            && let Some(there) = self.server_of(upstream.node, upstream.id)
        {
            there.senders.remove(&node);
        }
    }

    /// Moves WAL; `false` where the sender refuses: the position asked for is not in its history.
    pub(super) fn transfer(&mut self, node: usize, from: usize) -> bool {
        let slow = self.network.slow_streams > self.now;
        let step = if slow { self.random.below(300) } else { u64::MAX / 2 };
        let Some(theirs) = self.nodes[from].disk.as_ref() else { return false };
        let sends = match &self.nodes[from].server {
            Some(there) if there.primary => theirs.end,
            Some(there) => there.replay,
            None => return false,
        };
        let (branch, Some(mine)) = (theirs.branch, self.nodes[node].disk.as_ref()) else { return false };
        let whole = self.wal.whole(mine.branch, mine.end);
        let own_end = mine.end;
        // Of a timeline of which nothing was received only the history file is here.
        let own = if self.wal.shared(branch, mine.branch).is_some() { mine.branch } else { self.wal.branch_at(mine.branch, mine.end) };
        let Some(shared) = self.wal.shared(branch, own) else {
            if self.wal.branches[own].tli == self.wal.branches[branch].tli {
                let text = format!(
                    "{} streams timeline {} from {}, which is another history of the same id",
                    self.nodes[node].name, self.wal.branches[own].tli, self.nodes[from].name
                );
                self.violation("I7", text);
            }
            return false;
        };
        let replay = self.nodes[node].server.as_ref().map(|server| server.replay).unwrap_or_default();
        if own != branch && whole > shared {
            if replay <= shared {
                let text = format!(
                    "{} holds {} of timeline {} and would stream from {}, which left it at {}",
                    self.nodes[node].name,
                    lsn(whole),
                    self.wal.branches[own].tli,
                    self.nodes[from].name,
                    lsn(shared)
                );
                self.violation("I7", text);
            }
            return false;
        }
        let least = self.nodes[node].disk.as_ref().map_or(0, |data| data.min_recovery.0);
        if own != branch && least > shared && self.nodes[node].server.as_ref().is_some_and(|server| server.inconsistent) {
            // PostgreSQL: unexpected timeline, before reaching minimum recovery point.
            self.end_server(node, "signal 6", false);
            return true;
        }
        let before = if own == branch { own_end } else { shared };
        let to = if sends < before { before } else { sends.min(before.saturating_add(step)) };
        // A walreceiver fetches the histories that it lacks.
        let fetched = if own == branch {
            BTreeMap::new()
        } else {
            self.nodes[from].disk.as_ref().map(|data| data.histories.clone()).unwrap_or_default()
        };
        if let Some(data) = &mut self.nodes[node].disk {
            (data.branch, data.end) = (branch, to);
            for (tli, text) in fetched {
                data.histories.entry(tli).or_insert(text);
            }
        }
        if let Some(server) = &mut self.nodes[node].server {
            server.received = true;
        }
        true
    }

    fn acknowledge(&mut self, node: usize, id: u64, to: usize) {
        let now = self.now;
        let open = self.network.reaches(node, to, now);
        let flush = self.nodes[node].disk.as_ref().map(|data| data.end).unwrap_or_default();
        let Some(server) = self.server_of(node, id) else { return };
        let (replay, name) = (server.replay, server.application_name.clone());
        let Some(upstream) = &mut server.upstream else { return };
        upstream.heard = now;
        let there_id = upstream.id;
        let reply = i64::try_from(now / 1_000).unwrap_or_default();
        if open && let Some(there) = self.server_of(to, there_id) {
            let fresh = there.senders.get(&node).is_none_or(|row| row.flush != flush || now - row.heard > 1_000_000_000);
            if fresh {
                self.judge_confirmation(node, to, flush);
                let Some(there) = self.server_of(to, there_id) else { return };
                // One that hears of what was written after a reload has come round, and has read its configuration.
                let row = there.senders.get(&node).filter(|_| flush <= there.names_at);
                let names = row.map_or_else(|| there.names.clone(), |row| row.names.clone());
                there.senders.insert(node, Sender { name, flush, replay, reply, heard: now, names });
                self.judge_names(to);
                self.release_waiting(to, node);
            }
        }
    }

    /// PostgreSQL has taken over what the label says, and has renamed it: `pg_control` names the redo that it began at, which is here.
    pub(super) fn label_is_over(&mut self, node: usize, from: u64) {
        let Some(data) = self.nodes[node].disk.as_mut().filter(|data| data.backup_label) else { return };
        data.backup_label = false;
        data.redo = data.redo.min(from);
        data.checkpoint_tli = self.wal.branches[self.wal.branch_at(data.branch, data.redo)].tli;
    }

    pub(super) fn replay(&mut self, node: usize, id: u64) {
        let lag = if self.random.chance(200) { self.random.below(3_000) } else { 0 };
        let Some(data) = &self.nodes[node].disk else { return };
        let to = self.wal.boundary_before(data.branch, data.end, lag).min(self.recovery_ends(node));
        let restart = self.random.chance(20);
        let branch = data.branch;
        let Some(server) = self.server_of(node, id) else { return };
        server.replay = server.replay.max(to);
        let (replay, inconsistent) = (server.replay, server.inconsistent);
        if inconsistent {
            // No restart point before that.
            let least = self.nodes[node].disk.as_ref().map_or(0, |data| data.min_recovery.0);
            if let Some(server) = self.server_of(node, id).filter(|_| replay >= least) {
                (server.ready, server.inconsistent) = (true, false);
            }
            return;
        }
        // A checkpoint's redo lies on the timeline that pg_control names with it.
        let tli = self.wal.branches[self.wal.branch_at(branch, replay)].tli;
        if restart && let Some(data) = &mut self.nodes[node].disk {
            (data.redo, data.checkpoint_tli, data.min_recovery) = (replay, tli, (replay, Some(tli)));
        }
    }
}
