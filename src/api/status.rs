//! `/v1/status`: what one node knows of itself and of its cluster. Plain data, for those who serve it and those who read it.

use super::{durability::DurabilityStatus, health};
use crate::{
    agent::handle::Published,
    decide::{
        SILENT_AFTER,
        decision::{Reason, ReasonKind, Task},
        snapshot::{Snapshot, is_held},
    },
    model::{
        instance::{DataDir, KillMode, ServerRole, Walsender},
        lsn::Lsn,
        moment::{Moment, Span},
        node::{Address, ClusterName, DataIncarnation, Incarnation, NodeName, Replica, SystemId},
        node_file::{Boundary, NodeFile},
        observed::Observed,
        record::{Answer, Lag, LeaderRecord, LeaderState, MemberRecord, MemberRole, Pause, Tags},
        records::Records,
        term::Term,
        timeline::TimelineId,
    },
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What one node knows of itself and of its cluster, at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster.
    pub cluster: ClusterName,
    /// PostgreSQL's identifier of its data, once known.
    pub system_id: Option<SystemId>,
    /// Which node answers.
    pub node: NodeName,
    /// When, by the node's wall clock (RFC 3339).
    pub at: String,
    /// How long ago the node's loop last decided, in seconds. Everything below is as of then, but what is left of deadlines.
    pub age_seconds: f64,
    /// The version of its agent.
    pub version: String,
    /// What its PostgreSQL is.
    pub role: MemberRole,
    /// What its PostgreSQL is doing, for people.
    pub state: String,
    /// The newest term that it knows.
    pub term: Term,
    /// `leader`, as it last saw it.
    pub leader: Option<LeaderStatus>,
    /// How long it may still act as the holder; `None` where it is none.
    pub lease_seconds_left: Option<f64>,
    /// Every node of the cluster that it knows of.
    pub members: Vec<MemberStatus>,
    /// Who may take over.
    pub electable: Vec<Replica>,
    /// What a commit waits for, once there is a cluster.
    #[serde(default)]
    pub durability: Option<DurabilityStatus>,
    /// Where clients may be sent, as far as this node is concerned.
    pub routing: RoutingStatus,
    /// What ends its PostgreSQL at the deadline.
    pub fencing: FencingStatus,
    /// What it knows of etcd.
    pub etcd: EtcdStatus,
    /// PostgreSQL settings that wait for a restart of it.
    pub pending_restart: Vec<String>,
    /// What goes on here.
    pub jobs: Vec<JobStatus>,
    /// What it last decided, and why.
    pub reasons: Vec<Reason>,
    /// Those of the reasons that a human must look at.
    pub alarms: Vec<Reason>,
    /// Whether the node is being stopped.
    pub stopping: bool,
    /// To whom it has given its word not to follow anybody else, while etcd does not answer there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<BoundStatus>,
    /// The node's own file: what it has promised, claimed and seen.
    pub file: NodeFile,
    /// The newest record boundary that it knows to be on its disk, on the timeline that it is on; zero where it knows the timeline alone.
    pub position: Option<Boundary>,
    /// Why nobody can be promoted on its data: what a rewind or a copy has left needs WAL that is not there.
    #[serde(default)]
    pub falls_short: Option<String>,
    /// The newest term for which its guard accepted a promotion or a start as primary.
    pub primary_of: Option<Term>,
    /// Whether its guard says that not one process of PostgreSQL lives.
    pub verified_empty: bool,
}

/// A word that a node has given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundStatus {
    /// To whom.
    pub node: NodeName,
    /// In which term.
    pub term: Term,
    /// For how long it still binds.
    pub seconds_left: f64,
}

