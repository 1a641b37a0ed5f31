//! Where a copy is made, and by which names its parts are known again.
//!
//! A copy beside the old directory leaves it untouched until the copy is whole, and is swapped in by two renames. Its
//! names carry the data incarnation that the copy will be:
//!
//! - `<data_dir>.pgbaton-copying-<id>`: being made; worthless when its maker is gone;
//! - `<data_dir>.pgbaton-copy-<id>`: whole and durable, to be swapped in;
//! - `<data_dir>.pgbaton-old-<id>`: what was there before the copy `<id>`;
//! - `<wal_dir>/pgbaton-<id>`, `<tablespace>/pgbaton-<id>`: parts of the copy on other file systems, where the plain
//!   directory is not empty. They keep these names.

use super::{Error, Settings, durable, mount};
use crate::model::{lsn::Bytes, moment::Span, node::DataIncarnation, node_file::ClonePlace};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// How long looking at directories may take.
const LOOK_LIMIT: Span = Span::from_secs(10);
const COPYING: &str = ".pgbaton-copying-";
const COPY: &str = ".pgbaton-copy-";
const OLD: &str = ".pgbaton-old-";
const PART: &str = "pgbaton-";

/// Where the next copy can be made, and why there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Beside the old directory, or in its place.
    pub place: ClonePlace,
    /// What spoke against a place beside it; empty where nothing did.
    pub why: String,
    /// Free bytes where the data directory lies.
    pub free: Bytes,
}

/// Decides where a copy of `size` bytes can be made: beside the data directory unless that is a mount point, its parent
/// cannot be written, or the space does not hold a second copy and a sixteenth more for the WAL that comes meanwhile.
///
/// # Errors
/// When the file system cannot be asked.
pub async fn place_for(settings: &Settings, size: Bytes) -> Result<Place, Error> {
    let settings = settings.clone();
    durable::within(LOOK_LIMIT, settings.data_dir.clone(), move || place_now(&settings, size)).await
}

fn place_now(settings: &Settings, size: Bytes) -> Result<Place, Error> {
    let data_dir = &settings.data_dir;
    let free = mount::free(data_dir).map_err(Error::file("ask for the free space of", data_dir))?;
    let against = against_beside(settings, size, free).map_err(Error::file("look at", data_dir))?;
    let place = if against.is_some() { ClonePlace::InPlace } else { ClonePlace::Beside };
    Ok(Place { place, why: against.unwrap_or_default(), free })
}

fn against_beside(settings: &Settings, size: Bytes, free: Bytes) -> io::Result<Option<String>> {
    let (data_dir, shown) = (&settings.data_dir, settings.data_dir.display());
    let there = data_dir.exists();
    if there && mount::point_of(data_dir)? == data_dir.canonicalize()? {
        return Ok(Some(format!("{shown} is a mount point")));
    }
    if fs::symlink_metadata(data_dir).is_ok_and(|metadata| metadata.is_symlink()) {
        return Ok(Some(format!("{shown} is a symbolic link")));
    }
    let parent = durable::parent(data_dir)?;
    let (metadata, owner) = (fs::metadata(parent)?, settings.owner);
    let bits = metadata.mode();
    let writable = if metadata.uid() == owner.uid {
        bits & 0o200 != 0
    } else if metadata.gid() == owner.gid {
        bits & 0o020 != 0
    } else {
        bits & 0o002 != 0
    };
    if !writable {
        return Ok(Some(format!("{} cannot be written by user id {}", parent.display(), owner.uid)));
    }
    let needed = Bytes::new(size.get().saturating_add(size.get() / 16));
    if free < needed {
        return Ok(Some(format!("{free} are free beside {shown}, a copy needs {needed}")));
    }
    Ok(None)
}

/// Where one copy's parts lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) copying: PathBuf,
    pub(super) copy: PathBuf,
    pub(super) old: PathBuf,
}

impl Names {
    pub(super) fn of(settings: &Settings, id: &DataIncarnation) -> Self {
        let named = |infix: &str| {
            let mut name = settings.data_dir.clone().into_os_string();
            name.push(infix);
            name.push(id.as_str());
            PathBuf::from(name)
        };
        Self { copying: named(COPYING), copy: named(COPY), old: named(OLD) }
    }

    /// Where a copy in place is made before it is moved up: on the same file system, also when that is a mount.
    pub(super) fn inside(settings: &Settings, id: &DataIncarnation) -> PathBuf {
        settings.data_dir.join(format!("{PART}{}", id.as_str()))
    }
}

