//! The end of WAL on this disk, to the record, by `pg_waldump`.
//!
//! What a server says of itself is no boundary (receive and flush positions lie inside records), or is forgotten by a
//! restart (EXP-25, EXP-28), and ends rounded to pages tie where rows differ (EXP-31). So the log itself is read, from a
//! boundary that is known to be there. `pg_waldump` is PostgreSQL's own reader of WAL: what it takes for a record,
//! recovery takes for one. Of its messages only a few phrases are relied on, the same in 14 to 18; where the log ends is
//! computed from the last record that it could read, whatever it says is wrong behind it. What it says of anything but the
//! log's content (a file that it cannot open, memory that is short), or its death by a signal, is no end of the log.

use super::{
    Ended, Error, Settings, durable, process,
    segment::{Header, Layout, Record},
};
use crate::{
    clock,
    model::{
        instance::Whole,
        lsn::Lsn,
        moment::{Moment, Span},
        timeline::{TimelineHistory, TimelineId},
    },
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// How many pages before a position are searched first for the record that ends there.
const NEAR_PAGES: u64 = 8;

/// Why there is no end of WAL to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadScan {
    /// No record begins there.
    #[error("{from} on timeline {tli} is no record boundary here: the nearest record begins at {near}")]
    NotABoundary {
        /// Where the scan was to begin.
        from: Lsn,
        /// On which timeline.
        tli: TimelineId,
        /// Where a record begins before or behind it.
        near: Lsn,
    },
    /// The log ends before the position that was known to be there: WAL was lost, or the position is another history's.
    #[error("the WAL of timeline {tli} ends at {whole}, before {from} that was known to be there")]
    Short {
        /// Where the scan was to begin.
        from: Lsn,
        /// On which timeline.
        tli: TimelineId,
        /// Where the last whole record ends.
        whole: Lsn,
    },
    /// Nothing of this position is in `pg_wal`: removed, never received, or restored from the archive.
    #[error("pg_wal holds no WAL of timeline {tli} at {from}")]
    NoSegment {
        /// Where the scan was to begin.
        from: Lsn,
        /// On which timeline.
        tli: TimelineId,
    },
}

/// Finds the end of the last complete record in our `pg_wal`, from a boundary on `tli` that is known to be there.
///
/// `from` may lie before the point where `tli` left its parent; the scan then begins at that point. Where the log of `tli` ends at the point
/// at which another timeline left it, and records of that one are here, it goes on there: a standby has received them, and recovery would
/// replay them, while `pg_control` and the server still name the former one. The result is never before `from`, and is written as
/// [`Layout::boundary`] does. Works beside a running server, too. All programs together get `limit`.
///
/// # Errors
/// [`BadScan`] when the log does not hold `from`; else a program or the disk failed. Nothing is changed in any case.
pub async fn whole(settings: &Settings, from: Lsn, tli: TimelineId, limit: Span) -> Result<Whole, Error> {
    whole_in(settings, &settings.data_dir.join("pg_wal"), from, tli, limit).await
}

/// As [`whole`], of the `pg_wal` of any directory, also a dead one's.
///
/// # Errors
/// As [`whole`].
pub async fn whole_in(settings: &Settings, pg_wal: &Path, from: Lsn, tli: TimelineId, limit: Span) -> Result<Whole, Error> {
    let until = clock::boot().plus(limit);
    let wal = Wal::open(settings, pg_wal, tli, from, until).await?;
    let from = wal.layout.boundary(wal.history.last().map_or(from, |fork| fork.at.max(from)));
    let mut whole = Whole { tli, lsn: wal.end(from).await? };
    while let Some(further) = continued(&wal, whole).await? {
        whole = further;
    }
    Ok(whole)
}

