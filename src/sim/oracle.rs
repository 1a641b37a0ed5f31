//! What must never happen, and what must happen in the end (lessons.md 4.4).

mod lost;

use super::world::World;
use crate::{
    decide::{
        decision::{Decision, ReasonKind},
        snapshot::{Snapshot, is_held},
    },
    model::{
        key::{Key, Txn, Write},
        moment::Moment,
        node::{DataIncarnation, NodeName, Nonce},
        record::{LeaderRecord, LeaderState, SyncRecord},
        term::Term,
        timeline::TimelineId,
    },
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The very same is asked for at most so often within a second: what has been done is not done again until it shows.
const MOST_A_SECOND: u32 = 12;

/// Within this time one agent writes at most so often to etcd (O17): its renewals, and each step of a claim and of a change of names.
const PACE: (u64, usize) = (5_000_000_000, 60);

/// A commit that a client was told of.
#[derive(Clone)]
pub(super) struct Ack {
    /// Branch, and where its record ends.
    pub(super) row: (usize, u64),
    pub(super) at: u64,
    pub(super) lost_in: Option<Term>,
    /// `sync` promised then that it would not be lost.
    pub(super) lossless: bool,
}

/// One write of `leader` that the store has taken.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) record: LeaderRecord,
    pub(super) at: u64,
}

/// What is known from outside.
#[derive(Default)]
pub(super) struct Oracle {
    pub(super) violations: Vec<String>,
    pub(super) alarms: BTreeMap<String, u64>,
    pub(super) acks: Vec<Ack>,
    /// When each write of `leader` was sent, on its sender's `CLOCK_BOOTTIME`.
    pub(super) sends: BTreeMap<Nonce, (usize, Moment)>,
    /// Until when the writes that each node has sent would let it act, if they were taken.
    pub(super) longest: BTreeMap<usize, Moment>,
    /// The newest write of `leader` of each term.
    pub(super) newest: BTreeMap<Term, Written>,
    /// The newest `sync` of each term: what an etcd that went back no longer shows.
    pub(super) syncs: BTreeMap<Term, SyncRecord>,
    /// The branches that were made by a promotion, and in which term.
    made: BTreeMap<usize, Term>,
    /// By timeline id: who made a branch with it.
    ids: BTreeMap<TimelineId, usize>,
    /// The newest word that each node has given to a holder, whatever has become of its disk since.
    pub(super) words: BTreeMap<NodeName, super::peers::Word>,
    /// When a node last claimed by an operator's word that accepts the loss of what was acknowledged before.
    pub(super) accepted_at: Option<u64>,
    /// By node: the newest promise that it published, up to where it had WAL then, and in which life of its data.
    pub(super) promised: BTreeMap<usize, (Term, u64, DataIncarnation)>,
    /// By node and life of its data: the newest record that it has confirmed to a primary, as its branch and its end.
    pub(super) confirmed: BTreeMap<(usize, DataIncarnation), (usize, u64)>,
    pub(super) claims_at: Vec<u64>,
    /// Requests of operators that were done.
    pub(super) done: BTreeSet<Nonce>,
    /// By node and run of its agent: when etcd took its newest writes.
    pub(super) paces: BTreeMap<(usize, u64), VecDeque<u64>>,
    pub(super) serving: Option<(NodeName, Term)>,
}

impl World {
    pub(super) fn violation(&mut self, oracle: &str, text: String) {
        let line = format!("{oracle}: {text}");
        self.trace.line(self.now, "!!!!", &line);
        self.oracle.violations.push(format!("at {:.3}s {line}", self.now as f64 / 1e9));
    }

