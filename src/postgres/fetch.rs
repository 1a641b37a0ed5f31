//! What the managed `restore_command` does: PostgreSQL asks it for every file that it needs in recovery.
//!
//! History files come from the ledger alone, because a burnt id's real file in the archive lures a standby there
//! (EXP-29); segments of a burnt id are not there, nor those that lie where a newer timeline had
//! left; all else is fetched by the operator's command within a hard limit, because a promotion waits for it (EXP-11).

use super::{
    Error, Failure, Settings, durable, history,
    segment::{self, Layout},
    shell::{self, Words},
};
use crate::model::{
    moment::Span,
    timeline::{TimelineHistory, TimelineId},
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// One request of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The local copy of the ledger: see [`ledger_dir`].
    pub ledger: &'a Path,
    /// The operator's `restore_command`; none: only history files are there.
    pub command: Option<&'a str>,
    /// How long that command may take.
    pub limit: Span,
    /// Where PostgreSQL runs commands: the data directory.
    pub data_dir: &'a Path,
    /// `%f`
    pub file: &'a str,
    /// `%p`, relative to the data directory.
    pub path: &'a str,
    /// `%r`
    pub restart: Option<&'a str>,
}

/// What came of it. Both but the first are exit status 1 to PostgreSQL: a higher one, or a signal, would end recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The file lies at `%p`.
    There,
    /// There is no such file for this cluster.
    NotThere,
    /// It could not be fetched; PostgreSQL asks again. Why, for its log.
    Failed(String),
}

/// The managed `restore_command`: our own program, which answers from the state directory.
pub fn wrapper(settings: &Settings, program: &Path) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''").replace('%', "%%"));
    format!("{} wal-fetch --ledger {} \"%f\" \"%p\" \"%r\"", quoted(program), quoted(&ledger_dir(&settings.state_dir)))
}

fn command_file(state_dir: &Path) -> PathBuf {
    state_dir.join("restore_command")
}

/// Keeps the operator's `restore_command` where the managed one finds it.
///
/// # Errors
/// When the file cannot be written; the former one is then still there.
pub async fn keep_command(settings: &Settings, command: &str) -> Result<(), Error> {
    let (path, command) = (command_file(&settings.state_dir), command.to_owned());
    durable::within(Span::from_secs(30), path.clone(), move || {
        if fs::read_to_string(&path).is_ok_and(|there| there == command) {
            return Ok(());
        }
        durable::write(&path, command.as_bytes(), 0o600).map_err(Error::file("write", &path))
    })
    .await
}

/// The operator's `restore_command`, as kept by [`keep_command`].
pub fn kept_command(state_dir: &Path) -> Option<String> {
    fs::read_to_string(command_file(state_dir)).ok()
}

/// Where the agent keeps the ledger's history files for the managed `restore_command`.
pub fn ledger_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("ledger")
}

/// Writes the ledger's history texts, durably, for later requests; ids that left the ledger go.
///
/// # Errors
/// When the directory cannot be read or written.
pub async fn publish_ledger(settings: &Settings, ledger: &BTreeMap<TimelineId, String>) -> Result<(), Error> {
    let (state_dir, ledger) = (settings.state_dir.clone(), ledger.clone());
    durable::within(Span::from_secs(30), state_dir.clone(), move || publish(&state_dir, &ledger)).await
}

fn publish(state_dir: &Path, ledger: &BTreeMap<TimelineId, String>) -> Result<(), Error> {
    let dir = ledger_dir(state_dir);
    match fs::create_dir(&dir) {
        Ok(()) => durable::own_as(&dir, state_dir).map_err(Error::file("give to the owner", &dir))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Error::File { doing: "create", path: dir, source: error }),
    }
    let there = history::read_all(&dir)?;
    for (tli, text) in ledger.iter().filter(|(tli, text)| there.get(tli) != Some(text)) {
        history::replace(&dir, *tli, text)?;
    }
    for tli in there.keys().filter(|tli| !ledger.contains_key(tli)) {
        let path = dir.join(tli.history_file());
        durable::remove(&path).map_err(Error::file("remove", &path))?;
    }
    Ok(())
}

