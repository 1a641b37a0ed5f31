//! PostgreSQL as seen from outside (processes, disk) and from inside (SQL).

use super::{
    lsn::{Bytes, Lsn},
    moment::{Moment, Span},
    node::{Address, DataIncarnation, Incarnation, SlotName, SystemId},
    record::Lag,
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Counts the starts of PostgreSQL under one guard. Facts of one run say nothing of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Run(pub u64);

/// How PostgreSQL is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartAs {
    /// With `standby.signal`: in recovery until promoted.
    Standby,
    /// Without it. `standby.signal` is put back at once after the start (protocol I6).
    Primary,
}

/// How PostgreSQL is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Ends sessions, writes a shutdown checkpoint.
    Fast,
    /// No checkpoint: crash recovery at the next start.
    Immediate,
}

/// The process tree of PostgreSQL, as its guard sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Process {
    /// Not one process of it lives: the guard has looked.
    Empty {
        /// How the last run ended; `None` if this guard never started one.
        last: Option<Ended>,
    },
    /// The postmaster lives.
    Running {
        /// Which start.
        run: Run,
        /// As what it was started.
        start: StartAs,
        /// A stop was asked for and goes on.
        stopping: Option<StopMode>,
    },
    /// The postmaster is gone or was killed, and the tree is not verified empty yet.
    Dying {
        /// Which start.
        run: Run,
    },
}

/// How a run of PostgreSQL ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which start.
    pub run: Run,
    /// As what it was started.
    pub start: StartAs,
    /// The postmaster's end, as `exit code N` or `signal N`, and the last lines it wrote, for people.
    pub how: String,
    /// Whether we had asked for it (stop or kill).
    pub wanted: bool,
}

/// What dies with the guard, and by which means (protocol 1.5, F2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillMode {
    /// A PID namespace whose init dies with the guard.
    Namespace,
    /// The guard's control group.
    Cgroup,
    /// Guard and sub-reaper watch each other.
    Descendants,
}

impl fmt::Display for KillMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "namespace",
            Self::Cgroup => "cgroup",
            Self::Descendants => "descendants",
        })
    }
}

/// The deadline at which the kernel ends PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// For which term.
    pub term: Term,
    /// When, on this machine's `CLOCK_BOOTTIME`.
    pub until: Moment,
}

/// What a guard says of itself and its PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// This run of the guard.
    pub incarnation: Incarnation,
    /// The highest term that any verb carried.
    pub term: Term,
    /// The deadline, where one is armed.
    pub armed: Option<Armed>,
    /// The newest term for which a promotion or a start as primary was accepted.
    pub primary_of: Option<Term>,
    /// The processes.
    pub process: Process,
    /// What dies with it.
    pub kill: KillMode,
    /// Whether its self-test showed that this works here.
    pub fenced: bool,
    /// A start was accepted and is being prepared: no process lives yet, and one may at any moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub starting: bool,
    /// Whom the kernel cuts this host off from.
    #[serde(default)]
    pub cut: Cut,
}

/// Whom the kernel cuts this host off from (protocol 1.7 step 3 b).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// Not known: the guard is finding out, or a change had no certain end.
    Unknown,
    /// It cannot be done here.
    Unable {
        /// Why, for people.
        why: String,
    },
    /// The PostgreSQL of these, and of nobody else.
    From(BTreeSet<Address>),
}

impl Default for Cut {
    /// What a guard that says nothing of it can do.
    fn default() -> Self {
        Self::Unable { why: "the guard is of an older version".to_owned() }
    }
}

/// What lies in the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataDir {
    /// No such directory (its parent is there).
    Missing,
    /// A directory with nothing in it (`lost+found` does not count).
    Empty,
    /// A PostgreSQL data directory.
    Present(DiskFacts),
    /// Something else, or it cannot be read: what is wrong, for people. Never touched.
    Unusable {
        /// What is wrong and what to do.
        why: String,
    },
}

impl DataDir {
    /// Whether a rewind has begun here and not ended: blocks of two histories, which PostgreSQL must not be started on.
    pub fn is_half_rewound(&self) -> bool {
        matches!(self, Self::Present(disk) if disk.rewind == Some(RewindMark::Unfinished))
    }
}

