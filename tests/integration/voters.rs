//! What happens to voters, and to the names that commits wait for: rows for a cluster whose commits wait.

use super::{
    faults::Row,
    support::{Run, SOON},
};
use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgbaton::lab::{Fault, procfs};

/// Somebody has set what pgbaton manages, and is told so; until it is as it was, nobody votes.
const BY_HAND: &[&str] = &["names-by-hand", "degraded"];

pub(crate) const ROWS: &[Row] = &[
    Row { name: "a_voter_whose_recovery_stands_still_votes_all_the_same", alarms: &["start-timeout", "start-failed"], what: frozen_voter },
    Row { name: "the_names_are_set_by_hand_on_the_primary", alarms: BY_HAND, what: names_of_the_primary },
    Row { name: "the_names_are_set_by_hand_on_a_voter_that_takes_over", alarms: BY_HAND, what: names_of_a_voter },
];

/// EXP-16: its startup process, which would end the stream, does nothing. The kernel cuts it, and its promise counts. If it is the one that claims, it
/// comes no further with its promotion: after `primary_start_timeout` its PostgreSQL is killed, and somebody leads. What that one shows to clients a voter
/// has to confirm first.
fn frozen_voter(run: &mut Run<'_>) -> Result<()> {
    let (former, voter) = (run.primary.clone(), run.replicas[0].clone());
    let startup = run.lab.node(&voter)?.host.processes().into_iter().map(|process| process.pid);
    let startup = startup.into_iter().find(|pid| procfs::arguments(*pid).iter().any(|text| text.contains("startup recovering")));
    let startup = Pid::from_raw(startup.context("a startup process")?);
    kill(startup, Signal::SIGSTOP).context("stop the startup process")?;
    let led = run.inject(Fault::PowerOff(former.clone()));
    let led = led.and_then(|_| run.lab.wait("the other voter to serve", SOON, || serves(run).filter(|node| *node != former)));
    // Of a server that was killed it is gone.
    let _ = kill(startup, Signal::SIGCONT);
    let winner = led?;
    let writes = run.moved_from(&[&former])?;
    ensure!(writes == winner, "{winner} serves, and {writes} takes writes");
    Ok(())
}

/// As they were within a moment, and then others may take over again: the primary is lost, and nothing of what was acknowledged.
fn names_of_the_primary(run: &mut Run<'_>) -> Result<()> {
    let primary = run.primary.clone();
    let before = shown(run, &primary)?;
    by_hand(run, &primary, r#"ANY 1 ("elsewhere")"#)?;
    run.lab.wait("the names to be as they were", SOON, || (shown(run, &primary).ok()? == before).then_some(()))?;
    ensure!(run.log_lines(&primary, "reason=\"names-by-hand\"")? > 0, "nothing says that the names were set by hand");
    run.lab.wait("others to be electable again", SOON, || (run.electable().len() == run.replicas.len()).then_some(()))?;
    run.written()?;
    run.inject(Fault::PowerOff(primary.clone()))?;
    run.moved_from(&[&primary]).map(|_| ())
}

/// With names of nobody it would acknowledge what it alone has: it is promoted with those that pgbaton wrote.
fn names_of_a_voter(run: &mut Run<'_>) -> Result<()> {
    let (primary, voters) = (run.primary.clone(), run.replicas.clone());
    let before = shown(run, &voters[0])?;
    ensure!(!before.is_empty(), "a voter has no names");
    for voter in &voters {
        by_hand(run, voter, "")?;
    }
    run.inject(Fault::PowerOff(primary.clone()))?;
    let winner = run.moved_from(&[&primary])?;
    let names = shown(run, &winner)?;
    ensure!(!names.is_empty(), "{winner} was promoted with names of nobody");
    Ok(())
}

/// Who serves, as etcd says.
fn serves(run: &Run<'_>) -> Option<String> {
    let records = run.lab.records("leader").ok()?;
    let leader = records.get("leader").filter(|leader| leader.get("state").is_some_and(|state| state == "serving"))?;
    Some(leader.pointer("/holder/node")?.as_str()?.to_owned())
}

fn shown(run: &Run<'_>, node: &str) -> Result<String> {
    let rows = run.lab.query(node, "SHOW synchronous_standby_names")?;
    rows.into_iter().flatten().flatten().next().context("no answer to SHOW")
}

/// As a superuser would.
pub(crate) fn by_hand(run: &Run<'_>, node: &str, names: &str) -> Result<()> {
    run.lab.query(node, &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"))?;
    run.lab.query(node, "SELECT pg_reload_conf()").map(|_| ())
}
