//! Who may speak with the guard.

use super::host::{Host, MODES, PATIENCE, agent, arm, eventually, is_alive, program, signal};
use pgbaton::{
    clock,
    guard::{
        GuardSettings,
        client::{ArmedBy, Disarm, Error, Guard, query_status, spawn},
    },
    model::{
        instance::{Process, StartAs, StopMode},
        moment::Span,
        term::Term,
    },
};
use std::{path::Path, process::Stdio};

/// Not a test: the agent of another test, in a process of its own.
#[tokio::test]
#[ignore = "run by another test in a process of its own"]
async fn an_agent_that_holds_the_session() {
    let socket = std::env::var("GUARD_SOCKET").expect("GUARD_SOCKET");
    let (guard, mut changes) = Guard::connect(Path::new(&socket), agent(), PATIENCE).await.expect("session");
    arm(&guard, 1, Span::from_secs(3_600)).await;
    println!("in session");
    while changes.recv().await.is_some() {}
}

fn other_agent(host: &Host) -> std::process::Child {
    let mut command = program(std::env::current_exe().expect("this test"));
    command.args(["--exact", "session::an_agent_that_holds_the_session", "--ignored", "--nocapture"]);
    command.env("GUARD_SOCKET", host.socket()).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("agent")
}

#[tokio::test]
async fn a_new_agent_gets_the_session_after_the_former_one_was_killed() {
    let host = Host::with_postgres(MODES[0]).await;
    let mut former = other_agent(&host);
    let socket = host.socket();
    let armed = async || query_status(&socket, PATIENCE).await.ok()?.armed;
    eventually("the former agent has the session", PATIENCE, armed).await;
    assert!(former.try_wait().expect("wait").is_none(), "a status query kills nobody");
    signal(i32::try_from(former.id()).expect("pid"), "STOP");
    // Nobody reaps it yet: a zombie is dead.
    let (guard, _changes) = host.session().await;
    assert!(!is_alive(i32::try_from(former.id()).expect("pid")));
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&former.wait().expect("wait")), Some(9));
    assert_eq!(guard.status(PATIENCE).await.expect("status").term, Term::new(1));
}

/// Agent crash, restart and upgrade never restart PostgreSQL.
#[tokio::test]
async fn postgres_and_its_deadline_survive_the_agent() {
    let host = Host::with_postgres(MODES[0]).await;
    let (guard, changes) = host.primary(4).await;
    let before = guard.status(PATIENCE).await.expect("status");
    drop((guard, changes));
    let (guard, _changes) = host.session().await;
    assert_eq!(guard.status(PATIENCE).await.expect("status"), before);
    host.sql("select 1");
    // An agent that has not renewed itself may only shorten.
    let armed = before.armed.expect("armed");
    let later = armed.until.plus(Span::from_millis(1));
    assert!(matches!(guard.arm(Term::new(4), later, ArmedBy::Caution, PATIENCE).await, Err(Error::Refused { .. })));
    let earlier = armed.until.minus(Span::from_secs(1));
    let status = guard.arm(Term::new(4), earlier, ArmedBy::Caution, PATIENCE).await.expect("earlier");
    assert_eq!(status.armed.map(|armed| armed.until), Some(earlier));
    guard.arm(Term::new(4), later, ArmedBy::OwnSwap, PATIENCE).await.expect("later, by its own swap");
    assert!(matches!(guard.arm(Term::new(3), earlier, ArmedBy::OwnSwap, PATIENCE).await, Err(Error::Refused { .. })), "an older term");
}

#[tokio::test]
async fn an_older_session_of_the_same_process_is_over() {
    let mut host = Host::new(MODES[0]);
    host.start_guard().await;
    let (old, mut changes) = host.session().await;
    let (new, _changes) = host.session().await;
    assert!(matches!(old.kill(Term::new(1), PATIENCE).await, Err(Error::Gone)));
    while changes.recv().await.is_some() {}
    new.status(PATIENCE).await.expect("status");
}

#[tokio::test]
async fn disarming_is_for_pauses_standbys_and_the_dead() {
    let host = Host::with_postgres(MODES[0]).await;
    let (guard, mut changes) = host.primary(1).await;
    let term = Term::new(1);
    assert!(matches!(guard.disarm(term, Disarm::NotPrimary, PATIENCE).await, Err(Error::Refused { .. })));
    assert_eq!(guard.disarm(term, Disarm::Paused, PATIENCE).await.expect("paused").armed, None);
    arm(&guard, 1, Span::from_secs(60)).await;
    guard.stop(StopMode::Fast, clock::boot().plus(PATIENCE), term, PATIENCE).await.expect("stop");
    super::host::emptied(&mut changes).await;
    assert_eq!(guard.disarm(term, Disarm::NotPrimary, PATIENCE).await.expect("empty").armed, None);
    let status = guard.start(StartAs::Standby, host.command(), term, PATIENCE).await.expect("start");
    assert_eq!(status.primary_of, None);
    arm(&guard, 1, Span::from_secs(60)).await;
    guard.disarm(term, Disarm::NotPrimary, PATIENCE).await.expect("a standby");
}

