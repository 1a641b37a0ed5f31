//! Questions between agents while etcd is silent (protocol 1.11), on a network that loses and delays them.

use super::{Mutation, world::World};
use crate::{
    agent::event::Event,
    decide::{answer_to, decision::Decision, decision::Task, snapshot::Snapshot},
    model::{
        failsafe::{Answer, Ask},
        moment::Moment,
        node::{NodeName, Replica},
        term::Term,
    },
};
use std::collections::BTreeMap;

/// How long one is waited for.
const LIMIT: u64 = 1_200_000_000;

/// After so long all are asked anew.
const AGAIN: u64 = 400_000_000;

/// One question to one peer.
pub(super) struct Question {
    from: (usize, u64),
    to: usize,
    /// Which agent's run has it; `None` on its way.
    run: Option<u64>,
    ask: Ask,
    sent: Moment,
    /// When, by no clock of a node.
    at: u64,
}

/// "For so long this node claims nothing and promises nobody above this term": as the world knows it, which forgets nothing.
pub(super) struct Word {
    pub(super) term: Term,
    pub(super) holder: NodeName,
    /// When its file said so.
    pub(super) at: u64,
    /// When it is over, by the quickest clock that the node may have.
    pub(super) until: u64,
}

impl World {
    pub(super) fn ask_peers(&mut self, node: usize, run: u64, ask: &Ask, of: &BTreeMap<NodeName, String>) {
        let sent = self.nodes[node].clock.boot(self.now);
        self.note_ask(node, sent.plus(ask.hold));
        self.coverage.asked += 1;
        let peers: Vec<usize> =
            (0..self.machines()).filter(|index| of.get(&self.nodes[*index].name) == Some(&self.nodes[*index].host)).collect();
        for to in peers {
            self.questions.push(Question { from: (node, run), to, run: None, ask: ask.clone(), sent, at: self.now });
            let takes = self.random.tailed(1, 4);
            if self.lost() {
                continue;
            }
            let nonce = ask.nonce.clone();
            self.later_at(to, takes, move |world| {
                let arrives = world.network.tells(node, to, world.now);
                let Some(heard) = world.nodes[to].agent_run().filter(|_| arrives) else { return };
                let at = world.nodes[to].clock.boot(world.now);
                let Some(question) = world.questions.iter_mut().find(|question| question.to == to && question.ask.nonce == nonce) else {
                    return;
                };
                question.run = Some(heard);
                let asked = crate::model::failsafe::Asked { ask: question.ask.clone(), at };
                world.deliver(to, heard, Event::Asked(asked));
            });
        }
        let nonce = ask.nonce.clone();
        let late = nonce.clone();
        self.later_at(node, LIMIT, move |world| world.questions.retain(|question| question.ask.nonce != late));
        self.later_at(node, AGAIN, move |world| {
            if world.questions.iter().any(|question| question.ask.nonce == nonce) {
                world.deliver(node, run, Event::Done { task: Task::AskPeers, outcome: Err("a peer has not answered".to_owned()) });
            }
        });
        if self.questions.iter().all(|question| question.ask.nonce != ask.nonce) {
            self.deliver(node, run, Event::Done { task: Task::AskPeers, outcome: Ok(()) });
        }
    }

    /// A decision was taken: what it says to questions leaves the node.
    pub(super) fn answer_peers(&mut self, node: usize, run: u64, snapshot: &Snapshot, decision: &Decision) {
        let open = self.questions.iter().filter(|question| question.to == node && question.run == Some(run));
        let answers: Vec<Answer> = open.filter_map(|question| answer_to(snapshot, decision, &question.ask.nonce)).collect();
        for answer in answers {
            let Some(index) = self.questions.iter().position(|question| question.to == node && question.ask.nonce == answer.nonce) else {
                continue;
            };
            // It is answered once.
            self.questions[index].run = None;
            let (from, asker) = self.questions[index].from;
            let takes = self.random.tailed(1, 4);
            if self.lost() {
                continue;
            }
            self.later_at(from, takes, move |world| {
                if world.network.tells(node, from, world.now) {
                    world.hear_answer(from, asker, node, answer);
                }
            });
        }
    }

