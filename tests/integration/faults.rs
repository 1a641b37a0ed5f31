//! The faults, a row each: what is done, and which alarms it explains.
//!
//! A row's function leaves its faults to be undone by the run, unless the order of undoing matters.

use super::{
    interrupts::{agent_is_back, interrupted, interrupted_twice, signal_agent},
    support::{Run, SOON},
};
use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgbaton::{
    clock,
    lab::{Direction, Fault, Return, procfs, sql},
    model::moment::Span,
};
use std::{fs, path::PathBuf, thread};

/// A fault with all that belongs to it.
pub(crate) struct Row {
    /// A sentence.
    pub(crate) name: &'static str,
    /// The ids of alarms that it explains.
    pub(crate) alarms: &'static [&'static str],
    /// What is done.
    pub(crate) what: fn(&mut Run<'_>) -> Result<()>,
}

const fn row(name: &'static str, what: fn(&mut Run<'_>) -> Result<()>) -> Row {
    Row { name, alarms: &[], what }
}

/// A primary that goes on without etcd says so.
const FAILSAFE: &[&str] = &["failsafe"];

/// Deaths of processes.
pub(crate) const PROCESSES: &[Row] = &[
    row("the_postmaster_is_killed_while_a_backend_is_busy", postmaster_kill),
    Row { alarms: &["mute"], ..row("the_postmaster_of_the_primary_hangs", hung_postmaster) },
    row("the_agent_is_killed_and_comes_back", |run| {
        agent_goes(run, |run| run.inject(Fault::AgentKill(run.primary.clone(), Return::AtOnce)).map(|_| ()))
    }),
    row("the_agent_ends_at_sigterm_and_comes_back", |run| agent_goes(run, terminate_agent)),
    row("the_primary_is_interrupted_and_hands_over", interrupted),
    row("the_primary_is_interrupted_twice", interrupted_twice),
    row("the_agent_is_upgraded_in_place", |run| agent_goes(run, upgrade)),
    row("the_agent_is_killed_for_good", |run| taken_over(run, Fault::AgentKill(run.primary.clone(), Return::WhenUndone))),
    row("the_guard_is_killed", guard_kill),
    row("the_guard_of_a_replica_is_killed", |run| replica_suffers(run, Fault::GuardKill(run.replicas[0].clone()))),
    row("the_postmaster_of_a_replica_is_killed", |run| replica_suffers(run, Fault::PostmasterKill(run.replicas[0].clone()))),
    row("the_agent_of_a_replica_is_killed_and_comes_back", replica_agent_kill),
    // A split vote makes the election of the next one longer than the lease.
    Row { alarms: FAILSAFE, ..row("the_etcd_leader_is_killed", etcd_leader_kill) },
    Row { alarms: FAILSAFE, ..row("etcd_loses_its_quorum", |run| goes_on(run, Fault::EtcdQuorumLoss)) },
    Row { alarms: FAILSAFE, ..row("postgres_crashes_while_etcd_is_silent", crash_without_etcd) },
];

/// Hosts and their network.
pub(crate) const HOSTS: &[Row] = &[
    row("the_host_of_the_primary_loses_power", |run| taken_over(run, Fault::PowerOff(run.primary.clone()))),
    row("the_host_of_the_primary_is_cut_off_and_its_tail_rewound", |run| diverges(run, Fault::Partition(run.primary.clone()))),
    row("what_the_primary_sends_is_lost", |run| isolated(run, Fault::OneWay(run.primary.clone(), Direction::Outbound))),
    row("what_is_sent_to_the_primary_is_lost", |run| isolated(run, Fault::OneWay(run.primary.clone(), Direction::Inbound))),
    Row { alarms: FAILSAFE, ..row("the_primary_is_cut_from_etcd_alone", |run| goes_on(run, Fault::CutFromEtcd(run.primary.clone()))) },
    row("everything_on_the_primary_is_frozen_and_thawed", |run| isolated(run, Fault::Freeze(run.primary.clone()))),
    row("the_primary_and_the_etcd_leader_are_lost_together", |run| taken_over(run, Fault::PrimaryAndEtcdLeader(run.primary.clone()))),
    row("a_replica_is_lost", |run| replica_lost(run, Fault::PowerOff(run.replicas[0].clone()))),
    row("a_replica_is_cut_off", |run| replica_lost(run, Fault::Partition(run.replicas[0].clone()))),
];

