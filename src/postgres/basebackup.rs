//! Cloning: a copy of another server by `pg_basebackup`, and its swap with what was there.
//!
//! The steps are [`copy`] (or [`copy_in_place`]), [`swap`], [`discard_old`]; [`super::replace`] makes them in order, and goes
//! on after a crash. Each may be called again; only [`swap`] touches the data directory, by two renames, and only
//! [`discard_old`] removes what was there before.

use super::{
    Credential, Error, Role, Settings, Stream,
    conninfo::conninfo,
    durable, peer,
    place::{self, Leftover, LeftoverKind, Names},
    session::column,
};
use crate::{
    clock,
    model::{
        instance::DataDir,
        lsn::Bytes,
        moment::{Moment, Span},
        node::{Address, DataIncarnation, NodeName, SlotName},
    },
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// How long moving and removing may take: file systems need minutes for the largest directories.
const DISK_LIMIT: Span = Span::from_secs(600);
/// How often a copy is looked at for a standstill.
const LOOK_EVERY: Span = Span::from_secs(1);
/// In a whole copy, written last: which one it is, so that a copy that was made and a swap that was done are known. It stays,
/// as no later copy has the same id.
const MARKER: &str = ".pgbaton-copy";

/// What is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The server; it is connected to as the replication role.
    pub address: Address,
    /// The slot that keeps WAL for this node until it streams; none: a temporary one for the copy's time alone.
    pub slot: Option<SlotName>,
    /// Where the source's tablespaces lie on its disk: see [`ask`].
    pub tablespaces: Vec<PathBuf>,
}

/// How long a copy may take, and how long it may stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// All in all.
    pub total: Span,
    /// Without a byte more. The source's checkpoint at the beginning counts, too.
    pub standstill: Span,
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Copied so far, without WAL.
    pub done: Bytes,
    /// The source's size as it was at the beginning: `done` may come to lie above it.
    pub total: Bytes,
}

impl Progress {
    /// Reads a line of `pg_basebackup --progress`: `  31243/31243 kB (100%), 1/1 tablespace`.
    pub fn parse(line: &str) -> Option<Self> {
        let (counts, rest) = line.trim_start().split_once(" kB (")?;
        rest.contains("%)").then_some(())?;
        let (done, total) = counts.split_once('/')?;
        let kilobytes = |text: &str| text.parse::<u64>().ok().map(|count| Bytes::new(count.saturating_mul(1024)));
        Some(Self { done: kilobytes(done)?, total: kilobytes(total)? })
    }
}

/// The word of the caller that another verified healthy copy of the data exists besides the clone's source, and which:
/// without it the present directory may be the last one and is not emptied (protocol 1.13 d).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedOtherCopy {
    /// The node that has it.
    pub node: NodeName,
}

/// What a source says of its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFacts {
    /// Where its tablespaces lie on its disk.
    pub tablespaces: Vec<PathBuf>,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// What a copy's data directory takes, in bytes: neither WAL counts, nor tablespaces (where the role may ask for theirs).
    pub size: Bytes,
}

