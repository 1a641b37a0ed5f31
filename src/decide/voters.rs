//! Who should confirm commits, and so elect: as many as are needed and one more, of those that keep up (protocol 1.8).
//!
//! R = |V| − k + 1 of the voters have to promise, so each voter more than k + 1 is one more that must not be lost together with the primary.
//! Who is chosen stays, until it is silent, barred, or falls behind while another one is there to take its place; and one of the chosen can lead
//! wherever one can: whom only nodes tagged `no_failover` elect nobody follows.

use super::{decision::Seat, draft::Draft, membership, snapshot::Snapshot};
use crate::model::{
    instance::{ServerFacts, ServerRole},
    lsn::Bytes,
    moment::{Moment, Span},
    node::Replica,
    policy::SyncSpread,
    quorum::Quorum,
    record::{SyncMode, SyncRecord},
};
use std::collections::BTreeSet;

/// For so long a replica has to be fit before it takes the place of another one, and slow before it loses its own.
const SEASONED: Span = Span::from_secs(10);

/// A voter that is so many times `max_lag` behind is slow.
const SLOW: u64 = 4;

/// A replica that could vote.
struct Candidate {
    replica: Replica,
    votes: bool,
    /// It stands in the names that were written last, and votes once that is proven.
    named: bool,
    slow: bool,
    /// Its agent has said nothing for a while: it confirms, and could not elect anybody.
    mute: bool,
    seasoned: bool,
    /// It is not tagged `no_failover`.
    leads: bool,
    behind: Bytes,
    zone: String,
}

/// Who should confirm: `quorum_standbys` of those that are chosen.
pub(super) fn wanted(s: &Snapshot, d: &mut Draft, sync: &SyncRecord, facts: &ServerFacts, mode: SyncMode, since: Moment) -> Quorum {
    let fit = fit(s, d, sync, facts, since);
    let most = u32::try_from(fit.len()).unwrap_or(u32::MAX);
    let needed = s.policy.quorum_standbys;
    if mode == SyncMode::StrictQuorum && most < needed && matches!(facts.role, ServerRole::Primary { .. }) {
        // Commits wait for those who are missing.
        d.alarm("no-voter", format!("{most} replicas can confirm commits, and {needed} have to: with strict-quorum they wait"));
        if sync.k >= needed {
            return Quorum::new(needed, sync.voters.iter().cloned());
        }
        // Fewer than that have nothing to confirm, so that nothing rests on who is missing among them: nobody waits for its vote.
        let there = Quorum::new(sync.k, sync.voters.iter().filter(|voter| fit.contains(voter)).cloned());
        return if there.is_nobody() { sync.quorum() } else { there };
    }
    let candidates = weigh(s, d, sync, facts, fit);
    let apart = (s.policy.sync_spread == SyncSpread::Zone).then_some(s.me.zone.as_str());
    Quorum::new(needed, choose(needed as usize, apart, candidates))
}

/// Voters until they are silent or barred, and whoever has caught up, is ready to be promoted, and has an agent that says so: nobody else's tags
/// are known, and no promise comes of him.
fn fit(s: &Snapshot, d: &mut Draft, sync: &SyncRecord, facts: &ServerFacts, since: Moment) -> BTreeSet<Replica> {
    let rows = |replica: &Replica| {
        let name = replica.application_name();
        // One that is only starting may be the next one of a receiver whose former walsender has not noticed its end.
        facts.walsenders.iter().filter(move |row| row.streaming && row.application_name == name)
    };
    let mut members: BTreeSet<Replica> = BTreeSet::new();
    for voter in &sync.voters {
        if membership::barred_from_voting(s, voter) || !membership::is_heard(s, d, voter, since) {
            continue;
        }
        if rows(voter).count() > 1 {
            d.alarm(
                "duplicate-walsender",
                format!("several receivers call themselves {}: what they confirm counts for nothing", voter.application_name()),
            );
            continue;
        }
        members.insert(voter.clone());
    }
    for row in facts.walsenders.iter().filter(|row| row.streaming) {
        let Some(replica) = Replica::from_application_name(&row.application_name) else { continue };
        let joins = behind(facts, &replica).is_some_and(|behind| behind <= s.policy.max_lag)
            && rows(&replica).count() == 1
            && membership::is_recent(s, &replica)
            && membership::answers(s, &replica)
            && membership::is_present_life(s, &replica)
            && !membership::barred_from_voting(s, &replica);
        if joins {
            members.insert(replica);
        }
    }
    members
}

/// How far a replica's flush is behind what was inserted here; `None` where it does not stream, or we are no primary.
fn behind(facts: &ServerFacts, replica: &Replica) -> Option<Bytes> {
    let ServerRole::Primary { insert, .. } = &facts.role else { return None };
    let name = replica.application_name();
    let row = facts.walsenders.iter().find(|row| row.streaming && row.application_name == name)?;
    row.flush.map(|flush| insert.bytes_ahead_of(flush))
}

