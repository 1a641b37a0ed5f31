//! What clears up after a lab whose owner was killed: a process that waits for the owner's end.
//!
//! The lab's hosts end by themselves when their lines close; files and cgroups would stay.

use super::{
    cluster::sweep_own,
    command::{command, poll_until},
    host_init::VERB,
};
use crate::{clock, model::moment::Span};
use anyhow::{Context, Result};
use std::{
    io::{Read, stdin},
    path::Path,
    process::{Child, ChildStdin, Stdio},
};

/// The first argument of the janitor, where a host has its description.
pub const STAGE: &str = "janitor";

/// A janitor that waits. Dropping it lets it look for what is left, which is nothing when the lab was dropped before.
#[derive(Debug)]
pub struct Janitor {
    child: Child,
    line: Option<ChildStdin>,
}

impl Janitor {
    /// Starts one for the lab of this name. `program` is a `pgbaton` binary.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, lab: &str) -> Result<Self> {
        let mut janitor = command(program);
        janitor.args([VERB, STAGE, lab]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = janitor.spawn().context("start the lab's janitor")?;
        let line = child.stdin.take();
        Ok(Self { child, line })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.line = None;
        // It has nothing to do but to look once.
        let end = clock::boot().plus(Span::from_secs(10));
        let _ = poll_until(end, || self.child.try_wait().transpose());
    }
}

/// Waits for the end of the owner, then removes what the lab left.
///
/// # Errors
/// When something cannot be removed within 10 s: its hosts may still be ending.
pub fn run(lab: &str) -> Result<()> {
    let mut rest = Vec::new();
    // Nobody writes: this returns when the owner's end of the line closes, however it ended.
    let _ = stdin().read_to_end(&mut rest);
    let end = clock::boot().plus(Span::from_secs(10));
    poll_until(end, || sweep_own(lab).ok()).map_or_else(|| sweep_own(lab), Ok)
}
