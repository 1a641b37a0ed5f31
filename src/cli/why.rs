//! `why`: the reasons of the last decision.

use super::{
    arguments::{Output, WhyOptions},
    exit::{Exit, Failure},
    status, table,
    target::Target,
};
use crate::api::{client::Client, status::Status};

pub(super) async fn run(target: &Target, options: &WhyOptions) -> anyhow::Result<Exit> {
    let client = target.client()?;
    let mut status: Status = client.get_json("/v1/status").await?;
    if let Some(node) = options.node.as_ref().filter(|node| **node != status.node.as_str()) {
        status = ask_other(&status, node).await?;
    }
    let text = match target.output() {
        Output::Json => table::json(&serde_json::json!({ "node": status.node, "term": status.term, "reasons": status.reasons }))?,
        Output::Table if status.reasons.is_empty() => format!("{} has nothing to explain: all is as it should be.\n", status.node),
        Output::Table => format!("{} in term {}:\n{}", status.node, status.term, status::reasons(&status.reasons)),
    };
    table::print(&text)?;
    Ok(Exit::Done)
}

async fn ask_other(status: &Status, node: &str) -> anyhow::Result<Status> {
    let Some(member) = status.members.iter().find(|member| member.node.as_str() == node) else {
        return Err(Failure::of(Exit::NotFound, format!("no node {node} is known to this cluster")));
    };
    let Some(api) = &member.api else {
        return Err(Failure::of(Exit::Unreachable, format!("where the API of {node} answers is not known: it has said nothing lately")));
    };
    let url = if api.contains("://") { api.clone() } else { format!("http://{api}") };
    Ok(Client::http(&url)?.get_json("/v1/status").await?)
}