/// `leader`, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaderStatus {
    /// Whom it names.
    pub node: NodeName,
    /// In which life of its data directory.
    pub data: DataIncarnation,
    /// `claimed`, `serving`, `handoff`, `vacant`, `paused`, or a state of a newer version.
    pub state: String,
    /// More about the state, for people; empty where there is no more.
    pub note: String,
    /// Its term.
    pub term: Term,
    /// The timeline on which it serves.
    pub tli: TimelineId,
    /// A position that it has passed.
    pub lsn: Lsn,
    /// Where its PostgreSQL listens.
    pub postgres: Address,
    /// How long the holder may act from the send of a renewal.
    pub hold: Span,
    /// How long a taker must see the record stand still.
    pub wait: Span,
    /// Nobody holds it: vacant, also while it is paused.
    #[serde(default)]
    pub vacant: bool,
    /// There were too many automatic failovers: no other node follows by itself.
    #[serde(default)]
    pub failovers_stopped: bool,
    /// For how long this node has seen it stand still.
    pub stood_still_seconds: f64,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Which.
    pub node: NodeName,
    /// The present life of its data directory, once known.
    pub data: Option<DataIncarnation>,
    /// What its PostgreSQL is, by its own word; `None`: it says nothing.
    pub role: Option<MemberRole>,
    /// Whether `leader` names it as a holder that may act.
    pub leader: bool,
    /// What its PostgreSQL is doing, for people: by its own word, or as the primary sees that it is not so.
    pub state: String,
    /// For how long it has not renewed its record, once that is longer than it should be (5 s): its word may not hold any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_seconds: Option<f64>,
    /// Its timeline.
    pub tli: Option<TimelineId>,
    /// Insert position (primary) or received position (replica).
    pub lsn: Option<Lsn>,
    /// Replayed position.
    pub replay: Option<Lsn>,
    /// How far it is behind, by stage.
    pub lag: Lag,
    /// Whether it may take over.
    pub electable: bool,
    /// Its tags.
    pub tags: Tags,
    /// Its failure domain.
    pub zone: String,
    /// Where its PostgreSQL listens.
    pub postgres: Option<Address>,
    /// Where its API answers.
    pub api: Option<String>,
    /// The version of its agent.
    pub version: String,
    /// The version of its PostgreSQL.
    pub postgres_version: String,
    /// Which fencing is in force there, for people.
    pub fencing: String,
    /// Whether a PostgreSQL setting waits for a restart there.
    pub pending_restart: bool,
    /// What became of the last request that it took and could not carry out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// Where clients may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingStatus {
    /// Writes may come here, at this moment.
    pub writes: bool,
    /// Reads may come here.
    pub reads: bool,
}

/// What ends PostgreSQL at the deadline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FencingStatus {
    /// By which means; `None` without a guard.
    pub kill: Option<KillMode>,
    /// Whether the guard's self-test showed that this works here.
    pub works: bool,
    /// How long until the kernel ends PostgreSQL unless the guard is armed anew; `None` where nothing is armed.
    pub armed_seconds_left: Option<f64>,
}

/// What is known of etcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EtcdStatus {
    /// Whether it answers.
    pub answers: bool,
    /// For how long it has been silent; or how old its last answer is.
    pub seconds: f64,
    /// Why it does not answer.
    pub why: Option<String>,
    /// Why this etcd must not be believed.
    pub suspect: Option<String>,
    /// The revision of the records that this node believes.
    pub revision: u64,
    /// The cluster's uuid.
    pub uuid: Option<Incarnation>,
    /// Raised by `etcd recover`.
    pub generation: u64,
}

/// Something that goes on for a while, or that failed and is tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobStatus {
    /// What.
    pub task: Task,
    /// For how long, in seconds; `None` where it rests after a failure.
    pub seconds: Option<f64>,
    /// How often it failed in a row before.
    pub failures: u32,
    /// How it failed last.
    pub why: Option<String>,
}

impl Status {
    /// Whether the node that answers knows what stands in etcd: it has read it, and etcd answers it still.
    pub const fn knows(&self) -> bool {
        self.leader.is_some() && self.etcd.answers
    }

