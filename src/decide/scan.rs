//! From where our WAL is scanned for its end, and on which timeline.

use super::{
    decision::{Action, Task},
    draft::Draft,
    failure::Failure,
    ledger,
    snapshot::Snapshot,
};
use crate::model::{
    instance::{DataDir, DiskFacts, ServerRole, Whole},
    lsn::Lsn,
    timeline::{TimelineHistory, TimelineId},
};
use std::collections::BTreeMap;

/// The end of our WAL, by a scan that still holds. Starts one where there is none.
///
/// `None` while it is not known; the draft then says so.
pub(super) fn whole(s: &Snapshot, d: &mut Draft) -> Option<Whole> {
    if let Some(whole) = s.whole_now() {
        return Some(whole);
    }
    start(s, d);
    None
}

/// Starts a scan of our WAL from the newest boundary that is known to be on this disk.
pub(super) fn start(s: &Snapshot, d: &mut Draft) {
    d.hurry = true;
    if s.is_starting() {
        d.waits("starting", "PostgreSQL is being started: its WAL is searched once it runs");
        return;
    }
    match begin(s) {
        Begin::At(from, tli) => {
            d.waits("scan", format!("the end of our WAL is searched from {from} on timeline {tli}"));
            d.act(s, Action::Scan { from, tli });
        }
        Begin::Unknown => {
            d.waits("inspect", "the data directory has to be inspected before its WAL can be scanned");
            d.act(s, Action::InspectDisk);
        }
        Begin::Nowhere => d.refused("no-wal", "there is no data directory here whose WAL could be scanned"),
    }
}

/// Where a scan begins.
enum Begin {
    At(Lsn, TimelineId),
    /// The directory has to be inspected first.
    Unknown,
    /// It was inspected, and holds no WAL.
    Nowhere,
}

fn begin(s: &Snapshot) -> Begin {
    if let Some(ServerRole::Standby { tli, replay, .. }) = s.role() {
        // An agent that has not looked does not know whether what it noted is here.
        let unseen = noted(s).any(|noted| noted > *tli && !s.histories.contains_key(&noted));
        if unseen && s.disk().is_none() {
            return Begin::Unknown;
        }
        if tries(s) >= NOTED_TRIES {
            return Begin::At(*replay, *tli);
        }
        let tli = noted_timeline(s, *tli, &s.histories);
        return Begin::At(known_boundary(s, tli, *replay), tli);
    }
    let disk = match s.disk() {
        Some(DataDir::Present(disk)) if s.is_empty() => disk,
        Some(DataDir::Missing | DataDir::Empty | DataDir::Unusable { .. }) => return Begin::Nowhere,
        Some(DataDir::Present(_)) | None => return Begin::Unknown,
    };
    let noted = disk_timeline(s, disk);
    let redo = disk.control.redo;
    // A scan that failed from a newer boundary begins at the checkpoint's redo: it is there by pg_control's word. So is its timeline: of a
    // newer one that was noted a directory that was set back may have the history file alone.
    match tries(s) {
        0 => Begin::At(known_boundary(s, noted, redo), noted),
        tried if tried < NOTED_TRIES => Begin::At(redo, noted),
        _ => Begin::At(redo, disk.control.tli()),
    }
}

/// How often a scan has read the log, and found no end of it, since the last that did. A disk that cannot be read says nothing of what is on it.
pub(super) fn tries(s: &Snapshot) -> u32 {
    s.failures.get(&Task::Scan).map_or(0, Failure::begun)
}

fn known_boundary(s: &Snapshot, tli: TimelineId, least: Lsn) -> Lsn {
    let noted = [s.boundary, s.file.boundary];
    noted.into_iter().flatten().filter(|boundary| boundary.tli == tli).map(|boundary| boundary.lsn).fold(least, Lsn::max)
}

/// After so many scans that failed on a timeline that was noted, the one that `pg_control` names is scanned.
const NOTED_TRIES: u32 = 3;

/// After so many scans that failed, what a rewind has left is judged by what it says itself.
const LABEL_TRIES: u32 = 2;

/// The end of WAL that a directory needs which a rewind (or a copy) has left, where a scan finds none: `pg_control` is the source's, and its
/// redo may lie beyond the WAL that was copied. Until it is consistent the directory holds nothing but the source's.
pub(super) fn end_by_label(s: &Snapshot, disk: &DiskFacts) -> Option<Whole> {
    let tli = disk.control.min_recovery_tli.filter(|_| tries(s) >= LABEL_TRIES && disk.backup_label)?;
    Some(Whole { tli, lsn: s.layout.boundary(disk.control.min_recovery) })
}

/// The timeline that a stopped data directory is on.
///
/// `pg_control` shows the old timeline until something is flushed there: after a promotion until the first checkpoint, on a
/// standby until its next restart point. Our own "I promoted n", and the boundary that was seen on a newer timeline, know
/// better, where its history file is here too (EXP-7, scenario 68). Else WAL beyond a switch point would not be found.
pub(super) fn disk_timeline(s: &Snapshot, disk: &DiskFacts) -> TimelineId {
    noted_timeline(s, disk.control.tli(), &disk.histories)
}

/// The timeline that a running standby is on. It shows the one before until it has replayed something of the newer one, and where nothing was
/// written there it never does: a promotion that was killed behind its history file leaves such a one.
pub(super) fn server_timeline(s: &Snapshot, shown: TimelineId, replay: Lsn) -> TimelineId {
    let noted = noted_timeline(s, shown, &s.histories);
    let left = disk_history(&s.histories, noted).leaves(shown);
    if left.is_some_and(|fork| replay <= s.layout.boundary(fork)) { noted } else { shown }
}

/// The newest timeline that we noted of this directory, if it is newer than what the server or `pg_control` show.
fn noted_timeline(s: &Snapshot, shown: TimelineId, histories: &BTreeMap<TimelineId, String>) -> TimelineId {
    let is_here = |tli: &TimelineId| histories.get(tli).is_some_and(|text| ledger::is_real(text));
    noted(s).filter(is_here).fold(shown, TimelineId::max)
}

/// The timelines that boundaries were seen on, or that we were about to promote to.
fn noted(s: &Snapshot) -> impl Iterator<Item = TimelineId> {
    let boundaries = [s.boundary, s.file.boundary].into_iter().flatten().map(|boundary| boundary.tli);
    boundaries.chain(s.file.promoted.map(|promoted| promoted.tli))
}

/// The forks that lead to `tli`, by the history files on our own disk.
pub(super) fn disk_history(histories: &BTreeMap<TimelineId, String>, tli: TimelineId) -> TimelineHistory {
    histories.get(&tli).and_then(|text| text.parse().ok()).unwrap_or_default()
}