/// Where the log goes on upon a timeline that left the one that ends there, or left one that did so at the same point, before any record of its own.
async fn continued(wal: &Wal<'_>, whole: Whole) -> Result<Option<Whole>, Error> {
    let path = wal.dir.clone();
    let histories = durable::within(wal.left(), wal.dir.clone(), move || super::history::read_all(&path)).await?;
    let left_there = |tli: &TimelineId| {
        let Ok(history) = super::history::of(&histories, *tli) else { return false };
        // Of one between the two that is not empty the log would have to go on first.
        let ends = [history.leaves(whole.tli), history.last().map(|fork| fork.at)];
        ends.into_iter().all(|at| at.is_some_and(|at| wal.layout.boundary(at) == whole.lsn))
    };
    for tli in histories.keys().rev().copied().filter(|tli| *tli > whole.tli).filter(left_there) {
        let child = Wal::open(wal.settings, &wal.dir, tli, whole.lsn, wal.until).await?;
        if !child.segments.contains_key(&child.layout.segment_number(whole.lsn)) {
            continue;
        }
        match child.end(whole.lsn).await {
            Ok(lsn) if lsn > whole.lsn => return Ok(Some(Whole { tli, lsn })),
            // Nothing of it is here, or a file that was prepared for it.
            Ok(_) | Err(Error::Scan(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Counts the commits (prepared ones, too) of `tli` between two record boundaries.
///
/// # Errors
/// When the log cannot be read there.
pub(super) async fn commits(settings: &Settings, from: Lsn, to: Whole, limit: Span) -> Result<u64, Error> {
    let until = clock::boot().plus(limit);
    let wal = Wal::open(settings, &settings.data_dir.join("pg_wal"), to.tli, from, until).await?;
    let (from, to) = (wal.layout.boundary(from), to.lsn);
    if from >= to {
        return Ok(0);
    }
    // `to` is written behind the header of a page that may not exist: the record before it ends with the page before.
    let last = wal.layout.segment_number(wal.layout.byte_before(to));
    let first = wal.layout.segment_number(from);
    let end = to.min(wal.layout.segment_start(last.saturating_add(1)));
    let program = wal.program().args(["--rmgr=Transaction", "--stats=record", "-s", &from.to_string(), "-e", &end.to_string()]);
    let program = program.args([wal.layout.segment_name(wal.tli, first), wal.layout.segment_name(wal.tli, last)]);
    let ended = program.run(wal.left()).await?;
    Ok(ended.text().lines().filter_map(commits_of_row).sum())
}

/// The count in a row of the statistics: `Transaction/COMMIT       3 ( 75.00)   …`.
fn commits_of_row(row: &str) -> Option<u64> {
    let mut words = row.split_whitespace();
    let kind = words.next()?;
    let counted = matches!(kind, "Transaction/COMMIT" | "Transaction/COMMIT_PREPARED");
    words.next().filter(|_| counted)?.parse().ok()
}

/// The WAL of one timeline in one directory.
struct Wal<'a> {
    settings: &'a Settings,
    dir: PathBuf,
    layout: Layout,
    tli: TimelineId,
    history: TimelineHistory,
    segments: BTreeMap<u64, PathBuf>,
    until: Moment,
}

/// What reading on from a boundary showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forward {
    /// The last good record begins here.
    Last(Lsn),
    /// No record begins here.
    Nothing,
    /// The first record behind it begins here.
    Skipped(Lsn),
    /// All segments were read, or one could not be read to its end: which record was the last has not been said.
    Unsaid,
}

impl<'a> Wal<'a> {
    async fn open(settings: &'a Settings, dir: &Path, tli: TimelineId, from: Lsn, until: Moment) -> Result<Self, Error> {
        let (path, looked) = (dir.to_owned(), dir.to_owned());
        let look = move || {
            let read = |source| Error::File { doing: "read", path: path.clone(), source };
            let Some(layout) = Layout::of(&path).map_err(read)? else { return Ok(None) };
            let segments = layout.segments(&path, tli).map_err(read)?;
            Ok(Some((layout, segments, super::history::read_all(&path)?)))
        };
        let found = durable::within(until.since(clock::boot()), looked, look).await?;
        let (layout, segments, histories) = found.ok_or(BadScan::NoSegment { from, tli })?;
        // A timeline without a readable history begins where its segments do.
        let history = super::history::of(&histories, tli).unwrap_or_default();
        Ok(Self { settings, dir: dir.to_owned(), layout, tli, history, segments, until })
    }

    fn left(&self) -> Span {
        self.until.since(clock::boot())
    }

    fn program(&self) -> super::Program {
        self.settings.program("pg_waldump").arg("-p").arg(&self.dir)
    }

    async fn end(&self, from: Lsn) -> Result<Lsn, Error> {
        let (first, last) = self.run_of_segments(from);
        if !self.begins_as_named(self.tli, first).await? {
            return self.end_before(from).await;
        }
        match self.forward(from, first, last).await? {
            Forward::Last(start) => self.record_at(start, last).await.map(|record| self.layout.end_of(record)),
            Forward::Skipped(near) => Err(BadScan::NotABoundary { from, tli: self.tli, near }.into()),
            Forward::Nothing => self.end_before(from).await,
            Forward::Unsaid => match self.list(self.tli, (first, last), from, None).await? {
                Some(record) => Ok(self.layout.end_of(record)),
                None => self.end_before(from).await,
            },
        }
    }

    /// The segment of `from` and the last one after it without a gap.
    fn run_of_segments(&self, from: Lsn) -> (u64, u64) {
        let first = self.layout.segment_number(from);
        (first, self.run_ends(first))
    }

    /// The last segment after this one without a gap.
    fn run_ends(&self, mut number: u64) -> u64 {
        while self.segments.contains_key(&number.saturating_add(1)) {
            number += 1;
        }
        number
    }

    /// Whether a segment is there and is what its name says: not the zeros of a new file, nor a recycled one's old content.
    ///
    /// `pg_waldump` takes the layout from this header and says nothing sensible where there is none.
    async fn begins_as_named(&self, tli: TimelineId, number: u64) -> Result<bool, Error> {
        let path = self.dir.join(self.layout.segment_name(tli, number));
        let read = move || Header::read(&path).map_err(Error::file("read", &path));
        let header = durable::within(self.left(), self.dir.clone(), read).await?;
        Ok(header.is_some_and(|header| header.layout == self.layout && header.start == self.layout.segment_start(number)))
    }

    /// Reads on from `from` without printing what is read.
    async fn forward(&self, from: Lsn, first: u64, last: u64) -> Result<Forward, Error> {
        let program = self.program().args(["-q", "-s", &from.to_string()]).args(self.range(self.tli, first, last));
        let ended = program.run_to_end(self.left(), |_, _| ()).await?;
        ended_with_the_log(&ended)?;
        // Printed up to 16, logged to stderr since 17.
        let said = format!("{}\n{}", ended.text(), ended.stderr);
        if let Some(near) = said.split_once("first record is after ").and_then(|(_, rest)| after(rest, ", at ")) {
            return Ok(Forward::Skipped(near));
        }
        if ended.status.success() {
            return Ok(Forward::Unsaid);
        }
        Ok(verdict(&ended.stderr, from))
    }

    /// The arguments for the end and the files: their names say the timeline and give the layout, which `pg_waldump`
    /// would else take from whichever file it finds first, also from an empty one.
    fn range(&self, tli: TimelineId, first: u64, last: u64) -> [String; 4] {
        let end = self.layout.segment_start(last.saturating_add(1));
        ["-e".to_owned(), end.to_string(), self.layout.segment_name(tli, first), self.layout.segment_name(tli, last)]
    }

    async fn record_at(&self, start: Lsn, last: u64) -> Result<Record, Error> {
        let first = self.layout.segment_number(start);
        let program = self.program().args(["-n", "1", "-s", &start.to_string()]).args(self.range(self.tli, first, last));
        let ended = program.run(self.left()).await?;
        let found = ended.text().lines().find_map(Record::parse).filter(|record| record.start == start);
        found.ok_or_else(|| Error::malformed(format!("the record at {start} that pg_waldump lists"), &ended.text()))
    }

    /// The last record between two segments that begins at `from` or later, and before `before`.
    async fn list(&self, tli: TimelineId, (first, last): (u64, u64), from: Lsn, before: Option<Lsn>) -> Result<Option<Record>, Error> {
        let mut newest = None;
        let program = self.program().args(["-s", &from.to_string()]).args(self.range(tli, first, last));
        let see = |_, line: &str| {
            if let Some(record) = Record::parse(line).filter(|record| before.is_none_or(|before| record.start < before)) {
                newest = Some(record);
            }
        };
        // It ends with an error at the end of the log: what it listed before that counts.
        let ended = program.run_to_end(self.left(), see).await?;
        ended_with_the_log(&ended)?;
        Ok(newest)
    }

    /// No record begins at `from`: it is the end if the record before it ends there.
    async fn end_before(&self, from: Lsn) -> Result<Lsn, Error> {
        let tli = self.tli;
        let mut first = self.layout.segment_number(self.layout.byte_before(from));
        let Some(on) = self.holder(first).await? else { return Err(BadScan::NoSegment { from, tli }.into()) };
        // The record that spans `from`, if there is one, may end in a later segment.
        let last = if on == tli { self.run_ends(first) } else { first };
        // Most records are short: a few pages usually hold the one before, and a whole segment takes long to list.
        let near = Lsn::new(from.get().saturating_sub(NEAR_PAGES * self.layout.page.get())).max(self.layout.segment_start(first));
        let near = Lsn::new(near.get() - near.get() % self.layout.page.get());
        if let Some(record) = self.list(on, (first, last), near, Some(from)).await?
            && self.layout.end_of(record) == from
        {
            return Ok(from);
        }
        loop {
            let start = self.layout.segment_start(first);
            if let Some(record) = self.list(on, (first, last), start, Some(from)).await? {
                let end = self.layout.end_of(record);
                return match end.cmp(&from) {
                    std::cmp::Ordering::Equal => Ok(from),
                    std::cmp::Ordering::Greater => Err(BadScan::NotABoundary { from, tli, near: record.start }.into()),
                    std::cmp::Ordering::Less => Err(BadScan::Short { from, tli, whole: end }.into()),
                };
            }
            // A record longer than a segment covers all of it: look further back.
            if first == 0 || self.holder(first - 1).await? != Some(on) {
                return Err(BadScan::NoSegment { from, tli }.into());
            }
            first -= 1;
        }
    }

    /// The timeline under which a segment lies here: ours, or the newest ancestor's that has it.
    async fn holder(&self, number: u64) -> Result<Option<TimelineId>, Error> {
        let ancestors = self.history.forks().iter().rev().map(|fork| fork.parent);
        for tli in std::iter::once(self.tli).chain(ancestors) {
            if self.begins_as_named(tli, number).await? {
                return Ok(Some(tli));
            }
        }
        Ok(None)
    }
}

/// Whether `pg_waldump` ended because all was read, or because of what the log holds. Whatever else ended it (a signal, a file that
/// could not be opened or read, or is gone since it was listed) says nothing of where the log ends, nor does what was printed before.
fn ended_with_the_log(ended: &Ended) -> Result<(), Error> {
    let by_itself = ended.status.code().is_some();
    if ended.status.success() || by_itself && ended.stderr.lines().any(is_of_the_log) {
        return Ok(());
    }
    Err(Error::Unreadable { said: format!("pg_waldump: {}: {}", process::how(ended.status), ended.stderr) })
}

/// Whether a message is about the content of the log.
fn is_of_the_log(line: &str) -> bool {
    // `…: read 0 of 8192` of a file that is too short; `…: Input/output error` of one that the kernel could not read.
    let short = line.rsplit(": ").next().is_some_and(|why| why.starts_with("read ") && why.contains(" of "));
    let cut = short && (line.contains("could not read from file ") || line.contains("could not read file "));
    // An allocation that failed is reported as a fault of the record.
    let bad = line.contains("error in WAL record at ") && !line.contains("out of memory");
    cut || bad || line.contains("could not find a valid record after ")
}

/// What `pg_waldump` said as it failed.
fn verdict(stderr: &str, from: Lsn) -> Forward {
    if let Some(start) = after(stderr, "error in WAL record at ") {
        // Named is the last record that was read well; without one, nothing was.
        return if start >= from { Forward::Last(start) } else { Forward::Nothing };
    }
    if stderr.contains("could not find a valid record after ") { Forward::Nothing } else { Forward::Unsaid }
}

/// The position that stands behind a phrase.
fn after(text: &str, phrase: &str) -> Option<Lsn> {
    let (_, rest) = text.split_once(phrase)?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && c != '/').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    #[test]
    fn the_last_good_record_is_named_whatever_follows_it() {
        let last = Forward::Last(Lsn::new(0x241_8BB8));
        for what in [
            "invalid record length at 0/2418BE0: wanted 24, got 0",
            "invalid record length at 0/2418BE0: expected at least 24, got 0",
            "invalid magic number 0000 in log segment 000000010000000000000002, offset 4300800",
            "invalid magic number 0000 in WAL segment 000000010000000000000002, LSN 0/241A000, offset 4300800",
            "unexpected pageaddr 0/141A000 in log segment 000000010000000000000002, offset 4300800",
            "incorrect resource manager data checksum in record at 0/2418BE0",
            "there is no contrecord flag at 0/241A000",
            "record with incorrect prev-link 0/1 at 0/2418BE0",
        ] {
            for level in ["error", "fatal"] {
                let said = format!("pg_waldump: {level}: error in WAL record at 0/2418BB8: {what}\n");
                assert_eq!(verdict(&said, Lsn::new(0x177_6958)), last, "{said}");
            }
        }
    }

    #[test]
    fn other_failures_name_no_record() {
        let from = Lsn::new(0x241_8BE0);
        assert_eq!(verdict("pg_waldump: error: could not find a valid record after 0/2418BE0", from), Forward::Nothing);
        assert_eq!(verdict("pg_waldump: error: could not read from file 0001, offset 0: read 0 of 8192", from), Forward::Unsaid);
        assert_eq!(verdict("pg_waldump: error: error in WAL record at 0/0: invalid record length at 0/2418BE0", from), Forward::Nothing);
    }

    fn failed(status: i32, line: &str) -> Ended {
        Ended { status: ExitStatus::from_raw(status), stdout: Vec::new(), stderr: format!("pg_waldump: error: {line}") }
    }

    #[test]
    fn only_what_the_log_holds_is_its_end() {
        let bad = "error in WAL record at 0/2418BB8: invalid record length at 0/2418BE0: wanted 24, got 0";
        for line in [
            bad,
            "could not find a valid record after 0/2418BE0",
            "could not read from file 000000010000000000000002, offset 8192: read 0 of 8192",
            "could not read file \"000000010000000000000002\": read 4096 of 8192",
        ] {
            assert!(ended_with_the_log(&failed(1 << 8, line)).is_ok(), "{line}");
        }
        for line in [
            "could not read from file 000000010000000000000002, offset 8192: Input/output error",
            "could not read file \"000000010000000000000002\": Input/output error",
            "could not open file \"/data/pg_wal/000000010000000000000002\": Input/output error",
            "could not open file \"/data/pg_wal/000000010000000000000002\": Too many open files in system",
            "could not open file \"000000010000000000000002\"",
            "could not find file \"000000010000000000000002\": No such file or directory",
            "error in WAL record at 0/2418BB8: out of memory while trying to decode a record of length 1000",
            "out of memory",
            "",
        ] {
            assert!(matches!(ended_with_the_log(&failed(1 << 8, line)), Err(Error::Unreadable { .. })), "{line}");
        }
        // Killed while it was ending, or for its memory while it printed.
        let killed = ended_with_the_log(&failed(9, bad)).expect_err("signal 9").to_string();
        assert!(killed.contains("pg_waldump: signal 9: "), "{killed}");
        assert!(ended_with_the_log(&failed(0, "")).is_ok());
    }

    #[test]
    fn commits_are_counted_from_the_statistics() {
        let rows = "Transaction/COMMIT                      3 ( 75.00)    102 ( 75.00)\nTransaction/ABORT     1 (1.0)\nTotal    4\n";
        assert_eq!(rows.lines().filter_map(commits_of_row).sum::<u64>(), 3);
    }
}
