//! A whole lab: hosts, switch, etcd, nodes, and what tears it all down.

use super::{
    command::{poll_until, wait_until},
    disk,
    etcd::{Etcd, EtcdMember, EtcdTiming},
    fault::Injected,
    freezer,
    host::{Host, NotHere, Walls},
    host_init::Disk,
    libpq::LibpqWriter,
    node::{self, AGENT, Common, Node},
    sql::{self, Login, Server},
    status,
    switch::{Switch, ipv4},
    verdict::Row,
    writer::Writer,
};
use crate::{
    clock,
    model::{
        lsn::Bytes,
        moment::{Moment, Span},
        policy::ClusterPolicy,
        record::HistoryRecord,
    },
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// Below which all labs keep their files. On a disk: `/tmp` may be memory.
const BASE: &str = "/var/tmp";
/// How long one question of the lab to a node may take.
const ASKING: Span = Span::from_secs(2);
/// How long a node may take to say whether it is primary.
const GLANCE: Span = Span::from_millis(500);
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
    pub extra: toml::Table,
    /// Keeps the files after the end, for a look at the logs.
    pub keep_files: Files,
    /// When set, whatever waits in the lab gives up soon: Ctrl-C sets it.
    pub interrupted: Arc<AtomicBool>,
}

/// What becomes of the lab's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// They go with the lab.
    Remove,
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
            policy: ClusterPolicy::default(),
            walls: None,
            disk: None,
            restart_after: Span::from_millis(200),
            env: BTreeMap::new(),
            extra: toml::Table::new(),
            keep_files: Files::Remove,
            interrupted: Arc::default(),
        }
    }
}

/// A lab at work. Dropping it ends every process and removes every file, also while a panic unwinds.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    pub(super) program: PathBuf,
    keep_files: Files,
    interrupted: Arc<AtomicBool>,
    walls: Walls,
    /// Why there are no namespaces, where there are none.
    poorer: Option<String>,
    pub(super) switch: Option<Switch>,
    pub(super) hosts: Mutex<BTreeMap<String, Plugged>>,
    client: Arc<Host>,
    pub(super) etcd: Etcd,
    nodes: Vec<Node>,
    pub(super) common: Common,
    login: Login,
    /// The agents that run, or would if their host did.
    pub(super) wanted: Mutex<BTreeSet<String>>,
    pub(super) active: Mutex<Vec<Injected>>,
}

/// A host and its number on the switch.
#[derive(Clone, Debug)]
pub(super) struct Plugged {
    pub(super) host: Arc<Host>,
    pub(super) number: u8,
}

/// Hands out addresses while a lab is laid out.
struct Plan<'a> {
    name: &'a str,
    spec: &'a LabSpec,
    walls: Walls,
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
        Arc::new(Host::new(self.name, name, &self.spec.program, self.walls, disks))
    }
}

impl Lab {
    /// Lays a lab out and starts hosts and etcd. The nodes are configured; their agents are not started.
    /// `progress` is told each step before it is taken.
    ///
    /// # Errors
    /// Says which step failed. Everything that was made is removed then.
    pub fn build(spec: &LabSpec, progress: &dyn Fn(&str)) -> Result<Self> {
        if !(1..=9).contains(&spec.nodes) || !(1..=9).contains(&spec.members) {
            bail!("a lab has 1 to 9 nodes and 1 to 9 etcd members, not {} and {}", spec.nodes, spec.members);
        }
        if spec.placement == Placement::WithNodes && spec.members > spec.nodes {
            bail!("{} etcd members do not fit on {} nodes", spec.members, spec.nodes);
        }
        let name = format!("{}-{}", std::process::id(), clock::data_incarnation());
        let directory = directory_of(&name);
        progress("network");
        let (switch, poorer) = match spec.walls {
            Some(Walls::Loopback) => (None, Some("the lab was asked to use loopback ports".to_owned())),
            Some(Walls::Namespaces) => (Some(Switch::new(&name, &spec.program)?), None),
            None => match Switch::new(&name, &spec.program) {
                Ok(switch) => (Some(switch), None),
                Err(error) => (None, Some(format!("network namespaces cannot be made: {error:#}"))),
            },
        };
        let walls = if switch.is_some() { Walls::Namespaces } else { Walls::Loopback };
        let mut plan = Plan { name: &name, spec, walls, taken: Vec::new() };
        let mut lab = Self::lay_out(&mut plan, directory.clone())?;
        (lab.switch, lab.poorer) = (switch, poorer);
        drop(plan);
        lab.raise(spec, progress)?;
        Ok(lab)
    }

