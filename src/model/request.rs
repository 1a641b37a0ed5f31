//! What operators ask for.

use super::{moment::Span, node::NodeName};
use serde::{Deserialize, Serialize};

/// A request that goes through `intent` and is applied at most once, at the term that the operator saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Request {
    /// Forget a node: its member, slot and place in `sync`.
    Remove {
        /// Which.
        node: NodeName,
    },
    /// Nobody takes over, and nothing is done to PostgreSQL, until somebody resumes.
    Pause {
        /// Why, in the operator's words.
        #[serde(default)]
        reason: String,
        /// For how long; `None`: until somebody resumes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Span>,
    },
    /// End a pause.
    Resume {
        /// The operator's word that the holder's PostgreSQL is dead, where nobody else can give it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        assert_dead: bool,
    },
    /// Let this node take over.
    Failover {
        /// Which.
        to: NodeName,
        /// Also where it lacks what was acknowledged.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        accept_loss: bool,
        /// The operator's word that the present primary is dead, where nobody else can give it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        assert_dead: bool,
    },
    /// Failovers may go on by themselves, after there were too many.
    Acknowledge,
}

impl Request {
    /// Whether it takes the place of one that waits, and that nobody takes: an operator who sees that says more, or wants something else. `acts`:
    /// whether somebody acts for the holder, who does a pause, a removal or an acknowledgement.
    pub const fn replaces(&self, waits: &Self, acts: bool) -> bool {
        let takes_over = matches!(self, Self::Resume { .. } | Self::Failover { .. });
        // A removal that waits has done nothing yet, and may have to wait for long.
        let may_wait = matches!(waits, Self::Remove { .. }) && !matches!(self, Self::Acknowledge);
        may_wait || takes_over && (!acts || matches!(waits, Self::Resume { .. } | Self::Failover { .. }))
    }

    /// Its name, as on the command line and in `audit`.
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Remove { .. } => "remove",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Failover { .. } => "failover",
            Self::Acknowledge => "acknowledge",
        }
    }
}
