//! `make bench-commit`: what a commit of a managed cluster in `quorum` takes, against plain `ANY 1` with nobody around.
//!
//! The same servers serve both halves of a pair. Managed: agents and guards at work, etcd written at each renewal. Plain: the cluster is
//! paused, which takes the deadline away, and every agent and guard is stopped by a signal; PostgreSQL goes on with the same
//! `synchronous_standby_names` as if an operator had set them by hand. `BENCH_PAIRS` (12) pairs of `BENCH_SECONDS` (8) each, the halves in
//! turn; the ratio's interval is that of the median by order statistics (at least 95 %).

#![expect(clippy::expect_used, clippy::panic, reason = "a measurement that cannot go on ends")]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgbaton::{
    lab::{Files, Lab, LabSpec, command::wait_until, procfs},
    model::{moment::Span, policy::Durability},
};
use std::{env, fs::OpenOptions, io::Write as _, path::Path};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");
const PATIENCE: Span = Span::from_secs(90);
const NODES: [&str; 3] = ["n1", "n2", "n3"];

struct Bench {
    lab: Lab,
    primary: String,
    pgbench: String,
    seconds: String,
}

impl Bench {
    fn new(bin: &str, seconds: u64) -> Self {
        let mut spec = LabSpec::new(Path::new(PROGRAM), Path::new(bin));
        spec.keep_files = Files::RemoveAlways;
        spec.policy.durability = Durability::Quorum;
        let lab = Lab::build(&spec, &|_| ()).expect("lab");
        lab.start_agents().expect("agents");
        let primary = lab.wait_streaming(&NODES, PATIENCE).expect("streaming");
        let bench = Self { lab, primary, pgbench: format!("{bin}/pgbench"), seconds: seconds.to_string() };
        bench.wait_voters();
        bench.pgbench(&["-i", "-q", "-s", "10"]);
        bench
    }

    fn wait_voters(&self) {
        let voters = || (self.lab.records("sync").ok()?.get("sync")?.get("voters")?.as_array()?.len() == 2).then_some(());
        wait_until("both replicas to vote", PATIENCE, voters).expect("voters");
    }

    fn pgbench(&self, words: &[&str]) -> String {
        let server = self.lab.node(&self.primary).expect("node").server();
        let (host, port) = (server.address.ip().to_string(), server.address.port().to_string());
        let login = self.lab.login();
        let to = [self.pgbench.as_str(), "-h", &host, "-p", &port, "-U", &login.user];
        let argv: Vec<&str> = to.into_iter().chain(words.iter().copied()).chain([login.database.as_str()]).collect();
        self.lab.client().run(&argv, Span::from_secs(300)).expect("pgbench")
    }

    /// The mean latency of a transaction, in milliseconds, by pgbench.
    fn latency(&self) -> f64 {
        let text = self.pgbench(&["-n", "-N", "-c", "4", "-j", "2", "-T", &self.seconds]);
        let line = text.lines().find_map(|line| line.strip_prefix("latency average = ")).unwrap_or_else(|| panic!("{text}"));
        line.trim_end_matches(" ms").parse().unwrap_or_else(|_| panic!("{line}"))
    }

    fn verb(&self, words: &[&str]) {
        let node = self.lab.node(&self.primary).expect("node");
        let config = node.config().display().to_string();
        node.host.run(&[&[PROGRAM, "--config", &config], words].concat(), PATIENCE).expect("verb");
    }

    fn is_armed(&self) -> Option<bool> {
        Some(self.lab.ask(&self.primary, "/v1/status").ok()?.pointer("/fencing/armed_seconds_left")?.as_f64().is_some())
    }

    /// Stops or continues every agent and guard.
    fn signal_all(&self, signal: Signal) {
        for name in NODES {
            let processes = self.lab.node(name).expect("node").host.processes();
            for verb in ["agent", "guard"] {
                let pid = procfs::running_verb(&processes, verb).unwrap_or_else(|| panic!("no {verb} on {name}"));
                kill(Pid::from_raw(pid), signal).expect("signal");
            }
        }
    }

    fn managed(&self) -> f64 {
        self.latency()
    }

    fn plain(&self) -> f64 {
        self.verb(&["pause", "--reason", "measured without pgbaton", "--yes"]);
        wait_until("the deadline to be taken away", PATIENCE, || (self.is_armed() == Some(false)).then_some(())).expect("paused");
        self.signal_all(Signal::SIGSTOP);
        let latency = self.latency();
        self.signal_all(Signal::SIGCONT);
        self.verb(&["resume", "--yes"]);
        wait_until("the deadline to be armed again", PATIENCE, || (self.is_armed() == Some(true)).then_some(())).expect("resumed");
        self.wait_voters();
        latency
    }
}

/// The interval of the median with at least 95 %: from the k-th smallest to the k-th largest, by the binomial distribution.
fn interval(sorted: &[f64]) -> (f64, f64) {
    let n = sorted.len();
    let (mut tail, mut term, mut low) = (0.0, 0.5_f64.powi(i32::try_from(n).expect("few")), 0);
    while tail + term <= 0.025 {
        tail += term;
        term *= (n - low) as f64 / (low + 1) as f64;
        low += 1;
    }
    let low = low.saturating_sub(1);
    (sorted[low], sorted[n - 1 - low])
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
#[ignore = "measures: make bench-commit"]
fn bench_commit() {
    let bin = env::var("PGBATON_TEST_BIN").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned());
    let bench = Bench::new(&bin, number("BENCH_SECONDS", 8));
    // The first ones fill caches.
    let _ = (bench.managed(), bench.plain());
    let mut log = OpenOptions::new().create(true).append(true).open("bench-commit.log").expect("log");
    let mut ratios = Vec::new();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for pair in 0..number("BENCH_PAIRS", 12) {
        let (managed, plain) = if pair % 2 == 0 {
            let managed = bench.managed();
            (managed, bench.plain())
        } else {
            let plain = bench.plain();
            (bench.managed(), plain)
        };
        writeln!(log, "pair {pair}: managed {managed:.3} ms, plain {plain:.3} ms, ratio {:.4}", managed / plain).expect("log");
        println!("pair {pair}: managed {managed:.3} ms, plain {plain:.3} ms, ratio {:.4}", managed / plain);
        ratios.push(managed / plain);
        ours.push(managed);
        theirs.push(plain);
    }
    for of in [&mut ratios, &mut ours, &mut theirs] {
        of.sort_by(f64::total_cmp);
    }
    let middle = |of: &[f64]| f64::midpoint(of[(of.len() - 1) / 2], of[of.len() / 2]);
    let (low, high) = interval(&ratios);
    println!("\ncommit in `quorum`: {:.3} ms; plain ANY 1: {:.3} ms (medians of {} pairs)", middle(&ours), middle(&theirs), ratios.len());
    println!("ratio: {:.4}, 95 % interval {low:.4} to {high:.4}; target at most 1.02 within it", middle(&ratios));
}
