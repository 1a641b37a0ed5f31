//! What PostgreSQL writes into the history of a standby that is promoted on its way to a newer timeline (ADR 23).

#![expect(clippy::expect_used, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::sys::signal::Signal;
use pg::{Instance, give, wait_until};
use pgbaton::{
    model::{
        lsn::Lsn,
        moment::Span,
        timeline::{Fork, TimelineHistory, TimelineId},
    },
    postgres::history,
};
use std::fs;

const LIMIT: Span = Span::from_secs(20);
const ONE: TimelineId = TimelineId::FIRST;

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).expect("timeline")
}

/// Two standbys that nobody sends anything any more, with the history file of a timeline 2 that left timeline 1 beyond their end at one of
/// them, which aims at it; and that point.
fn on_its_way() -> (Instance, Instance, Lsn) {
    let mut primary = Instance::primary();
    let (standby, other) = (Instance::standby_of(&primary), Instance::standby_of(&primary));
    primary.sql("create table t as select g from generate_series(1, 1000) g");
    let sent: Lsn = primary.sql("select pg_current_wal_lsn()").parse().expect("position");
    wait_until("the standbys have replayed", LIMIT, || replayed(&standby) >= sent && replayed(&other) >= sent);
    primary.stop(Signal::SIGQUIT);
    let beyond = Lsn::new(sent.get() + 0x10_0000);
    let file = standby.data.join("pg_wal").join(tli(2).history_file());
    fs::write(&file, format!("1\t{beyond}\tno recovery target specified\n")).expect("write");
    give(&file);
    wait_until("the standby aims at timeline 2", LIMIT, || standby.log().contains("new target timeline is 2"));
    (standby, other, beyond)
}

/// Points `standby` at `primary`.
fn follow(standby: &Instance, primary: &Instance) {
    standby.add_config(&format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'", primary.port));
    standby.sql("select pg_reload_conf()");
}

fn replayed(standby: &Instance) -> Lsn {
    standby.sql("select pg_last_wal_replay_lsn()").parse().expect("position")
}

/// The history of timeline 3, once the standby was promoted to it, and where it was.
fn promoted(standby: &Instance) -> (TimelineHistory, Lsn) {
    let at = replayed(standby);
    standby.sql("select pg_promote()");
    let histories = history::read_all(&standby.data.join("pg_wal")).expect("histories");
    (history::of(&histories, tli(3)).expect("history"), at)
}

#[test]
fn a_standby_that_aims_at_a_newer_timeline_names_it_as_the_parent_and_nobody_can_follow() {
    let (standby, other, beyond) = on_its_way();
    let (history, at) = promoted(&standby);
    assert_eq!(history.forks(), [Fork { parent: ONE, at: beyond }, Fork { parent: tli(2), at }]);
    assert_eq!(history.leaves(ONE), Some(at), "all the same it left timeline 1 where it was");
    // For the segment in which timeline 1 was left a walsender looks under the name of the timeline that came next.
    follow(&other, &standby);
    let wanted = "requested WAL segment 00000002";
    wait_until("the walsender misses a segment of timeline 2", LIMIT, || other.log().contains(wanted));
}

/// So a claimant is started before its promotion.
#[test]
fn a_standby_that_was_started_on_its_own_timeline_alone_names_that_and_others_follow() {
    let (mut standby, other, _) = on_its_way();
    standby.stop(Signal::SIGINT);
    standby.add_config("recovery_target_timeline = '1'\nprimary_conninfo = ''");
    standby.start();
    let (history, at) = promoted(&standby);
    assert_eq!(history.forks(), [Fork { parent: ONE, at }]);
    follow(&other, &standby);
    wait_until("the other one streams", LIMIT, || standby.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1");
}
