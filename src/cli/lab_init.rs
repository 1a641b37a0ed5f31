//! `lab-init`: the first process of a test host. Called with a single thread and no runtime.

use super::{
    arguments::RawOptions,
    exit::{Exit, Failure},
};

pub(super) fn run(_options: &RawOptions) -> anyhow::Result<Exit> {
    Err(Failure::of(Exit::Failed, "this build has no lab"))
}