/// Several things at once, or one after the other.
pub(crate) const SERIES: &[Row] = &[
    row("two_primaries_are_lost_in_a_row", two_in_a_row),
    row("all_nodes_go_off_and_the_primary_comes_back_first", |run| all_off(run, |primary, replicas| [&[primary], replicas].concat())),
    row("all_nodes_go_off_and_the_primary_comes_back_last", |run| all_off(run, |primary, replicas| [replicas, &[primary]].concat())),
    row("all_nodes_go_off_and_come_back_at_once", |run| run.inject(Fault::AllNodesOff).map(|_| ())),
    row("a_lone_primary_is_rebooted", lone_primary),
    row("a_primary_is_promoted_and_dies_before_anyone_saw_it", unseen_promotion),
];

/// Data that are lost, full or there twice. Needs disks of its own for `FULL`, and none for the copied host.
pub(crate) const DATA: &[Row] = &[
    row("the_primary_loses_its_data_directory", |run| taken_over(run, Fault::WipeData(run.primary.clone()))),
    row("a_replica_loses_its_data_directory", |run| replica_suffers(run, Fault::WipeData(run.replicas[0].clone()))),
    row("a_copy_of_a_replica_is_started_beside_it", |run| copied(run, run.replicas[0].clone())),
    row("a_copy_of_the_primary_is_started_beside_it", |run| copied(run, run.primary.clone())),
];

/// Disks that are full.
pub(crate) const FULL: &[Row] = &[
    Row { alarms: &["start-failed"], ..row("the_disk_of_the_primary_is_full", disk_full) },
    row("the_disk_of_a_replica_is_full", replica_disk_full),
];

/// etcd shows less than it did, until an operator has its records written anew.
pub(crate) const RECOVERED: &[Row] = &[
    Row { alarms: &["etcd-suspect"], ..row("etcd_is_wiped_and_recovered", |run| recovered(run, |run| run.lab.etcd().wipe("/pgbaton/"))) },
    Row { alarms: &["etcd-suspect"], ..row("etcd_is_restored_from_an_older_snapshot_and_recovered", |run| recovered(run, older)) },
];

/// Those that are gone through with commits that wait, too: the ways in which a primary is lost, and a voter.
pub(crate) const IN_QUORUM: &[&str] = &[
    "the_postmaster_is_killed_while_a_backend_is_busy",
    "the_agent_is_killed_for_good",
    "the_guard_is_killed",
    "the_host_of_the_primary_loses_power",
    "what_is_sent_to_the_primary_is_lost",
    "everything_on_the_primary_is_frozen_and_thawed",
    "the_primary_and_the_etcd_leader_are_lost_together",
    "a_replica_is_lost",
    "all_nodes_go_off_and_the_primary_comes_back_last",
];

/// All rows that a cluster without disks of its own goes through.
pub(crate) fn all() -> impl Iterator<Item = &'static Row> {
    [PROCESSES, HOSTS, SERIES, DATA, RECOVERED].into_iter().flatten()
}

/// The primary suffers something that somebody else has to take over after.
fn taken_over(run: &mut Run<'_>, fault: Fault) -> Result<()> {
    let former = run.primary.clone();
    run.inject(fault)?;
    run.moved_from(&[&former]).map(|_| ())
}

