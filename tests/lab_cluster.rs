//! A whole lab with a stand-in for the agent: its files, its faults and their undo, and that nothing stays behind.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends")]

use pgbaton::{
    clock,
    lab::{
        Direction, EtcdTiming, Excused, Fault, Lab, LabSpec, NotHere, Outage, Placement, Return, Walls,
        command::{self, wait_until},
        fault, freezer, procfs, sweep_own,
        verdict::Judgement,
        writer::next_ack,
    },
    model::{
        lsn::Bytes,
        moment::{Moment, Span},
    },
};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::Ordering,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");
const SOON: Span = Span::from_secs(20);

/// Starts what looks like a guard in a session of its own and lives on, as the agent does.
const STAND_IN: &str = "#!/bin/bash\n\
    echo started with \"$@\"\n\
    echo 'sleep 604' > state/guard\n\
    (cd state; setsid bash -c 'exec -a pgbaton sh guard' &)\n\
    date +%s%N >> state/starts\n\
    exec sleep 605\n";

/// Makes `n1` a primary unless `n2` is one, and runs PostgreSQL in its own place.
const POSTGRES_STAND_IN: &str = r#"#!/bin/bash
dir=$(dirname "$3") data=$(dirname "$3")/pg/data bin=/usr/lib/postgresql/15/bin
me=$(basename "$dir") as="setpriv --reuid postgres --regid postgres --init-groups"
copy() { $as $bin/pg_basebackup -h "$1" -U postgres -D "$data" -R -c fast -N; }
if [ ! -d "$data" ]; then
    if [ "$me" = n1 ] && ! copy 10.77.0.12; then
        $as $bin/initdb -D "$data" -A trust --no-sync
        printf 'host all all 10.77.0.0/24 trust
host replication all 10.77.0.0/24 trust
' >> "$data/pg_hba.conf"
    elif [ "$me" = n2 ]; then
        until copy 10.77.0.11; do rm -rf "$data"; sleep 0.1; done
    fi
fi
exec $as $bin/postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories= -c fsync=off
"#;

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

/// What the stand-in leaves running on a node once it is through: itself, its guard and the guard's child. Its shells on
/// the way end by themselves, so a test that counts on what it finds takes only these.
fn lasting(lab: &Lab, node: &str) -> [i32; 3] {
    let host = &lab.node(node).expect("node").host;
    wait_until(&format!("the processes of {node}"), SOON, || {
        let processes = host.processes();
        let sleeps = |argument: &str| {
            processes.iter().find(|process| procfs::arguments(process.pid) == ["sleep", argument]).map(|process| process.pid)
        };
        Some([sleeps("605")?, procfs::running_verb(&processes, "guard")?, sleeps("604")?])
    })
    .expect("lasting processes")
}

/// Whether one node reaches another by TCP on a port that answers or refuses.
fn reaches(lab: &Lab, from: &str, to: std::net::SocketAddr) -> bool {
    let script = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
    let node = lab.node(from).expect("node");
    match node.host.run(&["bash", "-c", &script], Span::from_millis(250)) {
        Ok(_) => true,
        Err(error) => format!("{error:#}").contains("refused"),
    }
}

/// The product's own check of what the lab writes.
fn configured(lab: &Lab) {
    for node in lab.nodes() {
        let config = pgbaton::config::read(&node.config()).map_err(|faults| faults.to_string()).expect("a valid configuration");
        assert_eq!(config.postgres.data_dir, node.data_dir());
        let hba = &config.bootstrap.policy.hba;
        assert!(hba.len() == 1 && hba[0].starts_with("host all all") && hba[0].ends_with("trust"), "{hba:?}");
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
        (Fault::PortDown("n1".into()), (false, false, true)),
        (Fault::OneWay("n1".into(), Direction::Outbound), (false, false, true)),
        (Fault::OneWay("n1".into(), Direction::Inbound), (false, false, true)),
        (Fault::CutFromEtcd("n1".into()), (true, false, true)),
        (Fault::CutFromPeers("n1".into()), (false, true, true)),
    ];
    for (fault, expected) in cases {
        let injected = lab.inject(&fault).expect("inject");
        wait_until(&fault.name(), SOON, || (seen() == expected).then_some(())).expect("what it names is gone, nothing else");
        lab.heal(&injected).expect("heal");
        // A carrier that comes back is noticed within a second (the kernel's linkwatch).
        wait_until(&fault.name(), SOON, || (seen() == (true, true, true)).then_some(())).expect("everything is given back");
    }
}

