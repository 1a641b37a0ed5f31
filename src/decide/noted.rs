//! What was noted to be done to the data before it was begun: it goes on, is done, is made again, or put aside (protocol 1.13).

use super::{
    Flow, bootstrap, copy, cut,
    decision::{Action, Completed, Source, Task},
    draft::Draft,
    follow,
    registration::new_life,
    rejoin::REWIND_TRIES,
    snapshot::Snapshot,
    stop, target, upkeep, went_back,
};
use crate::model::{
    instance::{DataDir, RecoveryTarget, RewindMark},
    lsn::Lsn,
    node_file::{ClonePlace, NodeFile, Operation},
    record::LeaderRecord,
};

/// After so many rewinds that could not be begun an operator has to look.
const HELD_LONG: u32 = 12;

/// An operation that was noted: it goes on, is done, or is made again from its beginning.
pub(super) fn operation(s: &Snapshot, d: &mut Draft, target: Option<&LeaderRecord>) {
    let Some(operation) = &s.file.operation else { return };
    if s.busy(Task::Data) {
        d.waits("operation", format!("{operation} goes on"));
        return;
    }
    let done = matches!(
        (operation, s.completed),
        (Operation::InitDb, Some(Completed::Discard | Completed::InitDb))
            | (Operation::Clone { .. }, Some(Completed::Clone))
            | (Operation::Rewind { .. }, Some(Completed::Rewind))
    );
    if done {
        d.memory.rewind = None;
        d.memory.rewinds_failed = None;
        let initialised = s.completed == Some(Completed::InitDb);
        d.act(s, Action::WriteFile(Box::new(NodeFile { initialised, ..new_life(s) })));
        return;
    }
    if s.is_starting() {
        d.waits("starting", format!("{operation} waits: PostgreSQL is being started, and has to stop first"));
        return;
    }
    if !s.is_empty() {
        d.waits("operation", format!("{operation} was interrupted; PostgreSQL has to stop first"));
        stop::stop_postgres(s, d);
        return;
    }
    if target.is_some() {
        cut::lift(s, d);
    }
    if *operation == Operation::InitDb {
        if bootstrap::is_not_initdbs(s, d) {
            return;
        }
        d.because("discard", "another node initialised the cluster while this one's initdb was interrupted: what it left goes");
        d.act(s, Action::DiscardInitialised);
        return;
    }
    // Where nobody leads whoever may vote or lead has to be able to: what was noted and has not begun is put aside.
    // So is a rewind to another timeline than the one that is led now, which may have left ours elsewhere.
    let planned = s.memory.rewind.as_ref().map(|plan| plan.target);
    let judged = planned.is_none() || planned != target.map(|target| target.tli);
    if matches!(operation, Operation::Rewind { .. }) && judged && noted_rewind(s, d) {
        return;
    }
    if target.is_none() && noted_copy(s, d) {
        return;
    }
    let Some(target) = target else { return };
    let source = follow::source(target);
    match operation {
        Operation::Rewind { .. } if matches!(s.disk(), Some(DataDir::Missing | DataDir::Empty)) => {
            copy::begin(s, d, target, "there is no data any more", None);
        }
        Operation::Rewind { .. } if !upkeep::configured_for(s, d, alone(s)) => {}
        Operation::Rewind { .. } => rewind_again(s, d, target, source),
        // The passwords that the copy needs stand in the managed files.
        Operation::Clone { .. } if !upkeep::configured(s, d, None) => {}
        Operation::Clone { source, place } => copy::goes_on(s, d, target, source, *place),
        Operation::InitDb => {}
    }
}

/// What recovery before the rewind aimed at: it is not written anew for the rewind, which starts nothing.
fn alone(s: &Snapshot) -> RecoveryTarget {
    s.memory.rewind.as_ref().map_or(RecoveryTarget::Current, |plan| target::alone(s, plan.tli))
}

