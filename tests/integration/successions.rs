//! Two primaries are lost in a row, and who follows had received nothing of the second one's timeline (ADR 23).

use super::{
    operators::verb,
    support::{Cluster, Run, SOON, spec},
};
use anyhow::{Result, ensure};
use pgbaton::{
    lab::Fault,
    model::{
        lsn::Lsn,
        policy::{Durability, Reclone},
        timeline::{TimelineHistory, TimelineId},
    },
    postgres::history,
};

/// Where a node's WAL ends, as it says itself.
fn received(run: &Run<'_>, node: &str) -> Option<Lsn> {
    let rows = run.lab.query(node, "SELECT coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())").ok()?;
    rows.first()?.first()?.as_deref()?.parse().ok()
}

/// The last one is cut off from the other two, but not from etcd, before the first primary goes: it knows of the second one's timeline, and has the
/// history file alone.
fn two_in_a_row(run: &mut Run<'_>) -> Result<()> {
    let (first, second, third) = (run.primary.clone(), run.replicas[0].clone(), run.replicas[1].clone());
    let cut = run.inject(Fault::CutFromPeers(third.clone()))?;
    run.lab.wait("the second to be ahead of the third", SOON, || (received(run, &second)? > received(run, &third)?).then_some(()))?;
    run.inject(Fault::PowerOff(first.clone()))?;
    let winner = run.moved_from(&[&first])?;
    ensure!(winner == second, "{winner} took over, and {second} was ahead");
    let pg_wal = run.lab.node(&third)?.seen_directory.join("pg/data/pg_wal");
    let history = |tli| history::of(&history::read_all(&pg_wal).ok()?, tli).ok();
    run.lab.wait("the third to know the second's timeline", SOON, || history(TimelineId::FIRST.next())?.leaves(TimelineId::FIRST))?;
    run.inject(Fault::PowerOff(second.clone()))?;
    run.heal(&cut)?;
    // By itself it does not take over: nobody can say how much it lacks. And as long as the second one's agent seems to live nobody is dead.
    let order = ["failover", "--to", &third, "--accept-loss", "--assert-dead", "--reason", "both are gone", "--yes"];
    run.lab.wait("the failover to be accepted", SOON, || verb(run, &third, &order).ok())?;
    ensure!(run.moved_from(&[&first, &second])? == third);
    let (newest, _, owner) = run.newest_timeline()?;
    ensure!(owner == third, "timeline {newest} belongs to {owner}");
    let own = TimelineId::new(u32::try_from(newest)?).and_then(history);
    let parents: Vec<u32> = own.iter().flat_map(TimelineHistory::forks).map(|fork| fork.parent.get()).collect();
    ensure!(parents == [1], "timeline {newest} came over {parents:?}");
    ensure!(run.log_lines(&third, "reason=\"recovery-target\"")? > 0, "{third} was promoted as it was");
    ensure!(run.log_lines(&third, "wrong-parent")? == 0, "{third} came up with another parent than the ledger's");
    Ok(())
}

#[test]
fn a_replica_that_received_nothing_of_the_last_timeline_leads_from_its_own() {
    let spec = spec(|spec| {
        spec.policy.durability = Durability::Async;
        // Who lost power before the first checkpoint of its timeline cannot be rewound by PostgreSQL 15.
        spec.policy.reclone = Reclone::WhenRewindFails;
    });
    let mut cluster = Cluster::start(&spec).expect("a cluster");
    cluster.run("two_in_a_row", &[], two_in_a_row).expect("two primaries in a row");
}
