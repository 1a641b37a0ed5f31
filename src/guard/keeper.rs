//! The keeper: the postmaster's parent, one for each start of PostgreSQL. It dies with the guard, and PostgreSQL with it.
//!
//! - In `namespace` mode it is the init of a new PID namespace with PDEATHSIG=KILL on the guard. When an init dies the kernel kills
//!   everything in its namespace, stopped processes too, and its parent cannot reap it before the last one is gone: the guard's
//!   `waitpid` is the proof that the tree is empty.
//! - In `descendants` mode it is a sub-reaper that watches the guard by pidfd and kills the tree when the guard dies. Its PDEATHSIG is
//!   SIGCONT, so that a stopped keeper wakes up for it. Its proof is `waitpid` saying that no child is left: orphans become its children.
//!
//! It reaps, reports and kills; it touches no disk. It holds the guard's lock file open: where the guard is gone, no other guard begins
//! before the keeper is.

use super::{
    kernel::{self, Forked, Received},
    launch::{self, Launch},
    reaper,
};
use crate::model::instance::KillMode;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::CloneFlags,
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getgid, getpid, getuid},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// The keeper as the guard holds it.
pub(super) struct Keeper {
    /// Its id as the guard sees it.
    pub(super) pid: Pid,
    /// Its descriptor.
    pub(super) pidfd: OwnedFd,
    /// Where it reports.
    pub(super) channel: OwnedFd,
}

/// What a keeper reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Word {
    /// The postmaster's process exists; its pidfd comes with this.
    Started {
        /// Its id in its own PID namespace.
        pid: i32,
    },
    /// The postmaster has ended.
    Ended {
        /// As `exit code N` or `signal N`.
        how: String,
    },
}

/// What a keeper keeps.
pub(super) enum Load {
    /// PostgreSQL.
    Server(Box<Launch>),
    /// The self-test's tree: a function that does not return.
    Dummy(fn(OwnedFd) -> !, OwnedFd),
}

impl Load {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Server(launch) => launch.log.as_fd(),
            Self::Dummy(_, fd) => fd.as_fd(),
        }
    }
}

/// Makes a keeper and lets it start its load. The caller is the guard; `held` stays open in the keeper.
pub(super) fn start(mode: KillMode, load: Load, held: Option<BorrowedFd<'_>>) -> Result<Keeper, String> {
    let fail = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let (ours, theirs) = kernel::channel().map_err(fail("make a socket pair"))?;
    let guard = kernel::pidfd_open(getpid()).map_err(fail("open a pidfd of the guard"))?;
    let own_users = mode == KillMode::Namespace && !getuid().is_root();
    let forked = match mode {
        KillMode::Namespace if own_users => kernel::fork_into(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUSER),
        KillMode::Namespace => kernel::fork_into(CloneFlags::CLONE_NEWPID),
        KillMode::Descendants | KillMode::Cgroup => kernel::fork(),
    };
    match forked.map_err(fail("make the postmaster's parent process"))? {
        Forked::Child => {
            let mut kept = vec![theirs.as_fd(), guard.as_fd(), load.fd()];
            kept.extend(held);
            kernel::close_all_but(&kept);
            let _ = keep(mode, &theirs, &guard, load);
            kernel::exit_now(1)
        }
        Forked::Parent(pid) => {
            let pidfd = kernel::pidfd_open(pid).map_err(fail("open a pidfd of the postmaster's parent"))?;
            let keeper = Keeper { pid, pidfd, channel: ours };
            let mapped = if own_users { keeper.map_users() } else { Ok(()) };
            let go =
                mapped.and_then(|()| kernel::send(keeper.channel.as_fd(), b"go", None).map_err(fail("let the postmaster's parent go")));
            if go.is_err() {
                let _ = kernel::pidfd_signal(keeper.pidfd.as_fd(), Signal::SIGKILL);
            }
            go.map(|()| keeper)
        }
    }
}

impl Keeper {
    /// In its own user namespace everybody stays who he is: PostgreSQL refuses uid 0.
    fn map_users(&self) -> Result<(), String> {
        let (uid, gid) = (getuid(), getgid());
        for (file, text) in [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))]
        {
            let path = format!("/proc/{}/{file}", self.pid);
            fs::write(&path, text).map_err(|error| format!("write {path}: {error}"))?;
        }
        Ok(())
    }

    /// What it reports next, if anything, with the postmaster's pidfd where that comes along.
    pub(super) fn word(&self) -> Option<(Word, Option<OwnedFd>)> {
        match kernel::receive(self.channel.as_fd()) {
            Received::Message(bytes, fd) => serde_json::from_slice(&bytes).ok().map(|word| (word, fd)),
            Received::Nothing | Received::End => None,
        }
    }
}

/// The keeper's life. Returns only when it could not begin.
fn keep(mode: KillMode, channel: &OwnedFd, guard: &OwnedFd, load: Load) -> nix::Result<()> {
    let own_namespace = mode == KillMode::Namespace;
    prctl::set_pdeathsig(if own_namespace { Signal::SIGKILL } else { Signal::SIGCONT })?;
    // The guard may have died before that was set.
    if kernel::is_readable(guard.as_fd()) {
        return Err(Errno::ESRCH);
    }
    if !own_namespace {
        prctl::set_child_subreaper(true)?;
    }
    let _ = prctl::set_name(if own_namespace { c"pgbaton-init" } else { c"pgbaton-keeper" });
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    wait(&[channel.as_fd(), guard.as_fd()], PollTimeout::NONE);
    if !matches!(kernel::receive(channel.as_fd()), Received::Message(..)) {
        return Err(Errno::EPIPE);
    }
    let first = match kernel::fork()? {
        Forked::Child => match load {
            Load::Server(launch) => launch::exec(&launch),
            Load::Dummy(body, fd) => body(fd),
        },
        Forked::Parent(pid) => pid,
    };
    drop(load);
    let pidfd = kernel::pidfd_open(first)?;
    tell(channel, &Word::Started { pid: first.as_raw() }, Some(pidfd.as_fd()));
    loop {
        wait(&[children.as_fd(), guard.as_fd()], PollTimeout::NONE);
        let _ = children.read_signal();
        let ended = reap(first);
        if let Some(how) = &ended {
            tell(channel, &Word::Ended { how: how.clone() }, None);
        }
        if ended.is_some() || kernel::is_readable(guard.as_fd()) {
            if !own_namespace {
                kill_all();
            }
            // An init takes its namespace with it.
            kernel::exit_now(0)
        }
    }
}

fn wait(fds: &[BorrowedFd<'_>], timeout: PollTimeout) {
    let mut fds: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let _ = poll(&mut fds, timeout);
}

fn tell(channel: &OwnedFd, word: &Word, fd: Option<BorrowedFd<'_>>) {
    let bytes = serde_json::to_vec(word).unwrap_or_default();
    let _ = kernel::send(channel.as_fd(), &bytes, fd);
}

/// Reaps whoever has exited; says how `first` ended, if it is among them.
fn reap(first: Pid) -> Option<String> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == first => ended = Some(format!("exit code {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == first => ended = Some(format!("signal {}", signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => {}
        }
    }
}

/// Kills all descendants and returns when none is left.
fn kill_all() {
    if !reaper::strike(getpid()) {
        let _ = reaper::kill_descendants(getpid(), &[]);
    }
    loop {
        // Most die at once, and then the whole of /proc need not be read again.
        wait(&[], PollTimeout::from(1_u8));
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return,
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => {}
            }
        }
        let _ = reaper::kill_descendants(getpid(), &[]);
    }
}
