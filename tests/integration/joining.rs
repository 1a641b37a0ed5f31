//! A primary and its replica that were there before us, with a tablespace and a WAL directory of its own; and a replica that comes back too late.

use super::{
    faults::Row,
    support::{Cluster, SOON, bin_dir, insert_below, spec},
};
use anyhow::{Context, Result};
use pgbaton::{
    lab::{Fault, Lab, Node, host_init::Service, sql},
    model::{
        lsn::Bytes,
        policy::{Durability, Reclone},
    },
};
use std::{collections::BTreeMap, path::PathBuf};

struct Old<'a> {
    lab: &'a Lab,
    node: &'a Node,
}

impl Old<'_> {
    fn path(&self, name: &str) -> String {
        self.node.directory.join("pg").join(name).display().to_string()
    }

    fn program(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let program = bin_dir().join(name).display().to_string();
        let argv: Vec<&str> = std::iter::once(program.as_str()).chain(arguments.iter().copied()).collect();
        self.node.host.run_as(Some("postgres"), &argv, "", SOON)
    }

    fn shell(&self, script: &str) -> Result<String> {
        self.node.host.run_as(Some("postgres"), &["sh", "-c", script, &self.path("data")], "", SOON)
    }

    fn start(&self) -> Result<()> {
        let postgres = bin_dir().join("postgres").display().to_string();
        let options = ["-c", "listen_addresses=*", "-c", "unix_socket_directories=/tmp", "-c", "fsync=off", "-c", "wal_keep_size=64MB"];
        let argv = [postgres, "-D".to_owned(), self.path("data")].into_iter().chain(options.map(str::to_owned)).collect();
        let (log, user) = (self.node.seen_directory.join("old.log"), Some("postgres".to_owned()));
        let service = Service { argv, env: BTreeMap::new(), log, directory: PathBuf::from("/tmp"), user, restart_after: None };
        self.node.host.start("postgres", service)?;
        self.lab.wait("PostgreSQL", SOON, || self.sql("SELECT 1").ok()).map(|_| ())
    }

    fn sql(&self, text: &str) -> Result<Vec<Vec<Option<String>>>> {
        sql::query(self.lab.client().network(), &self.node.server(), self.lab.login(), text, SOON)
    }

    fn stop(&self) -> Result<()> {
        self.program("pg_ctl", &["-D", &self.path("data"), "-m", "fast", "-w", "stop"]).map(|_| ())
    }
}

/// What an operator has: timeline 2, a tablespace, WAL on another disk, one replica; all of it stopped cleanly.
fn old_cluster(lab: &Lab) -> Result<()> {
    let [first, second] = ["n1", "n2"].map(|name| lab.node(name).map(|node| Old { lab, node }));
    let (first, second) = (first?, second?);
    first.program("initdb", &["-D", &first.path("data"), "-X", &first.path("wal"), "--no-sync", "-A", "trust", "-k"])?;
    first.shell("printf 'host all all 10.77.0.0/24 trust\\nhost replication all 10.77.0.0/24 trust\\n' >> \"$0/pg_hba.conf\"; touch \"$0/standby.signal\"")?;
    first.start()?;
    first.sql("SELECT pg_promote(true, 20)")?;
    first.shell(&format!("mkdir {}", first.path("fast")))?;
    first.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", first.path("fast")))?;
    first.sql("CREATE TABLE orders TABLESPACE fast AS SELECT i FROM generate_series(1, 1000) i")?;
    let source = format!("host={} port={} user=postgres", first.node.postgres.ip(), first.node.postgres.port());
    let mapping = format!("{}={}", first.path("fast"), second.path("fast"));
    second.program(
        "pg_basebackup",
        &["-D", &second.path("data"), "-R", "-c", "fast", "-N", "-d", &source, "-T", &mapping, "--waldir", &second.path("wal")],
    )?;
    second.start()?;
    lab.wait("the replica to stream", SOON, || {
        first.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'").ok().filter(|rows| !rows.is_empty())
    })?;
    first.stop().context("stop the primary")?;
    second.stop().context("stop the replica")
}

