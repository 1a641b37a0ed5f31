//! Whether this node's disk still has what was noted of it: a file or a directory that went back begins a new life (protocol 1.2, `nodes`).

use super::{
    Flow,
    decision::{Action, Task},
    draft::Draft,
    ledger, noted, registration, rejoin, scan,
    snapshot::Snapshot,
};
use crate::model::{
    instance::{DataDir, ServerRole, Whole},
    lsn::Lsn,
    node_file::{Boundary, Operation},
    record::NodeRecord,
    timeline::TimelineId,
};

/// After so many scans in vain, WAL that nothing can read is no proof of anything.
const UNREADABLE: u32 = 6;

/// At the first sight after our start the key says only what our file said before: a start that it meant to tell, and no newer boundary. Our own
/// start is there only if we wrote it: else a copy of us did.
pub(super) fn file(s: &Snapshot, theirs: &NodeRecord) -> bool {
    let noted = s.file.boundary.map(|boundary| (boundary.tli, boundary.lsn));
    let behind = theirs.data == s.file.data && theirs.tli.is_some_and(|tli| noted.is_none_or(|noted| noted < (tli, theirs.whole)));
    let ours = theirs.agent.as_ref().map_or(s.memory.registering, |agent| *agent == s.me.agent);
    let copied = theirs.starts == s.file.starts && !ours;
    // In a file of before that was noted: all that it counted, but for this start.
    let told = s.file.told.unwrap_or_else(|| s.file.starts.saturating_sub(1));
    // Of a race for the key the file knows by whom it had been sent.
    let lost = theirs.starts == told && s.file.told_by.as_ref().is_some_and(|by| theirs.agent.as_ref().is_some_and(|agent| agent != by));
    theirs.starts > told || lost || copied || behind || has_led_since(s)
}

/// Whether this life of our data has led in a term that our file, which is written before a claim is sent, does not know. Where an operator had the
/// records made anew they list the node that is to lead by its name.
fn has_led_since(s: &Snapshot) -> bool {
    let (Some(sync), me) = (s.sync().map(|sync| &sync.record), s.myself()) else { return false };
    sync.primary == me && s.file.claimed.is_none_or(|claimed| claimed < sync.term) && !sync.electable.contains(&me)
}

/// Data are compared with what was noted of them before this run of the agent says or does anything with them: whoever has acknowledged,
/// votes or may be elected has to have what it once had.
pub(super) fn data(s: &Snapshot, d: &mut Draft) -> Flow {
    // A server that runs was looked at before it was started.
    if rests(s) { compared(s, d) } else { Flow::Goes }
}

/// The same of a directory that an operation was noted for, and that is whole: it was not compared before, and is what counts again.
pub(super) fn compared(s: &Snapshot, d: &mut Draft) -> Flow {
    if !is_noted(s) {
        return Flow::Goes;
    }
    let labelled = match s.disk() {
        Some(DataDir::Present(disk)) => scan::end_by_label(s, disk),
        _ => None,
    };
    let lost = match labelled.or_else(|| s.whole_now()) {
        Some(whole) => short(s, whole),
        // The last primary alone may be all there is: it waits until somebody makes its WAL readable.
        None if scan::tries(s) >= UNREADABLE && !s.is_owner() => Some("the end of WAL here cannot be found".to_owned()),
        None => {
            if scan::tries(s) >= UNREADABLE {
                d.alarm(
                    "wal-unreadable",
                    "the end of WAL here cannot be found, and this node was the last primary: nothing is started on data that may lack what was \
                     acknowledged; put back what is missing in pg_wal",
                );
            }
            scan::start(s, d);
            return Flow::Settled;
        }
    };
    match lost {
        Some(lost) => begin_anew(s, d, &lost),
        None => return Flow::Goes,
    }
    Flow::Settled
}

/// What a voter or a claimant says of its data others rely on: a directory may have been put back under a running agent, too, in a pause or by a
/// volume that failed over.
pub(super) fn in_this_run(s: &Snapshot, d: &mut Draft, whole: Whole) -> bool {
    let lost = short(s, whole);
    if let Some(lost) = &lost {
        begin_anew(s, d, lost);
    }
    lost.is_some()
}

fn short(s: &Snapshot, whole: Whole) -> Option<String> {
    lost(s, whole).map(|lost| format!("WAL here ends at {} on timeline {}, and {lost}", whole.lsn, whole.tli))
}

fn begin_anew(s: &Snapshot, d: &mut Draft, lost: &str) {
    d.alarm("data-went-back", format!("{lost}: the disk went back, or lost something; its data get a new incarnation"));
    d.act(s, Action::WriteFile(Box::new(registration::new_life(s))));
}

/// What a copy or a rewind has left begins a life of which nothing is noted. Where something is, a `backup_label` came back with the disk.
fn is_noted(s: &Snapshot) -> bool {
    s.is_owner() || s.is_elector() || s.file.boundary.is_some() || published(s).is_some_and(|node| node.tli.is_some())
}

/// Nothing runs on the directory, and nothing is half done to it, as far as is known.
fn rests(s: &Snapshot) -> bool {
    let whole = match s.disk() {
        Some(dir @ DataDir::Present(_)) => !dir.is_half_rewound(),
        Some(_) => false,
        None => true,
    };
    whole && s.is_empty() && s.file.operation.is_none()
}

