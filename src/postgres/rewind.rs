//! `pg_rewind`: making a data directory that went another way follow the primary again, without a full copy.
//!
//! The order (protocol 1.13 c) is the caller's to keep: [`archive_ready_segments`]; where the server was not stopped cleanly, a
//! start with [`RecoveryTarget::Timeline`] until replay reaches the end of WAL, then a fast stop; only then the ledger's history files
//! (EXP-30 ii); [`diverged`], because it will be gone; [`source_state`]; [`run`].
//! pg_rewind's own recovery of its target runs `postgres --single`, which refuses a directory with `standby.signal`
//! (EXP-27), and is never asked for.
//!
//! [`RecoveryTarget::Timeline`]: crate::model::instance::RecoveryTarget::Timeline

use super::{
    Error, Failure, Settings, Stream, basebackup,
    conninfo::conninfo,
    durable,
    peer::PeerFacts,
    rewind_mark::{self, Marked},
    scan,
    shell::{self, Words},
    version::Version,
};
use crate::{
    clock,
    model::{
        instance::RewindMark,
        lsn::{Bytes, Lsn},
        moment::{Moment, Span},
        node::{Address, DataIncarnation},
        timeline::{Fork, TimelineId},
    },
};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// How long the disk may take for a handful of small files.
const DISK_LIMIT: Span = Span::from_secs(60);

/// Whether the source can be rewound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// It is a primary and its newest checkpoint is on its timeline.
    Ready {
        /// Which.
        tli: TimelineId,
    },
    /// It is in recovery: still on its way to promotion, or another server than was meant.
    InRecovery,
    /// It was promoted, but its newest checkpoint is of the timeline before: pg_rewind up to 15 would take it for not
    /// diverged. A CHECKPOINT there helps.
    NotCheckpointed {
        /// The timeline of its newest checkpoint.
        checkpoint: TimelineId,
    },
}

impl fmt::Display for SourceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { tli } => write!(f, "it serves on timeline {tli}"),
            Self::InRecovery => f.write_str("it is in recovery"),
            Self::NotCheckpointed { checkpoint } => write!(f, "its newest checkpoint is still on timeline {checkpoint}"),
        }
    }
}

/// Judges what the source said ([`super::peer::ask`]), of which the ledger says that it is on `tli`.
pub fn source_state(facts: &PeerFacts, tli: TimelineId) -> SourceState {
    match facts.primary_of {
        None => SourceState::InRecovery,
        Some(_) if facts.checkpoint_tli < tli => SourceState::NotCheckpointed { checkpoint: facts.checkpoint_tli },
        Some(tli) => SourceState::Ready { tli },
    }
}

/// What this data directory holds and the cluster's history does not: it is gone after a rewind or a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diverged {
    /// The timeline that was left.
    pub tli: TimelineId,
    /// Where the cluster's history left it.
    pub from: Lsn,
    /// The end of WAL here.
    pub to: Lsn,
    /// The bytes between.
    pub bytes: Bytes,
    /// The transactions that were committed between.
    pub transactions: u64,
}

/// Counts what diverged on `tli` behind the `switch` point of the cluster's history. Reads only.
///
/// # Errors
/// When the WAL behind the switch point is not there or cannot be read.
pub async fn diverged(settings: &Settings, tli: TimelineId, switch: Lsn, limit: Span) -> Result<Diverged, Error> {
    let until = clock::boot().plus(limit);
    let whole = scan::whole(settings, switch, tli, limit).await?;
    let transactions = scan::commits(settings, switch, whole, until.since(clock::boot())).await?;
    Ok(Diverged { tli, from: switch, to: whole.lsn, bytes: whole.lsn.bytes_ahead_of(switch), transactions })
}

/// What archiving the waiting segments did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// The files that are in the archive now.
    pub done: Vec<String>,
    /// Those that are not, as the first of them failed.
    pub left: Vec<String>,
    /// Why the first of them failed.
    pub why: Option<String>,
}