    /// The store has taken a write of `leader`.
    pub(super) fn judge_leader(&mut self, writer: usize, before: Option<&LeaderRecord>, record: &LeaderRecord) {
        if let Some(before) = before
            && record.term < before.term
        {
            self.violation("O8", format!("leader goes back from term {} to {}", before.term, record.term));
        }
        self.judge_pause(before, record);
        let given_up = record.state.is_given_up();
        if given_up && self.nodes[writer].is_primary() && self.nodes[writer].name == record.holder.node {
            self.violation("O11", format!("{} gives term {} up while its PostgreSQL can acknowledge", record.holder.node, record.term));
        }
        if record.state == LeaderState::Claimed && before.is_none_or(|before| before.term != record.term) {
            self.judge_claimant(record);
            self.judge_doubt(record);
            self.judge_word(writer, record.term, true);
            let early = |before: &LeaderRecord| {
                let written = self.oracle.newest.get(&before.term).map_or(0, |written| written.at);
                before.state == LeaderState::Serving && self.now.saturating_sub(written) < before.wait.as_nanos() * 9 / 10
            };
            self.coverage.deposed += u64::from(before.is_some_and(early));
            self.oracle.claims_at.push(self.now);
        }
        if record.state == LeaderState::Serving {
            let (node, term) = (record.holder.node.clone(), record.term);
            match &self.oracle.serving {
                Some((former, _)) if *former != node => self.coverage.leaderships += 1,
                _ => {}
            }
            self.oracle.serving = Some((node, term));
        }
        self.oracle.newest.insert(record.term, Written { record: record.clone(), at: self.now });
    }

    /// Only the owner, and whom `sync` names, may claim (protocol 1.4, *taker*).
    fn judge_claimant(&mut self, record: &LeaderRecord) {
        let Some(sync) = self.store.sync() else { return };
        let claimant = record.holder.replica();
        let wanted = self.oracle.accepted_at == Some(self.now);
        if sync.primary != claimant && !sync.electable.contains(&claimant) && !wanted {
            let (node, term) = (&record.holder.node, record.term);
            self.violation("O4", format!("{node} has claimed term {term}, and sync does not name it"));
        }
    }

    /// Until when this node may act by what the store has taken; `None` where the store never gave it that.
    pub(super) fn authority(&self, node: usize) -> Option<(Term, Moment)> {
        let name = &self.nodes[node].name;
        // What an operator made anew in its name, or another node's swap, gives it nothing, and takes nothing back that it was given.
        let own = |record: &LeaderRecord| self.oracle.sends.get(&record.nonce).filter(|(sender, _)| *sender == node);
        let written = self.oracle.newest.values().rev().map(|written| &written.record);
        let (record, (_, sent)) = written.filter(|record| record.holder.node == *name).find_map(|record| Some((record, own(record)?)))?;
        is_held(record).then(|| (record.term, sent.plus(record.hold)))
    }

    /// A write of `leader` is about to leave a node.
    pub(super) fn note_send(&mut self, node: usize, txn: &Txn, at: Moment) {
        let written = txn.then.iter().find_map(|write| match write {
            Write::Put(Key::Leader, text) => serde_json::from_str::<LeaderRecord>(text).ok(),
            _ => None,
        });
        if let Some(record) = written {
            let until = at.plus(record.hold);
            self.oracle.longest.entry(node).and_modify(|longest| *longest = until.max(*longest)).or_insert(until);
        }
    }

    /// Peers are about to be asked: what they say may let this node act until then.
    pub(super) fn note_ask(&mut self, node: usize, until: Moment) {
        self.oracle.longest.entry(node).and_modify(|longest| *longest = until.max(*longest)).or_insert(until);
    }

    /// etcd is about to take a write of an agent (O17).
    pub(super) fn judge_pace(&mut self, node: usize, run: u64) {
        let (within, most) = PACE;
        let now = self.now;
        let pace = self.oracle.paces.entry((node, run)).or_default();
        pace.push_back(now);
        pace.retain(|at| at + within > now);
        let count = pace.len();
        self.coverage.most_writes = self.coverage.most_writes.max(count as u64);
        // Nobody's agent: an operator.
        if run != 0 && count > most {
            let text = format!("{} has written {count} times to etcd within 5s", self.nodes[node].who());
            self.violation("O17", text);
        }
    }

    /// O9: writes are sent to whom the store, or his peers, let act. A paused cluster has no lease.
    fn judge_routing(&mut self, node: usize, snapshot: &Snapshot, decision: &Decision) {
        let Some(writes) = decision.routing.writes.as_ref().filter(|writes| writes.until > snapshot.now.boot) else { return };
        if snapshot.pause().is_none() && !self.may_act(node, writes.term) {
            let text = format!("{} takes writes in term {} without a valid claim", self.nodes[node].name, writes.term);
            self.violation("O9", text);
        }
    }