    fn lay_out(plan: &mut Plan<'_>, directory: PathBuf) -> Result<Self> {
        let spec = plan.spec;
        let mut hosts = BTreeMap::new();
        let mut nodes = Vec::new();
        for (index, number) in (0..spec.nodes).zip(NUMBERS.node..) {
            let name = format!("n{}", index + 1);
            let own = directory.join(&name);
            let image = Disk { image: directory.join(format!("{name}.img")), at: own.join("pg") };
            let disks = spec.disk.filter(|_| plan.walls == Walls::Namespaces).map(|_| image).into_iter().collect();
            let host = plan.host(&name, disks);
            hosts.insert(name.clone(), Plugged { host: host.clone(), number });
            let (postgres, api) = (plan.address(number, 5_432)?, plan.address(number, 8_008)?);
            nodes.push(Node { name, host, seen_directory: own.clone(), directory: own, postgres, api });
        }
        let mut members = Vec::new();
        for index in 0..spec.members {
            let name = format!("e{}", index + 1);
            let (host, number) = match (spec.placement, nodes.get(usize::from(index))) {
                (Placement::WithNodes, Some(node)) => (node.host.clone(), NUMBERS.node + index),
                _ => (plan.host(&name, Vec::new()), NUMBERS.etcd + index),
            };
            hosts.insert(host.name().to_owned(), Plugged { host: host.clone(), number });
            members.push(EtcdMember { name, host, client: plan.address(number, 2_379)?, peer: plan.address(number, 2_380)? });
        }
        let client = plan.host("client", Vec::new());
        hosts.insert("client".into(), Plugged { host: client.clone(), number: NUMBERS.client });
        let etcd = Etcd::new(members, spec.timing, &directory.join("etcd"), plan.name);
        let mut policy = spec.policy.clone();
        let from = if plan.walls == Walls::Namespaces { "10.77.0.0/24" } else { "127.0.0.1/32" };
        policy.hba.push(format!("host all all {from} trust"));
        let common = Common {
            agent: spec.agent.clone(),
            bin_dir: spec.bin_dir.clone(),
            cluster: spec.cluster.clone(),
            endpoints: etcd.endpoints(),
            prefix: "/pgbaton".into(),
            policy,
            password: clock::nonce().to_string(),
            restart_after: spec.restart_after,
            env: spec.env.clone(),
            extra: spec.extra.clone(),
        };
        Ok(Self {
            name: plan.name.to_owned(),
            directory,
            program: spec.program.clone(),
            keep_files: spec.keep_files,
            interrupted: spec.interrupted.clone(),
            walls: plan.walls,
            poorer: None,
            switch: None,
            hosts: Mutex::new(hosts),
            client,
            etcd,
            nodes,
            common,
            login: Login { user: "postgres".into(), password: None, database: "postgres".into() },
            wanted: Mutex::default(),
            active: Mutex::default(),
        })
    }

    fn raise(&self, spec: &LabSpec, progress: &dyn Fn(&str)) -> Result<()> {
        fs::create_dir(&self.directory).with_context(|| format!("make {}", self.directory.display()))?;
        fs::create_dir(self.directory.join("etcd")).context("make etcd's directory")?;
        for node in &self.nodes {
            node.furnish(&self.common)?;
            if let Some(bytes) = spec.disk.filter(|_| self.walls == Walls::Namespaces) {
                let image = self.directory.join(format!("{}.img", node.name));
                disk::create(&image, &node.volume(), bytes.get(), node::OWNER)?;
            }
        }
        for (name, plugged) in self.hosts() {
            self.check_interrupted()?;
            progress(&format!("host {name}"));
            self.power_up(&plugged)?;
        }
        progress("etcd");
        self.etcd.start()
    }

