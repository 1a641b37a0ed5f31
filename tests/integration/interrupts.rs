//! Ctrl-C at a node that runs in the foreground: once, and again while the stop hangs.

use super::support::{Run, SOON};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgbaton::{
    clock,
    lab::{host_init::ServiceState, procfs},
    model::{moment::Span, policy::ClusterPolicy},
};

pub(crate) fn signal_agent(run: &Run<'_>, signal: Signal) -> Result<()> {
    run.lab.node(&run.primary)?.host.signal("agent", signal)
}

/// Waits until the primary's agent was started again; how the former one ended is in what is returned.
pub(crate) fn agent_is_back(run: &Run<'_>, before: u32) -> Result<ServiceState> {
    let host = &run.lab.node(&run.primary)?.host;
    let back = || host.service("agent").ok().filter(|state| state.starts > before && state.pid.is_some());
    run.lab.wait("the agent to be back", SOON, back)
}

/// Ctrl-C at a foreground node: a fast stop, a release, a replica that waits for nothing; then it is a replica without more ado.
pub(crate) fn interrupted(run: &mut Run<'_>) -> Result<()> {
    let (former, host) = (run.primary.clone(), &run.lab.node(&run.primary)?.host);
    let guard = || procfs::running_verb(&host.processes(), "guard");
    let copied =
        |run: &Run<'_>| -> Result<_> { Ok((run.log_lines(&former, "reason=\"rewind\"")?, run.log_lines(&former, "reason=\"clone\"")?)) };
    let stops = |run: &Run<'_>| run.postgres_lines(&former, "received fast shutdown request");
    let before = (host.service("agent")?.starts, guard().context("a guard")?, stops(run)?, copied(run)?);
    let newest = run.lab.history()?.last().map(|record| record.term);
    let at = clock::boot();
    signal_agent(run, Signal::SIGINT)?;
    let winner = run.moved_from(&[&former])?;
    let (took, wait) = (clock::boot().since(at), ClusterPolicy::default().timers().wait);
    println!("    another primary {} after the interrupt; the wait is {wait}", took.rounded());
    ensure!(took.times(2) < wait, "{winner} took over after {took} only, and has to wait for {wait} where nothing is released");
    let history = || run.lab.history().ok()?.pop().filter(|record| record.primary.as_str() == winner && Some(record.term) > newest);
    let record = run.lab.wait("the change in the history", SOON, history)?;
    let released = record.why.starts_with(&format!("{former} released the lease of term "));
    ensure!(released && record.unseen_ms == 0, "the history names no release: {record:?}");
    let ended = agent_is_back(run, before.0)?.ended.unwrap_or_default();
    ensure!(ended == "exit code 0", "the agent's end: {ended}");
    ensure!(stops(run)? == before.2 + 1, "PostgreSQL was not stopped in the fast way");
    run.lab.wait("another guard", SOON, || guard().filter(|pid| *pid != before.1))?;
    run.lab.wait("both to stream", SOON, || (run.lab.streaming_from(&winner).ok()? == 2).then_some(()))?;
    ensure!(copied(run)? == before.3, "what was stopped in order had to be rewound or copied");
    Ok(())
}

/// The stop hangs on a process that does not run; a second Ctrl-C waits for nothing.
pub(crate) fn interrupted_twice(run: &mut Run<'_>) -> Result<()> {
    /// Less than a stop may take, and than a lease that is no longer renewed lasts.
    const AT_ONCE: Span = Span::from_secs(2);
    let (former, host) = (run.primary.clone(), &run.lab.node(&run.primary)?.host);
    let twice = "interrupted twice: PostgreSQL was killed";
    let before = (host.service("agent")?.starts, run.log_lines(&former, twice)?);
    let stopping = run.log_lines(&former, "this node is stopped in order")?;
    let checkpointer = |pid: i32| procfs::arguments(pid).first().is_some_and(|title| title.contains("checkpointer"));
    let held = host.processes().into_iter().find(|process| checkpointer(process.pid)).context("a checkpointer")?;
    kill(Pid::from_raw(held.pid), Signal::SIGSTOP).context("stop the checkpointer")?;
    signal_agent(run, Signal::SIGINT)?;
    let stops = || (run.log_lines(&former, "this node is stopped in order").ok()? > stopping).then_some(());
    run.lab.wait("the stop to begin", SOON, stops)?;
    let at = clock::boot();
    ensure!(run.lab.postmaster(&former).is_ok(), "the stop does not hang");
    signal_agent(run, Signal::SIGINT)?;
    let gone = || (!procfs::lives(held.pid)).then_some(());
    run.lab.wait("PostgreSQL to be killed", SOON, gone)?;
    let ended = agent_is_back(run, before.0)?.ended.unwrap_or_default();
    let took = clock::boot().since(at);
    println!("    the agent is back {} after the second interrupt", took.rounded());
    ensure!(took < AT_ONCE && ended == "exit code 0", "{ended} after {took}");
    ensure!(run.log_lines(&former, twice)? > before.1, "the agent does not say why it ended");
    run.outage()
}
