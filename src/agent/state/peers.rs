//! What other nodes ask of us and answer us while etcd is silent.

use super::State;
use crate::model::{
    failsafe::{Acked, Answer, Ask, Verdict},
    moment::Moment,
};

impl State {
    /// An answer counts from the send of its own question: of one peer the newest yes holds.
    pub(super) fn answered_by(&mut self, answer: Answer, ask: &Ask, sent: Moment) {
        if answer.nonce != ask.nonce {
            return;
        }
        match answer.verdict {
            Verdict::Acked => {
                let acked = Acked { term: ask.term, sent, hold: ask.hold };
                let newer = self.peers.acks.get(&answer.by).is_none_or(|known| (known.term, known.sent) < (acked.term, acked.sent));
                if newer {
                    // One node, one life of its data.
                    self.peers.acks.retain(|replica, _| replica.node != answer.by.node);
                    self.peers.acks.insert(answer.by, acked);
                }
            }
            Verdict::Refused { serving, .. } => self.peers.serving = self.peers.serving.max(serving),
        }
    }
}
