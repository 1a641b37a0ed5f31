//! The few system calls that need `unsafe`, each behind a safe function. Everything here is called from single-threaded processes.

#![expect(unsafe_code, reason = "fork, clone, pidfds and signal dispositions have no safe interface")]

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::CloneFlags,
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal},
        socket::{AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair},
    },
    unistd::{ForkResult, Pid},
};
use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Which of the two processes this is after a fork.
pub(super) enum Forked {
    /// The new one.
    Child,
    /// The old one, with the new one's id as seen here.
    Parent(Pid),
}

/// `fork(2)`. The caller's process has one thread, so the child may do anything.
pub(super) fn fork() -> nix::Result<Forked> {
    // SAFETY: guard processes have one thread: no lock can be held by a thread that the child lacks.
    Ok(match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Forked::Child,
        ForkResult::Parent { child } => Forked::Parent(child),
    })
}

/// A fork whose child is the init of a new PID namespace (and, with `CLONE_NEWUSER` in `flags`, of a new user namespace).
pub(super) fn fork_into(flags: CloneFlags) -> nix::Result<Forked> {
    let flags = libc::c_long::from(flags.bits() | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack the call behaves as fork(2) does; one thread, as above.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, 0_usize, 0_usize, 0_usize) };
    match Errno::result(result)? {
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?))),
    }
}

/// A descriptor for a process: readable once it has exited (a zombie counts as exited), immune to reuse of its id.
pub(super) fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: the call takes two integers; a non-negative result is a new descriptor that nobody else owns.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process behind `pidfd`.
pub(super) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: Signal) -> nix::Result<()> {
    // SAFETY: integers and a null pointer, which the call allows.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as i32, std::ptr::null::<u8>(), 0) };
    Errno::result(result).map(drop)
}

/// Marks every descriptor but the standard three to be closed by the next exec.
pub(super) fn close_at_exec() -> nix::Result<()> {
    const CLOEXEC: u32 = 4; // CLOSE_RANGE_CLOEXEC
    // SAFETY: integers only; nothing is closed before an exec that discards this program anyway.
    match Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, CLOEXEC) }) {
        // Before Linux 5.9 there is no such call, before 5.11 no such flag.
        Err(Errno::ENOSYS | Errno::EINVAL) => open_descriptors()?.into_iter().try_for_each(|fd| {
            // SAFETY: the call takes integers; a descriptor that is closed by now fails with EBADF, which is as good.
            match Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }) {
                Ok(_) | Err(Errno::EBADF) => Ok(()),
                Err(errno) => Err(errno),
            }
        }),
        other => other.map(drop),
    }
}

/// Every descriptor but the standard three.
fn open_descriptors() -> nix::Result<Vec<i32>> {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let all = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(all.filter(|fd| *fd > 2).collect())
}

/// Closes every descriptor but the standard three and `kept`, in a new process that shall hold nothing of its parent's.
///
/// Whatever owned them must never be used or dropped after this.
pub(super) fn close_all_but(kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if first < fd {
            // SAFETY: called right after a fork, by a process that owns `kept` alone: no destructor of it meets a closed descriptor.
            let closed = Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, fd.saturating_sub(1), 0) });
            if closed == Err(Errno::ENOSYS) {
                let between = |open: &i32| u32::try_from(*open).is_ok_and(|open| (first..fd).contains(&open));
                for open in open_descriptors().unwrap_or_default().into_iter().filter(between) {
                    // SAFETY: as above.
                    unsafe { libc::close(open) };
                }
            }
        }
        first = first.max(fd.saturating_add(1));
    }
}

/// Two connected sockets that keep message boundaries.
pub(super) fn channel() -> nix::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one message and, where given, a descriptor with it. Never waits, never raises SIGPIPE.
pub(super) fn send(channel: BorrowedFd<'_>, message: &[u8], fd: Option<BorrowedFd<'_>>) -> nix::Result<()> {
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &[ControlMessage::ScmRights(&fds)] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(message)], rights, flags, None).map(drop)
}

/// A message from a channel.
pub(super) enum Received {
    /// None is there yet.
    Nothing,
    /// The other side is gone.
    End,
    /// One message, with at most one descriptor.
    Message(Vec<u8>, Option<OwnedFd>),
}

/// Takes one message, without waiting for it.
pub(super) fn receive(channel: BorrowedFd<'_>) -> Received {
    let mut buffer = vec![0; 64 * 1024];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let (length, fd) = match recvmsg::<()>(channel.as_raw_fd(), &mut slices, Some(&mut space), flags) {
        Ok(message) => {
            let fds = message.cmsgs().into_iter().flatten().find_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                _ => None,
            });
            (message.bytes, fds)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => return Received::Nothing,
        Err(_) => return Received::End,
    };
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    if length == 0 {
        return Received::End;
    }
    buffer.truncate(length);
    Received::Message(buffer, fd)
}

/// Whether `fd` can be read from, or has ended: a process behind a pidfd that has exited.
pub(super) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(ready) if ready > 0)
}

/// Sets how readily this process gets the processor: −20 (first) to 19, 0 for ordinary programs.
pub(super) fn set_nice(nice: i32) -> nix::Result<()> {
    // SAFETY: integers only; 0 is this process.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Ends this process without running destructors or exit handlers: they belong to the process it was forked from.
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

/// Ignores `signals` in this process.
pub(super) fn ignore(signals: &[Signal]) -> nix::Result<()> {
    dispose(signals, SigHandler::SigIgn)
}

/// Gives all signals their default effect and unblocks them, as a program expects it at exec.
pub(super) fn default_signals() -> nix::Result<()> {
    let changeable = Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP));
    dispose(&changeable.collect::<Vec<_>>(), SigHandler::SigDfl)?;
    SigSet::all().thread_unblock()
}

fn dispose(signals: &[Signal], handler: SigHandler) -> nix::Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handler is SIG_IGN or SIG_DFL: no code of ours runs in signal context.
        unsafe { nix::sys::signal::sigaction(*signal, &action) }?;
    }
    Ok(())
}
