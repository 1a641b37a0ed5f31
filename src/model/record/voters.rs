//! Whose data counts: `sync` names the voters, a promise binds one to a term.

use super::Unknown;
use crate::model::{
    lsn::Lsn,
    node::{Address, DataIncarnation, Nonce, Replica},
    quorum::Quorum,
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};

/// `sync`: who holds the data and may be elected. Written by the holder alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// The term in which it was written.
    pub term: Term,
    /// Makes each write differ.
    pub nonce: Nonce,
    /// The primary that it describes: the *owner* after that primary is gone.
    pub primary: Replica,
    /// Where that primary's PostgreSQL listens.
    pub address: Address,
    /// The durability in force.
    pub mode: SyncMode,
    /// How many voters must flush a commit before it is acknowledged.
    pub k: u32,
    /// Those whose flush counts. Empty in `async`.
    pub voters: Vec<Replica>,
    /// Those who may take over.
    pub electable: Vec<Replica>,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl SyncRecord {
    /// The voters, and how many of them a commit waits for; nobody in `async`, and while degraded.
    pub fn quorum(&self) -> Quorum {
        Quorum::new(self.k, self.voters.iter().cloned())
    }

    /// Whether commits wait for voters, and these elect.
    pub fn has_voters(&self) -> bool {
        self.is_lossless() && !self.voters.is_empty()
    }

    /// Whether nothing that was acknowledged may be lost: by the voters, or, while there is none, by the owner alone.
    pub fn is_lossless(&self) -> bool {
        self.mode != SyncMode::Async
    }
}

/// The durability in force, as `sync` records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncMode {
    /// Commits wait for nobody.
    Async,
    /// Commits wait for k voters while there is one.
    Quorum,
    /// Commits always wait for k voters.
    StrictQuorum,
}

/// `promises/<term>/<node>`: a voter's promise to follow nobody of a lower term. Never changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromiseRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Its data directory's life.
    pub data: DataIncarnation,
    /// Its timeline.
    pub tli: TimelineId,
    /// The text of that timeline's history.
    pub history: String,
    /// The end of the last complete record on its disk.
    pub whole: Lsn,
    /// WAL received and not replayed.
    pub replay_lag: u64,
    /// Where a claimant may fetch the difference.
    pub postgres: Address,
    /// Why its node cannot take over itself, for people: a claim is not handed to it, however much it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<String>,
}
