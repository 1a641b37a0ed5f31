//! What goes wrong, when, and for how long.

use super::{Swarm, world::World};
use crate::model::{
    key::{Compare, Key, Txn, Write},
    policy::{Depose, Durability, Preset},
    record::{PolicyRecord, to_text},
};

const SECOND: u64 = 1_000_000_000;

/// The kinds of fault, and how often each is drawn.
#[derive(Clone, Copy, Debug)]
enum Fault {
    AgentKilled,
    AgentPaused,
    GuardKilled,
    PostmasterKilled,
    ServerFrozen,
    HostLost,
    HostSuspended,
    AllHostsLost,
    EtcdCut,
    EtcdDeaf,
    EtcdMute,
    Isolated,
    StreamsCut,
    OneWayCut,
    EtcdElection,
    EtcdLost,
    AmbiguousAnswers,
    LossyNetwork,
    SlowStreams,
    SlowDisk,
    SickDisk,
    BadStarts,
    WatchStalled,
    BrittleAgents,
    NodeStopped,
    DirectoryWiped,
    PolicyChanged,
    Operator,
}

const KINDS: &[Fault] = &[
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentPaused,
    Fault::GuardKilled,
    Fault::PostmasterKilled,
    Fault::PostmasterKilled,
    Fault::ServerFrozen,
    Fault::HostLost,
    Fault::HostLost,
    Fault::HostSuspended,
    Fault::AllHostsLost,
    Fault::EtcdCut,
    Fault::EtcdDeaf,
    Fault::EtcdMute,
    Fault::Isolated,
    Fault::Isolated,
    Fault::StreamsCut,
    Fault::OneWayCut,
    Fault::EtcdElection,
    Fault::EtcdElection,
    Fault::EtcdLost,
    Fault::AmbiguousAnswers,
    Fault::AmbiguousAnswers,
    Fault::LossyNetwork,
    Fault::SlowStreams,
    Fault::SlowDisk,
    Fault::SickDisk,
    Fault::BadStarts,
    Fault::WatchStalled,
    Fault::BrittleAgents,
    Fault::BrittleAgents,
    Fault::NodeStopped,
    Fault::DirectoryWiped,
    Fault::PolicyChanged,
    Fault::Operator,
    Fault::Operator,
    Fault::Operator,
];

/// Operators at work, and what comes in their way.
const OPERATORS: &[Fault] = &[
    Fault::Operator,
    Fault::Operator,
    Fault::Operator,
    Fault::Operator,
    Fault::AmbiguousAnswers,
    Fault::EtcdMute,
    Fault::EtcdCut,
    Fault::AgentKilled,
    Fault::AgentPaused,
    Fault::PostmasterKilled,
    Fault::HostLost,
    Fault::Isolated,
    Fault::BrittleAgents,
];

/// Holds and waits that change while answers are lost.
const POLICY: &[Fault] = &[
    Fault::PolicyChanged,
    Fault::PolicyChanged,
    Fault::PolicyChanged,
    Fault::AmbiguousAnswers,
    Fault::EtcdCut,
    Fault::EtcdMute,
    Fault::EtcdMute,
    Fault::Isolated,
];

impl World {
    /// Injects faults until `end`, one after the other and now and then two at once.
    pub(super) fn torment(&mut self, end: u64) {
        if self.now >= end {
            return;
        }
        let both = if self.random.chance(250) { 2 } else { 1 };
        for _ in 0..both {
            let kinds = match self.options.swarm {
                Swarm::Policy => POLICY,
                Swarm::Operators => OPERATORS,
                Swarm::All => KINDS,
            };
            let fault = self.random.pick(kinds);
            let node = self.target();
            self.inject(fault, node);
        }
        // Now and then the next one comes before the last one is dealt with; in some seeds nearly always.
        let soon = if self.stormy { 800 } else { 250 };
        let pause = if self.random.chance(soon) { self.random.millis(50, 2_000) } else { self.random.millis(3_000, 25_000) };
        self.later(pause, move |world| world.torment(end));
    }

    /// The primary more often than another.
    fn target(&mut self) -> usize {
        let primary = self.nodes.iter().position(super::node::Node::is_primary);
        match primary {
            Some(primary) if self.random.chance(550) => primary,
            _ => usize::try_from(self.random.below(self.nodes.len() as u64)).unwrap_or_default(),
        }
    }

