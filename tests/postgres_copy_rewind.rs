//! A data directory that went another way is rewound, after what it holds alone was counted and archived.

#![expect(clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pg::{Instance, give, wait_until};
use pgbaton::{
    clock,
    model::{
        instance::{ControlState, DataDir, DiskFacts, RewindMark},
        lsn::Lsn,
        moment::Span,
        node::DataIncarnation,
        timeline::{Fork, TimelineId},
    },
    postgres::{
        Error, Settings, disk,
        history::{self, When},
        peer,
        rewind::{self, Options, Rewound, SourceState},
        scan,
        segment::Layout,
    },
};
use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt};

const LIMIT: Span = Span::from_secs(30);

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).expect("timeline")
}

fn settings(instance: &Instance) -> Settings {
    let mut settings = instance.settings();
    settings.roles.rewind.name = "postgres".to_owned();
    settings.base_config = Some(instance.data.join("postgresql.conf"));
    settings
}

fn options(source: &Instance) -> Options {
    Options { source: source.settings().advertise, restore_by: None, life: life(), limit: LIMIT }
}

fn life() -> DataIncarnation {
    "000000a1".parse().expect("an incarnation")
}

fn unfinished(settings: &Settings) -> bool {
    rewind::mark(settings).expect("read") == Some(RewindMark::Unfinished)
}

async fn facts(settings: &Settings) -> DiskFacts {
    match disk::inspect(settings).await {
        DataDir::Present(facts) => facts,
        other => panic!("{other:?}"),
    }
}

/// Waits until `standby` has replayed all that `primary` has written. After a backup's switch of segments the one stands at
/// the segment's start and the other behind its header: the same boundary, by two numbers.
fn wait_replayed(standby: &Instance, primary: &Instance) {
    let sent: Lsn = primary.sql("select pg_current_wal_insert_lsn()").parse().expect("position");
    wait_until("all is replayed", LIMIT, || {
        let replayed = standby.sql("select pg_last_wal_replay_lsn()").parse::<Lsn>();
        replayed.is_ok_and(|lsn| Layout::DEFAULT.boundary(lsn) >= sent)
    });
}

fn rows(instance: &Instance) -> String {
    instance.sql("select count(*), sum(i) from t")
}

/// A former primary that crashed with three transactions that its promoted standby does not have; and where they parted.
async fn diverged() -> (Instance, Instance, Fork) {
    let mut old = Instance::primary();
    old.add_config("wal_keep_size = 256MB");
    old.sql("select pg_reload_conf()");
    old.sql("create table t as select g as i, repeat('x', 500) as s from generate_series(1, 5000) g");
    old.sql("select pg_create_physical_replication_slot('stale', true)");
    let new = Instance::standby_of(&old);
    wait_replayed(&new, &old);
    new.sql("select pg_promote()");
    for i in 1..=3 {
        old.sql(&format!("insert into t select {i}, 'lost' from generate_series(1, 2000)"));
    }
    old.sql("begin; insert into t values (4, 'aborted'); rollback");
    old.stop(Signal::SIGQUIT);
    new.sql("insert into t values (-1, 'new')");
    new.sql("checkpoint");
    let fork =
        history::of(&history::read_all(&new.data.join("pg_wal")).expect("histories"), tli(2)).expect("history").last().expect("fork");
    (old, new, fork)
}

/// Recovers `old` on its own WAL alone and stops it again.
async fn recover(old: &mut Instance, whole: Lsn) {
    fs::write(old.data.join("standby.signal"), "").expect("write");
    old.add_config("primary_conninfo = ''\nrecovery_target_timeline = 'current'");
    old.start();
    wait_until("replay reaches the end", LIMIT, || {
        let replayed: Lsn = old.sql("select pg_last_wal_replay_lsn()").parse().expect("position");
        Layout::DEFAULT.boundary(replayed) >= whole
    });
    old.stop(Signal::SIGINT);
}

