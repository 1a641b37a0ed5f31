//! `make bench-failover`: how long writes are held up by each fault, and what an idle node costs.
//!
//! `BENCH_RUNS` (5) runs a cell, `BENCH_PRESETS` (`default,fast`), `BENCH_DURABILITY` (`async`; `quorum`), `BENCH_FAULTS` (a comma-separated part of the rows' names),
//! `BENCH_IDLE` (60) seconds of idleness; `BENCH_KEEP=1` leaves the lab's files. The table goes to standard output, every single run to `bench-failover.log`.

#![expect(clippy::expect_used, clippy::panic, reason = "a measurement that cannot go on ends")]

use pgbaton::{
    clock,
    lab::{
        EtcdTiming, Fault, Files, Lab, LabSpec, LibpqWriter, Return, Trial, Writer, command,
        command::wait_until,
        measure::median,
        status,
        verdict::{self, LostTail},
        writer::next_ack,
    },
    model::{
        lsn::Bytes,
        moment::{Moment, Span},
        policy::{Durability, Preset},
    },
};
use std::{
    env,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    thread,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");
/// How long anything may take that does not count.
const PATIENCE: Span = Span::from_secs(90);
/// Healthy time before each fault, which is the comparison.
const BEFORE: Span = Span::from_secs(6);
/// Between two looks.
const LOOK: Span = Span::from_millis(50);

/// One row of the table.
#[derive(Clone, Copy)]
struct Cell {
    name: &'static str,
    /// `None`: nothing happens.
    fault: Option<fn(&str) -> Fault>,
    /// The most that its median may be, in milliseconds, on `default` and on `fast`; `None`: no longer than without a fault.
    target: Option<(u64, u64)>,
    /// Whether the old primary has to come back.
    returns: bool,
    /// For how long it is watched at the least.
    least: Span,
}

/// How long the loss of a host may hold writes up, on `default` and on `fast`, where its lease has to be sat out.
const LEASE: (u64, u64) = (4_500, 2_600);
/// The same where a quorum deposes it.
const DEPOSED: (u64, u64) = (2_200, 1_500);

const fn cell(name: &'static str, fault: fn(&str) -> Fault, target: Option<(u64, u64)>, returns: bool, least: u64) -> Cell {
    Cell { name, fault: Some(fault), target, returns, least: Span::from_secs(least) }
}

const CELLS: [Cell; 9] = [
    Cell { name: "no fault", fault: None, target: None, returns: false, least: Span::from_secs(5) },
    cell("postmaster SIGKILL", |node| Fault::PostmasterKill(node.into()), Some((600, 600)), true, 3),
    cell("host power-off", |node| Fault::PowerOff(node.into()), Some(LEASE), true, 5),
    cell("host partition", |node| Fault::Partition(node.into()), Some(LEASE), true, 5),
    cell("power-off of primary and etcd leader", |node| Fault::PrimaryAndEtcdLeader(node.into()), Some(LEASE), true, 5),
    cell("host freeze", |node| Fault::Freeze(node.into()), Some(LEASE), true, 5),
    cell("agent SIGKILL, back at once", |node| Fault::AgentKill(node.into(), Return::AtOnce), None, false, 5),
    cell("etcd leader SIGKILL", |_| Fault::EtcdLeaderKill, None, false, 5),
    // Nobody depends on it: what this row shows is what a dying etcd costs the machine that all hosts share.
    cell("etcd follower SIGKILL", |_| Fault::EtcdFollowerKill, None, false, 5),
];

/// One run of a cell.
struct Run {
    gap: Span,
    usual: Span,
    libpq: Option<Span>,
    back: Option<Span>,
    note: String,
}

struct Bench {
    lab: Lab,
    writer: Writer,
    libpq: LibpqWriter,
    log: PathBuf,
    preset: &'static str,
    durability: Durability,
}

/// What commits wait for in this measurement.
fn durability() -> Durability {
    match env::var("BENCH_DURABILITY").as_deref() {
        Ok("quorum") => Durability::Quorum,
        Ok("async") | Err(_) => Durability::Async,
        Ok(other) => panic!("BENCH_DURABILITY is async or quorum, not {other:?}"),
    }
}

impl Bench {
    fn new(preset: &'static str, log: &Path) -> Self {
        let bin = env::var("PGBATON_TEST_BIN").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned());
        let mut spec = LabSpec::new(Path::new(PROGRAM), Path::new(&bin));
        spec.keep_files = if env::var("BENCH_KEEP").is_ok() { Files::Keep } else { Files::RemoveAlways };
        if preset == "fast" {
            spec.timing = EtcdTiming::FAST;
            spec.policy.preset = Preset::Fast;
        }
        spec.policy.durability = durability();
        let lab = Lab::build(&spec, &|_| ()).expect("lab");
        lab.start_agents().expect("agents");
        let primary = lab.wait_streaming(&["n1", "n2", "n3"], PATIENCE).expect("streaming");
        lab.make_table(&primary).expect("table");
        let (writer, libpq) = (lab.writer("client").expect("writer"), lab.libpq("libpq").expect("libpq"));
        next_ack(&writer, Moment::ZERO, PATIENCE).expect("writes");
        Self { lab, writer, libpq, log: log.to_owned(), preset, durability: durability() }
    }

    fn primary(&self) -> Option<String> {
        self.writer.look(|journal| journal.last().map(|ack| ack.node.clone()))
    }

    fn all_stream(&self) -> bool {
        self.primary().is_some_and(|primary| self.lab.streaming_from(&primary).is_ok_and(|count| count == 2))
    }

    fn wait_healthy(&self) {
        self.lab.wait_all_stream(PATIENCE, || self.primary()).expect("all stream");
        let voters = || {
            let records = self.lab.records("sync").ok()?;
            let count = records.get("sync")?.get("voters")?.as_array()?.len();
            (self.durability == Durability::Async || count == 2).then_some(())
        };
        wait_until("both replicas to vote", PATIENCE, voters).expect("voters");
        let now = clock::boot();
        wait_until("libpq's client", PATIENCE, || self.libpq.look(|journal| journal.last().filter(|ack| ack.at > now).map(|_| ())))
            .expect("it writes");
    }

    fn run(&self, cell: &Cell) -> Run {
        self.wait_healthy();
        thread::sleep(BEFORE.to_std());
        let Some(fault) = cell.fault else { return self.idle_run(cell.least) };
        let primary = self.primary().expect("a primary");
        let trial = Trial::begin(&self.lab, &fault(&primary)).expect("inject");
        let mut back = None;
        wait_until("writes", PATIENCE, || {
            thread::sleep(LOOK.to_std());
            if matches!(trial.injected.fault, Fault::PostmasterKill(_)) && back.is_none() && self.all_stream() {
                back = Some(clock::boot().since(trial.at()));
            }
            let now = clock::boot();
            let over = self.writer.look(|journal| trial.is_over(journal, now, cell.least));
            let libpq = self.libpq.look(|journal| trial.is_over(journal, now, cell.least));
            // libpq's client may be very late; its row is only reported.
            (over && (libpq || now.since(trial.at()) > Span::from_secs(30))).then_some(())
        })
        .expect("writes flow again");
        let until = clock::boot();
        let journal = self.writer.look(Clone::clone);
        let (outage, record) = trial.outage(&self.lab, &journal, until).expect("outage");
        let libpq = self.libpq.look(|journal| journal.longest_gap(trial.at(), until)).map(|gap| gap.length());
        let returned = if matches!(trial.injected.fault, Fault::PostmasterKill(_)) { trial.at() } else { clock::boot() };
        self.lab.heal(&trial.injected).expect("heal");
        self.lab.wait_all_stream(PATIENCE, || self.primary()).expect("all stream");
        let back = back.unwrap_or_else(|| clock::boot().since(returned));
        let why = record.map(|record| record.why).unwrap_or_default();
        Run {
            gap: outage.gap.length(),
            usual: outage.usual.as_ref().map_or(Span::ZERO, |usual| usual.length()),
            libpq,
            back: Some(back).filter(|_| cell.returns),
            note: format!(
                "gap at {} {:?} {why}",
                outage.gap.from.since(trial.at()),
                outage.phases.iter().map(|(name, span)| format!("{name} {span}")).collect::<Vec<_>>()
            ),
        }
    }

    fn idle_run(&self, least: Span) -> Run {
        let begun = clock::boot();
        thread::sleep(least.to_std());
        let gap = |from: Moment, to: Moment| self.writer.look(|journal| journal.longest_gap(from, to)).expect("gap").length();
        let libpq = self.libpq.look(|journal| journal.longest_gap(begun, clock::boot())).map(|gap| gap.length());
        Run { gap: gap(begun, clock::boot()), usual: gap(begun.minus(least), begun), libpq, back: None, note: String::new() }
    }

    fn log(&self, line: &str) {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).expect("open the log");
        let under = format!("{} {:?}", self.preset, self.durability).to_lowercase();
        writeln!(log, "{} {under} {line}", clock::wall()).expect("write the log");
        eprintln!("{under} {line}");
    }

    /// Rows that were acknowledged to anybody and are missing, and whether two were primary at once.
    fn judge(&self) -> (Vec<LostTail>, usize) {
        let journals = [self.writer.look(Clone::clone), self.libpq.look(Clone::clone)];
        let primary = self.primary().expect("a primary");
        let history = self.lab.history().expect("history");
        let survivors = self.lab.survivors(&primary).expect("survivors");
        (verdict::lost(&journals, &survivors, &verdict::recorded(&history)), verdict::two_writers(&journals).len())
    }
}

