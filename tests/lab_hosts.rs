//! Hosts of the lab: what is separate, what dies, what stands still, and that nothing stays behind.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends")]

use pgbaton::{
    clock,
    lab::{
        Cut, Host, Lost, Switch, Walls,
        command::{self, wait_until},
        freezer,
        host_init::Service,
        procfs,
        switch::ipv4,
    },
    model::moment::Span,
};
use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");
const SOON: Span = Span::from_secs(20);

fn unique() -> String {
    format!("{}-{}", std::process::id(), clock::data_incarnation())
}

/// The machine's named namespaces, mounts, lab cgroups and loop devices.
fn machine(lab: &str) -> Vec<String> {
    let mut found: Vec<String> = command::run(&["ip", "netns"], "", SOON).expect("ip netns").lines().map(str::to_owned).collect();
    found.extend(fs::read_to_string("/proc/self/mounts").expect("mounts").lines().map(str::to_owned));
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/freezer"] {
        let directory = Path::new(root).join(format!("pgbaton-lab-{lab}"));
        found.extend(directory.exists().then(|| directory.display().to_string()));
    }
    found
}

fn sleeper(directory: &Path, seconds: u32) -> Service {
    service(directory, &["sleep", &seconds.to_string()])
}

fn service(directory: &Path, argv: &[&str]) -> Service {
    Service {
        argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        env: BTreeMap::new(),
        log: directory.join("log"),
        directory: directory.to_owned(),
        user: None,
        restart_after: None,
    }
}

struct Bench {
    lab: String,
    directory: tempfile::TempDir,
    switch: Switch,
    hosts: Vec<Host>,
}

impl Bench {
    fn new(count: u8) -> Self {
        let lab = unique();
        let switch = Switch::new(&lab, Path::new(PROGRAM)).expect("switch");
        let hosts = (1..=count).map(|number| Host::new(&lab, &format!("h{number}"), Path::new(PROGRAM), Walls::Namespaces, Vec::new()));
        let hosts = hosts.collect();
        let bench = Self { lab, directory: tempfile::tempdir().expect("directory"), switch, hosts };
        for (host, number) in bench.hosts.iter().zip(1..) {
            host.power_on().expect("power");
            bench.switch.plug(host, number).expect("plug");
        }
        bench
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.hosts.clear();
    }
}

#[test]
fn a_lab_that_was_torn_down_leaves_nothing() {
    let bench = Bench::new(2);
    let lab = bench.lab.clone();
    let before: Vec<String> = machine("none");
    bench.hosts[0].start("sleeper", sleeper(bench.at(), 600)).expect("start");
    let pids: Vec<i32> = bench.hosts.iter().map(|host| host.pid().expect("pid")).chain([bench.hosts[0].processes()[0].pid]).collect();
    assert!(freezer::exists(&lab), "the lab has cgroups while it lives");
    drop(bench);
    let left: Vec<i32> = pids.into_iter().filter(|pid| procfs::lives(*pid)).collect();
    assert_eq!(left, Vec::<i32>::new());
    wait_until("the keeper to clear up", SOON, || (machine(&lab) == before).then_some(())).expect("nothing left");
}

/// Scenario 24's tool: nothing outlives the lab, even when it is killed and has no time to clear up, and a host is frozen.
#[test]
fn a_host_dies_with_its_lab_also_when_it_is_frozen() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("line");
    let lab = unique();
    let cgroup = freezer::Freezer::create(&lab, "h1").expect("cgroup");
    let boot = serde_json::json!({"name": "h1", "namespaces": true, "cgroup": cgroup.directory(), "disks": []}).to_string();
    let mut keeper = command::command(PROGRAM);
    keeper.args(["lab-init", &boot]).stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let mut keeper = keeper.spawn().expect("keeper");
    let procs = || fs::read_to_string(cgroup.directory().join("cgroup.procs")).unwrap_or_default();
    let init: i32 = wait_until("the init", SOON, || procs().trim().parse().ok()).expect("init");
    drop(keeper.stdin.take());
    cgroup.freeze().expect("freeze");
    drop(ours);
    wait_until("the keeper to end", SOON, || keeper.try_wait().expect("wait")).expect("end");
    assert!(!procfs::lives(init) && !freezer::exists(&lab));
}

