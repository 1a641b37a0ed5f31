//! Starting and stopping PostgreSQL, and what is found in the data directory.

use super::host::{BIN, Host, MODES, PATIENCE, agent, emptied, eventually, is_alive, program, run, signal};
use pgbaton::{
    clock,
    guard::{
        KillChoice,
        client::{Error, Guard},
    },
    model::{
        instance::{KillMode, Process, Run, StartAs, StopMode},
        moment::Span,
        term::Term,
    },
};
use std::{fs, process::Stdio};

const TERM: Term = Term::new(1);

/// EXP-6, protocol I6.
#[tokio::test]
async fn standby_signal_is_back_as_soon_as_a_primary_has_opened() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (guard, mut changes) = host.primary(1).await;
        assert_eq!(host.sql("select pg_is_in_recovery()"), "f");
        let signal_file = host.data_dir().join("standby.signal");
        eventually("standby.signal is back", Span::from_secs(2), async || signal_file.exists().then_some(())).await;
        assert_eq!(fs::metadata(&signal_file).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).expect("owner"), host.uid);
        guard.kill(TERM, PATIENCE).await.expect("kill");
        emptied(&mut changes).await;
        assert!(signal_file.exists());
        let status = guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await.expect("start");
        assert!(matches!(status.process, Process::Running { run: Run(2), start: StartAs::Standby, stopping: None }), "{status:?}");
        host.serves().await;
        assert_eq!(host.sql("select pg_is_in_recovery()"), "t");
    }
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_standby_signal() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (guard, mut changes) = host.session().await;
        super::host::arm(&guard, 1, Span::from_secs(60)).await;
        let mut command = host.command();
        command.args.push("--no-such-setting=1".to_owned());
        guard.start(StartAs::Primary, command, TERM, PATIENCE).await.expect("its processes exist");
        let (_, _) = emptied(&mut changes).await;
        let why = eventually("the reason", PATIENCE, async || match guard.status(PATIENCE).await.expect("status").process {
            Process::Empty { last: Some(last) } if last.how.contains("no_such_setting") || last.how.contains("no-such-setting") => {
                Some(last.how)
            }
            _ => None,
        });
        assert!(why.await.starts_with("exit code 1"));
        eventually("standby.signal", PATIENCE, async || host.data_dir().join("standby.signal").exists().then_some(())).await;
        let mut command = host.command();
        command.program = "/nonexistent/postgres".into();
        guard.start(StartAs::Standby, command, TERM, PATIENCE).await.expect("its processes exist");
        let why = eventually("the reason", PATIENCE, async || match guard.status(PATIENCE).await.expect("status").process {
            Process::Empty { last: Some(last) } if last.run == Run(2) && last.how.contains("could not start") => Some(last.how),
            _ => None,
        });
        assert!(why.await.starts_with("exit code 126"), "{mode:?}");
    }
}

#[tokio::test]
async fn what_must_not_be_started_is_refused() {
    let host = Host::with_postgres(MODES[0]).await;
    let (guard, _changes) = host.session().await;
    let mut root = host.command();
    root.uid = 0;
    let mut other = host.command();
    other.data_dir = "/var/lib/postgresql".into();
    let mut stranger = host.command();
    stranger.uid = 65_534;
    // Whoever may speak with root's guard is not given another's rights, nor those of root's group.
    let mut group = host.command();
    group.gid = 0;
    for (command, reason) in [(root, "root"), (other, "not for"), (stranger, "not as uid 65534"), (group, "and gid 0")] {
        let answer = guard.start(StartAs::Standby, command, TERM, PATIENCE).await;
        assert!(matches!(&answer, Err(Error::Refused { why, .. }) if why.contains(reason)), "{answer:?}");
    }
    std::os::unix::fs::chown(host.data_dir(), Some(65_534), None).expect("chown");
    let answer = guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await;
    assert!(matches!(&answer, Err(Error::Refused { why, .. }) if why.contains("belongs to uid 65534")), "{answer:?}");
    std::os::unix::fs::chown(host.data_dir(), Some(host.uid), None).expect("chown");
    fs::rename(host.data_dir(), host.path("away")).expect("rename");
    let answer = guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await;
    assert!(matches!(&answer, Err(Error::Refused { why, .. }) if why.contains("No such file")), "{answer:?}");
    fs::rename(host.path("away"), host.data_dir()).expect("rename");
    guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await.expect("start");
    let answer = guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await;
    assert!(matches!(&answer, Err(Error::Refused { why, .. }) if why.contains("not over")), "{answer:?}");
}

