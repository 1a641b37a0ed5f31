//! `list`: the nodes, who is primary, how far the others are behind.

use super::{
    arguments::{ListOptions, Output},
    exit::{self, Exit},
    store,
    table::{self, Align, Reader, bytes, columns, millis},
    target::{self, Target},
};
use crate::{
    api::status::{LeaderStatus, MemberStatus, Status, members_of},
    config::Config,
    decide::decision::Reason,
    model::{
        node::{ClusterName, SystemId},
        record::MemberRole,
        term::Term,
    },
};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{fmt::Write, time::Duration};

/// The cluster as a whole, by the word of a node or of etcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Topology {
    /// The cluster.
    pub cluster: ClusterName,
    /// PostgreSQL's identifier of its data, once known.
    pub system_id: Option<SystemId>,
    /// Who says all this: a node, or `etcd`.
    pub source: String,
    /// The newest term that it knows.
    pub term: Term,
    /// `leader`.
    pub leader: Option<LeaderStatus>,
    /// The nodes.
    pub members: Vec<MemberStatus>,
    /// What a human must look at.
    pub alarms: Vec<Reason>,
    /// Why it may not be the newest state, for people.
    pub doubts: Vec<String>,
}

impl From<Status> for Topology {
    fn from(status: Status) -> Self {
        let mut doubts = Vec::new();
        if !status.etcd.answers {
            let silent = table::seconds(status.etcd.seconds);
            let why = status.etcd.why.clone().unwrap_or_default();
            doubts.push(format!("{} has not heard from etcd for {silent} ({why}): what follows may be old", status.node));
        }
        if let Some(why) = &status.etcd.suspect {
            doubts.push(format!("etcd is not believed: {why}"));
        }
        if status.age_seconds > 5.0 {
            doubts.push(format!("the agent of {} has not decided for {}", status.node, table::seconds(status.age_seconds)));
        }
        Self {
            cluster: status.cluster,
            system_id: status.system_id,
            source: status.node.to_string(),
            term: status.term,
            leader: status.leader,
            members: status.members,
            alarms: status.alarms,
            doubts,
        }
    }
}

pub(super) async fn run(target: &Target, options: &ListOptions) -> anyhow::Result<Exit> {
    loop {
        let topology = look(target).await;
        let text = topology.and_then(|topology| match target.output() {
            Output::Table => Ok(render(&topology)),
            Output::Json if options.watch => Ok(format!("{}\n", serde_json::to_string(&topology)?)),
            Output::Json => table::json(&topology),
        });
        if !options.watch {
            table::print(&text?)?;
            return Ok(Exit::Done);
        }
        let clear = if target.output() == Output::Table { "\x1b[H\x1b[2J" } else { "" };
        match text {
            Ok(text) if table::print(&format!("{clear}{text}"))? == Reader::Gone => return Ok(Exit::Done),
            Ok(_) => {}
            // It may be there again at the next look.
            Err(error) => eprintln!("{clear}pgbaton: {}", exit::message(&error)),
        }
        tokio::time::sleep(Duration::from_secs_f64(options.interval)).await;
    }
}

/// Asks the node; when its agent is down, etcd.
pub(super) async fn look(target: &Target) -> anyhow::Result<Topology> {
    let client = target.client()?;
    match client.get_json::<Status>("/v1/status").await {
        Ok(status) => Ok(status.into()),
        Err(error) if target::is_down(&error) && !target.is_remote() => {
            let note = format!("could not {error}; etcd itself is asked");
            let both = format!("could not {error}; etcd does not answer either");
            from_etcd(&target.config()?, note).await.context(both)
        }
        Err(error) => Err(error.into()),
    }
}

async fn from_etcd(config: &Config, note: String) -> anyhow::Result<Topology> {
    let listing = store::open(config).await?.list(store::DEADLINE).await?;
    let records = listing.records();
    let leader = records.leader.as_ref().map(|leader| LeaderStatus::of(&leader.record));
    Ok(Topology {
        cluster: config.cluster.clone(),
        system_id: records.cluster.as_ref().map(|cluster| cluster.record.system_id),
        source: "etcd".to_owned(),
        term: leader.as_ref().map_or(Term::ZERO, |leader| leader.term),
        leader,
        members: members_of(&records, None),
        alarms: Vec::new(),
        doubts: vec![note],
    })
}

