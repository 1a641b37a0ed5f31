//! What is printed of a cluster.

use super::{
    host::{Host, run},
    published::{Builder, primary, reason, replica},
};
use pgbaton::{
    decide::decision::ReasonKind,
    model::{
        instance::{ServerRole, Waiting},
        key::Key,
        lsn::Lsn,
        moment::Span,
        observed::Observed,
        record::Lag,
    },
};
use serde_json::{Value, json};

const LONG: Span = Span::from_secs(600);

#[test]
fn the_list_shows_role_timeline_and_lag() {
    let host = Host::new();
    let agent = host.agent(primary(LONG).build());
    let ran = host.run(&["list"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let expected = "\
Cluster orders (7000000000000000001), term 5: n1 is primary on timeline 2
NODE  ROLE     STATE      TL        LSN  LAG  REPLAY  TIME  FAILOVER  NOTES
n1    primary  running     2  0/5000000    -       -     -  -
n2    replica  streaming   2  0/5000000  0 B     0 B    0s  yes
n3    replica  streaming   2  0/5000000  0 B    2 MB  2.0s  no        restart pending
n4    -        silent      -          -    -       -     -  no
";
    assert_eq!(ran.stdout, expected);
    // The same by URL, without a configuration.
    assert_eq!(run(&["list", "--url", &format!("http://{}", agent.address())]).stdout, expected);
}

/// A host that died is listed until its etcd lease ends: what it said last is not taken for the present.
#[test]
fn a_member_that_has_said_nothing_for_long_is_shown_as_silent() {
    let host = Host::new();
    let mut published = primary(LONG).build();
    published.snapshot.now.boot = published.snapshot.now.boot.minus(Span::from_secs(5));
    let agent = host.agent(published.clone());
    // The same record again is no sign of life.
    agent.seat.publish(primary(LONG).build());
    let shown = host.run(&["list"]).stdout;
    assert_eq!(shown.matches("replica  silent 5").count(), 2, "{shown}");
    assert!(shown.contains("n1    primary  running"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&host.run(&["list", "-o", "json"]).stdout).expect("json");
    assert!(json["members"][1]["silent_seconds"].as_f64().is_some_and(|silent| silent >= 5.0), "{json}");
    // And a new one is.
    let records = std::sync::Arc::make_mut(&mut published.snapshot.etcd.records);
    records.members.values_mut().for_each(|stored| stored.revision += 1);
    published.snapshot.now.boot = published.snapshot.now.boot.plus(Span::from_secs(5));
    agent.seat.publish(published);
    assert!(!host.run(&["list"]).stdout.contains("silent 5"));
}

#[test]
fn a_replica_that_the_primary_does_not_see_is_not_shown_as_streaming() {
    let host = Host::new();
    let mut published = primary(LONG).build();
    let Observed::Known { value: facts, .. } = &mut published.snapshot.server else { panic!("no facts") };
    facts.walsenders.retain(|row| row.application_name.contains("n3"));
    let _agent = host.agent(published);
    let shown = host.run(&["list"]).stdout;
    assert!(shown.contains("n2    replica  not connected") && shown.contains("n3    replica  streaming"), "{shown}");
}

#[test]
fn the_list_as_json_is_for_programs() {
    let host = Host::new();
    let _agent = host.agent(primary(LONG).build());
    let ran = host.run(&["list", "--output", "json"]);
    let mut list: serde_json::Value = serde_json::from_str(&ran.stdout).expect("json");
    let leaders: Vec<&str> =
        list["members"].as_array().expect("members").iter().filter(|m| m["leader"] == true).filter_map(|m| m["node"].as_str()).collect();
    assert_eq!(leaders, ["n1"]);
    // The only thing that goes on by itself.
    list["leader"]["stood_still_seconds"] = 0.0.into();
    insta::assert_snapshot!("list_json", serde_json::to_string_pretty(&list).expect("json"));
}

#[test]
fn doubts_and_alarms_are_shown_with_the_list() {
    let host = Host::new();
    let reasons = vec![reason(ReasonKind::Alarm, "disk", "the disk is full")];
    let mut published = Builder { reasons, ..primary(LONG) }.build();
    published.snapshot.etcd.answered.lost(published.snapshot.now.boot, "connection refused");
    let _agent = host.agent(published);
    let ran = host.run(&["list"]);
    assert!(ran.stdout.starts_with("Note: n1 has not heard from etcd for "), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("ALARM disk: the disk is full\n"), "{}", ran.stdout);
}

#[test]
fn status_tells_of_the_node_and_ends_with_8_when_something_alarms() {
    let host = Host::new();
    let agent = host.agent(primary(LONG).build());
    let ran = host.run(&["status"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let text: String = ran.stdout.lines().filter(|line| !line.contains(" ago")).map(|line| format!("{line}\n")).collect();
    let text = text.replace("9.9min", "9min");
    assert_eq!(
        text,
        "\
Node n1 of cluster orders: primary, running
  Cluster    term 5, n1 is primary on timeline 2
  Lease      ours for another 9min (hold 2.8s, others take after 3.3s)
  Routing    writes yes, reads no
  Commits    wait for nobody: the loss of the primary's host may lose what was acknowledged lately, 0 bytes at this moment
  Fencing    kernel deadline (namespace), in 9min
  Failover   to n2
"
    );
    let reasons = vec![reason(ReasonKind::Because, "b", "because of that"), reason(ReasonKind::Alarm, "disk", "the disk is full")];
    agent.seat.publish(Builder { reasons, ..primary(LONG) }.build());
    let ran = host.run(&["status"]);
    assert_eq!(ran.code, 8);
    assert!(ran.stdout.ends_with("  ALARM      disk: the disk is full\n  because    b: because of that\n"), "{}", ran.stdout);
}

/// What `status` says of commits, by what `sync` records and what the server shows.
#[test]
fn status_tells_what_commits_wait_for_and_what_would_be_lost() {
    let host = Host::new();
    let agent = host.agent(primary(LONG).build());
    let says = |mode: &str, voters: &[&str], shown: &str, weak: Option<&str>, waiting: u32| {
        let mut published = primary(LONG).build();
        let mut records = published.snapshot.etcd.records.as_ref().clone();
        let replica = |node: &&str| json!({"node": node, "data": format!("0000000{}", &node[1..])});
        let voters: Vec<Value> = voters.iter().map(replica).collect();
        let sync = json!({
            "v": 1, "term": 5, "nonce": "s2", "primary": replica(&"n1"), "address": "10.0.0.1:5432", "mode": mode,
            "k": u32::from(mode != "async"), "voters": voters, "electable": voters
        });
        records.apply(&Key::Sync, Some(&sync.to_string()), 12);
        published.snapshot.etcd.records = records.into();
        let mut facts = published.snapshot.server.value().expect("a server").clone();
        facts.sync_names = shown.to_owned();
        facts.weak_commits = weak.map(ToOwned::to_owned);
        facts.waiting = Some(Waiting { sessions: waiting, longest: Span::from_millis(2_500) });
        if let ServerRole::Primary { insert, .. } = &mut facts.role {
            *insert = Lsn::new(insert.get() + 700);
        }
        published.snapshot.server = Observed::known(facts, published.snapshot.now.boot);
        agent.seat.publish(published);
        let ran = host.run(&["status"]);
        let line = ran.stdout.lines().find_map(|line| line.strip_prefix("  Commits    ")).map(ToOwned::to_owned);
        line.unwrap_or_else(|| panic!("{}", ran.stdout))
    };
    const LOSES_NOTHING: &str = "the loss of the primary's host loses nothing acknowledged";
    const MAY_LOSE: &str = "the loss of the primary's host may lose what was acknowledged lately, 700 bytes at this moment";
    let (names, nobody) = (r#"ANY 1 ("n2_00000002", "n3_00000003")"#, r#"ANY 1 ("pgbaton: nobody")"#);
    assert_eq!(says("quorum", &["n2", "n3"], names, None, 0), format!("wait for 1 of n2, n3: {LOSES_NOTHING}"));
    assert_eq!(says("quorum", &["n2", "n3"], names, None, 3), format!("wait for 1 of n2, n3: {LOSES_NOTHING}; 3 wait, the first for 2.5s"));
    assert_eq!(says("quorum", &["n2", "n3"], "", None, 0), format!("wait for 1 of n2, n3: {MAY_LOSE}"), "set by hand");
    let weak = says("quorum", &["n2", "n3"], names, Some("local in postgresql.auto.conf"), 0);
    assert_eq!(weak, format!("wait for 1 of n2, n3: {MAY_LOSE}"));
    assert_eq!(says("quorum", &[], "", None, 0), format!("wait for nobody, as no replica can confirm them: {MAY_LOSE}"));
    assert_eq!(says("strict-quorum", &[], nobody, None, 0), format!("wait for a replica that can confirm them: {MAY_LOSE}"));
    assert_eq!(says("strict-quorum", &[], "", None, 0), format!("wait for a replica that can confirm them: {MAY_LOSE}"), "set by hand");
}

/// A replica says of the primary what that one says of itself; one from which nobody streams, what etcd knows of others.
#[test]
fn what_would_be_lost_is_told_by_whom_may_not_see_it() {
    let host = Host::new();
    let agent = host.agent(replica().build());
    let says = |builder: Builder, otherwise: bool, lag: Option<u64>, noted: Option<&str>| {
        let mut published = builder.build();
        let replica = |node: &str| json!({"node": node, "data": format!("0000000{}", &node[1..])});
        let sync = json!({
            "v": 1, "term": 5, "nonce": "s2", "primary": replica("n1"), "address": "10.0.0.1:5432", "mode": "quorum",
            "k": 1, "voters": [replica("n2")], "electable": [replica("n2")]
        });
        let records = std::sync::Arc::make_mut(&mut published.snapshot.etcd.records);
        records.apply(&Key::Sync, Some(&sync.to_string()), 12);
        let said = &mut records.members.get_mut(&"n1".parse().expect("name")).expect("a member").record;
        said.acknowledges_otherwise = otherwise;
        let flush = |flush| Lag { sent: None, write: None, flush: Some(flush), replay: None, replay_ms: None };
        said.replicas = lag.map(|lag| ("n2".parse().expect("name"), flush(lag))).into_iter().collect();
        let node = noted.map(|whole| json!({"v": 1, "data": "00000002", "starts": 1, "whole": whole, "tli": 2}).to_string());
        records.apply(&Key::Node("n2".parse().expect("name")), node.as_deref(), 13);
        if let Observed::Known { value: facts, .. } = &mut published.snapshot.server {
            facts.walsenders.clear();
        }
        agent.seat.publish(published);
        let ran = host.run(&["status"]);
        let line = ran
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("  Commits    wait for 1 of n2: the loss of the primary's host "))
            .map(ToOwned::to_owned);
        line.unwrap_or_else(|| panic!("{}", ran.stdout))
    };
    const MAY_LOSE: &str = "may lose what was acknowledged lately";
    assert_eq!(says(replica(), false, Some(40), None), "loses nothing acknowledged");
    assert_eq!(says(replica(), true, Some(40), None), format!("{MAY_LOSE}, 40 bytes as the primary said last"));
    assert_eq!(says(replica(), true, None, None), format!("{MAY_LOSE}; how much is not known here"));
    // Names are set by hand there, and nobody streams.
    assert_eq!(says(primary(LONG), false, None, Some("0/4FFFF00")), format!("{MAY_LOSE}, 256 bytes at this moment"));
    assert_eq!(says(primary(LONG), false, None, None), format!("{MAY_LOSE}; how much is not known here"));
}

#[test]
fn why_prints_the_reasons_of_the_node_that_is_asked() {
    let host = Host::new();
    let reasons = vec![reason(ReasonKind::Waits, "wait", "waits for 2s")];
    let agent = host.agent(Builder { reasons, ..replica() }.build());
    let ran = host.run(&["why"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "n2 in term 5:\n  waits      wait: waits for 2s\n"));
    assert_eq!(host.run(&["why", "--node", "n9"]).code, 5);
    agent.seat.publish(replica().build());
    assert!(host.run(&["why"]).stdout.contains("nothing to explain"));
}

#[test]
fn a_connection_string_names_the_primary_first() {
    let host = Host::new();
    let _agent = host.agent(primary(LONG).build());
    let ran = host.run(&["dsn"]);
    let expected =
        "host=10.0.0.1,10.0.0.2,10.0.0.3 port=5432,5432,5432 dbname=postgres connect_timeout=3 target_session_attrs=read-write\n";
    assert_eq!((ran.code, ran.stdout.as_str()), (0, expected));
}

#[test]
fn an_agent_that_is_down_is_told_with_the_way_to_it() {
    let host = Host::new();
    for verb in ["status", "why"] {
        let ran = host.run(&[verb]);
        assert_eq!(ran.code, 3, "{verb}");
        assert!(ran.stderr.starts_with("pgbaton: could not reach the agent at <host>/run/agent.sock: "), "{}", ran.stderr);
    }
    // Those that could do with etcd say that neither answers.
    let ran = host.run(&["list"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("agent.sock") && ran.stderr.contains("etcd"), "{}", ran.stderr);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let host = Host::new();
    let _agent = host.agent(primary(LONG).build());
    #[expect(clippy::disallowed_methods, reason = "the test runs the program under test")]
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pgbaton"));
    command.args(["list", "--watch", "--interval", "0.1", "--config"]).arg(host.path("orders.toml"));
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("spawn");
    drop(child.stdout.take());
    let until = std::time::Duration::from_secs(5);
    let ended = (0..until.as_millis() / 20).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        child.try_wait().expect("wait")
    });
    if ended.is_none() {
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "it ends when nobody reads");
}

#[test]
fn a_simulated_seed_tells_its_verdict_and_what_it_exercised() {
    let ran = run(&["simulate", "--seed", "3", "--durability", "strict-quorum", "--swarm", "policy"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    assert!(ran.stdout.starts_with("seed 3: all well, digest "), "{}", ran.stdout);
    assert!(ran.stdout.lines().any(|line| line.trim_start().starts_with("decisions:")), "{}", ran.stdout);
    let ran = run(&["simulate", "--policy", "p.toml", "--durability", "quorum"]);
    assert!(ran.code == 2 && ran.stderr.contains("cannot be used with"), "{}", ran.stderr);
}

#[test]
fn a_policy_is_told_what_it_costs_and_what_it_survives() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.toml");
    let told = |policy: &str, more: &[&str]| {
        std::fs::write(&file, policy).expect("write");
        let path = file.display().to_string();
        run(&[&["simulate", "--policy", &path, "--seeds", "1"], more].concat())
    };
    let quorum = told("preset = \"fast\"\ndurability = \"quorum\"\n", &[]);
    assert_eq!((quorum.code, quorum.stderr.as_str()), (0, ""), "{}", quorum.stdout);
    let (silence, rest) = quorum.stdout.split_once('\n').expect("lines");
    assert!(silence.contains("goes on for 1100 ms by itself") && silence.contains("give their word"), "{silence}");
    assert!(
        rest.starts_with("A primary whose host is lost is followed after about 975 ms where its voters find it gone, else after 2000 ms"),
        "{rest}"
    );
    let row = |name: &str| rest.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {rest}")).to_owned();
    assert!(row("any").split_whitespace().nth(1).is_some_and(|struck| struck.parse::<u64>().is_ok_and(|struck| struck >= 10)), "{rest}");
    assert!(row("any").ends_with(" ms"), "{rest}");

    let alone = told("failsafe = false\ndepose = \"after-lease\"\n", &["--output", "json"]);
    assert_eq!((alone.code, alone.stderr.as_str()), (0, ""), "{}", alone.stdout);
    let json: serde_json::Value = serde_json::from_str(&alone.stdout).expect("JSON");
    assert!(
        json["faults"]
            .as_array()
            .is_some_and(|faults| faults.iter().any(|row| row["outages_ms"].as_array().is_some_and(|ms| !ms.is_empty())))
    );
    let async_text = told("failsafe = false\ndepose = \"after-lease\"\n", &[]).stdout;
    assert!(async_text.contains("failsafe is off") && async_text.contains("is followed after 3300 ms; one"), "{async_text}");

    let bad = told("take_after = \"1s\"\n", &[]);
    assert!(bad.code != 0 && bad.stderr.contains("take_after") && bad.stdout.is_empty(), "{}{}", bad.stdout, bad.stderr);
}
