//! The cut: the kernel lets no TCP pass between this host and those who are named (protocol 1.7 step 3 b).

use super::host::{Host, PATIENCE, eventually, program, run};
use nix::sched::{CloneFlags, setns};
use pgbaton::{
    guard::{
        KillChoice,
        client::{Error, query_status},
    },
    model::{instance::Cut, moment::Span, node::Address, term::Term},
};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

const TERM: Term = Term::new(1);
/// Long for what passes, and short enough for what does not.
const A_WHILE: Duration = Duration::from_secs(1);

/// Does something in the network of the guard's host.
fn inside<T: Send>(host: &Host, work: impl FnOnce() -> T + Send) -> T {
    let path = format!("/proc/{}/ns/net", host.guard_pid());
    std::thread::scope(|scope| {
        let there = scope.spawn(move || {
            setns(File::open(path).expect("its network"), CloneFlags::CLONE_NEWNET).expect("enter it");
            work()
        });
        there.join().expect("the work")
    })
}

/// Both ends of one connection.
struct Connection(TcpStream, TcpStream);

impl Connection {
    fn to(listener: &TcpListener) -> Result<Self, std::io::Error> {
        let near = TcpStream::connect_timeout(&listener.local_addr()?, A_WHILE)?;
        let (far, _) = listener.accept()?;
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(A_WHILE))?;
        }
        Ok(Self(near, far))
    }

    /// Whether what one end says is heard by the other, both ways.
    fn passes(&mut self) -> bool {
        let Self(near, far) = self;
        let mut heard = [0];
        [(&mut *near, &mut *far)].into_iter().all(|(from, to)| from.write_all(b"x").is_ok() && to.read_exact(&mut heard).is_ok())
            && far.write_all(b"x").is_ok()
            && near.read_exact(&mut heard).is_ok()
    }
}

fn tables(host: &Host) -> String {
    let pid = host.guard_pid().to_string();
    let out = run(program("nsenter").args(["--net", "--target", &pid, "nft", "list", "tables"]));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn address(listener: &TcpListener) -> Address {
    listener.local_addr().expect("an address").to_string().parse().expect("host and port")
}

async fn knows(host: &Host, cut: &Cut) {
    eventually("the guard tells what is cut", PATIENCE, async || {
        let status = query_status(&host.socket(), Span::from_millis(500)).await.ok()?;
        (status.cut == *cut).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_passes_to_and_from_those_who_are_cut_off() {
    let mut host = Host::new(KillChoice::Namespace).with_network();
    host.start_guard().await;
    let (guard, _changes) = host.session().await;
    knows(&host, &Cut::From(BTreeSet::new())).await;
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let any: SocketAddr = any.parse().expect("an address");
        let (former, other) = inside(&host, || (TcpListener::bind(any).expect("listen"), TcpListener::bind(any).expect("listen")));
        let mut live = inside(&host, || Connection::to(&former).expect("connect"));
        let mut apart = inside(&host, || Connection::to(&other).expect("connect"));
        assert!(live.passes() && apart.passes());

        let from = BTreeSet::from([address(&former)]);
        let status = guard.cut(from.clone(), TERM, PATIENCE).await.expect("cut");
        assert_eq!(status.cut, Cut::From(from.clone()));
        assert!(!live.passes(), "an established connection goes on");
        assert!(inside(&host, || Connection::to(&former)).is_err(), "a new connection comes about");
        assert!(apart.passes(), "another port is cut off");

        // Again: the same, and then somebody else alone.
        guard.cut(from, TERM, PATIENCE).await.expect("cut again");
        assert!(inside(&host, || Connection::to(&former)).is_err());
        guard.cut(BTreeSet::from([address(&other)]), TERM, PATIENCE).await.expect("cut another off");
        assert!(!apart.passes());
        assert!(inside(&host, || Connection::to(&former)).expect("connect").passes(), "who is not named any more is still cut off");

        guard.cut(BTreeSet::new(), TERM, PATIENCE).await.expect("cut nobody off");
        assert!(inside(&host, || Connection::to(&other)).expect("connect").passes());
        assert!(!tables(&host).contains("pgbaton"), "a table is left: {}", tables(&host));
    }
}

#[tokio::test]
async fn a_cut_that_cannot_be_made_is_refused_and_the_former_one_stands() {
    let mut host = Host::new(KillChoice::Namespace).with_network();
    host.start_guard().await;
    let (guard, _changes) = host.session().await;
    knows(&host, &Cut::From(BTreeSet::new())).await;
    let from = BTreeSet::from(["192.0.2.1:5432".parse().expect("an address")]);
    guard.cut(from.clone(), Term::new(3), PATIENCE).await.expect("cut");
    let unknown = BTreeSet::from(["no-such-host.invalid:5432".parse().expect("an address")]);
    let refused = guard.cut(unknown, Term::new(3), PATIENCE).await;
    assert!(matches!(&refused, Err(Error::Refused { why, .. }) if why.contains("no-such-host.invalid")), "{refused:?}");
    let refused = guard.cut(BTreeSet::new(), Term::new(2), PATIENCE).await;
    assert!(matches!(&refused, Err(Error::Refused { why, .. }) if why.contains("term 2")), "an older term lifts it: {refused:?}");
    knows(&host, &Cut::From(from)).await;
    assert!(tables(&host).contains("pgbaton_test_n1"));
}

/// What a guard leaves behind when it is killed, the next one removes: no walreceiver of before lives.
#[tokio::test]
async fn a_new_guard_begins_with_nothing_cut_off() {
    let mut host = Host::new(KillChoice::Namespace).with_network();
    host.start_guard().await;
    let held = inside(&host, || File::open(format!("/proc/{}/ns/net", host.guard_pid())).expect("its network"));
    let (guard, _changes) = host.session().await;
    knows(&host, &Cut::From(BTreeSet::new())).await;
    guard.cut(BTreeSet::from(["192.0.2.1:5432".parse().expect("an address")]), TERM, PATIENCE).await.expect("cut");
    assert!(tables(&host).contains("pgbaton_test_n1"));
    super::host::signal(host.guard_pid(), "KILL");
    host.guard_exit().await;
    host.enter_network(held);
    host.start_guard().await;
    knows(&host, &Cut::From(BTreeSet::new())).await;
    assert!(!tables(&host).contains("pgbaton"), "{}", tables(&host));
}

#[tokio::test]
async fn a_guard_without_the_right_says_so() {
    let mut host = Host::new(KillChoice::Namespace).without_root();
    host.start_guard().await;
    let (guard, _changes) = host.session().await;
    let refused = guard.cut(BTreeSet::from(["127.0.0.1:9".parse().expect("an address")]), TERM, PATIENCE).await;
    assert!(matches!(&refused, Err(Error::Refused { .. })), "{refused:?}");
    eventually("the guard says why", PATIENCE, async || match guard.status(PATIENCE).await.expect("status").cut {
        Cut::Unable { why } => why.contains("nft").then_some(()),
        _ => None,
    })
    .await;
}
