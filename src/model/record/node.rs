//! What nodes say of themselves: which life they are in, and how they are.

use super::Unknown;
use crate::model::{
    lsn::Lsn,
    moment::Span,
    node::{Address, DataIncarnation, Incarnation, NodeName, Nonce},
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `nodes/<node>`: which life of a node is the present one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Its data directory's present life.
    pub data: DataIncarnation,
    /// Its agent's starts, and the new lives of its data that began while one ran.
    pub starts: u64,
    /// The run of the agent that wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Incarnation>,
    /// The newest record boundary known to be on its disk.
    pub whole: Lsn,
    /// On which timeline.
    pub tli: Option<TimelineId>,
    /// Every process of its standby is known to hold a `synchronous_standby_names` that is not empty: promoted, it acknowledges nothing too
    /// early (EXP-24). Taken back before that may change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync_ready: bool,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// How long a member's record outlives its agent, where etcd is up; after an election of etcd the whole time begins anew.
pub const MEMBER_LEASE: Span = Span::from_secs(5);

/// `members/<node>`: what a node says of itself. A hint, never proof; on an etcd lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Its data directory's life.
    pub data: DataIncarnation,
    /// Where its PostgreSQL listens.
    pub postgres: Address,
    /// The run of the agent that says this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Incarnation>,
    /// Its machine's boot, where the kernel names that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Incarnation>,
    /// Where its API answers.
    pub api: Option<String>,
    /// Primary, replica, or neither.
    pub role: MemberRole,
    /// What its PostgreSQL is doing, for people.
    pub state: String,
    /// Its timeline.
    pub tli: Option<TimelineId>,
    /// Insert position (primary) or received position (replica).
    pub lsn: Lsn,
    /// Replayed position (replica).
    pub replay: Lsn,
    /// Lag by stage, as this replica sees it.
    pub lag: Lag,
    /// Of a primary: the lag of each replica that streams from it, as its walsenders show it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replicas: BTreeMap<NodeName, Lag>,
    /// The highest term this node has seen.
    pub term: Term,
    /// Failure domain.
    pub zone: String,
    /// Node tags.
    pub tags: Tags,
    /// The agent's version.
    pub version: String,
    /// PostgreSQL's version.
    pub postgres_version: String,
    /// Which fencing is in force, for people.
    pub fencing: String,
    /// Whether a PostgreSQL setting waits for a restart.
    pub pending_restart: bool,
    /// The first primary of a new cluster, while it has not made the roles yet by which others log in to copy it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub roles_missing: bool,
    /// Of a voter: the value of `leader` (by its nonce) whose holder it finds gone. A hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finds_gone: Option<Nonce>,
    /// The term for whose holder its agent acts: in session with the guard that `leader` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acts_in: Option<Term>,
    /// What became of the last request that it took and could not carry out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// Of a primary: what lies before this in its log it cannot send any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wal: Option<Lsn>,
    /// Of a primary: its server does not acknowledge by what `sync` says, as somebody has set it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub acknowledges_otherwise: bool,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// An operator's request that was taken and not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which request.
    pub id: Nonce,
    /// Why, and what would make it possible, for people.
    pub refused: String,
}

/// Primary, replica, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemberRole {
    /// Accepts writes.
    Primary,
    /// In recovery.
    Replica,
    /// PostgreSQL does not run.
    Down,
}

/// How far a replica is behind, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Written on the primary, not sent to it. Bytes; `None` where not known.
    pub sent: Option<u64>,
    /// Not written by it yet.
    pub write: Option<u64>,
    /// Not flushed by it yet.
    pub flush: Option<u64>,
    /// Not replayed by it yet.
    pub replay: Option<u64>,
    /// Time between the primary's commit and its replay here, in milliseconds, as last measured; 0 when idle.
    pub replay_ms: Option<u64>,
}

/// What the operator says of a node in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tags {
    /// Never becomes primary.
    pub no_failover: bool,
    /// Preferred among equals: the higher the better.
    pub priority: u32,
    /// Never a voter.
    pub no_sync: bool,
    /// Not offered to readers.
    pub no_load_balance: bool,
}

impl Default for Tags {
    fn default() -> Self {
        Self { no_failover: false, priority: 100, no_sync: false, no_load_balance: false }
    }
}