impl DiskFacts {
    /// Whether it is the whole copy that was made as this life of the data, which nothing overwrites.
    pub fn is_copy(&self, life: &DataIncarnation) -> bool {
        self.copied.as_ref() == Some(life)
    }
}

/// What a data directory says while PostgreSQL is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// `PG_VERSION`.
    pub major: u32,
    /// It is the whole copy that was made as this life of the data.
    #[serde(default)]
    pub copied: Option<DataIncarnation>,
    /// `pg_controldata`.
    pub control: ControlData,
    /// Whether `standby.signal` is there.
    pub standby_signal: bool,
    /// Whether `backup_label` is there.
    pub backup_label: bool,
    /// Whether a postmaster ever ran on it (`postmaster.opts`): what our `initdb` alone has made has none.
    #[serde(default)]
    pub started: bool,
    /// The newest rewind's mark, which stands beside the directory.
    pub rewind: Option<RewindMark>,
    /// The history files in `pg_wal`, by id, comment-only ones included.
    pub histories: BTreeMap<TimelineId, String>,
}

/// How far a rewind has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewindMark {
    /// It has begun to change the directory, or is about to, or what it did is not known to be on disk: the directory may only be rewound
    /// again (which may come to finishing that), or replaced.
    Unfinished,
    /// It has ended well, and all of it is on disk.
    Done {
        /// The life of the data that it ended.
        life: DataIncarnation,
    },
}

/// What `pg_controldata` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// Which `initdb` it descends from.
    pub system_id: SystemId,
    /// The cluster state.
    pub state: ControlState,
    /// The timeline of the latest checkpoint.
    pub checkpoint_tli: TimelineId,
    /// Where the latest checkpoint's record begins.
    pub checkpoint: Lsn,
    /// Where its redo begins: a record boundary that is on this disk.
    pub redo: Lsn,
    /// Recovery has to reach this before the data is consistent. Zero when none.
    pub min_recovery: Lsn,
    /// And on this timeline.
    pub min_recovery_tli: Option<TimelineId>,
    /// Data checksums or `wal_log_hints`: what pg_rewind needs.
    pub can_rewind: bool,
    /// Bytes a WAL segment.
    pub wal_segment: Bytes,
}

impl ControlData {
    /// The newest timeline that this directory is known to have followed.
    pub fn tli(&self) -> TimelineId {
        self.min_recovery_tli.map_or(self.checkpoint_tli, |tli| tli.max(self.checkpoint_tli))
    }
}

/// The cluster state in `pg_control`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlState {
    /// `starting up`
    StartingUp,
    /// `shut down`: a primary that ended cleanly.
    ShutDown,
    /// `shut down in recovery`: a standby that ended cleanly.
    ShutDownInRecovery,
    /// `shutting down`
    ShuttingDown,
    /// `in crash recovery`
    InCrashRecovery,
    /// `in archive recovery`: a standby, running or killed.
    InArchiveRecovery,
    /// `in production`: a primary, running or killed.
    InProduction,
}

impl fmt::Display for ControlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        })
    }
}

/// The end of the last complete record on disk, found by a scan from a known boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// On which timeline.
    pub tli: TimelineId,
    /// Where the next record would begin.
    pub lsn: Lsn,
}

/// What a session on the server saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// Which start.
    pub run: Run,
    /// `server_version_num`.
    pub version_num: u32,
    /// Its system identifier.
    pub system_id: SystemId,
    /// Role and positions.
    pub role: ServerRole,
    /// One row a walsender.
    pub walsenders: Vec<Walsender>,
    /// Physical slots.
    pub slots: Vec<Slot>,
    /// Settings that wait for a restart.
    pub pending_restart: Vec<String>,
    /// `synchronous_standby_names` as in force for new sessions.
    pub sync_names: String,
    /// Of a primary: the `synchronous_commit` of its configuration files, and where it stands, if commits with that wait for no replica's flush.
    #[serde(default)]
    pub weak_commits: Option<String>,
    /// Of a primary whose commits wait for replicas: those that wait now.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// Of a primary: where the oldest segment in `pg_wal` begins. What lies before that it cannot send.
    #[serde(default)]
    pub oldest_wal: Option<Lsn>,
}

