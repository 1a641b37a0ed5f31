//! What a holder does: adopt, renew, arm, and then whatever its state asks for (protocol 1.2, 1.4, 1.5).

use super::{
    Flow,
    decision::{Action, Purpose, Task},
    draft::Draft,
    durability, failsafe, flap, pause, promotion, release,
    snapshot::Snapshot,
};
use crate::model::{
    instance::ServerRole,
    key::{Compare, Key, Txn, Write},
    lsn::Lsn,
    moment::{Moment, Span},
    node_file::Boundary,
    policy::Timers,
    record::{LeaderRecord, LeaderState, Stored, SyncRecord, to_text},
};

/// After a write whose outcome is not known, ask again no sooner than this.
pub(super) const ASK_AGAIN: Span = Span::from_millis(100);

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    let Some(leader) = s.leader() else { return Flow::Goes };
    if !s.named_by(&leader.record) {
        return release::after_the_guard_died(s, d, leader);
    }
    match &leader.record.state {
        LeaderState::Claimed | LeaderState::Serving => {}
        LeaderState::Paused(pause) if pause.vacant.is_none() => {
            pause::holder(s, d, leader, pause);
            return Flow::Settled;
        }
        LeaderState::Paused(_) => return Flow::Goes,
        LeaderState::Handoff { .. } | LeaderState::Vacant { .. } | LeaderState::Foreign { .. } => {
            disarm(s, d);
            return Flow::Goes;
        }
    }
    if s.lease.confirmed.as_ref().is_none_or(|attempt| attempt.term != leader.record.term) {
        adopt(s, d, leader);
        return Flow::Settled;
    }
    arm(s, d, leader);
    let keeps = match leader.record.state {
        LeaderState::Claimed => promotion::rule(s, d, leader),
        _ => release::rule(s, d, leader),
    };
    if keeps == Keeps::Renewing {
        renew(s, d, leader);
        failsafe::rule(s, d, leader);
    }
    Flow::Settled
}

/// A newer version's record stops us from acting, not from holding: a primary that serves goes on renewing, and nothing else.
pub(super) fn hold_on(s: &Snapshot, d: &mut Draft) {
    let Some(leader) = s.leader().filter(|leader| s.named_by(&leader.record) && leader.record.state == LeaderState::Serving) else {
        return;
    };
    let confirmed = s.lease.confirmed.as_ref().is_some_and(|attempt| attempt.term == leader.record.term);
    if confirmed && matches!(s.role(), Some(ServerRole::Primary { .. })) {
        arm(s, d, leader);
        renew(s, d, leader);
    }
}

/// Whether the holder goes on renewing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// It does.
    Renewing,
    /// It is giving up, or must not.
    Not,
}

/// A new agent in session with the guard that `leader` names: its own swap, and `sync` with a new nonce, which kills
/// whatever its predecessor may still have in the queue. Before that it extends nothing.
pub(super) fn adopt(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    d.because("adoption", format!("this agent takes over the lease of term {} from its predecessor", leader.record.term));
    let Some(sync) = s.sync() else {
        d.alarm("records-incomplete", "`sync` is missing from etcd: see `pgbaton etcd recover`");
        return;
    };
    let record = next(s, &leader.record);
    let again = SyncRecord { nonce: s.nonce("sync"), ..sync.record.clone() };
    let txn = Txn {
        nonce: record.nonce.clone(),
        when: vec![Compare::Is(Key::Leader, leader.text.clone()), Compare::Is(Key::Sync, sync.text.clone())],
        then: vec![Write::Put(Key::Leader, to_text(&record)), Write::Put(Key::Sync, to_text(&again))],
    };
    d.act(s, Action::Txn(Purpose::Adopt, txn));
}