/// The first claim names what was there (`timeline/base`), the replica joins without a copy, and a third node copies
/// tablespace and WAL directory to where its own configuration says.
#[test]
fn a_primary_and_its_replica_that_were_there_before_are_taken_over() {
    let lab = Lab::build(&spec(|_| ()), &|_| ()).expect("lab");
    old_cluster(&lab).expect("the old cluster");
    for node in lab.nodes() {
        let path = |name: &str| node.directory.join("pg").join(name).display().to_string();
        let source = lab.nodes()[0].directory.join("pg/fast").display().to_string();
        let lines = format!("wal_dir = \"{}\"\ntablespace_map = {{ \"{source}\" = \"{}\" }}\n", path("wal"), path("fast"));
        insert_below(node, "postgres", &lines).expect("edit");
    }
    let mut cluster = Cluster::begin(lab, Durability::Async).expect("taken over");
    let base = cluster.lab.records("timeline/").expect("ledger");
    assert_eq!(base.get("timeline/base").and_then(|base| base.get("newest")), Some(&2.into()), "{base:?}");
    let log = |node: &str| std::fs::read_to_string(cluster.lab.node(node).expect("node").log()).expect("log");
    assert!(!log("n2").contains("reason=\"clone\"") && log("n3").contains("reason=\"clone\""));
    let third = cluster.lab.node("n3").expect("node").seen_directory.join("pg");
    for (link, target) in [("data/pg_wal", "wal"), ("data/pg_tblspc", "fast")] {
        let link = third.join(link);
        let link =
            if target == "fast" { std::fs::read_dir(&link).expect("tablespaces").flatten().next().expect("one").path() } else { link };
        assert_eq!(std::fs::read_link(&link).expect("a link"), third.join(target));
    }
    assert_eq!(cluster.lab.query("n3", "SELECT count(*) FROM orders").expect("query")[0][0].as_deref(), Some("1000"));
    let row: &Row = super::faults::PROCESSES.first().expect("row");
    cluster.run(row.name, row.alarms, row.what).expect("it fails over");
}

/// Its slot was kept for as long as the policy says; what it needs is gone, and it says so and is copied anew instead of asking for ever.
#[test]
fn a_replica_that_was_away_for_too_long_is_copied_anew() {
    let spec = spec(|spec| {
        spec.policy.reclone = Reclone::WhenRewindFails;
        spec.policy.member_slot_retention.bytes = Bytes::new(16 << 20);
    });
    let mut cluster = Cluster::start(&spec).expect("cluster");
    let away = |run: &mut super::support::Run<'_>| {
        let (primary, replica) = (run.primary.clone(), run.replicas[0].clone());
        let ask = |sql: &str| run.lab.query(&primary, sql);
        run.inject(Fault::PowerOff(replica))?;
        let needed = ask("SELECT pg_walfile_name(pg_current_wal_lsn())")?;
        let needed = needed.first().and_then(|row| row[0].clone()).context("the name of a segment")?;
        let gone = format!("SELECT 1 WHERE NOT EXISTS (SELECT FROM pg_ls_waldir() WHERE name = '{needed}')");
        run.lab.wait("the segment that the replica needs to be removed", SOON, || {
            ask("SELECT pg_switch_wal()").ok()?;
            ask("CHECKPOINT").ok()?;
            ask(&gone).ok().filter(|rows| !rows.is_empty())
        })?;
        Ok(())
    };
    cluster.run("a_replica_is_away_for_too_long", &[], away).expect("it is copied");
    let logs: String = cluster.lab.nodes().iter().filter_map(|node| std::fs::read_to_string(node.log()).ok()).collect();
    assert!(logs.contains("begins at"), "no log says why it was copied");
}