/// Asks the server at `address` what a copy of it takes, as the monitor role, or as that for pg_rewind where the monitor
/// has no means to log in.
///
/// # Errors
/// As for any session.
pub async fn ask(settings: &Settings, address: &Address, limit: Span) -> Result<SourceFacts, Error> {
    let roles = &settings.roles;
    let logs_in = |role: &Role| !matches!(role.credential, Credential::None);
    let role = if !logs_in(&roles.monitor) && logs_in(&roles.rewind) { &roles.rewind } else { &roles.monitor };
    let session = peer::connect(settings, address, role, limit).await?;
    let doing = "ask the server for its size";
    let sql = "SELECT pg_tablespace_location(oid) AS location FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''";
    let rows = session.rows(doing, sql, &[], limit).await?;
    let tablespaces = rows.iter().map(|row| column::<&str>(row, "location").map(PathBuf::from)).collect::<Result<_, _>>()?;
    let sql = "SELECT (SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database) - (SELECT coalesce(sum(pg_tablespace_size(oid)), 0) \
               FROM pg_tablespace WHERE CASE WHEN pg_tablespace_location(oid) = '' THEN false ELSE \
               pg_has_role('pg_read_all_stats', 'USAGE') OR has_tablespace_privilege(oid, 'CREATE') END)";
    let sql = &format!("SELECT greatest(({sql}), 0)::int8 AS size, pg_is_in_recovery() AS in_recovery");
    let rows = session.rows(doing, sql, &[], limit).await?;
    let size = rows.first().map(|row| column::<i64>(row, "size")).transpose()?.unwrap_or_default();
    let in_recovery = rows.first().map(|row| column::<bool>(row, "in_recovery")).transpose()?.unwrap_or_default();
    Ok(SourceFacts { tablespaces, in_recovery, size: Bytes::new(u64::try_from(size).unwrap_or_default()) })
}

/// Copies `source` into a directory beside ours, where it waits, whole and durable, for [`swap`].
///
/// `id` is the data incarnation that the copy will be; what an earlier attempt left, whole or not, is removed first.
/// `see` is told how far it has come, about once a second. To cancel, drop the future: the program is killed; what it
/// left is found by [`place::leftovers`].
///
/// # Errors
/// In every case the data directory is as it was. After a failure (not after a drop) the unfinished copy is removed.
pub async fn copy(
    settings: &Settings,
    source: &Source,
    id: &DataIncarnation,
    patience: Patience,
    see: impl FnMut(Progress),
) -> Result<(), Error> {
    let names = Names::of(settings, id);
    clear(settings, |leftover| leftover.kind != LeftoverKind::Old).await?;
    let copied = copy_into(settings, source, id, &names.copying, patience, see).await;
    if copied.is_err() {
        clear(settings, |leftover| leftover.kind == LeftoverKind::Copying).await?;
        return copied;
    }
    durable::within(DISK_LIMIT, names.copying.clone(), move || {
        durable::rename(&names.copying, &names.copy).map_err(Error::file("rename", &names.copying))
    })
    .await
}

/// Empties the data directory and copies `source` into it: where a second copy has no place.
///
/// The control file goes first and comes last, so that no half of it can ever be started.
///
/// # Errors
/// The former data are gone whatever happens; the directory is [`DataDir::Unusable`] until a copy succeeds.
pub async fn copy_in_place(
    settings: &Settings,
    source: &Source,
    id: &DataIncarnation,
    _: &VerifiedOtherCopy,
    patience: Patience,
    see: impl FnMut(Progress),
) -> Result<(), Error> {
    let (data_dir, inside) = (settings.data_dir.clone(), Names::inside(settings, id));
    durable::within(DISK_LIMIT, data_dir.clone(), move || empty_in_order(&data_dir)).await?;
    copy_into(settings, source, id, &inside, patience, see).await?;
    finish_in_place(settings, id).await
}

/// Moves the whole copy `id` up that was made inside of the emptied data directory. May be called again.
pub(super) async fn finish_in_place(settings: &Settings, id: &DataIncarnation) -> Result<(), Error> {
    let (data_dir, inside) = (settings.data_dir.clone(), Names::inside(settings, id));
    durable::within(DISK_LIMIT, data_dir.clone(), move || move_up(&inside, &data_dir)).await
}

fn empty_in_order(data_dir: &Path) -> Result<(), Error> {
    let control = data_dir.join("global/pg_control");
    durable::remove(&control).or_else(missing_parent).map_err(Error::file("remove", &control))?;
    for part in place::parts_of(data_dir) {
        place::remove_part(&part)?;
    }
    durable::empty(data_dir).map_err(Error::file("empty", data_dir))
}

