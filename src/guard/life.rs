//! One run of PostgreSQL, from its first process to the proof that none is left.

use super::{
    data_dir::FileIdentity,
    keeper::{Keeper, Word},
    kernel,
    launch::Owner,
    reaper,
};
use crate::model::{
    instance::{KillMode, Run, StartAs, StopMode},
    moment::{Moment, Span},
};
use nix::{
    sys::{signal::Signal, wait::WaitStatus},
    unistd::{Pid, getpid},
};
use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

/// How long the keeper may take to end by itself once the postmaster has.
const KEEPER_GRACE: Span = Span::from_millis(10);

/// A run that is not verified ended.
pub(super) struct Life {
    pub(super) run: Run,
    pub(super) start: StartAs,
    pub(super) keeper: Keeper,
    /// Its pidfd and its id in its own namespace, once the keeper has told.
    pub(super) postmaster: Option<(OwnedFd, i32)>,
    pub(super) stopping: Option<(StopMode, Moment)>,
    pub(super) wanted: bool,
    /// When the postmaster was seen gone, or was killed.
    pub(super) dying: Option<Moment>,
    pub(super) how: Option<String>,
    pub(super) keeper_ended: Option<WaitStatus>,
    /// Successive looks that found no process, where the keeper could not tell.
    pub(super) found_none: u8,
    /// Somebody sees to it that `standby.signal` comes back, or it was never taken.
    pub(super) restoring: bool,
    pub(super) owner: Owner,
    pub(super) log: PathBuf,
    pub(super) log_length: u64,
    pub(super) not: Option<FileIdentity>,
}

impl Life {
    /// Takes in what the keeper and the kernel say.
    pub(super) fn listen(&mut self) {
        while let Some((word, fd)) = self.keeper.word() {
            match (word, fd) {
                (Word::Started { pid }, Some(pidfd)) => {
                    self.postmaster = Some((pidfd, pid));
                    self.signal_stop();
                }
                (Word::Started { .. }, None) => {}
                (Word::Ended { how }, _) => self.how = Some(how),
            }
        }
    }

    pub(super) fn signal_stop(&self) {
        let (Some((mode, _)), Some((postmaster, _)), None) = (self.stopping, &self.postmaster, self.dying) else { return };
        // PG manual, "Shutting Down the Server".
        let signal = match mode {
            StopMode::Smart => Signal::SIGTERM,
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        };
        let _ = kernel::pidfd_signal(postmaster.as_fd(), signal);
    }

    /// Goes from one step of the end to the next where it is due.
    pub(super) fn push_on(&mut self, kill: KillMode, now: Moment) {
        let gone = self.how.is_some() || self.keeper_ended.is_some();
        let gone = gone || self.postmaster.as_ref().is_some_and(|(pidfd, _)| kernel::is_readable(pidfd.as_fd()));
        match self.dying {
            None if gone => self.dying = Some(now),
            None if self.stopping.is_some_and(|(_, deadline)| now >= deadline) => {
                tracing::warn!(run = self.run.0, "PostgreSQL has not stopped in time and is killed");
                self.dying = Some(now);
                self.kill(kill);
            }
            // The keeper is stopped, starved or killed: do its work.
            Some(since) if self.keeper_ended.is_none() && now.since(since) >= KEEPER_GRACE => self.kill(kill),
            _ => {}
        }
    }

    pub(super) fn kill(&self, mode: KillMode) {
        match mode {
            KillMode::Namespace => drop(kernel::pidfd_signal(self.keeper.pidfd.as_fd(), Signal::SIGKILL)),
            KillMode::Descendants | KillMode::Cgroup => {
                // The postmaster first: nobody else forks backends.
                if let Some((postmaster, _)) = &self.postmaster {
                    let _ = kernel::pidfd_signal(postmaster.as_fd(), Signal::SIGKILL);
                }
                let _ = kernel::pidfd_signal(self.keeper.pidfd.as_fd(), Signal::SIGCONT);
                let _ = reaper::kill_descendants(self.keeper.pid, &[]);
            }
        }
    }

    /// Whether the tree is proven empty.
    pub(super) fn is_over(&mut self, mode: KillMode, no_children: bool, spared: &[Pid]) -> bool {
        let Some(ended) = self.keeper_ended else { return false };
        match (mode, ended) {
            // An init is reaped after the last process of its namespace.
            (KillMode::Namespace, _) => true,
            // It says so itself: no child was left.
            (_, WaitStatus::Exited(_, 0)) => true,
            // No child of ours at all: orphans would be.
            _ if no_children => true,
            _ => {
                let found = reaper::kill_descendants(getpid(), spared);
                self.found_none = if matches!(found, Ok(0)) { self.found_none.saturating_add(1) } else { 0 };
                self.found_none >= 2
            }
        }
    }
}