    /// What a node publishes, at `now` (`CLOCK_BOOTTIME`) and `wall`.
    pub fn of(published: &Published, now: Moment, wall: String) -> Self {
        let (s, decision) = (&published.snapshot, &published.decision);
        let records = &s.etcd.records;
        let cluster = records.cluster.as_ref().map(|cluster| &cluster.record);
        let alarms = decision.reasons.iter().filter(|reason| reason.kind == ReasonKind::Alarm);
        Self {
            cluster: s.file.cluster.clone(),
            system_id: cluster.map(|cluster| cluster.system_id).or_else(|| system_id(s)),
            node: s.me.node.clone(),
            at: wall,
            age_seconds: seconds(now.since(s.now.boot)),
            version: s.me.version.clone(),
            role: role(s),
            state: s.doing().to_owned(),
            term: s.leader().map_or(Term::ZERO, |leader| leader.record.term).max(s.file.term),
            leader: leader(s, now),
            lease_seconds_left: s
                .leader()
                .filter(|_| s.holds() && s.pause().is_none())
                .and_then(|leader| s.lease.until(leader.record.term))
                .map(|until| left(until, now)),
            members: members(published, now),
            electable: s.sync().map(|sync| sync.record.electable.clone()).unwrap_or_default(),
            durability: DurabilityStatus::of(s),
            routing: RoutingStatus {
                writes: health::takes_writes(published, now),
                reads: decision.routing.reads && health::is_fresh(published, now),
            },
            fencing: fencing(s, now),
            etcd: etcd(s, now),
            pending_restart: s.server().map(|facts| facts.pending_restart.clone()).unwrap_or_default(),
            jobs: jobs(s, now),
            reasons: decision.reasons.clone(),
            alarms: alarms.cloned().collect(),
            stopping: s.stopping,
            bound: s.bound().map(|(ack, ends)| BoundStatus {
                node: ack.holder.node.clone(),
                term: ack.term,
                seconds_left: left(ends, now),
            }),
            file: s.file.clone(),
            position: s.position(),
            falls_short: s.falls_short(),
            primary_of: s.guard().and_then(|guard| guard.primary_of),
            verified_empty: s.is_empty(),
        }
    }
}

/// To the millisecond: more digits say nothing.
fn seconds(span: Span) -> f64 {
    Span::from_millis(span.as_millis()).as_secs_f64()
}

fn left(until: Moment, now: Moment) -> f64 {
    seconds(until.since(now))
}

fn system_id(s: &Snapshot) -> Option<SystemId> {
    match s.disk() {
        Some(DataDir::Present(disk)) => Some(disk.control.system_id),
        _ => s.server().map(|facts| facts.system_id),
    }
}

fn role(s: &Snapshot) -> MemberRole {
    match s.role() {
        Some(ServerRole::Primary { .. }) => MemberRole::Primary,
        Some(ServerRole::Standby { .. }) => MemberRole::Replica,
        None => MemberRole::Down,
    }
}

fn leader(s: &Snapshot, now: Moment) -> Option<LeaderStatus> {
    let stood_still = s.stood_still().plus(now.since(s.now.boot));
    s.leader().map(|leader| LeaderStatus { stood_still_seconds: seconds(stood_still), ..LeaderStatus::of(&leader.record) })
}

/// By whom, since when, for how long, and why.
fn paused(pause: &Pause) -> String {
    let until = pause.until.map(|until| format!(" for {until}")).unwrap_or_default();
    let since = if pause.at.is_empty() { String::new() } else { format!(" since {}", pause.at) };
    let held = pause.vacant.as_ref().map(|why| format!(" (nobody held it: {why})")).unwrap_or_default();
    format!("by {}{since}{until}: {}{held}", pause.by, pause.reason)
}

