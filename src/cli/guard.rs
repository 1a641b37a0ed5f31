//! `guard`: runs the guard. Called with a single thread and no runtime.

use super::{
    arguments::GuardOptions,
    exit::{Exit, Failure},
};

pub(super) fn run(_options: &GuardOptions) -> anyhow::Result<Exit> {
    Err(Failure::of(Exit::Failed, "this build has no guard"))
}
