//! What a sample of a running server says.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pg::Instance;
use pgbaton::{
    clock,
    model::{
        instance::{Pause, RecoveryTarget, Run, ServerFacts, ServerRole},
        moment::Span,
        timeline::TimelineId,
    },
    postgres::{Error, NotReady, Server, Via, lag},
};
use std::sync::Arc;

const LIMIT: Span = Span::from_secs(5);
const RUN: Run = Run(1);

fn server(instance: &Instance) -> Server {
    Server::new(Arc::new(instance.settings()))
}

async fn sample(server: &Server) -> ServerFacts {
    server.probe(RUN, Via::Kept, LIMIT).await.expect("sample")
}

/// Samples until `found` says something.
async fn until<T>(server: &Server, what: &str, mut found: impl FnMut(&ServerFacts) -> Option<T>) -> T {
    let end = clock::boot().plus(Span::from_secs(15));
    loop {
        let facts = sample(server).await;
        if let Some(value) = found(&facts) {
            return value;
        }
        assert!(clock::boot() < end, "{what}: {facts:?}");
        tokio::time::sleep(Span::from_millis(20).to_std()).await;
    }
}

fn pause(facts: &ServerFacts) -> Option<Pause> {
    match &facts.role {
        ServerRole::Standby { pause, .. } => *pause,
        ServerRole::Primary { .. } => None,
    }
}

#[tokio::test]
async fn a_primary_and_its_standby_tell_their_positions_and_each_other() {
    let primary = Instance::primary();
    primary.sql("select pg_create_physical_replication_slot('pgbaton_n2', true)");
    let standby = Instance::standby_of(&primary);
    primary.sql("create table t as select generate_series(1, 1000) as n");
    let (at_primary, at_standby) = (server(&primary), server(&standby));

    let facts = until(&at_primary, "the standby has replayed all", |facts| {
        let ServerRole::Primary { insert, .. } = facts.role else { return None };
        (facts.walsenders.first()?.replay? >= insert).then(|| facts.clone())
    });
    let facts = facts.await;
    let ServerRole::Primary { tli, insert, flush } = facts.role else { panic!("{facts:?}") };
    assert_eq!(tli, TimelineId::FIRST);
    assert!(flush <= insert || flush.bytes_ahead_of(insert).get() < 1 << 20, "{insert} {flush}");
    assert_eq!(
        facts.version_num / 10_000,
        pg::run("postgres", &["--version"]).split([' ', '.']).find_map(|word| word.parse::<u32>().ok()).expect("version")
    );
    assert_eq!(facts.system_id.to_string(), primary.sql("select system_identifier from pg_control_system()"));
    let [walsender] = facts.walsenders.as_slice() else { panic!("{:?}", facts.walsenders) };
    assert!(walsender.streaming && walsender.application_name == "standby" && walsender.reply.is_some_and(|at| at > 0));
    let [slot] = facts.slots.as_slice() else { panic!("{:?}", facts.slots) };
    assert!(slot.name.as_str() == "pgbaton_n2" && !slot.active && !slot.lost && slot.retained > 0, "{slot:?}");
    let lag = lag::seen_by_primary(&facts, "standby").expect("lag");
    assert_eq!((lag.replay, lag.replay_ms), (Some(0), Some(0)));

    sample(&at_standby).await;
    let facts = sample(&at_standby).await;
    let ServerRole::Standby { tli, receive, replay, receiver, conninfo, target, pause, replay_ms } = &facts.role else {
        panic!("{facts:?}")
    };
    let receiver = receiver.as_ref().expect("a walreceiver");
    assert_eq!((*tli, receiver.tli, receiver.streaming), (TimelineId::FIRST, Some(TimelineId::FIRST), true));
    assert_eq!(receiver.sender.as_ref().map(ToString::to_string), Some(format!("127.0.0.1:{}", primary.port)));
    assert_eq!((*receive, *pause, *replay_ms), (Some(*replay), None, 0));
    assert!(conninfo.contains("application_name=standby"), "{conninfo}");
    assert_eq!(*target, RecoveryTarget::Latest);
    assert!(facts.walsenders.is_empty(), "our own question for the timeline is no walsender: {:?}", facts.walsenders);
}