#[test]
#[ignore = "make bench-failover: minutes, and it wants a machine for itself"]
fn bench_failover() {
    let number = |name: &str, usual: u64| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let runs = number("BENCH_RUNS", 5);
    let wanted = env::var("BENCH_FAULTS").unwrap_or_default();
    let chosen = |cell: &&Cell| wanted.is_empty() || wanted.split(',').any(|part| cell.name.contains(part));
    let presets = env::var("BENCH_PRESETS").unwrap_or_else(|_| "default,fast".to_owned());
    let log = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-failover.log");
    let mut tables = String::new();
    for preset in ["default", "fast"].into_iter().filter(|preset| presets.split(',').any(|wanted| wanted == *preset)) {
        let bench = Bench::new(preset, &log);
        bench.log(&format!("commit {} {runs} runs, load {}", commit(), load()));
        let mut rows = Vec::new();
        for cell in CELLS.iter().filter(chosen) {
            let mut done = Vec::new();
            for number in 1..=runs {
                let run = bench.run(cell);
                let shown = |span: Option<Span>| span.map_or_else(|| "-".to_owned(), |span| span.rounded().to_string());
                bench.log(&format!(
                    "{} #{number}: gap {} usual {} libpq {} back {} load {} {}",
                    cell.name,
                    run.gap.rounded(),
                    run.usual.rounded(),
                    shown(run.libpq),
                    shown(run.back),
                    load(),
                    run.note
                ));
                done.push(run);
            }
            rows.push((cell, done));
        }
        let (lost, two_writers) = bench.judge();
        bench.log(&format!("lost {lost:?}; two writers {two_writers}"));
        let idle = idle(bench, number("BENCH_IDLE", 60));
        tables.push_str(&table(preset, &rows, &idle));
        assert_eq!(two_writers, 0, "two writers");
        // In `quorum` nothing may be lost, announced or not.
        assert!(lost.iter().all(|tail| durability() == Durability::Async && tail.is_announced()), "{lost:?}");
    }
    println!("\n{tables}");
    let mut file = OpenOptions::new().create(true).append(true).open(&log).expect("open the log");
    writeln!(file, "{tables}").expect("write the log");
}