/// Where a part outside the data directory goes: the plain directory where that is empty or missing, else one of our own in it.
pub(super) fn part(plain: &Path, id: &DataIncarnation) -> io::Result<PathBuf> {
    match fs::read_dir(plain) {
        Ok(mut entries) => Ok(if entries.next().is_none() { plain.to_owned() } else { plain.join(format!("{PART}{}", id.as_str())) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(plain.to_owned()),
        Err(error) => Err(error),
    }
}

/// What is left of copies beside the data directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Of which copy.
    pub id: DataIncarnation,
    /// Where.
    pub path: PathBuf,
}

impl Leftover {
    /// What it is, and what an operator should do about it: what may be the last copy is not to be removed.
    pub fn advice(&self, data_dir: &Path) -> String {
        let what = match self.kind {
            LeftoverKind::Copying => "an interrupted copy left it",
            LeftoverKind::Copy => "a whole copy that was not swapped in",
            LeftoverKind::Old => "what a copy replaced",
        };
        if self.kind == LeftoverKind::Copying || data_dir.join("global/pg_control").exists() {
            format!("{what}: remove it")
        } else {
            format!("{what}, and {} holds no data: keep it until another copy is known to be whole", data_dir.display())
        }
    }
}

/// What is left of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftoverKind {
    /// A copy that is not whole.
    Copying,
    /// A whole copy that was not swapped in.
    Copy,
    /// What was there before a copy was swapped in.
    Old,
}

/// Finds what is left of copies beside the data directory, by our own names alone.
///
/// # Errors
/// When the directory that holds the data directory cannot be read.
pub async fn leftovers(settings: &Settings) -> Result<Vec<Leftover>, Error> {
    let settings = settings.clone();
    durable::within(LOOK_LIMIT, settings.data_dir.clone(), move || leftovers_now(&settings)).await
}

pub(super) fn leftovers_now(settings: &Settings) -> Result<Vec<Leftover>, Error> {
    let parent = durable::parent(&settings.data_dir).map_err(Error::file("look at", &settings.data_dir))?;
    let base = settings.data_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(Error::file("read", parent)(error)),
    };
    for entry in entries {
        let path = entry.map_err(Error::file("read", parent))?.path();
        let Some(rest) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(&base)) else { continue };
        let kinds = [(COPYING, LeftoverKind::Copying), (COPY, LeftoverKind::Copy), (OLD, LeftoverKind::Old)];
        let known = kinds.into_iter().find_map(|(infix, kind)| Some((kind, rest.strip_prefix(infix)?.parse().ok()?)));
        if let Some((kind, id)) = known {
            found.push(Leftover { kind, id, path });
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what is left of a copy, with its parts on other file systems that nothing else here uses.
///
/// # Errors
/// When something cannot be removed. May be called again.
pub(super) fn remove(settings: &Settings, leftover: &Leftover) -> Result<(), Error> {
    let others = leftovers_now(settings)?.into_iter().map(|other| other.path).filter(|path| *path != leftover.path);
    let in_use: Vec<_> = others.chain([settings.data_dir.clone()]).flat_map(|path| parts_of(&path)).collect();
    for part in parts_of(&leftover.path).into_iter().filter(|part| !in_use.contains(part)) {
        remove_part(&part)?;
    }
    durable::remove_tree(&leftover.path).map_err(Error::file("remove", &leftover.path))
}

/// Where a data directory keeps what lies elsewhere: its WAL, and its tablespaces.
pub(super) fn parts_of(data_dir: &Path) -> Vec<PathBuf> {
    let tablespaces = fs::read_dir(data_dir.join("pg_tblspc")).into_iter().flatten().flatten().map(|entry| entry.path());
    tablespaces.chain([data_dir.join("pg_wal")]).filter_map(|link| fs::read_link(link).ok()).collect()
}

/// Removes a part: one of our own directories whole, of a plain one what PostgreSQL put there.
pub(super) fn remove_part(part: &Path) -> Result<(), Error> {
    let ours = part.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PART));
    let removed = if ours { durable::remove_tree(part) } else { empty_but_ours(part) };
    removed.map_err(Error::file("remove", part))
}

/// Empties a WAL directory or a tablespace of what PostgreSQL put there. Copies of ours in it stay, and strangers, too.
fn empty_but_ours(path: &Path) -> io::Result<()> {
    durable::empty_of(path, |name| {
        let name = name.to_string_lossy();
        super::segment::is_segment_name(name.get(..24).unwrap_or(&name))
            || name.ends_with(".history")
            || name == "archive_status"
            || name == "summaries"
            || name.starts_with("xlogtemp.")
            || name.starts_with("PG_")
    })
}
