//! The records in etcd: what the nodes of a cluster agree on.
//!
//! Formats are a contract between versions. Every value is a JSON object with `"v": 1`; fields that this
//! version does not know are kept when a record is written again; a *state* that it does not know stops it
//! from acting on that record (`LeaderState::Foreign`).

use super::{
    lsn::Lsn,
    moment::Span,
    node::{Address, DataIncarnation, Incarnation, NodeName, Nonce, Replica, SystemId},
    policy::ClusterPolicy,
    term::Term,
    timeline::TimelineId,
};
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

/// `bootstrap`: who runs `initdb`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapRecord {
    /// Format version.
    #[serde(default = "version")]
    pub v: u32,
    /// The node that won.
    pub node: NodeName,
    /// The run of its agent.
    pub agent: Incarnation,
}

/// `cluster`: which cluster this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Format version.
    #[serde(default = "version")]
    pub v: u32,
    /// PostgreSQL's identifier of the data.
    pub system_id: SystemId,
    /// Ours: made by the first claim.
    pub uuid: Incarnation,
    /// Raised by `etcd recover`.
    pub generation: u64,
    /// Who made the first claim.
    pub initialised_by: NodeName,
    /// When, for people (RFC 3339).
    pub initialised_at: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `term`: the newest claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermRecord {
    /// Format version.
    #[serde(default = "version")]
    pub v: u32,
    /// Its number.
    pub term: Term,
    /// Who claimed.
    pub holder: Replica,
}

/// `leader`: who may write, in which term, for how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "LeaderWire", into = "LeaderWire")]
pub struct LeaderRecord {
    /// The claim it belongs to.
    pub term: Term,
    /// Whom it names.
    pub holder: Holder,
    /// Makes each write differ.
    pub nonce: Nonce,
    /// Counts writes of this record; never reset.
    pub seq: u64,
    /// How long the holder may act from the send of this revision.
    pub hold: Span,
    /// How long a taker must see this very value stand still.
    pub wait: Span,
    /// The timeline on which the holder serves or last served.
    pub tli: TimelineId,
    /// A record boundary that the primary's flush has passed.
    pub lsn: Lsn,
    /// The term of that `sync` whose primary is proven dead by its releaser.
    pub dead: Option<Term>,
    /// The verified end of the dead primary's WAL.
    pub wal_end: Option<Lsn>,
    /// What the holder is doing.
    pub state: LeaderState,
    /// Unknown fields.
    pub unknown: Unknown,
}

/// The node that `leader` names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Which node.
    pub node: NodeName,
    /// In which life of its data directory.
    pub data: DataIncarnation,
    /// The run of its guard: only an agent in session with that guard acts for the holder.
    pub guard: Incarnation,
    /// Where its PostgreSQL listens.
    pub postgres: Address,
}

impl Holder {
    /// Node and data incarnation.
    pub fn replica(&self) -> Replica {
        Replica::new(self.node.clone(), self.data.clone())
    }
}

/// The state of `leader`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaderState {
    /// The holder prepares its promotion.
    Claimed,
    /// The holder's PostgreSQL accepts writes.
    Serving,
    /// The holder has stopped, `to` may follow at once.
    Handoff {
        /// The chosen successor.
        to: NodeName,
    },
    /// Nobody holds it. Says nothing about the former holder's PostgreSQL: `dead` does.
    Vacant {
        /// Why it was released.
        reason: String,
    },
    /// Nobody may follow; see protocol 1.12.
    Paused {
        /// Who paused.
        by: String,
        /// Why.
        reason: String,
        /// For how long from then on, on the holder's clock.
        until: Option<Span>,
    },
    /// A state of a newer version: hold still.
    Foreign {
        /// Its name.
        name: String,
    },
}

#[derive(Serialize, Deserialize)]
struct LeaderWire {
    v: u32,
    term: Term,
    holder: Holder,
    nonce: Nonce,
    seq: u64,
    hold_ms: u64,
    wait_ms: u64,
    tli: TimelineId,
    lsn: Lsn,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead: Option<Term>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wal_end: Option<Lsn>,
    state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<NodeName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Span>,
    #[serde(flatten)]
    unknown: Unknown,
}

impl TryFrom<LeaderWire> for LeaderRecord {
    type Error = String;

    fn try_from(wire: LeaderWire) -> Result<Self, String> {
        let reason = wire.reason.unwrap_or_default();
        let state = match wire.state.as_str() {
            "claimed" => LeaderState::Claimed,
            "serving" => LeaderState::Serving,
            "handoff" => LeaderState::Handoff { to: wire.to.ok_or("state handoff lacks \"to\"")? },
            "vacant" => LeaderState::Vacant { reason },
            "paused" => LeaderState::Paused { by: wire.by.unwrap_or_default(), reason, until: wire.until },
            other => LeaderState::Foreign { name: other.to_owned() },
        };
        Ok(Self {
            term: wire.term,
            holder: wire.holder,
            nonce: wire.nonce,
            seq: wire.seq,
            hold: Span::from_millis(wire.hold_ms),
            wait: Span::from_millis(wire.wait_ms),
            tli: wire.tli,
            lsn: wire.lsn,
            dead: wire.dead,
            wal_end: wire.wal_end,
            state,
            unknown: wire.unknown,
        })
    }
}