/// What an idle node costs: agent and guard of the primary, and of the dearest replica.
fn idle(bench: Bench, seconds: u64) -> Vec<String> {
    let Bench { lab, writer, libpq, .. } = bench;
    let primary = writer.stop().last().map(|ack| ack.node.clone()).expect("a primary");
    drop(libpq);
    thread::sleep(Span::from_secs(5).to_std());
    let cost = |node: &str| lab.cost(node).expect("cost");
    let before: Vec<_> = lab.nodes().iter().map(|node| cost(&node.name)).collect();
    thread::sleep(Span::from_secs(seconds).to_std());
    let mut lines = Vec::new();
    for (node, before) in lab.nodes().iter().zip(before) {
        let after = cost(&node.name);
        let minute = after.processor.minus(before.processor).as_secs_f64() * 60.0 / seconds as f64;
        let role = if node.name == primary { "primary" } else { "replica" };
        let megabytes = after.memory.get() as f64 / f64::from(1 << 20);
        let decision = status::fetch(&node.agent_socket(), "/metrics", Span::from_secs(2)).ok().and_then(|text| p99(&text));
        let decision = decision.map_or_else(|| "?".to_owned(), |(bound, count)| format!("≤ {:.3} ms of {count}", bound * 1_000.0));
        lines.push(format!("idle {role} {}: {megabytes:.1} MB (PSS), {minute:.2} s CPU a minute, decision p99 {decision}", node.name));
        assert!(after.memory > Bytes::new(1 << 20), "agent and guard were found");
    }
    lines
}