#[tokio::test]
async fn a_stranger_gets_no_answer() {
    let mut host = Host::new(MODES[0]);
    host.start_guard().await;
    let script = format!(
        "import socket; s=socket.socket(socket.AF_UNIX); s.settimeout(3); s.connect({:?}); s.sendall(b'{{\"query\":{{\"protocol\":1}}}}\\n'); print(len(s.recv(10)))",
        host.socket().display().to_string()
    );
    let ask = |uid: &str| program("setpriv").args([uid, "--clear-groups", "/usr/bin/python3", "-c", &script]).output().expect("python3");
    std::fs::set_permissions(host.socket(), std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("chmod");
    let known = ask(&format!("--reuid={}", host.uid));
    assert_eq!(String::from_utf8_lossy(&known.stdout).trim(), "10", "{}", String::from_utf8_lossy(&known.stderr));
    let stranger = ask("--reuid=65534");
    assert_ne!(String::from_utf8_lossy(&stranger.stdout).trim(), "10");
}

#[tokio::test]
async fn what_is_no_protocol_is_answered_and_forgotten() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut host = Host::new(MODES[0]);
    host.start_guard().await;
    for nonsense in ["\n", "{}\n", "GET / HTTP/1.1\r\n\r\n", "{\"session\":{\"protocol\":1,\"agent\":\"ö\"}}\n"] {
        let mut stream = tokio::net::UnixStream::connect(host.socket()).await.expect("connect");
        stream.write_all(nonsense.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        assert!(answer.contains("rejected"), "{nonsense:?}: {answer}");
    }
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(tokio::net::UnixStream::connect(host.socket()).await.expect("connect"));
    }
    // A line without an end.
    let mut stream = tokio::net::UnixStream::connect(host.socket()).await.expect("connect");
    let _ = stream.write_all(&vec![b'x'; 1 << 20]).await;
    let (guard, _changes) = host.session().await;
    assert_eq!(guard.status(PATIENCE).await.expect("status").process, Process::Empty { last: None });
    // A verb of a later version: refused, and the session goes on.
    let mut stream = tokio::net::UnixStream::connect(host.socket()).await.expect("connect");
    let line = "{\"session\":{\"protocol\":1,\"agent\":\"a\"}}\n{\"id\":7,\"agent\":\"a\",\"term\":1,\"verb\":{\"cut\":{\"port\":1}}}\n";
    stream.write_all(line.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    eventually("a refusal", PATIENCE, async || {
        stream.read_buf(&mut answer).await.expect("read");
        String::from_utf8_lossy(&answer).contains("\"refused\":{\"id\":7").then_some(())
    })
    .await;
}

/// Neither side guesses what the other one's version means.
#[tokio::test]
async fn another_version_of_the_protocol_is_refused_by_both_sides() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut host = Host::new(MODES[0]);
    host.start_guard().await;
    for hello in
        ["{\"query\":{\"protocol\":9}}\n", "{\"session\":{\"protocol\":9,\"agent\":\"a\",\"more\":1}}\n", "{\"new\":{\"protocol\":9}}\n"]
    {
        let mut stream = tokio::net::UnixStream::connect(host.socket()).await.expect("connect");
        stream.write_all(hello.as_bytes()).await.expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        assert!(
            answer.contains("rejected") && answer.contains("this guard speaks version 1 of its protocol, this pgbaton version 9"),
            "{answer}"
        );
    }
    let later = host.path("later.sock");
    let listener = tokio::net::UnixListener::bind(&later).expect("bind");
    let greets = async || {
        let (mut stream, _) = listener.accept().await.expect("accept");
        stream.write_all(b"{\"welcome\":{\"protocol\":9,\"state\":\"of another shape\"}}\n").await.expect("write");
        stream
    };
    let refused = |fault: &Error| matches!(fault, Error::Rejected(why) if why.starts_with("this guard speaks version 9 of its protocol, this pgbaton version 1"));
    let (_stream, session) = tokio::join!(greets(), Guard::connect(&later, agent(), PATIENCE));
    assert!(refused(&session.expect_err("refused")));
    let (_stream, status) = tokio::join!(greets(), query_status(&later, PATIENCE));
    assert!(refused(&status.expect_err("refused")));
}

