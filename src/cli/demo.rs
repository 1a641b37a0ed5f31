//! `demo`: a whole cluster on this machine.

use super::{
    arguments::DemoOptions,
    exit::{Exit, Failure},
};

pub(super) fn run(_options: &DemoOptions) -> anyhow::Result<Exit> {
    Err(Failure::of(Exit::Failed, "this build has no demo"))
}
