//! Nodes that were set up wrongly: each says once what is wrong, and touches nothing.
//!
//! One cluster, and beside its healthy first node one node a mistake.

use super::support::{SOON, bin_dir, insert_below, spec};
use anyhow::{Context, Result};
use pgbaton::{
    lab::{EtcdTiming, Fault, Lab, Node},
    model::moment::Span,
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// A mistake: the node that makes it, how, and what its log says: words of one line.
struct Mistake {
    name: &'static str,
    node: &'static str,
    make: fn(&Lab, &Node) -> Result<()>,
    said: &'static [&'static str],
}

/// Made before the cluster exists: nodes that would have become its first.
const AT_BOOTSTRAP: &[Mistake] = &[
    Mistake {
        name: "a non-empty directory",
        node: "n2",
        make: stray_file,
        said: &["n2/pg/data", "is not empty", "orders.csv", "move these files away"],
    },
    Mistake { name: "another major version", node: "n3", make: other_version, said: &["n3/pg/data", "PostgreSQL 9", "bin_dir"] },
    Mistake {
        name: "etcd cannot be reached",
        node: "n4",
        make: no_etcd,
        said: &["etcd does not answer", "10.77.0.31:2379", "look at its members and the network"],
    },
    Mistake {
        name: "an unreadable data directory",
        node: "n5",
        make: foreign_owner,
        said: &["n5/pg/data", "belongs to user id 0", "chown"],
    },
    Mistake {
        name: "no right to the state directory",
        node: "n6",
        make: state_is_file,
        said: &["n6/state", "not a directory", "state_dir"],
    },
];

/// Made before the cluster exists, too: what the operating system does not allow, or does not show.
const OF_THE_HOST: &[Mistake] = &[
    Mistake {
        name: "a missing mount",
        node: "n2",
        make: mount_is_missing,
        said: &["n2/pg/data", "the data was on the mount /srv/of-former-days", "is that mount missing?"],
    },
    Mistake {
        name: "a data directory without the right to read it",
        node: "n3",
        make: unreadable,
        said: &["n3/pg/data", "cannot be read", "ermission denied", "with mode 0000: chmod u+rwX"],
    },
    Mistake {
        name: "a parent in which the owner may not make it",
        node: "n4",
        make: foreign_parent,
        said: &["n4/pg/data", "cannot be made or written by user id", "install -d"],
    },
    Mistake {
        name: "a port in use where the cluster would begin",
        node: "n5",
        make: port_in_use,
        said: &["port 5432", "is in use by another program", "[postgres] port"],
    },
    Mistake {
        name: "the API's port in use",
        node: "n6",
        make: api_port_in_use,
        said: &["could not start the API", "listen on 0.0.0.0:", "ddress already in use", "another program uses it", "[api] listen"],
    },
];

/// Made once the cluster is there: nodes that would join it.
const AT_JOINING: &[Mistake] = &[
    Mistake {
        name: "data of another cluster",
        node: "n7",
        make: foreign_cluster,
        said: &["system identifier", "another cluster", "Move it away"],
    },
    Mistake { name: "a wrong password", node: "n8", make: wrong_password, said: &["password authentication failed", "10.77.0.11:5432"] },
    Mistake { name: "a port in use", node: "n9", make: port_in_use, said: &["port 5432", "is in use by another program"] },
];

fn data(node: &Node) -> PathBuf {
    node.seen_directory.join("pg/data")
}

fn as_owner(node: &Node, argv: &[&str]) -> Result<String> {
    node.host.run_as(Some("postgres"), argv, "", SOON)
}

fn stray_file(_: &Lab, node: &Node) -> Result<()> {
    as_owner(node, &["mkdir", "-m", "0700", &data(node).display().to_string()])?;
    as_owner(node, &["touch", &data(node).join("orders.csv").display().to_string()]).map(|_| ())
}

fn other_version(_: &Lab, node: &Node) -> Result<()> {
    foreign_cluster_files(node)?;
    fs::write(data(node).join("PG_VERSION"), "9\n").context("write PG_VERSION")
}

fn no_etcd(lab: &Lab, node: &Node) -> Result<()> {
    lab.inject(&Fault::CutFromEtcd(node.name.clone()))?;
    Ok(())
}

fn foreign_owner(_: &Lab, node: &Node) -> Result<()> {
    fs::create_dir(data(node)).context("make the data directory")?;
    fs::write(data(node).join("PG_VERSION"), "15\n").context("write PG_VERSION")
}

/// The node once had data on a mount of its own: what is there now is the empty place below it.
fn mount_is_missing(_: &Lab, node: &Node) -> Result<()> {
    let config = fs::read_to_string(node.seen_directory.join("pgbaton.toml")).context("read the configuration")?;
    let config: toml::Table = config.parse().context("understand the configuration")?;
    let data_dir = config.get("postgres").and_then(|postgres| postgres.get("data_dir")).context("no data_dir")?;
    let remembered = serde_json::json!({ "v": 1, "data_dir": data_dir.as_str(), "mount_point": "/srv/of-former-days" });
    let file = node.seen_directory.join("state/data-mount.json");
    fs::write(&file, remembered.to_string()).context("write what was remembered")?;
    as_owner(node, &["mkdir", "-m", "0700", &data(node).display().to_string()]).map(|_| ())
}

