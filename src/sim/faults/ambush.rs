//! Faults that lie in wait for a moment that is rare: what happens within milliseconds of it chance would not strike.

use crate::{
    decide::decision::{Purpose, Task},
    model::{
        key::{Key, Txn, Write},
        node::NodeName,
    },
    sim::{SECOND, faults::Link, node::Node, world::World},
};

/// Until when a fault waits for each moment, and how long it lasts once it strikes; by the clock of the simulator.
#[derive(Clone, Copy, Default)]
pub(in crate::sim) struct Ambushes {
    promotion: (u64, u64),
    sync: (u64, u64),
    resumption: (u64, u64),
    /// The primary that stands still until a voter has cut its stream.
    cut: (u64, usize),
    copy: (u64, u64),
}

/// For so long a fault waits for its moment.
const PATIENCE: u64 = 60 * SECOND;

impl World {
    pub(super) fn await_promotion(&mut self, lasts: u64) {
        self.ambushes.promotion = (self.now + PATIENCE, lasts);
    }

    pub(super) fn await_sync(&mut self, lasts: u64) {
        self.ambushes.sync = (self.now + PATIENCE, lasts);
    }

    pub(super) fn await_resumption(&mut self, lasts: u64) {
        self.ambushes.resumption = (self.now + PATIENCE, lasts);
    }

    /// No host has room for a second copy, until one begins to be made in place.
    pub(super) fn await_copy(&mut self, lasts: u64) {
        self.ambushes.copy = (self.now + PATIENCE, lasts);
        self.nodes.iter_mut().for_each(|node| node.cramped = true);
    }

    /// The data of a node are about to be copied over: those of another one are lost, too. The copy begins only once that can be known.
    pub(in crate::sim) fn before_copy(&mut self, node: usize, source: &NodeName) {
        let (until, lasts) = std::mem::take(&mut self.ambushes.copy);
        let others = (0..self.members).filter(|other| *other != node && self.nodes[*other].name != *source);
        let Some(other) = others.into_iter().find(|_| until >= self.now) else { return };
        self.lose_host(other, lasts);
        self.wipe(other);
        self.cut(node, self.now + 8 * SECOND, Link::Servers, (true, true));
    }

    /// A standby's server dies, its guard stands still before it reads the next start, and the primary is cut off: a claim comes while that start lies
    /// unread, and the primary can be reached again before its deadline.
    pub(super) fn queue_start(&mut self, node: usize) {
        let primary = self.nodes.iter().take(self.members).position(Node::is_primary);
        let Some(primary) = primary.filter(|primary| *primary != node && self.nodes[node].server.is_some()) else { return };
        let (stands, cut) = (self.random.millis(2_200, 4_000), self.random.millis(1_500, 3_600));
        if let Some(guard) = &mut self.nodes[node].guard {
            guard.stops_for = (stands, Some(Task::Start));
        }
        self.kill_postmaster(node);
        let silent = self.now + 8 * SECOND;
        (self.network.to_etcd[primary], self.network.from_etcd[primary]) = (silent, silent);
        self.cut(primary, self.now + cut, Link::Hosts, (true, true));
    }

    /// The primary and its agent stand still, and nothing ends them: until a voter has cut its stream, for a few seconds at the most.
    pub(super) fn await_cut(&mut self, node: usize, lasts: u64) {
        self.ambushes.cut = (self.now + 4 * SECOND, node);
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.paused_until = self.now + 4 * SECOND + lasts;
        }
        self.keep_still(node);
    }

    fn keep_still(&mut self, node: usize) {
        let (until, of) = self.ambushes.cut;
        let now = self.now;
        if until < now || of != node {
            return;
        }
        if let Some(server) = &mut self.nodes[node].server {
            server.frozen_until = server.frozen_until.max(now + 60_000_000);
        }
        self.later(50_000_000, move |world| world.keep_still(node));
    }

    /// A stream is cut, and its walreceiver is about to come back: so is the primary.
    pub(in crate::sim) fn after_cut(&mut self) {
        self.ambushes.cut = (0, 0);
    }

    /// A primary has come up: it never tells etcd of that, and dies once it has served for a while.
    pub(in crate::sim) fn after_promotion(&mut self, node: usize) {
        let (until, lasts) = std::mem::take(&mut self.ambushes.promotion);
        if until < self.now {
            return;
        }
        self.network.to_etcd[node] = self.now + lasts.max(4 * SECOND);
        let dies = self.random.millis(100, 2_500);
        self.later_at(node, dies, move |world| world.lose_host(node, lasts));
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, "is cut off from etcd right after its promotion");
    }

    /// A write of `sync` alone leaves a node: a member of etcd may hold it for as long as this, and take it all the same. Its sender dies, and
    /// now and then others that could follow it stand still.
    pub(in crate::sim) fn holds_write(&mut self, node: usize, purpose: Option<Purpose>, txn: &Txn) -> Option<u64> {
        if purpose == Some(Purpose::Resume) {
            return self.holds_resumption(node);
        }
        let (until, lasts) = self.ambushes.sync;
        let writes = txn.then.iter().any(|write| matches!(write, Write::Put(Key::Sync, _)));
        if until < self.now || purpose != Some(Purpose::Membership) || !writes {
            return None;
        }
        self.ambushes.sync = (0, 0);
        let held = self.random.millis(600, 7_000);
        let soon = self.random.millis(1, 60);
        let back = if self.random.chance(500) { 300_000_000 } else { held + lasts };
        self.later_at(node, soon, move |world| world.restart_agent_later(node, back));
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            let (stands_still, misses) = (self.random.chance(300), self.random.chance(500));
            let until = self.now + held + lasts;
            let stall = held.saturating_sub(self.random.millis(1, 400));
            if let Some(agent) = self.nodes[other].agent.as_mut().filter(|_| stands_still && back > held) {
                agent.paused_until = agent.paused_until.max(until);
            } else if misses {
                self.later_at(other, stall, move |world| {
                    let until = world.now + 2 * SECOND;
                    world.nodes[other].agent.iter_mut().for_each(|agent| agent.client.stalled_until = until);
                });
            }
        }
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, &format!("a write of sync is held for {:.1}s", held as f64 / 1e9));
        Some(held)
    }

    /// The write that ends a pause is held, and its sender hears nothing of etcd any more; or it is left alone, and the moment after counts.
    fn holds_resumption(&mut self, node: usize) -> Option<u64> {
        let (until, lasts) = self.ambushes.resumption;
        if until < self.now || self.random.chance(500) {
            return None;
        }
        self.ambushes.resumption = (0, 0);
        let (held, soon) = (self.random.millis(700, 5_000), self.random.millis(1, 60));
        self.later(soon, move |world| {
            let until = world.now + 6 * SECOND + lasts;
            (world.network.to_etcd[node], world.network.from_etcd[node]) = (until, until);
        });
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, &format!("its write that ends the pause is held for {:.1}s", held as f64 / 1e9));
        Some(held)
    }

    /// A pause has ended: the holder's agent stands still at that moment, for longer than any hold.
    pub(in crate::sim) fn after_resumption(&mut self, node: usize) {
        let (until, lasts) = std::mem::take(&mut self.ambushes.resumption);
        if until < self.now {
            return;
        }
        let until = self.now + 5 * SECOND + lasts;
        if let Some(agent) = &mut self.nodes[node].agent {
            agent.paused_until = until;
        }
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, "its agent stands still right after the pause");
    }

    /// What still waits strikes no more.
    pub(super) fn call_off(&mut self) {
        self.ambushes = Ambushes::default();
    }
}
