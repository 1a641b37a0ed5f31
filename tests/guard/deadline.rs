//! What dies, and when.

use super::host::{Host, MODES, PATIENCE, arm, emptied, eventually, signal};
use pgbaton::{
    clock,
    model::{
        instance::{Process, StartAs, StopMode},
        moment::Span,
        policy::PROMOTION_MARGIN,
        term::Term,
    },
};

/// Scenario 5, 24 and EXP-18: nobody of ours has to run for it.
#[tokio::test]
async fn at_the_deadline_everything_dies() {
    for mode in MODES {
        let mut host = Host::with_postgres(mode).await;
        let (guard, _changes) = host.primary(1).await;
        let client = host.busy(30);
        eventually("the backend is busy", PATIENCE, async || (host.busy_backends() == 1).then_some(())).await;
        let until = arm(&guard, 1, Span::from_millis(300)).await;
        host.dies(Span::from_secs(3)).await;
        let late = clock::boot().since(until);
        assert!(clock::boot() >= until, "{mode:?}: not before the deadline");
        assert!(late < Span::from_millis(400), "{mode:?}: dead {late} after the deadline");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&host.guard_exit().await), Some(9));
        assert!(!client.end(), "{mode:?}: the client has lost its connection");
    }
}

/// Scenario 5: guard, keeper, postmaster and backends stopped.
#[tokio::test]
async fn at_the_deadline_everything_dies_though_all_are_stopped() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (guard, _changes) = host.primary(1).await;
        let until = arm(&guard, 1, Span::from_millis(500)).await;
        let mut all: Vec<i32> = host.postgres().into_iter().collect();
        all.extend(host.keepers());
        all.push(host.guard_pid());
        all.into_iter().for_each(|pid| signal(pid, "STOP"));
        assert!(clock::boot() < until, "stopped in time");
        host.dies(Span::from_secs(3)).await;
        let late = clock::boot().since(until);
        assert!(late < Span::from_millis(400), "{mode:?}: dead {late} after the deadline");
    }
}

/// Scenario 6: an act that comes too late cannot extend a life.
#[tokio::test]
async fn a_deadline_that_is_past_when_it_arrives_fires_at_once() {
    for mode in MODES {
        let mut host = Host::with_postgres(mode).await;
        let (guard, _changes) = host.primary(1).await;
        let past = clock::boot().minus(Span::from_millis(1));
        let answer = guard.arm(Term::new(1), past, pgbaton::guard::client::ArmedBy::OwnSwap, PATIENCE).await;
        assert!(matches!(answer, Err(pgbaton::guard::client::Error::Gone)), "{answer:?}");
        host.dies(Span::from_millis(400)).await;
        host.guard_exit().await;
    }
}

/// Scenario 25.
#[tokio::test]
async fn postgres_does_not_outlive_a_guard_that_is_killed() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (_guard, _changes) = host.primary(1).await;
        let _client = host.busy(30);
        signal(host.guard_pid(), "KILL");
        host.dies(Span::from_secs(1)).await;
    }
}

#[tokio::test]
async fn postgres_does_not_outlive_its_keeper_and_the_guard_says_when_it_is_gone() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (_guard, mut changes) = host.primary(1).await;
        let client = host.busy(30);
        eventually("the backend is busy", PATIENCE, async || (host.busy_backends() == 1).then_some(())).await;
        host.keepers().into_iter().for_each(|pid| signal(pid, "KILL"));
        let (status, _) = emptied(&mut changes).await;
        assert_eq!(host.postgres().len(), 0, "{mode:?}: empty means empty");
        assert!(matches!(status.process, Process::Empty { last: Some(last) } if !last.wanted));
        assert!(!client.end(), "it has lost its connection");
    }
}

/// EXP-1 and scenario 10: a busy backend goes on and commits after its postmaster's death.
#[tokio::test]
async fn a_killed_postmaster_is_reported_empty_only_when_its_backends_are_dead() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (guard, mut changes) = host.primary(1).await;
        let client = host.busy(2);
        eventually("the backend is busy", PATIENCE, async || (host.busy_backends() == 1).then_some(())).await;
        signal(host.postmaster(), "KILL");
        let (status, _) = emptied(&mut changes).await;
        assert_eq!(host.postgres().len(), 0, "{mode:?}: empty means empty");
        let Process::Empty { last: Some(last) } = status.process else { unreachable!() };
        assert!(last.how.starts_with("signal 9") && !last.wanted, "{last:?}");
        assert!(!client.end(), "the late statement was not acknowledged");
        guard.start(StartAs::Primary, host.command(), Term::new(1), PATIENCE).await.expect("start again");
        host.serves().await;
        assert_eq!(host.sql("select to_regclass('late') is null"), "t", "{mode:?}: nothing was committed");
    }
}

