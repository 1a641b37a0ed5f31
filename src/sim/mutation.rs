//! Rules that are broken on purpose, around the decisions: proof that an oracle would see it (oracle O20).
//!
//! A decision is shown something else than what is, or the model does not do what the real part is bound to. The decisions themselves have
//! no switch.

use crate::{
    decide::snapshot::Snapshot,
    model::{moment::Moment, node_file::NodeFile},
};
use std::sync::Arc;

/// One rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing is broken.
    None,
    /// The executor counts validity from the reply, not from the send.
    ValidityFromReply,
    /// The guard ignores its deadline.
    DeafGuard,
    /// The guard says that nothing lives while backends still commit.
    HastyRelease,
    /// A taker does not wait.
    Impatient,
    /// A taker waits for as long as its own policy says, not for as long as the holder's record does.
    OwnWait,
    /// A claim is sent before it is in the file.
    ForgottenClaim,
    /// A promise is published before it is in the file.
    ForgottenPromise,
}

impl Mutation {
    /// What a decision is shown instead of what is.
    pub(super) fn blind(self, s: &mut Snapshot) {
        match self {
            Self::Impatient => {
                if let Some(standing) = &mut s.standing {
                    standing.since = Moment::ZERO;
                }
            }
            Self::OwnWait => {
                let wait = s.policy.timers().wait;
                if let Some(leader) = &mut Arc::make_mut(&mut s.etcd.records).leader {
                    leader.record.wait = wait;
                }
            }
            _ => {}
        }
    }

    /// What reaches the disk of the node file.
    pub(super) fn forget(self, before: &NodeFile, file: &mut NodeFile) {
        match self {
            Self::ForgottenClaim => file.claimed = before.claimed,
            Self::ForgottenPromise => file.promised = before.promised,
            _ => {}
        }
    }
}
