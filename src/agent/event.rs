//! What adapters publish: facts, and the ends of tasks.

use crate::{
    decide::{
        decision::{Completed, Configuration, Task},
        snapshot::{CopyPlace, Probed, Shown},
    },
    model::{
        failsafe::{Answer, Ask, Asked},
        instance::{DataDir, GuardStatus, Run, ServerFacts, Whole},
        key::Key,
        moment::Moment,
        node::Nonce,
        node_file::NodeFile,
        timeline::TimelineId,
    },
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One fact, or the end of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// A linearizable answer with every record: replaces the view.
    Listed {
        /// Every key with its value and revision.
        entries: Vec<(Key, String, u64)>,
        /// etcd's revision.
        revision: u64,
        /// When it was asked for (`CLOCK_BOOTTIME`).
        sent: Moment,
    },
    /// Changes, by the watch.
    Changed {
        /// New values (`None`: deleted) with their revisions.
        changes: Vec<(Key, Option<String>, u64)>,
        /// etcd's revision.
        revision: u64,
    },
    /// etcd does not answer.
    EtcdSilent {
        /// Why, for people.
        why: String,
    },
    /// A transaction is about to be sent. Applied before anything leaves: validity counts from here.
    TxnSent {
        /// Which.
        nonce: Nonce,
        /// `CLOCK_BOOTTIME` before the send.
        at: Moment,
    },
    /// A transaction ended.
    TxnDone {
        /// Which.
        nonce: Nonce,
        /// Which kind of task it was.
        task: Task,
        /// How.
        outcome: TxnOutcome,
    },
    /// The guard's status.
    Guard(GuardStatus),
    /// The guard's session ended, or none could be had.
    GuardGone {
        /// Why, for people.
        why: String,
    },
    /// PostgreSQL answered.
    Server {
        /// What it said.
        facts: ServerFacts,
        /// When it was asked: what it said may be as old as that.
        asked: Moment,
    },
    /// PostgreSQL did not answer.
    ServerSilent {
        /// In which run.
        run: Run,
        /// Why, for people.
        why: String,
        /// It says itself that it lets nobody in before it is consistent.
        inconsistent: bool,
    },
    /// The data directory was inspected.
    Disk {
        /// What lies there.
        dir: DataDir,
        /// When the look began.
        at: Moment,
    },
    /// It was looked where a copy of another node would be made.
    Measured(CopyPlace),
    /// A scan ended.
    Scanned {
        /// The end of WAL.
        whole: Whole,
        /// What ran meanwhile.
        run: Option<Run>,
        /// When it began.
        at: Moment,
    },
    /// The node file was written and fsynced.
    FileWritten(Box<NodeFile>),
    /// The managed configuration is in force (or will be from the next start on).
    Configured(Box<Configuration>),
    /// A task was not begun, or came to nothing that says anything: what it needs is not there yet.
    Held {
        /// Of what kind.
        task: Task,
        /// What it waits for.
        why: String,
    },
    /// New connections show these `synchronous_standby_names`.
    Shown(Shown),
    /// A primary's PostgreSQL was asked for an answer.
    Probed(Probed),
    /// A peer asks us to bind ourselves.
    Asked(Asked),
    /// A peer has answered a question of ours.
    Answered {
        /// What it says.
        answer: Answer,
        /// What was asked.
        ask: Ask,
        /// When that was sent (`CLOCK_BOOTTIME`).
        sent: Moment,
    },
    /// The stream was cut: the conninfo in force is empty, and no walreceiver is there.
    StreamCut,
    /// History files were written: all that are in `pg_wal` now.
    HistoriesWritten(BTreeMap<TimelineId, String>),
    /// The data directory was made or replaced.
    Completed(Completed),
    /// A task ended. Facts that it produced come in events of their own, before this one.
    Done {
        /// Which kind.
        task: Task,
        /// `Err`: how it failed; nothing is known of what it did.
        outcome: Result<(), String>,
    },
    /// The node is to stop.
    Stop,
}

/// How a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TxnOutcome {
    /// All its writes are done.
    Applied {
        /// In this revision.
        revision: u64,
        /// When the earliest attempt was sent.
        sent: Moment,
    },
    /// A condition did not hold. The compared keys as they are, in a linearizable answer.
    Refused {
        /// Present values with their revisions; `None`: not there.
        values: Vec<(Key, Option<String>, u64)>,
        /// etcd's revision.
        revision: u64,
        /// When the earliest attempt was sent.
        sent: Moment,
    },
    /// It certainly did not happen.
    NotDone {
        /// Why, for people.
        why: String,
    },
    /// It may have happened, or may yet.
    Unknown {
        /// Why, for people.
        why: String,
    },
}
