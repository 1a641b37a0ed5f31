//! What goes wrong, when, and for how long.
//!
//! The whole schedule is drawn from the seed before the run begins, and each fault has a seed of its own: a failing run is made shorter by
//! dropping faults (`shrink`). `hosts`: what happens to a whole host; `ambush`: faults that wait for their moment; `swarms`: which faults there are.

mod ambush;
mod hosts;
mod swarms;

pub(super) use ambush::Ambushes;

use super::{Swarm, random::Random, store::kind, world::World};
use crate::model::{
    key::{Compare, Key, Txn, Write},
    node::Replica,
    policy::{Depose, Durability, Preset},
    record::{PolicyRecord, to_text},
};
use std::collections::BTreeSet;

const SECOND: u64 = 1_000_000_000;

/// The kinds of fault, and how often each is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    AgentKilled,
    AgentPaused,
    GuardKilled,
    GuardStopped,
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
    HostFrozen,
    ClockDrifts,
    HostRolledBack,
    FileLost,
    WritesQueued,
    Ring,
    SlowEtcd,
    SlowServer,
    WatchGap,
    WatchReplays,
    EtcdCompacted,
    EtcdRestored,
    PrefixWiped,
    PromotionOrphaned,
    SyncHeld,
    ResumptionMissed,
    StillUntilCut,
    NamesByHand,
    HostCopied,
    PeersCut,
    EtcdFull,
    KeyDeleted,
    CopyAmbushed,
    StartQueued,
}

/// What is cut between a node and the others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Link {
    Hosts,
    Servers,
    Agents,
}

/// One fault of a seed's schedule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    /// Its place in the schedule: by that it is dropped.
    index: usize,
    at: u64,
    fault: Fault,
    /// From which it draws whom it strikes, and for how long.
    draw: u64,
}

/// Every fault of a seed from `from` to `end`: one after the other, and now and then two at once.
pub(super) fn schedule(seed: u64, swarm: Swarm, from: u64, end: u64) -> Vec<Planned> {
    let mut draw = Random::new(seed ^ 0xFA17);
    // Now and then the next one comes before the last one is dealt with; in some seeds nearly always.
    let soon = if seed.is_multiple_of(5) { 800 } else { 250 };
    let (mut at, mut found) = (from, Vec::new());
    while at < end {
        let both = if draw.chance(250) { 2 } else { 1 };
        for _ in 0..both {
            let fault = draw.pick(swarm.kinds());
            found.push(Planned { index: found.len(), at, fault, draw: draw.next() });
        }
        at += if draw.chance(soon) { draw.millis(50, 2_000) } else { draw.millis(3_000, 25_000) };
    }
    found
}

impl World {
    /// Strikes every fault of the schedule that was not dropped, each in its time.
    pub(super) fn torment(&mut self, schedule: Vec<Planned>, dropped: &BTreeSet<usize>) {
        for planned in schedule.into_iter().filter(|planned| !dropped.contains(&planned.index)) {
            let after = planned.at.saturating_sub(self.now);
            self.later(after, move |world| world.strike(planned));
        }
    }

    /// What a fault draws comes from its own seed: dropping one leaves the others as they are.
    fn strike(&mut self, planned: Planned) {
        let mut own = Random::new(planned.draw);
        std::mem::swap(&mut self.random, &mut own);
        let node = self.target();
        self.inject(planned, node);
        std::mem::swap(&mut self.random, &mut own);
    }

