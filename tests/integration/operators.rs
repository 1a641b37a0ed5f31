//! Operators at a cluster that is written to: a pause in which the primary dies, its end, and a failover by hand.

use super::support::{Cluster, PROGRAM, Run, SOON, spec};
use anyhow::{Result, ensure};
use pgbaton::{
    clock,
    lab::{Fault, Return},
    model::policy::{ClusterPolicy, CrashPolicy, Durability},
};

/// Runs a verb on a node's own host; what it says, or why it failed.
pub(super) fn verb(run: &Run<'_>, node: &str, words: &[&str]) -> Result<String> {
    let node = run.lab.node(node)?;
    let config = node.config().display().to_string();
    node.host.run(&[&[PROGRAM, "--config", &config], words].concat(), SOON)
}

/// What it was refused with.
fn refused(run: &Run<'_>, node: &str, words: &[&str]) -> String {
    verb(run, node, words).map_or_else(|error| format!("{error:#}"), |text| format!("not refused: {text}"))
}

/// Nobody takes over in a pause, however long; the same primary goes on after it, with its deadline.
fn paused_and_resumed(run: &mut Run<'_>) -> Result<()> {
    let primary = run.primary.clone();
    verb(run, &primary, &["pause", "--reason", "kernel upgrade", "--yes"])?;
    let list = verb(run, &run.replicas[0], &["list"])?;
    ensure!(list.contains("kernel upgrade") && list.contains(&format!("{primary} is primary")), "{list}");
    let armed = || run.lab.ask(&primary, "/v1/status").ok()?.pointer("/fencing/armed_seconds_left")?.as_f64();
    run.lab.wait("the deadline to be taken away", SOON, || armed().is_none().then_some(()))?;
    // Longer than any lease, and with another agent.
    run.inject(Fault::AgentKill(primary.clone(), Return::AtOnce))?;
    run.goes_on_for(ClusterPolicy::default().timers().wait.times(2))?;
    ensure!(refused(run, &primary, &["pause", "--yes"]).contains("paused already"), "a second pause is not refused");
    verb(run, &run.replicas[0], &["resume", "--yes"]).or_else(|_| verb(run, &primary, &["resume", "--yes"]))?;
    run.lab.wait("the deadline to be armed again", SOON, || armed().map(|_| ()))?;
    run.goes_on_for(ClusterPolicy::default().timers().wait)?;
    run.stayed(&primary)
}

/// PostgreSQL dies in a pause: nothing happens until somebody resumes, and then another node takes over.
fn killed_in_a_pause(run: &mut Run<'_>) -> Result<()> {
    let primary = run.primary.clone();
    verb(run, &primary, &["pause", "--reason", "let me look", "--until", "1h", "--yes"])?;
    run.inject(Fault::PostmasterKill(primary.clone()))?;
    run.lab.wait("PostgreSQL to be gone", SOON, || run.lab.postmaster(&primary).is_err().then_some(()))?;
    let ends = clock::boot().plus(ClusterPolicy::default().timers().wait.times(2));
    let mut led = Vec::new();
    run.lab.wait("two waits to pass", SOON, || {
        led.extend(run.lab.primaries());
        (clock::boot() >= ends).then_some(())
    })?;
    ensure!(led.is_empty(), "{led:?} led while the cluster was paused");
    verb(run, &primary, &["resume", "--yes"])?;
    run.moved_from(&[&primary]).map(|_| ())
}

/// A failover goes to whom it was asked for, loses nothing, and says who asked.
fn by_hand(run: &mut Run<'_>) -> Result<()> {
    let (primary, target) = (run.primary.clone(), run.replicas[1].clone());
    let said = refused(run, &primary, &["failover", "--to", &primary, "--yes"]);
    ensure!(said.contains("is the primary already"), "{said}");
    let before = run.log_lines(&primary, "reason=\"rewind\"")?;
    verb(run, &primary, &["failover", "--to", &target, "--reason", "wanted", "--yes"])?;
    let winner = run.moved_from(&[&primary])?;
    ensure!(winner == target, "{winner} took over, and {target} was asked for");
    let newest = || run.lab.history().ok()?.pop().filter(|record| record.primary.as_str() == target);
    let record = run.lab.wait("the change in the history", SOON, newest)?;
    ensure!(record.by.is_some() && record.loss_bound == Some(0) && record.unseen_ms == 0, "{record:?}");
    run.lab.wait("both to stream", SOON, || (run.lab.streaming_from(&target).ok()? == 2).then_some(()))?;
    ensure!(run.log_lines(&primary, "reason=\"rewind\"")? == before, "the former primary had to be rewound");
    Ok(())
}