/// Scenario 120.
#[tokio::test]
async fn a_stale_postmaster_pid_whose_id_is_another_process_does_not_hinder() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (guard, _changes) = host.session().await;
        // The worst case for PostgreSQL: the same user, alive, and not its parent.
        let mut bystander = host.as_postgres(&["sleep", "60"]).stdin(Stdio::null()).spawn().expect("sleep");
        let file = host.data_dir().join("postmaster.pid");
        let text = format!("{}\n{}\n1\n5432\n/tmp\n\n  5432001  987654\nready   \n", bystander.id(), host.data_dir().display());
        fs::write(&file, text).expect("postmaster.pid");
        run(program("chown").arg("postgres:postgres").arg(&file));
        let answer = guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await;
        let served = tokio::time::timeout(PATIENCE.to_std(), host.serves()).await;
        let alive = is_alive(i32::try_from(bystander.id()).expect("pid"));
        bystander.kill().expect("kill");
        bystander.wait().expect("wait");
        assert!(answer.is_ok() && served.is_ok(), "{mode:?}: {answer:?}");
        assert!(alive, "nobody signals a process that is not ours");
    }
}

/// Scenario 214: no id of a PID namespace stays where it would be taken for one of the host's.
#[tokio::test]
async fn after_a_crash_postmaster_pid_is_gone_with_its_server() {
    let host = Host::with_postgres(KillChoice::Namespace).await;
    let (guard, mut changes) = host.primary(1).await;
    let file = host.data_dir().join("postmaster.pid");
    assert!(fs::read_to_string(&file).expect("postmaster.pid").starts_with("2\n"));
    guard.kill(TERM, PATIENCE).await.expect("kill");
    emptied(&mut changes).await;
    eventually("postmaster.pid is gone", PATIENCE, async || (!file.exists()).then_some(())).await;
    guard.start(StartAs::Primary, host.command(), TERM, PATIENCE).await.expect("start");
    host.serves().await;
}

/// Scenario 121: refuse, then kill first.
#[tokio::test]
async fn a_postgres_outside_the_guard_is_seen_and_must_end_first() {
    for mode in MODES {
        let mut host = Host::with_postgres(mode).await;
        let data_dir = host.data_dir();
        let command = host.command();
        let mut argv = vec![format!("{BIN}/postgres")];
        argv.extend(command.args.clone());
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let mut outside = host.as_postgres(&argv).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres");
        host.serves().await;
        fs::remove_file(data_dir.join("postmaster.pid")).expect("by hand");
        let (guard, changes) = host.session().await;
        let answer = guard.start(StartAs::Standby, command.clone(), TERM, PATIENCE).await;
        assert!(matches!(&answer, Err(Error::Refused { why, .. }) if why.contains("outside this guard")), "{answer:?}");
        drop((guard, changes));
        // A guard that starts beside it says that the tree is not empty.
        signal(host.guard_pid(), "TERM");
        assert!(host.guard_exit().await.success());
        host.start_guard().await;
        let (guard, _changes) = Guard::connect(&host.socket(), agent(), PATIENCE).await.expect("session");
        assert_eq!(guard.status(PATIENCE).await.expect("status").process, Process::Dying { run: Run(0) });
        assert!(guard.start(StartAs::Standby, command.clone(), TERM, PATIENCE).await.is_err());
        guard.kill(TERM, PATIENCE).await.expect("kill");
        outside.wait().expect("wait");
        let empty = async || (guard.status(PATIENCE).await.expect("status").process == Process::Empty { last: None }).then_some(());
        eventually("it is gone", PATIENCE, empty).await;
        guard.start(StartAs::Standby, command, TERM, PATIENCE).await.expect("start");
        host.serves().await;
    }
}

#[tokio::test]
async fn sigterm_to_the_guard_is_a_fast_stop() {
    for mode in MODES {
        let mut host = Host::with_postgres(mode).await;
        let (_guard, _changes) = host.primary(1).await;
        let client = host.busy(30);
        signal(host.guard_pid(), "INT");
        signal(host.guard_pid(), "HUP");
        signal(host.guard_pid(), "TERM");
        assert!(host.guard_exit().await.success(), "{mode:?}");
        assert_eq!(host.postgres().len(), 0);
        let control = run(program(format!("{BIN}/pg_controldata")).arg(host.data_dir()));
        assert!(String::from_utf8_lossy(&control.stdout).contains("shut down\n"), "{mode:?}: a clean end");
        assert!(host.data_dir().join("standby.signal").exists());
        assert!(!client.end(), "it has lost its connection");
    }
}

