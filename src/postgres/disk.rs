//! What lies in the data directory. Looks, and never touches it.
//!
//! A mount that is missing at boot looks like an empty directory; nothing may be initialised or cloned into it
//! (scenario 119). So the mount point of a healthy data directory is remembered in the state directory.

use super::{Error, Owner, Settings, basebackup, control_data, durable, history, mount, reach, rewind, version::Version};
use crate::model::{
    instance::{DataDir, DiskFacts},
    moment::Span,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    net::TcpListener,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// How long looking may take: longer means a hung disk.
const LIMIT: Span = Span::from_secs(10);
/// Rights that PostgreSQL refuses on its data directory: writing by the group, anything by others.
const TOO_OPEN: u32 = 0o027;
const FORMAT: u32 = 1;

/// Looks at the data directory. Whatever is wrong is said in [`DataDir::Unusable`], with what to do.
pub async fn inspect(settings: &Settings) -> DataDir {
    match look(settings).await {
        Ok(found) => found,
        Err(Unfit(why)) => DataDir::Unusable { why },
    }
}

/// Remembers on which mount the data directory lies. For a directory that was found [`DataDir::Present`].
///
/// # Errors
/// When the mounts or the state directory cannot be read or written; what was remembered before stays.
pub async fn remember_mount(settings: &Settings) -> Result<(), Error> {
    let (data_dir, memory) = (settings.data_dir.clone(), memory(settings));
    durable::within(LIMIT, settings.state_dir.clone(), move || {
        let mount_point = mount::point_of(&data_dir).map_err(Error::file("find the mount of", &data_dir))?;
        let remembered = Remembered { v: FORMAT, data_dir, mount_point };
        if recall(&memory).ok().flatten().as_ref() == Some(&remembered) {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&remembered).unwrap_or_default();
        durable::write(&memory, &text, 0o600).map_err(Error::file("write", &memory))
    })
    .await
}

/// Whether the data directory, or its place, is on the mount where it was found last; nothing is known to speak against it.
pub async fn is_on_its_mount(settings: &Settings) -> bool {
    let (data_dir, memory, uid) = (settings.data_dir.clone(), memory(settings), settings.owner.uid);
    let looked = durable::within(LIMIT, settings.data_dir.clone(), move || Ok(same_mount(&data_dir, &memory, uid).is_ok())).await;
    looked.unwrap_or(false)
}

/// What stands in the memory file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    v: u32,
    data_dir: PathBuf,
    mount_point: PathBuf,
}

fn memory(settings: &Settings) -> PathBuf {
    settings.state_dir.join("data-mount.json")
}

fn recall(memory: &Path) -> io::Result<Option<Remembered>> {
    match fs::read(memory) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Why a directory cannot be used: for people.
struct Unfit(String);

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        // The chain, because nobody else sees it.
        let mut text = format!("could not {error}");
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self(text)
    }
}

/// A directory that looks like PostgreSQL's from outside.
struct Outside {
    major: u32,
    standby_signal: bool,
    backup_label: bool,
    started: bool,
    histories: BTreeMap<TimelineId, String>,
}

async fn look(settings: &Settings) -> Result<DataDir, Unfit> {
    let (path, wal_dir, memory, owner) = (settings.data_dir.clone(), settings.wal_dir.clone(), memory(settings), settings.owner);
    let seen = durable::within(LIMIT, path.clone(), move || Ok(outside(&path, wal_dir.as_deref(), &memory, owner))).await??;
    let outside = match seen {
        Seen::Missing => return nothing_else_listens(settings).await.map(|()| DataDir::Missing),
        Seen::Empty => return nothing_else_listens(settings).await.map(|()| DataDir::Empty),
        Seen::Data(outside) => outside,
    };
    let data_dir = settings.data_dir.display();
    let programs = Version::of_programs(settings).await?.major;
    if programs != outside.major {
        return Err(Unfit(format!(
            "{data_dir} is of PostgreSQL {}, but the programs in {} are of {programs}: set bin_dir to those of {}, or upgrade by pg_upgrade",
            outside.major,
            settings.bin_dir.display(),
            outside.major
        )));
    }
    let control = control_data::read(settings, &settings.data_dir).await?;
    let Outside { major, standby_signal, backup_label, started, histories } = outside;
    let rewind = rewind::mark(settings)?;
    let copied = basebackup::marked(&settings.data_dir).map_err(|error| unreadable(&settings.data_dir, settings.owner.uid, &error))?;
    Ok(DataDir::Present(DiskFacts { major, copied, control, standby_signal, backup_label, started, rewind, histories }))
}

