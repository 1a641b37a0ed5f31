//! What one node knows at one moment: the whole input of a decision.

use crate::model::{
    failsafe::Peers,
    instance::{DataDir, GuardStatus, KillMode, Process, Run, ServerFacts, ServerRole, Whole},
    key::{Compare, Key},
    lsn::{Bytes, Lsn},
    moment::{Clocks, Moment, Span},
    node::{Address, DataIncarnation, Incarnation, NodeName, Nonce, Replica},
    node_file::{Boundary, ClonePlace, NodeFile},
    observed::Observed,
    policy::{ClusterPolicy, Durability},
    record::{LeaderRecord, LeaderState, Stored, SyncRecord, Tags},
    records::Records,
    term::Term,
    timeline::TimelineId,
    wal_layout::Layout,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use super::failure::Failure;

use super::{
    decision::{Completed, Configuration, Memory, Task},
    failsafe,
};

/// What one node knows at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When it was taken.
    pub now: Clocks,
    /// Who decides.
    pub me: Me,
    /// The node file, as fsynced.
    pub file: NodeFile,
    /// The policy in force: the newest readable one, else the defaults.
    pub policy: ClusterPolicy,
    /// The guard in session.
    pub guard: Observed<GuardStatus>,
    /// The guard that this agent was in session with before, and saw die.
    pub former_guard: Option<Incarnation>,
    /// etcd.
    pub etcd: Etcd,
    /// Our authority, where we hold or claim.
    pub lease: Lease,
    /// How long the present `leader` value has stood still before our eyes.
    pub standing: Option<Standing>,
    /// PostgreSQL from inside.
    pub server: Observed<ServerFacts>,
    /// Since when the server of the run that is alive says that it lets nobody in before it is consistent; it has answered nobody in this run.
    pub inconsistent_since: Option<Moment>,
    /// How WAL lies on this disk, by the directory that was last seen here.
    pub layout: Layout,
    /// The data directory, as last inspected.
    pub disk: Observed<DataDir>,
    /// Where a copy of another node would be made here, as last looked at.
    pub place: Option<CopyPlace>,
    /// What was last made or replaced in the data directory, until the node file has taken note of it.
    pub completed: Option<Completed>,
    /// The end of the last scan of our WAL.
    pub whole: Option<Scanned>,
    /// The newest record boundary that is known to be on this disk.
    pub boundary: Option<Boundary>,
    /// When the walreceiver last made progress.
    pub received_at: Option<Moment>,
    /// The managed configuration, as last written and reloaded (or started with).
    pub configured: Option<Configuration>,
    /// The `synchronous_standby_names` that new connections were last seen to show.
    pub shown: Option<Shown>,
    /// The last look whether a primary's PostgreSQL answers us.
    pub probed: Option<Probed>,
    /// A write of `sync` by us may have happened, or may yet: what it says counts as well as what is seen.
    pub sync_unsettled: bool,
    /// Such writes, and those on their way: each may be in force.
    #[serde(default)]
    pub sync_written: Vec<SyncRecord>,
    /// What peers have asked of us, and answered us.
    #[serde(default)]
    pub peers: Peers,
    /// The history files known to be in `pg_wal`.
    pub histories: Arc<BTreeMap<TimelineId, String>>,
    /// When each replica last confirmed anything to us as its primary.
    #[serde(with = "crate::model::node::by_application_name")]
    pub confirmed: BTreeMap<Replica, Moment>,
    /// What goes on, and since when.
    pub tasks: BTreeMap<Task, Moment>,
    /// What failed last, by kind.
    pub failures: BTreeMap<Task, Failure>,
    /// The operator or the service manager wants this node to stop.
    pub stopping: bool,
    /// Names that nobody used before, for what this decision writes.
    pub fresh: Fresh,
    /// What the last decision wanted to remember.
    pub memory: Memory,
}

/// Who decides: what the node's configuration says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Me {
    /// The node.
    pub node: NodeName,
    /// This run of the agent.
    pub agent: Incarnation,
    /// Where PostgreSQL can be reached.
    pub postgres: Address,
    /// Where the API can be reached.
    pub api: Option<String>,
    /// Failure domain.
    pub zone: String,
    /// Tags.
    pub tags: Tags,
    /// Agent version.
    pub version: String,
    /// The first policy of a new cluster.
    pub first_policy: ClusterPolicy,
    /// What commits wait for in a cluster that was there before.
    pub adopted_durability: Durability,
    /// PostgreSQL's major version by its binaries.
    pub major: u32,
    /// This boot of the machine.
    pub boot: Incarnation,
    /// Whether that is the kernel's name for it: else it is another one at each start of the agent.
    pub boot_is_named: bool,
    /// Whether peers can prove to us who they are, and we to them.
    pub peer_key: bool,
}