#[test]
fn agents_come_back_as_the_fault_says() {
    let bench = bench(|_| ());
    let (lab, agent) = (&bench.lab, &bench.agent);
    configured(lab);
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
    lab.inject(&Fault::DiskDead("n1".into())).expect("kill the disk");
    let dead = node.host.run(&["sh", "-c", &format!("echo > {data}/another")], SOON).expect_err("dead");
    assert!(format!("{dead:#}").contains("Input/output error"), "{dead:#}");
    lab.heal_all().expect("heal");
    started(lab, "n1", 2);
    node.host.run(&["ls", &format!("{data}/file")], SOON).expect("the file system is back");
    lab.inject(&Fault::WipeData("n1".into())).expect("wipe");
    assert!(node.host.run(&["ls", &data], SOON).is_err(), "the data directory is gone");
    started(lab, "n1", 3);
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

/// Real PostgreSQL under a stand-in for the agent: what a scenario of the integration suite is made of.
#[test]
fn a_scenario_is_built_harmed_healed_and_judged() {
    let bench = bench(|spec| {
        fs::write(&spec.agent, POSTGRES_STAND_IN).expect("write");
        spec.disk = Some(Bytes::new(256 << 20));
    });
    let lab = &bench.lab;
    assert_eq!(lab.wait_streaming(&["n1", "n2"], Span::from_secs(20)).expect("streaming"), "n1");
    let postmaster = lab.postmaster("n1").expect("postmaster");
    let service = lab.node("n1").expect("node").host.service("agent").expect("service");
    assert_eq!(procfs::namespace_pids(postmaster).last().copied(), service.pid, "found on a disk that only its host sees");
    lab.make_table("n1").expect("table");
    let marks = lab.log_marks().expect("marks");
    let (writer, island) = (lab.writer("main").expect("writer"), lab.island("n1").expect("island"));
    next_ack(&writer, Moment::ZERO, SOON).expect("writes");
    next_ack(&island, Moment::ZERO, SOON).expect("the island writes");
    let fault = lab.inject(&Fault::Partition("n1".into())).expect("partition");
    lab.query("n2", "SELECT pg_promote(true, 10)").expect("promote");
    let back = || writer.look(|journal| journal.acks.iter().find(|ack| ack.node == "n2").cloned());
    let back = wait_until("writes again", SOON, back).expect("writes again");
    assert_eq!(back.tli, 2);
    next_ack(&island, back.at, SOON).expect("nobody has stopped the island");
    let outage = writer.look(|journal| Outage::of(journal, fault.at, clock::boot())).expect("outage");
    assert!(outage.gap.length() > Span::from_millis(20) && outage.usual.is_some(), "{outage:?}");
    let journals = [writer.stop(), island.stop()];
    lab.heal_all().expect("heal");
    // What the nodes would have recorded: the first claim, and a failover that promised to lose nothing.
    let switch = lab.query("n2", "SELECT split_part(pg_read_file('pg_wal/00000002.history'), E'\t', 2)").expect("switch");
    let switch = switch[0][0].clone().expect("switch");
    for (term, node, tli, switch) in [(1, "n1", 1, "null".to_owned()), (2, "n2", 2, format!("\"{switch}\""))] {
        let record = format!(
            "{{\"v\":1,\"term\":{term},\"primary\":\"{node}\",\"from\":null,\"why\":\"test\",\"tli\":{tli},\"switch\":{switch},\
             \"former_lsn\":null,\"loss_bound\":0,\"phases\":{{\"promote\":110}},\"at\":\"\"}}"
        );
        lab.etcd().any(&["put", &format!("/pgbaton/lab/history/{term:020}"), &record]).expect("put");
    }
    let history = lab.history().expect("history");
    assert_eq!(outage.with_history(&history[1]).phases["promote"], Span::from_millis(110));
    lab.inject(&Fault::WipeData("n1".into())).expect("reinitialise by hand");
    let conclusion = lab.conclude(&journals, &marks, Span::from_secs(20)).expect("conclusion");
    assert_eq!(conclusion.streaming, Ok("n2".to_owned()));
    assert_eq!(conclusion.two_writers.len(), 1);
    assert_eq!((conclusion.lost.len(), conclusion.lost[0].judgement), (1, Judgement::Exceeds));
    assert!(conclusion.complaints(Excused::Announced).len() == 2, "{conclusion:?}");
}

/// What `demo` does without root: the same lab on loopback ports, and clear words about what cannot work.
#[test]
fn a_lab_without_namespaces_says_what_it_cannot_do() {
    let bench = bench(|spec| spec.walls = Some(Walls::Loopback));
    let lab = &bench.lab;
    configured(lab);
    started(lab, "n1", 1);
    for fault in [Fault::Partition("n1".into()), Fault::CopiedHost("n1".into()), Fault::DiskFull("n1".into())] {
        let Err(fault::Error::NotHere(NotHere(reason))) = lab.inject(&fault) else { panic!("{} was injected", fault.name()) };
        assert!(reason.contains("loopback ports"), "{reason}");
    }
    let mine = lasting(lab, "n1");
    lab.inject(&Fault::Freeze("n1".into())).expect("freeze");
    lab.heal_all().expect("thaw");
    let others = lasting(lab, "n2");
    lab.inject(&Fault::PowerOff("n1".into())).expect("off");
    assert!(mine.iter().all(|pid| !procfs::lives(*pid)) && others.iter().all(|pid| procfs::lives(*pid)));
    lab.heal_all().expect("on");
    started(lab, "n1", 2);
}

/// A child process of the next test, which kills it.
#[test]
#[ignore = "run by a_lab_whose_owner_was_killed_ends_and_can_be_swept"]
fn owner_of_a_lab() {
    let bench = bench(|_| ());
    let pids: Vec<String> = ["n1", "n2"].iter().flat_map(|node| lasting(&bench.lab, node)).map(|pid| pid.to_string()).collect();
    bench.lab.inject(&Fault::Freeze("n1".into())).expect("freeze");
    println!("lab {} {}", bench.lab.name(), pids.join(" "));
    std::thread::sleep(std::time::Duration::from_secs(60));
}

/// Scenario 24's worst case for the lab itself: its owner has no time to clear up, and a host stands still.
#[test]
fn a_lab_whose_owner_was_killed_ends_and_can_be_swept() {
    let mut owner = command::command(std::env::current_exe().expect("this test's program"));
    owner.args(["owner_of_a_lab", "--exact", "--ignored", "--nocapture"]).stdout(Stdio::piped());
    let mut owner = owner.spawn().expect("start");
    let lines = BufReader::new(owner.stdout.take().expect("output")).lines().map_while(Result::ok);
    let line = lines.filter_map(|line| line.find("lab ").map(|at| line[at..].to_owned())).find(|line| line.split(' ').count() > 4);
    let line = line.expect("the lab's name");
    let (name, pids): (&str, Vec<i32>) =
        (line.split(' ').nth(1).expect("name"), line.split(' ').skip(2).map(|pid| pid.parse().expect("pid")).collect());
    let directory = PathBuf::from(format!("/var/tmp/pgbaton-lab-{name}"));
    assert!(directory.exists() && pids.iter().all(|pid| procfs::lives(*pid)));
    owner.kill().expect("kill");
    owner.wait().expect("wait");
    wait_until("its processes to end", SOON, || pids.iter().all(|pid| !procfs::lives(*pid)).then_some(())).expect("ended");
    wait_until("its cgroups to go", SOON, || (!freezer::exists(name)).then_some(())).expect("gone");
    sweep_own(name).expect("sweep");
    assert!(!directory.exists());
}

#[test]
fn a_panic_or_an_interrupt_leaves_nothing() {
    let mut left = None;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let bench = bench(|_| ());
        let pids: Vec<i32> = ["n1", "n2"].iter().flat_map(|node| lasting(&bench.lab, node)).collect();
        bench.lab.inject(&Fault::Freeze("n1".into())).expect("freeze");
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
