//! `wal-fetch`: what the managed `restore_command` calls, for every file that PostgreSQL needs in recovery.
//!
//! Ends with 0 when the file is there, else with 1: a higher status, or a signal, would end the recovery.

use super::{arguments::WalFetchOptions, exit::Exit};
use crate::{
    model::moment::Span,
    postgres::fetch::{self, Fetched, Request},
};
use anyhow::Context;
use std::env;

pub(super) async fn run(options: &WalFetchOptions) -> anyhow::Result<Exit> {
    let limit: Span = options.limit.parse().context("--limit")?;
    let data_dir = env::current_dir().context("could not find the data directory")?;
    // The agent keeps the operator's command beside the ledger: within our own, PostgreSQL would fill in its %f and %p.
    let kept = options.ledger.parent().and_then(fetch::kept_command);
    let command = options.command.clone().or(kept);
    let request = Request {
        ledger: &options.ledger,
        command: command.as_deref().filter(|command| !command.trim().is_empty()),
        limit,
        data_dir: &data_dir,
        file: &options.file,
        path: &options.path,
        restart: options.restart.as_deref(),
    };
    Ok(match fetch::fetch(&request).await {
        Fetched::There => Exit::Done,
        Fetched::NotThere => Exit::Failed,
        Fetched::Failed(why) => {
            eprintln!("pgbaton wal-fetch: {why}");
            Exit::Failed
        }
    })
}
