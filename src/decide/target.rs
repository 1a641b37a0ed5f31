//! What recovery here aims at. A standby takes the newest history file for its target, also where it has not come that far yet.

use super::{decision::Action, draft::Draft, leadership::Keeps, ledger, promotion, release, scan, snapshot::Snapshot, stop, upkeep};
use crate::model::{
    instance::{Process, RecoveryTarget, Run, ServerRole, StartAs, Whole},
    moment::Span,
    record::{LeaderRecord, Stored},
    timeline::{TimelineHistory, TimelineId},
};

/// Whether the newest history here left our timeline before our end: a start that looks for the latest timeline would die of it (it lies
/// there where a promotion past it did not come to its end). It is started on its own timeline then, and stopped when there is somebody
/// to follow.
pub(super) fn is_lured(s: &Snapshot, whole: Whole) -> bool {
    let newest = ledger::newest_real(&s.histories).filter(|tli| *tli > whole.tli).and_then(|tli| s.histories.get(&tli));
    newest.is_some_and(|text| ledger::goes_another_way(s, text, whole.tli, whole.lsn))
}

/// The newest timeline that goes on from ours at our end or beyond it, by a history file that is here or that the ledger puts here.
///
/// A standby that looks for the latest timeline aims at it. If it is promoted before it gets there, PostgreSQL writes the target, not the
/// timeline that it is on, as the parent into the new history (`writeTimeLineHistory`): that one says of our timeline that it was left
/// where the target left it. A walsender then looks for WAL that was never here, and `pg_rewind` takes a later point for the one where
/// two directories part.
fn ahead(s: &Snapshot, whole: Whole) -> Option<TimelineId> {
    let known = ledger::texts(s);
    let texts = known.iter().chain(s.histories.iter()).filter(|(tli, _)| **tli > whole.tli);
    let beyond = texts.filter(|(_, text)| TimelineHistory::left(text, whole.tli).is_some_and(|at| s.layout.boundary(at) >= whole.lsn));
    beyond.map(|(tli, _)| *tli).max()
}

/// Why a promotion now would name another parent than `parent`, the timeline that our WAL ends on.
pub(super) fn astray(s: &Snapshot, parent: TimelineId) -> Option<String> {
    let Some(ServerRole::Standby { target, .. }) = s.role() else { return None };
    match target {
        RecoveryTarget::Timeline(tli) if *tli == parent => None,
        // What lies on a newer timeline than that is not even read.
        RecoveryTarget::Timeline(_) | RecoveryTarget::Current => {
            Some(format!("recovery here aims at `{target}`, and our WAL ends on timeline {parent}"))
        }
        RecoveryTarget::Latest => {
            let whole = s.whole_now().filter(|whole| whole.tli == parent)?;
            let ahead = ahead(s, whole)?;
            Some(format!("recovery here aims at timeline {ahead}, which goes on from our end or beyond it, {}", whole.lsn))
        }
    }
}

/// Whether PostgreSQL, promoted now, names the timeline that our WAL ends on as the parent of `reserved`. Where it would not it is started anew
/// on that timeline alone, once, while the claim goes on.
pub(super) fn leads_from_our_end(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, reserved: TimelineId) -> Result<(), Keeps> {
    if matches!(s.process(), Some(Process::Running { stopping: Some(_), .. })) {
        d.waits("stopping", "PostgreSQL is stopping, to be started anew");
        return Err(Keeps::Renewing);
    }
    if s.role().is_none() {
        d.waits("mute", "PostgreSQL runs as a standby and does not answer yet");
        return Err(Keeps::Renewing);
    }
    let Some(whole) = scan::whole(s, d) else { return Err(Keeps::Renewing) };
    let parent = ledger::entry(s, reserved).and_then(|entry| entry.parent);
    if parent != Some(whole.tli) {
        let why = format!("our WAL ends on timeline {}, and {reserved} was reserved for another parent", whole.tli);
        return Err(release::abandon(s, d, leader, &why));
    }
    let Some(why) = astray(s, whole.tli) else { return Ok(()) };
    // The run that is to end goes on until its stop has been answered.
    let Some(run) = s.run().filter(|run| starts_alone(s).is_none_or(|stopped| stopped == *run)) else {
        return Err(release::abandon(s, d, leader, &format!("{why}, although PostgreSQL was started anew")));
    };
    d.because("recovery-target", format!("{why}: PostgreSQL is started anew on timeline {} alone", whole.tli));
    if let Some(story) = d.memory.claim.as_mut() {
        story.alone.get_or_insert((s.now.boot, run));
    }
    stop::stop_postgres(s, d);
    Err(Keeps::Renewing)
}

