//! How long it takes, as tables: `make bench-guard`.

use super::host::{Host, MODES, PATIENCE, arm, emptied, eventually, signal};
use pgbaton::{
    clock,
    model::{
        instance::StartAs,
        moment::{Moment, Span},
        term::Term,
    },
};
use std::fs;

/// `BENCH_RUNS`, or 20.
fn runs() -> usize {
    std::env::var("BENCH_RUNS").ok().and_then(|text| text.parse().ok()).filter(|runs| *runs > 0).unwrap_or(20)
}

fn head(what: &str) {
    println!("\n| {what} | median (min–max), ms | runs |\n|---|---|---|");
}

fn report(what: &str, mut spans: Vec<Span>) {
    spans.sort();
    let [median, least, most] = [spans.len() / 2, 0, spans.len() - 1].map(|at| spans[at].as_secs_f64() * 1e3);
    println!("| {what} | {median:.1} ({least:.1}–{most:.1}) | {} |", spans.len());
}

/// Looks at the processes of PostgreSQL without a pause until none lives.
fn last_dead(processes: &[i32]) -> Moment {
    let lives = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    while processes.iter().any(lives) {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    clock::boot()
}

/// From the deadline to the death of the last process, with four busy backends.
#[tokio::test]
#[ignore = "a measurement"]
async fn bench_deadline() {
    head("from the deadline to the last process dead");
    for mode in MODES {
        for stopped in [false, true] {
            let mut spans = Vec::new();
            for _ in 0..runs() {
                let host = Host::with_postgres(mode).await;
                let (guard, _changes) = host.primary(1).await;
                let _clients: Vec<_> = (0..4).map(|_| host.busy(30)).collect();
                eventually("the backends are busy", PATIENCE, async || (host.busy_backends() == 4).then_some(())).await;
                let mut all: Vec<i32> = host.postgres().into_iter().collect();
                let until = arm(&guard, 1, Span::from_millis(800)).await;
                if stopped {
                    all.extend(host.keepers());
                    all.push(host.guard_pid());
                    all.iter().for_each(|pid| signal(*pid, "STOP"));
                    assert!(clock::boot() < until, "stopped in time");
                }
                let dead = last_dead(&all);
                assert!(dead >= until);
                spans.push(dead.since(until));
                assert!(host.postgres().is_empty());
            }
            report(&format!("{mode:?}, {}", if stopped { "everything stopped by SIGSTOP" } else { "everything running" }), spans);
        }
    }
}

/// From SIGKILL of the postmaster to `Empty` at the agent, with four busy backends and with none.
#[tokio::test]
#[ignore = "a measurement"]
async fn bench_crash() {
    head("from SIGKILL of the postmaster to the agent's knowledge that all are dead");
    let mut memory = Vec::new();
    let quiet = std::env::var_os("QUIET").is_some();
    for (mode, busy) in MODES.into_iter().flat_map(|mode| [(mode, 0), (mode, 4)]).filter(|(_, busy)| !quiet || *busy == 0) {
        let mut spans = Vec::new();
        let host = Host::with_postgres(mode).await;
        let (guard, mut changes) = host.session().await;
        for run in 0..runs() {
            arm(&guard, 1, Span::from_secs(3_600)).await;
            guard.start(StartAs::Primary, host.command(), Term::new(1), PATIENCE).await.expect("start");
            host.serves().await;
            while changes.try_recv().is_ok() {}
            let _clients: Vec<_> = (0..busy).map(|_| host.busy(30)).collect();
            eventually("the backends are busy", PATIENCE, async || (host.busy_backends() == busy).then_some(())).await;
            let postmaster = nix::unistd::Pid::from_raw(host.postmaster());
            let began = clock::boot();
            nix::sys::signal::kill(postmaster, nix::sys::signal::Signal::SIGKILL).expect("kill");
            let (_, heard) = emptied(&mut changes).await;
            assert!(host.postgres().is_empty(), "run {run}");
            spans.push(heard.since(began));
        }
        report(&format!("{mode:?}, {busy} busy backends"), spans);
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", host.guard_pid())).expect("rollup");
        let lines = rollup.lines().filter(|line| line.starts_with("Pss:") || line.starts_with("Rss:"));
        memory.extend(lines.map(|line| format!("{mode:?}, {busy} busy backends: guard {line}")));
    }
    println!("\n{}", memory.join("\n"));
}
