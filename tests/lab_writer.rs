//! The lab's clients against plain PostgreSQL servers that this test promotes by hand: what they measure and prove.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends")]

use pgbaton::{
    clock,
    lab::{
        Host, Journal, LibpqWriter, Login, Server, Switch, Walls, Writer,
        command::{self, wait_until},
        host_init::Service,
        procfs, sql,
        switch::ipv4,
        verdict::{self, Judgement, RecordedLoss},
        writer::next_ack,
    },
    model::moment::{Moment, Span},
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");
const BIN: &str = "/usr/lib/postgresql/15/bin";
const SOON: Span = Span::from_secs(20);

/// Two servers, the second streaming from the first, and a host for clients.
struct Pair {
    directory: PathBuf,
    hosts: Vec<Host>,
    servers: Vec<Server>,
    switch: Switch,
}

impl Pair {
    fn new() -> Self {
        let lab = format!("{}-{}", process::id(), clock::data_incarnation());
        let directory = PathBuf::from(format!("/var/tmp/pgbaton-lab-test-{lab}"));
        let switch = Switch::new(&lab, Path::new(PROGRAM)).expect("switch");
        let names = ["n1", "n2", "client"];
        let hosts = names.map(|name| Host::new(&lab, name, Path::new(PROGRAM), Walls::Namespaces, Vec::new())).into();
        let servers = [1, 2].map(|number| Server { node: format!("n{number}"), address: SocketAddr::new(ipv4(number), 5_432) }).into();
        let pair = Self { directory, hosts, servers, switch };
        for (host, number) in pair.hosts.iter().zip(1..) {
            host.power_on().expect("power");
            pair.switch.plug(host, number).expect("plug");
        }
        command::run(&["install", "-d", "-o", "postgres", "-m", "0711", &pair.directory.display().to_string()], "", SOON)
            .expect("directory");
        pair.fill();
        pair
    }

    fn data(&self, node: usize) -> String {
        self.directory.join(format!("n{}", node + 1)).display().to_string()
    }

    fn as_postgres(&self, node: usize, argv: &[&str]) -> String {
        self.hosts[node].run_as(Some("postgres"), argv, "", SOON).expect("run as postgres")
    }

    fn fill(&self) {
        let (first, second) = (self.data(0), self.data(1));
        self.as_postgres(0, &[&format!("{BIN}/initdb"), "-D", &first, "--no-sync", "-A", "trust"]);
        let hba = "printf 'host all all 10.77.0.0/24 trust\\nhost replication all 10.77.0.0/24 trust\\n' >> \"$0/pg_hba.conf\"";
        self.as_postgres(0, &["sh", "-c", hba, &first]);
        self.start(0);
        self.query(0, sql::TABLE);
        let source = format!("host={} user=postgres", ipv4(1));
        self.as_postgres(1, &[&format!("{BIN}/pg_basebackup"), "-D", &second, "-R", "-c", "fast", "-N", "-d", &source]);
        self.start(1);
        wait_until("streaming", SOON, || (self.query(0, "SELECT count(*) FROM pg_stat_replication") == "1").then_some(()))
            .expect("streaming");
    }

    fn start(&self, node: usize) {
        let data = self.data(node);
        let options = ["-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "restart_after_crash=off", "-c", "fsync=off"];
        let argv = [format!("{BIN}/postgres"), "-D".to_owned(), data].into_iter().chain(options.map(str::to_owned)).collect();
        let log = self.directory.join(format!("log{node}"));
        let user = Some("postgres".to_owned());
        let service = Service { argv, env: BTreeMap::new(), log, directory: self.directory.clone(), user, restart_after: None };
        self.hosts[node].start("postgres", service).expect("start PostgreSQL");
        wait_until("PostgreSQL", SOON, || sql::query(self.client(), &self.servers[node], &login(), "SELECT 1", SOON).ok()).expect("up");
    }

    fn client(&self) -> &pgbaton::lab::Network {
        self.hosts[2].network()
    }

    fn query(&self, node: usize, text: &str) -> String {
        let rows = sql::query(self.client(), &self.servers[node], &login(), text, SOON).expect("query");
        rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default()
    }

    fn promote(&self, node: usize) {
        assert_eq!(self.query(node, "SELECT pg_promote(true, 10)"), "t");
    }

    fn writer(&self) -> Writer {
        Writer::start("main", self.client(), self.servers.clone(), &login()).expect("writer")
    }

    fn lost(&self, journals: &[Journal], node: usize, records: &[RecordedLoss]) -> Vec<verdict::LostTail> {
        let survivors = sql::survivors(self.client(), &self.servers[node], &login()).expect("survivors");
        verdict::lost(journals, &survivors, records)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.hosts.clear();
        std::fs::remove_dir_all(&self.directory).expect("remove the directory");
    }
}

fn login() -> Login {
    Login { user: "postgres".into(), password: None, database: "postgres".into() }
}

/// EXP-1 and the client of the comparison: a killed postmaster and a promotion by hand are one measured gap, nothing else.
#[test]
fn a_crash_and_a_promotion_are_one_gap_of_the_length_that_they_took() {
    let pair = Pair::new();
    let writer = pair.writer();
    let libpq = LibpqWriter::start("libpq", pair.client(), pair.servers.clone(), &login(), Path::new(BIN)).expect("libpq");
    wait_until("the clients to write", SOON, || (writer.look(|j| j.acks.len()) > 50 && libpq.look(|j| j.acks.len()) > 20).then_some(()))
        .expect("writing");
    let data = PathBuf::from(pair.data(0));
    let postmaster = procfs::postmaster(&pair.hosts[0].processes(), &data).expect("postmaster");
    assert_eq!(procfs::namespace_pids(postmaster).last().copied(), pair.hosts[0].service("postgres").expect("service").pid);
    let fault = clock::boot();
    pair.hosts[0].kill_process(postmaster).expect("kill");
    wait_until("its backends to end", SOON, || pair.hosts[0].processes().is_empty().then_some(())).expect("orphans reaped");
    let promoting = clock::boot();
    pair.promote(1);
    let back = next_ack(&writer, promoting, SOON).expect("writes again");
    wait_until("the libpq client", SOON, || libpq.look(|journal| journal.last().is_some_and(|ack| ack.node == "n2")).then_some(()))
        .expect("libpq writes again");
    let (journals, end) = ([writer.stop(), libpq.stop()], clock::boot());
    let gap = journals[0].longest_gap(fault, end).expect("gap");
    assert_eq!((gap.after.as_deref(), back.node.as_str()), (Some("n2"), "n2"));
    let last = journals[0].acks.iter().rev().find(|ack| ack.node == "n1").expect("n1 wrote").at;
    assert!(last < promoting && back.at > promoting && gap.length() >= back.at.since(last), "{gap:?}");
    println!("gap: {} by all hosts at once, {} by libpq", gap.length(), journals[1].longest_gap(fault, end).expect("gap").length());
    assert_eq!(verdict::two_writers(&journals), []);
    // The standby streamed until the kill: at most what was on its way is lost.
    let lost: usize = pair.lost(&journals, 1, &[]).iter().map(|tail| tail.rows).sum();
    assert!(lost < 20, "{lost} rows lost");
    assert!(journals.iter().all(|journal| journal.acks.iter().all(|ack| (ack.tli == 1) == (ack.node == "n1") && ack.lsn > 0)));
}

/// The prover proved: both servers promoted and written to is what it has to see.
#[test]
fn two_primaries_that_both_acknowledge_are_found() {
    let pair = Pair::new();
    let writer = pair.writer();
    let island = Writer::island("island-n1", pair.hosts[0].network(), pair.servers[0].clone(), &login()).expect("island");
    next_ack(&island, Moment::ZERO, SOON).expect("the island writes");
    pair.promote(1);
    wait_until("both to write", SOON, || writer.look(|j| j.acks.iter().any(|ack| ack.node == "n2")).then_some(())).expect("n2 writes");
    next_ack(&island, clock::boot(), SOON).expect("the island still writes");
    let journals = [writer.stop(), island.stop()];
    let proofs = verdict::two_writers(&journals);
    assert_eq!(proofs.len(), 1);
    assert_eq!((&proofs[0].older, &proofs[0].newer), (&("n1".to_owned(), 1), &("n2".to_owned(), 2)));
    assert!(proofs[0].acks >= 2 && proofs[0].clients.contains("island-n1") && proofs[0].clients.contains("main"), "{proofs:?}");
}

#[test]
fn an_asynchronous_tail_that_was_thrown_away_is_counted_and_judged() {
    let pair = Pair::new();
    let writer = pair.writer();
    next_ack(&writer, Moment::ZERO, SOON).expect("writing");
    // The stream is cut, the primary goes on acknowledging, and is thrown away.
    pair.as_postgres(1, &["sh", "-c", "echo \"primary_conninfo=''\" >> \"$0/postgresql.auto.conf\"", &pair.data(1)]);
    pair.query(1, "SELECT pg_reload_conf()");
    wait_until("the stream to end", SOON, || (pair.query(0, "SELECT count(*) FROM pg_stat_replication") == "0").then_some(()))
        .expect("cut");
    let cut = clock::boot();
    wait_until("a tail", SOON, || writer.look(|journal| journal.acks_of("n1", cut).count() > 30).then_some(())).expect("tail");
    pair.switch.unplug("n1").expect("unplug");
    pair.hosts[0].power_off().expect("power off");
    pair.promote(1);
    next_ack(&writer, clock::boot(), SOON).expect("writes again");
    let journals = [writer.stop()];
    let text = pair.query(1, "SELECT pg_read_file('pg_wal/00000002.history')");
    let switch = text.split_whitespace().nth(1).expect("switch point").parse::<pgbaton::model::lsn::Lsn>().expect("lsn").get();
    let judge =
        |bound| pair.lost(&journals, 1, &[RecordedLoss { left: 1, switch: Some(switch), kept: Some(switch), bound, unseen: Span::ZERO }]);
    let tails = judge(Some(0));
    assert_eq!(tails.len(), 1);
    assert!(tails[0].rows >= 30 && tails[0].bytes > Some(0) && tails[0].examples.len() == 10, "{tails:?}");
    assert_eq!(tails[0].judgement, Judgement::Exceeds);
    assert_eq!(judge(tails[0].bytes)[0].judgement, Judgement::Within);
    assert_eq!(verdict::two_writers(&journals), []);
}

/// The thaw of a frozen primary: an answer that was given up by an impatient client is heard by a patient one.
#[test]
fn an_island_writer_hears_what_a_thawed_server_acknowledges() {
    let pair = Pair::new();
    let island = Writer::island("island-n1", pair.hosts[0].network(), pair.servers[0].clone(), &login()).expect("island");
    next_ack(&island, Moment::ZERO, SOON).expect("writing");
    pair.hosts[0].freeze().expect("freeze");
    pair.promote(1);
    let writer = pair.writer();
    wait_until("n2 to write", SOON, || writer.look(|j| j.acks.len() > 30).then_some(())).expect("n2 writes");
    let thaw = clock::boot();
    pair.hosts[0].thaw().expect("thaw");
    let late = next_ack(&island, thaw, SOON).expect("late");
    assert_eq!((late.node.as_str(), late.tli), ("n1", 1));
    assert!(island.look(|journal| journal.indeterminate.is_empty()), "the statement that was frozen was answered");
    assert_eq!(verdict::two_writers(&[writer.stop(), island.stop()]).len(), 1);
}
