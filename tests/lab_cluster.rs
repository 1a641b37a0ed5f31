//! A whole lab with a stand-in for the agent: its files, its faults and their undo, and that nothing stays behind.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends")]

use pgbaton::{
    lab::{
        Direction, EtcdTiming, Fault, Lab, LabSpec, NotHere, Placement, Return, Walls, command::wait_until, fault, freezer, procfs,
        sweep_own,
    },
    model::{lsn::Bytes, moment::Span},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");
const SOON: Span = Span::from_secs(5);

/// Starts what looks like a guard in a session of its own and lives on, as the agent does.
const STAND_IN: &str = "#!/bin/bash\n\
    echo started with \"$@\"\n\
    echo 'sleep 604' > state/guard\n\
    (cd state; setsid bash -c 'exec -a pgbaton sh guard' &)\n\
    date +%s%N >> state/starts\n\
    exec sleep 605\n";

struct Bench {
    lab: Lab,
    _directory: tempfile::TempDir,
    agent: PathBuf,
}

fn bench(change: impl FnOnce(&mut LabSpec)) -> Bench {
    let directory = tempfile::tempdir_in("/var/tmp").expect("directory");
    let agent = directory.path().join("agent");
    fs::write(&agent, STAND_IN).expect("write");
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).expect("executable");
    let mut spec = LabSpec::new(Path::new(PROGRAM), Path::new("/usr/lib/postgresql/15/bin"));
    (spec.agent, spec.nodes, spec.members, spec.timing) = (agent.clone(), 2, 1, EtcdTiming::FAST);
    spec.restart_after = Span::from_millis(50);
    change(&mut spec);
    let lab = Lab::build(&spec, &|_| ()).expect("lab");
    lab.start_agents().expect("agents");
    Bench { lab, _directory: directory, agent }
}

/// Waits until the agent of a node was started so often in the life of its disk.
fn started(lab: &Lab, node: &str, times: usize) {
    let file = lab.node(node).expect("node").seen_directory.join("state/starts");
    let count = || fs::read_to_string(&file).unwrap_or_default().lines().count();
    wait_until(&format!("{times} starts of {node}"), SOON, || (count() >= times).then_some(())).expect("started");
    assert_eq!(count(), times);
}

/// Whether one node reaches another by TCP on a port that answers or refuses.
fn reaches(lab: &Lab, from: &str, to: std::net::SocketAddr) -> bool {
    let script = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
    let node = lab.node(from).expect("node");
    match node.host.run(&["bash", "-c", &script], Span::from_millis(500)) {
        Ok(_) => true,
        Err(error) => format!("{error:#}").contains("refused"),
    }
}

#[test]
fn faults_of_the_network_take_what_they_name_and_give_it_back() {
    let bench = bench(|_| ());
    let lab = &bench.lab;
    let (peer, etcd) = (lab.node("n2").expect("node").postgres, lab.etcd().members()[0].client);
    let seen = || (reaches(lab, "n1", peer), reaches(lab, "n1", etcd), reaches(lab, "n2", etcd));
    assert_eq!(seen(), (true, true, true));
    let cases = [
        (Fault::Partition("n1".into()), (false, false, true)),
        (Fault::OneWay("n1".into(), Direction::Outbound), (false, false, true)),
        (Fault::OneWay("n1".into(), Direction::Inbound), (false, false, true)),
        (Fault::CutFromEtcd("n1".into()), (true, false, true)),
        (Fault::CutFromPeers("n1".into()), (false, true, true)),
    ];
    for (fault, expected) in cases {
        let injected = lab.inject(&fault).expect("inject");
        assert_eq!(seen(), expected, "{}", fault.name());
        lab.heal(&injected).expect("heal");
        assert_eq!(seen(), (true, true, true), "after {}", fault.name());
    }
}

