//! Verbs that a guard has not read when whoever asked gives them up: they are not done later.

use super::host::{Host, MODES, PATIENCE, agent, arm, eventually, signal};
use pgbaton::{
    clock,
    guard::client::{Error, Guard, query_status},
    model::{
        instance::{GuardStatus, Process, StartAs},
        moment::Span,
        term::Term,
    },
};
use std::{io::Write, os::unix::net::UnixStream};
use tokio::sync::mpsc;

/// How long a verb may take where no answer is awaited.
const SHORT: Span = Span::from_millis(300);

/// Stops `host`'s guard alone, and waits until it stands still.
async fn stop(host: &Host) {
    let stat = format!("/proc/{}/stat", host.guard_pid());
    signal(host.guard_pid(), "STOP");
    let stopped = async || std::fs::read_to_string(&stat).ok()?.contains(") T ").then_some(());
    eventually("the guard stands still", PATIENCE, stopped).await;
}

async fn starts_unanswered(host: &Host, guard: &Guard, mut changes: mpsc::Receiver<GuardStatus>) {
    let answer = guard.start(StartAs::Standby, host.command(), Term::new(1), SHORT).await;
    assert!(matches!(answer, Err(Error::Timeout(_))), "{answer:?}");
    assert!(guard.has_ended(), "nobody may count on what was known");
    // A receiver that ends says that the connection is closed.
    while tokio::time::timeout(PATIENCE.to_std(), changes.recv()).await.expect("the session ends").is_some() {}
    assert!(matches!(guard.status(PATIENCE).await, Err(Error::Gone)));
}

/// The same agent comes back while the guard stands still: the guard is not known until it says what is, and does nothing of before.
#[tokio::test]
async fn a_start_that_a_stopped_guard_has_not_read_is_not_done_for_the_next_session() {
    let mut host = Host::new(MODES[0]);
    host.start_guard().await;
    let (guard, changes) = host.session().await;
    stop(&host).await;
    starts_unanswered(&host, &guard, changes).await;
    // One that was given up as well; then one that goes on.
    assert!(matches!(Guard::connect(&host.socket(), agent(), SHORT).await, Err(Error::Timeout(_))));
    let socket = host.socket();
    let (session, ()) = tokio::join!(Guard::connect(&socket, agent(), PATIENCE), async {
        tokio::task::yield_now().await;
        signal(host.guard_pid(), "CONT");
    });
    let (guard, _changes) = session.expect("a session");
    let status = guard.status(PATIENCE).await.expect("status");
    assert_eq!((status.process, status.starting), (Process::Empty { last: None }, false));
    assert_eq!(status.term, Term::ZERO, "not one verb of before was heard");
}

/// Nobody comes back: the agent has died.
#[tokio::test]
async fn a_start_that_a_stopped_guard_has_not_read_is_not_done_when_its_agent_is_gone() {
    let mut host = Host::new(MODES[0]);
    host.start_guard().await;
    let (guard, changes) = host.session().await;
    stop(&host).await;
    starts_unanswered(&host, &guard, changes).await;
    signal(host.guard_pid(), "CONT");
    let status = query_status(&host.socket(), PATIENCE).await.expect("status");
    assert_eq!((status.process, status.starting, status.term), (Process::Empty { last: None }, false, Term::ZERO));
}

/// What only ends PostgreSQL is done for one that has gone, too; what comes after it in the same breath is not.
#[tokio::test]
async fn a_kill_is_done_for_one_that_has_gone() {
    let host = Host::with_postgres(MODES[0]).await;
    let (guard, changes) = host.primary(1).await;
    let armed = arm(&guard, 1, Span::from_secs(3_600)).await;
    drop((guard, changes));
    let name = agent();
    let mut stream = UnixStream::connect(host.socket()).expect("connect");
    stream.write_all(format!("{{\"session\":{{\"protocol\":1,\"agent\":\"{name}\"}}}}\n").as_bytes()).expect("greet");
    std::io::Read::read_exact(&mut stream, &mut [0]).expect("a welcome");
    stop(&host).await;
    let disarm = format!("{{\"id\":1,\"agent\":\"{name}\",\"term\":1,\"verb\":{{\"disarm\":{{\"paused\":true}}}}}}\n");
    let kill = format!("{{\"id\":2,\"agent\":\"{name}\",\"term\":1,\"verb\":\"kill\"}}\n");
    stream.write_all((disarm.clone() + &kill + &disarm).as_bytes()).expect("ask");
    drop(stream);
    assert!(clock::boot() < armed);
    signal(host.guard_pid(), "CONT");
    host.dies(PATIENCE).await;
    let status = query_status(&host.socket(), PATIENCE).await.expect("status");
    assert_eq!(status.armed.map(|armed| armed.until), Some(armed), "the deadline stands");
}
