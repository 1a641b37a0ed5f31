//! `pgbaton demo` as a person starts it.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends here")]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgbaton::{
    lab::{
        command::{command, run, wait_until},
        procfs,
    },
    model::moment::Span,
};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");

fn leftovers(pid: u32) -> Vec<String> {
    let entries = fs::read_dir("/var/tmp").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&format!("pgbaton-lab-{pid}-")))
        .collect()
}

const FAULTS: [&str; 7] = ["postmaster-kill", "power-off", "partition", "freeze", "agent-kill", "agent-loss", "etcd-leader-kill"];

/// Its table has these faults, and no two writers in any of them.
fn judge(table: &str, faults: &[&str]) {
    for fault in FAULTS {
        assert_eq!(table.contains(fault), faults.contains(&fault), "{fault}: {table}");
    }
    assert_eq!(table.lines().filter(|line| line.contains(" never ")).count(), faults.len(), "{table}");
}

/// Every fault once: nobody is harmed in a way that was not announced, and nothing is left.
#[test]
#[ignore = "two minutes"]
fn slow_demo_script() {
    let text = run(&[PROGRAM, "demo", "--script", "--preset", "fast"], "", Span::from_secs(400)).expect("the tour ends well");
    judge(&text, &FAULTS);
}

#[test]
#[ignore = "two minutes"]
fn slow_demo_script_on_the_default_preset() {
    let text = run(&[PROGRAM, "demo", "--script"], "", Span::from_secs(400)).expect("the tour ends well");
    judge(&text, &FAULTS);
}

/// Without root there are no namespaces: what needs them says so, and the rest works on loopback ports.
#[test]
#[ignore = "two minutes"]
fn slow_demo_script_without_root() {
    let directory = tempfile::tempdir_in("/var/tmp").expect("directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("open it to all");
    let program = directory.path().join("pgbaton");
    fs::copy(PROGRAM, &program).expect("copy the program");
    let mut demo = command("setpriv");
    demo.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"]).arg(&program);
    let output = demo.args(["demo", "--script", "--preset", "fast"]).current_dir("/").stdin(Stdio::null()).output().expect("run");
    let (table, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    let why = "network namespaces need root, and this lab is not";
    for line in [format!("on loopback ports: cannot be done here: {why}"), format!("cut the host off: cannot be done here: {why}")] {
        let short = line.replace("cannot be done here: ", "");
        assert!(told.contains(&line) || told.contains(&short), "{line}: {told}");
    }
    judge(&table, &FAULTS.into_iter().filter(|fault| *fault != "partition").collect::<Vec<_>>());
}

#[test]
fn a_demo_without_a_terminal_says_what_to_do_instead() {
    let refused = run(&[PROGRAM, "demo"], "", Span::from_secs(10)).expect_err("no terminal");
    assert!(format!("{refused:#}").contains("try: pgbaton demo --script"), "{refused:#}");
}

/// Killed in the middle of its work: processes and files are gone all the same.
#[test]
fn a_demo_that_was_killed_leaves_nothing() {
    let mut demo = command(PROGRAM);
    demo.args(["demo", "--script"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut demo = demo.spawn().expect("start");
    let pid = demo.id();
    let lines = BufReader::new(demo.stderr.take().expect("stderr")).lines().map_while(Result::ok);
    let begun = lines.take_while(|line| !line.contains("agents")).count();
    assert!(begun > 3, "it came as far as the agents");
    assert_eq!(leftovers(pid).len(), 1);
    demo.kill().expect("kill");
    demo.wait().expect("wait");
    wait_until("everything to go", Span::from_secs(20), || leftovers(pid).is_empty().then_some(())).expect("gone");
}

/// The network of a process, as the kernel names it.
fn network(pid: &str) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/ns/net")).ok().map(|link| link.display().to_string())
}

/// What a lab had while it worked.
struct Lab {
    name: String,
    processes: Vec<i32>,
    networks: BTreeSet<String>,
    named_networks: String,
}

impl Lab {
    fn of_demo(pid: u32, named_networks: String) -> Self {
        let name = leftovers(pid).pop().and_then(|name| Some(name.strip_prefix("pgbaton-lab-")?.to_owned())).expect("a lab");
        let processes: Vec<i32> = procfs::descendants(pid.cast_signed()).iter().map(|process| process.pid).collect();
        let own = network("self").expect("own network");
        let networks = processes.iter().filter_map(|pid| network(&pid.to_string())).filter(|network| *network != own).collect();
        Self { name, processes, networks, named_networks }
    }

    /// Everything that is left of it: processes (its own and whoever bears its name), networks, mounts, files and cgroups.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self.processes.iter().filter(|pid| procfs::lives(**pid)).map(|pid| format!("process {pid}")).collect();
        for process in procfs::all() {
            let pid = process.pid.to_string();
            let words = procfs::arguments(process.pid).join(" ");
            let here = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            if words.contains(&self.name) || here.to_string_lossy().contains(&self.name) {
                left.push(format!("process {pid}: {words}"));
            }
            left.extend(network(&pid).filter(|network| self.networks.contains(network)).map(|network| format!("{network} of {pid}")));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let of_lab = |line: &&str| line.contains(&self.name) || self.networks.iter().any(|network| line.contains(network));
        left.extend(mounts.lines().filter(of_lab).map(|line| format!("mount {line}")));
        for root in ["/var/tmp", "/tmp", "/sys/fs/cgroup", "/sys/fs/cgroup/freezer"] {
            let path = Path::new(root).join(format!("pgbaton-lab-{}", self.name));
            left.extend(path.exists().then(|| format!("directory {}", path.display())));
        }
        let named = named_networks();
        left.extend((named != self.named_networks).then(|| format!("ip netns: {named}")));
        left
    }
}

fn named_networks() -> String {
    run(&["ip", "netns", "list"], "", Span::from_secs(10)).expect("ip netns")
}

/// Ctrl-C in the middle of the tour, after the first fault.
#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    let before = named_networks();
    let mut demo = command(PROGRAM);
    demo.args(["demo", "--script"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut demo = demo.spawn().expect("start");
    let mut lines = BufReader::new(demo.stderr.take().expect("stderr")).lines().map_while(Result::ok);
    let begun: Vec<String> = lines.by_ref().take_while(|line| !line.contains("postmaster-kill")).collect();
    assert!(demo.try_wait().expect("look").is_none(), "it ended before: {begun:?}");
    let lab = Lab::of_demo(demo.id(), before);
    assert!(lab.processes.len() > 20 && lab.left().len() > lab.processes.len(), "nothing to clear up: {:?}", lab.left());
    assert!(lab.networks.len() >= 7, "a network for each host and the switch: {:?}", lab.networks);
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).expect("interrupt");
    let said: Vec<String> = lines.collect();
    let status = demo.wait().expect("wait");
    assert_eq!(status.code(), Some(1), "{said:?}");
    assert!(said.iter().any(|line| line.contains("interrupted: everything was removed")), "{said:?}");
    let mut left = Vec::new();
    let gone = wait_until("everything to go", Span::from_secs(20), || {
        left = lab.left();
        left.is_empty().then_some(())
    });
    gone.unwrap_or_else(|error| panic!("{error:#}: {left:?}"));
}
