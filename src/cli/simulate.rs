//! `simulate`: the decisions against a simulated world.

use super::{
    arguments::SimulateOptions,
    exit::{Exit, Failure},
};

pub(super) fn run(_options: &SimulateOptions) -> anyhow::Result<Exit> {
    Err(Failure::of(Exit::Failed, "this build has no simulator"))
}