/// EXP-18: a PID namespace inside the host, its init stopped, dies with the power too.
#[test]
fn power_off_kills_nested_pid_namespaces_at_once() {
    let bench = Bench::new(1);
    let host = &bench.hosts[0];
    let nested = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "setsid sleep 601 & kill -STOP $$; wait"];
    host.start("nested", service(bench.at(), &nested)).expect("start");
    let sleeping = || host.processes().into_iter().find(|process| process.name == "sleep").map(|process| process.pid);
    let deep = wait_until("the nested process", SOON, sleeping).expect("nested");
    assert_eq!(procfs::namespace_pids(deep).len(), 3, "lab, host, nested");
    let pids: Vec<i32> = host.processes().iter().map(|process| process.pid).collect();
    bench.switch.unplug("h1").expect("unplug");
    host.power_off().expect("off");
    assert_eq!(pids.into_iter().filter(|pid| procfs::lives(*pid)).collect::<Vec<_>>(), Vec::<i32>::new());
    assert!(host.service("nested").is_err(), "a host without power answers nothing");
    host.power_on().expect("on again");
    bench.switch.plug(host, 1).expect("plug again");
    assert_eq!(host.processes(), Vec::new());
}

/// The trap of these machines: a re-parented orphan stays a zombie for a second where nobody of ours reaps it.
#[test]
fn orphans_are_reaped_at_once() {
    let bench = Bench::new(1);
    let host = &bench.hosts[0];
    host.start("parent", service(bench.at(), &["sh", "-c", "setsid sleep 602 & sleep 603"])).expect("start");
    let sleeping = || host.processes().into_iter().find(|process| procfs::arguments(process.pid).ends_with(&["602".into()]));
    let orphan = wait_until("the orphan", SOON, sleeping).expect("orphan").pid;
    host.kill_service("parent").expect("kill the parent");
    host.kill_process(orphan).expect("kill");
    wait_until("its entry to go", Span::from_millis(300), || (!Path::new(&format!("/proc/{orphan}")).exists()).then_some(()))
        .expect("reaped, not a zombie");
}

#[test]
fn a_service_that_may_restart_does_and_one_that_may_not_does_not() {
    let bench = Bench::new(1);
    let host = &bench.hosts[0];
    let once = sleeper(bench.at(), 600);
    let always = Service { restart_after: Some(Span::from_millis(20)), ..once.clone() };
    host.start("agent", always.clone()).expect("start");
    host.kill_service("agent").expect("kill");
    let back = || host.service("agent").ok().filter(|state| state.pid.is_some() && state.starts == 2);
    let state = wait_until("the restart", SOON, back).expect("restarted");
    assert_eq!(state.ended.as_deref(), Some("signal SIGKILL"));
    host.change("agent", once).expect("no restart");
    host.kill_service("agent").expect("kill");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(host.service("agent").expect("state").pid, None);
    host.change("agent", always).expect("restart allowed");
    wait_until("the start", SOON, || host.service("agent").ok().filter(|state| state.starts == 3)).expect("started");
    let failed = host.start("nobody", service(bench.at(), &["/no/such/program"])).expect_err("no such program");
    assert!(format!("{failed:#}").contains("/no/such/program"), "{failed:#}");
}

#[test]
fn a_frozen_host_stands_still_and_goes_on_after_the_thaw() {
    let bench = Bench::new(1);
    let host = &bench.hosts[0];
    let file = bench.at().join("ticks");
    let loop_text = format!("while :; do echo >> {}; sleep 0.01; done", file.display());
    host.start("ticker", service(bench.at(), &["sh", "-c", &loop_text])).expect("start");
    let ticks = || fs::metadata(&file).map(|metadata| metadata.len()).unwrap_or_default();
    wait_until("ticks", SOON, || (ticks() > 3).then_some(())).expect("ticking");
    host.freeze().expect("freeze");
    let before = ticks();
    thread::sleep(Duration::from_millis(150));
    assert_eq!(ticks(), before);
    host.thaw().expect("thaw");
    wait_until("more ticks", SOON, || (ticks() > before).then_some(())).expect("ticking again");
}

