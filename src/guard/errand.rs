//! Errands: work on files, done by a short-lived child so that a disk that hangs never holds the guard.

use super::{
    StartCommand, cut, data_dir,
    data_dir::{FileIdentity, Phase},
    kernel::{self, Forked, Received},
    launch::Owner,
    reaper,
};
use crate::model::{instance::StartAs, node::Address};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Gid, Pid, User, geteuid, getgrouplist},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    ffi::CString,
    fs,
    io::{Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// How many of the server's last lines are kept.
const TAIL_LINES: usize = 20;
/// From how many of its last bytes they are taken.
const TAIL_BYTES: u64 = 8 * 1024;

/// A child at work.
pub(super) struct Errand {
    pub(super) pid: Pid,
    channel: OwnedFd,
}

/// What a child brings back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    /// The `postmaster.pid` that was there before the start.
    pub(super) lock: Option<FileIdentity>,
    /// The groups of the data directory's owner.
    pub(super) groups: Vec<u32>,
    /// The length of the log before the start.
    pub(super) log_length: u64,
    /// How far the server has come.
    pub(super) phase: Phase,
    /// The server's last lines.
    pub(super) tail: String,
    /// What this host was cut off from.
    pub(super) cut: cut::Known,
    /// Why nothing was changed, where that is certain.
    pub(super) refused: Option<cut::Refused>,
}

/// The server that an errand is about: ours, by the id it wrote and the file it did not write.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) data_dir: PathBuf,
    /// The postmaster's id in its own PID namespace.
    pub(super) pid: i32,
    /// The `postmaster.pid` of a former server.
    pub(super) not: Option<FileIdentity>,
}

impl Server {
    fn phase(&self) -> Phase {
        let lock = data_dir::lock_file(&self.data_dir).filter(|lock| lock.pid == self.pid && Some(lock.identity) != self.not);
        lock.map(|lock| data_dir::phase(&self.data_dir, &lock)).unwrap_or_default()
    }
}

type Outcome = Result<(Found, Option<OwnedFd>), String>;

impl Errand {
    /// Before a start: nobody else serves this directory, no stale lock is in the way, `standby.signal` is as `start` needs it, the log is open.
    pub(super) fn prepare(command: &StartCommand, start: StartAs) -> Result<Self, String> {
        let command = command.clone();
        Self::send_out(move || prepare(&command, start))
    }

    /// Writes the file `promote` if the server is in recovery and listens to signals; brings the phase it is in.
    pub(super) fn promote(owner: &Owner, server: &Server) -> Result<Self, String> {
        let (owner, server) = (owner.clone(), server.clone());
        Self::send_out(move || {
            with_rights_of(&owner)?;
            let phase = server.phase();
            if phase == Phase::Recovery {
                data_dir::put_promote(&server.data_dir)?;
            }
            Ok((Found { phase, ..Found::default() }, None))
        })
    }

    /// Waits until the server has opened as primary and puts `standby.signal` back (protocol I6).
    pub(super) fn restore(owner: &Owner, server: &Server) -> Result<Self, String> {
        let (owner, server) = (owner.clone(), server.clone());
        Self::send_out(move || {
            with_rights_of(&owner)?;
            let mut pause = Duration::from_millis(5);
            while server.phase() != Phase::Primary {
                std::thread::sleep(pause);
                pause = (pause * 5 / 4).min(Duration::from_millis(100));
            }
            data_dir::put_standby_signal(&server.data_dir)?;
            Ok((Found::default(), None))
        })
    }

    /// After the tree of `server` was verified empty: `standby.signal` is back, no dead id stays in `postmaster.pid`, the last lines are read.
    pub(super) fn settle(owner: &Owner, server: &Server, log: &Path, log_length: u64) -> Result<Self, String> {
        let (owner, server, log) = (owner.clone(), server.clone(), log.to_owned());
        Self::send_out(move || {
            with_rights_of(&owner)?;
            if data_dir::is_data_dir(&server.data_dir) {
                data_dir::put_standby_signal(&server.data_dir)?;
                data_dir::remove_own_lock_file(&server.data_dir, server.pid, server.not);
            }
            Ok((Found { tail: tail(&log, log_length), ..Found::default() }, None))
        })
    }

    /// Cuts this host off from these servers and from no others, with the guard's own rights.
    pub(super) fn cut(table: &str, from: &BTreeSet<Address>, known: &cut::Known, data_dir: &Path) -> Result<Self, String> {
        let (table, from, known, data_dir) = (table.to_owned(), from.clone(), known.clone(), data_dir.to_owned());
        Self::send_out(move || {
            let found = match cut::put(&table, &from, &known, &data_dir) {
                Ok(cut) => Found { cut, ..Found::default() },
                Err(why) => Found { refused: Some(why), ..Found::default() },
            };
            Ok((found, None))
        })
    }