/// Runs `archive_command` for every segment that waits for it (`.ready`), oldest first, histories before all: a rewind
/// deletes them (scenario 146). PostgreSQL must not run. A command that fails ends it; each may take `each`, all `limit`.
///
/// # Errors
/// When the directory cannot be read or written.
pub async fn archive_ready_segments(settings: &Settings, archive_command: &str, each: Span, limit: Span) -> Result<Archived, Error> {
    let until = clock::boot().plus(limit);
    let status = settings.data_dir.join("pg_wal/archive_status");
    let (dir, of) = (status.clone(), status.clone());
    let mut waiting = durable::within(DISK_LIMIT, of, move || ready(&dir)).await?;
    let mut archived = Archived::default();
    while let Some(file) = waiting.first().cloned() {
        let left = each.min(until.since(clock::boot()));
        let path = format!("pg_wal/{file}");
        let command = shell::expand(archive_command, Words { file: &file, path: &path, restart: None });
        let ended = shell::run(shell::shell().owner(settings.owner), &command, &settings.data_dir, left).await;
        archived.why = match ended {
            Ok(ended) if ended.status.success() => None,
            Ok(ended) => Some(format!("{command}: {}: {}", ended.status, ended.stderr)),
            Err(failure) => Some(failure.to_string()),
        };
        if archived.why.is_some() {
            break;
        }
        let (from, to) = (status.join(format!("{file}.ready")), status.join(format!("{file}.done")));
        durable::rename(&from, &to).map_err(Error::file("rename", &from))?;
        archived.done.push(waiting.remove(0));
    }
    archived.left = waiting;
    Ok(archived)
}

fn ready(status: &Path) -> Result<Vec<String>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(status).map_err(Error::file("read", status))? {
        let name = entry.map_err(Error::file("read", status))?.file_name();
        if let Some(file) = name.to_str().and_then(|name| name.strip_suffix(".ready")) {
            files.push(file.to_owned());
        }
    }
    files.sort_by_key(|file| (!file.ends_with(".history"), file.clone()));
    Ok(files)
}

/// How pg_rewind is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The primary.
    pub source: Address,
    /// The managed `postgresql.conf`, whose `restore_command` may fetch WAL that is no longer in `pg_wal` (from 15 on); none: no archive.
    pub restore_by: Option<PathBuf>,
    /// The life of the data that it ends, for the mark.
    pub life: DataIncarnation,
    /// How long it may take, until what it did is on disk.
    pub limit: Span,
}

/// What a rewind did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewound {
    /// The target went the same way already, or pg_rewind took it for that (EXP-7): nothing was changed.
    NotNeeded,
    /// It follows the source's history now, or that of a former try's source, which was only to be finished: that says no more.
    Done {
        /// Where the histories part: the target's timeline and the position.
        fork: Option<Fork>,
        /// The last common checkpoint, from which it has to replay.
        checkpoint: Option<Lsn>,
    },
}

/// Rewinds our data directory by the primary. PostgreSQL must not run; `see` is told how far it has come.
///
/// A marker in the state directory says how far it has come: see [`mark`]. It ends with `standby.signal` and without
/// replication slots. The operator's configuration is kept where that lies in the data directory. What an earlier try for the same
/// [`Options::life`] brought to the end of pg_rewind is not done again (pg_rewind would refuse it: the target was not shut down
/// cleanly), but finished.
///
/// # Errors
/// [`Error::Rewind`] says whether the data directory was touched: if so, it may only be rewound again or cloned.
pub async fn run(settings: &Settings, options: &Options, mut see: impl FnMut(basebackup::Progress)) -> Result<Rewound, Error> {
    let until = clock::boot().plus(options.limit);
    let program = program(settings, options).await?;
    let life = options.life.clone();
    let (kept, was_touched) = match on_disk(settings, DISK_LIMIT, move |settings| begin(settings, &life)).await? {
        Begun::Anew { kept, was_touched } => (kept, was_touched),
        Begun::Ended { kept } => {
            let life = options.life.clone();
            // Whoever waited for that try's `syncfs` may be gone with what it reported.
            let work = move |settings: &Settings| finish(settings, &kept, &life, durable::sync_each_file);
            on_disk(settings, left(until), work).await?;
            return Ok(Rewound::Done { fork: None, checkpoint: None });
        }
        Begun::Done => return Ok(Rewound::Done { fork: None, checkpoint: None }),
    };
    let mut said = Said::default();
    let ended = program
        .run_watched(options.limit, |stream, line| {
            said.hear(line);
            if let Some(progress) = progress(line).filter(|_| stream == Stream::Err) {
                see(progress);
            }
        })
        .await;
    match ended {
        Ok(_) if said.not_needed && was_touched => {
            let why = "pg_rewind sees no difference, but an earlier one was interrupted and may have left blocks of both histories";
            return Err(Error::Refused(format!("{why}: clone {}", settings.data_dir.display())));
        }
        Ok(_) if said.not_needed => {}
        Ok(_) => {
            let life = options.life.clone();
            // As long as there is time: a disk takes minutes for what lies in memory, and this cannot be done anew.
            let work = move |settings: &Settings| {
                note_ended(settings, &life)?;
                finish(settings, &kept, &life, durable::sync_file_systems)
            };
            on_disk(settings, left(until), work).await?;
            return Ok(Rewound::Done { fork: said.fork, checkpoint: said.checkpoint });
        }
        Err(source) => {
            let touched = was_touched || said.checkpoint.is_some() && !matches!(source, Failure::Start { .. });
            if !touched {
                on_disk(settings, DISK_LIMIT, clean_up).await?;
            }
            return Err(Error::Rewind { touched, source });
        }
    }
    on_disk(settings, DISK_LIMIT, clean_up).await?;
    Ok(Rewound::NotNeeded)
}

