//! How far a replica is behind, from what its primary and it itself say.

use crate::model::{
    instance::{ServerFacts, ServerRole, Walsender},
    lsn::Lsn,
    record::Lag,
};

/// The lag of the replica whose walreceiver bears `application_name`, as its primary sees it.
///
/// `None` where `facts` are not a primary's or no such walsender runs. Of two walsenders with that name, which one of them is a
/// stranger's (EXP-3), the one that is further behind counts.
pub fn seen_by_primary(facts: &ServerFacts, application_name: &str) -> Option<Lag> {
    let ServerRole::Primary { insert, .. } = &facts.role else { return None };
    let own = facts.walsenders.iter().filter(|walsender| walsender.application_name == application_name);
    own.map(|walsender| of_walsender(walsender, *insert)).max_by_key(|lag| lag.flush.unwrap_or(u64::MAX))
}

fn of_walsender(walsender: &Walsender, insert: Lsn) -> Lag {
    let behind = |position: Option<Lsn>| position.map(|lsn| insert.bytes_ahead_of(lsn).get());
    let idle = walsender.replay.is_some_and(|replay| replay >= insert);
    Lag {
        sent: behind(walsender.sent),
        write: behind(walsender.write),
        flush: behind(walsender.flush),
        replay: behind(walsender.replay),
        // PG 15 manual, pg_stat_replication: the last measured lag stays for a while on an idle system.
        replay_ms: if idle { Some(0) } else { walsender.replay_ms },
    }
}

/// The lag of a replica as it sees itself: against the newest position of the primary that it or we know.
///
/// `primary` is that position from elsewhere (`leader`, a member record). What was received is what was flushed: a walreceiver
/// advances its receive position only after a flush. `None` where `facts` are not a standby's.
pub fn seen_by_replica(facts: &ServerFacts, primary: Option<Lsn>) -> Option<Lag> {
    let ServerRole::Standby { receive, replay, receiver, replay_ms, .. } = &facts.role else { return None };
    let heard = receiver.as_ref().and_then(|receiver| receiver.latest_end);
    let newest = primary.into_iter().chain(heard).max();
    let behind = |lsn: Lsn| newest.map(|newest| newest.bytes_ahead_of(lsn).get());
    // After a restart the receive position is unset or a segment's start (EXP-25): what was replayed was received.
    let received = receive.map_or(*replay, |receive| receive.max(*replay));
    Some(Lag { sent: None, write: behind(received), flush: behind(received), replay: behind(*replay), replay_ms: Some(*replay_ms) })
}

/// Both views together: the primary's where it has one, the replica's else.
#[must_use]
pub fn merged(primary: Option<Lag>, replica: Option<Lag>) -> Lag {
    let (primary, replica) = (primary.unwrap_or_default(), replica.unwrap_or_default());
    Lag {
        sent: primary.sent.or(replica.sent),
        write: primary.write.or(replica.write),
        flush: primary.flush.or(replica.flush),
        replay: primary.replay.or(replica.replay),
        replay_ms: primary.replay_ms.or(replica.replay_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        instance::{Receiver, Run},
        node::SystemId,
        timeline::TimelineId,
    };

    fn facts(role: ServerRole, walsenders: Vec<Walsender>) -> ServerFacts {
        let (run, system_id) = (Run(1), SystemId::new(1));
        let (slots, pending_restart) = (Vec::new(), Vec::new());
        ServerFacts { run, version_num: 150_018, system_id, role, walsenders, slots, pending_restart, sync_names: String::new() }
    }

    fn walsender(name: &str, flush: u64, replay: u64) -> Walsender {
        let at = |byte| Some(Lsn::new(byte));
        let (sent, write, flush, replay) = (at(1_000), at(flush), at(flush), at(replay));
        let application_name = name.to_owned();
        Walsender { application_name, streaming: true, sent, write, flush, replay, replay_ms: Some(70), reply: Some(5) }
    }

    #[test]
    fn a_primary_counts_from_its_insert_position_and_trusts_the_slower_of_two_names() {
        let role = ServerRole::Primary { tli: TimelineId::FIRST, insert: Lsn::new(1_000), flush: Lsn::new(990) };
        let facts = facts(role, vec![walsender("n2", 900, 800), walsender("n3", 1_000, 1_000), walsender("n2", 1_000, 1_000)]);
        let lag = seen_by_primary(&facts, "n2").expect("lag");
        assert_eq!(lag, Lag { sent: Some(0), write: Some(100), flush: Some(100), replay: Some(200), replay_ms: Some(70) });
        assert_eq!(seen_by_primary(&facts, "n3").and_then(|lag| lag.replay_ms), Some(0), "an idle system has no lag");
        assert_eq!(seen_by_primary(&facts, "n4"), None);
    }

    #[test]
    fn a_replica_counts_from_the_newest_position_that_anybody_told_it() {
        let receiver = Receiver { streaming: true, sender: None, tli: None, latest_end: Some(Lsn::new(900)) };
        let role = ServerRole::Standby {
            tli: TimelineId::FIRST,
            receive: Some(Lsn::new(850)),
            replay: Lsn::new(800),
            receiver: Some(receiver),
            conninfo: String::new(),
            pause: None,
            replay_ms: 40,
        };
        let facts = facts(role, Vec::new());
        let lag = seen_by_replica(&facts, Some(Lsn::new(1_000))).expect("lag");
        assert_eq!(lag, Lag { sent: None, write: Some(150), flush: Some(150), replay: Some(200), replay_ms: Some(40) });
        assert_eq!(seen_by_replica(&facts, None).and_then(|lag| lag.replay), Some(100));
        assert_eq!(merged(None, Some(lag)), lag);
    }
}