fn missing_parent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn move_up(inside: &Path, data_dir: &Path) -> Result<(), Error> {
    let failed = |source| Error::File { doing: "move the copy up from", path: inside.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(inside).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    // `global` holds the control file.
    names.sort_by_key(|name| name == "global");
    for name in names {
        fs::rename(inside.join(&name), data_dir.join(&name)).map_err(failed)?;
        durable::sync_directory(data_dir).map_err(failed)?;
    }
    durable::remove_tree(inside).map_err(failed)
}

async fn copy_into(
    settings: &Settings,
    source: &Source,
    id: &DataIncarnation,
    target: &Path,
    patience: Patience,
    mut see: impl FnMut(Progress),
) -> Result<(), Error> {
    let (all, what, of, to) = (settings.clone(), source.clone(), id.clone(), target.to_owned());
    let program = durable::within(DISK_LIMIT, to.clone(), move || backup_program(&all, &what, &of, &to)).await?;
    // How much was copied, and when the last byte came.
    let (copied, moved) = (AtomicU64::new(0), AtomicU64::new(clock::boot().as_nanos()));
    let line = |stream: Stream, line: &str| {
        if let Some(progress) = Progress::parse(line).filter(|_| stream == Stream::Err) {
            if copied.swap(progress.done.get(), Relaxed) != progress.done.get() {
                moved.store(clock::boot().as_nanos(), Relaxed);
            }
            see(progress);
        }
    };
    let standstill = async {
        loop {
            tokio::time::sleep(LOOK_EVERY.to_std()).await;
            if clock::boot().since(Moment::from_nanos(moved.load(Relaxed))) > patience.standstill {
                break;
            }
        }
    };
    tokio::select! {
        biased;
        ended = program.run_watched(patience.total, line) => ended.map(drop)?,
        () = standstill => {
            let done = Bytes::new(copied.load(Relaxed));
            return Err(Error::Standstill { command: program.to_string(), after: patience.standstill, done });
        }
    }
    let target = target.to_owned();
    let marker = id.to_string();
    durable::within(DISK_LIMIT, target.clone(), move || finish(&target, &marker)).await
}

fn backup_program(settings: &Settings, source: &Source, id: &DataIncarnation, target: &Path) -> Result<super::Program, Error> {
    // A name that no voter bears: the stream of WAL beside the copy must never count as a standby's (EXP-3).
    let conninfo = conninfo(settings, &source.address, &settings.roles.replication, &[("application_name", "pgbaton clone")])?;
    let mut program =
        settings.program("pg_basebackup").arg("--pgdata").arg(target).args(["--format=plain", "--wal-method=stream", "--checkpoint=fast"]);
    program = program.args(["--progress", "--no-password", "--dbname", &conninfo]);
    if let Some(slot) = &source.slot {
        program = program.args(["--slot", slot.as_str()]);
    }
    if let Some(wal_dir) = &settings.wal_dir {
        let part = place::part(wal_dir, id).map_err(Error::file("read", wal_dir))?;
        program = program.arg("--waldir").arg(part);
    }
    for there in &source.tablespaces {
        let here = settings.tablespace_map.get(there).unwrap_or(there);
        let part = place::part(here, id).map_err(Error::file("read", here))?;
        program = program.arg("--tablespace-mapping").arg(format!("{}={}", escaped(there), escaped(&part)));
    }
    Ok(program)
}

/// A directory in `--tablespace-mapping`, where an equals sign needs a backslash.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace('=', "\\=")
}

/// Makes a standby of the copy. `pg_basebackup` has made it durable and left out slots, temporary files and locks.
fn finish(target: &Path, id: &str) -> Result<(), Error> {
    let slots = target.join("pg_replslot");
    durable::empty(&slots).map_err(Error::file("empty", &slots))?;
    for (name, content) in [("standby.signal", ""), (MARKER, id)] {
        let path = target.join(name);
        durable::write(&path, content.as_bytes(), 0o600).map_err(Error::file("write", &path))?;
    }
    Ok(())
}