/// The same where the keeper sleeps: then nobody kills the backends before the guard does.
#[tokio::test]
async fn empty_means_empty_though_the_keeper_is_stopped() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (_guard, mut changes) = host.primary(1).await;
        let client = host.busy(30);
        eventually("the backend is busy", PATIENCE, async || (host.busy_backends() == 1).then_some(())).await;
        host.keepers().into_iter().for_each(|pid| signal(pid, "STOP"));
        signal(host.postmaster(), "KILL");
        emptied(&mut changes).await;
        assert_eq!(host.postgres().len(), 0, "{mode:?}: empty means empty");
        assert!(!client.end());
    }
}

#[tokio::test]
async fn a_stop_that_takes_too_long_becomes_a_kill() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (guard, mut changes) = host.primary(1).await;
        signal(host.postmaster(), "STOP");
        let due = clock::boot().plus(Span::from_millis(200));
        guard.stop(StopMode::Fast, due, Term::new(1), PATIENCE).await.expect("stop");
        let (status, heard) = emptied(&mut changes).await;
        assert!(heard >= due && heard.since(due) < Span::from_millis(400), "{mode:?}: {}", heard.since(due));
        assert!(matches!(status.process, Process::Empty { last: Some(last) } if last.wanted));
    }
}

#[tokio::test]
async fn kill_kills_stopped_processes_too() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (guard, mut changes) = host.primary(1).await;
        host.postgres().into_iter().chain(host.keepers()).for_each(|pid| signal(pid, "STOP"));
        guard.kill(Term::new(1), PATIENCE).await.expect("kill");
        emptied(&mut changes).await;
        assert_eq!(host.postgres().len(), 0, "{mode:?}");
    }
}

#[tokio::test]
async fn without_the_margin_nothing_becomes_primary() {
    let host = Host::with_postgres(MODES[0]).await;
    let (guard, _changes) = host.session().await;
    let refused = |answer| matches!(answer, Err(pgbaton::guard::client::Error::Refused { .. }));
    let term = Term::new(2);
    assert!(refused(guard.start(StartAs::Primary, host.command(), term, PATIENCE).await), "nothing is armed");
    guard.start(StartAs::Standby, host.command(), term, PATIENCE).await.expect("start as standby");
    host.serves().await;
    assert!(refused(guard.promote(term, PATIENCE).await), "nothing is armed");
    arm(&guard, 2, PROMOTION_MARGIN.minus(Span::from_millis(50))).await;
    assert!(refused(guard.promote(term, PATIENCE).await), "too little is left");
    arm(&guard, 2, Span::from_secs(60)).await;
    assert!(refused(guard.promote(Term::new(1), PATIENCE).await), "an older term");
    assert!(refused(guard.promote(Term::new(3), PATIENCE).await), "armed for another term");
    arm(&guard, 3, Span::from_secs(60)).await;
    assert_eq!(host.sql("select pg_is_in_recovery()"), "t");
    let status = guard.promote(Term::new(3), PATIENCE).await.expect("promote");
    assert_eq!(status.primary_of, Some(Term::new(3)));
    eventually("it is primary", PATIENCE, async || (host.sql("select pg_is_in_recovery()") == "f").then_some(())).await;
    let signal = host.data_dir().join("standby.signal");
    eventually("standby.signal is back (I6)", PATIENCE, async || signal.exists().then_some(())).await;
    assert!(refused(guard.disarm(Term::new(3), pgbaton::guard::client::Disarm::NotPrimary, PATIENCE).await), "a primary lives");
}

/// Who waits for a disk cannot be killed: the guard must not be among them.
#[tokio::test]
async fn a_disk_that_hangs_holds_neither_the_guard_nor_its_deadline() {
    for mode in MODES {
        let mut host = Host::new(mode);
        host.mount_data_dir();
        host.initdb();
        host.start_guard().await;
        let (guard, mut changes) = host.primary(1).await;
        eventually("standby.signal is back", PATIENCE, async || host.data_dir().join("standby.signal").exists().then_some(())).await;
        host.freeze();
        // What is left to do after this end needs the disk.
        guard.kill(Term::new(1), PATIENCE).await.expect("kill");
        emptied(&mut changes).await;
        let waits = async || {
            let stuck = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "));
            host.keepers().iter().any(stuck).then_some(())
        };
        eventually("an errand waits for the disk", PATIENCE, waits).await;
        guard.status(Span::from_secs(1)).await.expect("the guard answers");
        let until = arm(&guard, 1, Span::from_millis(100)).await;
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&host.guard_exit().await), Some(9));
        assert!(
            clock::boot().since(until) < Span::from_millis(400),
            "{mode:?}: the guard died {} after the deadline",
            clock::boot().since(until)
        );
    }
}
