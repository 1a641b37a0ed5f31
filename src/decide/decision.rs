//! What a decision says: actions, reasons, and when to decide again. What it remembers is in `memory`.

pub use super::memory::{ClaimStory, Crash, Failsafe, Fetching, Memory, Names, Refused, RewindPlan, Seat, StandbyEnds, Vacancy};

use crate::model::{
    failsafe::Ask,
    instance::{RecoveryTarget, StartAs, StopMode},
    key::Txn,
    lsn::Lsn,
    moment::{Moment, Span},
    node::{Address, NodeName, Replica, SlotName},
    node_file::{ClonePlace, NodeFile},
    policy::SlotRetention,
    record::{HistoryRecord, MemberRecord},
    term::Term,
    timeline::{Fork, TimelineId},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a decision says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// What to do now. Independent of each other: where an order matters, the later step waits for a fact.
    pub actions: Vec<Action>,
    /// Why, and why not.
    pub reasons: Vec<Reason>,
    /// When to decide again, if nothing is observed before (`CLOCK_BOOTTIME`).
    pub wake_at: Moment,
    /// Kinds of which one more was wanted while one went on: its end is awaited.
    pub held: BTreeSet<Task>,
    /// Look at the server often: a fact is awaited.
    pub hurry: bool,
    /// Where clients may be sent.
    pub routing: Routing,
    /// What the next decision is told.
    pub memory: Memory,
}

/// Where clients may be sent, as far as this node is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// Writes may come here, in this term and until then.
    pub writes: Option<Writable>,
    /// Reads may come here.
    pub reads: bool,
}

/// Permission to take writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writable {
    /// In which term.
    pub term: Term,
    /// Until when (`CLOCK_BOOTTIME`).
    pub until: Moment,
}

/// One thing to do. Its executor may refuse it, and never chooses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A transaction on the records.
    Txn(Purpose, Txn),
    /// Publish what this node says of itself.
    PutMember(Box<MemberRecord>),
    /// Record a change of leadership.
    AppendHistory(Box<HistoryRecord>),
    /// Write the node file and fsync it.
    WriteFile(Box<NodeFile>),
    /// Start a guard: none runs.
    StartGuard,
    /// Arm the kernel's deadline. Only after a swap of this agent's own, so that it may move later.
    Arm {
        /// For which term.
        term: Term,
        /// When.
        until: Moment,
    },
    /// Take the deadline away: nothing that it guards can be a primary any more.
    Disarm {
        /// The term.
        term: Term,
    },
    /// Take the deadline of a primary away: the pause is committed, and nobody may follow.
    DisarmPaused {
        /// The term.
        term: Term,
    },
    /// Start PostgreSQL.
    Start {
        /// As what.
        start: StartAs,
        /// In which term.
        term: Term,
    },
    /// Stop PostgreSQL; kill what is left at the deadline.
    Stop {
        /// How.
        mode: StopMode,
        /// When patience ends.
        deadline: Moment,
    },
    /// Kill the whole process tree.
    Kill,
    /// Promote the standby.
    Promote {
        /// In which term.
        term: Term,
    },
    /// Write the managed configuration, and reload it where PostgreSQL runs.
    Configure(Box<Configuration>),
    /// The kernel lets nothing pass between this host and these servers, and everything else again.
    Cut(BTreeSet<Address>),
    /// Ask the PostgreSQL at this address for any answer at all.
    Probe(Address),
    /// Ask these peers to bind themselves.
    AskPeers {
        /// What is asked.
        ask: Ask,
        /// Whom, and where their API is.
        of: BTreeMap<NodeName, String>,
    },
    /// End the stream from the primary: empty `primary_conninfo`, reload, terminate the walreceiver, see it gone.
    CutStream,
    /// Look at the data directory.
    InspectDisk,
    /// Ask a source for its size, and look where a copy of it can be made.
    MeasureCopy {
        /// Whose copy.
        source: Source,
    },
    /// Find the end of the last complete record.
    Scan {
        /// From this boundary, which is on this disk.
        from: Lsn,
        /// On this timeline.
        tli: TimelineId,
    },
    /// Put history files in place. Never overwrites another text.
    WriteHistories(BTreeMap<TimelineId, String>),
    /// Initialise the data directory.
    InitDb,
    /// Remove the directory that our own `initdb` made and that never started.
    DiscardInitialised,
    /// Copy another node.
    Clone {
        /// Whose data.
        source: Source,
        /// Where to.
        place: ClonePlace,
        /// A healthy copy besides the source: what a copy in place may rest on.
        other: Option<NodeName>,
        /// Where the cluster's history left that of the data that go, where they went on by themselves.
        discards: Option<Fork>,
    },
    /// Rewind the data directory to the source's history.
    Rewind {
        /// Whose history.
        source: Source,
        /// Where that history left ours.
        fork: Lsn,
        /// The end of our own.
        whole: Lsn,
        /// On this timeline.
        tli: TimelineId,
    },
    /// A checkpoint on the primary.
    Checkpoint,
    /// See new connections show these `synchronous_standby_names`, and then mark the place in the log: what lies behind it was written later.
    ShowNames {
        /// As the managed configuration writes them.
        names: String,
        /// Two checkpoints in between, one after the other: the checkpointer has taken the names in, too (EXP-24).
        checkpoints: bool,
    },
    /// End the walsenders of these replicas: they do not confirm, and may not have heard of new `synchronous_standby_names`.
    EndWalsenders(Vec<Replica>),
    /// Create a member's physical slot.
    CreateSlot(SlotName),
    /// Drop a member's physical slot.
    DropSlot(SlotName),
    /// Apply the migrations and set the roles' passwords.
    Migrate,
    /// Tell the guard to end: PostgreSQL is stopped.
    StopGuard,
    /// End this agent.
    Exit {
        /// Why, for people.
        why: String,
    },
}