/// What is known of etcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Etcd {
    /// All records, never going back.
    pub records: Arc<Records>,
    /// When the newest linearizable answer was asked for; `Unknown` while etcd is silent.
    pub answered: Observed<()>,
    /// Why this etcd must not be believed, where that is so.
    pub suspect: Option<String>,
    /// This node has seen more than this cluster's etcd shows: others should know.
    #[serde(default)]
    pub went_back: bool,
}

/// The observation of one value of `leader` (protocol 1.4, *Taker*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Which value.
    pub nonce: Nonce,
    /// When it was first seen (`CLOCK_MONOTONIC`).
    pub since: Moment,
    /// `CLOCK_BOOTTIME − CLOCK_MONOTONIC` then.
    pub suspended: Span,
}

/// Our writes of `leader` (protocol 1.4, *Holder*).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The newest write known to be committed.
    pub confirmed: Option<Attempt>,
    /// Writes sent after it whose outcome is not settled, oldest first.
    pub unsettled: Vec<Attempt>,
}

/// One write of `leader` by us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which write.
    pub nonce: Nonce,
    /// Its term.
    pub term: Term,
    /// `CLOCK_BOOTTIME` before it was sent: validity counts from here.
    pub sent: Moment,
    /// The hold that it carries.
    pub hold: Span,
    /// Whether it names us as a holder who may act (a release does not).
    pub holds: bool,
}

impl Attempt {
    /// When the authority that it gives ends.
    pub const fn until(&self) -> Moment {
        self.sent.plus(self.hold)
    }
}

impl Lease {
    /// Until when we may act in `term`: the newest committed write's end, or that of an unsettled one with less.
    ///
    /// A release that may have committed ends it at its send.
    pub fn until(&self, term: Term) -> Option<Moment> {
        let confirmed = self.confirmed.as_ref().filter(|attempt| attempt.term == term && attempt.holds)?;
        let least = self.unsettled.iter().map(|attempt| if attempt.holds { attempt.until() } else { attempt.sent }).min();
        Some(least.map_or(confirmed.until(), |least| least.min(confirmed.until())))
    }
}

/// Where a copy of another node would be made here, by its size, the room, and mount points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyPlace {
    /// Whose size was asked for.
    pub source: NodeName,
    /// What a copy of it takes, in bytes, without WAL.
    pub size: Bytes,
    /// Beside the old directory, or in its place.
    pub place: ClonePlace,
    /// What spoke against a place beside it, for people; empty where nothing did.
    pub why: String,
    /// What is free where the data directory lies, in bytes.
    pub free: Bytes,
    /// When the look began.
    pub at: Moment,
}

/// What new connections were seen to show as `synchronous_standby_names`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// In which run of the server.
    pub run: Run,
    /// As shown.
    pub names: String,
    /// Whether two checkpoints followed.
    pub checkpoints: bool,
    /// A place in the primary's log that was reached after all that; `None` on a standby.
    pub mark: Option<Lsn>,
    /// When it was asked for: the names had been written before.
    pub at: Moment,
    /// When the answer came.
    #[serde(default)]
    pub known: Moment,
}

/// Whether a primary's PostgreSQL answered us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Where it was asked.
    pub address: Address,
    /// Whether any answer came: a full one, of the server itself. A frozen host still takes connections.
    pub answered: bool,
    /// When it was asked.
    pub at: Moment,
}

/// The end of a scan of our WAL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scanned {
    /// The end that was found.
    pub whole: Whole,
    /// While which run was alive; `None` when nothing ran.
    pub run: Option<Run>,
    /// When the scan began.
    pub at: Moment,
}

/// Names that nobody used before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fresh {
    /// For a transaction; several of one decision add a suffix each.
    pub nonce: Nonce,
    /// For a new life of the data directory.
    pub data: DataIncarnation,
    /// For a new cluster.
    pub uuid: Incarnation,
    /// The wall clock, for people.
    pub wall: String,
}

impl Snapshot {
    /// We, in the present life of our data directory.
    pub fn myself(&self) -> Replica {
        Replica::new(self.me.node.clone(), self.file.data.clone())
    }

    /// `leader`, as last seen.
    pub fn leader(&self) -> Option<&Stored<LeaderRecord>> {
        self.etcd.records.leader.as_ref()
    }

    /// `sync`, as last seen.
    pub fn sync(&self) -> Option<&Stored<SyncRecord>> {
        self.etcd.records.sync.as_ref()
    }