#[test]
fn agents_come_back_as_the_fault_says() {
    let bench = bench(|_| ());
    let (lab, agent) = (&bench.lab, &bench.agent);
    started(lab, "n1", 1);
    lab.inject(&Fault::AgentKill("n1".into(), Return::AtOnce)).expect("kill");
    started(lab, "n1", 2);
    let gone = lab.inject(&Fault::AgentKill("n1".into(), Return::WhenUndone)).expect("kill");
    assert_eq!(lab.node("n1").expect("node").host.service("agent").expect("service").pid, None);
    lab.heal(&gone).expect("heal");
    started(lab, "n1", 3);
    let newer = agent.with_file_name("newer");
    fs::copy(agent, &newer).expect("copy");
    lab.inject(&Fault::AgentUpgrade("n1".into(), newer)).expect("upgrade");
    started(lab, "n1", 4);
    let runs = lab.node("n1").expect("node").host.processes();
    assert!(runs.iter().any(|process| procfs::arguments(process.pid).first().is_some_and(|name| name == "sleep")));
    lab.inject(&Fault::PowerOff("n1".into())).expect("off");
    assert!(!lab.node("n1").expect("node").host.is_on());
    lab.heal_all().expect("heal");
    started(lab, "n1", 5);
    started(lab, "n2", 1);
    let log = fs::read_to_string(lab.node("n1").expect("node").log()).expect("log");
    assert!(log.starts_with("started with agent --config /var/tmp/pgbaton-lab-"), "{log}");
}

/// Scenario 219's and 16 J's tool: a copied machine has its own files under the same paths, and another address.
#[test]
fn a_copied_host_is_the_same_node_with_other_files() {
    let bench = bench(|_| ());
    let lab = &bench.lab;
    started(lab, "n1", 1);
    let original = lab.node("n1").expect("node").seen_directory.join("state/starts");
    let injected = lab.inject(&Fault::CopiedHost("n1".into())).expect("copy");
    let copied = lab.directory().join("n1-copy");
    let starts = || fs::read_to_string(copied.join("state/starts")).unwrap_or_default().lines().count();
    wait_until("the copy's agent", SOON, || (starts() == 2).then_some(())).expect("started on the copy's files");
    assert_eq!(fs::read_to_string(&original).expect("original").lines().count(), 1);
    let config = fs::read_to_string(copied.join("pgbaton.toml")).expect("configuration");
    assert!(config.contains("node = \"n1\"") && config.contains("advertise = \"10.77.0.51:5432\""), "{config}");
    assert!(!config.contains("n1-copy"), "{config}");
    lab.heal(&injected).expect("heal");
    assert!(!copied.exists());
}

#[test]
fn disks_fill_up_and_data_can_be_lost() {
    let bench = bench(|spec| spec.disk = Some(Bytes::new(24 << 20)));
    let lab = &bench.lab;
    let node = lab.node("n1").expect("node");
    let data = node.data_dir().display().to_string();
    let write =
        || node.host.run_as(Some("postgres"), &["sh", "-c", "mkdir -p \"$0\" && head -c 100000 /dev/zero > \"$0/file\"", &data], "", SOON);
    write().expect("room");
    let injected = lab.inject(&Fault::DiskFull("n1".into())).expect("fill");
    node.host.run(&["rm", &format!("{data}/file")], SOON).expect("remove");
    write().expect("the room of the removed file");
    node.host.run(&["sh", "-c", &format!("! head -c 500000 /dev/zero > {data}/more")], SOON).expect("full");
    lab.heal(&injected).expect("heal");
    lab.inject(&Fault::WipeData("n1".into())).expect("wipe");
    assert!(node.host.run(&["ls", &data], SOON).is_err(), "the data directory is gone");
    started(lab, "n1", 2);
}

