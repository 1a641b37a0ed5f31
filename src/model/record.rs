//! The records in etcd: what the nodes of a cluster agree on.
//!
//! Formats are a contract between versions. Every value is a JSON object with `"v": 1`; fields that this
//! version does not know are kept when a record is written again; a *state* that it does not know stops it
//! from acting on that record (`LeaderState::Foreign`).
//!
//! By what they are about, in reading order:
//! - `cluster`: which cluster this is; `leader`: who may write; `voters`: whose data counts; `ledger`: timeline ids;
//! - `node`: what nodes say of themselves; `operator`: what operators want; `chronicle`: what happened.

mod chronicle;
mod cluster;
mod leader;
mod ledger;
mod node;
mod operator;
mod voters;

pub use chronicle::{AuditRecord, GivenUp, HistoryRecord};
pub use cluster::{BootstrapRecord, ClusterRecord, DoubtRecord};
pub use leader::{Failovers, Holder, LeaderRecord, LeaderState, Pause, TermRecord};
pub use ledger::{BaseTimelines, TimelineRecord, TimelineState};
pub use node::{Answer, Lag, MEMBER_LEASE, MemberRecord, MemberRole, NodeRecord, Tags};
pub use operator::{IntentRecord, PolicyRecord};
pub use voters::{PromiseRecord, SyncMode, SyncRecord};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Fields that this version does not know.
pub type Unknown = BTreeMap<String, serde_json::Value>;

/// A record as it stands in etcd.
///
/// `text` is the exact value: records are compared by value, so a swap needs the bytes that were read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored<T> {
    /// What the value says.
    pub record: T,
    /// The value itself.
    pub text: String,
    /// The revision that wrote it.
    pub revision: u64,
}

impl<T: Serialize> Stored<T> {
    /// As this version would write it.
    pub fn written(record: T, revision: u64) -> Self {
        let text = to_text(&record);
        Self { record, text, revision }
    }
}

/// A record as this version writes it: one line of JSON.
pub fn to_text<T: Serialize>(record: &T) -> String {
    // Our records are plain data with text keys; serde_json fails on neither.
    serde_json::to_string(record).unwrap_or_default()
}

/// The format version that this build writes.
pub const VERSION: u32 = 1;

const fn version() -> u32 {
    VERSION
}