impl LeaderStatus {
    /// What the record alone says.
    pub fn of(record: &LeaderRecord) -> Self {
        let (state, note) = match &record.state {
            LeaderState::Claimed => ("claimed", String::new()),
            LeaderState::Serving => ("serving", String::new()),
            LeaderState::Handoff { to } => ("handoff", format!("to {to}")),
            LeaderState::Vacant { reason } => ("vacant", reason.clone()),
            LeaderState::Paused(pause) => ("paused", paused(pause)),
            LeaderState::Foreign { name } => (name.as_str(), "a state of a newer version".to_owned()),
        };
        Self {
            node: record.holder.node.clone(),
            data: record.holder.data.clone(),
            state: state.to_owned(),
            note,
            term: record.term,
            tli: record.tli,
            lsn: record.lsn,
            postgres: record.holder.postgres.clone(),
            hold: record.hold,
            wait: record.wait,
            vacant: !is_held(record) && !matches!(record.state, LeaderState::Foreign { .. }),
            failovers_stopped: record.failovers.as_ref().is_some_and(|failovers| failovers.stopped),
            stood_still_seconds: 0.0,
        }
    }
}

/// Every node that the records name; what each says of itself, for how long it has said nothing, and, on the primary, what its
/// walsenders show.
fn members(published: &Published, now: Moment) -> Vec<MemberStatus> {
    let s = &published.snapshot;
    // While etcd says nothing to us, nobody's silence is known.
    let until = match &s.etcd.answered {
        Observed::Known { .. } | Observed::Absent { .. } => now,
        Observed::Unknown { since, .. } => *since,
    };
    let mut members = members_of(&s.etcd.records, Some(&s.me.node));
    for member in &mut members {
        let Some(said) = s.etcd.records.members.get(&member.node).map(|stored| &stored.record) else { continue };
        member.lag = lag(s, &member.node, said);
        if member.node == s.me.node {
            continue;
        }
        let silent = published.heard.get(&member.node).map(|(_, heard)| until.since(*heard));
        member.silent_seconds = silent.filter(|silent| *silent >= SILENT_AFTER).map(seconds);
        if member.state == "streaming" && walsenders(s).is_some_and(|rows| row_of(rows, &member.node, said).is_none()) {
            "not connected".clone_into(&mut member.state);
        }
    }
    members
}

/// What the primary's own server shows of those who stream from it; `None` where ours is no primary.
fn walsenders(s: &Snapshot) -> Option<&[Walsender]> {
    s.server().filter(|facts| matches!(facts.role, ServerRole::Primary { .. })).map(|facts| facts.walsenders.as_slice())
}

fn row_of<'a>(rows: &'a [Walsender], node: &NodeName, said: &MemberRecord) -> Option<&'a Walsender> {
    let name = Replica::new(node.clone(), said.data.clone()).application_name();
    rows.iter().find(|row| row.application_name == name)
}

/// Every node that has a key of any kind in `records`, and `also`.
pub fn members_of(records: &Records, also: Option<&NodeName>) -> Vec<MemberStatus> {
    let electable = records.sync.as_ref().map(|sync| sync.record.electable.as_slice()).unwrap_or_default();
    let mut names: BTreeSet<&NodeName> = records.members.keys().chain(records.nodes.keys()).collect();
    names.extend(electable.iter().map(|replica| &replica.node));
    names.extend(records.leader.as_ref().map(|leader| &leader.record.holder.node));
    names.extend(also);
    names.into_iter().map(|node| member(records, node, electable)).collect()
}