/// Lets it follow `new` and compares what both hold.
fn follow(old: &mut Instance, new: &Instance) {
    old.add_config(&format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'\nrecovery_target_timeline = 'latest'", new.port));
    old.start();
    wait_until("it streams", LIMIT, || new.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1");
    wait_replayed(old, new);
    assert_eq!(rows(old), rows(new));
}

/// Scenarios 137, 145, 147, 149, 157; EXP-27: pg_rewind cannot recover its target itself.
#[tokio::test]
async fn a_crashed_primary_is_recovered_counted_rewound_and_follows() {
    let (mut old, new, fork) = diverged().await;
    let settings = settings(&old);
    let whole = scan::whole(&settings, fork.at, fork.parent, LIMIT).await.expect("scan").lsn;
    let report = rewind::diverged(&settings, fork.parent, fork.at, LIMIT).await.expect("report");
    assert_eq!((report.from, report.to, report.transactions), (fork.at, whole, 3));
    assert!(report.bytes.get() > 6_000 * 50, "{report:?}");
    // As it is, pg_rewind refuses it, and says so before it touches anything.
    let error = rewind::run(&settings, &options(&new), |_| ()).await.expect_err("not recovered");
    assert!(matches!(&error, Error::Rewind { touched: false, .. }), "{error}");
    assert!(!unfinished(&settings));
    fs::write(old.data.join("standby.signal"), "").expect("write");
    let single = pg::as_postgres(pg::bin_dir().join("postgres")).args(["--single", "-D"]).arg(&old.data).arg("template1").output();
    let single = String::from_utf8_lossy(&single.expect("postgres").stderr).into_owned();
    assert!(single.contains("standby mode is not supported by single-user servers"), "{single}");

    recover(&mut old, whole).await;
    assert_eq!(facts(&settings).await.control.state, ControlState::ShutDownInRecovery);
    let source = peer::ask(&settings, &new.settings().advertise, &settings.roles.rewind, LIMIT).await.expect("ask");
    assert_eq!(rewind::source_state(&source, tli(2)), SourceState::Ready { tli: tli(2) });
    assert_eq!(rewind::source_state(&source, tli(3)), SourceState::NotCheckpointed { checkpoint: tli(2) });
    let ledger = history::read_all(&new.data.join("pg_wal")).expect("histories");
    history::write(&settings, &ledger, When::Running).await.expect("write");
    old.add_config("# ours");
    let mut seen = 0;
    // Scenario 145: the WAL of the last common checkpoint is in the archive alone.
    let archive = old.home().join("archive");
    fs::create_dir(&archive).expect("directory");
    give(&archive);
    let layout = Layout::of(&old.data.join("pg_wal")).expect("read").expect("layout");
    let segment = layout.segment_name(fork.parent, layout.segment_number(fork.at) - 1);
    fs::rename(old.data.join("pg_wal").join(&segment), archive.join(&segment)).expect("rename");
    let error = rewind::run(&settings, &options(&new), |_| ()).await.expect_err("no WAL");
    assert!(matches!(&error, Error::Rewind { touched: false, .. }), "{error:?}");
    let config = old.home().join("managed.conf");
    fs::write(&config, format!("restore_command = 'cp {}/%f \"%p\"'\n", archive.display())).expect("write");
    give(&config);
    let options = Options { restore_by: Some(config), ..options(&new) };
    let done = rewind::run(&settings, &options, |progress| seen = seen.max(progress.total.get())).await.expect("rewind");
    assert!(matches!(done, Rewound::Done { fork: Some(found), checkpoint: Some(_) } if found == fork), "{done:?}");
    assert!(seen > 0);
    assert_eq!(rewind::mark(&settings).expect("read"), Some(RewindMark::Done { life: life() }));
    assert!(fs::read_to_string(old.data.join("postgresql.conf")).expect("read").contains("# ours"), "the configuration is this node's");
    assert_eq!(fs::read_dir(old.data.join("pg_replslot")).expect("read").count(), 0, "no stale slots");
    assert_eq!(fs::read_dir(&settings.state_dir).expect("read").count(), 1, "the mark is all that is left in the state directory");
    assert!(facts(&settings).await.standby_signal);
    follow(&mut old, &new);
}

/// Scenario 142: killed half-way it is found so, and nothing but another rewind or a clone helps. Often only the clone: the
/// WAL by which a rewind finds the last common checkpoint is among the files that the first one was overwriting.
#[tokio::test]
async fn a_rewind_that_was_killed_is_known_until_another_one_or_a_clone() {
    let (mut old, new, fork) = diverged().await;
    let settings = settings(&old);
    let whole = scan::whole(&settings, fork.at, fork.parent, LIMIT).await.expect("scan").lsn;
    recover(&mut old, whole).await;
    old.add_config("# ours");
    let target = old.data.display().to_string();
    let kill_it = |_| {
        let pids = fs::read_dir("/proc").expect("proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        for pid in pids {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("pg_rewind") && line.contains(&target) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
            }
        }
    };
    let error = rewind::run(&settings, &options(&new), kill_it).await.expect_err("killed");
    assert!(matches!(&error, Error::Rewind { touched: true, .. }), "{error}");
    assert!(unfinished(&settings));
    // The source is away for the second attempt: the directory stays as doubtful as it was.
    let mut away = options(&new);
    away.source = "127.0.0.1:1".parse().expect("address");
    let error = rewind::run(&settings, &away, |_| ()).await.expect_err("no source");
    assert!(matches!(&error, Error::Rewind { touched: true, .. }), "{error}");
    assert!(unfinished(&settings));
    match rewind::run(&settings, &options(&new), |_| ()).await {
        Ok(done) => {
            assert!(matches!(done, Rewound::Done { .. }) && !unfinished(&settings));
            assert!(fs::read_to_string(old.data.join("postgresql.conf")).expect("read").contains("# ours"));
            follow(&mut old, &new);
        }
        Err(error) => {
            assert!(matches!(&error, Error::Rewind { touched: true, .. }) && unfinished(&settings), "{error}");
            rewind::forget_unfinished(&settings).await.expect("forget, after a clone");
            assert!(!unfinished(&settings));
        }
    }
}

/// EXP-7: two promotions to the same id at the same point. pg_rewind is blind to it, and so is the disk: only the ledger and
/// the nodes' own word of whom they promoted tell them apart.
#[tokio::test]
async fn pg_rewind_does_not_see_two_promotions_to_one_id() {
    let mut old = Instance::primary();
    old.sql("create table t(i int)");
    let mut one = Instance::standby_of(&old);
    let other = Instance::standby_of(&old);
    old.stop(Signal::SIGINT);
    let mut forks = Vec::new();
    for (instance, value) in [(&one, 1), (&other, 2)] {
        instance.sql("select pg_promote()");
        instance.sql(&format!("insert into t values ({value})"));
        instance.sql("checkpoint");
        let histories = history::read_all(&instance.data.join("pg_wal")).expect("histories");
        forks.push(history::of(&histories, tli(2)).expect("history"));
    }
    assert_eq!(forks[0], forks[1]);
    one.stop(Signal::SIGINT);
    let settings = settings(&one);
    let done = rewind::run(&settings, &options(&other), |_| ()).await.expect("rewind");
    assert_eq!(done, Rewound::NotNeeded);
    assert!(!unfinished(&settings));
    one.start();
    assert_ne!(one.sql("select i from t"), other.sql("select i from t"));
}

/// EXP-30: a replica with an apply delay has more than it replayed. Recovered to its end it is found to have diverged.
#[tokio::test]
async fn a_delayed_replica_is_recovered_to_its_end_before_the_rewind() {
    let mut old = Instance::primary();
    old.add_config("wal_keep_size = 256MB");
    old.sql("select pg_reload_conf()");
    old.sql("create table t(i int, s text)");
    let winner = Instance::standby_of(&old);
    let mut delayed = Instance::standby_of(&old);
    wait_until("both have the table", LIMIT, || [&winner, &delayed].iter().all(|it| it.try_sql("select count(*) from t").is_ok()));
    delayed.add_config("recovery_min_apply_delay = '1h'");
    delayed.sql("select pg_reload_conf()");
    // The delay holds from the next record on.
    old.sql("insert into t values (0, 'before')");
    winner.sql("select pg_promote()");
    old.sql("insert into t select g, 'lost' from generate_series(1, 10) g");
    let acknowledged: Lsn = old.sql("select pg_current_wal_insert_lsn()").parse().expect("position");
    wait_until("the delayed one has received it", LIMIT, || {
        delayed.sql("select pg_last_wal_receive_lsn()").parse::<Lsn>().is_ok_and(|lsn| lsn >= acknowledged)
    });
    winner.sql("checkpoint");
    old.stop(Signal::SIGQUIT);
    let replayed: Lsn = delayed.sql("select pg_last_wal_replay_lsn()").parse().expect("position");
    delayed.stop(Signal::SIGQUIT);
    assert!(replayed < acknowledged);
    let settings = settings(&delayed);
    let histories = history::read_all(&winner.data.join("pg_wal")).expect("histories");
    let fork = history::of(&histories, tli(2)).expect("history").last().expect("fork");
    // EXP-25: what it acknowledged is on its disk, in neither number that it told.
    let whole = scan::whole(&settings, replayed, tli(1), LIMIT).await.expect("scan").lsn;
    assert!(whole >= acknowledged && fork.at < whole, "{whole} {acknowledged} {fork:?}");
    let report = rewind::diverged(&settings, tli(1), fork.at, LIMIT).await.expect("report");
    assert!(report.transactions >= 1, "{report:?}");
    delayed.add_config("recovery_min_apply_delay = 0");
    recover(&mut delayed, whole).await;
    history::write(&settings, &histories, When::Running).await.expect("write");
    let done = rewind::run(&settings, &options(&winner), |_| ()).await.expect("rewind");
    assert!(matches!(done, Rewound::Done { .. }), "{done:?}");
    follow(&mut delayed, &winner);
}

/// Scenario 146: with the shell's semantics, oldest first, histories before all; the first failure ends it.
#[tokio::test]
async fn waiting_segments_are_archived_before_they_are_lost() {
    let instance = Instance::initialised();
    let settings = settings(&instance);
    let pg_wal = instance.data.join("pg_wal");
    let archive = instance.home().join("archive");
    fs::create_dir(&archive).expect("directory");
    give(&archive);
    let files = ["000000010000000000000007", "000000010000000000000006", "00000002.history"];
    for file in files {
        fs::write(pg_wal.join(file), file).expect("write");
        fs::write(pg_wal.join(format!("archive_status/{file}.ready")), "").expect("write");
        give(&pg_wal.join(format!("archive_status/{file}.ready")));
    }
    fs::write(pg_wal.join("archive_status/000000010000000000000005.done"), "").expect("write");
    let log = archive.join("order").display().to_string();
    let each = Span::from_secs(5);
    let hang = rewind::archive_ready_segments(&settings, "sleep 30; true %p", Span::from_millis(200), LIMIT).await.expect("hang");
    assert_eq!((hang.done.len(), hang.left.len()), (0, 3));
    assert!(hang.why.expect("why").contains("killed after 200ms"));
    let command = format!("echo %f >> {log} && test %f != {} && cp %p {}/%f", files[0], archive.display());
    let archived = rewind::archive_ready_segments(&settings, &command, each, LIMIT).await.expect("archive");
    assert_eq!(archived.done, [files[2], files[1]]);
    assert_eq!(archived.left, [files[0]]);
    assert!(archived.why.is_some());
    assert_eq!(fs::read_to_string(archive.join(files[1])).expect("read"), files[1]);
    assert_eq!(fs::read_to_string(&log).expect("read"), format!("{}\n{}\n{}\n", files[2], files[1], files[0]));
    assert!(pg_wal.join(format!("archive_status/{}.done", files[1])).exists());
    let rest = rewind::archive_ready_segments(&settings, "cp %p /dev/null", each, LIMIT).await.expect("archive");
    assert_eq!((rest.done, rest.left, rest.why), (vec![files[0].to_owned()], vec![], None));
}

/// EXP-4, with what it does not say: a placeholder that is the newest history stops a *starting* standby, so it is taken
/// away before a start and put back before a promotion.
#[tokio::test]
async fn burnt_ids_are_skipped_by_a_promotion_and_do_not_stop_a_start() {
    let primary = Instance::primary();
    primary.sql("create table t(i int)");
    let mut standby = Instance::standby_of(&primary);
    let (settings, pg_wal) = (settings(&standby), standby.data.join("pg_wal"));
    let ledger: BTreeMap<_, _> = [2, 3].map(|number| (tli(number), "# burnt\n".to_owned())).into();
    history::write(&settings, &ledger, When::Running).await.expect("write");
    standby.stop(Signal::SIGINT);
    history::write(&settings, &ledger, When::BeforeStart).await.expect("prepare");
    standby.start();
    let streams = || primary.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1";
    wait_until("it streams", LIMIT, streams);
    history::write(&settings, &ledger, When::Running).await.expect("write");
    // It looks for new timelines when its stream breaks, and is not lured.
    primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    wait_until("it streams again", LIMIT, || {
        streams() && standby.log().contains("new timeline 3 is not a child of database system timeline 1")
    });
    standby.sql("select pg_promote()");
    let histories = history::read_all(&pg_wal).expect("histories");
    assert_eq!(history::of(&histories, tli(4)).expect("history").last().map(|fork| fork.parent), Some(tli(1)));
    // Burnt ids below a real one do not matter to a start.
    standby.stop(Signal::SIGINT);
    fs::write(standby.data.join("standby.signal"), "").expect("write");
    history::write(&settings, &ledger, When::BeforeStart).await.expect("prepare");
    assert_eq!(history::read_all(&pg_wal).expect("histories").len(), 3);
    standby.start();
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");
}

/// A stopped directory with a configuration of the operator's, and settings whose `pg_rewind` is a script: it overwrites that
/// configuration once, and refuses the directory after that, as the true one does (the control file says recovery, then).
fn with_a_pg_rewind_that_works_once() -> (Instance, Settings) {
    let instance = Instance::initialised();
    instance.add_config("# ours");
    let programs = instance.home().join("programs");
    fs::create_dir(&programs).expect("directory");
    give(&programs);
    let script = format!(
        "#!/bin/sh\ncd {}\necho run >> runs\n\
         if [ $(wc -l < runs) -gt 1 ]; then echo 'pg_rewind: fatal: target server must be shut down cleanly' >&2; exit 1; fi\n\
         echo '# theirs' > {}/postgresql.conf\n\
         echo 'pg_rewind: rewinding from last common checkpoint at 0/2000060 on timeline 1'\necho 'pg_rewind: Done!'\n",
        programs.display(),
        instance.data.display()
    );
    let program = programs.join("pg_rewind");
    fs::write(&program, script).expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    give(&program);
    let mut settings = settings(&instance);
    settings.bin_dir = programs;
    (instance, settings)
}

fn runs(settings: &Settings) -> usize {
    fs::read_to_string(settings.bin_dir.join("runs")).unwrap_or_default().lines().count()
}

/// Something stands in the way of `standby.signal`, which is written between the end of pg_rewind and the flush.
async fn interrupted_in_the_finish(instance: &Instance, settings: &Settings) {
    let in_the_way = instance.data.join("standby.signal");
    fs::create_dir(&in_the_way).expect("directory");
    let error = rewind::run(settings, &options(instance), |_| ()).await.expect_err("not finished");
    assert!(matches!(&error, Error::File { .. }), "{error}");
    assert!(unfinished(settings) && runs(settings) == 1, "nothing may be started on it");
    fs::remove_dir(&in_the_way).expect("remove");
}

#[tokio::test]
async fn a_rewind_that_was_interrupted_after_pg_rewind_is_only_finished() {
    let (instance, settings) = with_a_pg_rewind_that_works_once();
    interrupted_in_the_finish(&instance, &settings).await;
    assert!(rewind::has_ended(&settings, &life()) && !rewind::has_ended(&settings, &"000000a2".parse().expect("a life")));
    for _ in 0..2 {
        // The second time all is done already, and the mark that says so stays.
        let done = rewind::run(&settings, &options(&instance), |_| ()).await.expect("finish");
        assert_eq!(done, Rewound::Done { fork: None, checkpoint: None });
        assert_eq!(rewind::mark(&settings).expect("read"), Some(RewindMark::Done { life: life() }));
        assert!(instance.data.join("standby.signal").is_file());
        assert!(fs::read_to_string(instance.data.join("postgresql.conf")).expect("read").contains("# ours"));
        assert_eq!(fs::read_dir(&settings.state_dir).expect("read").count(), 1, "the mark is all that is left in the state directory");
    }
    assert_eq!(runs(&settings), 1);
}

/// What was in memory is gone with the machine's boot, or with a write that failed; and it was done for one life of the data.
#[tokio::test]
async fn a_rewind_whose_flush_can_no_longer_be_done_is_half_a_rewind() {
    let other_boot = |settings: &Settings| {
        fs::write(settings.state_dir.join("rewind"), format!("ended {} 7c1e2c1a-0001-4a2b-8c3d-000000000001", life())).expect("write");
    };
    let other_life = |settings: &Settings| {
        let path = settings.state_dir.join("rewind");
        let text = fs::read_to_string(&path).expect("read").replace("000000a1", "000000a2");
        fs::write(&path, text).expect("write");
    };
    let cases: [&dyn Fn(&Settings); 2] = [&other_boot, &other_life];
    for case in cases {
        let (instance, settings) = with_a_pg_rewind_that_works_once();
        interrupted_in_the_finish(&instance, &settings).await;
        case(&settings);
        assert!(unfinished(&settings) && !rewind::has_ended(&settings, &life()));
        let error = rewind::run(&settings, &options(&instance), |_| ()).await.expect_err("again");
        assert!(matches!(&error, Error::Rewind { touched: true, .. }), "{error}");
        assert!(unfinished(&settings) && runs(&settings) == 2);
    }
    let (instance, settings) = with_a_pg_rewind_that_works_once();
    fs::remove_dir(instance.data.join("pg_tblspc")).expect("remove");
    let error = rewind::run(&settings, &options(&instance), |_| ()).await.expect_err("no flush");
    assert!(matches!(&error, Error::File { doing: "make durable", .. }), "{error}");
    assert!(unfinished(&settings) && !rewind::has_ended(&settings, &life()));
}

/// Not for a minute, whatever the rewind was given; and what goes on by itself, or is done by the next attempt, counts.
#[tokio::test]
async fn the_flush_has_the_time_that_the_rewind_was_given() {
    let (instance, settings) = with_a_pg_rewind_that_works_once();
    // Opening it waits for a reader: a disk that takes its time.
    let slow = instance.data.join("standby.signal.pgbaton-tmp");
    nix::unistd::mkfifo(&slow, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let begin = clock::boot();
    let error = rewind::run(&settings, &Options { limit: Span::from_secs(4), ..options(&instance) }, |_| ()).await.expect_err("slow");
    let took = clock::boot().since(begin);
    let was = (unfinished(&settings), rewind::has_ended(&settings, &life()));
    // The one that waits there ends, by an error: this is no file.
    drop(fs::File::open(&slow).expect("open"));
    wait_until("the first attempt has ended", LIMIT, || !slow.exists());
    assert!(error.to_string().starts_with("work on") && took < Span::from_secs(20), "{took} {error}");
    assert_eq!(was, (true, true));
    let done = rewind::run(&settings, &options(&instance), |_| ()).await.expect("finish");
    assert_eq!((done, runs(&settings)), (Rewound::Done { fork: None, checkpoint: None }, 1));
}
