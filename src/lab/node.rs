//! A database node of the lab: its files, its configuration, its agent.

use super::{
    host::{Host, Walls},
    host_init::Service,
    sql::Server,
};
use crate::model::{moment::Span, policy::ClusterPolicy};
use anyhow::{Context, Result};
use nix::unistd::{User, chown, geteuid};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The name of the agent's service on its host.
pub const AGENT: &str = "agent";

/// The operating system user that owns PostgreSQL's data where the lab is root.
pub const OWNER: &str = "postgres";

/// Where a node's files lie and its services listen.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name in the cluster.
    pub name: String,
    /// Its host; called like the node, but for a copied host.
    pub host: Arc<Host>,
    /// Its files, as its host sees them.
    pub directory: PathBuf,
    /// The same, as the lab sees them.
    pub seen_directory: PathBuf,
    /// Where PostgreSQL is reached.
    pub postgres: SocketAddr,
    /// Where the API is reached.
    pub api: SocketAddr,
}

/// What all nodes of a lab have in common.
#[derive(Clone, Debug)]
pub struct Common {
    /// The binary whose `agent` verb is the agent.
    pub agent: PathBuf,
    /// PostgreSQL's programs.
    pub bin_dir: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// etcd's client URLs.
    pub endpoints: Vec<String>,
    /// Below which etcd key.
    pub prefix: String,
    /// The first policy.
    pub policy: ClusterPolicy,
    /// The password of the roles that connect from node to node.
    pub password: String,
    /// By what the nodes prove to each other who they are.
    pub peer_key: String,
    /// After how long an agent that ended is started again, as systemd would.
    pub restart_after: Span,
    /// Added to the agents' environment.
    pub env: BTreeMap<String, String>,
    /// Merged into the configuration of every node: `[guard] kill = "descendants"` for one.
    pub extra: Map<String, Value>,
}

impl Node {
    /// The data directory, as the host sees it. The directory above it belongs to PostgreSQL's owner too, because a
    /// clone is made beside it.
    pub fn data_dir(&self) -> PathBuf {
        self.volume().join("data")
    }

    /// What a disk of its own is mounted at.
    pub fn volume(&self) -> PathBuf {
        self.directory.join("pg")
    }

    /// The configuration file, as the host sees it.
    pub fn config(&self) -> PathBuf {
        self.directory.join("pgbaton.toml")
    }

    /// The agent's log, as the lab sees it. The guard's and PostgreSQL's output is in it too, where they keep none of their own.
    pub fn log(&self) -> PathBuf {
        self.seen_directory.join("agent.log")
    }

    /// The guard's log, as the lab sees it.
    pub fn guard_log(&self) -> PathBuf {
        self.seen_directory.join("state/guard.log")
    }

    /// The agent's socket, as the lab sees it.
    pub fn agent_socket(&self) -> PathBuf {
        self.seen_directory.join("run/agent.sock")
    }

    /// What clients connect to.
    pub fn server(&self) -> Server {
        Server { node: self.name.clone(), address: self.postgres }
    }

    /// Makes its directories and files, `pgbaton.toml` and the secrets that it names included.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn furnish(&self, common: &Common) -> Result<()> {
        let own = &self.seen_directory;
        for (name, mode) in [("", 0o755), ("state", 0o700), ("run", 0o755), ("pg", 0o700), ("secrets", 0o700)] {
            make_directory(&own.join(name), mode)?;
        }
        for role in ["replication", "rewind"] {
            write_secret(&own.join(format!("secrets/{role}.password")), &common.password)?;
        }
        write_secret(&own.join("secrets/peer.key"), &common.peer_key)?;
        self.configure(common)
    }

    /// Writes its `pgbaton.toml` and `policy.toml` anew.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn configure(&self, common: &Common) -> Result<()> {
        let own = &self.seen_directory;
        let policy = serde_json::to_value(&common.policy).context("read the policy as a table")?;
        for (name, table) in [("policy.toml", &policy), ("pgbaton.toml", &self.configuration(common))] {
            let path = own.join(name);
            fs::write(&path, toml(table)).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn configuration(&self, common: &Common) -> Value {
        let path = |name: &str| self.directory.join(name);
        let listen = |address: &SocketAddr| match self.host.walls() {
            Walls::Namespaces => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()),
            Walls::Loopback => *address,
        };
        let mut all = json!({
            "cluster": common.cluster,
            "node": self.name,
            "state_dir": path("state"),
            "run_dir": path("run"),
            "etcd": { "endpoints": common.endpoints, "prefix": common.prefix },
            "api": { "listen": listen(&self.api), "advertise": self.api, "peer_key_file": path("secrets/peer.key") },
            "postgres": {
                "data_dir": self.data_dir(),
                "bin_dir": common.bin_dir,
                "listen": listen(&self.postgres),
                "advertise": self.postgres,
                "replication": { "password_file": path("secrets/replication.password") },
                "rewind": { "password_file": path("secrets/rewind.password") },
            },
            "bootstrap": { "policy": path("policy.toml") },
        });
        merge(&mut all, &Value::Object(common.extra.clone()));
        all
    }

    /// The agent as a service: one foreground command, started as root where the lab is root.
    pub fn agent(&self, common: &Common) -> Service {
        let config = self.config().display().to_string();
        Service {
            argv: vec![common.agent.display().to_string(), "agent".into(), "--config".into(), config],
            env: common.env.clone(),
            log: self.directory.join("agent.log"),
            directory: self.directory.clone(),
            user: None,
            restart_after: Some(common.restart_after),
        }
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// A table as a TOML file: plain keys, then a section a table, deeper ones in line.
fn toml(table: &Value) -> String {
    let entries = || table.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let line = |(key, value): (&String, &Value)| format!("{} = {}\n", quoted(key), toml_value(value));
    let plain = entries().filter(|(_, value)| !value.is_object()).map(line);
    let section = |(key, value): (&String, &Value)| {
        let lines = value.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()).map(line);
        format!("\n[{}]\n{}", quoted(key), lines.collect::<String>())
    };
    plain.chain(entries().filter(|(_, value)| value.is_object()).map(section)).collect()
}

fn toml_value(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(table) => {
            let entry = |(key, value): (&String, &Value)| format!("{} = {}", quoted(key), toml_value(value));
            format!("{{ {} }}", table.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        // Texts, numbers and booleans are written alike in both.
        plain => plain.to_string(),
    }
}

/// A key as TOML wants it: bare where it can be.
fn quoted(key: &str) -> String {
    let bare = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

/// Gives a path to PostgreSQL's owner where the lab may.
pub(super) fn give(path: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let user =
        User::from_name(OWNER).context("look up the owner")?.with_context(|| format!("no user {OWNER}: is PostgreSQL installed?"))?;
    chown(path, Some(user.uid), Some(user.gid)).with_context(|| format!("give {} to {OWNER}", path.display()))
}

pub(super) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    fs::DirBuilder::new().mode(mode).recursive(true).create(path).with_context(|| format!("make {}", path.display()))?;
    give(path)
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.create_new(true).write(true).mode(0o600).open(path).with_context(|| format!("create {}", path.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    give(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_written_as_toml() {
        let mut table = json!({ "a": { "b": { "c": [1, "x\"y"] }, "d": null }, "z": true });
        merge(&mut table, &json!({ "a": { "b": { "e.f": "g" } }, "n": 1.5 }));
        assert_eq!(toml(&table), "n = 1.5\nz = true\n\n[a]\nb = { c = [1, \"x\\\"y\"], \"e.f\" = \"g\" }\n");
    }
}
