//! The start-up self-test: does everything die at a deadline, here and now, by this kill mode?
//!
//! A throw-away guard builds the real thing with a dummy tree in PostgreSQL's place, arms its timer and goes to sleep with all others
//! stopped. Every process of it holds one pipe open: when that ends, the last one is dead.

use super::{
    KillChoice,
    deadline::Deadline,
    keeper::{self, Load},
    kernel::{self, Forked},
    reaper,
};
use crate::{
    clock,
    model::{
        instance::KillMode,
        moment::{Moment, Span},
    },
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{getpid, pause, read, setsid, write},
};
use std::os::fd::{AsFd, OwnedFd};

/// How far ahead the throw-away guard's deadline lies.
const AHEAD: Span = Span::from_millis(30);
/// How long after the deadline the last process may die: the kill bound of the default timers.
const BOUND: Span = Span::from_millis(400);
/// How long the dummy tree may take to stand.
const BUILD: Span = Span::from_secs(2);
/// On a machine that is busy for a moment, the second or third try tells.
const TRIES: u32 = 3;
/// The dummy postmaster and its children.
const DUMMIES: usize = 4;

/// The kill mode in force, and whether it was seen to work.
pub(super) fn choose(choice: KillChoice) -> (KillMode, bool) {
    match choice {
        KillChoice::Namespace => (KillMode::Namespace, passes(KillMode::Namespace)),
        KillChoice::Descendants | KillChoice::Cgroup => (KillMode::Descendants, passes(KillMode::Descendants)),
        KillChoice::Auto if passes(KillMode::Namespace) => (KillMode::Namespace, true),
        KillChoice::Auto => (KillMode::Descendants, passes(KillMode::Descendants)),
    }
}

fn passes(mode: KillMode) -> bool {
    (0..TRIES).any(|_| match test(mode) {
        Ok(span) => {
            tracing::info!(%mode, took = %span.rounded(), "self-test: everything was dead after the deadline");
            span <= BOUND
        }
        Err(why) => {
            tracing::warn!(%mode, reason = why, "self-test: this kill mode does not work here");
            false
        }
    })
}

/// How long after the deadline the last process of the tree died.
fn test(mode: KillMode) -> Result<Span, String> {
    // What outlives its throw-away guard becomes a child of this process, and can be removed.
    prctl::set_child_subreaper(true).map_err(|error| format!("become a sub-reaper: {error}"))?;
    let result = try_once(mode);
    let until = clock::boot().plus(BOUND);
    while waitpid(None, Some(WaitPidFlag::WNOHANG)) != Err(Errno::ECHILD) && clock::boot() < until {
        let _ = reaper::kill_descendants(getpid(), &[]);
        let _ = poll(&mut [], PollTimeout::from(2_u8));
    }
    let _ = prctl::set_child_subreaper(false);
    result
}

fn try_once(mode: KillMode) -> Result<Span, String> {
    let fail = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    let (alive, held) = std::io::pipe().map_err(|error| format!("make a pipe: {error}"))?;
    let (alive, held) = (OwnedFd::from(alive), OwnedFd::from(held));
    let (ours, theirs) = kernel::channel().map_err(fail("make a socket pair"))?;
    if let Forked::Child = kernel::fork().map_err(fail("fork"))? {
        kernel::close_all_but(&[held.as_fd(), theirs.as_fd()]);
        let _ = prctl::set_pdeathsig(Signal::SIGKILL);
        let why = act_as_guard(mode, held, &theirs).err().unwrap_or_default();
        let _ = kernel::send(theirs.as_fd(), why.as_bytes(), None);
        kernel::exit_now(1)
    }
    drop((held, theirs));
    stands(&alive, &ours)?;
    let deadline = clock::boot().plus(AHEAD);
    kernel::send(ours.as_fd(), deadline.as_nanos().to_le_bytes().as_slice(), None).map_err(fail("arm"))?;
    if ends(&alive, AHEAD.plus(BOUND)) { Ok(clock::boot().since(deadline)) } else { Err("some process outlived the deadline".to_owned()) }
}

/// Waits until every dummy has said that it is there.
fn stands(alive: &OwnedFd, channel: &OwnedFd) -> Result<(), String> {
    let until = clock::boot().plus(BUILD);
    let mut missing = DUMMIES;
    while missing > 0 {
        let mut fds = [PollFd::new(alive.as_fd(), PollFlags::POLLIN), PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        let left = until.since(clock::boot()).as_millis();
        if left == 0 || poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).is_err() {
            return Err("the dummy tree did not stand in time".to_owned());
        }
        match kernel::receive(channel.as_fd()) {
            kernel::Received::Message(why, _) => return Err(String::from_utf8_lossy(&why).into_owned()),
            kernel::Received::End => return Err("the throw-away guard died".to_owned()),
            kernel::Received::Nothing => {}
        }
        if kernel::is_readable(alive.as_fd()) {
            match read(alive, &mut [0; DUMMIES]) {
                Ok(0) | Err(_) => return Err("the dummy tree died".to_owned()),
                Ok(count) => missing = missing.saturating_sub(count),
            }
        }
    }
    Ok(())
}

/// Whether the pipe ends within `span`: nobody holds it any more.
fn ends(alive: &OwnedFd, span: Span) -> bool {
    let until = clock::boot().plus(span);
    loop {
        let left = until.since(clock::boot()).as_millis();
        let mut fds = [PollFd::new(alive.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        if kernel::is_readable(alive.as_fd()) && read(alive, &mut [0; 16]) == Ok(0) {
            return true;
        }
        if left == 0 {
            return false;
        }
    }
}

/// The throw-away guard: starts the tree, waits for the word, arms, stops the keeper and itself.
fn act_as_guard(mode: KillMode, held: OwnedFd, channel: &OwnedFd) -> Result<(), String> {
    let fail = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    if mode == KillMode::Descendants {
        prctl::set_child_subreaper(true).map_err(fail("become a sub-reaper"))?;
    }
    let mut deadline = Deadline::new().map_err(fail("create a timer"))?;
    let keeper = keeper::start(mode, Load::Dummy(dummy, held), None)?;
    let _ = poll(&mut [PollFd::new(channel.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
    let kernel::Received::Message(word, _) = kernel::receive(channel.as_fd()) else { return Err("no word came".to_owned()) };
    let until = word.try_into().map(u64::from_le_bytes).map_err(|_| "an odd word came".to_owned())?;
    deadline.arm(Moment::from_nanos(until)).map_err(fail("arm"))?;
    kill(keeper.pid, Signal::SIGSTOP).map_err(fail("stop the keeper"))?;
    kill(getpid(), Signal::SIGSTOP).map_err(fail("stop"))?;
    Err("the deadline has not killed the throw-away guard".to_owned())
}

/// In the postmaster's place: three children in sessions of their own, one of them stopped.
fn dummy(held: OwnedFd) -> ! {
    for stopped in [false, true, false] {
        if let Ok(Forked::Child) = kernel::fork() {
            let _ = setsid();
            let _ = write(&held, b".");
            if stopped {
                let _ = kill(getpid(), Signal::SIGSTOP);
            }
            loop {
                pause();
            }
        }
    }
    let _ = write(&held, b".");
    loop {
        pause();
    }
}
