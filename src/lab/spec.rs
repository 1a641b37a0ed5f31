//! What a lab is made of, and where everything in it goes.

use super::{
    etcd::{EtcdMember, EtcdTiming},
    host::{Host, Walls},
    host_init::Disk,
    node::Node,
    switch::ipv4,
};
use crate::model::{
    lsn::Bytes,
    moment::Span,
    policy::{ClusterPolicy, Durability},
};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

/// The numbers on the switch of the first node, the first etcd host, the clients' host and the first copied host.
const NUMBERS: Numbers = Numbers { node: 1, etcd: 21, client: 31, copy: 41 };

struct Numbers {
    node: u8,
    etcd: u8,
    client: u8,
    copy: u8,
}

/// Where etcd's members run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On hosts of their own, `e1` and so on.
    Apart,
    /// On the nodes' hosts, one each.
    WithNodes,
}

/// What a lab is made of.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// The `pgbaton` binary that runs the hosts.
    pub program: PathBuf,
    /// The binary under test, whose `agent` verb is started on the nodes: the same, as a rule.
    pub agent: PathBuf,
    /// PostgreSQL's programs.
    pub bin_dir: PathBuf,
    /// The cluster's name.
    pub cluster: String,
    /// How many nodes, `n1` and so on; 1–9.
    pub nodes: u8,
    /// How many etcd members; 1–9. With [`Placement::WithNodes`] at most as many as nodes.
    pub members: u8,
    /// Where they run.
    pub placement: Placement,
    /// Their heartbeat and election.
    pub timing: EtcdTiming,
    /// The first policy. The lab adds the line that lets its clients in.
    pub policy: ClusterPolicy,
    /// What separates the hosts; the best that works where `None`.
    pub walls: Option<Walls>,
    /// A small file system for each node's data directory; needed to fill it up.
    pub disk: Option<Bytes>,
    /// After how long an agent that ended is started again.
    pub restart_after: Span,
    /// Added to the agents' environment.
    pub env: BTreeMap<String, String>,
    /// Merged into every node's configuration file.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Keeps the files after the end, for a look at the logs.
    pub keep_files: Files,
    /// When set, whatever waits in the lab gives up soon: Ctrl-C sets it.
    pub interrupted: Arc<AtomicBool>,
}

/// What becomes of the lab's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// They go with the lab. Those of a lab whose owner was killed stay.
    Remove,
    /// They go with the lab, and when its owner is killed too: a process waits for that.
    RemoveAlways,
    /// They stay.
    Keep,
}

impl LabSpec {
    /// Three nodes and three etcd members on hosts of their own, everything else by default.
    pub fn new(program: &Path, bin_dir: &Path) -> Self {
        Self {
            program: program.to_owned(),
            agent: program.to_owned(),
            bin_dir: bin_dir.to_owned(),
            cluster: "lab".into(),
            nodes: 3,
            members: 3,
            placement: Placement::Apart,
            timing: EtcdTiming::DEFAULT,
            policy: policy(),
            walls: None,
            disk: None,
            restart_after: Span::from_millis(200),
            env: BTreeMap::new(),
            extra: serde_json::Map::new(),
            keep_files: Files::Remove,
            interrupted: Arc::default(),
        }
    }
}

/// The default one. Commits wait for nobody, and a lab breaks its cluster as often as it likes.
fn policy() -> ClusterPolicy {
    let mut policy = ClusterPolicy { durability: Durability::Async, ..ClusterPolicy::default() };
    policy.anti_flap.failovers = 0;
    policy
}

/// A host and its number on the switch.
#[derive(Clone, Debug)]
pub(super) struct Plugged {
    pub(super) host: Arc<Host>,
    pub(super) number: u8,
}

/// Everything in its place; nothing is started.
pub(super) struct Layout {
    pub(super) hosts: BTreeMap<String, Plugged>,
    pub(super) nodes: Vec<Node>,
    pub(super) members: Vec<EtcdMember>,
    pub(super) client: Arc<Host>,
}