#[test]
fn the_leader_of_etcd_and_a_node_fall_together_and_come_back() {
    let bench = bench(|spec| (spec.nodes, spec.members, spec.placement) = (3, 3, Placement::WithNodes));
    let lab = &bench.lab;
    let leader = lab.etcd().leader().expect("leader").host.name().to_owned();
    let node = if leader == "n1" { "n2" } else { "n1" };
    lab.inject(&Fault::PrimaryAndEtcdLeader(node.into())).expect("inject");
    assert!(lab.nodes().iter().filter(|node| node.host.is_on()).count() == 1);
    lab.heal_all().expect("heal");
    lab.etcd().wait_leader().expect("etcd is back");
    let killed = lab.inject(&Fault::EtcdQuorumLoss).expect("inject");
    assert!(lab.etcd().any(&["put", "key", "value"]).is_err());
    lab.heal(&killed).expect("heal");
    lab.etcd().wait_leader().expect("etcd is back");
    lab.inject(&Fault::Freeze("n1".into())).expect("freeze");
    assert!(lab.node("n1").expect("node").host.service("agent").is_err(), "a frozen host says nothing");
    lab.heal_all().expect("thaw");
    assert!(lab.node("n1").expect("node").host.service("agent").expect("service").pid.is_some());
    let node = lab.node("n1").expect("node");
    wait_until("the guard", SOON, || procfs::running_verb(&node.host.processes(), "guard")).expect("guard");
    lab.inject(&Fault::GuardKill("n1".into())).expect("kill the guard");
    assert!(matches!(lab.inject(&Fault::GuardKill("n1".into())), Err(fault::Error::Failed { .. })), "no guard is left");
}

/// What `demo` does without root: the same lab on loopback ports, and clear words about what cannot work.
#[test]
fn a_lab_without_namespaces_says_what_it_cannot_do() {
    let bench = bench(|spec| spec.walls = Some(Walls::Loopback));
    let lab = &bench.lab;
    started(lab, "n1", 1);
    for fault in [Fault::Partition("n1".into()), Fault::CopiedHost("n1".into()), Fault::DiskFull("n1".into())] {
        let Err(fault::Error::NotHere(NotHere(reason))) = lab.inject(&fault) else { panic!("{} was injected", fault.name()) };
        assert!(reason.contains("loopback ports"), "{reason}");
    }
    let pids = |node: &str| lab.node(node).expect("node").host.processes().iter().map(|process| process.pid).collect::<Vec<_>>();
    let guard = wait_until("the guard", SOON, || pids("n1").get(1).copied()).expect("guard");
    lab.inject(&Fault::Freeze("n1".into())).expect("freeze");
    lab.heal_all().expect("thaw");
    let others = pids("n2");
    lab.inject(&Fault::PowerOff("n1".into())).expect("off");
    assert!(!procfs::lives(guard) && others.iter().all(|pid| procfs::lives(*pid)));
    lab.heal_all().expect("on");
    started(lab, "n1", 2);
}

#[test]
fn a_panic_or_an_interrupt_leaves_nothing() {
    let mut left = None;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let bench = bench(|_| ());
        started(&bench.lab, "n1", 1);
        bench.lab.inject(&Fault::Freeze("n1".into())).expect("freeze");
        let pids: Vec<i32> = bench.lab.nodes().iter().flat_map(|node| node.host.processes()).map(|process| process.pid).collect();
        left = Some((bench.lab.name().to_owned(), bench.lab.directory().to_owned(), pids));
        panic!("as a failing test does");
    }));
    let (name, directory, pids) = left.expect("it came so far");
    assert!(caught.is_err() && !directory.exists() && !freezer::exists(&name) && pids.len() >= 4);
    assert_eq!(pids.into_iter().filter(|pid| procfs::lives(*pid)).collect::<Vec<_>>(), Vec::<i32>::new());
    sweep_own(&name).expect("nothing to sweep");
    assert!(sweep_own("../etc").is_err());
    let spec = LabSpec::new(Path::new(PROGRAM), Path::new("/usr/lib/postgresql/15/bin"));
    spec.interrupted.store(true, Ordering::SeqCst);
    assert!(format!("{:#}", Lab::build(&spec, &|_| ()).expect_err("interrupted")).contains("interrupted"));
}
