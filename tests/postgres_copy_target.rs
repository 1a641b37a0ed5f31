//! What PostgreSQL writes into the history of a standby that is promoted on its way to a newer timeline (ADR 23).

#![expect(clippy::expect_used, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::sys::signal::Signal;
use pg::{Instance, give, wait_until};
use pgbaton::{
    model::{
        instance::Whole,
        lsn::Lsn,
        moment::Span,
        timeline::{Fork, TimelineHistory, TimelineId},
    },
    postgres::{history, scan, segment::Layout, short},
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

/// A standby that ended while its walreceiver was filling the segment of the fork anew: under the newer timeline's name lies less of it than under
/// the former one's.
fn half_way() -> (Instance, Instance, Lsn, std::path::PathBuf) {
    let mut primary = Instance::primary();
    let (mut standby, other) = (Instance::standby_of(&primary), Instance::standby_of(&primary));
    let from: Lsn = standby.sql("select redo_lsn from pg_control_checkpoint()").parse().expect("position");
    primary.sql("create table t as select g from generate_series(1, 10000) g");
    let sent: Lsn = primary.sql("select pg_current_wal_lsn()").parse().expect("position");
    wait_until("the standbys have replayed", LIMIT, || replayed(&standby) >= sent && replayed(&other) >= sent);
    primary.stop(Signal::SIGQUIT);
    standby.stop(Signal::SIGQUIT);
    other.sql("select pg_promote()");
    other.sql("insert into t select generate_series(1, 1000)");
    let wal = |instance: &Instance| instance.data.join("pg_wal");
    let layout = Layout::of(&wal(&other)).expect("read").expect("layout");
    let histories = history::read_all(&wal(&other)).expect("histories");
    let fork = history::of(&histories, tli(2)).expect("history").last().expect("fork");
    let number = layout.segment_number(fork.at);
    let received = 5 * layout.page.get();
    assert!(fork.at.get() - layout.segment_start(number).get() > received, "{}", fork.at);
    let name = layout.segment_name(tli(2), number);
    let mut segment = fs::read(wal(&other).join(&name)).expect("segment");
    let (len, received) = (segment.len(), usize::try_from(received).expect("small"));
    segment.truncate(received);
    segment.resize(len, 0);
    let short = wal(&standby).join(name);
    let history = wal(&standby).join(tli(2).history_file());
    fs::write(&short, segment).expect("segment");
    fs::write(&history, &histories[&tli(2)]).expect("history");
    [&short, &history].into_iter().for_each(|path| give(path));
    (standby, other, from, short)
}

#[tokio::test]
async fn a_segment_of_the_fork_that_was_only_begun_is_put_aside_and_streamed_anew() {
    let (mut standby, other, from, short) = half_way();
    standby.add_config(&format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'", other.port));
    standby.launch();
    wait_until("recovery dies of it", LIMIT, || {
        standby.log().contains("belongs to timeline 1, but previous recovered WAL file came from timeline 2")
    });
    standby.stop(Signal::SIGQUIT);
    let settings = standby.settings();
    let whole = scan::whole(&settings, from, ONE, LIMIT).await.expect("scan");
    assert_eq!(whole.tli, ONE, "nothing of timeline 2 is here");
    let put = short::set_aside(&settings, whole).await.expect("put aside");
    assert_eq!(put, [short.with_extension("pgbaton-short")]);
    assert!(put[0].is_file() && !short.exists());
    standby.start();
    wait_until("it streams", LIMIT, || other.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1");
    wait_until("it has the rows", LIMIT, || standby.sql("select count(*) from t") == "11000");
}

#[tokio::test]
async fn a_segment_of_the_fork_that_holds_as_much_as_the_former_one_stays() {
    let (standby, _other, from, newer) = half_way();
    let settings = standby.settings();
    let whole = scan::whole(&settings, from, ONE, LIMIT).await.expect("scan");
    let name = newer.file_name().and_then(|name| name.to_str()).expect("name").replacen("00000002", "00000001", 1);
    fs::copy(newer.with_file_name(name), &newer).expect("copy");
    assert!(short::set_aside(&settings, whole).await.expect("compare").is_empty());
    // Of an end that is not the fork it says nothing.
    fs::write(&newer, [0; 8192]).expect("write");
    let before = Whole { lsn: from, ..whole };
    assert!(short::set_aside(&settings, before).await.expect("compare").is_empty());
    assert_eq!(short::set_aside(&settings, whole).await.expect("compare").len(), 1);
}
