//! Transactions and plain writes, on their way to etcd.

use crate::{
    agent::event::{Event, TxnOutcome},
    decide::decision::{Purpose, Task},
    model::{
        key::{Key, Txn, Write},
        node::Nonce,
    },
    sim::{Mutation, store::Reply, world::World},
};

impl World {
    pub(super) fn txn(&mut self, node: usize, run: u64, purpose: Purpose, task: Task, mut txn: Txn) {
        self.options.mutation.twist(purpose, &mut txn);
        let clocks = self.nodes[node].clock.both(self.now);
        if purpose.writes_leader() {
            self.oracle.sends.insert(txn.nonce.clone(), (node, clocks.boot));
            self.note_send(node, &txn, clocks.boot);
        }
        self.note_purpose(purpose);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        if self.options.mutation != Mutation::ValidityFromReply {
            agent.state.apply(Event::TxnSent { nonce: txn.nonce.clone(), at: clocks.boot }, clocks);
        }
        let nonce = txn.nonce.clone();
        let before_send = self.random.between(50_000, 2_000_000);
        self.in_agent(node, run, before_send, move |world| {
            if world.nodes[node].agent_run() == Some(run) {
                world.send_txn(node, run, Some(purpose), txn, Reply::Txn(nonce, task));
            }
        });
    }

    pub(in crate::sim) fn txn_done(&mut self, node: usize, run: u64, nonce: &Nonce, task: Task, outcome: TxnOutcome) {
        if self.options.trace && !matches!(outcome, TxnOutcome::Applied { .. }) {
            let what = match &outcome {
                TxnOutcome::Applied { .. } => "applied",
                TxnOutcome::Refused { .. } => "refused",
                TxnOutcome::NotDone { .. } => "not done",
                TxnOutcome::Unknown { .. } => "unknown",
            };
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, &format!("txn {nonce}: {what}"));
        }
        if self.options.mutation == Mutation::ValidityFromReply {
            let at = self.nodes[node].clock.boot(self.now);
            self.deliver(node, run, Event::TxnSent { nonce: nonce.clone(), at });
        }
        self.deliver(node, run, Event::TxnDone { nonce: nonce.clone(), task, outcome });
    }

    pub(super) fn put(&mut self, node: usize, run: u64, task: Task, key: Key, text: String) {
        let nonce: Nonce = self.name("p");
        if self.options.trace && task == Task::PutMember {
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, &format!("says {text}"));
        }
        let txn = Txn { nonce, when: Vec::new(), then: vec![Write::Put(key, text)] };
        self.send_txn(node, run, None, txn, Reply::Put(task));
    }

    fn note_purpose(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Claim => self.coverage.claims += 1,
            Purpose::Adopt => self.coverage.adoptions += 1,
            Purpose::Release => self.coverage.releases += 1,
            Purpose::Handoff => self.coverage.handoffs += 1,
            _ => {}
        }
    }
}