/// How each of them has done, and for how long.
fn weigh(s: &Snapshot, d: &mut Draft, sync: &SyncRecord, facts: &ServerFacts, fit: BTreeSet<Replica>) -> Vec<Candidate> {
    d.memory.seats.retain(|seat| fit.contains(&seat.replica));
    let named = named(s, facts);
    let limit = Bytes::new(s.policy.max_lag.get().saturating_mul(SLOW));
    let candidates = fit.into_iter().map(|replica| {
        let behind = behind(facts, &replica);
        let votes = sync.voters.contains(&replica);
        if !d.memory.seats.iter().any(|seat| seat.replica == replica) {
            d.memory.seats.push(Seat { replica: replica.clone(), fit_since: s.now.boot, slow_since: None, mute_since: None });
        }
        let lags = behind.is_none_or(|behind| behind > limit);
        let member = s.etcd.records.members.get(&replica.node).map(|member| &member.record);
        let zone = member.map(|member| member.zone.clone()).unwrap_or_default();
        let mut candidate = Candidate {
            votes,
            named: named.contains(&replica),
            slow: false,
            mute: false,
            seasoned: false,
            leads: member.is_none_or(|member| !member.tags.no_failover),
            behind: behind.unwrap_or(Bytes::new(u64::MAX)),
            zone,
            replica,
        };
        for seat in d.memory.seats.iter_mut().filter(|seat| seat.replica == candidate.replica) {
            seat.slow_since = lags.then(|| seat.slow_since.unwrap_or(s.now.boot));
            seat.mute_since = member.is_none().then(|| seat.mute_since.unwrap_or(s.now.boot));
            candidate.mute = seat.mute_since.is_some_and(|since| s.now.boot.since(since) >= SEASONED);
            candidate.slow = seat.slow_since.is_some_and(|since| s.now.boot.since(since) >= SEASONED);
            candidate.seasoned = s.now.boot.since(seat.fit_since) >= SEASONED;
        }
        candidate
    });
    candidates.collect()
}

/// Those of whom the server was last told to wait. A proof takes a while (two checkpoints, when nobody was waited for before): who is a few
/// bytes ahead meanwhile must not begin it anew, again and again.
fn named(s: &Snapshot, facts: &ServerFacts) -> BTreeSet<Replica> {
    let present = s.memory.names_of(s.guard().map(|guard| &guard.incarnation), Some(facts.run));
    present.and_then(|names| names.in_force.newest.as_ref()).map(|newest| newest.members().clone()).unwrap_or_default()
}

/// One seat after the other goes to the best of those who are left: as many as are needed, and one more. Whoever could not elect has a seat only
/// where too few are left without it. `apart`: zones count, and this is the primary's.
fn choose(needed: usize, apart: Option<&str>, mut left: Vec<Candidate>) -> Vec<Replica> {
    if left.iter().filter(|candidate| !candidate.mute).count() >= needed {
        left.retain(|candidate| !candidate.mute);
    }
    let mut chosen: Vec<Candidate> = Vec::new();
    while chosen.len() <= needed && !left.is_empty() {
        let best = left.iter().enumerate().min_by_key(|(_, candidate)| rank(apart, &chosen, candidate)).map(|(place, _)| place);
        let Some(best) = best else { break };
        chosen.push(left.swap_remove(best));
    }
    chosen.into_iter().map(|candidate| candidate.replica).collect()
}