/// A UDP socket in a host's network that counts what it gets from each sender.
fn receive(host: &Host, address: SocketAddr) -> UdpSocket {
    let network = host.network().clone();
    let socket = thread::spawn(move || {
        network.enter().expect("enter");
        UdpSocket::bind(address).expect("bind")
    });
    let socket = socket.join().expect("thread");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
    socket
}

fn heard(from: &UdpSocket, to: &UdpSocket) -> bool {
    let mut buffer = [0; 16];
    from.send_to(b"hello", to.local_addr().expect("address")).expect("send");
    to.recv_from(&mut buffer).is_ok()
}

#[test]
fn a_one_way_partition_loses_one_direction_only() {
    let bench = Bench::new(3);
    let sockets: Vec<UdpSocket> =
        bench.hosts.iter().zip(1..).map(|(host, number)| receive(host, SocketAddr::new(ipv4(number), 7_000))).collect();
    let (a, b, c) = (&sockets[0], &sockets[1], &sockets[2]);
    let cut = |from: &str, to: &str, what: Lost| vec![Cut { from: from.into(), to: to.into(), what }];
    assert!(heard(a, b) && heard(b, a));
    bench.switch.cut("one way", cut("h1", "h2", Lost::Packets)).expect("cut");
    assert!(!heard(a, b) && heard(b, a) && heard(a, c));
    // TCP needs both: a connection in the open direction cannot be made either.
    let dial = |host: &Host, to: u8| host.run(&["bash", "-c", &format!("exec 3<>/dev/tcp/{}/7001", ipv4(to))], Span::from_millis(400));
    let listener = {
        let network = bench.hosts[0].network().clone();
        thread::spawn(move || {
            network.enter().expect("enter");
            std::net::TcpListener::bind(SocketAddr::new(ipv4(1), 7_001)).expect("listen")
        })
        .join()
        .expect("thread")
    };
    assert!(dial(&bench.hosts[1], 1).is_err() && dial(&bench.hosts[2], 1).is_ok());
    bench.switch.cut("ports", cut("h3", "h1", Lost::Ports(vec![7_001]))).expect("cut");
    assert!(dial(&bench.hosts[2], 1).is_err() && heard(c, a), "the port alone is cut");
    bench.switch.mend("one way").expect("mend");
    assert!(heard(a, b) && dial(&bench.hosts[1], 1).is_ok());
    drop(listener);
}

#[test]
fn a_host_gets_a_file_system_of_its_own_that_can_be_full() {
    let directory = tempfile::tempdir().expect("directory");
    let (image, at): (PathBuf, PathBuf) = (directory.path().join("image"), directory.path().join("disk"));
    fs::create_dir(&at).expect("mount point");
    let disk = pgbaton::lab::disk::create(&image, &at, 16 << 20, "root").expect("disk");
    let host = Host::new(&unique(), "h1", Path::new(PROGRAM), Walls::Namespaces, vec![disk]);
    host.power_on().expect("on");
    let file = at.join("file").display().to_string();
    host.run(&["sh", "-c", &format!("echo kept > {file}; sync")], SOON).expect("write");
    assert!(!Path::new(&file).exists(), "the machine does not see it");
    pgbaton::lab::disk::fill(&host, &at).expect("fill");
    let refused = host.run(&["sh", "-c", &format!("head -c 65536 /dev/zero > {file}.more")], SOON).expect_err("full");
    assert!(format!("{refused:#}").contains("No space left"), "{refused:#}");
    pgbaton::lab::disk::empty(&host, &at).expect("make room");
    host.power_off().expect("off");
    host.power_on().expect("on");
    assert_eq!(host.run(&["cat", &file], SOON).expect("read"), "kept\n");
}
