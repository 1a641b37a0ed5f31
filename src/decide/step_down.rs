//! Fencing ourselves (protocol 1.5, F1): a primary without authority stops, and one whose authority ends stops before.

use super::{Flow, decision::Action, draft::Draft, failsafe, snapshot::Snapshot};
use crate::model::{
    instance::{Process, ServerRole, StartAs, StopMode},
    moment::{Moment, Span},
};

/// Between the end of a fast stop and the deadline: the kill has to be over by then.
const KILL_MARGIN: Span = Span::from_millis(50);

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    if !may_be_primary(s) {
        return Flow::Goes;
    }
    if let Some(term) = failsafe::superseded(s) {
        d.because("superseded", format!("a peer has seen another node serve in term {term}: PostgreSQL is killed"));
        d.act(s, Action::Kill);
        return Flow::Settled;
    }
    match s.leader() {
        Some(_) if s.pause().is_some() && !s.holds() && is_set_by_hand(s) => {
            d.alarm(
                "promoted-by-hand",
                "PostgreSQL accepts writes here, and nobody asked it to through pgbaton: it goes on, as the cluster is paused, and is killed after that",
            );
            Flow::Goes
        }
        Some(leader) if !s.holds() => {
            let record = &leader.record;
            d.because(
                "primary-without-lease",
                format!(
                    "PostgreSQL may accept writes here, but `leader` names {} in term {}: it is killed",
                    record.holder.node, record.term
                ),
            );
            d.act(s, Action::Kill);
            Flow::Settled
        }
        // Without a record to read (etcd is silent since our start) the deadline that is armed stands.
        _ => before_the_deadline(s, d),
    }
}

/// Stops before the deadline. Authority that is not known to this agent is what the guard has armed.
fn before_the_deadline(s: &Snapshot, d: &mut Draft) -> Flow {
    let Some(until) = last_moment(s) else { return Flow::Goes };
    let stop_at = until.minus(s.policy.timers().soft_stop);
    if s.now.boot < stop_at {
        d.wake(stop_at);
        return Flow::Goes;
    }
    let left = until.since(s.now.boot);
    if let Some(story) = &mut d.memory.claim {
        story.ran_out = true;
    }
    d.because("lease-runs-out", format!("the lease was not renewed and ends in {}: PostgreSQL is stopped", left.rounded()));
    if left <= KILL_MARGIN {
        d.act(s, Action::Kill);
    } else {
        // What runs is asked once; what is left of it then is killed, whatever deadline an earlier stop had.
        if matches!(s.process(), Some(Process::Running { stopping: None, .. })) {
            d.act(s, Action::Stop { mode: StopMode::Fast, deadline: until.minus(KILL_MARGIN) });
        }
        d.wake(until.minus(KILL_MARGIN));
    }
    Flow::Settled
}

/// When our authority ends at the latest, as far as this agent can know.
fn last_moment(s: &Snapshot) -> Option<Moment> {
    let armed = s.guard().and_then(|guard| guard.armed).map(|armed| armed.until);
    if s.holds_paused() {
        // Nobody may follow: no lease runs out, and only what is armed still ends it.
        return armed;
    }
    let leased = s.leader().and_then(|leader| s.lease.until(leader.record.term)).max(failsafe::until(s));
    match (armed, leased) {
        // The guard acts on what is armed; a renewal that is not armed yet extends it in a moment.
        (Some(armed), Some(leased)) => Some(armed.max(leased)),
        (armed, leased) => armed.or(leased),
    }
}

/// Whether somebody promoted what this node started as a standby.
fn is_set_by_hand(s: &Snapshot) -> bool {
    let started = matches!(s.process(), Some(Process::Running { start: StartAs::Standby, .. }));
    started && s.guard().is_some_and(|guard| guard.primary_of.is_none())
}

/// Whether PostgreSQL runs here and may have left recovery.
pub(super) fn may_be_primary(s: &Snapshot) -> bool {
    let started_as_primary = match s.process() {
        None | Some(Process::Empty { .. }) => return false,
        Some(Process::Dying { .. }) => false,
        Some(Process::Running { start, .. }) => *start == StartAs::Primary,
    };
    let accepted = s.guard().is_some_and(|guard| guard.primary_of.is_some());
    started_as_primary || accepted || matches!(s.role(), Some(ServerRole::Primary { .. }))
}