    /// Whether the store's word or the peers' lets it act. Its own clock may have stood still while those ran out: no timer inside a machine can
    /// fence that (protocol 1.1).
    fn may_act(&self, node: usize, term: Term) -> bool {
        let now = self.nodes[node].clock.boot(self.now);
        let valid = self.authority(node).is_some_and(|(of, until)| of == term && until > now);
        valid || self.kept_by_peers(node, term) || self.nodes[node].is_excused(self.now)
    }

    /// I4, as far as `async` asks it.
    pub(super) fn judge_authority(&mut self, node: usize, term: Term, what: &str) {
        let name = self.nodes[node].who();
        if !self.may_act(node, term) {
            self.violation("O4", format!("{name}: {what} in term {term} without a valid claim"));
        }
        // The claim names this very guard: one that died took its authority along.
        let holder = self.oracle.newest.get(&term).map(|written| &written.record.holder);
        let guard = self.nodes[node].guard.as_ref().map(|guard| &guard.incarnation);
        if holder.is_some_and(|holder| Some(&holder.guard) != guard) {
            self.violation("O4", format!("{name}: {what} in term {term} that was claimed under another guard"));
        }
        let written = self.oracle.syncs.range(term..).next().is_some();
        if !written {
            self.violation("O4", format!("{name}: {what} in term {term} before sync was written for it"));
        }
        let noted = self.nodes[node].file.claimed.is_some_and(|claimed| claimed >= term);
        if !noted {
            self.violation("O4", format!("{name}: {what} in term {term} that its file does not know"));
        }
    }

    /// A PostgreSQL has come out of recovery: no other may be able to acknowledge.
    ///
    /// In the quorum modes one that was deposed may still be up until its deadline, and its commits wait (protocol I1'): what it acknowledges
    /// is judged.
    pub(super) fn judge_primary(&mut self, node: usize) {
        let others: Vec<String> = (0..self.nodes.len())
            .filter(|other| *other != node && self.can_acknowledge(*other) && !self.waits(*other) && !self.excused(*other, node))
            .map(|other| self.nodes[other].who())
            .collect();
        if !others.is_empty() {
            let name = self.nodes[node].who();
            self.violation("O1", format!("{name} accepts writes while {} can still acknowledge", others.join(", ")));
        }
    }

    /// A client is told of its commit, which is `row`: nobody else may be able to do that.
    pub(super) fn judge_ack(&mut self, node: usize, row: (usize, u64)) {
        // One that was deposed is up and acknowledges nothing: then it is the newer one that does. Or it tells of what was confirmed before it was
        // deposed: that the newer one has.
        let made = |world: &Self, of: usize| world.nodes[of].disk.as_ref().map(|data| world.wal.branches[data.branch].tli);
        let older = |world: &Self, other: usize| world.waits(other) && made(world, other) < made(world, node);
        let has = |world: &Self, of: usize| world.nodes[of].disk.as_ref().is_some_and(|data| world.wal.holds(data.branch, data.end, row));
        let newer = |world: &Self, other: usize| world.waits(node) && made(world, other) > made(world, node) && has(world, other);
        let harmless = |world: &Self, other: usize| older(world, other) || newer(world, other);
        let other = (0..self.nodes.len())
            .find(|other| *other != node && self.can_acknowledge(*other) && !harmless(self, *other) && !self.excused(*other, node));
        if let Some(other) = other {
            let text = format!("{} acknowledges a commit while {} can", self.nodes[node].name, self.nodes[other].name);
            self.violation("O1", text);
        }
    }

    /// Whether one of the two was frozen and waits for nobody: no timer inside a machine can fence that (protocol 1.1).
    fn excused(&self, one: usize, other: usize) -> bool {
        [one, other].into_iter().any(|node| self.nodes[node].is_excused(self.now) && !self.waits(node))
    }

    /// Whether commits of this server wait for somebody, or would if nobody had set that by hand (safety.md).
    pub(super) fn waits(&self, node: usize) -> bool {
        let would = self.is_lossless();
        self.nodes[node].server.as_ref().is_some_and(|server| server.defined || (server.flag_by_hand && would))
    }