const HEADS: [(&str, Align); 10] = [
    ("NODE", Align::Left),
    ("ROLE", Align::Left),
    ("STATE", Align::Left),
    ("TL", Align::Right),
    ("LSN", Align::Right),
    ("LAG", Align::Right),
    ("REPLAY", Align::Right),
    ("TIME", Align::Right),
    ("FAILOVER", Align::Left),
    ("NOTES", Align::Left),
];

/// The topology as text.
pub fn render(topology: &Topology) -> String {
    let mut text = String::new();
    for doubt in &topology.doubts {
        let _ = writeln!(text, "Note: {doubt}");
    }
    let id = topology.system_id.map(|id| format!(" ({id})")).unwrap_or_default();
    let _ = writeln!(text, "Cluster {}{id}, term {}: {}", topology.cluster, topology.term, headline(topology.leader.as_ref()));
    if topology.members.is_empty() {
        let _ = writeln!(text, "No node is known yet.");
    } else {
        text.push_str(&columns(&HEADS, &topology.members.iter().map(|member| row(topology, member)).collect::<Vec<_>>()));
    }
    for alarm in &topology.alarms {
        let _ = writeln!(text, "ALARM {}: {}", alarm.id, alarm.text);
    }
    text
}

/// Who serves, in one sentence.
pub(super) fn headline(leader: Option<&LeaderStatus>) -> String {
    let Some(leader) = leader else { return "there has been no primary yet".to_owned() };
    let note = if leader.note.is_empty() { String::new() } else { format!(" ({})", leader.note) };
    match leader.state.as_str() {
        "serving" => format!("{} is primary on timeline {}", leader.node, leader.tli),
        "claimed" => format!("{} is becoming primary", leader.node),
        "vacant" => format!("no primary; {} was the last{note}", leader.node),
        "paused" if leader.vacant => format!("paused{note}; no primary, {} was the last", leader.node),
        "paused" => format!("paused{note}; {} is primary", leader.node),
        other => format!("{} is {other}{note}", leader.node),
    }
}

fn row(topology: &Topology, member: &MemberStatus) -> Vec<String> {
    let replica = member.role == Some(MemberRole::Replica);
    let lag = |stage: Option<u64>| if replica { bytes(stage) } else { String::new() };
    let time = member.lag.replay_ms.filter(|_| replica).map(millis).unwrap_or_default();
    vec![
        member.node.to_string(),
        role(member).to_owned(),
        state(member),
        member.tli.map(|tli| tli.to_string()).unwrap_or_default(),
        member.lsn.map(|lsn| lsn.to_string()).unwrap_or_default(),
        lag(member.lag.write),
        lag(member.lag.replay),
        time,
        failover(member).to_owned(),
        notes(topology, member),
    ]
}

/// What it says, unless it has said nothing for longer than it should.
fn state(member: &MemberStatus) -> String {
    member.silent_seconds.map_or_else(|| member.state.clone(), |silent| format!("silent {}", table::seconds(silent)))
}

const fn role(member: &MemberStatus) -> &'static str {
    match (member.role, member.leader) {
        (Some(MemberRole::Primary), true) => "primary",
        // By its own word, which may be some seconds old; the record names another.
        (Some(MemberRole::Primary), false) => "former primary",
        (Some(MemberRole::Replica), _) => "replica",
        (Some(MemberRole::Down), _) => "down",
        (None, _) => "",
    }
}

const fn failover(member: &MemberStatus) -> &'static str {
    match (member.leader, member.electable) {
        (true, _) => "",
        (false, true) => "yes",
        (false, false) => "no",
    }
}

fn notes(topology: &Topology, member: &MemberStatus) -> String {
    let mut notes = Vec::new();
    let newest = topology.leader.as_ref().map(|leader| leader.tli);
    if member.role == Some(MemberRole::Replica) && newest.is_some() && member.tli < newest {
        notes.push("older timeline");
    }
    let tags = &member.tags;
    notes.extend(
        [(tags.no_failover, "no_failover"), (tags.no_load_balance, "no_load_balance"), (tags.no_sync, "no_sync")]
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, name)| *name),
    );
    if member.pending_restart {
        notes.push("restart pending");
    }
    if member.fencing.starts_with("none") {
        notes.push("unfenced");
    }
    // A cell that says nothing would print as a dash.
    if notes.is_empty() { " ".to_owned() } else { notes.join(", ") }
}