    /// Whether nothing acknowledged may be lost: the mode that `sync` names is one of those in which commits wait for voters.
    pub fn is_lossless(&self) -> bool {
        self.sync().is_some_and(|sync| sync.record.is_lossless())
    }

    /// The guard's status, where one is in session.
    pub const fn guard(&self) -> Option<&GuardStatus> {
        self.guard.value()
    }

    /// The process tree, where the guard tells.
    pub fn process(&self) -> Option<&Process> {
        self.guard().map(|guard| &guard.process)
    }

    /// Whether the guard says that not one process lives, and none is about to: a start that was asked for may come at any moment.
    pub fn is_empty(&self) -> bool {
        matches!(self.process(), Some(Process::Empty { .. })) && !self.is_starting()
    }

    /// Whether a start was asked for, and has neither been refused nor shown a process.
    pub fn is_starting(&self) -> bool {
        let begins = self.busy(Task::Start) || self.guard().is_some_and(|guard| guard.starting);
        begins && matches!(self.process(), Some(Process::Empty { .. }))
    }

    /// The run that is alive.
    pub fn run(&self) -> Option<Run> {
        match self.process()? {
            Process::Running { run, .. } | Process::Dying { run } => Some(*run),
            Process::Empty { .. } => None,
        }
    }

    /// What the server last said, if that was in the run that is alive now.
    pub fn server(&self) -> Option<&ServerFacts> {
        self.server.value().filter(|facts| Some(facts.run) == self.run())
    }

    /// The server's role, if known for the run that is alive now.
    pub fn role(&self) -> Option<&ServerRole> {
        self.server().map(|facts| &facts.role)
    }