/// How far the newest rewind of our data directory has come: on an unfinished one nothing may be started, it may only be
/// rewound again or cloned (scenario 142).
///
/// # Errors
/// When the state directory cannot be read.
pub fn mark(settings: &Settings) -> Result<Option<RewindMark>, Error> {
    Ok(rewind_mark::read(settings)?.map(|marked| match marked {
        // Until what it did is on disk a power cut makes it a half one.
        Marked::Unfinished | Marked::Ended { .. } => RewindMark::Unfinished,
        Marked::Done { life } => RewindMark::Done { life },
    }))
}

/// Whether pg_rewind has ended well for this life of the data: [`run`] needs no source any more, and discards nothing.
pub fn has_ended(settings: &Settings, life: &DataIncarnation) -> bool {
    rewind_mark::read(settings).is_ok_and(|marked| marked.is_some_and(|marked| marked.is_done(life) || marked.is_to_be_finished(life)))
}

/// Forgets an unfinished rewind, once a clone is about to replace the data directory (which the node file says).
///
/// # Errors
/// When the state directory cannot be written.
pub async fn forget_unfinished(settings: &Settings) -> Result<(), Error> {
    on_disk(settings, DISK_LIMIT, clean_up).await
}

fn left(until: Moment) -> Span {
    until.since(clock::boot())
}

async fn program(settings: &Settings, options: &Options) -> Result<super::Program, Error> {
    // Only a primary: behind a moved address another server may answer (scenario 144).
    let more = [("dbname", "postgres"), ("target_session_attrs", "read-write"), ("application_name", "pgbaton rewind")];
    let source = conninfo(settings, &options.source, &settings.roles.rewind, &more)?;
    let mut program = settings.program("pg_rewind");
    program = program.arg("--target-pgdata").arg(&settings.data_dir).arg(format!("--source-server={source}"));
    // It would fsync each file by itself, which takes seconds where one call for the file system takes a moment.
    program = program.args(["--no-ensure-shutdown", "--progress", "--no-sync"]);
    // Before 15 pg_rewind reads restore_command from PGDATA alone, where ours never stands.
    if let Some(config) = &options.restore_by
        && Version::of_programs(settings).await?.major >= 15
    {
        program = program.arg("--restore-target-wal").arg(format!("--config-file={}", config.display()));
    }
    Ok(program)
}

/// What pg_rewind said while it worked.
#[derive(Debug, Default)]
struct Said {
    not_needed: bool,
    fork: Option<Fork>,
    checkpoint: Option<Lsn>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        self.not_needed |= line.contains("no rewind required");
        if let Some((lsn, tli)) = place(line, "servers diverged at WAL location ") {
            self.fork = Some(Fork { parent: tli, at: lsn });
        }
        if let Some((lsn, _)) = place(line, "rewinding from last common checkpoint at ") {
            self.checkpoint = Some(lsn);
        }
    }
}

/// `<phrase>0/3000148 on timeline 1`
fn place(line: &str, phrase: &str) -> Option<(Lsn, TimelineId)> {
    let (_, rest) = line.split_once(phrase)?;
    let (lsn, tli) = rest.split_once(" on timeline ")?;
    Some((lsn.parse().ok()?, TimelineId::new(tli.trim().parse().ok()?)?))
}

/// `  1234/ 54321 kB (2%) copied`
fn progress(line: &str) -> Option<basebackup::Progress> {
    line.trim_end().strip_suffix(" copied").and_then(|line| basebackup::Progress::parse(&line.replace("/ ", "/")))
}

async fn on_disk<T: Send + 'static>(
    settings: &Settings,
    limit: Span,
    work: impl FnOnce(&Settings) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let settings = settings.clone();
    durable::within(limit, settings.data_dir.clone(), move || work(&settings)).await
}

/// What an attempt finds.
enum Begun {
    /// pg_rewind is to be run, and the marker says so. Whether an interrupted one has been here.
    Anew { kept: Kept, was_touched: bool },
    /// An earlier attempt ran pg_rewind to its end; the rest is to be done.
    Ended { kept: Kept },
    /// An earlier attempt has done all.
    Done,
}

