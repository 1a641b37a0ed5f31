//! `synchronous_standby_names` on real servers: seen in force, process by process (EXP-24), and who confirms.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::sys::signal::{Signal, kill};
use pg::{Instance, configuration};
use pgbaton::{
    model::{
        instance::{Run, StartAs},
        lsn::Lsn,
        moment::Span,
    },
    postgres::{ConfigFiles, Configuration, Error, Server, Settings},
};
use std::sync::Arc;

const LIMIT: Span = Span::from_secs(5);
const RUN: Run = Run(1);
const NOBODY: &str = "ANY 1 (\"nobody\")";

/// A primary by the managed files, and what changes its names.
struct Primary {
    instance: Instance,
    settings: Settings,
    server: Server,
}

impl Primary {
    async fn start(names: &str) -> Self {
        let mut instance = Instance::initialised();
        let settings = instance.settings();
        instance.start_managed(&settings, &named(names), StartAs::Primary).await;
        let server = Server::new(Arc::new(settings.clone()));
        Self { instance, settings, server }
    }

    async fn reload(&self, names: &str) {
        ConfigFiles::new(Arc::new(self.settings.clone())).configure(&named(names)).await.expect("configure");
        self.server.reload_sql(RUN, LIMIT).await.expect("reload");
    }

    fn end_of_wal(&self) -> Lsn {
        self.instance.sql("select pg_current_wal_insert_lsn()").parse().expect("a position")
    }
}

fn named(names: &str) -> Configuration {
    Configuration { sync_names: names.to_owned(), ..configuration() }
}

#[tokio::test]
async fn names_are_seen_in_a_new_session_and_the_mark_lies_behind_them() {
    let primary = Primary::start("").await;
    let before = primary.end_of_wal();
    primary.reload(NOBODY).await;
    // The mark waits for nobody, though all commits would from now on.
    let mark = primary.server.show_names(NOBODY, false, LIMIT, LIMIT).await.expect("shown").expect("a primary marks its log");
    assert!(before < mark && mark <= primary.end_of_wal(), "{before} {mark}");
    let wrong = primary.server.show_names("", false, Span::from_millis(300), LIMIT).await;
    assert!(matches!(&wrong, Err(Error::Refused(text)) if text.contains("nobody")), "{wrong:?}");
}

/// EXP-24: a backend waits for nobody until the checkpointer has taken a non-empty setting in. It is stopped here, as a busy disk may hold it up.
#[tokio::test]
async fn names_are_in_force_only_once_the_checkpointer_has_come_round() {
    let primary = Primary::start("").await;
    let checkpointer = primary.instance.process("checkpointer").expect("a checkpointer");
    kill(checkpointer, Signal::SIGSTOP).expect("stop it");
    primary.reload(NOBODY).await;
    primary.server.show_names(NOBODY, false, LIMIT, LIMIT).await.expect("new sessions show the names");
    // And yet a commit waits for nobody: what was shown alone proves nothing.
    primary.instance.sql("create table t ()");
    let early = primary.server.show_names(NOBODY, true, LIMIT, Span::from_millis(500)).await;
    assert!(early.is_err(), "two checkpoints were made without a checkpointer: {early:?}");
    kill(checkpointer, Signal::SIGCONT).expect("let it go on");
    primary.server.show_names(NOBODY, true, LIMIT, LIMIT).await.expect("shown, and two checkpoints");
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| primary.instance.try_sql("create table u ()"));
        let waiting = "from pg_stat_activity where wait_event = 'SyncRep'";
        pg::wait_until("a commit waits", LIMIT, || primary.instance.sql(&format!("select count(*) {waiting}")) == "1");
        // EXP-2: a wait that is cancelled ends like a commit.
        primary.instance.sql(&format!("select pg_cancel_backend(pid) {waiting}"));
        commit.join().expect("no panic").expect("it is committed here");
    });
}

#[tokio::test]
async fn a_walsender_that_is_ended_is_gone() {
    let primary = Instance::primary();
    let server = Server::new(Arc::new(primary.settings()));
    let standby = Instance::standby_of(&primary);
    let sender = "select application_name || ' ' || pid from pg_stat_replication where state = 'streaming'";
    pg::wait_until("it streams", LIMIT, || !primary.sql(sender).is_empty());
    let before = primary.sql(sender);
    let name = before.split(' ').next().expect("a name").to_owned();
    server.end_walsenders(&["somebody_else".to_owned()], LIMIT).await.expect("nobody");
    assert_eq!(primary.sql(sender), before);
    server.end_walsenders(&[name], LIMIT).await.expect("ended");
    pg::wait_until("another walsender serves it", LIMIT, || {
        let now = primary.sql(sender);
        !now.is_empty() && now != before
    });
    drop(standby);
}

/// The read barrier: while replicas have not confirmed what a server came up with, members and the agent come in and nobody else.
#[tokio::test]
async fn clients_are_kept_out_until_the_doors_open() {
    let mut instance = Instance::initialised();
    let settings = instance.settings();
    let open = Configuration { hba: vec!["host all all all trust".to_owned()], ..configuration() };
    let closed = Configuration { members_only: true, ..open.clone() };
    instance.start_managed(&settings, &closed, StartAs::Primary).await;
    let server = Server::new(Arc::new(settings.clone()));
    server.migrate(LIMIT).await.expect("the agent is let in");
    instance.sql("create role visitor login");
    let visits = || instance.psql(&["-h", "127.0.0.1", "-U", "visitor", "-d", "postgres", "-c", "select 1"], &[]);
    let refused = visits().expect_err("a client");
    assert!(refused.contains("pg_hba.conf rejects connection"), "{refused}");
    ConfigFiles::new(Arc::new(settings)).configure(&open).await.expect("configure");
    server.reload_sql(RUN, LIMIT).await.expect("reload");
    pg::wait_until("clients come in", LIMIT, || visits().is_ok());
}
