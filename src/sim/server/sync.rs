//! Synchronous replication: who has heard of new names, which commits wait, and who lets them go (EXP-2, EXP-24; PG source, `syncrep.c`).

use crate::sim::{Mutation, oracle::Ack, world::World};
use std::collections::BTreeSet;

/// `ANY k (names)`.
pub(in crate::sim) struct Listed {
    pub(in crate::sim) k: usize,
    pub(in crate::sim) names: BTreeSet<String>,
}

/// Reads what our own side writes.
pub(in crate::sim) fn listed(text: &str) -> Option<Listed> {
    let (k, names) = text.strip_prefix("ANY ")?.split_once(" (")?;
    let names = names.strip_suffix(')')?.split(", ").map(|name| name.trim_matches('"').to_owned()).collect();
    Some(Listed { k: k.parse().ok()?, names })
}

impl World {
    /// `pg_reload_conf()`: the postmaster hears of it, then each process in its own time.
    pub(in crate::sim) fn reload_names(&mut self, node: usize) {
        let Some(server) = self.nodes[node].server.as_ref() else { return };
        let id = server.id;
        let postmaster = self.random.tailed(1, 20);
        let checkpointer = postmaster + if self.random.chance(100) { self.random.millis(200, 6_000) } else { self.random.tailed(1, 40) };
        self.in_server(node, id, postmaster, move |world| world.heard_by_postmaster(node, id));
        self.in_server(node, id, checkpointer, move |world| world.heard_by_checkpointer(node, id));
    }

    /// It reads the file as it is by then.
    fn heard_by_postmaster(&mut self, node: usize, id: u64) {
        let of = &self.nodes[node];
        let Some(names) = of.by_hand.clone().or_else(|| of.conf.as_ref().map(|conf| conf.sync_names.clone())) else { return };
        if self.nodes[node].server.as_ref().is_none_or(|server| server.names == names) {
            return;
        }
        let end = self.nodes[node].disk.as_ref().map_or(0, |data| self.wal.end(data.branch));
        let Some(server) = self.server_of(node, id) else { return };
        (server.names, server.names_at) = (names, end);
        let peers: Vec<usize> = server.senders.keys().copied().collect();
        for peer in peers {
            let takes = if self.random.chance(100) { self.random.millis(100, 4_000) } else { self.random.tailed(1, 40) };
            self.in_server(node, id, takes, move |world| {
                if let Some(server) = world.server_of(node, id) {
                    let names = server.names.clone();
                    if let Some(row) = server.senders.get_mut(&peer) {
                        row.names = names;
                    }
                }
                world.judge_names(node);
            });
        }
        self.judge_names(node);
    }

    /// It sets the flag that all sessions look at; where nobody has to confirm any more, everybody who waits goes.
    pub(in crate::sim) fn heard_by_checkpointer(&mut self, node: usize, id: u64) {
        let late = self.options.mutation == Mutation::LateFlag;
        let Some(server) = self.server_of(node, id) else { return };
        server.defined = !server.names.is_empty() && (server.primary || !late);
        server.flag_by_hand = server.by_hand.contains(&server.names);
        let by_hand = server.flag_by_hand;
        let released = if server.defined { Vec::new() } else { std::mem::take(&mut server.waiting) };
        for row in released {
            self.acknowledge_commit(node, row, by_hand);
        }
        self.judge_names(node);
    }

    /// A commit is flushed here: it is told of, or waits.
    pub(in crate::sim) fn committed(&mut self, node: usize, id: u64, row: (usize, u64)) {
        let Some(server) = self.server_of(node, id) else { return };
        if server.defined {
            server.waiting.push(row);
        } else {
            let by_hand = server.flag_by_hand;
            self.acknowledge_commit(node, row, by_hand);
        }
    }

    /// A replica has confirmed something: its walsender lets go what enough have, by the names that this walsender knows. Whether another one
    /// counts is what that one believes of itself.
    pub(super) fn release_waiting(&mut self, node: usize, peer: usize) {
        let Some(server) = self.nodes[node].server.as_mut().filter(|server| server.primary) else { return };
        let Some(row) = server.senders.get(&peer) else { return };
        let Some(view) = listed(&row.names).filter(|view| view.names.contains(&row.name)) else { return };
        let mut flushed: Vec<u64> = server.senders.values().filter(|row| row.counts()).map(|row| row.flush).collect();
        let by_hand = server.senders.values().any(|row| row.counts() && server.by_hand.contains(&row.names));
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let Some(up_to) = view.k.checked_sub(1).and_then(|last| flushed.get(last)).copied() else { return };
        let (go, stay) = std::mem::take(&mut server.waiting).into_iter().partition(|(_, end)| *end <= up_to);
        server.waiting = stay;
        let go: Vec<(usize, u64)> = go;
        for row in go {
            self.acknowledge_commit(node, row, by_hand);
        }
    }

    /// `by_hand`: by names that somebody has set by hand.
    fn acknowledge_commit(&mut self, node: usize, row: (usize, u64), by_hand: bool) {
        self.note_ack();
        let lossless = self.is_lossless();
        if by_hand && lossless {
            // What it waits for then nobody promises (safety.md).
            self.coverage.acks_by_hand += 1;
            return;
        }
        self.judge_ack(node, row);
        let waits = self.nodes[node].server.as_ref().is_some_and(|server| server.defined);
        // Names that are still in force while `sync` says `async` promise nothing.
        if !(waits && lossless) && self.nodes[node].is_excused(self.now) {
            self.coverage.after_freeze += 1;
            return;
        }
        self.oracle.acks.push(Ack { row, at: self.now, lost_in: None, lossless });
    }
}