/// The bound below which 99 % of the decisions lie, and how many there were.
fn p99(metrics: &str) -> Option<(f64, u64)> {
    let lines = metrics.lines().filter(|line| line.starts_with("pgbaton_decision_duration_seconds_bucket"));
    let bucket = |line: &str| {
        let bound = line.split("le=\"").nth(1)?.split('"').next()?.parse::<f64>().ok()?;
        Some((bound, line.rsplit(' ').next()?.parse::<f64>().ok()? as u64))
    };
    let buckets: Vec<(f64, u64)> = lines.filter_map(bucket).collect();
    let all = buckets.iter().map(|(_, count)| *count).max()?;
    buckets.into_iter().find(|(_, count)| count * 100 >= all * 99).map(|(bound, _)| (bound, all))
}

fn table(preset: &str, rows: &[(&Cell, Vec<Run>)], idle: &[String]) -> String {
    let seconds = |span: Option<Span>| span.map_or_else(|| "–".to_owned(), |span| format!("{:.2}", span.as_secs_f64()));
    let mut text = format!("`{preset}`, {} (commit {}, load {}):\n\n", format!("{:?}", durability()).to_lowercase(), commit(), load());
    text.push_str(
        "| fault | outage: median (min–max), s | target | without a fault: median (max) | libpq multi-host | old primary streams again |\n",
    );
    text.push_str("| --- | --- | --- | --- | --- | --- |\n");
    for (cell, runs) in rows {
        let gaps: Vec<Span> = runs.iter().map(|run| run.gap).collect();
        let usual = median(&runs.iter().map(|run| run.usual).collect::<Vec<_>>());
        let middle = median(&gaps);
        let target = cell.target.map(|target| if target == LEASE && durability() != Durability::Async { DEPOSED } else { target });
        let target = target.map(|(default, fast)| Span::from_millis(if preset == "fast" { fast } else { default }));
        // The longest gap of as many runs without a fault: two medians of the same thing differ by chance.
        let longest = runs.iter().map(|run| run.usual).max();
        let tenth = |span: Span| Span::from_millis(span.as_millis().next_multiple_of(10));
        let limit = target.or(longest.filter(|_| cell.fault.is_some()).map(tenth));
        let missed = if middle > limit && limit.is_some() { " ✗" } else { "" };
        let named = match (cell.fault, target) {
            (None, _) => "–".to_owned(),
            (_, None) => "0".to_owned(),
            (_, target) => format!("≤ {}", seconds(target)),
        };
        let _ = writeln!(
            text,
            "| {} | {}{missed} ({}–{}) | {named} | {} ({}) | {} | {} |",
            cell.name,
            seconds(middle),
            seconds(gaps.iter().min().copied()),
            seconds(gaps.iter().max().copied()),
            seconds(usual),
            seconds(longest),
            seconds(median(&runs.iter().filter_map(|run| run.libpq).collect::<Vec<_>>())),
            seconds(median(&runs.iter().filter_map(|run| run.back).collect::<Vec<_>>())),
        );
    }
    let _ = writeln!(text, "\n{}\n", idle.join("\n"));
    text
}

fn commit() -> String {
    let text = command::run(&["git", "-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"], "", command::QUICK);
    text.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}