/// EXP-1: the busy backend of a killed postmaster would go on, run the INSERT and acknowledge it.
fn postmaster_kill(run: &mut Run<'_>) -> Result<()> {
    let (former, lab) = (run.primary.clone(), run.lab);
    let node = lab.node(&former)?;
    let text = format!(
        "SELECT sum(i) FROM generate_series(1, 60000000) busy(i); INSERT INTO lab_writes VALUES ('busy', {}, '{former}')",
        run.began.as_nanos()
    );
    thread::scope(|scope| {
        let busy = scope.spawn(|| sql::query(lab.client().network(), &node.server(), lab.login(), &text, SOON));
        let works = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%busy(i)%' AND state = 'active' AND pid <> pg_backend_pid()";
        lab.wait("the backend to be busy", SOON, || lab.query(&former, works).ok().filter(|rows| !rows.is_empty()))?;
        run.inject(Fault::PostmasterKill(former.clone()))?;
        run.outage()?;
        let Err(error) = busy.join().map_err(|_| anyhow::anyhow!("the busy client panicked"))? else {
            bail!("a backend outlived its postmaster and acknowledged");
        };
        ensure!(!format!("{error:#}").contains("no answer within"), "the busy client heard nothing at all: {error:#}");
        Ok(())
    })
}

/// Scenario 124: sessions that are there go on, and nobody new is let in.
fn hung_postmaster(run: &mut Run<'_>) -> Result<()> {
    let former = run.primary.clone();
    let postmaster = run.lab.postmaster(&former)?;
    kill(Pid::from_raw(postmaster), Signal::SIGSTOP).context("stop the postmaster")?;
    run.outage().map(|_| ())
}

/// An agent that ends and comes back before the deadline has not happened: PostgreSQL goes on.
fn agent_goes(run: &mut Run<'_>, goes: impl FnOnce(&Run<'_>) -> Result<()>) -> Result<()> {
    let primary = run.primary.clone();
    let before = run.lab.postmaster(&primary)?;
    goes(run)?;
    run.goes_on_for(TAKEN_OVER_BY)?;
    ensure!(run.lab.postmaster(&primary).is_ok_and(|pid| pid == before), "PostgreSQL was restarted");
    run.stayed(&primary)
}

/// A taker would have taken over by then.
const TAKEN_OVER_BY: Span = Span::from_secs(4);

fn terminate_agent(run: &Run<'_>) -> Result<()> {
    let before = run.lab.node(&run.primary)?.host.service("agent")?.starts;
    signal_agent(run, Signal::SIGTERM)?;
    agent_is_back(run, before).map(|_| ())
}

fn upgrade(run: &Run<'_>) -> Result<()> {
    let newer = run.lab.directory().join(format!("pgbaton-{}", clock::data_incarnation()));
    if fs::hard_link(super::support::PROGRAM, &newer).is_err() {
        fs::copy(super::support::PROGRAM, &newer).context("copy the program")?;
    }
    let primary = run.primary.clone();
    run.inject(Fault::AgentUpgrade(primary.clone(), newer.clone()))?;
    let runs = |pid: i32| procfs::program(pid) == Some(PathBuf::from(&newer));
    let new = || run.lab.node(&primary).ok()?.host.processes().iter().any(|process| runs(process.pid)).then_some(());
    run.lab.wait("the new binary to run", SOON, new)
}

fn guard_kill(run: &mut Run<'_>) -> Result<()> {
    run.inject(Fault::GuardKill(run.primary.clone()))?;
    run.outage()
}

/// Its PostgreSQL goes on, whatever the new agent knows of it as yet.
fn replica_agent_kill(run: &mut Run<'_>) -> Result<()> {
    let replica = run.replicas[0].clone();
    let before = run.lab.postmaster(&replica)?;
    replica_suffers(run, Fault::AgentKill(replica.clone(), Return::AtOnce))?;
    ensure!(run.lab.postmaster(&replica).is_ok_and(|pid| pid == before), "the replica's PostgreSQL was restarted");
    Ok(())
}

