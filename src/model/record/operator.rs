//! What operators want: the policy, and one request at a time.

use crate::model::{node::Nonce, policy::ClusterPolicy, request::Request, term::Term};
use serde::{Deserialize, Serialize};

/// `policy`: what the operators want, with the version that optimistic changes compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Raised by each change.
    pub version: u64,
    /// The policy itself.
    pub policy: ClusterPolicy,
}

/// `intent`: one operator request, removed before its first irreversible step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Identifies the request.
    pub id: Nonce,
    /// What is asked for.
    pub request: Request,
    /// The term that the operator saw.
    pub term: Term,
    /// Who asked.
    pub actor: String,
    /// When, for people (RFC 3339).
    pub at: String,
}