    /// The primary more often than another.
    fn target(&mut self) -> usize {
        let primary = self.nodes.iter().position(super::node::Node::is_primary);
        match primary {
            Some(primary) if self.random.chance(550) => primary,
            _ => usize::try_from(self.random.below(self.machines() as u64)).unwrap_or_default(),
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

    fn inject(&mut self, planned: Planned, node: usize) {
        if self.nodes[node].asleep_until > self.now {
            return;
        }
        let (fault, lasts) = (planned.fault, self.lasting());
        self.coverage.faults += 1;
        let line = format!("FAULT {}: {fault:?} for {:.1}s", planned.index, lasts as f64 / 1e9);
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, &line);
        self.last_fault = Some(fault);
        let pair = (self.nodes[node].role(), self.store.leader().map_or("missing", |leader| kind(&leader.state)));
        *self.coverage.struck.entry(pair).or_default().entry(format!("{fault:?}")).or_default() += 1;
        self.hits.entry(format!("{fault:?}")).or_default().0 += 1;
        self.struck.push((planned.index, format!("at {:.3}s {who}: {fault:?} for {:.1}s", self.now as f64 / 1e9, lasts as f64 / 1e9)));
        let until = self.now + lasts;
        match fault {
            Fault::AgentKilled => self.restart_agent_later(node, lasts.min(10 * SECOND)),
            Fault::AgentPaused => {
                self.nodes[node].attended = (until, self.attended_until(node));
                if let Some(agent) = &mut self.nodes[node].agent {
                    agent.paused_until = until;
                }
            }
            Fault::BrittleAgents => self.brittle = (self.random.between(10, 150), until),
            Fault::GuardKilled => self.kill_guard(node, "SIGKILL"),
            Fault::GuardStopped => self.stop_guard(node, lasts),
            Fault::PostmasterKilled => self.kill_postmaster(node),
            Fault::ServerFrozen => {
                if let Some(server) = &mut self.nodes[node].server {
                    server.frozen_until = until;
                }
            }
            Fault::SlowServer => self.nodes[node].slow_server = until,
            Fault::SlowDisk => self.nodes[node].slow_disk = until,
            Fault::SickDisk if self.random.chance(500) => self.nodes[node].full_disk = until,
            Fault::SickDisk => self.nodes[node].sick_disk = until,
            Fault::BadStarts => self.nodes[node].bad_starts = until,
            Fault::DirectoryWiped => self.wipe(node),
            Fault::HostLost => self.lose_host(node, lasts),
            Fault::HostSuspended => self.suspend(node, lasts),
            Fault::HostFrozen => self.freeze(node, lasts),
            Fault::ClockDrifts => self.change_rate(node),
            Fault::HostRolledBack => self.roll_back(node, lasts),
            Fault::FileLost => self.lose_file(node, lasts),
            Fault::HostCopied => self.copy_host(node, lasts),
            Fault::AllHostsLost => {
                for node in 0..self.machines() {
                    let back = self.random.millis(500, 20_000);
                    self.lose_host(node, back);
                }
            }
            Fault::NodeStopped => self.stop_node(node, lasts),
            Fault::PolicyChanged => self.change_policy(node),
            Fault::NamesByHand => self.set_names(node, lasts),
            Fault::StreamsCut => self.cut(node, until, Link::Servers, (true, true)),
            Fault::PeersCut => self.cut(node, until, Link::Agents, (true, true)),
            Fault::OneWayCut => {
                let (out, link) = (self.random.chance(500), self.random.pick(&[Link::Hosts, Link::Servers, Link::Agents]));
                self.cut(node, until, link, (out, !out));
            }
            Fault::Ring => self.form_a_ring(until),
            Fault::SlowStreams => self.network.slow_streams = until,
            Fault::PromotionOrphaned => self.await_promotion(lasts),
            Fault::SyncHeld => self.await_sync(lasts),
            Fault::CopyAmbushed => self.await_copy(lasts),
            Fault::StillUntilCut => self.await_cut(node, lasts),
            Fault::StartQueued => self.queue_start(node),
            Fault::ResumptionMissed => self.await_resumption(lasts),
            _ => self.strike_etcd(fault, node, lasts),
        }
    }

    /// What happens to etcd, or on the way to it.
    fn strike_etcd(&mut self, fault: Fault, node: usize, lasts: u64) {
        let until = self.now + lasts;
        match fault {
            Fault::EtcdCut => (self.network.to_etcd[node], self.network.from_etcd[node]) = (until, until),
            Fault::EtcdDeaf => self.network.to_etcd[node] = until,
            Fault::EtcdMute => self.network.from_etcd[node] = until,
            Fault::Isolated => {
                (self.network.to_etcd[node], self.network.from_etcd[node]) = (until, until);
                self.cut(node, until, Link::Hosts, (true, true));
            }
            Fault::LossyNetwork => self.network.loss = (self.random.between(20, 400), until),
            Fault::SlowEtcd => self.network.slow_etcd = (self.random.between(30, 900), until),
            Fault::WritesQueued => {
                self.network.queued[node] = until.min(self.now + 8 * SECOND);
                if self.random.chance(600) {
                    let soon = self.random.millis(20, 900);
                    self.later_at(node, soon, move |world| world.restart_agent_later(node, 300_000_000));
                }
            }
            Fault::EtcdElection => self.store.away_until = self.now + self.random.millis(200, 2_600),
            Fault::EtcdLost => self.store.away_until = self.now + lasts.min(20 * SECOND),
            Fault::AmbiguousAnswers => self.store.ambiguous = (self.random.between(50, 600), until),
            Fault::WatchStalled => {
                if let Some(agent) = &mut self.nodes[node].agent {
                    agent.client.stalled_until = until.min(self.now + 5 * SECOND);
                }
            }
            Fault::Operator => self.operate(),
            Fault::EtcdFull => self.store.full_until = self.now + lasts.min(20 * SECOND),
            Fault::KeyDeleted => self.delete_key(lasts),
            Fault::WatchGap => self.watch_gap(node),
            Fault::WatchReplays => self.watch_replays(node),
            Fault::EtcdCompacted => self.store.compact(),
            Fault::EtcdRestored => self.restore_etcd(lasts),
            Fault::PrefixWiped => self.wipe_prefix(lasts),
            _ => {}
        }
    }

    /// What goes out of a node to the others, or comes in, is lost.
    pub(super) fn cut(&mut self, node: usize, until: u64, link: Link, (out, into): (bool, bool)) {
        let between = match link {
            Link::Hosts => &mut self.network.between,
            Link::Servers => &mut self.network.servers,
            Link::Agents => &mut self.network.agents,
        };
        if out {
            between[node].fill(until);
        }
        if into {
            between.iter_mut().for_each(|from| from[node] = until);
        }
    }

    /// Each node reaches its two neighbours, and nobody sees the whole.
    fn form_a_ring(&mut self, until: u64) {
        let count = self.members;
        let shift = usize::try_from(self.random.below(count as u64)).unwrap_or_default();
        for one in 0..count {
            for other in 0..count {
                let apart = (one + count - other) % count;
                // Of three nodes two do not see each other.
                let open = if count == 3 { one != other && (one + other + shift) % 3 != 0 } else { apart == 1 || apart == count - 1 };
                if !open {
                    self.network.between[one][other] = until;
                }
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
    pub(super) fn wipe(&mut self, node: usize) {
        let others = (0..self.nodes.len()).any(|other| other != node && self.nodes[other].is_primary());
        // Nobody wipes the last primary's while nobody else has what it had.
        let owner = self.sync_in_force().is_some_and(|sync| sync.primary.node == self.nodes[node].name);
        if others && !owner && self.nodes[node].server.is_none() && self.nodes[node].disk.is_some() {
            (self.nodes[node].disk, self.nodes[node].wiped) = (None, self.now);
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, "data directory is wiped");
        }
    }

    /// An operator chooses the other preset; or other commits to wait for, in the runs where they wait.
    fn change_policy(&mut self, node: usize) {
        let text = self.store.entries.get(&Key::Policy).map(|entry| entry.text.clone());
        let Some(mut record) = text.as_ref().and_then(|text| serde_json::from_str::<PolicyRecord>(text).ok()) else { return };
        record.version += 1;
        if self.options.durability != Durability::Async && self.random.chance(500) {
            let all = [Durability::Quorum, Durability::StrictQuorum, Durability::Auto, Durability::Async];
            let most = u32::try_from(self.members - 1).unwrap_or(1).clamp(1, 2);
            record.policy.durability = self.random.pick(&all);
            record.policy.quorum_standbys = if self.random.chance(500) { most } else { 1 };
            record.policy.depose = self.random.pick(&[Depose::ByQuorum, Depose::AfterLease]);
        }
        record.policy.preset = if record.policy.preset == Preset::Fast { Preset::Default } else { Preset::Fast };
        let when = text.into_iter().map(|text| Compare::Is(Key::Policy, text)).collect();
        let txn = Txn { nonce: self.name("o"), when, then: vec![Write::Put(Key::Policy, to_text(&record))] };
        self.commit(node, 0, &txn);
    }

    /// Somebody sets `synchronous_standby_names` with ALTER SYSTEM, to nobody, to one that is not there, or to another replica; and now and then
    /// takes that back soon.
    fn set_names(&mut self, node: usize, lasts: u64) {
        let other = usize::try_from(self.random.below(self.members as u64)).unwrap_or_default();
        let name = Replica::new(self.nodes[other].name.clone(), self.nodes[other].file.data.clone()).application_name();
        let names = match self.random.below(3) {
            0 => String::new(),
            1 => r#"ANY 1 ("elsewhere")"#.to_owned(),
            _ => format!(r#"ANY 1 ("{name}")"#),
        };
        let undone = self.random.chance(300);
        let Some(server) = self.nodes[node].server.as_mut().filter(|server| server.ready && server.postmaster && server.names != names)
        else {
            return;
        };
        server.by_hand.insert(names.clone());
        self.nodes[node].by_hand = Some(names);
        self.coverage.names_by_hand += 1;
        self.reload_names(node);
        if undone {
            self.later_at(node, lasts.min(3 * SECOND), move |world| {
                world.nodes[node].by_hand = None;
                world.reload_names(node);
            });
        }
    }

    /// What goes wrong now and then by itself, where anything goes wrong at all.
    pub(super) fn has_bad_luck(&mut self, permille: u64) -> bool {
        self.random.chance(permille) && self.options.faults
    }

    /// Everything works again.
    pub(super) fn heal(&mut self) {
        self.trace.line(self.now, "----", "all faults end");
        self.network.heal();
        self.call_off();
        self.store.ambiguous = (0, 0);
        (self.store.away_until, self.store.full_until) = (0, 0);
        self.brittle = (0, 0);
        self.call_operator(0);
        let now = self.now;
        for node in 0..self.machines() {
            self.continue_guard(node);
            let of = &mut self.nodes[node];
            (of.slow_disk, of.sick_disk, of.full_disk, of.bad_starts, of.slow_server) = (0, 0, 0, 0, 0);
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
