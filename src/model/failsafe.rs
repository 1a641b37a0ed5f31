//! Failsafe: what a holder that cannot reach etcd asks of its peers, and what they bind themselves to (protocol 1.11).

use super::{
    lsn::Lsn,
    moment::{Moment, Span},
    node::{Incarnation, Nonce, Replica, by_application_name},
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// "For so long, claim nothing and promise nobody above my term."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// Who asks: the holder that `leader` names, or named when etcd was last heard.
    pub holder: Replica,
    /// Its term.
    pub term: Term,
    /// How long it means to act from the send of this.
    pub hold: Span,
    /// For how long the peer binds itself, from the receipt of this, by its own clock.
    pub wait: Span,
    /// The timeline that it serves on.
    pub tli: TimelineId,
    /// The newest position up to which it has acknowledged commits, as far as it knows: what `leader` cannot be told.
    pub lsn: Lsn,
    /// Names this question.
    pub nonce: Nonce,
}

/// A peer's answer to one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Who answers, in the present life of its data.
    pub by: Replica,
    /// Which question.
    pub nonce: Nonce,
    /// What it says.
    pub verdict: Verdict,
}

/// What a peer says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is bound: its file says so, fsynced.
    Acked,
    /// It is not.
    Refused {
        /// Why, for people.
        why: String,
        /// The higher term in which it has seen somebody serve.
        serving: Option<Term>,
    },
}

/// What binds this node, as its file keeps it: the last question that it said yes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// To whom it was given.
    pub holder: Replica,
    /// In which term: nothing above it is claimed or promised.
    pub term: Term,
    /// For how long.
    pub wait: Span,
    /// The timeline that the holder served on then.
    pub tli: TimelineId,
    /// The newest position of which the holder told.
    pub lsn: Lsn,
    /// Which question it answers.
    pub nonce: Nonce,
    /// During which boot of this machine it was given.
    pub boot: Incarnation,
    /// When (`CLOCK_BOOTTIME` of that boot).
    pub at: Moment,
}

impl Ack {
    /// When it ends, on `CLOCK_BOOTTIME` of the boot `now`. How long this machine was off is not known: it counts as given at the boot.
    pub fn ends(&self, now: &Incarnation) -> Moment {
        let given = if self.boot == *now { self.at } else { Moment::ZERO };
        given.plus(self.wait)
    }
}

/// What peers have asked of us, and answered us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peers {
    /// The newest question.
    pub asked: Option<Asked>,
    /// Of each peer the newest yes to us.
    #[serde(with = "by_application_name")]
    pub acks: BTreeMap<Replica, Acked>,
    /// The highest term in which a peer has seen somebody serve.
    pub serving: Option<Term>,
}

/// A question that came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// It.
    pub ask: Ask,
    /// When it came (`CLOCK_BOOTTIME`).
    pub at: Moment,
}

/// A yes to a question of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acked {
    /// In which term it was asked.
    pub term: Term,
    /// When it was sent (`CLOCK_BOOTTIME`): what it gives counts from here.
    pub sent: Moment,
    /// For how long we may act from then.
    pub hold: Span,
}

impl Acked {
    /// When the time that it gives ends.
    pub const fn until(&self) -> Moment {
        self.sent.plus(self.hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_boot_an_acknowledgement_counts_as_given_then() {
        let parsed = |text: &str| text.parse().expect("incarnation");
        let ack = Ack {
            holder: Replica::new("n1".parse().expect("node"), "000000a1".parse().expect("data")),
            term: Term::new(3),
            wait: Span::from_millis(3_300),
            tli: TimelineId::FIRST,
            lsn: Lsn::ZERO,
            nonce: "q1".parse().expect("nonce"),
            boot: parsed("b1"),
            at: Moment::ZERO.plus(Span::from_secs(900)),
        };
        assert_eq!(ack.ends(&parsed("b1")), Moment::ZERO.plus(Span::from_millis(903_300)));
        assert_eq!(ack.ends(&parsed("b2")), Moment::ZERO.plus(Span::from_millis(3_300)));
    }
}