/// Answers one request.
pub async fn fetch(request: &Request<'_>) -> Fetched {
    if request.file.ends_with(".history") {
        return from_ledger(request);
    }
    if is_barred(request) {
        return Fetched::NotThere;
    }
    match request.command {
        Some(command) => by_command(request, command).await,
        None => Fetched::NotThere,
    }
}

fn from_ledger(request: &Request<'_>) -> Fetched {
    // Only a plain name: PostgreSQL never asks for another.
    if request.file.contains('/') {
        return Fetched::NotThere;
    }
    let to = request.data_dir.join(request.path);
    let content = fs::read(request.ledger.join(request.file));
    if content.as_ref().is_ok_and(|content| history::is_placeholder(&String::from_utf8_lossy(content))) && is_newest(request) {
        return Fetched::NotThere;
    }
    match content.map(|content| fs::write(&to, content)) {
        Ok(Ok(())) => Fetched::There,
        Ok(Err(error)) => Fetched::Failed(format!("could not write {}: {error}", to.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Fetched::NotThere,
        Err(error) => Fetched::Failed(format!("could not read {} of the ledger: {error}", request.file)),
    }
}

/// Whether no real history follows in the ledger. A placeholder that is the newest history would stop a starting server
/// (see [`history`]); a running one finds it in `pg_wal`, where PostgreSQL looks next.
fn is_newest(request: &Request<'_>) -> bool {
    let histories = history::read_all(request.ledger).unwrap_or_default();
    !histories.iter().any(|(tli, text)| *tli.history_file() > *request.file && !history::is_placeholder(text))
}

/// Whether a segment belongs to an id that is burnt, or that the ledger does not know; or lies where the newest timeline has left its own one.
///
/// What the archive has of the latter was written by a primary that had been followed already. PostgreSQL takes it where the newer timeline's segment of
/// that number is not there yet, and replays it beyond the fork: it looks at the timeline of its pages alone.
///
/// The first timeline has no history file, and before the first ledger was written nothing is barred.
fn is_barred(request: &Request<'_>) -> bool {
    let Some((name, tli)) = request.file.get(..24).and_then(|name| Some((name, segment::timeline_of(name)?))) else { return false };
    if !request.ledger.is_dir() {
        return false;
    }
    let known = || fs::read_to_string(request.ledger.join(tli.history_file())).is_ok_and(|text| !history::is_placeholder(&text));
    if tli > TimelineId::FIRST && !known() {
        return true;
    }
    let histories = history::read_all(request.ledger).unwrap_or_default();
    let newest = histories.values().rev().find(|text| !history::is_placeholder(text));
    let Some(fork) = newest.and_then(|text| TimelineHistory::left(text, tli)) else { return false };
    // The disk is read only for a timeline that was left.
    let layout = Layout::of(&request.data_dir.join("pg_wal")).ok().flatten().unwrap_or(Layout::DEFAULT);
    layout.parse_name(name).is_some_and(|(_, number)| number >= layout.segment_number(fork))
}

async fn by_command(request: &Request<'_>, command: &str) -> Fetched {
    let words = Words { file: request.file, path: request.path, restart: request.restart };
    let command = shell::expand(command, words);
    match shell::run(shell::shell(), &command, request.data_dir, request.limit).await {
        Ok(ended) if ended.status.success() && request.data_dir.join(request.path).exists() => Fetched::There,
        Ok(ended) if ended.status.success() => Fetched::Failed(format!("{command}: exit status 0, but {} is not there", request.path)),
        // By custom an absent file is any status but 0; a higher one than 125 is the shell's own complaint.
        Ok(ended) if ended.status.code().is_some_and(|code| code <= 125) => Fetched::NotThere,
        Ok(ended) => Fetched::Failed(format!("{command}: {}: {}", ended.status, ended.stderr)),
        Err(failure @ (Failure::Start { .. } | Failure::Status { .. } | Failure::Deadline { .. })) => Fetched::Failed(failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    struct Place {
        home: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let home = tempfile::tempdir().expect("directory");
            for dir in ["data", "data/pg_wal", "archive", "state"] {
                fs::create_dir(home.path().join(dir)).expect("directory");
            }
            Self { home }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.home.path().join(path)
        }

        async fn fetch(&self, command: Option<&str>, file: &str) -> Fetched {
            let (ledger, data_dir) = (ledger_dir(&self.at("state")), self.at("data"));
            let limit = Span::from_millis(300);
            let path = "pg_wal/RECOVERYXLOG";
            fetch(&Request { ledger: &ledger, command, limit, data_dir: &data_dir, file, path, restart: None }).await
        }
    }

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).expect("id")
    }

    #[tokio::test]
    async fn histories_come_from_the_ledger_and_burnt_ids_have_no_segments() {
        let place = Place::new();
        let real = "1\t0/3000148\treason\n";
        for file in [
            "00000002.history",
            "00000004.history",
            "000000020000000000000003",
            "000000030000000000000003",
            "000000010000000000000003",
            "000000010000000000000002",
            "000000010000000000000004",
        ] {
            fs::write(place.at("archive").join(file), format!("archived {file}")).expect("write");
        }
        let command = format!("cp {}/%f %p", place.at("archive").display());
        let get = async |file: &str| place.fetch(Some(&command), file).await;
        assert_eq!(get("000000020000000000000003").await, Fetched::There, "before the first ledger");
        let ledger = BTreeMap::from([(tli(2), "# burnt\n".to_owned()), (tli(3), real.to_owned())]);
        publish(&place.at("state"), &ledger).expect("publish");
        let read = || fs::read_to_string(place.at("data/pg_wal/RECOVERYXLOG")).expect("read");
        assert_eq!(get("00000002.history").await, Fetched::There);
        assert_eq!(read(), "# burnt\n", "not the archived one");
        assert_eq!(get("00000003.history").await, Fetched::There);
        assert_eq!(read(), real);
        assert_eq!(get("00000004.history").await, Fetched::NotThere, "though the archive has one");
        assert_eq!(get("000000020000000000000003").await, Fetched::NotThere, "burnt");
        assert_eq!(get("000000050000000000000003").await, Fetched::NotThere, "unknown");
        assert_eq!(get("000000030000000000000003").await, Fetched::There);
        assert_eq!(get("000000010000000000000003").await, Fetched::NotThere, "timeline 3 left it in there");
        assert_eq!(get("000000010000000000000004").await, Fetched::NotThere, "and this is behind it");
        assert_eq!(get("000000010000000000000002").await, Fetched::There);
        assert_eq!(read(), "archived 000000010000000000000002");
        publish(&place.at("state"), &BTreeMap::from([(tli(2), "# burnt\n".to_owned())])).expect("publish");
        assert_eq!(get("00000003.history").await, Fetched::NotThere);
        assert_eq!(get("00000002.history").await, Fetched::NotThere, "no real history follows");
    }

    #[tokio::test]
    async fn what_is_not_there_is_plain_and_a_slow_command_is_killed() {
        let place = Place::new();
        assert_eq!(place.fetch(None, "000000010000000000000003").await, Fetched::NotThere);
        assert_eq!(place.fetch(Some("exit 1"), "000000010000000000000003").await, Fetched::NotThere);
        assert!(matches!(place.fetch(Some("true"), "000000010000000000000003").await, Fetched::Failed(_)));
        assert!(matches!(place.fetch(Some("no-such-program"), "000000010000000000000003").await, Fetched::Failed(_)));
        let begin = clock::boot();
        let command = format!("(sleep 1; echo late > {}) & sleep 20", place.at("late").display());
        assert!(matches!(place.fetch(Some(&command), "000000010000000000000003").await, Fetched::Failed(_)));
        assert!(clock::boot().since(begin) < Span::from_secs(2));
        tokio::time::sleep(Span::from_millis(1100).to_std()).await;
        assert!(!place.at("late").exists(), "the command's children are killed, too");
    }
}
