//! Operators who pause, resume, fail over and acknowledge; and what must hold of a request (oracle O13) and of a pause (oracle O14).
//!
//! What an operator asserts is true: that a holder is dead is said only once the guard that the record names is gone, and PostgreSQL with it.

use super::{SECOND, node::Node, server::Server, store::RECOVERED, world::World};
use crate::{
    decide::{
        decision::{Action, Decision},
        snapshot::Snapshot,
    },
    model::{
        instance::StartAs,
        key::{Compare, Key, Txn, Write},
        moment::{Moment, Span},
        policy::LONGEST_HOLD,
        record::{IntentRecord, LeaderRecord, LeaderState, MemberRecord, PolicyRecord, VERSION, to_text},
        request::Request,
    },
};

impl World {
    /// An operator asks for something, sensible or not.
    pub(super) fn operate(&mut self) {
        let Some(leader) = self.store.leader() else { return };
        let node = usize::try_from(self.random.below(self.members as u64)).unwrap_or_default();
        let to = self.nodes[node].name.clone();
        let dead = self.is_surely_dead(&leader);
        let accept_loss = self.random.chance(250);
        let failover = Request::Failover { to: to.clone(), accept_loss, assert_dead: dead };
        let paused = matches!(leader.state, LeaderState::Paused(_));
        let request = match self.random.below(10) {
            0..=4 if paused => Request::Resume { assert_dead: dead },
            0..=4 => {
                let until = self.random.chance(300).then(|| Span::from_millis(self.random.between(500, 30_000)));
                self.resume_later();
                Request::Pause { reason: "work".to_owned(), until }
            }
            5..=7 => failover,
            8 if self.random.chance(500) => Request::Acknowledge,
            8 => Request::Remove { node: to },
            _ => Request::Pause { reason: "again".to_owned(), until: None },
        };
        // Now and then one who saw an older state.
        let term = if self.random.chance(50) { crate::model::term::Term::new(leader.term.get().saturating_sub(1)) } else { leader.term };
        self.request(request, term);
    }

    /// Nobody pauses for good.
    fn resume_later(&mut self) {
        let after = self.random.millis(500, 40_000);
        self.later(after, |world| {
            if let Some(leader) = world.store.leader().filter(|leader| matches!(leader.state, LeaderState::Paused(_))) {
                let assert_dead = world.is_surely_dead(&leader);
                world.request(Request::Resume { assert_dead }, leader.term);
                world.resume_later();
            }
        });
    }

    /// After all faults: what only an operator can end is ended.
    pub(super) fn tend(&mut self) {
        if let Some(leader) = self.store.leader() {
            let stopped = leader.failovers.as_ref().is_some_and(|failovers| failovers.stopped);
            if matches!(leader.state, LeaderState::Paused(_)) {
                let assert_dead = self.is_surely_dead(&leader);
                self.request(Request::Resume { assert_dead }, leader.term);
            } else if stopped {
                self.request(Request::Acknowledge, leader.term);
            }
        }
        if self.store.policy().is_none() && self.store.before.is_none() {
            // Nobody is left who has read it: `config apply`.
            let record = PolicyRecord { v: VERSION, version: 1, policy: self.policy.clone() };
            let txn = Txn { nonce: self.name("o"), when: Vec::new(), then: vec![Write::Put(Key::Policy, to_text(&record))] };
            self.commit(0, 0, &txn);
        }
        for node in &mut self.nodes {
            let last = node.agent.as_ref().and_then(|agent| agent.last.as_ref());
            // It has said that its data can only be replaced where another copy is, or where there is room.
            node.cramped &= last.is_none_or(|last| last.reasons.iter().all(|reason| reason.id != "needs-copy"));
        }
        self.later(SECOND, Self::tend);
    }

    /// What still waits is withdrawn.
    pub(super) fn withdraw(&mut self) {
        let txn = Txn { nonce: self.name("o"), when: Vec::new(), then: vec![Write::Delete(Key::Intent)] };
        self.commit(0, 0, &txn);
    }

    /// As the API does it: in one transaction, where nothing else of this term waits.
    pub(super) fn request(&mut self, request: Request, term: crate::model::term::Term) {
        let text = self.store.entries.get(&Key::Intent).map(|entry| entry.text.clone());
        let waits = text.as_ref().and_then(|text| serde_json::from_str::<IntentRecord>(text).ok());
        let acts = self.store.leader().is_some_and(|leader| {
            let member = self.store.entries.get(&Key::Member(leader.holder.node.clone())).map(|entry| &entry.text);
            let member = member.and_then(|text| serde_json::from_str::<MemberRecord>(text).ok());
            member.is_some_and(|member| member.acts_in == Some(leader.term))
        });
        if waits.is_some_and(|waits| waits.term == term && !request.replaces(&waits.request, acts)) {
            return;
        }
        self.trace.line(self.now, "oper", &format!("asks for {request:?} in term {term}"));
        self.coverage.requests += 1;
        let record = IntentRecord { v: VERSION, id: self.name("o"), request, term, actor: "op".to_owned(), at: String::new() };
        let when = vec![text.map_or(Compare::Missing(Key::Intent), |text| Compare::Is(Key::Intent, text))];
        let txn = Txn { nonce: record.id.clone(), when, then: vec![Write::Put(Key::Intent, to_text(&record))] };
        self.commit(0, 0, &txn);
    }