    fn send_out(work: impl FnOnce() -> Outcome) -> Result<Self, String> {
        let (ours, theirs) = kernel::channel().map_err(|error| format!("make a socket pair: {error}"))?;
        match kernel::fork().map_err(|error| format!("fork: {error}"))? {
            Forked::Parent(pid) => Ok(Self { pid, channel: ours }),
            Forked::Child => {
                kernel::close_all_but(&[theirs.as_fd()]);
                // An errand of a dead guard must not go on.
                let _ = prctl::set_pdeathsig(Signal::SIGKILL);
                let _ = kernel::default_signals();
                report(theirs.as_fd(), work())
            }
        }
    }

    /// The outcome and, after a preparation, the open log; `None` while the child is at work.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match kernel::receive(self.channel.as_fd()) {
            Received::Nothing => None,
            Received::End => Some(Err("the helper process died".to_owned())),
            Received::Message(bytes, fd) => Some(match serde_json::from_slice::<Result<Found, String>>(&bytes) {
                Ok(found) => found.map(|found| (found, fd)),
                Err(error) => Err(format!("the helper process said something odd: {error}")),
            }),
        }
    }

    /// Ends the child; what it had begun may or may not be done.
    pub(super) fn cancel(&self) {
        let _ = nix::sys::signal::kill(self.pid, Signal::SIGKILL);
    }

    /// Readable when there is an outcome.
    pub(super) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

fn report(channel: BorrowedFd<'_>, outcome: Outcome) -> ! {
    let (found, fd) = match outcome {
        Ok((found, fd)) => (Ok(found), fd),
        Err(why) => (Err(why), None),
    };
    let bytes = serde_json::to_vec::<Result<Found, String>>(&found).unwrap_or_default();
    let _ = kernel::send(channel, &bytes, fd.as_ref().map(AsFd::as_fd));
    kernel::exit_now(0)
}

/// Takes the owner's rights, so that a link planted in the data directory leads no further than its owner could go himself.
fn with_rights_of(owner: &Owner) -> Result<(), String> {
    owner.become_it().map_err(|error| format!("take the rights of uid {}: {error}", owner.uid))?;
    // Again: the change of credentials has cleared it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| format!("set the parent-death signal: {error}"))
}

fn prepare(command: &StartCommand, start: StartAs) -> Outcome {
    let directory = &command.data_dir;
    let meta = fs::metadata(directory).map_err(|error| format!("read {}: {error}", directory.display()))?;
    if meta.uid() != command.uid {
        return Err(format!("{} belongs to uid {}, not to uid {}", directory.display(), meta.uid(), command.uid));
    }
    if !data_dir::is_data_dir(directory) {
        return Err(format!("{} holds no PG_VERSION: it is no data directory of PostgreSQL", directory.display()));
    }
    // With the guard's rights: other users' processes can be seen then.
    let running = reaper::of_data_dir(directory)
        .map_err(|fault| format!("could not see whether PostgreSQL runs on {} outside this guard: {fault}", directory.display()))?;
    if let Some(pid) = running.first() {
        return Err(format!("PostgreSQL runs on {} outside this guard (process {pid}): stop it first", directory.display()));
    }
    let owner = Owner { uid: command.uid, gid: command.gid, groups: groups_of(command) };
    with_rights_of(&owner)?;
    data_dir::clear_stale_lock_file(directory)?;
    let lock = data_dir::lock_file(directory).map(|lock| lock.identity);
    let log = fs::OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&command.log_file);
    let log = log.map_err(|error| format!("open the server's log {}: {error}", command.log_file.display()))?;
    let log_length = log.metadata().map_or(0, |meta| meta.len());
    match start {
        StartAs::Standby => data_dir::put_standby_signal(directory)?,
        StartAs::Primary => data_dir::take_standby_signal(directory)?,
    }
    Ok((Found { lock, groups: owner.groups, log_length, ..Found::default() }, Some(log.into())))
}

/// All groups of the owner; only the one given where the system's user database does not know him.
fn groups_of(command: &StartCommand) -> Vec<u32> {
    let only = vec![command.gid];
    if !geteuid().is_root() {
        return only;
    }
    let Ok(Some(user)) = User::from_uid(command.uid.into()) else { return only };
    let Ok(name) = CString::new(user.name) else { return only };
    getgrouplist(&name, Gid::from_raw(command.gid)).map_or(only, |groups| groups.into_iter().map(Gid::as_raw).collect())
}

/// The last lines that were written to `log` beyond `from` bytes.
fn tail(log: &Path, from: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.min(end).max(end.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