    /// A sleeping host acknowledges nothing, and its deadline is the first thing that it meets when it wakes.
    fn can_acknowledge(&self, node: usize) -> bool {
        let of = &self.nodes[node];
        let wakes = of.clock.boot(of.asleep_until);
        let asleep = of.asleep_until > self.now;
        if asleep && of.server.as_ref().is_some_and(|server| !server.postmaster) {
            return false;
        }
        let fenced = asleep && of.guard.as_ref().is_some_and(|guard| guard.armed.is_some_and(|armed| armed.until <= wakes));
        of.is_primary() && !fenced
    }

    /// Whatever names any process of a primary acts on, who may acknowledge by them meets whoever may elect (protocol I2): as many as one
    /// walsender's names ask for, of all who are listed by the names of any.
    pub(super) fn judge_names(&mut self, node: usize) {
        let Some(sync) = self.sync_in_force().filter(|sync| sync.is_lossless() && sync.primary.node == self.nodes[node].name) else {
            return;
        };
        let Some(server) = self.nodes[node].server.as_ref().filter(|server| server.primary && server.postmaster) else { return };
        let record = sync.quorum();
        if record.is_nobody() {
            return;
        }
        let voters: std::collections::BTreeSet<String> =
            record.members().iter().map(crate::model::node::Replica::application_name).collect();
        // What is set by hand is outside (safety.md).
        let mut texts: Vec<&str> = server.views().filter(|text| !server.by_hand.contains(*text)).collect();
        if !server.defined && !server.flag_by_hand {
            texts.push("");
        }
        let views: Vec<_> = texts.iter().map(|text| super::server::listed(text)).collect();
        let count: std::collections::BTreeSet<&String> = views.iter().flatten().flat_map(|view| &view.names).collect();
        let strangers = count.into_iter().filter(|name| !voters.contains(*name)).count();
        if views.iter().any(|view| view.as_ref().map_or(0, |view| view.k) < record.k() as usize + strangers) {
            let text = format!("{} may acknowledge by {texts:?} while {} of {voters:?} elect", self.nodes[node].name, record.electors());
            self.violation("I2", text);
        }
    }

    /// Clients are sent to a primary: what they read there is on its voters too (protocol 1.7 step 6, *read barrier*).
    fn judge_reads(&mut self, node: usize, decision: &Decision) {
        let (Some(sync), Some(data)) = (self.sync_in_force(), &self.nodes[node].disk) else { return };
        let record = sync.quorum();
        let Some(server) = &self.nodes[node].server else { return };
        if decision.routing.writes.is_none() || !server.primary || server.was_routed || sync.primary.node != self.nodes[node].name {
            return;
        }
        let row = (data.branch, server.came_up_with);
        let has = |voter: &&crate::model::node::Replica| {
            let mut there = self.nodes.iter().filter(|of| of.name == voter.node);
            // One that has confirmed may have lost it a moment later.
            there.any(|of| of.disk.as_ref().map_or(of.is_just_wiped(self.now), |disk| self.wal.holds(disk.branch, disk.end, row)))
        };
        let count = record.members().iter().filter(has).count();
        if let Some(server) = &mut self.nodes[node].server {
            server.was_routed = true;
        }
        if count < record.k() as usize {
            let text = format!("{} shows clients what {count} of its voters have, and {} have to", self.nodes[node].name, record.k());
            self.violation("O15", text);
        }
    }

    /// Whether etcd went back in `async`, where nobody who has seen more has to agree: a node that was off meanwhile cannot know (safety.md).
    fn may_mislead(&self) -> bool {
        self.store.before.is_some() && !self.is_lossless()
    }

    /// Whether nothing acknowledged may be lost, by the `sync` in force.
    pub(in crate::sim) fn is_lossless(&self) -> bool {
        self.sync_in_force().is_some_and(|sync| sync.is_lossless())
    }