/// Before anything is made here: a server that could not listen would hold a new cluster's first claim, or a copy for nothing.
async fn nothing_else_listens(settings: &Settings) -> Result<(), Unfit> {
    let (hosts, port) = (settings.listen.clone(), settings.port);
    let looked = durable::within(LIMIT, settings.data_dir.clone(), move || {
        let any = ["0.0.0.0".to_owned(), "::".to_owned()];
        let all = hosts.iter().flat_map(|host| if host == "*" { any.as_slice() } else { std::slice::from_ref(host) });
        let in_use = |host: &&String| TcpListener::bind((host.as_str(), port)).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
        Ok(all.into_iter().find(in_use).cloned())
    });
    match looked.await? {
        Some(host) => Err(Unfit(format!(
            "port {port} on {host} is in use by another program: stop it (a PostgreSQL of the distribution?), or change [postgres] port or listen"
        ))),
        None => Ok(()),
    }
}

enum Seen {
    Missing,
    Empty,
    Data(Outside),
}

fn outside(path: &Path, wal_dir: Option<&Path>, memory: &Path, owner: Owner) -> Result<Seen, Unfit> {
    let shown = path.display();
    let uid = owner.uid;
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return missing(path, wal_dir, memory, owner),
        Err(error) => return Err(unreadable(path, uid, &error)),
    };
    if !metadata.is_dir() {
        return Err(Unfit(format!("{shown} is no directory")));
    }
    if metadata.uid() != uid {
        return Err(Unfit(format!(
            "{shown} belongs to user id {}, not to {uid} that runs PostgreSQL: give it to that user by chown -R",
            metadata.uid()
        )));
    }
    let names = names_in(path, uid)?;
    if names.is_empty() {
        same_mount(path, memory, uid)?;
        wal_dir.map_or(Ok(()), |wal_dir| makeable(wal_dir, owner))?;
        return Ok(Seen::Empty);
    }
    let version = match fs::read_to_string(path.join("PG_VERSION")) {
        Ok(version) => version,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(unreadable(&path.join("PG_VERSION"), uid, &error)),
        Err(_) => return Err(foreign(path, &names)),
    };
    let Ok(major) = version.trim().parse() else {
        return Err(Unfit(format!("{shown}/PG_VERSION says {:?}, which is no major version", version.trim())));
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & TOO_OPEN != 0 {
        return Err(Unfit(format!("{shown} has mode {mode:04o}; PostgreSQL starts only with 0700 or 0750: chmod 0700 {shown}")));
    }
    whole_from_outside(path, uid)?;
    let there = |name: &str| path.join(name).try_exists().map_err(|error| unreadable(&path.join(name), uid, &error));
    Ok(Seen::Data(Outside {
        major,
        standby_signal: there("standby.signal")?,
        backup_label: there("backup_label")?,
        started: there("postmaster.opts")?,
        histories: history::read_all(&path.join("pg_wal"))?,
    }))
}

/// Who keeps `uid` out of `path`, and what to do.
fn unreadable(path: &Path, uid: u32, error: &io::Error) -> Unfit {
    let shown = path.display();
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => path.ancestors().find_map(|ancestor| {
            // What can still be looked at is what does not let further.
            let metadata = fs::metadata(ancestor).ok()?;
            Some(let_in(path, ancestor, metadata.uid(), metadata.permissions().mode() & 0o777, uid))
        }),
        _ => None,
    };
    let remedy = remedy.unwrap_or_else(|| "look at that disk, and at the kernel's log".to_owned());
    Unfit(format!("{shown} cannot be read: {error}; {remedy}"))
}

fn let_in(path: &Path, refuses: &Path, owner: u32, mode: u32, uid: u32) -> String {
    let shown = refuses.display();
    let remedy = match (owner == uid, refuses == path) {
        (true, _) => format!("chmod u+rwX {shown}"),
        (false, true) => format!("chown -R {uid} {shown}"),
        (false, false) => format!("let user id {uid}, which runs PostgreSQL, through: chmod o+x {shown}"),
    };
    format!("{shown} belongs to user id {owner} with mode {mode:04o}: {remedy}")
}