/// The server that data comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Which node.
    pub node: NodeName,
    /// Where.
    pub address: Address,
    /// The timeline on which it serves.
    pub tli: TimelineId,
}

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To run `initdb` first.
    Bootstrap,
    /// The first claim.
    FirstClaim,
    /// To extend the lease.
    Renew,
    /// To act for a holder whose agent is gone.
    Adopt,
    /// To follow a holder.
    Claim,
    /// To write `sync` and reserve a timeline.
    Prepare,
    /// To serve.
    Serve,
    /// To give up.
    Release,
    /// To hand a claim over.
    Handoff,
    /// To pause, or to write a pause again.
    Pause,
    /// To end a pause.
    Resume,
    /// To let failovers go on by themselves.
    Acknowledge,
    /// To change who is electable.
    Membership,
    /// To promise.
    Promise,
    /// To publish our present life.
    Register,
    /// To take an operator's request.
    Intent,
    /// To remove what is old.
    Prune,
    /// To put the policy back that somebody has deleted.
    Policy,
    /// To say that this etcd went back, or to take that back.
    Doubt,
}

impl Purpose {
    /// Whether it writes `leader`: one such write at a time.
    pub const fn writes_leader(self) -> bool {
        match self {
            Self::FirstClaim | Self::Renew | Self::Adopt | Self::Claim | Self::Serve | Self::Release | Self::Handoff => true,
            Self::Pause | Self::Resume | Self::Acknowledge => true,
            Self::Bootstrap
            | Self::Prepare
            | Self::Membership
            | Self::Promise
            | Self::Register
            | Self::Intent
            | Self::Prune
            | Self::Policy
            | Self::Doubt => false,
        }
    }
}

/// A kind of thing that goes on for a while: one of each at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// A write of `leader`.
    LeaderTxn,
    /// Another transaction.
    Txn,
    /// [`Action::PutMember`].
    PutMember,
    /// [`Action::AppendHistory`].
    AppendHistory,
    /// [`Action::WriteFile`].
    WriteFile,
    /// [`Action::StartGuard`].
    StartGuard,
    /// [`Action::Arm`], [`Action::Disarm`], [`Action::DisarmPaused`].
    Arm,
    /// [`Action::Start`].
    Start,
    /// [`Action::Stop`].
    Stop,
    /// [`Action::Kill`].
    Kill,
    /// [`Action::Promote`].
    Promote,
    /// [`Action::Configure`].
    Configure,
    /// [`Action::Cut`].
    Cut,
    /// [`Action::Probe`].
    Probe,
    /// [`Action::AskPeers`].
    AskPeers,
    /// [`Action::CutStream`].
    CutStream,
    /// [`Action::InspectDisk`].
    InspectDisk,
    /// [`Action::MeasureCopy`].
    MeasureCopy,
    /// [`Action::Scan`].
    Scan,
    /// [`Action::WriteHistories`].
    WriteHistories,
    /// What makes or replaces the data directory: initdb, discard, clone, rewind.
    Data,
    /// [`Action::Checkpoint`].
    Checkpoint,
    /// [`Action::ShowNames`].
    ShowNames,
    /// [`Action::EndWalsenders`].
    EndWalsenders,
    /// [`Action::CreateSlot`], [`Action::DropSlot`].
    Slot,
    /// [`Action::Migrate`].
    Migrate,
    /// [`Action::StopGuard`], [`Action::Exit`].
    Exit,
}