/// EXP-16: the parameter is empty and the walreceiver goes on all the same; only a signal ends it.
#[tokio::test]
async fn a_stream_behind_a_frozen_startup_process_is_cut_by_a_signal() {
    let primary = Instance::primary();
    let standby = Instance::standby_of(&primary);
    let server = server(&standby);
    let startup = standby.process("startup").expect("startup process");
    kill(startup, Signal::SIGSTOP).expect("freeze");
    standby.add_config("primary_conninfo = ''");
    server.reload_sql(RUN, LIMIT).await.expect("reload");
    let conninfo_gone = |facts: &ServerFacts| match &facts.role {
        ServerRole::Standby { conninfo, receiver, .. } if conninfo.is_empty() => Some(receiver.clone()),
        _ => None,
    };
    let receiver = until(&server, "primary_conninfo is empty", conninfo_gone).await;
    assert!(receiver.is_some_and(|receiver| receiver.streaming), "the frozen process has not seen the reload");

    let begin = clock::boot();
    let cut = server.cut_stream(RUN, &pg::configuration(), LIMIT).await.expect("cut");
    assert_eq!(cut, pgbaton::postgres::replication::Cut::BySignal);
    assert!(clock::boot().since(begin) < Span::from_secs(1), "{}", clock::boot().since(begin));
    assert_eq!(standby.process("walreceiver"), None);
    kill(startup, Signal::SIGCONT).expect("thaw");
}

#[tokio::test]
async fn a_stream_is_cut_by_the_reload_alone_where_everything_is_well() {
    let primary = Instance::primary();
    let standby = Instance::standby_of(&primary);
    standby.add_config("primary_conninfo = ''");
    let cut = server(&standby).cut_stream(RUN, &pg::configuration(), LIMIT).await.expect("cut");
    assert_eq!(cut, pgbaton::postgres::replication::Cut::ByReload);
    assert_eq!(standby.process("walreceiver"), None);
    assert_eq!(primary.sql("select count(*) from pg_stat_replication"), "0");
}

/// EXP-14: a pause by parameters is told apart from one that somebody asked for.
#[tokio::test]
async fn a_pause_by_parameters_is_told_from_one_that_was_asked_for() {
    let mut primary = Instance::primary();
    let standby = Instance::standby_of(&primary);
    let server = server(&standby);
    standby.sql("select pg_wal_replay_pause()");
    assert_eq!(until(&server, "paused", pause).await, Pause::Requested);
    standby.sql("select pg_wal_replay_resume()");
    until(&server, "resumed", |facts| pause(facts).is_none().then_some(())).await;

    primary.stop(Signal::SIGINT);
    primary.add_config("max_connections = 150");
    primary.start();
    let reason = until(&server, "paused", |facts| pause(facts).filter(|pause| *pause == Pause::Parameters)).await;
    assert_eq!(reason, Pause::Parameters);
}

/// Scenario 151: after a promotion upstream, the timeline is the one that is replayed; a former primary's run says nothing of it.
#[tokio::test]
async fn a_promoted_standby_tells_its_new_timeline() {
    let primary = Instance::primary();
    let standby = Instance::standby_of(&primary);
    let server = server(&standby);
    assert!(matches!(sample(&server).await.role, ServerRole::Standby { tli: TimelineId::FIRST, .. }));
    standby.sql("select pg_promote()");
    let tli = until(&server, "promoted", |facts| match facts.role {
        ServerRole::Primary { tli, .. } => Some(tli),
        ServerRole::Standby { .. } => None,
    });
    assert_eq!(tli.await.get(), 2);
}

/// Scenario 125: clients have taken every place; the kept session has its own.
#[tokio::test]
async fn a_saturated_server_is_still_sampled() {
    let mut primary = Instance::initialised();
    primary.add_config("max_connections = 5\nsuperuser_reserved_connections = 1\nmax_wal_senders = 2");
    primary.start();
    let server = server(&primary);
    sample(&server).await;
    primary.sql("create role app login");
    let port = primary.port.to_string();
    let client = || {
        let mut psql = pg::as_postgres(pg::bin_dir().join("psql"));
        psql.args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "app", "-d", "postgres", "-c", "select pg_sleep(20)"]);
        psql.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("psql")
    };
    let mut clients: Vec<_> = (0..5).map(|_| client()).collect();
    pg::wait_until("no place is left for others", Span::from_secs(15), || {
        let error = primary.psql(&["-h", "127.0.0.1", "-U", "app", "-d", "postgres", "-c", "select 1"], &[]).err();
        let full = error.is_some_and(|error| error.contains("remaining connection slots") || error.contains("too many clients"));
        if !full {
            // This question itself may have taken the place of one of them.
            clients.push(client());
        }
        full
    });
    assert!(matches!(sample(&server).await.role, ServerRole::Primary { .. }));
    for client in &mut clients {
        let _ = client.kill();
        let _ = client.wait();
    }
}