    fn is_surely_dead(&self, leader: &LeaderRecord) -> bool {
        let guarded = |node: &Node| node.guard.as_ref().is_some_and(|guard| guard.incarnation == leader.holder.guard);
        let standby = |server: &Server| server.postmaster && !server.primary && !server.promoting && server.start == StartAs::Standby;
        let mut holders = self.nodes.iter().filter(|node| node.present && node.name == leader.holder.node);
        holders.all(|node| !guarded(node) && node.server.as_ref().is_none_or(standby))
    }

    /// Whether the record that stands in etcd is paused, and names this node as its holder.
    pub(super) fn is_paused_for(&self, node: usize) -> bool {
        let held = |leader: &LeaderRecord| matches!(&leader.state, LeaderState::Paused(pause) if pause.vacant.is_none());
        // An etcd that went back may show it no more, and nobody believes that one. What `etcd recover` writes for the primary that runs
        // nobody but that one may claim (protocol 1.2); without a deadline it runs until it sees it, whoever pauses the vacant record first.
        let recovered = |record: &&LeaderRecord| record.holder.guard.as_str() == RECOVERED;
        let newest = self.oracle.newest.values().rev().map(|written| &written.record).find(|record| !recovered(record));
        // A copy of the holder has not paused.
        let other = |leader: &LeaderRecord| self.oracle.sends.get(&leader.nonce).is_some_and(|(sender, _)| *sender != node);
        let named = |leader: &LeaderRecord| leader.holder.node == self.nodes[node].name;
        newest.is_some_and(|leader| held(leader) && named(leader) && !(self.has_twin(node) && other(leader)))
    }

    /// Whether there is another machine under the same name.
    pub(super) fn has_twin(&self, node: usize) -> bool {
        (0..self.machines()).any(|other| other != node && self.nodes[other].name == self.nodes[node].name)
    }

    /// A deadline that is armed to resume: the record gives no time, and takes none.
    pub(super) fn arms_to_resume(&self, node: usize, until: Moment) -> bool {
        self.is_paused_for(node) && until <= self.nodes[node].clock.boot(self.now).plus(LONGEST_HOLD)
    }

    /// The transaction that is about to be taken: a claim that an operator wanted, with a loss.
    pub(super) fn note_accepted(&mut self, txn: &Txn) {
        let entry = self.store.entries.get(&Key::Intent).filter(|_| txn.then.contains(&Write::Delete(Key::Intent)));
        let intent = entry.and_then(|entry| serde_json::from_str::<IntentRecord>(&entry.text).ok());
        let claims = txn.then.iter().any(|write| matches!(write, Write::Put(Key::Term, _)));
        if intent.is_some_and(|intent| claims && matches!(intent.request, Request::Failover { accept_loss: true, .. })) {
            self.oracle.accepted_at = Some(self.now);
        }
    }

    /// The transaction that is about to be taken: what it does for a request is done in the term that was seen, and once (O13).
    pub(super) fn judge_request(&mut self, node: usize, txn: &Txn) {
        // Whoever does nothing else withdraws or refuses it.
        if txn.then.len() < 2 || !txn.then.contains(&Write::Delete(Key::Intent)) {
            return;
        }
        let name = self.nodes[node].who();
        let entry = self.store.entries.get(&Key::Intent).map(|entry| &entry.text);
        let Some(asked) = entry.and_then(|text| serde_json::from_str::<IntentRecord>(text).ok()) else {
            self.violation("O13", format!("{name} does what nobody asks for"));
            return;
        };
        let term = self.store.leader().map(|leader| leader.term);
        if term != Some(asked.term) {
            self.violation("O13", format!("{name} does in term {term:?} what was asked in term {}: {:?}", asked.term, asked.request));
        }
        self.coverage.requests_done += 1;
        // An etcd that was restored may show one again that was done.
        if !self.oracle.done.insert(asked.id.clone()) && self.store.before.is_none() {
            self.violation("O13", format!("{name} does {:?} a second time", asked.request));
        }
    }

    /// A paused record is followed by nobody's claim (O14).
    pub(super) fn judge_pause(&mut self, before: Option<&LeaderRecord>, record: &LeaderRecord) {
        let paused = before.is_some_and(|before| matches!(before.state, LeaderState::Paused(_)));
        if paused && record.state == LeaderState::Claimed {
            self.violation("O14", format!("{} claims term {} over a pause", record.holder.node, record.term));
        }
        if matches!(record.state, LeaderState::Paused(_)) && !paused {
            self.coverage.pauses += 1;
        }
        if paused && record.state == LeaderState::Serving {
            self.coverage.resumptions += 1;
            if let Some(node) = self.nodes.iter().position(|node| node.name == record.holder.node) {
                self.after_resumption(node);
            }
        }
    }

    /// A node that knows of the pause does nothing to PostgreSQL (O14).
    pub(super) fn judge_hands_off(&mut self, node: usize, snapshot: &Snapshot, decision: &Decision) {
        if snapshot.pause().is_none() {
            return;
        }
        let asked = snapshot.stopping || snapshot.etcd.records.intent.is_some();
        let fenced = snapshot.guard().is_some_and(|guard| guard.armed.is_some()) || !snapshot.holds();
        let bad = decision.actions.iter().find(|action| match action {
            Action::Start { .. } | Action::Promote { .. } | Action::Clone { .. } | Action::Rewind { .. } | Action::InitDb => true,
            Action::DropSlot(_) => true,
            Action::Stop { .. } | Action::Kill => !asked && !fenced,
            _ => false,
        });
        if let Some(bad) = bad {
            let text = format!("{} would {bad} while the cluster is paused", self.nodes[node].who());
            self.violation("O14", text);
        }
    }
}