impl From<LeaderRecord> for LeaderWire {
    fn from(record: LeaderRecord) -> Self {
        let mut wire = Self {
            v: VERSION,
            term: record.term,
            holder: record.holder,
            nonce: record.nonce,
            seq: record.seq,
            hold_ms: record.hold.as_millis(),
            wait_ms: record.wait.as_millis(),
            tli: record.tli,
            lsn: record.lsn,
            dead: record.dead,
            wal_end: record.wal_end,
            state: String::new(),
            to: None,
            reason: None,
            by: None,
            until: None,
            unknown: record.unknown,
        };
        let name = match record.state {
            LeaderState::Claimed => "claimed",
            LeaderState::Serving => "serving",
            LeaderState::Handoff { to } => {
                wire.to = Some(to);
                "handoff"
            }
            LeaderState::Vacant { reason } => {
                wire.reason = Some(reason);
                "vacant"
            }
            LeaderState::Paused { by, reason, until } => {
                (wire.by, wire.reason, wire.until) = (Some(by), Some(reason), until);
                "paused"
            }
            LeaderState::Foreign { ref name } => name,
        };
        wire.state = name.to_owned();
        wire
    }
}

/// `sync`: who holds the data and may be elected. Written by the holder alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncRecord {
    /// Format version.
    #[serde(default = "version")]
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

/// `timeline/<n>`: who may use, or used, this timeline id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineRecord {
    /// Format version.
    #[serde(default = "version")]
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
    #[serde(default = "version")]
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

/// `nodes/<node>`: which life of a node is the present one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Format version.
    #[serde(default = "version")]
    pub v: u32,
    /// Its data directory's present life.
    pub data: DataIncarnation,
    /// Its agent's starts.
    pub starts: u64,
    /// The newest record boundary known to be on its disk.
    pub whole: Lsn,
    /// On which timeline.
    pub tli: Option<TimelineId>,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `promises/<term>/<node>`: a voter's promise to follow nobody of a lower term. Never changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromiseRecord {
    /// Format version.
    #[serde(default = "version")]
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
}

/// `policy`: what the operators want, with the version that optimistic changes compare.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Format version.
    #[serde(default = "version")]
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
    #[serde(default = "version")]
    pub v: u32,
    /// Identifies the request.
    pub id: Nonce,
    /// What is asked for.
    pub request: super::request::Request,
    /// The term that the operator saw.
    pub term: Term,
    /// Who asked.
    pub actor: String,
    /// When, for people (RFC 3339).
    pub at: String,
}

/// `members/<node>`: what a node says of itself. A hint, never proof; on an etcd lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Format version.
    #[serde(default = "version")]
    pub v: u32,
    /// Its data directory's life.
    pub data: DataIncarnation,
    /// Where its PostgreSQL listens.
    pub postgres: Address,
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
    /// Lag by stage, as this replica and its primary see it.
    pub lag: Lag,
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
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
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

/// `history/<term>`: one change of leadership, with its reasons and figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Format version.
    #[serde(default = "version")]
    pub v: u32,
    /// The term.
    pub term: Term,
    /// The new primary.
    pub primary: NodeName,
    /// The former one.
    pub from: Option<NodeName>,
    /// Why: the trigger, for people.
    pub why: String,
    /// The new timeline.
    pub tli: TimelineId,
    /// Where it left its parent.
    pub switch: Option<Lsn>,
    /// The former primary's newest known position: what lies between may be lost.
    pub former_lsn: Option<Lsn>,
    /// How many bytes before `former_lsn` (or before the verified end of its WAL) the new primary lacks; `None` where no position was known.
    pub loss_bound: Option<u64>,
    /// For how long the former primary may have gone on unseen after that position was taken, in milliseconds.
    /// What was acknowledged in that time is outside `loss_bound`. 0 after a verified release.
    #[serde(default)]
    pub unseen_ms: u64,
    /// What each phase took, in milliseconds.
    pub phases: BTreeMap<String, u64>,
    /// When, for people (RFC 3339).
    pub at: String,
}

/// `audit/<revision>`: one accepted change by an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Format version.
    #[serde(default = "version")]
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

#[cfg(test)]
mod tests {
    use super::*;

    const SERVING: &str = r#"{"v":1,"term":3,"holder":{"node":"n1","data":"0123abcd","guard":"g1","postgres":"10.0.0.1:5432"},"nonce":"x1","seq":9,"hold_ms":2800,"wait_ms":3300,"tli":2,"lsn":"0/3000060","state":"serving"}"#;

    #[test]
    fn a_leader_record_is_written_as_it_was_read() {
        let record: LeaderRecord = serde_json::from_str(SERVING).expect("record");
        assert_eq!(record.state, LeaderState::Serving);
        assert_eq!(to_text(&record), SERVING);
    }

    #[test]
    fn fields_of_a_newer_version_are_kept() {
        let newer = SERVING.replace("\"serving\"}", "\"serving\",\"colour\":\"green\"}");
        let record: LeaderRecord = serde_json::from_str(&newer).expect("record");
        assert_eq!(to_text(&record), newer);
    }

    #[test]
    fn a_state_of_a_newer_version_is_told_apart() {
        let newer = SERVING.replace("serving", "levitating");
        let record: LeaderRecord = serde_json::from_str(&newer).expect("record");
        assert_eq!(record.state, LeaderState::Foreign { name: "levitating".to_owned() });
    }

    #[test]
    fn every_state_survives_its_own_writing() {
        let base: LeaderRecord = serde_json::from_str(SERVING).expect("record");
        let n2: NodeName = "n2".parse().expect("name");
        let states = [
            LeaderState::Claimed,
            LeaderState::Handoff { to: n2 },
            LeaderState::Vacant { reason: "crash".to_owned() },
            LeaderState::Paused { by: "ann".to_owned(), reason: "work".to_owned(), until: Some(Span::from_secs(60)) },
        ];
        for state in states {
            let record = LeaderRecord { state, dead: Some(Term::new(3)), wal_end: Some(Lsn::new(77)), ..base.clone() };
            assert_eq!(serde_json::from_str::<LeaderRecord>(&to_text(&record)).expect("record"), record);
        }
    }
}