    /// A promotion has made a branch.
    pub(super) fn judge_branch(&mut self, node: usize, branch: usize) {
        let tli = self.wal.branches[branch].tli;
        let name = self.nodes[node].who();
        let term = self.nodes[node].guard.as_ref().map_or(Term::ZERO, |guard| guard.term);
        let misled = self.may_mislead();
        if let Some(other) = self.oracle.ids.insert(tli, branch).filter(|_| !misled) {
            self.violation("O5", format!("{name} makes a second timeline {tli} (branches {other} and {branch})"));
        }
        // Frozen between its claim and its promotion: the id may have been given up meanwhile.
        if !self.ledger_reserves(tli, node) && !self.nodes[node].is_excused(self.now) {
            let ledger = self.ledger(tli).map(|entry| format!("{:?} for {}", entry.state, entry.owner.node));
            self.violation("O5", format!("{name} came up on timeline {tli}, for which the ledger has {ledger:?}"));
        }
        let newer = |(of, made): &(&usize, &Term)| self.wal.branches[**of].tli > tli && **made < term;
        if let Some((of, made)) = self.oracle.made.iter().find(newer).filter(|_| !misled) {
            let text = format!("{name} makes timeline {tli} in term {term}, and {} is of term {made}", self.wal.branches[*of].tli);
            self.violation("O5", text);
        }
        self.oracle.made.insert(branch, term);
        if !self.is_overtaken(node, term) {
            // A loss is accepted for this promotion, and for no later one.
            let accepted = self.oracle.accepted_at.take();
            self.mark_lost(branch, u64::MAX, term, accepted);
        }
    }

    /// Every decision: no broken invariant, no unexplained alarm, no silence, no spinning.
    pub(super) fn judge_decision(&mut self, node: usize, run: u64, snapshot: &Snapshot, decision: &Decision) {
        for reason in &decision.reasons {
            if reason.kind == ReasonKind::Alarm {
                let changed = self.nodes[node]
                    .agent_of(run)
                    .and_then(|agent| agent.last.as_ref())
                    .is_none_or(|last| last.reasons.iter().all(|old| old.id != reason.id));
                if changed {
                    *self.oracle.alarms.entry(reason.id.clone()).or_default() += 1;
                    let who = self.nodes[node].who();
                    self.trace.line(self.now, &who, &format!("ALARM {}: {}", reason.id, reason.text));
                }
                if reason.id == "invariant" {
                    let name = self.nodes[node].who();
                    self.violation("invariant", format!("{name}: {}", reason.text));
                }
            }
        }
        if self.options.trace {
            let before = self.nodes[node].agent_of(run).and_then(|agent| agent.last.as_ref()).map(ids);
            let after = ids(decision);
            if before.as_ref() != Some(&after) {
                let who = self.nodes[node].who();
                let texts: Vec<String> = decision.reasons.iter().map(|reason| reason.text.clone()).collect();
                self.trace.line(self.now, &who, &format!("  {}", texts.join(" · ")));
            }
        }
        self.judge_reads(node, decision);
        self.judge_hands_off(node, snapshot, decision);
        self.judge_routing(node, snapshot, decision);
        let explained = Self::explains(decision, snapshot);
        let at_once = decision.wake_at <= snapshot.now.boot && decision.actions.is_empty();
        let now = self.now;
        let (name, woke) = (self.nodes[node].who(), self.nodes[node].asleep_until);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        // Whoever sleeps says nothing.
        agent.mute_since = if explained { None } else { Some(agent.mute_since.map_or(now, |since| since.max(woke.min(now)))) };
        agent.spins = if at_once { agent.spins + 1 } else { 0 };
        if !decision.actions.is_empty() {
            let again = agent.asked.0 == decision.actions && now - agent.asked.1 < 1_000_000_000;
            agent.asked = if again {
                (std::mem::take(&mut agent.asked.0), agent.asked.1, agent.asked.2 + 1)
            } else {
                (decision.actions.clone(), now, 1)
            };
        }
        let asked = if decision.actions.is_empty() { 0 } else { agent.asked.2 };
        let (mute, spins) = (agent.mute_since.is_some_and(|since| now - since > 5_000_000_000), agent.spins);
        if mute {
            self.violation("O18", format!("{name} neither serves nor acts for 5s and gives no reason"));
        }
        if asked > MOST_A_SECOND {
            let actions: Vec<String> = decision.actions.iter().map(ToString::to_string).collect();
            self.violation("O18", format!("{name} asks for the same {asked} times within a second: {}", actions.join(" · ")));
        }
        if spins > 2_000 {
            let reasons = ids(decision);
            self.violation("O18", format!("{name} decides without a pause, and does nothing: {reasons}"));
        }
    }
}

fn ids(decision: &Decision) -> String {
    let ids: Vec<&str> = decision.reasons.iter().map(|reason| reason.id.as_str()).collect();
    ids.join(" ")
}