/// Hands out addresses while a lab is laid out.
struct Plan<'a> {
    lab: &'a str,
    spec: &'a LabSpec,
    walls: Walls,
    directory: &'a Path,
    /// Held until all loopback ports are chosen, so that none is chosen twice.
    taken: Vec<TcpListener>,
}

impl Plan<'_> {
    fn address(&mut self, number: u8, port: u16) -> Result<SocketAddr> {
        if self.walls == Walls::Namespaces {
            return Ok(SocketAddr::new(ipv4(number), port));
        }
        let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).context("find a free port")?;
        let address = listener.local_addr().context("find a free port")?;
        self.taken.push(listener);
        Ok(address)
    }

    fn host(&self, name: &str, disks: Vec<Disk>) -> Arc<Host> {
        Arc::new(Host::new(self.lab, name, &self.spec.program, self.walls, disks))
    }

    fn nodes(&mut self) -> Result<Vec<Node>> {
        (0..self.spec.nodes).map(|index| self.node(index)).collect()
    }

    fn node(&mut self, index: u8) -> Result<Node> {
        let (name, number) = (format!("n{}", index + 1), NUMBERS.node + index);
        let directory = self.directory.join(&name);
        let disk = Disk { image: self.directory.join(format!("{name}.img")), at: directory.join("pg") };
        let disks = self.spec.disk.filter(|_| self.walls == Walls::Namespaces).map(|_| disk).into_iter().collect();
        let host = self.host(&name, disks);
        let (postgres, api) = (self.address(number, 5_432)?, self.address(number, 8_008)?);
        Ok(Node { name, host, seen_directory: directory.clone(), directory, postgres, api })
    }

    fn members(&mut self, nodes: &[Node]) -> Result<Vec<(EtcdMember, u8)>> {
        let count = self.spec.members;
        let member = |index: u8| {
            let name = format!("e{}", index + 1);
            let (host, number) = match (self.spec.placement, nodes.get(usize::from(index))) {
                (Placement::WithNodes, Some(node)) => (node.host.clone(), NUMBERS.node + index),
                _ => (self.host(&name, Vec::new()), NUMBERS.etcd + index),
            };
            let (client, peer) = (self.address(number, 2_379)?, self.address(number, 2_380)?);
            Ok((EtcdMember { name, host, client, peer }, number))
        };
        (0..count).map(member).collect()
    }
}

impl Layout {
    /// Lays a lab out.
    ///
    /// # Errors
    /// When the specification asks for what a lab cannot be, or no port is free.
    pub(super) fn of(spec: &LabSpec, lab: &str, walls: Walls, directory: &Path) -> Result<Self> {
        if !(1..=9).contains(&spec.nodes) || !(1..=9).contains(&spec.members) {
            bail!("a lab has 1 to 9 nodes and 1 to 9 etcd members, not {} and {}", spec.nodes, spec.members);
        }
        if spec.placement == Placement::WithNodes && spec.members > spec.nodes {
            bail!("{} etcd members do not fit on {} nodes", spec.members, spec.nodes);
        }
        let mut plan = Plan { lab, spec, walls, directory, taken: Vec::new() };
        let nodes = plan.nodes()?;
        let members = plan.members(&nodes)?;
        let client = plan.host("client", Vec::new());
        let mut hosts: BTreeMap<String, Plugged> = BTreeMap::new();
        let mut add = |host: &Arc<Host>, number| hosts.insert(host.name().to_owned(), Plugged { host: host.clone(), number });
        add(&client, NUMBERS.client);
        for (node, number) in nodes.iter().zip(NUMBERS.node..) {
            add(&node.host, number);
        }
        for (member, number) in &members {
            add(&member.host, *number);
        }
        let members = members.into_iter().map(|(member, _)| member).collect();
        Ok(Self { hosts, nodes, members, client })
    }

    /// The number of the copy of the node host with this number.
    pub(super) const fn copy_number(original: u8) -> u8 {
        original - NUMBERS.node + NUMBERS.copy
    }
}
