//! Clusters that go through lists of faults, one after the other. Each fault's failure is reported by its name.

use super::{
    faults::{DATA, FULL, HOSTS, IN_QUORUM, PROCESSES, RECOVERED, Row, SERIES, all},
    support::{Cluster, small_disks, spec},
    voters,
};
use pgbaton::{
    lab::LabSpec,
    model::{
        moment::Span,
        policy::{Durability, Reclone},
    },
};

/// Goes through rows on one cluster; a cluster that did not survive one is replaced.
fn walk<'a>(spec: &LabSpec, rows: impl IntoIterator<Item = &'a Row>) {
    let wanted = std::env::var("ONLY").unwrap_or_default();
    let mut cluster = None;
    let (mut failures, mut count) = (Vec::new(), 0);
    for row in rows.into_iter().filter(|row| row.name.contains(&wanted)) {
        count += 1;
        let mut at_work = match cluster.take().map_or_else(|| Cluster::start(spec), Ok) {
            Ok(cluster) => cluster,
            Err(error) => {
                failures.push(format!("{}: {error:#}", row.name));
                continue;
            }
        };
        let started = pgbaton::clock::boot();
        match at_work.run(row.name, row.alarms, row.what) {
            Ok(()) => {
                println!("{}: well after {}", row.name, pgbaton::clock::boot().since(started).rounded());
                cluster = Some(at_work);
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    assert!(failures.is_empty(), "{} of {count} faults did not end well:\n  {}", failures.len(), failures.join("\n  "));
}

#[test]
fn a_cluster_survives_the_deaths_of_its_processes() {
    walk(&spec(|_| ()), PROCESSES);
}

#[test]
fn a_cluster_survives_its_hosts_and_their_network() {
    walk(&spec(|_| ()), HOSTS);
}

#[test]
fn a_cluster_survives_one_thing_after_the_other() {
    // pg_rewind 15 cannot rewind a server that was promoted and killed before its first checkpoint (scenario 68).
    walk(&spec(|spec| spec.policy.reclone = Reclone::WhenRewindFails), SERIES);
}

#[test]
fn a_cluster_survives_data_that_are_lost_or_there_twice() {
    walk(&spec(|_| ()), DATA);
}

#[test]
fn a_cluster_survives_the_loss_of_its_records() {
    walk(&spec(|_| ()), RECOVERED);
}

#[test]
fn a_cluster_survives_disks_that_are_full() {
    walk(&small_disks(), FULL);
}

/// Their recorded bound is nothing: one lost row that was acknowledged fails them.
#[test]
fn a_cluster_whose_commits_wait_loses_nothing() {
    let quorum = spec(|spec| {
        spec.policy.durability = Durability::Quorum;
        spec.policy.reclone = Reclone::WhenRewindFails;
        // For a claimant whose recovery stands still.
        spec.policy.primary_start_timeout = Span::from_secs(15);
    });
    walk(&quorum, all().filter(|row| IN_QUORUM.contains(&row.name)).chain(voters::ROWS));
}