/// The primary's host and one voter's are lost at once: nobody may lead until somebody says that both are dead, and takes the loss.
fn taken_from_the_dead(run: &mut Run<'_>) -> Result<()> {
    let (primary, other, target) = (run.primary.clone(), run.replicas[0].clone(), run.replicas[1].clone());
    run.inject(Fault::PowerOff(primary.clone()))?;
    run.inject(Fault::PowerOff(other.clone()))?;
    let claimed = || (run.log_lines(&target, "1 of 2 voters have promised").ok()? > 0).then_some(());
    run.lab.wait("a claim that too few voters follow", SOON, claimed)?;
    // Until its key in etcd has lapsed the dead node's agent counts as alive.
    let words = ["failover", "--to", &target, "--accept-loss", "--assert-dead", "--reason", "both hosts burnt", "--yes"];
    run.lab.wait("the failover to be accepted", SOON, || verb(run, &target, &words).ok())?;
    let winner = run.moved_from(&[&primary])?;
    ensure!(winner == target, "{winner} took over");
    let newest = || run.lab.history().ok()?.pop().filter(|record| record.primary.as_str() == target);
    let record = run.lab.wait("the change in the history", SOON, newest)?;
    ensure!(record.by.is_some() && record.loss_bound != Some(0), "{record:?}");
    Ok(())
}

/// Two automatic failovers are enough here: from then on nobody else takes over until somebody has looked.
fn stopped_and_acknowledged(run: &mut Run<'_>) -> Result<()> {
    let names: Vec<&str> = run.lab.nodes().iter().map(|node| node.name.as_str()).collect();
    let mut primary = run.primary.clone();
    for _ in 0..2 {
        run.inject(Fault::PostmasterKill(primary.clone()))?;
        let next = run.moved_from(&[&primary])?;
        ensure!(run.lab.wait_streaming(&names, SOON)? == next, "{next} does not go on");
        primary = next;
    }
    for node in &names {
        let reasons = run.lab.ask(node, "/v1/reasons")?.to_string();
        ensure!(reasons.contains("failovers-stopped"), "{node}: {reasons}");
    }
    let before = run.lab.postmaster(&primary)?;
    run.inject(Fault::PostmasterKill(primary.clone()))?;
    run.lab.wait("another postmaster on the same node", SOON, || run.lab.postmaster(&primary).ok().filter(|pid| *pid != before))?;
    let writes = run.goes_on_for(ClusterPolicy::default().timers().wait)?;
    ensure!(writes == primary, "{writes} took over, and failovers were stopped");
    run.lab.wait_streaming(&names, SOON)?;
    verb(run, &primary, &["acknowledge", "--yes"])?;
    run.inject(Fault::PostmasterKill(primary.clone()))?;
    run.moved_from(&[&primary]).map(|_| ())
}

#[test]
fn what_nobody_may_decide_alone_an_operator_does() {
    let quorum = spec(|spec| spec.policy.durability = Durability::Quorum);
    let mut cluster = Cluster::start(&quorum).expect("a cluster");
    cluster.accept_loss();
    cluster.run("taken_from_the_dead", &["loss-accepted", "degraded"], taken_from_the_dead).expect("a failover from the dead");
    let flapping = spec(|spec| {
        spec.policy.crash_policy = CrashPolicy::Failover;
        spec.policy.anti_flap.failovers = 2;
    });
    let mut cluster = Cluster::start(&flapping).expect("a cluster");
    cluster.run("stopped_and_acknowledged", &["failovers-stopped"], stopped_and_acknowledged).expect("failovers that are stopped");
}

#[test]
fn a_cluster_does_what_its_operators_say() {
    // Whoever is close enough takes over: what the dead primary wrote last need not have been sent.
    let spec = spec(|spec| spec.policy.crash_policy = CrashPolicy::Failover);
    let mut cluster = Cluster::start(&spec).expect("a cluster");
    cluster.run("paused_and_resumed", &[], paused_and_resumed).expect("a pause");
    cluster.run("killed_in_a_pause", &[], killed_in_a_pause).expect("a death in a pause");
    cluster.run("failed_over_by_hand", &[], by_hand).expect("a failover by hand");
}