/// Commits that wait for replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// How many sessions wait.
    pub sessions: u32,
    /// For how long the first of them has.
    pub longest: Span,
}

/// Role and positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerRole {
    /// Out of recovery.
    Primary {
        /// Its timeline.
        tli: TimelineId,
        /// `pg_current_wal_insert_lsn()`: a record boundary.
        insert: Lsn,
        /// `pg_current_wal_flush_lsn()`: no boundary.
        flush: Lsn,
    },
    /// In recovery.
    Standby {
        /// The timeline that is being replayed.
        tli: TimelineId,
        /// `pg_last_wal_receive_lsn()`: no boundary, and `None` until something was received in this run.
        receive: Option<Lsn>,
        /// `pg_last_wal_replay_lsn()`: a record boundary.
        replay: Lsn,
        /// The walreceiver, where one runs.
        receiver: Option<Receiver>,
        /// `primary_conninfo` as in force, without its password; empty when none.
        conninfo: String,
        /// What this run aims at.
        #[serde(default)]
        target: RecoveryTarget,
        /// Why replay stands still, where it does.
        pause: Option<Pause>,
        /// Now − commit time of the last replayed transaction, in milliseconds; 0 when everything received is replayed.
        replay_ms: u64,
    },
}

impl ServerRole {
    /// Whether it is in recovery, and its walreceiver streams.
    pub fn streams(&self) -> bool {
        matches!(self, Self::Standby { receiver: Some(receiver), .. } if receiver.streaming)
    }
}

/// `recovery_target_timeline`: which timeline recovery aims at. Read at the start, and for the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryTarget {
    /// The newest one that goes on from where it is, looked for again and again.
    #[default]
    Latest,
    /// The one that `pg_control` names at the start: that of the last restart point at least.
    Current,
    /// This one.
    Timeline(TimelineId),
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Current => f.write_str("current"),
            Self::Timeline(tli) => tli.fmt(f),
        }
    }
}

impl RecoveryTarget {
    /// From the value of the parameter. PG source, `check_recovery_target_timeline`: a word, or a number.
    pub fn of_parameter(value: &str) -> Option<Self> {
        match value {
            "" | "latest" => Some(Self::Latest),
            "current" => Some(Self::Current),
            number => number.parse().ok().and_then(TimelineId::new).map(Self::Timeline),
        }
    }
}

/// A running walreceiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// Whether it streams (else it is starting, waiting, restarting or stopping).
    pub streaming: bool,
    /// To which server.
    pub sender: Option<Address>,
    /// The timeline that it receives.
    pub tli: Option<TimelineId>,
    /// The sender's end of WAL, as last reported.
    pub latest_end: Option<Lsn>,
}

/// Why replay stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pause {
    /// Somebody called `pg_wal_replay_pause()`.
    Requested,
    /// A parameter here is lower than the primary's: a promotion would shut the server down (EXP-14).
    Parameters,
}

/// One row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walsender {
    /// `application_name`: `<node>_<data incarnation>` for our members.
    pub application_name: String,
    /// Whether `state` is `streaming`.
    pub streaming: bool,
    /// Sent.
    pub sent: Option<Lsn>,
    /// Written.
    pub write: Option<Lsn>,
    /// Flushed.
    pub flush: Option<Lsn>,
    /// Replayed.
    pub replay: Option<Lsn>,
    /// `replay_lag` in milliseconds.
    pub replay_ms: Option<u64>,
    /// `reply_time`, in microseconds since 1970 by the replica's clock. Only its changes mean something: each is a message.
    pub reply: Option<i64>,
}

impl Walsender {
    /// How far its replica is behind this insert position of the primary.
    pub fn lag(&self, insert: Lsn) -> Lag {
        let behind = |position: Option<Lsn>| position.map(|position| insert.bytes_ahead_of(position).get());
        let (sent, write, flush, replay) = (behind(self.sent), behind(self.write), behind(self.flush), behind(self.replay));
        Lag { sent, write, flush, replay, replay_ms: self.replay_ms }
    }
}

/// One physical replication slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its name.
    pub name: SlotName,
    /// Whether a walsender uses it.
    pub active: bool,
    /// How much WAL it holds back, in bytes.
    pub retained: u64,
    /// Whether its WAL is gone (`wal_status = lost`).
    pub lost: bool,
}