fn unreadable(_: &Lab, node: &Node) -> Result<()> {
    foreign_cluster_files(node)?;
    fs::set_permissions(data(node), fs::Permissions::from_mode(0o000)).context("take the rights away")
}

fn foreign_parent(_: &Lab, node: &Node) -> Result<()> {
    let parent = node.seen_directory.join("pg");
    std::os::unix::fs::chown(&parent, Some(0), Some(0)).context("give the parent to root")?;
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).context("let others look")
}

fn state_is_file(_: &Lab, node: &Node) -> Result<()> {
    let state = node.seen_directory.join("state");
    fs::remove_dir(&state).context("remove the state directory")?;
    fs::write(&state, "").context("make a file of its name")
}

fn foreign_cluster_files(node: &Node) -> Result<()> {
    let initdb = bin_dir().join("initdb").display().to_string();
    as_owner(node, &[&initdb, "-D", &data(node).display().to_string(), "--no-sync", "-A", "trust"]).map(|_| ())
}

fn foreign_cluster(_: &Lab, node: &Node) -> Result<()> {
    foreign_cluster_files(node)
}

fn wrong_password(_: &Lab, node: &Node) -> Result<()> {
    for role in ["replication", "rewind"] {
        let file = node.seen_directory.join(format!("secrets/{role}.password"));
        fs::write(&file, "not it").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Somebody else's PostgreSQL, or whatever it is.
fn port_in_use(_: &Lab, node: &Node) -> Result<()> {
    take_port(node, node.postgres.port())
}

fn api_port_in_use(_: &Lab, node: &Node) -> Result<()> {
    take_port(node, node.api.port())
}

fn take_port(node: &Node, port: u16) -> Result<()> {
    let network = node.host.network().clone();
    let taken = std::thread::spawn(move || -> Result<_> {
        network.enter()?;
        std::net::TcpListener::bind(("0.0.0.0", port)).context("take the port")
    });
    let listener = taken.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    // Held for as long as the test's process lives.
    std::mem::forget(listener);
    Ok(())
}

/// Everything in a directory: path, size and time of change.
fn contents(directory: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut all = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        all.insert(path.clone(), (metadata.size(), metadata.mtime(), metadata.mtime_nsec()));
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    all
}

/// How long nobody may repeat himself.
const OBSERVED: Span = Span::from_secs(8);

/// How often a node has said what a mistake needs said: as ERROR or WARN or, where it ends by it, on its last line.
fn said(node: &Node, mistake: &Mistake) -> usize {
    let text = fs::read_to_string(node.log()).unwrap_or_default();
    let lesser = |line: &str| [" INFO ", " DEBUG "].iter().any(|level| line.contains(level));
    text.lines().filter(|line| !lesser(line) && mistake.said.iter().all(|word| line.contains(word))).count()
}

/// What these nodes claimed in etcd, where they have nothing to claim.
fn claimed(lab: &Lab, mistakes: &[Mistake]) -> Vec<String> {
    let records = lab.records("").expect("etcd answers");
    let bootstrap = records.get("bootstrap").map(ToString::to_string).unwrap_or_default();
    let mut complaints = Vec::new();
    for Mistake { name, node, .. } in mistakes {
        if bootstrap.contains(&format!("\"{node}\"")) {
            complaints.push(format!("{name}: {node} took the right to initialise the cluster: {bootstrap}"));
        }
        // A node registers its life, with which it claims nothing, before it looks at its data.
        let held = records.get(&format!("nodes/{node}")).filter(|record| record.get("tli") != Some(&serde_json::Value::Null));
        complaints.extend(held.map(|record| format!("{name}: {node} says that it has data: {record}")));
    }
    complaints
}

/// Starts the nodes and waits for their words; returns what is wrong.
fn made(lab: &Lab, mistakes: &[Mistake]) -> Vec<String> {
    let mut before = Vec::new();
    for mistake in mistakes {
        let node = lab.node(mistake.node).expect("node");
        (mistake.make)(lab, node).expect(mistake.name);
        before.push(contents(&data(node)));
        lab.start_agent(mistake.node).expect("agent");
    }
    let count = |mistake: &Mistake| said(lab.node(mistake.node).expect("node"), mistake);
    let all_said = || mistakes.iter().all(|mistake| count(mistake) > 0).then_some(());
    let _ = lab.wait("all to say what is wrong", SOON, all_said);
    let repeated = || mistakes.iter().any(|mistake| count(mistake) > 1).then_some(());
    let _ = lab.wait("nobody to repeat himself", OBSERVED, repeated);
    let mut complaints = claimed(lab, mistakes);
    for (mistake, before) in mistakes.iter().zip(before) {
        let node = lab.node(mistake.node).expect("node");
        let text = fs::read_to_string(node.log()).unwrap_or_default();
        let times = count(mistake);
        if times != 1 {
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(12)..].join("\n      ");
            complaints.push(format!("{}: {times} lines say {:?}:\n      {end}", mistake.name, mistake.said));
        }
        if contents(&data(node)) != before {
            complaints.push(format!("{}: the data directory was touched", mistake.name));
        }
        if text.contains("panicked") {
            complaints.push(format!("{}: panicked", mistake.name));
        }
    }
    complaints
}

#[test]
fn a_node_that_was_set_up_wrongly_says_so_once_and_touches_nothing() {
    let lab = Lab::build(
        &spec(|spec| {
            (spec.nodes, spec.members, spec.timing) = (9, 1, EtcdTiming::FAST);
            // An agent that ends at once is not to fill its log.
            spec.restart_after = Span::from_secs(120);
        }),
        &|_| (),
    )
    .expect("lab");
    let mut complaints = made(&lab, AT_BOOTSTRAP);
    lab.start_agent("n1").expect("agent");
    lab.wait_primary(SOON).expect("the healthy node does not care");
    complaints.extend(made(&lab, AT_JOINING));
    assert_eq!(lab.primaries(), ["n1"]);
    assert!(complaints.is_empty(), "{}", complaints.join("\n  "));
}

#[test]
fn a_node_whose_host_does_not_give_the_directory_says_so_and_claims_nothing() {
    let lab = Lab::build(
        &spec(|spec| {
            (spec.nodes, spec.members, spec.timing) = (6, 1, EtcdTiming::FAST);
            spec.restart_after = Span::from_secs(120);
        }),
        &|_| (),
    )
    .expect("lab");
    let mut complaints = made(&lab, OF_THE_HOST);
    // An agent that ends at once has made nothing.
    let n6 = &lab.node("n6").expect("node").seen_directory;
    let made = ["state/node", "run/guard.json"].map(|name| n6.join(name)).into_iter().filter(|path| path.exists());
    complaints.extend(made.map(|path| format!("{} was made", path.display())));
    // None of them has taken the right to initialise the cluster.
    lab.start_agent("n1").expect("agent");
    assert_eq!(lab.wait_primary(SOON).expect("the healthy node does not care"), "n1");
    assert!(complaints.is_empty(), "{}", complaints.join("\n  "));
}

/// The configuration's own faults end the agent before anything is begun: all of them at once, with an exit status.
#[test]
fn faults_of_the_configuration_are_told_all_at_once() {
    let lab = Lab::build(&spec(|spec| (spec.nodes, spec.members, spec.timing) = (1, 1, EtcdTiming::FAST)), &|_| ()).expect("lab");
    let node = lab.node("n1").expect("node");
    insert_below(node, "postgres", "colour = \"green\"\nwal_dir = \"relative\"\n").expect("edit");
    let secret = node.seen_directory.join("secrets/rewind.password");
    fs::remove_file(&secret).expect("remove");
    let config = node.config().display().to_string();
    let error = node.host.run(&[super::support::PROGRAM, "agent", "--config", &config], SOON).expect_err("refused");
    let text = format!("{error:#}");
    for word in ["colour", "wal_dir", "rewind.password"] {
        assert!(text.contains(word), "{word} is not named: {text}");
    }
    assert!(!data(node).exists() && !node.seen_directory.join("state/node").exists());
}

/// etcd answers, but not to this user: nobody is sent to look at the network.
#[test]
fn a_wrong_password_of_etcd_is_told_as_one_and_nothing_is_touched() {
    let lab = Lab::build(&spec(|spec| (spec.nodes, spec.members, spec.timing) = (1, 1, EtcdTiming::FAST)), &|_| ()).expect("lab");
    for command in ["user add root:secret", "user grant-role root root", "auth enable"] {
        lab.etcd().any(&command.split(' ').collect::<Vec<_>>()).expect(command);
    }
    let node = lab.node("n1").expect("node");
    let file = node.seen_directory.join("secrets/etcd.password");
    // Its mode is copied, too.
    fs::copy(node.seen_directory.join("secrets/rewind.password"), &file).expect("password");
    fs::write(&file, "not it").expect("password");
    let (uid, gid) =
        fs::metadata(node.seen_directory.join("secrets/rewind.password")).map(|found| (found.uid(), found.gid())).expect("owner");
    std::os::unix::fs::chown(&file, Some(uid), Some(gid)).expect("owner");
    let shown = node.directory.join("secrets/etcd.password");
    insert_below(node, "etcd", &format!("username = \"root\"\npassword_file = \"{}\"\n", shown.display())).expect("edit");
    lab.start_agent("n1").expect("agent");
    let mistake =
        Mistake { name: "etcd", node: "n1", make: |_, _| Ok(()), said: &["be let in by etcd", "check [etcd] username, password_file"] };
    let told = lab.wait("the node to say what is wrong", SOON, || (said(node, &mistake) > 0).then_some(()));
    assert!(told.is_ok(), "{}", fs::read_to_string(node.log()).unwrap_or_default());
    let _ = lab.wait("it to repeat itself", OBSERVED, || (said(node, &mistake) > 1).then_some(()));
    assert_eq!(said(node, &mistake), 1, "{}", fs::read_to_string(node.log()).unwrap_or_default());
    assert!(!data(node).exists());
}
