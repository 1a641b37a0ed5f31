//! What is sent: JSON, sealed as it is.

use crate::model::{
    failsafe::{Answer, Ask},
    node::{ClusterName, Incarnation, NodeName},
};
use serde::{Deserialize, Serialize};

/// The only version there is.
pub const VERSION: u32 = 1;

/// A question, and how the one who is asked sees that it is new.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Format version.
    pub v: u32,
    /// Of which cluster.
    pub cluster: ClusterName,
    /// Which run of an agent asks.
    pub from: Incarnation,
    /// How many questions that run has asked the others before this one.
    pub count: u64,
    /// Which node is asked.
    pub to: NodeName,
    /// Which run of its API, as its last reply told; `None` where none is known yet.
    pub to_run: Option<Incarnation>,
    /// What is asked.
    pub ask: Ask,
}

/// A reply to the question whose nonce the seal covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Format version.
    pub v: u32,
    /// Which run of the API replies: the next question names it.
    pub run: Incarnation,
    /// The answer; `None`: ask again and name this run.
    pub answer: Option<Answer>,
}
