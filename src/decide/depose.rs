//! Deposing by quorum (protocol 1.7 step 0): in the quorum modes a holder that enough voters find gone is followed without sitting out its lease.
//!
//! k of the voters have to flush a commit before it is acknowledged; R of them that have cut their streams leave the old primary nobody to
//! acknowledge by, dead or alive. That is what promises prove. What a voter finds beforehand is a hint, told in its member record, so that a
//! holder which only one of them cannot see is not disturbed.

use super::{decision::Action, draft::Draft, failsafe, snapshot::Snapshot};
use crate::model::{
    moment::{Moment, Span},
    node::Nonce,
    policy::Depose,
    record::{LeaderRecord, LeaderState, Stored, SyncRecord},
};

/// So many renewals have to be missing.
const MISSED: u64 = 3;

/// Within this time the samples are as frequent as they were asked for.
const LOOKED_FOR: Span = Span::from_millis(250);

/// Who votes, where a holder can be deposed at all: it serves, and commits wait for these.
fn electorate<'a>(s: &'a Snapshot, leader: &LeaderRecord) -> Option<&'a SyncRecord> {
    let sync = &s.sync()?.record;
    let waits = sync.has_voters() && sync.term == leader.term && sync.primary == leader.holder.replica();
    (waits && s.policy.depose == Depose::ByQuorum && leader.state == LeaderState::Serving).then_some(sync)
}

/// From when on a record that this node has seen stand still lacks a renewal, and from when on it lacks enough of them.
fn missed(s: &Snapshot) -> (Moment, Moment) {
    let every = s.policy.timers().renew_every;
    let seen = s.now.boot.minus(s.stood_still());
    (seen.plus(every).plus(late(every)), seen.plus(found_gone_after(every)))
}

/// By so much a renewal may be late.
const fn late(every: Span) -> Span {
    Span::from_nanos(every.as_nanos() / 4)
}

/// After so long without a renewal, one of which is due `every`, voters find the holder gone; counted from the last one.
pub fn found_gone_after(every: Span) -> Span {
    every.times(MISSED).plus(late(every))
}

/// How long a voter's last word shows that it still follows us: it sends one each second (`wal_receiver_status_interval`).
const WORD: Span = Span::from_secs(2);

/// As the holder: until when nobody can have been elected in our place. A voter that goes on confirming to us has promised nobody.
pub(super) fn surely_leads_until(s: &Snapshot) -> Moment {
    let Some(sync) = s.leader().and_then(|leader| electorate(s, &leader.record)) else { return Moment::MAX };
    let Some(confirmed) = &s.lease.confirmed else { return Moment::MAX };
    let attached = sync.voters.iter().filter(|voter| s.confirmed.get(voter).is_some_and(|at| s.now.boot.since(*at) < WORD)).count();
    if attached >= sync.k as usize {
        return Moment::MAX;
    }
    let by_word = failsafe::until(s).unwrap_or_default();
    confirmed.sent.plus(s.policy.timers().renew_every.times(MISSED)).max(by_word)
}

/// As a voter: whether we find the holder gone. Looks for it from its first missing renewal on.
pub(super) fn look(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    d.memory.finds_gone = None;
    let record = &leader.record;
    let Some(sync) = electorate(s, record).filter(|_| failsafe::bound(s).is_none() && failsafe::forgotten(s).is_none()) else { return };
    let sees = s.standing.as_ref().is_some_and(|standing| standing.nonce == record.nonce) && s.stood_still() > Span::ZERO;
    if !sees || !sync.voters.contains(&s.myself()) || record.holder.node == s.me.node {
        return;
    }
    let (first, enough) = missed(s);
    if s.now.boot < first {
        d.wake(first);
        return;
    }
    let every = s.policy.timers().renew_every;
    let probed = s.probed.as_ref().filter(|probed| probed.address == record.holder.postgres && probed.at >= first);
    match probed {
        Some(probed) if s.now.boot < probed.at.plus(every.times(2)) => d.wake(probed.at.plus(every.times(2))),
        _ => {
            d.act(s, Action::Probe(record.holder.postgres.clone()));
        }
    }
    // Progress shows once it is looked for: from now on that is often, and what shows at first may be from before.
    d.hurry = true;
    if s.received_at.is_some_and(|at| at > first.plus(LOOKED_FOR)) {
        // It lives, and reaches us: what it lacks is etcd.
        return;
    }
    if s.now.boot < enough {
        d.wake(enough);
        return;
    }
    if probed.is_some_and(|probed| !probed.answered) {
        d.memory.finds_gone = Some(record.nonce.clone());
    }
}

/// From when on a voter may follow this holder although its lease is not over, and why: enough voters find it gone.
pub(super) fn may_follow(s: &Snapshot, d: &Draft, leader: &Stored<LeaderRecord>) -> Option<(Moment, String)> {
    let record = &leader.record;
    let needed = electorate(s, record)?.quorum().electors();
    d.memory.finds_gone.as_ref().filter(|nonce| **nonce == record.nonce)?;
    let count = count(s, &record.nonce);
    let why = format!(
        "{count} voters find {} gone ({needed} have to): no renewal of term {} for {}, and no answer of its PostgreSQL",
        record.holder.node,
        record.term,
        s.stood_still()
    );
    (count >= needed as usize).then(|| (missed(s).1, why))
}

/// How many voters find the holder gone by this very value of its record; we are counted by what this decision found.
fn count(s: &Snapshot, nonce: &Nonce) -> usize {
    let Some(sync) = s.sync() else { return 0 };
    let others = sync.record.voters.iter().filter(|voter| {
        let said = s.etcd.records.members.get(&voter.node).map(|stored| &stored.record);
        **voter != s.myself() && said.is_some_and(|said| said.data == voter.data && said.finds_gone.as_ref() == Some(nonce))
    });
    others.count() + 1
}
