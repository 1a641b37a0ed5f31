//! Too many automatic failovers within a time stop them, until an operator has looked (protocol 1.12, *anti-flap*).
//!
//! They are counted in `leader` itself, as ages on the holders' clocks: no time of day decides, and no restart of an agent forgets.

use super::{draft::Draft, operator, snapshot::Snapshot};
use crate::model::{
    instance::Process,
    moment::{Moment, Span},
    record::{Failovers, LeaderRecord, Stored},
    request::Request,
};

/// The first restart in place after a stop waits for so long, each further one twice as long.
const FIRST_REST: Span = Span::from_secs(1);

/// No restart in place waits longer.
const LONGEST_REST: Span = Span::from_secs(60);

/// A server that lived for so long is not one that keeps ending.
const FORGOTTEN: Span = Span::from_secs(600);

/// Whether there were too many, acknowledged or not.
pub(super) fn was_stopped(leader: &Stored<LeaderRecord>) -> bool {
    leader.record.failovers.as_ref().is_some_and(|failovers| failovers.stopped)
}

/// Whether another node than the last primary may not claim by itself.
pub(super) fn is_stopped(s: &Snapshot) -> bool {
    let acknowledged = operator::wish(s).is_some_and(|intent| intent.record.request == Request::Acknowledge);
    s.policy.anti_flap.failovers > 0 && !acknowledged && s.leader().is_some_and(was_stopped)
}

/// The failovers that the next revision of a record tells of.
pub(super) fn aged(s: &Snapshot, record: &LeaderRecord) -> Option<Failovers> {
    let ours = s.lease.confirmed.as_ref().filter(|attempt| attempt.nonce == record.nonce);
    let passed = ours.map_or(Span::ZERO, |attempt| s.now.boot.since(attempt.sent));
    record.failovers.as_ref()?.later(passed, s.policy.anti_flap.within)
}

/// The same with the failover that has just come to its end, if nobody asked for it and the former primary was another node.
pub(super) fn counted(s: &Snapshot, record: &LeaderRecord) -> Option<Failovers> {
    let before = aged(s, record);
    let story = s.memory.claim.as_ref().filter(|story| story.term == record.term);
    let wanted = story.is_some_and(|story| story.order.is_some() || story.from.as_ref() == Some(&s.me.node));
    let most = s.policy.anti_flap.failovers as usize;
    if wanted || most == 0 {
        return before;
    }
    let mut failovers = before.unwrap_or_default();
    failovers.ages.push(Span::ZERO);
    let surplus = failovers.ages.len().saturating_sub(most);
    failovers.ages.drain(..surplus);
    failovers.stopped |= failovers.ages.len() == most;
    Some(failovers)
}

/// Tells everybody, on every node, that it takes an operator.
pub(super) fn tell(s: &Snapshot, d: &mut Draft) {
    if is_stopped(s) {
        let limit = s.policy.anti_flap;
        d.alarm(
            "failovers-stopped",
            format!(
                "{} automatic failovers within {}: no other node takes over until `pgbaton acknowledge`; the last primary restarts in place",
                limit.failovers, limit.within
            ),
        );
    }
}

/// Not before this moment the last primary restarts in place: more and more rarely while failovers are stopped.
pub(super) fn rests_until(s: &Snapshot, d: &mut Draft) -> Option<Moment> {
    let Some(Process::Empty { last: Some(last) }) = s.process().filter(|_| is_stopped(s)) else { return None };
    let guard = s.guard().map(|guard| guard.incarnation.clone())?;
    let key = (guard, last.run);
    let before = d.memory.restarts.clone();
    if let Some((_, _, until)) = before.as_ref().filter(|(of, ..)| *of == key) {
        return Some(*until);
    }
    let soon = before.filter(|(_, _, until)| s.now.boot.since(*until) < FORGOTTEN);
    let count = soon.map_or(0, |(_, count, _)| count.saturating_add(1));
    let until = s.now.boot.plus(FIRST_REST.times(1 << count.min(6)).min(LONGEST_REST));
    d.memory.restarts = Some((key, count, until));
    Some(until)
}