/// Files of the operator's, with their content.
type Kept = BTreeMap<PathBuf, Vec<u8>>;

/// Keeps what has to survive and sets the marker. One that stood already stays whatever this attempt does, until one has
/// succeeded; one that says that pg_rewind has ended for this life is never replaced.
fn begin(settings: &Settings, life: &DataIncarnation) -> Result<Begun, Error> {
    let marked = rewind_mark::read(settings)?;
    if marked.as_ref().is_some_and(|marked| marked.is_done(life)) {
        return Ok(Begun::Done);
    }
    let kept = keep(settings)?;
    if marked.as_ref().is_some_and(|marked| marked.is_to_be_finished(life)) {
        return Ok(Begun::Ended { kept });
    }
    let was_touched = matches!(marked, Some(Marked::Unfinished | Marked::Ended { .. }));
    rewind_mark::write(settings, &Marked::Unfinished)?;
    Ok(Begun::Anew { kept, was_touched })
}

/// Notes that pg_rewind has ended well: what it did outlives this agent, though not yet the machine's boot.
fn note_ended(settings: &Settings, life: &DataIncarnation) -> Result<(), Error> {
    clock::boot_id().map_or(Ok(()), |boot| rewind_mark::write(settings, &Marked::Ended { life: life.clone(), boot }))
}

/// What is to be done after pg_rewind, as often as it takes. The last mark is written once `sync` has put all on disk.
fn finish(settings: &Settings, kept: &Kept, life: &DataIncarnation, sync: fn(&Path) -> io::Result<()>) -> Result<(), Error> {
    for (path, content) in kept {
        durable::write(path, content, 0o600).map_err(Error::file("write", path))?;
    }
    let slots = settings.data_dir.join("pg_replslot");
    durable::empty(&slots).map_err(Error::file("empty", &slots))?;
    let signal = settings.data_dir.join("standby.signal");
    durable::write(&signal, b"", 0o600).map_err(Error::file("write", &signal))?;
    if let Err(error) = sync(&settings.data_dir) {
        // The kernel drops what it could not write and says so once: the next flush would end well, without it.
        rewind_mark::write(settings, &Marked::Unfinished)?;
        return Err(Error::file("make durable", &settings.data_dir)(error));
    }
    let kept = self::kept(settings);
    durable::remove(&kept).map_err(Error::file("remove", &kept))?;
    rewind_mark::write(settings, &Marked::Done { life: life.clone() })
}

/// The operator's configuration in the data directory, which pg_rewind overwrites with the source's (scenario 147); safe in
/// the state directory while it works.
fn keep(settings: &Settings) -> Result<Kept, Error> {
    let inside = settings.base_config.iter().filter(|path| path.starts_with(&settings.data_dir));
    let safe = kept(settings);
    inside
        .map(|path| {
            let saved = match fs::read(&safe) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                other => Some(other.map_err(Error::file("read", &safe))?),
            };
            // What an interrupted attempt kept is the operator's; what lies there now may be the source's.
            let content = match saved {
                Some(content) => content,
                None => fs::read(path).map_err(Error::file("read", path))?,
            };
            durable::write(&safe, &content, 0o600).map_err(Error::file("write", &safe))?;
            Ok((path.clone(), content))
        })
        .collect()
}

fn kept(settings: &Settings) -> PathBuf {
    settings.state_dir.join("rewind-kept-config")
}

fn clean_up(settings: &Settings) -> Result<(), Error> {
    // The marker goes last: without it, what was kept is never put back.
    [kept(settings), rewind_mark::path(settings)].iter().try_for_each(|path| durable::remove(path).map_err(Error::file("remove", path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pg_rewind_says_is_understood() {
        let mut said = Said::default();
        for line in [
            "pg_rewind: connected to server",
            "pg_rewind: servers diverged at WAL location 0/3000148 on timeline 1",
            "pg_rewind: rewinding from last common checkpoint at 0/2000060 on timeline 1",
        ] {
            said.hear(line);
        }
        let fork = Fork { parent: TimelineId::FIRST, at: Lsn::new(0x300_0148) };
        assert_eq!((said.not_needed, said.fork, said.checkpoint), (false, Some(fork), Some(Lsn::new(0x200_0060))));
        said.hear("pg_rewind: no rewind required");
        assert!(said.not_needed);
        let copied = basebackup::Progress { done: Bytes::new(1234 * 1024), total: Bytes::new(54321 * 1024) };
        assert_eq!(progress(" 1234/54321 kB (2%) copied"), Some(copied));
        assert_eq!(progress("pg_rewind: Done!"), None);
    }
}