    fn hear_answer(&mut self, node: usize, run: u64, peer: usize, answer: Answer) {
        let Some(index) = self.questions.iter().position(|question| question.to == peer && question.ask.nonce == answer.nonce) else {
            return;
        };
        let Question { ask, sent, at, .. } = self.questions.remove(index);
        let late = self.options.mutation == Mutation::AcksFromReceipt;
        let sent = if late { self.nodes[node].clock.boot(self.now) } else { sent };
        self.coverage.acked += u64::from(answer.verdict == crate::model::failsafe::Verdict::Acked);
        let nonce = ask.nonce.clone();
        self.deliver(node, run, Event::Answered { answer, ask, sent });
        if self.now < at + AGAIN && self.questions.iter().all(|question| question.ask.nonce != nonce) {
            self.deliver(node, run, Event::Done { task: Task::AskPeers, outcome: Ok(()) });
        }
    }

    /// Whether the peers of a holder keep its term for it. A word that a disk has lost was given all the same: whether its node keeps it
    /// is asked of what that node does.
    pub(super) fn kept_by_peers(&self, node: usize, term: Term) -> bool {
        let Some(sync) = self.oracle.syncs.get(&term).filter(|sync| sync.primary.node == self.nodes[node].name) else {
            return false;
        };
        // Whose file is lost begins another life of its data, and neither claims nor votes with that.
        let present = self.nodes.iter().filter(|of| of.present);
        let lives = |replica: &Replica| present.clone().any(|of| of.name == replica.node && of.file_made && of.file.data == replica.data);
        let bound = |replica: &&Replica| {
            let word = self.has_given(&replica.node).is_some_and(|(of, holder)| of == term && holder == self.nodes[node].name);
            word || !lives(replica)
        };
        match sync.is_lossless() {
            true => sync.voters.iter().filter(bound).count() >= sync.quorum().k() as usize,
            false => sync.electable.iter().all(|replica| bound(&replica)),
        }
    }

    /// Whether `sync` names this node as the primary, and nobody beside it who could lead or vote.
    pub(super) fn has_nobody_to_ask(&self, node: usize) -> bool {
        let name = &self.nodes[node].name;
        let sync = self.oracle.syncs.values().rev().find(|sync| sync.primary.node == *name);
        sync.is_some_and(|sync| sync.voters.is_empty() && sync.electable.iter().all(|replica| replica.node == *name))
    }

    /// To whom a node has given a word that is not over, whatever its file knows of that.
    fn has_given(&self, name: &NodeName) -> Option<(Term, NodeName)> {
        let word = self.oracle.words.get(name)?;
        (self.now < word.until).then(|| (word.term, word.holder.clone()))
    }

    /// To whom a node is bound now, by its file and its own clock.
    fn bound_to(&self, node: usize) -> Option<(Term, NodeName)> {
        let of = &self.nodes[node];
        let ack = of.file.ack.as_ref()?;
        let given = if ack.boot.as_str() == of.boot() { ack.at } else { Moment::ZERO };
        // A host that is off begins its clock anew.
        (!of.up || of.clock.boot(self.now) < given.plus(ack.wait)).then(|| (ack.term, ack.holder.node.clone()))
    }

    /// The store has taken a claim or a promise: no word of that node stands against it (protocol 1.11), not even one that its disk has lost.
    pub(super) fn judge_word(&mut self, node: usize, term: Term, claims: bool) {
        let name = &self.nodes[node].name;
        let before = self.nodes[node].vowed >= term;
        // In `async` nobody is elected by promises: there its claim alone breaks a word that is lost.
        let elects = claims || self.is_lossless();
        let words = [self.bound_to(node), self.has_given(name).filter(|_| elects)].into_iter().flatten();
        let Some((bound, holder)) = words.filter(|(bound, _)| !before && *bound < term).max() else { return };
        let leader = self.oracle.newest.get(&bound).map(|written| &written.record);
        let given_up = leader.is_some_and(|leader| leader.state.is_given_up());
        let followed = self.oracle.syncs.keys().next_back().is_some_and(|newest| *newest > bound);
        if !given_up && !followed {
            let (name, what) = (self.nodes[node].who(), if claims { "has claimed" } else { "has promised" });
            self.violation("O21", format!("{name} {what} term {term}, and has given {holder} its word in term {bound}"));
        }
    }
}