/// Whatever happens to a replica: the primary goes on.
fn replica_suffers(run: &mut Run<'_>, fault: Fault) -> Result<()> {
    let primary = run.primary.clone();
    run.inject(fault)?;
    run.goes_on_for(TAKEN_OVER_BY)?;
    run.stayed(&primary)
}

/// A replica that says nothing for two waits is dropped from those that may be elected.
fn replica_lost(run: &mut Run<'_>, fault: Fault) -> Result<()> {
    let (primary, replica) = (run.primary.clone(), run.replicas[0].clone());
    run.inject(fault)?;
    run.lab.wait("the silent replica to be dropped", SOON, || (!run.electable().contains(&replica)).then_some(()))?;
    run.stayed(&primary)
}

fn etcd_leader_kill(run: &mut Run<'_>) -> Result<()> {
    run.inject(Fault::EtcdLeaderKill)?;
    run.goes_on_for(TAKEN_OVER_BY).map(|_| ())
}

/// etcd does not hear the primary for longer than any lease: it goes on by its replicas' word, and nobody takes over.
fn goes_on(run: &mut Run<'_>, fault: Fault) -> Result<()> {
    let primary = run.primary.clone();
    let before = run.lab.postmaster(&primary)?;
    let lines = run.log_lines(&primary, "reason=\"failsafe\"")?;
    let injected = run.inject(fault)?;
    run.goes_on_for(Span::from_secs(8))?;
    run.stayed(&primary)?;
    ensure!(run.lab.postmaster(&primary)? == before, "PostgreSQL has been restarted");
    ensure!(run.log_lines(&primary, "reason=\"failsafe\"")? > lines, "nothing says why it goes on");
    run.heal(&injected)?;
    run.goes_on_for(TAKEN_OVER_BY)?;
    run.stayed(&primary)
}

/// It starts again where it was, in the same term: nobody could be asked to take over.
fn crash_without_etcd(run: &mut Run<'_>) -> Result<()> {
    let primary = run.primary.clone();
    let silent = run.inject(Fault::EtcdQuorumLoss)?;
    run.goes_on_for(Span::from_secs(5))?;
    run.inject(Fault::PostmasterKill(primary.clone()))?;
    run.outage()?;
    run.goes_on_for(Span::from_secs(5))?;
    run.stayed(&primary)?;
    run.heal(&silent)?;
    run.goes_on_for(TAKEN_OVER_BY)?;
    run.stayed(&primary)
}

/// A primary that only its island can reach: it writes until the deadline, and its tail is thrown away afterwards.
fn isolated(run: &mut Run<'_>, fault: Fault) -> Result<()> {
    let former = run.primary.clone();
    run.island(&former)?;
    let before = run.lab.postmaster(&former)?;
    let injected = run.inject(fault)?;
    run.moved_from(&[&former])?;
    run.heal(&injected)?;
    let gone = || run.lab.postmaster(&former).map_or(true, |pid| pid != before).then_some(());
    run.lab.wait("the old primary to be dead", SOON, gone)
}

/// What an isolated primary wrote alone is rewound.
fn diverges(run: &mut Run<'_>, fault: Fault) -> Result<()> {
    let former = run.primary.clone();
    let before = run.log_lines(&former, "reason=\"rewind\"")?;
    isolated(run, fault)?;
    let rewound = || (run.log_lines(&former, "reason=\"rewind\"").ok()? > before).then_some(());
    run.lab.wait("the old primary to be rewound", SOON, rewound)
}

/// The second one is lost as soon as the third could follow it.
fn two_in_a_row(run: &mut Run<'_>) -> Result<()> {
    let first = run.primary.clone();
    run.inject(Fault::PowerOff(first.clone()))?;
    let second = run.moved_from(&[&first])?;
    let third = run.replicas.iter().find(|node| **node != second).context("a third node")?.clone();
    let streams = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'";
    run.lab.wait("the third to stream", SOON, || run.lab.query(&second, streams).ok().filter(|rows| !rows.is_empty()))?;
    ensure!(run.electable().contains(&third), "{third} may not be elected");
    // Its position has to be known on the new timeline: two losses within two waits may need the operator (protocol 1.14).
    run.goes_on_for(TAKEN_OVER_BY)?;
    run.inject(Fault::PowerOff(second.clone()))?;
    run.moved_from(&[&first, &second]).map(|_| ())
}

