//! etcd in the lab: elections, loss of quorum, and going back in time.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends")]

use pgbaton::{
    clock,
    lab::{Etcd, EtcdMember, EtcdTiming, Host, Switch, Walls, switch::ipv4},
    model::moment::Span,
};
use std::{net::SocketAddr, path::Path, process, sync::Arc};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");

struct Bench {
    etcd: Etcd,
    hosts: Vec<Arc<Host>>,
    switch: Switch,
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let lab = format!("{}-{}", process::id(), clock::data_incarnation());
        let directory = tempfile::tempdir_in("/var/tmp").expect("directory");
        let switch = Switch::new(&lab, Path::new(PROGRAM)).expect("switch");
        let hosts: Vec<Arc<Host>> = (1..=3)
            .map(|number| {
                let host = Host::new(&lab, &format!("e{number}"), Path::new(PROGRAM), Walls::Namespaces, Vec::new());
                host.power_on().expect("power");
                switch.plug(&host, number).expect("plug");
                Arc::new(host)
            })
            .collect();
        let member = |(host, number): (&Arc<Host>, u8)| EtcdMember {
            name: host.name().to_owned(),
            host: host.clone(),
            client: SocketAddr::new(ipv4(number), 2_379),
            peer: SocketAddr::new(ipv4(number), 2_380),
        };
        let etcd = Etcd::new(hosts.iter().zip(1..).map(member).collect(), EtcdTiming::FAST, directory.path(), &lab);
        etcd.start().expect("start");
        Self { etcd, hosts, switch, directory }
    }
}

/// EXP-12: a new leader after the kill of the old one; the killed member comes back on its data.
#[test]
fn another_member_leads_after_the_leader_was_killed() {
    let bench = Bench::new();
    let etcd = &bench.etcd;
    let first = etcd.leader().expect("leader").name.clone();
    etcd.any(&["put", "key", "before"]).expect("put");
    let killed = clock::boot();
    etcd.kill(&first).expect("kill");
    let second = etcd.wait_leader().expect("new leader").name.clone();
    println!("new leader after {}", clock::boot().since(killed));
    assert_ne!(first, second);
    etcd.start_missing().expect("start again");
    let back = etcd.member(&first).expect("member");
    let value =
        pgbaton::lab::command::wait_until("the member", Span::from_secs(10), || etcd.ctl(back, &["get", "key", "--print-value-only"]).ok());
    assert_eq!(value.expect("answers").trim(), "before");
}

/// Scenario 39's tool, and a leader that is cut off: the other side's leader is the one that counts.
#[test]
fn a_lost_quorum_and_an_older_snapshot_can_be_staged() {
    let bench = Bench::new();
    let etcd = &bench.etcd;
    let snapshot = bench.directory.path().join("snapshot");
    etcd.any(&["put", "/lab/key", "old"]).expect("put");
    etcd.snapshot(&snapshot).expect("snapshot");
    etcd.any(&["put", "/lab/key", "new"]).expect("put");
    let leader = etcd.leader().expect("leader").name.clone();
    let cut = |from: &str, to: &str| pgbaton::lab::Cut { from: from.into(), to: to.into(), what: pgbaton::lab::Lost::Everything };
    let others: Vec<&str> = bench.hosts.iter().map(|host| host.name()).filter(|name| **name != *leader).collect();
    bench.switch.cut("leader", others.iter().flat_map(|other| [cut(&leader, other), cut(other, &leader)]).collect()).expect("cut");
    assert_ne!(etcd.wait_leader().expect("a leader on the other side").name, leader);
    bench.switch.mend("leader").expect("mend");
    for name in others {
        etcd.kill(name).expect("kill");
    }
    assert!(etcd.any(&["put", "/lab/key", "newer"]).is_err(), "one member of three writes nothing");
    etcd.start_missing().expect("start again");
    etcd.wait_leader().expect("quorum again");
    etcd.restore(&snapshot).expect("restore");
    assert_eq!(etcd.any(&["get", "/lab/key", "--print-value-only"]).expect("get").trim(), "old");
    etcd.wipe("/lab/").expect("wipe");
    assert_eq!(etcd.any(&["get", "/lab/key", "--print-value-only"]).expect("get").trim(), "");
    assert!(etcd.wipe("").is_err());
}