#[tokio::test]
async fn a_stop_ends_in_order_and_can_be_made_harder() {
    let host = Host::with_postgres(MODES[0]).await;
    let (guard, mut changes) = host.primary(1).await;
    let client = host.busy(30);
    eventually("the backend is busy", PATIENCE, async || (host.busy_backends() == 1).then_some(())).await;
    let far = clock::boot().plus(Span::from_secs(60));
    let status = guard.stop(StopMode::Smart, far, TERM, PATIENCE).await.expect("stop");
    assert!(matches!(status.process, Process::Running { stopping: Some(StopMode::Smart), .. }), "{status:?}");
    guard.stop(StopMode::Fast, far, TERM, PATIENCE).await.expect("stop");
    let (status, _) = emptied(&mut changes).await;
    assert!(
        matches!(&status.process, Process::Empty { last: Some(last) } if last.wanted && last.how.starts_with("exit code 0")),
        "{status:?}"
    );
    assert!(!client.end(), "it has lost its connection");
}

/// Where root is not: the guard is the owner, and what it can do, it says.
#[tokio::test]
async fn it_works_without_root() {
    for kill in [KillChoice::Auto, KillChoice::Descendants] {
        let mut host = Host::new(kill).without_root();
        host.initdb();
        host.start_guard().await;
        let (guard, mut changes) = host.primary(1).await;
        let status = guard.status(PATIENCE).await.expect("status");
        eprintln!("without root: {:?}, fenced {}", status.kill, status.fenced);
        assert!(status.fenced && (kill == KillChoice::Auto || status.kill == KillMode::Descendants));
        let began = clock::boot();
        signal(host.postmaster(), "KILL");
        let (_, heard) = emptied(&mut changes).await;
        assert_eq!(host.postgres().len(), 0);
        eprintln!("without root: SIGKILL of the postmaster to empty: {}", heard.since(began));
        guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await.expect("start");
        host.serves().await;
        signal(host.guard_pid(), "KILL");
        host.dies(Span::from_secs(1)).await;
    }
}

/// What the guard holds and ignores is not PostgreSQL's.
#[tokio::test]
async fn postgres_inherits_nothing_of_the_guard() {
    for mode in MODES {
        let host = Host::with_postgres(mode).await;
        let (_guard, _changes) = host.primary(1).await;
        let postmaster = host.postmaster();
        let status = fs::read_to_string(format!("/proc/{postmaster}/status")).expect("status");
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().replace('\t', " ")).expect("field");
        let uid = host.uid;
        assert_eq!(field("Uid:"), format!("{uid} {uid} {uid} {uid}"));
        assert_eq!(u64::from_str_radix(&field("CapEff:"), 16), Ok(0), "no capability");
        assert_eq!(field("Umask:"), "0077");
        // PG 15 ignores SIGPIPE, SIGTTIN, SIGTTOU and SIGXFSZ itself; nothing is blocked between its signals.
        let ignored = u64::from_str_radix(&field("SigIgn:"), 16).expect("mask");
        assert_eq!(ignored & (1 << (15 - 1) | 1 << (2 - 1) | 1 << (3 - 1)), 0, "stop signals are not ignored");
        for fd in fs::read_dir(format!("/proc/{postmaster}/fd")).expect("fds").flatten() {
            let target = fs::read_link(fd.path()).unwrap_or_default().display().to_string();
            assert!(!target.contains("guard.lock") && !target.contains("pidfd") && !target.contains("signalfd"), "{mode:?}: {target}");
        }
        let groups = run(program("id").args(["-G", "postgres"]));
        let mut expected: Vec<_> = String::from_utf8_lossy(&groups.stdout).split_whitespace().map(str::to_owned).collect();
        let mut groups: Vec<_> = field("Groups:").split_whitespace().map(str::to_owned).collect();
        expected.sort();
        groups.sort();
        assert_eq!(groups, expected);
    }
}

/// A guard comes back only after what its predecessor started is dead.
#[tokio::test]
async fn a_new_guard_after_a_killed_one_starts_on_an_empty_tree() {
    for mode in MODES {
        let mut host = Host::with_postgres(mode).await;
        let (_guard, _changes) = host.primary(1).await;
        let _client = host.busy(30);
        let old = host.guard_pid();
        // A keeper that cannot act at once still holds the lock.
        host.keepers().into_iter().for_each(|pid| signal(pid, "STOP"));
        signal(old, "KILL");
        host.guard_exit().await;
        host.start_guard().await;
        let (guard, _changes) = host.session().await;
        let empty = async || (guard.status(PATIENCE).await.expect("status").process == Process::Empty { last: None }).then_some(());
        eventually("it is empty", PATIENCE, empty).await;
        assert_eq!(host.postgres().len(), 0, "{mode:?}");
        guard.start(StartAs::Standby, host.command(), TERM, PATIENCE).await.expect("start");
        host.serves().await;
    }
}
