//! What happened: changes of leadership, and changes by operators.

use crate::model::{lsn::Lsn, node::NodeName, term::Term, timeline::TimelineId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `history/<term>`: one change of leadership, with its reasons and figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// The term.
    pub term: Term,
    /// The new primary.
    pub primary: NodeName,
    /// The former one.
    pub from: Option<NodeName>,
    /// Why: the trigger, for people.
    pub why: String,
    /// The operator who asked for it; `None`: it came by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The new timeline.
    pub tli: TimelineId,
    /// Where it left its parent.
    pub switch: Option<Lsn>,
    /// The former primary's newest known position: what lies between may be lost.
    pub former_lsn: Option<Lsn>,
    /// How many bytes before `former_lsn` (or before the verified end of its WAL) the new primary lacks; `None` where nothing bounds it: no position
    /// was known, or the former primary may have gone on without etcd for as long as it lived, and an operator had another node take over.
    pub loss_bound: Option<u64>,
    /// For how long the former primary may have gone on unseen after that position was taken, in milliseconds.
    /// What was acknowledged in that time is outside `loss_bound`. 0 after a verified release.
    #[serde(default)]
    pub unseen_ms: u64,
    /// Claims since the parent timeline's that were given a timeline and never came to serve on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<GivenUp>,
    /// What each phase took, in milliseconds.
    pub phases: BTreeMap<String, u64>,
    /// When, for people (RFC 3339).
    pub at: String,
}

/// A timeline that was reserved for a claim, and burnt because nobody came to serve on it.
///
/// Its claimant may have been promoted to it all the same, and have acknowledged writes of clients who found it by themselves: the
/// endpoints never named it. They are lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The timeline.
    pub tli: TimelineId,
    /// Whose claim it was.
    pub node: NodeName,
    /// In which term.
    pub term: Term,
    /// For how long it may have acknowledged, at most, in milliseconds.
    pub unseen_ms: u64,
}

/// `audit/<id>` (a nonce that begins with the time, so that they sort by it): one accepted change by an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Who.
    pub actor: String,
    /// From where (an address, or `local`).
    pub from: String,
    /// What: the verb.
    pub verb: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// What was there before.
    pub before: serde_json::Value,
    /// What is there after.
    pub after: serde_json::Value,
    /// When, for people (RFC 3339).
    pub at: String,
}