    fn lasting(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.millis(50, 900),
            1 => self.random.millis(900, 4_000),
            2 => self.random.millis(4_000, 12_000),
            _ => self.random.millis(12_000, 40_000),
        }
    }

    fn inject(&mut self, fault: Fault, node: usize) {
        if self.nodes[node].asleep_until > self.now {
            return;
        }
        self.coverage.faults += 1;
        let lasts = self.lasting();
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, &format!("FAULT {fault:?} for {:.1}s", lasts as f64 / 1e9));
        let until = self.now + lasts;
        match fault {
            Fault::AgentKilled => self.restart_agent_later(node, lasts.min(10 * SECOND)),
            Fault::AgentPaused => {
                if let Some(agent) = &mut self.nodes[node].agent {
                    agent.paused_until = until;
                }
            }
            Fault::GuardKilled => self.kill_guard(node, "SIGKILL"),
            Fault::PostmasterKilled => self.kill_postmaster(node),
            Fault::ServerFrozen => {
                if let Some(server) = &mut self.nodes[node].server {
                    server.frozen_until = until;
                }
            }
            Fault::HostLost => self.lose_host(node, lasts),
            Fault::HostSuspended => self.suspend(node, lasts),
            Fault::AllHostsLost => {
                for node in 0..self.nodes.len() {
                    let back = self.random.millis(500, 20_000);
                    self.lose_host(node, back);
                }
            }
            Fault::EtcdCut => (self.network.to_etcd[node], self.network.from_etcd[node]) = (until, until),
            Fault::EtcdDeaf => self.network.to_etcd[node] = until,
            Fault::EtcdMute => self.network.from_etcd[node] = until,
            Fault::Isolated => {
                (self.network.to_etcd[node], self.network.from_etcd[node]) = (until, until);
                self.cut_streams(node, until, true, true);
            }
            Fault::StreamsCut => self.cut_streams(node, until, true, true),
            Fault::OneWayCut => {
                let out = self.random.chance(500);
                self.cut_streams(node, until, out, !out);
            }
            Fault::EtcdElection => self.store.away_until = self.now + self.random.millis(200, 2_600),
            Fault::EtcdLost => self.store.away_until = self.now + lasts.min(20 * SECOND),
            Fault::AmbiguousAnswers => self.store.ambiguous = (self.random.between(50, 600), until),
            Fault::LossyNetwork => self.network.loss = (self.random.between(20, 400), until),
            Fault::SlowStreams => self.network.slow_streams = until,
            Fault::SlowDisk => self.nodes[node].slow_disk = until,
            Fault::SickDisk => self.nodes[node].sick_disk = until,
            Fault::BadStarts => self.nodes[node].bad_starts = until,
            Fault::WatchStalled => {
                if let Some(agent) = &mut self.nodes[node].agent {
                    agent.client.stalled_until = until.min(self.now + 5 * SECOND);
                }
            }
            Fault::BrittleAgents => self.brittle = (self.random.between(10, 150), until),
            Fault::NodeStopped => self.stop_node(node, lasts),
            Fault::DirectoryWiped => self.wipe(node),
            Fault::PolicyChanged => self.change_policy(node),
            Fault::Operator => self.operate(),
        }
    }

    pub(super) fn cut_streams(&mut self, node: usize, until: u64, out: bool, into: bool) {
        for other in 0..self.nodes.len() {
            if out {
                self.network.between[node][other] = until;
            }
            if into {
                self.network.between[other][node] = until;
            }
        }
    }

    fn restart_agent_later(&mut self, node: usize, after: u64) {
        self.kill_agent(node, "SIGKILL");
        self.later_at(node, after, move |world| {
            if !world.nodes[node].stopped {
                world.start_agent(node);
            }
        });
    }

    /// Power off: everything in memory is gone at once.
    pub(super) fn lose_host(&mut self, node: usize, back: u64) {
        if !self.nodes[node].up {
            return;
        }
        self.kill_agent(node, "power off");
        self.nodes[node].guard = None;
        if self.nodes[node].server.is_some() {
            self.end_server(node, "power off", false);
        }
        let of = &mut self.nodes[node];
        of.life += 1;
        of.up = false;
        of.asleep_until = 0;
        self.later(back, move |world| world.boot_host(node));
    }

    pub(super) fn boot_host(&mut self, node: usize) {
        let now = self.now;
        let of = &mut self.nodes[node];
        if of.up {
            return;
        }
        of.up = true;
        of.clock.booted = now;
        of.clock.suspended = 0;
        let who = of.who();
        self.trace.line(now, &who, "host boots");
        let after = self.random.millis(100, 2_000);
        self.later_at(node, after, move |world| {
            world.nodes[node].stopped = false;
            world.start_agent(node);
        });
    }

    /// `CLOCK_BOOTTIME` goes on, `CLOCK_MONOTONIC` and everything else stand still.
    fn suspend(&mut self, node: usize, lasts: u64) {
        let of = &mut self.nodes[node];
        if !of.up || of.asleep_until > self.now {
            return;
        }
        of.asleep_until = self.now + lasts;
        let life = of.life;
        let ppm = of.clock.ppm;
        // On waking, the kernel's timers are the first to run.
        self.later(lasts, move |world| {
            let of = &mut world.nodes[node];
            if of.life != life {
                return;
            }
            let counted = i128::from(lasts) * (1_000_000 + i128::from(ppm)) / 1_000_000;
            of.clock.suspended += u64::try_from(counted).unwrap_or_default();
            let now = of.clock.boot(world.now);
            let dying = of.server.as_ref().is_some_and(|server| !server.postmaster && !server.hidden);
            if dying {
                // What was killed before is dead at once.
                world.end_server(node, "signal 9", false);
                return;
            }
            let late = of.guard.as_ref().is_some_and(|guard| guard.armed.is_some_and(|armed| armed.until <= now));
            if late && world.options.mutation != super::Mutation::DeafGuard {
                world.coverage.deadlines += 1;
                world.kill_guard(node, "the deadline passed while the host slept");
                if world.nodes[node].server.is_some() {
                    world.end_server(node, "signal 9", false);
                }
            }
        });
    }

    /// As `systemctl stop` does it; started again later.
    fn stop_node(&mut self, node: usize, back: u64) {
        let Some(run) = self.nodes[node].agent_run() else { return };
        self.nodes[node].stopped = true;
        self.deliver(node, run, crate::agent::event::Event::Stop);
        let limit = self.random.millis(20_000, 90_000);
        self.later_at(node, back + limit.min(30 * SECOND), move |world| world.start_again(node));
    }

    pub(super) fn start_again(&mut self, node: usize) {
        self.nodes[node].stopped = false;
        if self.nodes[node].agent_run().is_some() {
            self.kill_agent(node, "its stop took too long");
        }
        self.start_agent(node);
    }

    /// Somebody empties the data directory of a stopped node that is not the last one with data.
    fn wipe(&mut self, node: usize) {
        let others = (0..self.nodes.len()).any(|other| other != node && self.nodes[other].is_primary());
        if others && self.nodes[node].server.is_none() && self.nodes[node].disk.is_some() {
            self.nodes[node].disk = None;
        }
    }

    /// An operator chooses the other preset; or other commits to wait for, in the runs where they wait.
    fn change_policy(&mut self, node: usize) {
        let text = self.store.entries.get(&Key::Policy).map(|entry| entry.text.clone());
        let Some(mut record) = text.as_ref().and_then(|text| serde_json::from_str::<PolicyRecord>(text).ok()) else { return };
        record.version += 1;
        if self.options.durability != Durability::Async && self.random.chance(500) {
            let all = [Durability::Quorum, Durability::StrictQuorum, Durability::Auto, Durability::Async];
            let most = u32::try_from(self.nodes.len() - 1).unwrap_or(1).clamp(1, 2);
            record.policy.durability = self.random.pick(&all);
            record.policy.quorum_standbys = if self.random.chance(500) { most } else { 1 };
            record.policy.depose = self.random.pick(&[Depose::ByQuorum, Depose::AfterLease]);
        }
        record.policy.preset = if record.policy.preset == Preset::Fast { Preset::Default } else { Preset::Fast };
        let when = text.into_iter().map(|text| Compare::Is(Key::Policy, text)).collect();
        let txn = Txn { nonce: self.name("o"), when, then: vec![Write::Put(Key::Policy, to_text(&record))] };
        self.commit(node, 0, &txn);
    }

    /// Everything works again.
    pub(super) fn heal(&mut self) {
        self.trace.line(self.now, "----", "all faults end");
        self.network.heal();
        self.store.ambiguous = (0, 0);
        self.store.away_until = 0;
        self.brittle = (0, 0);
        let now = self.now;
        for node in 0..self.nodes.len() {
            let of = &mut self.nodes[node];
            (of.slow_disk, of.sick_disk, of.bad_starts) = (0, 0, 0);
            if let Some(agent) = &mut of.agent {
                agent.paused_until = agent.paused_until.min(now);
                agent.client.stalled_until = agent.client.stalled_until.min(now);
            }
            if let Some(server) = &mut of.server {
                server.frozen_until = 0;
            }
            if !of.up {
                self.boot_host(node);
            } else if of.agent.is_none() && of.asleep_until <= now {
                of.stopped = false;
                self.start_agent(node);
            } else if of.stopped {
                self.start_again(node);
            }
        }
    }
}