#[tokio::test]
async fn only_one_guard_serves_a_directory() {
    let mut host = Host::new(MODES[0]);
    host.start_guard().await;
    let out = host.guard_command().stderr(Stdio::piped()).output().expect("second guard");
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("another guard"), "{}", String::from_utf8_lossy(&out.stderr));
    query_status(&host.socket(), PATIENCE).await.expect("the first one goes on");
}

#[tokio::test]
async fn a_spawned_guard_is_detached_and_answers() {
    let host = Host::new(MODES[0]);
    let mut settings = host.settings();
    settings.detach = true;
    let args = ["guard".to_owned(), "--settings-json".to_owned(), host.settings_file(&settings).display().to_string()];
    let binary = Path::new(env!("CARGO_BIN_EXE_pgbaton"));
    spawn(binary, &args, &host.socket(), PATIENCE).await.expect("spawn");
    let (_, parent, session) = detached(&host);
    assert_ne!(parent, std::process::id().to_string());
    assert_ne!(
        session,
        std::fs::read_to_string("/proc/self/stat").expect("stat").rsplit_once(") ").expect("stat").1.split(' ').nth(3).expect("field")
    );
    let second = spawn(binary, &args, &host.socket(), PATIENCE).await;
    assert!(matches!(&second, Err(Error::Spawn(why)) if why.contains("another guard")), "{second:?}");
    signal(detached(&host).0, "TERM");
    eventually("it ends", PATIENCE, async || query_status(&host.socket(), PATIENCE).await.err()).await;
}

/// What root starts is what root said once: nothing is read where the owner of the data directory can write.
#[tokio::test]
async fn a_starter_goes_on_with_the_settings_of_its_begin() {
    use std::io::{Read, Write};
    let host = Host::new(MODES[0]);
    let settings = GuardSettings { detach: true, ..host.settings() };
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().expect("pair");
    let mut command = program(env!("CARGO_BIN_EXE_pgbaton"));
    command.args(["guard", "--starter"]).stdin(std::os::fd::OwnedFd::from(theirs)).stdout(Stdio::null());
    let mut starter = command.spawn().expect("starter");
    drop(command);
    let mut line = serde_json::to_vec(&settings).expect("json");
    line.push(b'\n');
    ours.write_all(&line).expect("settings");
    let mut start = || {
        let mut answer = [0];
        ours.write_all(b"s").expect("ask");
        ours.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, [b'\n'], "a guard was started");
        listener(&host)
    };
    let first = start();
    let arguments = std::fs::read(format!("/proc/{first}/cmdline")).expect("cmdline");
    assert_eq!(arguments.split(|byte| *byte == 0).skip(1).collect::<Vec<_>>(), [&b"guard"[..], b"--from-stdin", b""], "no file is named");
    let planted = host.path("planted.log");
    let other = GuardSettings { log_file: Some(planted.clone()), data_dir: host.path("elsewhere"), ..settings };
    std::fs::write(host.path("run/guard.json"), serde_json::to_vec(&other).expect("json")).expect("plant");
    signal(first, "KILL");
    eventually("the first one is gone", PATIENCE, async || (!is_alive(first)).then_some(())).await;
    let before = host.guard_log().len();
    let second = start();
    assert_ne!(first, second);
    eventually("the log goes on where root said", PATIENCE, async || (host.guard_log().len() > before).then_some(())).await;
    assert!(!planted.exists());
    signal(second, "TERM");
    eventually("it ends", PATIENCE, async || query_status(&host.socket(), PATIENCE).await.err()).await;
    drop(ours);
    assert!(starter.wait().expect("wait").success(), "a starter ends with its agent");
}

/// The process that listens for `host`, as the kernel says.
fn listener(host: &Host) -> i32 {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    let stream = std::os::unix::net::UnixStream::connect(host.socket()).expect("connect");
    getsockopt(&stream, PeerCredentials).expect("credentials").pid()
}

/// The process that listens for `host`, with its parent and session.
fn detached(host: &Host) -> (i32, String, String) {
    let file = host.path("guard.json").display().to_string();
    let found = super::host::living().into_iter().find(|(pid, _)| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| String::from_utf8_lossy(&cmdline).contains(&file))
    });
    let (pid, parent) = found.expect("the guard");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let session = stat.rsplit_once(") ").expect("stat").1.split(' ').nth(3).expect("field").to_owned();
    (pid, parent.to_string(), session)
}
