//! `wal-fetch`: what the managed `restore_command` calls, as `wal-fetch STATE_DIR DATA_DIR %f %p %r`.

use super::{
    arguments::RawOptions,
    exit::{Exit, Failure},
};
use crate::postgres::fetch::{COMMAND_LIMIT, Fetched, Request, fetch, kept_command, ledger_dir};
use std::path::Path;

/// PostgreSQL takes 1 for "there is no such file"; a higher status would end recovery.
pub(super) fn run(options: &RawOptions) -> anyhow::Result<Exit> {
    let [state_dir, data_dir, file, path, restart] = options.arguments.as_slice() else {
        return Err(Failure::of(Exit::Failed, "wal-fetch takes STATE_DIR DATA_DIR %f %p %r; PostgreSQL calls it"));
    };
    let state_dir = Path::new(state_dir);
    let (ledger, command) = (ledger_dir(state_dir), kept_command(state_dir));
    let request = Request {
        ledger: &ledger,
        command: command.as_deref(),
        limit: COMMAND_LIMIT,
        data_dir: Path::new(data_dir),
        file,
        path,
        restart: Some(restart),
    };
    super::block_on(async {
        match fetch(&request).await {
            Fetched::There => Ok(Exit::Done),
            Fetched::NotThere => Ok(Exit::Failed),
            Fetched::Failed(why) => Err(Failure::of(Exit::Failed, why)),
        }
    })
}
