//! `pause`, `resume`, `failover`, `acknowledge`: what will be done and what it risks, the question, the request, and how it ends.

use super::{
    arguments::{AcknowledgeOptions, Asking, FailoverOptions, Output, PauseOptions, ResumeOptions},
    ask::{self, Answer},
    exit::{Exit, Failure},
    table,
    target::Target,
};
use crate::{
    api::{
        client::Client,
        status::{LeaderStatus, MemberStatus, Status},
    },
    clock,
    model::{
        moment::Span,
        node::Nonce,
        record::{IntentRecord, MemberRole},
        term::Term,
    },
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{fmt::Write, time::Duration};

/// What asserting a death risks.
const TWO_PRIMARIES: &str = "there are two primaries, and what one of them acknowledges is lost";

pub(super) async fn pause(target: &Target, options: &PauseOptions) -> anyhow::Result<Exit> {
    let plan = |status: &Status| {
        let until = options.until.map_or_else(|| "until somebody resumes".to_owned(), |until| format!("for {until}"));
        format!(
            "Cluster {} will be paused in term {}, {until}:\n  - nobody takes over, also when {} fails: then there are no writes until `pgbaton resume`\n  \
             - PostgreSQL is neither started nor stopped, promoted or rewound, and no deadline ends it\nWrites go on meanwhile.\n",
            status.cluster,
            status.term,
            primary(status)
        )
    };
    let wish = json!({ "kind": "pause", "until": options.until });
    let done = |status: &Status, _: &IntentRecord| state(status) == "paused";
    ask(target, &options.asking, plan, wish, done, "The cluster is paused.").await
}

pub(super) async fn resume(target: &Target, options: &ResumeOptions) -> anyhow::Result<Exit> {
    let plan = |status: &Status| {
        let holder = primary(status);
        let mut plan = format!(
            "The pause of cluster {} ends in term {}: {holder} serves on, or is followed if it is down.\n",
            status.cluster, status.term
        );
        if options.assert_dead {
            let _ = writeln!(plan, "RISK: you assert that PostgreSQL of {holder} is dead. If it is not, {TWO_PRIMARIES}.");
        }
        plan
    };
    let wish = json!({ "kind": "resume", "assert_dead": options.assert_dead });
    let done = |status: &Status, _: &IntentRecord| state(status) != "paused";
    ask(target, &options.asking, plan, wish, done, "The pause is over.").await
}

pub(super) async fn acknowledge(target: &Target, options: &AcknowledgeOptions) -> anyhow::Result<Exit> {
    let plan = |status: &Status| {
        format!("In cluster {} another node may take over again by itself when {} fails.\n", status.cluster, primary(status))
    };
    let done = |status: &Status, _: &IntentRecord| status.leader.as_ref().is_some_and(|leader| !leader.failovers_stopped);
    ask(target, &options.asking, plan, json!({ "kind": "acknowledge" }), done, "Failovers go on by themselves.").await
}

pub(super) async fn failover(target: &Target, options: &FailoverOptions) -> anyhow::Result<Exit> {
    let plan = |status: &Status| failover_plan(status, options);
    let wish = json!({
        "kind": "failover", "to": options.to, "accept_loss": options.accept_loss, "assert_dead": options.assert_dead,
    });
    let done = |status: &Status, asked: &IntentRecord| {
        let serves = |leader: &LeaderStatus| leader.node.as_str() == options.to && leader.state == "serving" && leader.term > asked.term;
        status.leader.as_ref().is_some_and(serves)
    };
    ask(target, &options.asking, plan, wish, done, &format!("{} is the primary.", options.to)).await
}

fn failover_plan(status: &Status, options: &FailoverOptions) -> String {
    let (to, from) = (options.to.as_str(), primary(status));
    let mut plan = format!("{to} is to become the primary of cluster {}, after {from} in term {}:\n", status.cluster, status.term);
    let there = status.members.iter().any(|member| member.node.as_str() == from && member.role.is_some());
    let _ = match (state(status), there) {
        ("serving" | "paused", true) => {
            writeln!(plan, "  - PostgreSQL is stopped on {from} (fast), and the lease goes to {to}; writes are out until it serves")
        }
        ("serving" | "claimed" | "handoff", false) if !options.assert_dead => {
            writeln!(plan, "  - {from} is not there: {to} follows once that lease is over")
        }
        _ => writeln!(plan, "  - {to} claims at once"),
    };
    if state(status) == "paused" {
        plan.push_str("  - the pause ends with it\n");
    }
    let member = status.members.iter().find(|member| member.node.as_str() == to);
    if let Some(member) = member.filter(|member| !member.electable) {
        let _ = writeln!(plan, "Warning: {to} is not among those who may take over ({}).", member.state);
    }
    if options.accept_loss {
        let _ = writeln!(plan, "RISK: what {to} lacks of what was acknowledged is lost: {}.", lacks(status, member));
    }
    if options.assert_dead {
        let _ = writeln!(plan, "RISK: you assert that PostgreSQL of {from} is dead. If it is not, {TWO_PRIMARIES}.");
    }
    plan
}

/// How much a node is behind by what is known here.
fn lacks(status: &Status, member: Option<&MemberStatus>) -> String {
    let replica = member.filter(|member| member.role == Some(MemberRole::Replica));
    // On another timeline a position says nothing of what was acknowledged.
    let on_it = |leader: &&LeaderStatus| replica.is_some_and(|member| member.tli == Some(leader.tli));
    match status.leader.as_ref().filter(on_it).zip(replica.and_then(|member| member.lsn)) {
        Some((leader, lsn)) => format!(
            "{} up to {}, the last position of {} that is known, and all that it may have acknowledged since",
            leader.lsn.bytes_ahead_of(lsn),
            leader.lsn,
            leader.node
        ),
        None => "how much that is nobody knows".to_owned(),
    }
}

fn primary(status: &Status) -> &str {
    status.leader.as_ref().map_or("the primary", |leader| leader.node.as_str())
}

fn state(status: &Status) -> &str {
    status.leader.as_ref().map_or("", |leader| leader.state.as_str())
}

/// Shows, asks, sends, and waits until it is done.
async fn ask(
    target: &Target,
    asking: &Asking,
    plan: impl Fn(&Status) -> String,
    mut wish: Value,
    done: impl Fn(&Status, &IntentRecord) -> bool,
    said: &str,
) -> anyhow::Result<Exit> {
    let client = target.client()?;
    let status: Status = client.get_json("/v1/status").await?;
    if ask::confirm(&plan(&status), &asking.confirmation)? == Answer::Shown {
        return Ok(Exit::Done);
    }
    (wish["term"], wish["reason"]) = (json!(status.term), json!(asking.reason));
    let asked: IntentRecord = client.post_json("/v1/intent", &wish).await?;
    eprintln!("Asked for (request {}); waits …", asked.id);
    let term = wait(&client, asking.timeout, &asked, done).await?;
    if target.output() == Output::Json {
        table::print(&table::json(&json!({ "request": asked.id, "term": term }))?)?;
    } else {
        eprintln!("{said}");
    }
    Ok(Exit::Done)
}

#[derive(Deserialize)]
struct Waiting {
    intent: Option<IntentRecord>,
}

/// Waits until it is done, and returns the term then; or until somebody says that it will not be.
async fn wait(client: &Client, timeout: u64, asked: &IntentRecord, done: impl Fn(&Status, &IntentRecord) -> bool) -> anyhow::Result<Term> {
    let until = clock::boot().plus(Span::from_secs(timeout));
    let mut seen_gone = 0;
    while clock::boot() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (Ok(status), Ok(waiting)) = (client.get_json::<Status>("/v1/status").await, client.get_json::<Waiting>("/v1/intent").await)
        else {
            continue;
        };
        // An agent that has just started, or that etcd does not answer, knows nothing of what became of it.
        if !status.knows() {
            continue;
        }
        if done(&status, asked) {
            return Ok(status.term);
        }
        if let Some(why) = refusal(&status, &asked.id) {
            return Err(Failure::of(Exit::Refused, why));
        }
        // Taken is not done: whoever took it may be on its way. Only what takes no time is given up soon.
        let gone = waiting.intent.as_ref().is_none_or(|intent| intent.id != asked.id);
        seen_gone = if gone && status.term == asked.term { seen_gone + 1 } else { 0 };
        if seen_gone > 10 {
            return Err(Failure::of(Exit::Refused, "the request was taken, and nothing came of it: see pgbaton why"));
        }
    }
    Err(Failure::of(
        Exit::Timeout,
        format!("it is not done after {timeout} s; the request may still be carried out: see pgbaton why, on each node"),
    ))
}

fn refusal(status: &Status, id: &Nonce) -> Option<String> {
    let mut answers = status.members.iter().filter_map(|member| Some((&member.node, member.answer.as_ref()?)));
    answers.find(|(_, answer)| answer.id == *id).map(|(node, answer)| format!("{node} refuses: {}", answer.refused))
}
