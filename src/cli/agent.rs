//! `agent`: runs a node.

use super::target::Target;
use super::{
    arguments::AgentOptions,
    exit::{Exit, Failure},
};

pub(super) fn run(_target: &Target, _options: &AgentOptions) -> anyhow::Result<Exit> {
    Err(Failure::of(Exit::Failed, "this build has no agent"))
}