fn all_off(run: &mut Run<'_>, order: for<'a> fn(&'a str, &[&'a str]) -> Vec<&'a str>) -> Result<()> {
    run.inject(Fault::AllNodesOff)?;
    let replicas: Vec<&str> = run.replicas.iter().map(String::as_str).collect();
    for node in order(&run.primary, &replicas) {
        run.lab.power_on(node)?;
        run.lab.wait("its agent to answer", SOON, || run.lab.ask(node, "/v1/status").ok())?;
    }
    Ok(())
}

/// Nobody else may be elected, so the owner waits for nobody.
fn lone_primary(run: &mut Run<'_>) -> Result<()> {
    let primary = run.primary.clone();
    for replica in &run.replicas {
        run.inject(Fault::PowerOff(replica.clone()))?;
    }
    run.lab.wait("the silent replicas to be dropped", SOON, || run.electable().is_empty().then_some(()))?;
    let off = run.inject(Fault::PowerOff(primary.clone()))?;
    run.heal(&off)?;
    ensure!(run.written()? == primary);
    Ok(())
}

/// Scenario 68: its timeline is never given out again, and it is known as divergent when it comes back.
fn unseen_promotion(run: &mut Run<'_>) -> Result<()> {
    for _ in 0..5 {
        if promoted_unseen(run)? {
            return Ok(());
        }
        // It had announced itself before it was cut off, or was cut off before its promotion: once more.
        run.lab.heal_all()?;
        let names: Vec<&str> = run.lab.nodes().iter().map(|node| node.name.as_str()).collect();
        run.lab.wait_streaming(&names, SOON)?;
        run.lab.wait("all replicas to be electable", SOON, || (run.electable().len() + 1 == names.len()).then_some(()))?;
    }
    bail!("the new primary was seen each time")
}

/// Whether it went as wanted.
fn promoted_unseen(run: &mut Run<'_>) -> Result<bool> {
    let former = run.lab.primaries().first().cloned().context("a primary")?;
    let newest = run.newest_timeline()?;
    run.inject(Fault::PowerOff(former.clone()))?;
    let reserved = || {
        let (id, state, node) = run.newest_timeline().ok()?;
        (id > newest.0).then_some((id, state, node))
    };
    let (id, _, winner) = run.lab.wait("a timeline to be reserved", SOON, reserved)?;
    run.inject(Fault::Partition(winner.clone()))?;
    let promoted = run.lab.wait("its promotion, or its end", SOON, || match run.promoted_alone(&winner) {
        Some(true) => Some(true),
        _ => run.lab.postmaster(&winner).is_err().then_some(false),
    })?;
    if !promoted || run.newest_timeline()?.1 != "reserved" {
        return Ok(false);
    }
    // Somebody found it all the same: his rows are lost, and the next record has to say so.
    run.island(&winner)?;
    run.inject(Fault::PowerOff(winner.clone()))?;
    run.moved_from(&[&former, &winner])?;
    let (newer, _, node) = run.newest_timeline()?;
    ensure!(newer > id && node != winner, "timeline {id} of {winner} was followed by {newer} of {node}");
    Ok(true)
}

/// A copied machine finds its original at work (ADR 27): it says so, and starts nothing.
fn copied(run: &mut Run<'_>, node: String) -> Result<()> {
    let (primary, starts) = (run.primary.clone(), run.postgres_lines(&node, "starting PostgreSQL")?);
    run.inject(Fault::CopiedHost(node.clone()))?;
    let there = run.lab.directory().join(format!("{node}-copy"));
    let lines = |file: &str, word: &str| fs::read_to_string(there.join(file)).map_or(0, |text| text.matches(word).count());
    run.lab.wait("the copy to find its name taken", SOON, || (lines("agent.log", "name-taken") > 0).then_some(()))?;
    ensure!(lines("state/postgresql.log", "starting PostgreSQL") == starts, "the copy has started PostgreSQL");
    run.goes_on_for(TAKEN_OVER_BY)?;
    run.stayed(&primary)
}