fn member(records: &Records, node: &NodeName, electable: &[Replica]) -> MemberStatus {
    let said = records.members.get(node).map(|stored| &stored.record);
    let life = records.nodes.get(node).map(|stored| stored.record.data.clone()).or_else(|| said.map(|said| said.data.clone()));
    let held = records.leader.as_ref().is_some_and(|leader| leader.record.holder.node == *node && is_held(&leader.record));
    let is_electable = electable.iter().any(|replica| replica.node == *node && life.as_ref().is_none_or(|life| *life == replica.data));
    let ahead = said.filter(|said| said.role != MemberRole::Down);
    MemberStatus {
        node: node.clone(),
        role: said.map(|said| said.role),
        leader: held,
        state: said.map_or_else(|| "silent".to_owned(), |said| said.state.clone()),
        silent_seconds: None,
        tli: said.and_then(|said| said.tli),
        lsn: ahead.map(|said| said.lsn),
        replay: ahead.map(|said| said.replay),
        lag: said.map(|said| Lag { sent: sent(records, node), ..said.lag }).unwrap_or_default(),
        electable: is_electable,
        tags: said.map(|said| said.tags.clone()).unwrap_or_default(),
        zone: said.map(|said| said.zone.clone()).unwrap_or_default(),
        postgres: said.map(|said| said.postgres.clone()),
        api: said.and_then(|said| said.api.clone()),
        version: said.map(|said| said.version.clone()).unwrap_or_default(),
        postgres_version: said.map(|said| said.postgres_version.clone()).unwrap_or_default(),
        fencing: said.map(|said| said.fencing.clone()).unwrap_or_default(),
        pending_restart: said.is_some_and(|said| said.pending_restart),
        answer: said.and_then(|said| said.answer.clone()),
        data: life,
    }
}

/// What the primary has not sent to this node, as the primary says.
fn sent(records: &Records, node: &NodeName) -> Option<u64> {
    let holder = &records.leader.as_ref()?.record.holder.node;
    records.members.get(holder)?.record.replicas.get(node)?.sent
}

/// What the member says of itself, and, on its primary, what the walsender shows.
fn lag(s: &Snapshot, node: &NodeName, said: &MemberRecord) -> Lag {
    let Some((facts, insert)) = s.server().and_then(|facts| match &facts.role {
        ServerRole::Primary { insert, .. } => Some((facts, *insert)),
        ServerRole::Standby { .. } => None,
    }) else {
        return said.lag;
    };
    let Some(row) = row_of(&facts.walsenders, node, said) else { return said.lag };
    let shown = row.lag(insert);
    Lag { replay_ms: shown.replay_ms.or(said.lag.replay_ms), ..shown }
}

fn fencing(s: &Snapshot, now: Moment) -> FencingStatus {
    let guard = s.guard();
    FencingStatus {
        kill: guard.map(|guard| guard.kill),
        works: guard.is_some_and(|guard| guard.fenced),
        armed_seconds_left: guard.and_then(|guard| guard.armed).map(|armed| left(armed.until, now)),
    }
}

fn etcd(s: &Snapshot, now: Moment) -> EtcdStatus {
    let (answers, since, why) = match &s.etcd.answered {
        Observed::Known { at, .. } | Observed::Absent { at } => (true, *at, None),
        Observed::Unknown { since, why } => (false, *since, Some(why.clone())),
    };
    let cluster = s.etcd.records.cluster.as_ref().map(|cluster| &cluster.record);
    EtcdStatus {
        answers,
        seconds: seconds(now.since(since)),
        why,
        suspect: s.etcd.suspect.clone(),
        revision: s.etcd.records.revision,
        uuid: cluster.map(|cluster| cluster.uuid.clone()).or_else(|| s.file.floors.uuid.clone()),
        generation: cluster.map_or(s.file.floors.generation, |cluster| cluster.generation),
    }
}

fn jobs(s: &Snapshot, now: Moment) -> Vec<JobStatus> {
    let kinds: BTreeSet<Task> = s.tasks.keys().chain(s.failures.keys()).copied().collect();
    let failures: &BTreeMap<Task, _> = &s.failures;
    let job = |task: Task| JobStatus {
        task,
        seconds: s.tasks.get(&task).map(|since| seconds(now.since(*since))),
        failures: failures.get(&task).map_or(0, |failure| failure.count),
        why: failures.get(&task).map(|failure| failure.why.clone()),
    };
    kinds.into_iter().map(job).collect()
}
