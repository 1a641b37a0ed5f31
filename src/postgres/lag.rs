//! How far a replica is behind, from what its primary says.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{instance::Run, node::SystemId, timeline::TimelineId};

    fn facts(role: ServerRole, walsenders: Vec<Walsender>) -> ServerFacts {
        let (run, system_id) = (Run(1), SystemId::new(1));
        let (slots, pending_restart) = (Vec::new(), Vec::new());
        ServerFacts {
            run,
            version_num: 150_018,
            system_id,
            role,
            walsenders,
            slots,
            pending_restart,
            sync_names: String::new(),
            weak_commits: None,
            waiting: None,
            oldest_wal: None,
        }
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
}