fn names_in(path: &Path, uid: u32) -> Result<Vec<String>, Unfit> {
    let failed = |error: io::Error| unreadable(path, uid, &error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        // What mkfs leaves in the root of a new file system.
        if name != "lost+found" {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Not there: fine if its parent is, if it was not on another mount before, and if its owner can make it.
fn missing(path: &Path, wal_dir: Option<&Path>, memory: &Path, owner: Owner) -> Result<Seen, Unfit> {
    let shown = path.display();
    if let Ok(target) = fs::read_link(path) {
        return Err(Unfit(format!("{shown} is a link to {}, which is not there: is its mount missing?", target.display())));
    }
    let parent = path.parent().unwrap_or(path);
    if !parent.is_dir() {
        return Err(Unfit(format!("{shown} is not there, nor its parent {}: is a mount missing, or data_dir wrong?", parent.display())));
    }
    same_mount(path, memory, owner.uid)?;
    for path in [Some(path), wal_dir].into_iter().flatten() {
        makeable(path, owner)?;
    }
    Ok(Seen::Missing)
}

/// Refuses a place where `initdb` or a copy would fail for ever, before anything is claimed or begun.
fn makeable(path: &Path, owner: Owner) -> Result<(), Unfit> {
    let shown = path.display();
    reach::may_make(owner, path).map_err(|(refused, why)| {
        let uid = owner.uid;
        let remedy =
            if refused == path { format!("chown {uid} {shown}") } else { format!("install -d -o {uid} -g {} -m 0700 {shown}", owner.gid) };
        Unfit(format!("{shown} cannot be made or written by user id {uid}, which runs PostgreSQL: {}: {why}; {remedy}", refused.display()))
    })
}

/// Refuses an empty place where the data directory once was, when it now lies on another mount.
fn same_mount(path: &Path, memory: &Path, uid: u32) -> Result<(), Unfit> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData => Unfit(format!(
            "{} cannot be understood: {error}; see that the mount of {} is there, then remove that file",
            memory.display(),
            path.display()
        )),
        _ => unreadable(memory, uid, &error),
    };
    let Some(before) = recall(memory).map_err(failed)?.filter(|before| before.data_dir == path) else { return Ok(()) };
    let failed = |error: io::Error| Unfit(format!("the mount of {} cannot be found: {error}", path.display()));
    let now = mount::point_of(path).map_err(failed)?;
    if now == before.mount_point {
        return Ok(());
    }
    Err(Unfit(format!(
        "{} is empty and lies on the mount {}; the data was on the mount {}: is that mount missing? If the move is meant, remove {}",
        path.display(),
        now.display(),
        before.mount_point.display(),
        memory.display()
    )))
}

fn foreign(path: &Path, names: &[String]) -> Unfit {
    let some = names.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > 5 { format!(" and {} more", names.len() - 5) } else { String::new() };
    Unfit(format!(
        "{} is not empty and holds no PG_VERSION that can be read, but {some}{more}: not a data directory; choose another data_dir or move these files away",
        path.display()
    ))
}

/// Refuses a directory of which a part lies on a mount that is not there.
fn whole_from_outside(path: &Path, uid: u32) -> Result<(), Unfit> {
    let gone = |link: &Path| {
        let target = fs::read_link(link).unwrap_or_default();
        Unfit(format!("{} points to {}, which is not there: is its mount missing?", link.display(), target.display()))
    };
    let pg_wal = path.join("pg_wal");
    if !pg_wal.is_dir() {
        return Err(gone(&pg_wal));
    }
    let tablespaces = path.join("pg_tblspc");
    let failed = |error: io::Error| unreadable(&tablespaces, uid, &error);
    for entry in fs::read_dir(&tablespaces).map_err(failed)? {
        let link = entry.map_err(failed)?.path();
        if !link.exists() {
            return Err(gone(&link));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_kept_out_learns_by_whom_and_what_to_do() {
        let data = Path::new("/srv/data");
        let said = |refuses: &str, owner, mode| let_in(data, Path::new(refuses), owner, mode, 110);
        assert_eq!(said("/srv/data", 110, 0), "/srv/data belongs to user id 110 with mode 0000: chmod u+rwX /srv/data");
        assert_eq!(said("/srv/data", 0, 0o700), "/srv/data belongs to user id 0 with mode 0700: chown -R 110 /srv/data");
        let through = "let user id 110, which runs PostgreSQL, through: chmod o+x /srv";
        assert_eq!(said("/srv", 0, 0o750), format!("/srv belongs to user id 0 with mode 0750: {through}"));
        let Unfit(why) = unreadable(data, 110, &io::Error::from(io::ErrorKind::TimedOut));
        assert!(why.ends_with("; look at that disk, and at the kernel's log"), "{why}");
    }
}
