//! Work on files of the data directory, always with the rights of its owner: `standby.signal`, `promote`, `postmaster.pid`.
//!
//! Nothing is ever removed but `standby.signal` for a start as primary, and a `postmaster.pid` whose owner is proven dead.

use super::reaper;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

/// What a `postmaster.pid` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LockFile {
    /// The postmaster's id in its own PID namespace.
    pub(super) pid: i32,
    /// Key and id of its shared memory segment.
    pub(super) shmid: Option<i32>,
    /// `starting`, `standby` (no connections), `ready` (connections: a primary *or* a hot standby), `stopping`, or empty in a file that is
    /// still being written.
    pub(super) phase: String,
    /// Which file this is.
    pub(super) identity: FileIdentity,
}

/// Tells one file of a name from the next: an inode may be reused, its change time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileIdentity {
    inode: u64,
    born: (i64, i64),
}

/// Reads `postmaster.pid`; `None` where there is none or it is not complete yet.
pub(super) fn lock_file(data_dir: &Path) -> Option<LockFile> {
    let path = data_dir.join("postmaster.pid");
    let meta = fs::symlink_metadata(&path).ok()?;
    let text = fs::read_to_string(&path).ok()?;
    // PG 15 source, miscadmin.h: pid, data directory, start time, port, socket directory, address, shared memory key, status.
    let lines: Vec<&str> = text.lines().collect();
    let shmid = lines.get(6).and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    let phase = lines.get(7).map_or("", |line| line.trim()).to_owned();
    let identity = FileIdentity { inode: meta.ino(), born: born(&meta) };
    Some(LockFile { pid: lines.first()?.trim().parse().ok()?, shmid, phase, identity })
}

/// The birth time where the file system keeps one; PostgreSQL rewrites the file in place, so the change time moves.
fn born(meta: &fs::Metadata) -> (i64, i64) {
    let since = meta.created().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or((0, 0), |time| (i64::try_from(time.as_secs()).unwrap_or(0), i64::from(time.subsec_nanos())))
}

/// How far a server of ours has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// It does not listen to signals yet, or stops, or is not ours.
    #[default]
    Closed,
    /// In recovery: it can be promoted.
    Recovery,
    /// It has opened as primary.
    Primary,
}

/// How far the server behind `lock` has come, as `pg_ctl` finds out: from its status line and `pg_control`.
pub(super) fn phase(data_dir: &Path, lock: &LockFile) -> Phase {
    // PG source, pg_control.h: the state follows the system identifier and two versions; the numbers have been the same since 9.0.
    const IN_ARCHIVE_RECOVERY: i32 = 5;
    const IN_PRODUCTION: i32 = 6;
    let state = fs::read(data_dir.join("global/pg_control")).ok();
    let state = state.and_then(|control| control.get(16..20)?.try_into().ok()).map(i32::from_ne_bytes);
    match (lock.phase.as_str(), state) {
        // PG source, postmaster.c: a status line is first written after the signal handlers are in place.
        ("starting" | "standby" | "ready", Some(IN_ARCHIVE_RECOVERY)) => Phase::Recovery,
        // While starting, the state is still that of the last run.
        ("ready", Some(IN_PRODUCTION)) => Phase::Primary,
        _ => Phase::Closed,
    }
}

/// Makes sure that `standby.signal` exists, durably: at rest every data directory holds it (protocol I6).
pub(super) fn put_standby_signal(data_dir: &Path) -> Result<(), String> {
    put(data_dir, "standby.signal")
}

/// Removes `standby.signal`: the server about to start becomes primary.
pub(super) fn take_standby_signal(data_dir: &Path) -> Result<(), String> {
    match fs::remove_file(data_dir.join("standby.signal")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("remove standby.signal: {error}")),
        _ => Ok(()),
    }
}

/// Writes the file `promote`, as `pg_ctl promote` does before its SIGUSR1.
pub(super) fn put_promote(data_dir: &Path) -> Result<(), String> {
    put(data_dir, "promote")
}

fn put(data_dir: &Path, name: &str) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("create {name}: {error}");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options.open(data_dir.join(name)).and_then(|file| file.sync_all()).map_err(fail)?;
    fs::File::open(data_dir).and_then(|directory| directory.sync_all()).map_err(fail)
}

/// Whether this looks like PostgreSQL's data directory.
pub(super) fn is_data_dir(data_dir: &Path) -> bool {
    data_dir.join("PG_VERSION").is_file()
}

/// Removes the `postmaster.pid` of a server of ours whose whole process tree is verified dead, so that no id of its PID namespace stays
/// where it would be read as one of the host's (scenario 214).
pub(super) fn remove_own_lock_file(data_dir: &Path, pid: i32, not: Option<FileIdentity>) {
    let is_ours = lock_file(data_dir).is_some_and(|lock| lock.pid == pid && Some(lock.identity) != not);
    if is_ours && reaper::is_free(data_dir) {
        let _ = fs::remove_file(data_dir.join("postmaster.pid"));
    }
}

/// Clears the way for a start: PostgreSQL refuses when the id in an old `postmaster.pid` belongs to any living process of the same user.
///
/// The caller has seen that no process of PostgreSQL works in this directory. The file is removed only if that id now belongs to some
/// other program, and no process is attached to the shared memory that the file names.
pub(super) fn clear_stale_lock_file(data_dir: &Path) -> Result<(), String> {
    let Some(lock) = lock_file(data_dir) else { return Ok(()) };
    if !reaper::is_alive(Pid::from_raw(lock.pid)) {
        return Ok(()); // PostgreSQL finds that out by itself.
    }
    if let Some(attached) = lock.shmid.and_then(reaper::attached).filter(|attached| *attached > 0) {
        return Err(format!("{attached} processes are attached to the shared memory of the last server ({})", lock.pid));
    }
    if lock_file(data_dir).is_some_and(|again| again == lock) {
        fs::remove_file(data_dir.join("postmaster.pid")).map_err(|error| format!("remove stale postmaster.pid: {error}"))?;
    }
    Ok(())
}
