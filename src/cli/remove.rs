//! `remove`: forget a node.

use super::{
    arguments::{Output, RemoveOptions},
    ask::{self, Answer},
    exit::{Exit, Failure},
    table,
    target::Target,
};
use crate::{
    api::{
        client::Client,
        status::{MemberStatus, Status},
    },
    clock,
    model::{moment::Span, record::IntentRecord},
};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

pub(super) async fn run(target: &Target, options: &RemoveOptions) -> anyhow::Result<Exit> {
    let client = target.client()?;
    let status: Status = client.get_json("/v1/status").await?;
    let member = find(&status, &options.node)?;
    if ask::confirm(&plan(&status, member), &options.asking.confirmation)? == Answer::Shown {
        return Ok(Exit::Done);
    }
    let wish = json!({ "kind": "remove", "node": options.node, "term": status.term, "reason": options.asking.reason });
    let asked: IntentRecord = client.post_json("/v1/intent", &wish).await?;
    eprintln!("Asked for (request {}); waits for the primary …", asked.id);
    wait(&client, options).await?;
    if target.output() == Output::Json {
        table::print(&table::json(&json!({ "removed": options.node, "request": asked.id }))?)?;
    } else {
        eprintln!("{} is removed.", options.node);
    }
    Ok(Exit::Done)
}

fn find<'a>(status: &'a Status, node: &str) -> anyhow::Result<&'a MemberStatus> {
    let Some(member) = status.members.iter().find(|member| member.node.as_str() == node) else {
        return Err(Failure::of(Exit::NotFound, format!("no node {node} is known to cluster {}", status.cluster)));
    };
    if member.leader {
        let what = format!(
            "{node} is the primary and cannot be removed: stop its agent with SIGINT, so that a replica takes over, then ask again"
        );
        return Err(Failure::of(Exit::Refused, what));
    }
    Ok(member)
}

fn plan(status: &Status, member: &MemberStatus) -> String {
    let node = &member.node;
    let mut plan = format!(
        "Node {node} will be removed from cluster {} in term {}:\n  - its keys in etcd (nodes/{node}, members/{node})\n",
        status.cluster, status.term
    );
    if member.electable {
        plan.push_str("  - its place among those who may take over\n");
    }
    plan.push_str(&format!("  - its replication slot {} on the primary\nIts data directory is not touched.\n", node.slot()));
    if member.role.is_some() {
        plan.push_str(&format!(
            "Warning: the agent of {node} runs ({}): it comes back by itself unless it is stopped first.\n",
            member.state
        ));
    }
    let others = status.electable.iter().filter(|replica| replica.node != *node).count();
    if member.electable && others == 0 {
        plan.push_str("Warning: after that no node may take over when the primary fails.\n");
    }
    plan
}

#[derive(Deserialize)]
struct Waiting {
    intent: Option<IntentRecord>,
}

/// The request is gone once the primary has looked at it; the node is gone if it was carried out.
async fn wait(client: &Client, options: &RemoveOptions) -> anyhow::Result<()> {
    let until = clock::boot().plus(Span::from_secs(options.asking.timeout));
    let mut seen_gone = 0;
    while clock::boot() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (Ok(status), Ok(waiting)) = (client.get_json::<Status>("/v1/status").await, client.get_json::<Waiting>("/v1/intent").await)
        else {
            continue;
        };
        if !status.knows() {
            continue;
        }
        if !status.members.iter().any(|member| member.node.as_str() == options.node) {
            return Ok(());
        }
        // This node may hear of the one a moment before the other.
        seen_gone = if waiting.intent.is_none() { seen_gone + 1 } else { 0 };
        if seen_gone > 10 {
            return Err(Failure::of(
                Exit::Refused,
                format!(
                    "the request was taken, and {} is still there: it was dropped (see pgbaton why), or its agent is back",
                    options.node
                ),
            ));
        }
    }
    Err(Failure::of(
        Exit::Timeout,
        format!("{} is not removed after {} s; the request may still be carried out", options.node, options.asking.timeout),
    ))
}
