//! History files in `pg_wal`: read, written from the ledger, and who descends from whom by them.
//!
//! Before a node follows or promotes it holds every history file of the ledger (protocol 1.7 step 4a): a gap strands
//! replicas, and a comment-only file makes PostgreSQL skip a burnt id (EXP-4).
//!
//! **But not at a start in recovery.** A startup process that finds a comment-only file as the newest history takes that
//! id for its target at once: it then streams, refuses every segment ("unexpected timeline ID 1 in log segment …"), is
//! never consistent and lets nobody in. Only a running one notices that it is no child (measured on 15). So
//! [`When::BeforeStart`] takes away the placeholders that no real history follows, and [`When::Running`] puts them back once
//! the server is up, before anything is promoted.

use super::{Error, Settings, durable};
use crate::model::{
    moment::Span,
    timeline::{TimelineHistory, TimelineId},
};
use std::{collections::BTreeMap, fs, io, path::Path};

/// How long the disk may take for a handful of small files.
const LIMIT: Span = Span::from_secs(30);

/// A history file that says something else than the ledger. It is left as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Of which timeline.
    pub tli: TimelineId,
    /// What the file on disk says.
    pub on_disk: String,
    /// What the ledger says; comment-only for a burnt id.
    pub ledger: String,
}

impl Conflict {
    /// Whether one of the two is only the mark of a burnt id, and the ledger's may stand instead: somebody promoted to an id that was burnt,
    /// and PostgreSQL would be lured there (EXP-29); or an id is known again that an etcd which went back did not have.
    pub fn names_one_history(&self) -> bool {
        is_placeholder(&self.ledger) || is_placeholder(&self.on_disk)
    }
}

/// What writing the ledger's histories did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The files that were missing.
    pub added: Vec<TimelineId>,
    /// The files that disagree.
    pub conflicts: Vec<Conflict>,
}

/// Whether a history text names no fork: the mark of a burnt id.
pub fn is_placeholder(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.trim().starts_with('#'))
}

/// All history files in `pg_wal`, by id, comment-only ones included.
///
/// # Errors
/// When the directory or one of the files cannot be read, or a file is no text.
pub fn read_all(pg_wal: &Path) -> Result<BTreeMap<TimelineId, String>, Error> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(pg_wal).map_err(Error::file("read", pg_wal))? {
        let path = entry.map_err(Error::file("read", pg_wal))?.path();
        if let Some(tli) = path.file_name().and_then(|name| name.to_str()).and_then(timeline_of) {
            match fs::read_to_string(&path) {
                Ok(text) => drop(found.insert(tli, text)),
                // A file that PostgreSQL removed between the two calls.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::File { doing: "read", path, source }),
            }
        }
    }
    Ok(found)
}

/// All of them in our `pg_wal`.
///
/// # Errors
/// When one cannot be read, or the disk does not answer.
pub async fn there(settings: &Settings) -> Result<BTreeMap<TimelineId, String>, Error> {
    let pg_wal = settings.data_dir.join("pg_wal");
    durable::within(LIMIT, pg_wal.clone(), move || read_all(&pg_wal)).await
}

fn timeline_of(name: &str) -> Option<TimelineId> {
    let digits = name.strip_suffix(".history").filter(|digits| digits.len() == 8)?;
    let tli = u32::from_str_radix(digits, 16).ok().and_then(TimelineId::new)?;
    (tli.history_file() == name).then_some(tli)
}

/// When histories are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// PostgreSQL is stopped and is to be started in recovery next.
    BeforeStart,
    /// PostgreSQL runs, or is not to be started from here (a rewind follows).
    Running,
}

/// Writes the histories of the ledger that are missing in our `pg_wal`, durably, as its owner; before a start without the
/// placeholders that no real history follows.
///
/// A file that is there is never written again; one that says something else is reported.
///
/// # Errors
/// When `pg_wal` cannot be read or written. Files written before the failure stay, whole.
pub async fn write(settings: &Settings, ledger: &BTreeMap<TimelineId, String>, when: When) -> Result<Written, Error> {
    let (pg_wal, ledger) = (settings.data_dir.join("pg_wal"), ledger.clone());
    durable::within(LIMIT, pg_wal.clone(), move || match when {
        When::BeforeStart => prepare_start(&pg_wal, &ledger),
        When::Running => write_missing(&pg_wal, &ledger),
    })
    .await
}

