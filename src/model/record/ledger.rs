//! The ledger of timeline ids: to whom each belongs, and what became of it.

use super::Unknown;
use crate::model::{lsn::Lsn, node::Replica, term::Term, timeline::TimelineId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `timeline/<n>`: who may use, or used, this timeline id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// To whom it belongs.
    pub owner: Replica,
    /// The claim in which it was reserved.
    pub term: Term,
    /// The timeline it leaves; `None` for the first.
    pub parent: Option<TimelineId>,
    /// Where it leaves it; known once it is used.
    pub switch: Option<Lsn>,
    /// What became of it.
    pub state: TimelineState,
    /// The text of its history file; of a burnt id, a comment.
    pub history: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// What became of a timeline id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineState {
    /// Given out; somebody may be promoting to it.
    Reserved,
    /// A primary served on it.
    Used,
    /// Never to be used.
    Burnt,
}

/// `timeline/base`: the timelines that were there before us, in one value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseTimelines {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// The timeline on which the cluster was taken over.
    pub newest: TimelineId,
    /// To whom it belonged then.
    pub owner: Replica,
    /// The history files found, by id (the newest included; timeline 1 has none).
    pub histories: BTreeMap<TimelineId, String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}