impl Action {
    /// Which kind of thing it starts.
    pub const fn task(&self) -> Task {
        match self {
            Self::Txn(purpose, _) if purpose.writes_leader() => Task::LeaderTxn,
            Self::Txn(..) => Task::Txn,
            Self::PutMember(_) => Task::PutMember,
            Self::AppendHistory(_) => Task::AppendHistory,
            Self::WriteFile(_) => Task::WriteFile,
            Self::StartGuard => Task::StartGuard,
            Self::Arm { .. } | Self::Disarm { .. } | Self::DisarmPaused { .. } => Task::Arm,
            Self::Start { .. } => Task::Start,
            Self::Stop { .. } => Task::Stop,
            Self::Kill => Task::Kill,
            Self::Promote { .. } => Task::Promote,
            Self::Configure(_) => Task::Configure,
            Self::Cut(_) => Task::Cut,
            Self::Probe(_) => Task::Probe,
            Self::AskPeers { .. } => Task::AskPeers,
            Self::CutStream => Task::CutStream,
            Self::InspectDisk => Task::InspectDisk,
            Self::MeasureCopy { .. } => Task::MeasureCopy,
            Self::Scan { .. } => Task::Scan,
            Self::WriteHistories(_) => Task::WriteHistories,
            Self::InitDb | Self::DiscardInitialised | Self::Clone { .. } | Self::Rewind { .. } => Task::Data,
            Self::Checkpoint => Task::Checkpoint,
            Self::ShowNames { .. } => Task::ShowNames,
            Self::EndWalsenders(_) => Task::EndWalsenders,
            Self::CreateSlot(_) | Self::DropSlot(_) => Task::Slot,
            Self::Migrate => Task::Migrate,
            Self::StopGuard | Self::Exit { .. } => Task::Exit,
        }
    }
}

/// What was made or replaced in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Completed {
    /// By [`Action::InitDb`].
    InitDb,
    /// By [`Action::DiscardInitialised`].
    Discard,
    /// By [`Action::Clone`].
    Clone,
    /// By [`Action::Rewind`].
    Rewind,
}

impl Action {
    /// What its success means for the data directory.
    pub const fn completes(&self) -> Option<Completed> {
        match self {
            Self::InitDb => Some(Completed::InitDb),
            Self::DiscardInitialised => Some(Completed::Discard),
            Self::Clone { .. } => Some(Completed::Clone),
            Self::Rewind { .. } => Some(Completed::Rewind),
            _ => None,
        }
    }
}

/// The managed configuration of PostgreSQL, as far as decisions change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Whom to follow; `None`: nobody.
    pub follow: Option<Follow>,
    /// What recovery aims at. Where that is not the latest timeline: no stream, no archive, no delay (protocol 1.13 c).
    #[serde(default)]
    pub recovery: RecoveryTarget,
    /// Our `application_name` as a standby.
    pub application_name: String,
    /// `synchronous_standby_names`.
    pub sync_names: String,
    /// Only members are let in: what this server shows may be on it alone.
    pub members_only: bool,
    /// PostgreSQL parameters of the policy.
    pub parameters: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf` of the policy.
    pub hba: Vec<String>,
    /// Addresses that members may replicate and rewind from (hosts, no ports).
    pub members: Vec<String>,
    /// Retention of members' slots.
    pub slots: SlotRetention,
    /// The lease's wait: timeouts of connections between servers follow it.
    pub wait: Span,
}

/// Whom a standby follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Which node.
    pub node: NodeName,
    /// Where its PostgreSQL listens.
    pub address: Address,
    /// Our slot there; `None` on a node that is no primary, and keeps none.
    pub slot: Option<SlotName>,
}

/// Why something is done, waits, or is refused. With numbers, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What is said, without its numbers: a changed id is news, changed numbers are not.
    pub id: String,
    /// The whole sentence.
    pub text: String,
    /// How it matters.
    pub kind: ReasonKind,
}

/// How a reason matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonKind {
    /// Why something is as it is or is being done.
    Because,
    /// What is waited for.
    Waits,
    /// What is refused.
    Refused,
    /// A human must look.
    Alarm,
}

/// What was last published of us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// What of it others act on, as one text.
    pub essence: String,
    /// When.
    pub at: Moment,
    /// Each time costs half a second, and this far ahead that is spent: what changes again and again is told more slowly.
    pub paid: Moment,
}