fn renew(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    let timers = s.policy.timers();
    let Some((from, due)) = due(s, timers) else { return };
    if s.now.boot < from {
        d.wake(due);
        return;
    }
    let next_until = s.now.boot.plus(timers.hold);
    let shorter = s.lease.confirmed.as_ref().is_some_and(|attempt| timers.hold < attempt.hold);
    let armed = s.guard().and_then(|guard| guard.armed).filter(|armed| armed.term == leader.record.term);
    // A shorter hold may commit unseen, so the shorter deadline is armed before it is sent, and stays while it is on its way. Never a later one
    // than what is confirmed allows; where that is over there is none to be shortened.
    if let Some(authority) = s.authority().filter(|_| shorter) {
        d.actions.retain(|action| action.task() != Task::Arm);
        if s.busy(Task::Arm) || armed.is_none_or(|armed| armed.until > next_until) {
            d.act(s, Action::Arm { term: leader.record.term, until: next_until.min(authority) });
            d.wake(due);
            return;
        }
    }
    let mut record = next_position(s, d, &leader.record);
    (record.hold, record.wait) = (timers.hold, timers.wait);
    let sent = d.act(s, Action::Txn(Purpose::Renew, swap(leader, &record)));
    d.wake(if sent { s.now.boot.plus(ASK_AGAIN) } else { due });
}

/// The record that follows `record`, and what our PostgreSQL has come to as its primary.
pub(super) fn next_position(s: &Snapshot, d: &mut Draft, record: &LeaderRecord) -> LeaderRecord {
    let mut next = next(s, record);
    let serving = record.state == LeaderState::Serving || s.holds_paused();
    if let Some(boundary) = s.boundary.filter(|boundary| serving && s.holds() && boundary.tli == record.tli) {
        next.lsn = next.lsn.max(acknowledged(s, d, boundary));
    }
    next
}

/// The newest boundary up to which commits were acknowledged: what nobody was told of is no loss. Where voters confirm, one boundary is held on
/// to until enough of them have passed it; what they have confirmed is none by itself.
fn acknowledged(s: &Snapshot, d: &mut Draft, newest: Boundary) -> Lsn {
    let confirmed = s.sync().zip(s.server()).and_then(|(sync, facts)| durability::confirmed(facts, &sync.record));
    let Some(confirmed) = confirmed else { return newest.lsn };
    let awaited = d.memory.awaited.filter(|awaited| awaited.tli == newest.tli).unwrap_or(newest);
    if confirmed < awaited.lsn {
        d.memory.awaited = Some(awaited);
        return Lsn::ZERO;
    }
    d.memory.awaited = None;
    if confirmed >= newest.lsn { newest.lsn } else { awaited.lsn }
}

/// From when on the next renewal may be sent, and when it has to be.
fn due(s: &Snapshot, timers: Timers) -> Option<(Moment, Moment)> {
    let confirmed = s.lease.confirmed.as_ref()?;
    let due = match s.lease.unsettled.last() {
        Some(last) => last.sent.plus(ASK_AGAIN),
        None => confirmed.sent.plus(timers.renew_every),
    };
    let ahead = if s.lease.unsettled.is_empty() { timers.ahead() } else { Span::ZERO };
    Some((due.minus(ahead), due))
}

/// The deadline follows the lease: later after each confirmed renewal of ours, earlier at once.
///
/// With PostgreSQL verified dead there is nothing left to kill: a lease that runs out then takes the guard with it for nothing.
fn arm(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    let lasting = s.authority().filter(|until| !s.is_empty() || s.now.boot.plus(s.policy.timers().soft_stop) < *until);
    let Some(until) = lasting else {
        disarm(s, d);
        return;
    };
    let term = leader.record.term;
    let armed = s.guard().and_then(|guard| guard.armed);
    let right = armed.is_some_and(|armed| armed.term == term && armed.until == until);
    if !right {
        d.act(s, Action::Arm { term, until });
    }
}

/// Takes the deadline away once nothing that it guards can be a primary.
pub(super) fn disarm(s: &Snapshot, d: &mut Draft) {
    let Some(armed) = s.guard().and_then(|guard| guard.armed) else { return };
    if s.lease.unsettled.is_empty() && !super::step_down::may_be_primary(s) {
        d.act(s, Action::Disarm { term: armed.term });
    }
}

/// The record that follows `record`, of the same term and state.
pub(super) fn next(s: &Snapshot, record: &LeaderRecord) -> LeaderRecord {
    LeaderRecord { nonce: s.nonce("leader"), seq: record.seq.saturating_add(1), failovers: flap::aged(s, record), ..record.clone() }
}

/// Swaps `leader` alone.
pub(super) fn swap(leader: &Stored<LeaderRecord>, record: &LeaderRecord) -> Txn {
    Txn {
        nonce: record.nonce.clone(),
        when: vec![Compare::Is(Key::Leader, leader.text.clone())],
        then: vec![Write::Put(Key::Leader, to_text(record))],
    }
}
