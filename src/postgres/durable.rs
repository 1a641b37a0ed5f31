//! Files that are there, whole, after a power cut.

use super::Error;
use crate::model::moment::Span;
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, chown},
    path::{Path, PathBuf},
};

/// Writes `path` whole: a temporary file beside it, fsync, rename, fsync of the directory.
///
/// The file belongs to the owner of its directory (the agent may run as root in containers) and has `mode`.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = parent(path)?;
    let temporary = temporary(path)?;
    let written = write_temporary(&temporary, directory, content, mode).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // What could not be finished is of no use; the former file is still whole.
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    sync_directory(directory)
}

fn write_temporary(path: &Path, directory: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    own_as(path, directory)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Gives `path` to the owner of `like`, where it is another's.
pub(super) fn own_as(path: &Path, like: &Path) -> io::Result<()> {
    let (wanted, present) = (fs::metadata(like)?, fs::symlink_metadata(path)?);
    if (wanted.uid(), wanted.gid()) == (present.uid(), present.gid()) {
        return Ok(());
    }
    chown(path, Some(wanted.uid()), Some(wanted.gid()))
}

/// Removes a file durably; one that is not there is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Renames durably, within one file system.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_directory(parent(to)?)?;
    sync_directory(parent(from)?)
}

/// Removes a directory with all that is in it, following no link; one that is not there is no error.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    remove_any(path)?;
    sync_directory(parent(path)?)
}

fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes all that is in a directory but `lost+found`, following no link; one that is not there is no error.
pub(super) fn empty(path: &Path) -> io::Result<()> {
    empty_of(path, |name| name != "lost+found")
}

/// Removes what in a directory has such a name, following no link; a directory that is not there is no error.
pub(super) fn empty_of(path: &Path, goes: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if goes(&entry.file_name()) {
            remove_any(&entry.path())?;
        }
    }
    sync_directory(path)
}

/// Makes the entries of a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes a whole data directory durable, with its WAL directory and tablespaces on other file systems: one `syncfs` for each
/// of them, where fsync of each of a few thousand files takes seconds (measured: 1 ms a file, changed or not).
///
/// The kernel reports failed writes here since Linux 5.8; before that every file is fsynced.
pub(super) fn sync_file_systems(data_dir: &Path) -> io::Result<()> {
    if !syncfs_reports_errors() {
        return sync_each_file(data_dir);
    }
    let mut done = Vec::new();
    for tree in trees(data_dir)? {
        let directory = File::open(&tree)?;
        let device = directory.metadata()?.dev();
        if !done.contains(&device) {
            nix::unistd::syncfs(&directory)?;
            done.push(device);
        }
    }
    Ok(())
}

/// As [`sync_file_systems`], file by file: each is told of its own failed writes, also where a `syncfs` that nobody waited for any
/// more has been told of them.
pub(super) fn sync_each_file(data_dir: &Path) -> io::Result<()> {
    trees(data_dir)?.iter().try_for_each(|tree| sync_tree(tree))
}

/// A data directory, and where its WAL directory and tablespaces lie elsewhere.
fn trees(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut trees = vec![data_dir.to_owned()];
    trees.extend(linked(&data_dir.join("pg_wal"))?);
    for entry in fs::read_dir(data_dir.join("pg_tblspc"))? {
        trees.extend(linked(&entry?.path())?);
    }
    Ok(trees)
}

/// Where a symbolic link leads.
fn linked(path: &Path) -> io::Result<Option<PathBuf>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::canonicalize(path).map(Some),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every file and directory below, following no link.
fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_directory(path)
}

/// Whether `syncfs` says when data could not be written: since Linux 5.8 (its manual page).
pub(super) fn syncfs_reports_errors() -> bool {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    at_least(&release, (5, 8))
}

fn at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit()).map(|number| number.parse::<u32>().ok());
    matches!((numbers.next().flatten(), numbers.next().flatten()), (Some(major), Some(minor)) if (major, minor) >= wanted)
}

/// The directory that holds `path`.
pub(super) fn parent(path: &Path) -> io::Result<&Path> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} has no parent directory", path.display()));
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).ok_or_else(none)
}

fn temporary(path: &Path) -> io::Result<PathBuf> {
    let none = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()));
    let mut name = path.file_name().ok_or_else(none)?.to_owned();
    // Never a name that PostgreSQL gives a meaning to: neither a segment nor a history file.
    name.push(".pgbaton-tmp");
    Ok(path.with_file_name(name))
}

/// Runs work on the disk on a thread that may hang, and waits for it until `limit`.
///
/// Work that is given up goes on by itself: what it does is unknown.
pub(super) async fn within<T: Send + 'static>(
    limit: Span,
    path: PathBuf,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::time::timeout(limit.to_std(), tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(stopped)) => Err(Error::File { doing: "work on", path, source: io::Error::other(stopped) }),
        Err(_) => Err(Error::File {
            doing: "work on",
            path,
            source: io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {}", limit.rounded())),
        }),
    }
}
