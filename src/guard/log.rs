//! The guard's own log: lines that never hold it up.
//!
//! A full disk, a dead reader or a journal that hangs costs lines, never the guard: a write that fails would end the process by a panic
//! somewhere above, and one that waits would leave the agent without an answer.

use super::{
    Error,
    kernel::{self, Forked},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{dup2_stderr, setsid, write},
};
use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
};

/// Stderr for a log subscriber in the guard's process; it never fails and never waits.
#[derive(Clone, Copy, Debug)]
pub struct Sink;

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if matches!(poll(&mut fds, PollTimeout::ZERO), Ok(ready) if ready > 0) {
            let _ = write(&stderr, line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From now on stderr goes to the file at `path`, by a process of its own: a disk that hangs must not hold the guard.
///
/// That process ends when nobody holds the pipe any more. It is nobody's child here, so that no kill mode sees it.
pub(super) fn divert(path: &Path) -> Result<(), Error> {
    let mut options = fs::OpenOptions::new();
    let file = options.append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path);
    let mut file = file.map_err(Error::system(format!("open {}", path.display())))?;
    let (mut reader, writer) = io::pipe().map_err(Error::system("make a pipe"))?;
    if let Forked::Parent(pid) = kernel::fork().map_err(Error::errno("fork"))? {
        let _ = nix::sys::wait::waitpid(pid, None);
        return dup2_stderr(&writer).map_err(Error::errno("redirect stderr"));
    }
    let _ = setsid();
    if !matches!(kernel::fork(), Ok(Forked::Child)) {
        kernel::exit_now(0)
    }
    let _ = nix::sys::prctl::set_name(c"pgbaton-log");
    // Nor does it hold what the caller waits for the end of.
    let _ = fs::OpenOptions::new().write(true).open("/dev/null").map(|null| dup2_stderr(&null));
    kernel::close_all_but(&[reader.as_fd(), file.as_fd()]);
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        let _ = file.write_all(&buffer[..read]);
    }
    kernel::exit_now(0)
}