    fn check_interrupted(&self) -> Result<()> {
        if self.interrupted.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Its name, unique on this machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What separates its hosts.
    pub const fn walls(&self) -> Walls {
        self.walls
    }

    /// For a fault that needs namespaces.
    ///
    /// # Errors
    /// [`NotHere`] with the reason, in a lab that has none.
    pub(super) fn need_namespaces(&self) -> Result<&Switch, NotHere> {
        let reason = || self.poorer.clone().unwrap_or_else(|| "this lab has no network namespaces".into());
        self.switch.as_ref().ok_or_else(|| NotHere(reason()))
    }

    /// Its etcd.
    pub const fn etcd(&self) -> &Etcd {
        &self.etcd
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    fn hosts_slot(&self) -> MutexGuard<'_, BTreeMap<String, Plugged>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the list of hosts.
    pub(super) fn hosts(&self) -> BTreeMap<String, Plugged> {
        self.hosts_slot().clone()
    }

    pub(super) fn plugged(&self, name: &str) -> Result<Plugged> {
        self.hosts_slot().get(name).cloned().with_context(|| format!("no host {name}"))
    }

    pub(super) fn add_host(&self, host: Arc<Host>, number: u8) -> Plugged {
        let plugged = Plugged { host: host.clone(), number };
        self.hosts_slot().insert(host.name().to_owned(), plugged.clone());
        plugged
    }

    pub(super) fn remove_host(&self, name: &str) {
        self.hosts_slot().remove(name);
    }

    /// The number of a copied host.
    pub(super) const fn copy_number(original: u8) -> u8 {
        original - NUMBERS.node + NUMBERS.copy
    }

    pub(super) fn power_up(&self, plugged: &Plugged) -> Result<()> {
        plugged.host.power_on()?;
        self.switch.as_ref().map_or(Ok(()), |switch| switch.plug(&plugged.host, plugged.number))
    }

    /// Pulls the cables of all these hosts, then takes their power away.
    pub(super) fn power_down(&self, names: &[&str]) -> Result<()> {
        let hosts = names.iter().map(|name| self.plugged(name)).collect::<Result<Vec<_>>>()?;
        for plugged in hosts.iter().filter(|plugged| plugged.host.is_on()) {
            if let Some(switch) = &self.switch {
                switch.unplug(plugged.host.name())?;
            }
        }
        hosts.iter().try_for_each(|plugged| plugged.host.power_off())
    }

    /// Switches a host on, and starts what belongs there: its etcd member, and its agent if that was started before.
    ///
    /// # Errors
    /// When it is on, or something does not start.
    pub fn power_on(&self, name: &str) -> Result<()> {
        self.power_up(&self.plugged(name)?)?;
        self.start_services(name)
    }

    pub(super) fn start_services(&self, host: &str) -> Result<()> {
        self.etcd.start_on(host)?;
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(host);
        if wanted { self.start_agent(host) } else { Ok(()) }
    }

    /// Starts a node's agent.
    ///
    /// # Errors
    /// When it runs already, or its host is off.
    pub fn start_agent(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        node.host.start(AGENT, node.agent(&self.common)).with_context(|| format!("start the agent of {name}"))?;
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(())
    }

    /// Starts all agents, the first node's first.
    ///
    /// # Errors
    /// As [`Lab::start_agent`].
    pub fn start_agents(&self) -> Result<()> {
        self.nodes.iter().try_for_each(|node| self.start_agent(&node.name))
    }

    /// What a node's agent says under `path`, `/v1/status` for one.
    ///
    /// # Errors
    /// As [`status::get`].
    pub fn ask(&self, node: &str, path: &str) -> Result<Value> {
        status::get(&self.node(node)?.agent_socket(), path, ASKING)
    }

    /// How clients introduce themselves: a superuser whom the lab's own `pg_hba.conf` line trusts.
    pub const fn login(&self) -> &Login {
        &self.login
    }

    /// All PostgreSQL servers.
    pub fn servers(&self) -> Vec<Server> {
        self.nodes.iter().map(Node::server).collect()
    }

    /// The host for clients.
    pub const fn client(&self) -> &Arc<Host> {
        &self.client
    }

    /// Runs SQL on a node from the clients' host.
    ///
    /// # Errors
    /// As [`sql::query`].
    pub fn query(&self, node: &str, text: &str) -> Result<Vec<Vec<Option<String>>>> {
        sql::query(self.client.network(), &self.node(node)?.server(), &self.login, text, ASKING)
    }

    /// The nodes that say that they are not in recovery. More than one is not proof of two writers: an old primary that
    /// acknowledges nothing any more may say so too.
    pub fn primaries(&self) -> Vec<String> {
        let writable = |node: &Node| {
            let rows = sql::query(self.client.network(), &node.server(), &self.login, "SELECT pg_is_in_recovery()", GLANCE);
            rows.is_ok_and(|rows| rows.first().and_then(|row| row.first().cloned().flatten()).as_deref() == Some("f"))
        };
        // Side by side: a node that is silent takes its whole deadline.
        thread::scope(|scope| {
            let asked = self.nodes.iter().filter(|node| node.host.is_on()).map(|node| (node, scope.spawn(move || writable(node))));
            let asked: Vec<_> = asked.collect();
            let answers = asked.into_iter().filter_map(|(node, thread)| thread.join().is_ok_and(|yes| yes).then(|| node.name.clone()));
            answers.collect()
        })
    }

    /// Waits until exactly one node takes writes.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted.
    pub fn wait_primary(&self, deadline: Span) -> Result<String> {
        self.wait("one primary", deadline, || match self.primaries().as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        })
    }

    /// Waits until one node is primary and all others of `nodes` stream from it; returns the primary.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted.
    pub fn wait_streaming(&self, nodes: &[&str], deadline: Span) -> Result<String> {
        let wanted = nodes.len().saturating_sub(1).to_string();
        let text = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' \
                    AND application_name NOT LIKE 'pg_basebackup%' AND application_name NOT LIKE 'pg_receivewal%'";
        self.wait("all others to stream from one primary", deadline, || {
            let [primary] = self.primaries().try_into().ok()?;
            let count = self.query(&primary, text).ok()?.first()?.first().cloned().flatten()?;
            (count == wanted && nodes.contains(&primary.as_str())).then_some(primary)
        })
    }

    /// Waits for anything.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted; says what was waited for.
    pub fn wait<T>(&self, what: &str, deadline: Span, mut question: impl FnMut() -> Option<T>) -> Result<T> {
        let answer = wait_until(what, deadline, || match self.check_interrupted() {
            Ok(()) => question().map(Ok),
            Err(error) => Some(Err(error)),
        });
        answer.flatten()
    }

    /// Makes the table that the lab's clients write to.
    ///
    /// # Errors
    /// When the node does not take it.
    pub fn make_table(&self, primary: &str) -> Result<()> {
        self.query(primary, sql::TABLE).map(|_| ())
    }

    /// Starts the measuring client.
    ///
    /// # Errors
    /// As [`Writer::start`].
    pub fn writer(&self, client: &str) -> Result<Writer> {
        Writer::start(client, self.client.network(), self.servers(), &self.login)
    }

    /// Starts an adversarial client on a node's own host that writes to that node alone.
    ///
    /// # Errors
    /// As [`Writer::island`].
    pub fn island(&self, node: &str) -> Result<Writer> {
        let node = self.node(node)?;
        Writer::island(&format!("island-{}", node.name), node.host.network(), node.server(), &self.login)
    }

    /// Starts the libpq client.
    ///
    /// # Errors
    /// As [`LibpqWriter::start`].
    pub fn libpq(&self, client: &str) -> Result<LibpqWriter> {
        LibpqWriter::start(client, self.client.network(), self.servers(), &self.login, &self.common.bin_dir)
    }

    /// The rows that a node has.
    ///
    /// # Errors
    /// As [`sql::survivors`].
    pub fn survivors(&self, node: &str) -> Result<BTreeSet<Row>> {
        sql::survivors(self.client.network(), &self.node(node)?.server(), &self.login)
    }

    /// The cluster's records in etcd below `path` (empty for all), by their paths.
    ///
    /// # Errors
    /// When no etcd member answers.
    pub fn records(&self, path: &str) -> Result<BTreeMap<String, Value>> {
        let prefix = format!("{}/{}/", self.common.prefix, self.common.cluster);
        let text = self.etcd.any(&["get", "--prefix", &format!("{prefix}{path}")])?;
        let lines: Vec<&str> = text.lines().collect();
        let pair = |pair: &[&str]| {
            let key = pair.first()?.strip_prefix(&prefix)?.to_owned();
            Some((key, serde_json::from_str(pair.get(1)?).ok()?))
        };
        Ok(lines.chunks(2).filter_map(pair).collect())
    }

    /// The cluster's history, in the order of the terms.
    ///
    /// # Errors
    /// When no etcd member answers, or a record cannot be read.
    pub fn history(&self) -> Result<Vec<HistoryRecord>> {
        let records = self.records("history/")?.into_iter();
        let mut history = records
            .map(|(key, value)| serde_json::from_value::<HistoryRecord>(value).with_context(|| format!("read {key}")))
            .collect::<Result<Vec<_>>>()?;
        history.sort_by_key(|record| record.term);
        Ok(history)
    }

    /// Lines of level ERROR in a node's log, from byte `from` on, with where the log ends now.
    ///
    /// # Errors
    /// When the log cannot be read. One that is not there yet is empty.
    pub fn errors_logged(&self, node: &str, from: u64) -> Result<(Vec<String>, u64)> {
        let path = self.node(node)?.log();
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        let start = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
        let text = String::from_utf8_lossy(&bytes[start..]).into_owned();
        // The agent's own: PostgreSQL writes "ERROR:" for statements that a client got wrong.
        let wrong = |line: &&str| (line.contains(" ERROR ") || line.contains("\"level\":\"ERROR\"")) && !line.contains("ERROR:");
        Ok((text.lines().filter(wrong).map(str::to_owned).collect(), bytes.len() as u64))
    }

    /// Ends everything and removes every file, as dropping does, and says what could not be.
    ///
    /// # Errors
    /// The first thing that is left behind.
    pub fn teardown(self) -> Result<()> {
        self.clear()
    }

    fn clear(&self) -> Result<()> {
        let hosts = self.hosts();
        let names: Vec<&str> = hosts.keys().map(String::as_str).collect();
        // All at once and without goodbyes: nobody is to react to the end of another.
        let ended = self.power_down(&names).or_else(|_| hosts.values().try_for_each(|plugged| plugged.host.power_off()));
        let switched = self.switch.as_ref().map_or(Ok(()), Switch::power_off);
        let swept = sweep(&self.name, self.keep_files);
        ended.and(switched).and(swept)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("lab {} is not gone altogether: {error:#}", self.name);
        }
    }
}

fn directory_of(name: &str) -> PathBuf {
    Path::new(BASE).join(format!("pgbaton-lab-{name}"))
}

fn sweep(name: &str, files: Files) -> Result<()> {
    // A keeper that is just ending removes its cgroup too.
    let end: Moment = clock::boot().plus(Span::from_secs(3));
    let swept = poll_until(end, || freezer::sweep(name).ok()).map_or_else(|| freezer::sweep(name), Ok);
    let directory = directory_of(name);
    if files == Files::Keep || !directory.exists() {
        return swept;
    }
    fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display())).and(swept)
}

/// Removes what a lab of this name left behind: its processes by their cgroups, and its files. For one whose owner was
/// killed; its processes have ended with it unless a cgroup held them.
///
/// # Errors
/// When the name is no lab's, or something cannot be removed.
pub fn sweep_own(name: &str) -> Result<()> {
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain {
        bail!("{name:?} is no lab's name");
    }
    sweep(name, Files::Remove)
}