/// A rewind that a former agent noted: only one that has begun and not ended is made again. The mark beside the directory
/// stands from before the first change.
pub(super) fn noted_rewind(s: &Snapshot, d: &mut Draft) -> bool {
    let disk = match s.disk() {
        None => {
            d.waits("inspect", "the data directory is being inspected: a former agent noted a rewind");
            d.act(s, Action::InspectDisk);
            return true;
        }
        Some(DataDir::Present(disk)) => disk,
        Some(_) => return false,
    };
    match &disk.rewind {
        Some(RewindMark::Unfinished) => return false,
        Some(RewindMark::Done { life }) if *life == s.file.data => {
            d.because("operation", "the rewind that a former agent noted has ended");
            d.memory.rewind = None;
            d.act(s, Action::WriteFile(Box::new(new_life(s))));
        }
        // What the file says of this data still holds.
        Some(RewindMark::Done { .. }) | None => {
            put_aside(s, d, "the rewind that was noted was never begun: the data directory is judged anew");
        }
    }
    true
}

/// A copy that was noted and is not under way: until one beside takes its place the directory is as whole as it was.
pub(super) fn noted_copy(s: &Snapshot, d: &mut Draft) -> bool {
    let Some(Operation::Clone { place, .. }) = &s.file.operation else { return false };
    match s.disk() {
        None => {
            d.waits("inspect", "the data directory is being inspected: a copy was noted");
            d.act(s, Action::InspectDisk);
        }
        // Half rewound is what a former directory was: that is forgotten first.
        Some(dir @ DataDir::Present(_)) if dir.is_half_rewound() => return false,
        Some(DataDir::Present(disk)) if disk.is_copy(&s.file.data) => {
            d.because("operation", "the copy that was noted has taken its place");
            d.memory.rewind = None;
            d.act(s, Action::WriteFile(Box::new(new_life(s))));
        }
        Some(DataDir::Present(_)) if *place == ClonePlace::Beside => {
            put_aside(s, d, "the copy that was noted has not taken its place: the data directory is judged anew");
        }
        Some(_) => return false,
    }
    true
}

/// What was noted is dropped, once the directory was seen to hold what had been noted of it.
fn put_aside(s: &Snapshot, d: &mut Draft, why: &str) {
    if went_back::compared(s, d) == Flow::Settled {
        return;
    }
    d.because("operation", why);
    (d.memory.rewind, d.memory.rewinds_failed) = (None, None);
    d.act(s, Action::WriteFile(Box::new(NodeFile { operation: None, ..s.file.clone() })));
}

/// A rewind that was begun may only be rewound again, or replaced.
fn rewind_again(s: &Snapshot, d: &mut Draft, target: &LeaderRecord, source: Source) {
    // What failed before this one was planned was another leader's.
    let since = s.memory.rewind.as_ref().map(|plan| plan.since);
    let failed = s.failures.get(&Task::Data).filter(|failure| since.is_none_or(|since| failure.at >= since));
    if let Some(failure) = failed.filter(|failure| failure.begun() >= REWIND_TRIES) {
        d.memory.rewinds_failed = Some(target.term);
        if copy::reclone(s, d, target, &format!("{REWIND_TRIES} rewinds failed: {}", failure.why), s.memory.rewind.clone()) {
            return;
        }
        // Nothing else helps: what was in the way may be gone.
    }
    if let Some(failure) = s.failures.get(&Task::Data).filter(|failure| failure.held >= HELD_LONG) {
        d.alarm("rewind-waits", format!("a rewind could not be begun, tried {} times: {}", failure.count, failure.why));
    }
    d.because("rewind", format!("rewinds to the history of {}", source.node));
    let (fork, whole, tli) = s.memory.rewind.as_ref().map_or((Lsn::ZERO, Lsn::ZERO, target.tli), |plan| (plan.fork, plan.whole, plan.tli));
    d.act(s, Action::Rewind { source, fork, whole, tli });
}
