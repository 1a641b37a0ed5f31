//! What recovery here aims at. A standby takes the newest history file for its target, also where it has not come that far yet.

use super::{decision::Action, draft::Draft, ledger, promotion, scan, snapshot::Snapshot, stop, upkeep};
use crate::model::{
    instance::{ServerRole, StartAs, Whole},
    record::{LeaderRecord, Stored},
    timeline::{TimelineHistory, TimelineId},
};

/// Whether the newest history here left our timeline before our end: a start that looks for the latest timeline would die of it (it lies
/// there where a promotion past it did not come to its end). It is started on its own timeline then, and stopped when there is somebody
/// to follow.
pub(super) fn is_lured(s: &Snapshot, whole: Whole) -> bool {
    let newest = ledger::newest_real(&s.histories).filter(|tli| *tli > whole.tli).and_then(|tli| s.histories.get(&tli));
    newest.is_some_and(|text| leaves(text, whole.tli).is_none_or(|at| s.layout.boundary(at) < whole.lsn))
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
    let beyond = texts.filter(|(_, text)| leaves(text, whole.tli).is_some_and(|at| s.layout.boundary(at) >= whole.lsn));
    beyond.map(|(tli, _)| *tli).max()
}

/// A timeline that a promotion now would wrongly name as the parent of its own.
pub(super) fn astray(s: &Snapshot) -> Option<TimelineId> {
    s.whole_now().filter(|_| !is_alone(s)).and_then(|whole| ahead(s, whole))
}

/// Whether PostgreSQL, promoted now, names the timeline that it is on as the parent of the new one. Where it would not it is started anew on
/// that timeline alone, while the claim goes on.
pub(super) fn is_ours(s: &Snapshot, d: &mut Draft) -> bool {
    let Some(ServerRole::Standby { tli, replay, .. }) = s.role() else {
        d.waits("mute", "PostgreSQL runs as a standby and does not answer yet");
        return false;
    };
    let Some(whole) = scan::whole(s, d) else { return false };
    if let Some(ahead) = astray(s) {
        d.because(
            "recovery-target",
            format!(
                "recovery here aims at timeline {ahead}, which goes on from beyond our end, {}: PostgreSQL is started anew on timeline {} alone",
                whole.lsn, whole.tli
            ),
        );
        if let Some(story) = d.memory.claim.as_mut() {
            story.alone = true;
        }
        stop::stop_postgres(s, d);
        return false;
    }
    // `current` is what pg_control names: an older one if the stop was no clean one, and then the end is never reached.
    let alone = d.memory.claim.as_ref().is_some_and(|story| story.alone);
    if alone && (scan::server_timeline(s, *tli, *replay) != whole.tli || *replay < whole.lsn) {
        d.waits("recovery-target", format!("PostgreSQL replays its own WAL, up to {} on timeline {}", whole.lsn, whole.tli));
        return false;
    }
    true
}

/// Whether this claim has stopped PostgreSQL to start it on its own timeline alone.
pub(super) fn starts_alone(s: &Snapshot) -> bool {
    let Some(leader) = s.leader() else { return false };
    s.memory.claim.as_ref().is_some_and(|story| story.alone && story.term == leader.record.term)
}

/// The start for it.
pub(super) fn start_alone(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    d.hurry = true;
    if upkeep::configured(s, d, None, true) && promotion::has_margin(s, d, leader) {
        d.because("recovery-target", "PostgreSQL starts as a standby on its own timeline alone, to be promoted from there");
        d.act(s, Action::Start { start: StartAs::Standby, term: leader.record.term });
    }
}

/// Whether PostgreSQL is configured, and was started, to replay its own WAL and nothing else.
pub(super) fn is_alone(s: &Snapshot) -> bool {
    s.configured.as_ref().is_some_and(|configured| configured.recovery_only)
}

/// Where a history leaves a timeline.
fn leaves(text: &str, tli: TimelineId) -> Option<crate::model::lsn::Lsn> {
    text.parse::<TimelineHistory>().ok()?.leaves(tli)
}