/// Whether `directory` is the whole copy `id`: its marker came last when it was made, its control file when it was moved.
pub(super) fn is_whole(directory: &Path, id: &DataIncarnation) -> bool {
    is_marked(directory, id) && directory.join("global/pg_control").exists()
}

/// Whether the marker in `directory` is that of the copy `id`.
pub(super) fn is_marked(directory: &Path, id: &DataIncarnation) -> bool {
    marked(directory).is_ok_and(|marked| marked.as_ref() == Some(id))
}

/// The copy that the marker in `directory` names; `None` where there is no marker.
pub(super) fn marked(directory: &Path) -> io::Result<Option<DataIncarnation>> {
    match fs::read_to_string(directory.join(MARKER)) {
        Ok(text) => Ok(text.parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the whole copy `id` in the place of the data directory, which is kept beside it until [`discard_old`].
///
/// PostgreSQL must not run, and the caller must not start it before this has succeeded. May be called again.
///
/// # Errors
/// [`Error::Refused`]: there is no whole copy, or no place for the old directory; nothing was touched. After any other
/// failure call it again: the data directory is the old one, missing, or the copy.
pub async fn swap(settings: &Settings, id: &DataIncarnation) -> Result<(), Error> {
    let (names, data_dir, id) = (Names::of(settings, id), settings.data_dir.clone(), id.clone());
    durable::within(DISK_LIMIT, data_dir.clone(), move || {
        if is_whole(&data_dir, &id) {
            return Ok(());
        }
        let (there, copy, old) = (data_dir.exists(), names.copy.exists(), names.old.exists());
        match (there, copy, old) {
            (_, false, _) => return Err(Error::Refused(format!("there is no whole copy {}", names.copy.display()))),
            (true, true, true) => return Err(Error::Refused(format!("{} is in the way", names.old.display()))),
            (true, true, false) => durable::rename(&data_dir, &names.old).map_err(Error::file("rename", &data_dir))?,
            (false, true, _) => {}
        }
        durable::rename(&names.copy, &data_dir).map_err(Error::file("rename", &names.copy))
    })
    .await
}

/// Removes what was there before the copy `id` was swapped in. May be called again.
///
/// # Errors
/// [`Error::Refused`] unless a usable data directory is in its place: the last copy is never removed.
pub async fn discard_old(settings: &Settings, id: &DataIncarnation) -> Result<(), Error> {
    if !matches!(super::disk::inspect(settings).await, DataDir::Present(_)) {
        return Err(Error::Refused(format!("{} is no usable data directory: the old one is kept", settings.data_dir.display())));
    }
    let id = id.clone();
    clear(settings, move |leftover| leftover.kind == LeftoverKind::Old && leftover.id == id).await
}

/// Removes what is left of copies, as far as `which` wants it.
pub(super) async fn clear(settings: &Settings, which: impl Fn(&Leftover) -> bool + Send + 'static) -> Result<(), Error> {
    let settings = settings.clone();
    durable::within(DISK_LIMIT, settings.data_dir.clone(), move || {
        place::leftovers_now(&settings)?
            .iter()
            .filter(|leftover| which(leftover))
            .try_for_each(|leftover| place::remove(&settings, leftover))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_in_kilobytes() {
        let progress = |done: u64, total: u64| Some(Progress { done: Bytes::new(done * 1024), total: Bytes::new(total * 1024) });
        assert_eq!(Progress::parse("  31243/31250 kB (99%), 0/1 tablespace"), progress(31243, 31250));
        assert_eq!(Progress::parse("31250/31250 kB (100%), 1/1 tablespace"), progress(31250, 31250));
        assert_eq!(Progress::parse("    0/31250 kB (0%), 0/2 tablespaces (...base/backup_label )"), progress(0, 31250));
        assert_eq!(Progress::parse("waiting for checkpoint"), None);
    }
}