/// In an etcd that is not believed nothing is published, but `etcd recover` asks every node what it has: that has to be so.
pub(super) fn look(s: &Snapshot, d: &mut Draft) {
    if s.is_empty() && s.disk().is_none() {
        d.act(s, Action::InspectDisk);
        return;
    }
    let rests = s.is_empty() && !s.busy(Task::Data);
    let rewind = matches!(s.file.operation, Some(Operation::Rewind { .. }));
    if rests && (rewind && noted::noted_rewind(s, d) || noted::noted_copy(s, d)) {
        return;
    }
    if is_unread(s) {
        scan::start(s, d);
        return;
    }
    data(s, d);
}

/// A directory at rest: how much of the WAL that it needs is here was not looked at yet. What a rewind or a copy has left may lack some, also once
/// something has started on it.
fn is_unread(s: &Snapshot) -> bool {
    rests(s) && s.disk().is_some() && s.whole_now().is_none() && scan::tries(s) < UNREADABLE
}

impl Snapshot {
    /// Why nobody can be promoted on the data that are here: what a rewind or a copy has left needs WAL that is not.
    pub fn falls_short(&self) -> Option<String> {
        if let (None, true) = (self.role(), self.inconsistent_since.is_some()) {
            return Some("its PostgreSQL lets nobody in: it is not consistent by the WAL that it has".to_owned());
        }
        let Some(DataDir::Present(disk)) = self.disk().filter(|_| self.is_empty()) else { return None };
        let whole = self.whole_now().or_else(|| scan::end_by_label(self, disk))?;
        (!rejoin::is_consistent(self, disk, whole)).then(|| rejoin::falls_short(disk, whole))
    }

    /// The newest record boundary that is known to be on our disk, on the timeline that it is on; zero where the timeline alone is known. `None`
    /// where nothing is there, and until a directory has been compared with what was noted of it.
    pub fn position(&self) -> Option<Boundary> {
        if let Some(whole) = self.whole_now().filter(|_| self.is_empty()) {
            return Some(Boundary { tli: whole.tli, lsn: whole.lsn });
        }
        let noted = self.boundary.or(self.file.boundary);
        let tli = match (self.role(), self.disk()) {
            (Some(ServerRole::Primary { tli, .. } | ServerRole::Standby { tli, .. }), _) => *tli,
            (None, Some(DataDir::Present(_))) if is_unread(self) => return None,
            // After a promotion the control file shows the former timeline until the first checkpoint.
            (None, Some(DataDir::Present(disk))) => {
                disk.control.tli().max(self.file.promoted.map_or(TimelineId::FIRST, |promoted| promoted.tli))
            }
            (None, _) => return None,
        };
        Some(noted.filter(|noted| noted.tli == tli).unwrap_or(Boundary { tli, lsn: Lsn::ZERO }))
    }
}

/// What is known to have been on this disk in this life, and is not.
pub(super) fn lost(s: &Snapshot, whole: Whole) -> Option<String> {
    let (end, lacks) = ((whole.tli, whole.lsn), |tli, lsn| lacks(s, whole, tli, lsn));
    if let Some(noted) = s.file.boundary.filter(|noted| lacks(noted.tli, noted.lsn)) {
        return Some(format!("this node's file knows {} on timeline {}", noted.lsn, noted.tli));
    }
    if let Some((tli, lsn)) = published(s).and_then(|node| Some((node.tli?, node.whole))).filter(|(tli, lsn)| lacks(*tli, *lsn)) {
        return Some(format!("it once published {lsn} on timeline {tli}"));
    }
    let ours = ledger::newest_used(s).filter(|(_, owner)| s.is_owner() && *owner == s.myself()).map(|(newest, _)| newest)?;
    // What others have of the timeline that we alone have written to they had from us.
    let others = s.etcd.records.nodes.iter().filter(|(node, of)| **node != s.me.node && of.record.tli == Some(ours));
    if let Some((node, of)) = others.max_by_key(|(_, of)| of.record.whole).filter(|(_, of)| (ours, of.record.whole) > end) {
        return Some(format!("{node} has {} on timeline {ours}, which was this node's alone to write", of.record.whole));
    }
    // A claimant that died before it served may be behind its predecessor's position, within `max_lag`: it never had that.
    let (tli, lsn) = s.primary_position()?;
    (ours == tli && (tli, lsn) > end).then(|| format!("`leader` knows {lsn} on timeline {tli}"))
}

/// Whether that position, which was seen on this disk, is not in WAL that ends there: beyond its end, or on a timeline that its own one left
/// before. A directory may come back on a newer number, given up since, than the one that was followed later.
fn lacks(s: &Snapshot, whole: Whole, tli: TimelineId, lsn: Lsn) -> bool {
    let tli = ledger::grown_out_of(s, tli, whole.tli);
    let text = s.histories.get(&whole.tli).filter(|text| tli < whole.tli && ledger::is_real(text));
    text.is_some_and(|text| ledger::goes_another_way(s, text, tli, lsn)) || (tli, lsn) > (whole.tli, whole.lsn)
}

/// What etcd has of this life of our data.
fn published(s: &Snapshot) -> Option<&NodeRecord> {
    s.etcd.records.nodes.get(&s.me.node).map(|node| &node.record).filter(|node| node.data == s.file.data)
}