    /// What PostgreSQL does here, in a few words for people.
    pub fn doing(&self) -> &'static str {
        match self.process() {
            None => "no guard",
            Some(Process::Empty { .. }) if self.file.operation.is_some() => "being copied or rewound",
            Some(Process::Empty { .. }) => "stopped",
            Some(Process::Dying { .. }) => "dying",
            Some(Process::Running { stopping: Some(_), .. }) => "stopping",
            Some(Process::Running { .. }) => match self.role() {
                None => "starting",
                Some(ServerRole::Primary { .. }) => "running",
                Some(role) if role.streams() => "streaming",
                Some(ServerRole::Standby { .. }) => "in recovery",
            },
        }
    }

    /// What lies in the data directory.
    pub const fn disk(&self) -> Option<&DataDir> {
        self.disk.value()
    }

    /// Whether `task` goes on.
    pub fn busy(&self, task: Task) -> bool {
        self.tasks.contains_key(&task)
    }

    /// When `task` may be tried (again): not while it goes on, and after a failure not before a pause that doubles, up to `longest`.
    pub fn ready_at(&self, task: Task, longest: Span) -> Option<Moment> {
        if self.busy(task) {
            return None;
        }
        let Some(failure) = self.failures.get(&task) else { return Some(Moment::ZERO) };
        let pause = Span::from_millis(100).times(1 << failure.count.min(16)).min(longest);
        Some(failure.at.plus(pause))
    }

    /// Whether `task` may be tried now; see [`Self::ready_at`].
    pub fn ready(&self, task: Task, longest: Span) -> bool {
        self.ready_at(task, longest).is_some_and(|at| at <= self.now.boot)
    }

    /// Whether `leader` names this node, this life of its data, and the guard in session, as a holder that may act.
    pub fn holds(&self) -> bool {
        self.leader().is_some_and(|leader| self.named_by(&leader.record) && is_held(&leader.record))
    }

    /// Whether `record` names this node, this life of its data, and the guard in session.
    pub fn named_by(&self, record: &LeaderRecord) -> bool {
        record.holder.replica() == self.myself() && self.guard().is_some_and(|guard| guard.incarnation == record.holder.guard)
    }

    /// Until when we may act as the holder of the present term; `None` where we may not. A pause gives no time: see [`Self::holds_paused`].
    pub fn authority(&self) -> Option<Moment> {
        let leader = self.leader().filter(|_| self.holds() && failsafe::superseded(self).is_none())?;
        let paused = matches!(leader.record.state, LeaderState::Paused(_));
        self.lease.until(leader.record.term).max(failsafe::until(self)).filter(|until| !paused && self.now.boot < *until)
    }

    /// Whether a confirmed renewal allows us to act now, and not only the word of peers.
    pub fn is_leased(&self) -> bool {
        let leader = self.leader().filter(|_| self.holds());
        leader.and_then(|leader| self.lease.until(leader.record.term)).is_some_and(|until| self.now.boot < until)
    }

    /// How long the present value of `leader` has stood still before our eyes.
    pub fn stood_still(&self) -> Span {
        let Some(leader) = self.leader() else { return Span::ZERO };
        match &self.standing {
            Some(standing) if standing.nonce == leader.record.nonce && !self.now.slept_since(standing.suspended) => {
                self.now.mono.since(standing.since).rounded()
            }
            _ => Span::ZERO,
        }
    }

    /// Whether we are the owner that `sync` names: the last primary, with the data that it then had (protocol 1.2).
    ///
    /// `whole` is compared elsewhere, once it is known.
    pub fn is_owner(&self) -> bool {
        self.sync().is_some_and(|sync| {
            sync.record.primary == self.myself() && self.file.claimed.is_some_and(|claimed| claimed >= sync.record.term)
        })
    }

    /// Whether `sync` lists us as electable in the present life of our data.
    pub fn is_electable(&self) -> bool {
        self.sync().is_some_and(|sync| sync.record.electable.contains(&self.myself()))
    }

    /// Whether our promise may be needed: we vote, or may take over, in the present life of our data.
    pub fn is_elector(&self) -> bool {
        self.is_electable() || self.sync().is_some_and(|sync| sync.record.voters.contains(&self.myself()))
    }

    /// Whether the primary that `sync` names is proven dead by its releaser (protocol 1.2, `dead`).
    pub fn former_primary_released(&self) -> bool {
        match (self.leader(), self.sync()) {
            (Some(leader), Some(sync)) => leader.record.dead == Some(sync.record.term),
            _ => false,
        }
    }

    /// The end of our WAL by a scan that still holds: nothing can have been added since.
    ///
    /// With nothing running a scan made then holds; with a standby running one made in this run, after its stream was cut, does.
    pub fn whole_now(&self) -> Option<Whole> {
        let scanned = self.whole.as_ref()?;
        (scanned.run == self.run()).then_some(scanned.whole)
    }

    /// How long it still takes until `moment`, for people.
    pub const fn left(&self, moment: Moment) -> Span {
        moment.since(self.now.boot).rounded()
    }

    /// Whether something here ends PostgreSQL at the deadline whoever sleeps, as far as the self-test showed (protocol 1.5).
    ///
    /// `descendants` needs a process that is scheduled, and does not count.
    pub fn is_fenced(&self) -> bool {
        self.guard().is_some_and(|guard| guard.fenced && guard.kill != KillMode::Descendants)
    }

    /// Whether this node may become primary with the fencing it has.
    pub fn may_lead_unfenced(&self) -> bool {
        self.is_fenced() || self.policy.allow_unfenced
    }

    /// Nobody has said meanwhile that this etcd went back.
    pub fn doubt_as_known(&self) -> Compare {
        let doubt = self.etcd.records.doubt.as_ref();
        doubt.map_or(Compare::Missing(Key::Doubt), |doubt| Compare::Is(Key::Doubt, doubt.text.clone()))
    }

    /// Whether etcd answered lately enough to act on what it shows.
    pub fn etcd_answers(&self) -> bool {
        self.etcd.suspect.is_none() && matches!(self.etcd.answered, Observed::Known { .. })
    }

    /// A nonce for one of several transactions of this decision.
    pub fn nonce(&self, what: &str) -> Nonce {
        format!("{}-{what}", self.fresh.nonce).parse().unwrap_or_else(|_| self.fresh.nonce.clone())
    }

    /// Every timeline id that the ledger knows of, in any state.
    pub fn known_timelines(&self) -> BTreeSet<TimelineId> {
        let records = &self.etcd.records;
        let base = records.base.iter().flat_map(|base| {
            let newest = base.record.newest;
            base.record.histories.keys().copied().chain([newest])
        });
        records.timelines.keys().copied().chain(base).collect()
    }

    /// The newest position that the primary is known to have passed, and its timeline: what it told etcd, or us.
    pub fn primary_position(&self) -> Option<(TimelineId, Lsn)> {
        let record = &self.leader()?.record;
        let told = self.file.ack.as_ref().filter(|ack| ack.term == record.term && ack.tli == record.tli);
        Some((record.tli, told.map_or(record.lsn, |ack| ack.lsn.max(record.lsn))))
    }
}

/// Whether the record names a holder that may act (`vacant`, also paused, and states of newer versions do not).
pub fn is_held(record: &LeaderRecord) -> bool {
    match &record.state {
        LeaderState::Claimed | LeaderState::Serving | LeaderState::Handoff { .. } => true,
        LeaderState::Paused(pause) => pause.vacant.is_none(),
        LeaderState::Vacant { .. } | LeaderState::Foreign { .. } => false,
    }
}
