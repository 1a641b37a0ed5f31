//! `status`: what one node knows.

use super::{
    arguments::Output,
    exit::Exit,
    list::headline,
    table::{self, seconds},
    target::Target,
};
use crate::{
    api::{
        durability::DurabilityStatus,
        status::{JobStatus, Status},
    },
    decide::decision::{Reason, ReasonKind},
    model::{
        instance::KillMode,
        record::{MemberRole, SyncMode},
    },
};
use std::fmt::Write;

pub(super) async fn run(target: &Target) -> anyhow::Result<Exit> {
    let status: Status = target.client()?.get_json("/v1/status").await?;
    let text = match target.output() {
        Output::Table => render(&status),
        Output::Json => table::json(&status)?,
    };
    table::print(&text)?;
    Ok(if is_well(&status) { Exit::Done } else { Exit::Unhealthy })
}

/// Whether somebody serves, nothing alarms, and the node itself answers lately.
pub fn is_well(status: &Status) -> bool {
    let serving = status.leader.as_ref().is_some_and(|leader| leader.state == "serving" || leader.state == "paused");
    serving && status.alarms.is_empty() && status.etcd.suspect.is_none() && status.age_seconds < 5.0
}

/// The status as text.
pub fn render(status: &Status) -> String {
    let mut text = String::new();
    let role = match status.role {
        MemberRole::Primary => "primary",
        MemberRole::Replica => "replica",
        MemberRole::Down => "down",
    };
    let stopping = if status.stopping { ", being stopped" } else { "" };
    let _ = writeln!(text, "Node {} of cluster {}: {role}, {}{stopping}", status.node, status.cluster, status.state);
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    line("Cluster", format!("term {}, {}", status.term, headline(status.leader.as_ref())));
    line("Lease", lease(status));
    line("Routing", format!("writes {}, reads {}", yes(status.routing.writes), yes(status.routing.reads)));
    if let Some(durability) = &status.durability {
        line("Commits", commits(durability, status.role == MemberRole::Primary));
    }
    line("Fencing", fencing(status));
    line("etcd", etcd(status));
    let electable: Vec<String> = status.electable.iter().map(|replica| replica.node.to_string()).collect();
    line("Failover", if electable.is_empty() { "no node may take over".to_owned() } else { format!("to {}", electable.join(", ")) });
    if !status.pending_restart.is_empty() {
        line("Restart", format!("needed for {}", status.pending_restart.join(", ")));
    }
    if let Some(operation) = &status.file.operation {
        line("Operation", serde_json::to_string(operation).unwrap_or_default());
    }
    for job in status.jobs.iter().filter(|job| job.failures > 0 || job.seconds.is_some_and(|seconds| seconds > 1.0)) {
        line("Job", job_line(job));
    }
    line("Decided", format!("{} ago, by version {}", seconds(status.age_seconds), status.version));
    text.push_str(&reasons(&status.reasons));
    text
}

const fn yes(set: bool) -> &'static str {
    if set { "yes" } else { "no" }
}

/// What a commit waits for, and what the loss of the primary's host would cost now. `sees`: this node is the primary.
fn commits(durability: &DurabilityStatus, sees: bool) -> String {
    let voters: Vec<&str> = durability.voters.iter().map(|voter| voter.node.as_str()).collect();
    let mut text = match (durability.mode, voters.is_empty()) {
        (SyncMode::Async, _) => "wait for nobody".to_owned(),
        (SyncMode::Quorum, true) => "wait for nobody, as no replica can confirm them".to_owned(),
        (SyncMode::StrictQuorum, true) => "wait for a replica that can confirm them".to_owned(),
        (_, false) => format!("wait for {} of {}", durability.k, voters.join(", ")),
    };
    text.push_str(match durability.loses_nothing {
        true => ": the loss of the primary's host loses nothing acknowledged",
        false => ": the loss of the primary's host may lose what was acknowledged lately",
    });
    match durability.may_lose {
        Some(bytes) if sees => {
            let _ = write!(text, ", {bytes} bytes at this moment");
        }
        Some(bytes) => {
            let _ = write!(text, ", {bytes} bytes as the primary said last");
        }
        None if durability.loses_nothing => {}
        None => text.push_str("; how much is not known here"),
    }
    if let Some(waiting) = durability.waiting.filter(|waiting| waiting.sessions > 0) {
        let _ = write!(text, "; {} wait, the first for {}", waiting.sessions, seconds(waiting.longest_seconds));
    }
    text
}

fn lease(status: &Status) -> String {
    let Some(leader) = &status.leader else { return "none".to_owned() };
    match status.lease_seconds_left {
        Some(left) => format!("ours for another {} (hold {}, others take after {})", seconds(left), leader.hold, leader.wait),
        None if leader.state == "paused" => "none runs while the cluster is paused".to_owned(),
        None => format!("{}'s (hold {}, others take after {})", leader.node, leader.hold, leader.wait),
    }
}

fn fencing(status: &Status) -> String {
    let fencing = &status.fencing;
    let kill = match fencing.kill {
        None => return "none: there is no guard".to_owned(),
        Some(KillMode::Namespace) => "namespace",
        Some(KillMode::Cgroup) => "cgroup",
        Some(KillMode::Descendants) => "descendants",
    };
    if !fencing.works {
        return format!("none: the self-test of {kill} failed");
    }
    let how = match fencing.kill {
        Some(KillMode::Descendants) => format!("reduced: {kill} needs a process that is scheduled"),
        _ => format!("kernel deadline ({kill})"),
    };
    match fencing.armed_seconds_left {
        Some(left) => format!("{how}, in {}", seconds(left)),
        None => format!("{how}, not armed"),
    }
}

fn etcd(status: &Status) -> String {
    let etcd = &status.etcd;
    if let Some(why) = &etcd.suspect {
        return format!("is not believed: {why}");
    }
    if etcd.answers {
        return format!("answers ({} ago), revision {}", seconds(etcd.seconds), etcd.revision);
    }
    format!("silent for {}: {}", seconds(etcd.seconds), etcd.why.as_deref().unwrap_or("no reason is known"))
}

fn job_line(job: &JobStatus) -> String {
    let name = job.task;
    let state = job.seconds.map_or_else(|| "rests".to_owned(), |since| format!("for {}", seconds(since)));
    match &job.why {
        Some(why) if job.failures > 0 => format!("{name}: {state}; failed {} times: {why}", job.failures),
        _ => format!("{name}: {state}"),
    }
}

/// Reasons as text: what alarms first.
pub(super) fn reasons(reasons: &[Reason]) -> String {
    let mut sorted: Vec<&Reason> = reasons.iter().collect();
    sorted.sort_by_key(|reason| std::cmp::Reverse(reason.kind));
    let mut text = String::new();
    for reason in sorted {
        let kind = match reason.kind {
            ReasonKind::Because => "because",
            ReasonKind::Waits => "waits",
            ReasonKind::Refused => "refused",
            ReasonKind::Alarm => "ALARM",
        };
        let _ = writeln!(text, "  {kind:<10} {}: {}", reason.id, reason.text);
    }
    text
}