/// Writes one history file over one that says something else: a real file of a burnt id, after its [`Conflict`] was
/// handled. PostgreSQL has to be restarted after it.
///
/// # Errors
/// When the file cannot be written; the former one is then still there.
pub async fn overwrite(settings: &Settings, tli: TimelineId, text: &str) -> Result<(), Error> {
    let (pg_wal, text) = (settings.data_dir.join("pg_wal"), text.to_owned());
    durable::within(LIMIT, pg_wal.clone(), move || replace(&pg_wal, tli, &text)).await
}

fn prepare_start(pg_wal: &Path, ledger: &BTreeMap<TimelineId, String>) -> Result<Written, Error> {
    let there = read_all(pg_wal)?;
    let real = |histories: &BTreeMap<TimelineId, String>| {
        histories.iter().rev().find(|(_, text)| !is_placeholder(text)).map_or(TimelineId::FIRST, |(tli, _)| *tli)
    };
    let newest = real(&there).max(real(ledger));
    for tli in there.keys().filter(|tli| **tli > newest) {
        let path = pg_wal.join(tli.history_file());
        durable::remove(&path).map_err(Error::file("remove", &path))?;
    }
    write_missing(pg_wal, &ledger.range(..=newest).map(|(tli, text)| (*tli, text.clone())).collect())
}

fn write_missing(pg_wal: &Path, ledger: &BTreeMap<TimelineId, String>) -> Result<Written, Error> {
    let there = read_all(pg_wal)?;
    let mut written = Written::default();
    for (tli, text) in ledger {
        match there.get(tli) {
            Some(on_disk) if says_the_same(on_disk, text) => {}
            Some(on_disk) => {
                written.conflicts.push(Conflict { tli: *tli, on_disk: on_disk.clone(), ledger: text.clone() });
            }
            None => {
                replace(pg_wal, *tli, text)?;
                written.added.push(*tli);
            }
        }
    }
    Ok(written)
}

/// Two texts that lead PostgreSQL the same way: only forks count, and reasons are for people.
fn says_the_same(on_disk: &str, ledger: &str) -> bool {
    on_disk == ledger
        || match (on_disk.parse::<TimelineHistory>(), ledger.parse::<TimelineHistory>()) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        }
}

/// Writes one history file, durably, as the owner of its directory.
pub(super) fn replace(pg_wal: &Path, tli: TimelineId, text: &str) -> Result<(), Error> {
    let path = pg_wal.join(tli.history_file());
    durable::write(&path, text.as_bytes(), 0o600).map_err(Error::file("write", path))
}

/// The forks that lead to `tli`, by the history file in `pg_wal`.
///
/// # Errors
/// When the file of a timeline above 1 is missing, comment-only, or no history.
pub fn of(histories: &BTreeMap<TimelineId, String>, tli: TimelineId) -> Result<TimelineHistory, NoAncestry> {
    let Some(text) = histories.get(&tli) else {
        return if tli == TimelineId::FIRST { Ok(TimelineHistory::default()) } else { Err(NoAncestry::Missing { tli }) };
    };
    let history: TimelineHistory = text.parse().map_err(|source| NoAncestry::Unreadable { tli, source })?;
    if history.forks().is_empty() && tli != TimelineId::FIRST {
        return Err(NoAncestry::Placeholder { tli });
    }
    Ok(history)
}

