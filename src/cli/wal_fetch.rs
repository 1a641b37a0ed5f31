//! `wal-fetch`: what the managed `restore_command` calls.

use super::target::Target;
use super::{
    arguments::RawOptions,
    exit::{Exit, Failure},
};

pub(super) fn run(_target: &Target, _options: &RawOptions) -> anyhow::Result<Exit> {
    Err(Failure::of(Exit::Failed, "this build does not fetch WAL"))
}