/// Scenarios 124 and 127: a kept session answers while the postmaster is frozen, a fresh one does not; and a new run drops both.
#[tokio::test]
async fn a_frozen_postmaster_is_seen_by_a_fresh_connection_alone() {
    let mut primary = Instance::primary();
    let server = server(&primary);
    sample(&server).await;
    let session = "select string_agg(pid::text, ' ') from pg_stat_activity where application_name = 'pgbaton'";
    let kept = primary.sql(session);
    kill(primary.pid(), Signal::SIGSTOP).expect("freeze");
    sample(&server).await;
    let fresh = server.probe(RUN, Via::Fresh, Span::from_millis(300)).await;
    assert!(matches!(fresh, Err(Error::Timeout { .. })), "{fresh:?}");
    kill(primary.pid(), Signal::SIGCONT).expect("thaw");

    sample(&server).await;
    // The thawed postmaster takes in whoever knocked meanwhile, and finds him gone.
    pg::wait_until("one session, and the fresh one is gone", LIMIT, || primary.sql(session) == kept);
    server.probe(Run(2), Via::Kept, LIMIT).await.expect("sample");
    pg::wait_until("another run has another session", LIMIT, || !primary.sql(session).contains(&kept));

    // The backend of the kept session outlives a killed postmaster for a while: it must not speak for the next run.
    primary.stop(Signal::SIGKILL);
    let next = server.probe(Run(3), Via::Kept, LIMIT).await;
    assert!(matches!(next, Err(Error::NotListening { .. } | Error::Gone { .. })), "{next:?}");
}

/// A server that hangs is asked over and over: each question must not cost it a connection.
#[tokio::test]
async fn samples_of_a_hanging_backend_do_not_pile_up() {
    let primary = Instance::primary();
    let server = server(&primary);
    sample(&server).await;
    let pid = primary.sql("select pid from pg_stat_activity where application_name = 'pgbaton'").parse().expect("pid");
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("freeze");
    for _ in 0..5 {
        let result = server.probe(RUN, Via::Kept, Span::from_millis(100)).await;
        assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    }
    assert_eq!(primary.sql("select count(*) from pg_stat_activity where application_name = 'pgbaton'"), "1");
    server.probe(RUN, Via::Fresh, LIMIT).await.expect("the server itself is well");
    kill(Pid::from_raw(pid), Signal::SIGCONT).expect("thaw");
    sample(&server).await;
    assert_eq!(primary.sql("select pid from pg_stat_activity where application_name = 'pgbaton'"), pid.to_string());
}

#[tokio::test]
async fn a_server_that_lets_nobody_in_says_why() {
    let mut primary = Instance::primary();
    let at_primary = server(&primary);
    // A backup without its standby.signal that needs WAL nobody gives it: it waits, not consistent.
    let mut standby = Instance::copy_of(&primary);
    standby.add_config("restore_command = 'sleep 3; false'");
    std::fs::remove_dir_all(standby.data.join("pg_wal")).expect("wal");
    std::fs::create_dir_all(standby.data.join("pg_wal/archive_status")).expect("wal");
    pg::give(&standby.data.join("pg_wal"));
    pg::give(&standby.data.join("pg_wal/archive_status"));
    let mut command = pg::as_postgres(pg::bin_dir().join("postgres"));
    let socket = format!("unix_socket_directories={}", standby.home().join("run/postgres").display());
    command.arg("-D").arg(&standby.data).args([
        "-c",
        &format!("port={}", standby.port),
        "-c",
        &socket,
        "-c",
        "listen_addresses=",
        "-c",
        "dynamic_shared_memory_type=mmap",
    ]);
    standby.start_by(command);
    let at_standby = server(&standby);
    pg::wait_until_async("the postmaster answers", LIMIT, || async {
        !matches!(at_standby.probe(RUN, Via::Kept, LIMIT).await, Err(Error::NotListening { .. }))
    })
    .await;
    let starting = at_standby.probe(RUN, Via::Kept, LIMIT).await;
    assert!(matches!(starting, Err(Error::NotReady { why: NotReady::StartingUp | NotReady::NotConsistent, .. })), "{starting:?}");

    primary.stop(Signal::SIGINT);
    let gone = at_primary.probe(RUN, Via::Kept, LIMIT).await;
    assert!(matches!(gone, Err(Error::NotListening { .. })), "{gone:?}");
}