/// Why it is not known where a timeline came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAncestry {
    /// No such file.
    #[error("there is no history file of timeline {tli} ({}) in pg_wal", .tli.history_file())]
    Missing {
        /// Of which timeline.
        tli: TimelineId,
    },
    /// A burnt id's file.
    #[error("the history file of timeline {tli} in pg_wal is only a placeholder, yet the data directory is on that timeline")]
    Placeholder {
        /// Of which timeline.
        tli: TimelineId,
    },
    /// Not a history.
    #[error("read the history file of timeline {tli} in pg_wal")]
    Unreadable {
        /// Of which timeline.
        tli: TimelineId,
        /// Why.
        source: crate::model::timeline::NotAHistory,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{lsn::Lsn, timeline::Fork};

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).expect("id")
    }

    const TWO: &str = "1\t0/3000148\tno recovery target specified\n";

    #[test]
    fn missing_histories_are_written_and_present_ones_left_alone() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("00000002.history"), TWO).expect("write");
        fs::write(dir.path().join("000000010000000000000001"), "segment").expect("write");
        let ledger = BTreeMap::from([
            (tli(2), "1\t0/3000148\tanother reason\n".to_owned()),
            (tli(3), "# burnt\n".to_owned()),
            (tli(4), format!("{TWO}2\t0/5000000\tno recovery target specified\n")),
        ]);
        let written = write_missing(dir.path(), &ledger).expect("write");
        assert_eq!(written, Written { added: vec![tli(3), tli(4)], conflicts: vec![] });
        let there = read_all(dir.path()).expect("read");
        assert_eq!(there.get(&tli(2)).map(String::as_str), Some(TWO));
        assert_eq!(there.get(&tli(3)).map(String::as_str), Some("# burnt\n"));
        assert_eq!(of(&there, tli(4)).map(|history| history.forks().len()), Ok(2));
        assert_eq!(write_missing(dir.path(), &ledger).expect("again"), Written::default());
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 4, "nothing else is left there");
    }

    #[test]
    fn a_real_history_of_a_burnt_id_is_reported_and_not_overwritten() {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("00000002.history"), TWO).expect("write");
        let ledger = BTreeMap::from([(tli(2), "# burnt\n".to_owned())]);
        let written = write_missing(dir.path(), &ledger).expect("write");
        let conflict = Conflict { tli: tli(2), on_disk: TWO.to_owned(), ledger: "# burnt\n".to_owned() };
        assert!(conflict.names_one_history());
        let back = Conflict { on_disk: conflict.ledger.clone(), ledger: conflict.on_disk.clone(), ..conflict.clone() };
        assert!(back.names_one_history());
        assert!(!Conflict { on_disk: "1\t0/4000000\tx\n".to_owned(), ..back }.names_one_history());
        assert_eq!(written, Written { added: vec![], conflicts: vec![conflict] });
        assert_eq!(fs::read_to_string(dir.path().join("00000002.history")).expect("read"), TWO);
        replace(dir.path(), tli(2), "# burnt\n").expect("replace");
        assert_eq!(write_missing(dir.path(), &ledger).expect("again"), Written::default());
    }

    #[test]
    fn a_start_finds_no_placeholder_above_the_newest_real_history() {
        let dir = tempfile::tempdir().expect("directory");
        let burnt = |number| (tli(number), "# burnt\n".to_owned());
        let three = (tli(3), TWO.to_owned());
        let ledger = BTreeMap::from([burnt(2), three, burnt(4), burnt(5)]);
        write_missing(dir.path(), &ledger).expect("write");
        prepare_start(dir.path(), &ledger).expect("prepare");
        assert_eq!(read_all(dir.path()).expect("read").into_keys().collect::<Vec<_>>(), [tli(2), tli(3)]);
        assert_eq!(write_missing(dir.path(), &ledger).expect("write").added, [tli(4), tli(5)]);
        // A real history that only the disk knows counts, too.
        replace(dir.path(), tli(6), TWO).expect("write");
        prepare_start(dir.path(), &ledger).expect("prepare");
        assert_eq!(read_all(dir.path()).expect("read").len(), 5);
        let empty = tempfile::tempdir().expect("directory");
        prepare_start(empty.path(), &BTreeMap::from([burnt(2)])).expect("prepare");
        assert_eq!(read_all(empty.path()).expect("read").len(), 0);
    }

    #[test]
    fn ancestry_needs_a_real_history_file() {
        let fork = Fork { parent: tli(1), at: Lsn::new(0x300_0148) };
        let there = BTreeMap::from([(tli(2), TWO.to_owned()), (tli(3), "# burnt\n".to_owned()), (tli(5), "what".to_owned())]);
        assert_eq!(of(&there, tli(1)), Ok(TimelineHistory::default()));
        assert_eq!(of(&there, tli(2)), Ok(TimelineHistory::new(vec![fork])));
        assert_eq!(of(&there, tli(3)), Err(NoAncestry::Placeholder { tli: tli(3) }));
        assert_eq!(of(&there, tli(4)), Err(NoAncestry::Missing { tli: tli(4) }));
        assert!(matches!(of(&there, tli(5)), Err(NoAncestry::Unreadable { .. })));
    }
}