/// The lower the better. One who can lead comes first, if only with the first seat. Whom nobody has watched long enough takes an empty seat alone,
/// and a slow voter gives its seat up to who keeps up.
fn rank(apart: Option<&str>, chosen: &[Candidate], of: &Candidate) -> (bool, u8, u8, bool, u8, Bytes, Replica) {
    let led = chosen.iter().any(|other| other.leads) || (of.leads && (of.votes || of.seasoned));
    let worth = match (of.votes, of.slow, of.seasoned) {
        (true, false, _) | (false, _, true) => 0,
        (true, true, _) => 1,
        (false, _, false) => 2,
    };
    let crowded = match apart {
        Some(ours) if !of.zone.is_empty() && of.zone == ours => 2,
        Some(_) if !of.zone.is_empty() => u8::from(chosen.iter().any(|other| other.zone == of.zone)),
        _ => 0,
    };
    let (before, behind) = match (of.votes, of.named) {
        (true, _) => (0, Bytes::new(0)),
        (false, true) => (1, Bytes::new(0)),
        (false, false) => (2, of.behind),
    };
    (!led, worth, crowded, !of.leads, before, behind, of.replica.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `v` votes, `w` is in the names that were written, `s` is slow, `f` is fresh, `x` never leads, `m` is mute; its name and its zone.
    fn candidate(text: &str) -> Candidate {
        let [flags, node, zone, behind] = text.split(' ').collect::<Vec<_>>().try_into().expect("four words");
        Candidate {
            replica: Replica::new(node.parse().expect("name"), "000000aa".parse().expect("id")),
            votes: flags.contains('v'),
            named: flags.contains('w'),
            slow: flags.contains('s'),
            seasoned: !flags.contains('f'),
            leads: !flags.contains('x'),
            mute: flags.contains('m'),
            behind: Bytes::new(behind.parse().expect("bytes")),
            zone: zone.trim_matches('-').to_owned(),
        }
    }

    fn chosen(apart: Option<&str>, of: &[&str]) -> Vec<String> {
        let mut names: Vec<String> =
            choose(1, apart, of.iter().map(|text| candidate(text)).collect()).into_iter().map(|replica| replica.node.to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_more_than_has_to_confirm_is_chosen_and_whoever_votes_stays() {
        assert_eq!(chosen(None, &["- n2 - 9", "- n3 - 0", "- n4 - 5"]), ["n3", "n4"]);
        assert_eq!(chosen(None, &["v n2 - 9", "- n3 - 0", "v n4 - 5"]), ["n2", "n4"]);
        assert_eq!(chosen(None, &["v n2 - 9"]), ["n2"]);
    }

    #[test]
    fn a_slow_voter_makes_way_for_one_that_has_kept_up_for_a_while() {
        assert_eq!(chosen(None, &["vs n2 - 900", "v n3 - 0", "f n4 - 0"]), ["n2", "n3"]);
        assert_eq!(chosen(None, &["vs n2 - 900", "v n3 - 0", "- n4 - 0"]), ["n3", "n4"]);
        assert_eq!(chosen(None, &["vs n2 - 900", "vs n3 - 900"]), ["n2", "n3"], "a slow one is better than none");
    }

    #[test]
    fn an_empty_seat_goes_to_whoever_is_there() {
        assert_eq!(chosen(None, &["v n2 - 0", "f n4 - 0"]), ["n2", "n4"]);
    }

    #[test]
    fn whoever_has_no_agent_gives_its_seat_up_unless_too_few_are_left() {
        assert_eq!(chosen(None, &["v n2 - 0", "vm n3 - 0"]), ["n2"]);
        assert_eq!(chosen(None, &["v n2 - 0", "vm n3 - 0", "- n4 - 9"]), ["n2", "n4"]);
        assert_eq!(chosen(None, &["vm n2 - 0", "vm n3 - 0"]), ["n2", "n3"]);
    }

    #[test]
    fn one_of_the_voters_can_lead_wherever_one_can() {
        assert_eq!(chosen(None, &["vx n2 - 0", "vx n3 - 0", "- n4 - 9"]), ["n2", "n4"]);
        assert_eq!(chosen(None, &["vx n2 - 0", "vx n3 - 0", "f n4 - 0"]), ["n2", "n3"], "not before it has kept up for a while");
        assert_eq!(chosen(None, &["vx n2 - 0", "x n3 - 0", "vs n4 - 900"]), ["n2", "n4"], "a slow one is better than none");
        assert_eq!(chosen(None, &["vx n2 - 0", "v n3 - 0", "- n4 - 9"]), ["n3", "n4"], "and two are better than one");
        assert_eq!(chosen(None, &["vx n2 - 0", "vx n3 - 0"]), ["n2", "n3"]);
        assert_eq!(
            chosen(Some("a"), &["v n2 a 0", "vx n3 b 0", "vx n4 c 0"]),
            ["n2", "n3"],
            "one in the primary's zone is better than none"
        );
        assert_eq!(chosen(Some("a"), &["v n2 b 0", "- n3 b 0", "x n4 c 0"]), ["n2", "n4"], "the other seat goes by zones first");
    }

    #[test]
    fn whoever_was_named_stays_until_it_is_proven() {
        assert_eq!(chosen(None, &["w n2 - 9", "- n3 - 0", "w n4 - 5"]), ["n2", "n4"]);
        assert_eq!(chosen(None, &["fw n2 - 9", "f n3 - 0", "fw n4 - 5"]), ["n2", "n4"]);
        assert_eq!(chosen(None, &["v n2 - 9", "- n3 - 0", "w n4 - 5"]), ["n2", "n4"], "who votes comes first all the same");
    }

    #[test]
    fn voters_are_outside_the_primarys_zone_and_apart_from_each_other() {
        assert_eq!(chosen(Some("a"), &["v n2 a 0", "- n3 b 0", "- n4 c 0"]), ["n3", "n4"]);
        assert_eq!(chosen(Some("a"), &["v n2 b 0", "v n3 b 0", "- n4 c 0"]), ["n2", "n4"]);
        assert_eq!(chosen(Some("a"), &["v n2 b 0", "v n3 b 0", "f n4 c 0"]), ["n2", "n3"], "not before it has kept up for a while");
        assert_eq!(chosen(Some("a"), &["- n2 a 0", "- n3 b 0"]), ["n2", "n3"], "one in its zone is better than none");
        assert_eq!(chosen(Some(""), &["v n2 - 0", "v n3 - 0", "- n4 - 0"]), ["n2", "n3"], "without zones nothing changes");
        assert_eq!(chosen(None, &["v n2 a 0", "v n3 a 0", "- n4 c 0"]), ["n2", "n3"], "sync_spread = any");
    }
}