/// The run that this claim has stopped to start PostgreSQL on its own timeline alone.
fn starts_alone(s: &Snapshot) -> Option<Run> {
    let leader = s.leader()?;
    let (_, run) = s.memory.claim.as_ref().filter(|story| story.term == leader.record.term)?.alone?;
    Some(run)
}

/// Whether it stopped, and is to be started so: a run that ended by itself is not tried again.
pub(super) fn is_to_start_alone(s: &Snapshot) -> bool {
    starts_alone(s).is_some() && matches!(s.process(), Some(Process::Empty { last: Some(last) }) if last.wanted)
}

/// The start for it.
pub(super) fn start_alone(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    d.hurry = true;
    let parent = ledger::reserved_by_us(s, leader).and_then(|reserved| ledger::entry(s, reserved)?.parent);
    let Some(parent) = parent else {
        return release::abandon(s, d, leader, "the timeline that was reserved for this claim is not in the ledger");
    };
    if upkeep::configured_for(s, d, alone(s, parent)) && promotion::has_margin(s, d, leader) {
        d.because("recovery-target", format!("PostgreSQL starts as a standby on timeline {parent} alone, to be promoted from there"));
        d.act(s, Action::Start { start: StartAs::Standby, term: leader.record.term });
    }
    Keeps::Renewing
}

/// What makes a standby replay its own WAL up to `tli`, and nothing else. PostgreSQL starts with a number only if that one's history is here.
pub(super) fn alone(s: &Snapshot, tli: TimelineId) -> RecoveryTarget {
    let known = tli == TimelineId::FIRST || s.histories.contains_key(&tli);
    if known { RecoveryTarget::Timeline(tli) } else { RecoveryTarget::Current }
}

/// A standby that does not stream for so long may aim at another timeline than the one that it is to follow.
const OFF_COURSE: Span = Span::from_secs(1);

/// Why this standby may never stream from `target`: it takes the newest history file for its target (`rescanLatestTimeLine`), and leaves that for a
/// newer one only where that grew out of it. What it aims at shows nowhere; so it is started anew once in a term, if a file lies here that may have
/// led it astray, and it does not stream.
pub(super) fn off_course(s: &Snapshot, d: &mut Draft, target: &LeaderRecord) -> Option<String> {
    let Some(ServerRole::Standby { tli, target: RecoveryTarget::Latest, .. }) = s.role() else { return None };
    let (run, history) = (s.run()?, ledger::history(s, target.tli).filter(|_| *tli != target.tli)?);
    let other = sibling(s, *tli, target.tli, &history)?;
    let (_, of, since) = *d.memory.off_course.insert(match s.memory.off_course {
        Some(before) if before.0 == target.term => before,
        _ => (target.term, run, s.now.boot),
    });
    if of != run {
        return None;
    }
    let ends = since.plus(OFF_COURSE);
    d.wake(ends);
    // Of a primary that is gone nobody streams.
    let lives = s.stood_still() < s.policy.timers().renew_every.times(2);
    let node = &target.holder.node;
    let why = format!("PostgreSQL does not stream, and may aim at timeline {other}, which {node} never was on: it is started anew");
    (lives && s.now.boot >= ends).then_some(why)
}

/// A timeline that a history file here says to have grown out of ours, and that `tli` never was on.
pub(super) fn sibling(s: &Snapshot, ours: TimelineId, tli: TimelineId, history: &TimelineHistory) -> Option<TimelineId> {
    let elsewhere = |other: TimelineId| other > ours && other != tli && history.leaves(other).is_none();
    let mut later = s.histories.iter().rev().filter(|(other, _)| elsewhere(**other));
    later.find(|(_, text)| TimelineHistory::left(text, ours).is_some()).map(|(other, _)| *other)
}

/// It streams: if it ceases to, that is another matter than before. One that was started anew already stays so for the term.
pub(super) fn on_course(s: &Snapshot, d: &mut Draft) {
    d.memory.off_course = s.memory.off_course.filter(|(_, run, _)| s.run() != Some(*run));
}

/// Whether PostgreSQL was started to replay its own WAL and nothing else.
pub(super) fn is_alone(s: &Snapshot) -> bool {
    matches!(s.role(), Some(ServerRole::Standby { target, .. }) if *target != RecoveryTarget::Latest)
}