/// Scenario 117.
fn disk_full(run: &mut Run<'_>) -> Result<()> {
    let former = run.primary.clone();
    run.inject(Fault::DiskFull(former.clone()))?;
    // WAL alone: a table that cannot grow is only an error to its client. In small pieces, which the replicas get too.
    let fills = "SELECT pg_logical_emit_message(true, 'filler', repeat('x', 100000))";
    run.lab.wait("writes to fail", SOON, || run.lab.query(&former, fills).err().map(|_| ()))?;
    run.moved_from(&[&former]).map(|_| ())
}

fn replica_disk_full(run: &mut Run<'_>) -> Result<()> {
    let (primary, replica) = (run.primary.clone(), run.replicas[0].clone());
    run.inject(Fault::DiskFull(replica))?;
    for _ in 0..8 {
        run.lab.query(&primary, "CREATE TABLE IF NOT EXISTS filler (i int); INSERT INTO filler VALUES (1); SELECT pg_switch_wal()")?;
    }
    run.goes_on_for(TAKEN_OVER_BY)?;
    run.stayed(&primary)
}

/// Scenario of EXP-26: everything that happened since the snapshot is gone from etcd, a term among it.
fn older(run: &Run<'_>) -> Result<()> {
    let path = std::env::temp_dir().join(format!("pgbaton-{}.snapshot", std::process::id()));
    run.lab.etcd().snapshot(&path)?;
    let before = run.lab.history()?.len();
    let killed = run.inject(Fault::PostmasterKill(run.primary.clone())).and_then(|_| {
        // The last write of a change of primary: everything before it is in etcd, and every node has seen it.
        run.lab.wait("the change of primary to be recorded", SOON, || run.lab.history().ok().filter(|all| all.len() > before)).map(|_| ())
    });
    let restored = killed.and_then(|()| run.lab.etcd().restore(&path));
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    restored
}

/// Nobody leads on what etcd shows less of, however long it lasts; `etcd recover` asks the nodes and makes the records anew.
fn recovered(run: &mut Run<'_>, loses: fn(&Run<'_>) -> Result<()>) -> Result<()> {
    loses(run)?;
    let names: Vec<String> = run.lab.nodes().iter().map(|node| node.name.clone()).collect();
    run.lab.wait("all nodes to suspect etcd and no PostgreSQL to be primary", SOON, || {
        let suspects = |name: &String| run.log_lines(name, "etcd-suspect").is_ok_and(|lines| lines > 0);
        (names.iter().all(suspects) && run.lab.primaries().is_empty()).then_some(())
    })?;
    let node = run.lab.node(&names[0])?;
    let config = node.config().display().to_string();
    let recover = [super::support::PROGRAM, "--config", &config, "etcd", "recover"];
    // The agents compare their data with what was noted of them first.
    let refused = run.lab.wait("the data to be looked at", SOON, || {
        let said = node.host.run(&recover, SOON).map_or_else(|error| format!("{error:#}"), |text| format!("not refused: {text}"));
        (!said.contains("was not looked at yet")).then_some(said)
    })?;
    ensure!(refused.contains("add --confirm"), "without --confirm nothing may be written: {refused}");
    ensure!(run.lab.primaries().is_empty(), "somebody leads on records that nobody wrote");
    run.lab.wait("etcd recover", SOON, || {
        node.host.run(&[&recover[..], &["--confirm"]].concat(), SOON).map_err(|error| eprintln!("{error:#}")).ok()
    })?;
    run.written().map(|_| ())
}
