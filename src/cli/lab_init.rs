//! `lab-init`: the first process of a test host. Called with a single thread and no runtime.

use super::{arguments::RawOptions, exit::Exit};
use crate::lab::host_init;

pub(super) fn run(options: &RawOptions) -> anyhow::Result<Exit> {
    host_init::run(&options.arguments)?;
    Ok(Exit::Done)
}
