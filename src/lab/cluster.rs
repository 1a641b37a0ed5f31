//! A whole lab: hosts, switch, etcd, nodes, and what tears it all down.

use super::{
    command::poll_until,
    disk,
    etcd::Etcd,
    fault::Injected,
    freezer,
    host::{Host, NotHere, Walls},
    host_init::Service,
    janitor::Janitor,
    node::{self, AGENT, Common, Node},
    spec::{Files, LabSpec, Layout, Plugged},
    sql::Login,
    switch::Switch,
};
use crate::{clock, model::moment::Span};
use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Below which all labs keep their files. On a disk: `/tmp` may be memory.
const BASE: &str = "/var/tmp";

/// A lab at work. Dropping it ends every process and removes every file, also while a panic unwinds.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    pub(super) program: PathBuf,
    keep_files: Files,
    janitor: Mutex<Option<Janitor>>,
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
    /// The binaries of agents that were replaced, by node.
    replaced: Mutex<BTreeMap<String, PathBuf>>,
    /// The agents that run, or would if their host did.
    pub(super) wanted: Mutex<BTreeSet<String>>,
    pub(super) active: Mutex<Vec<Injected>>,
}

impl Lab {
    /// Lays a lab out and starts hosts and etcd. The nodes are configured; their agents are not started.
    /// `progress` is told each step before it is taken.
    ///
    /// # Errors
    /// Says which step failed. Everything that was made is removed then.
    pub fn build(spec: &LabSpec, progress: &dyn Fn(&str)) -> Result<Self> {
        let name = format!("{}-{}", std::process::id(), clock::data_incarnation());
        let directory = directory_of(&name);
        progress("network");
        let (switch, poorer) = match spec.walls {
            Some(Walls::Loopback) => (None, Some("the lab was asked to use loopback ports".to_owned())),
            Some(Walls::Namespaces) => (Some(Switch::new(&name, &spec.program)?), None),
            None if !geteuid().is_root() => (None, Some("network namespaces need root, and this lab is not".to_owned())),
            None => match Switch::new(&name, &spec.program) {
                Ok(switch) => (Some(switch), None),
                Err(error) => (None, Some(format!("network namespaces cannot be made: {error:#}"))),
            },
        };
        let walls = if switch.is_some() { Walls::Namespaces } else { Walls::Loopback };
        let layout = Layout::of(spec, &name, walls, &directory)?;
        let etcd = Etcd::new(layout.members, spec.timing, &directory.join("etcd"), &name);
        let lab = Self {
            common: common(spec, walls, &etcd, &directory),
            name,
            directory,
            program: spec.program.clone(),
            keep_files: spec.keep_files,
            janitor: Mutex::default(),
            interrupted: spec.interrupted.clone(),
            walls,
            poorer,
            switch,
            hosts: Mutex::new(layout.hosts),
            client: layout.client,
            etcd,
            nodes: layout.nodes,
            login: Login { user: "postgres".into(), password: None, database: "postgres".into() },
            replaced: Mutex::default(),
            wanted: Mutex::default(),
            active: Mutex::default(),
        };
        lab.raise(spec, progress)?;
        Ok(lab)
    }

    fn raise(&self, spec: &LabSpec, progress: &dyn Fn(&str)) -> Result<()> {
        if self.keep_files == Files::RemoveAlways {
            *self.janitor.lock().unwrap_or_else(PoisonError::into_inner) = Some(Janitor::start(&self.program, &self.name)?);
        }
        fs::create_dir(&self.directory).with_context(|| format!("make {}", self.directory.display()))?;
        fs::create_dir(self.directory.join("etcd")).context("make etcd's directory")?;
        if self.common.agent != spec.agent {
            fs::copy(&spec.agent, &self.common.agent).with_context(|| format!("copy {}", spec.agent.display()))?;
        }
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

    pub(super) fn check_interrupted(&self) -> Result<()> {
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

    /// How clients introduce themselves: a superuser whom the lab's own `pg_hba.conf` line trusts.
    pub const fn login(&self) -> &Login {
        &self.login
    }

    /// The host for clients.
    pub const fn client(&self) -> &Arc<Host> {
        &self.client
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
        node.host.start(AGENT, self.agent_of(node)).with_context(|| format!("start the agent of {name}"))?;
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(())
    }

    /// The agent of a node as a service.
    pub(super) fn agent_of(&self, node: &Node) -> Service {
        let replaced = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        let agent = replaced.get(&node.name).unwrap_or(&self.common.agent).clone();
        node.agent(&Common { agent, ..self.common.clone() })
    }

    /// From now on this binary is a node's agent, also after a power cut.
    pub(super) fn replace_agent(&self, node: &str, program: &Path) {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).insert(node.to_owned(), program.to_owned());
    }

    /// Starts all agents, the first node's first.
    ///
    /// # Errors
    /// As [`Lab::start_agent`].
    pub fn start_agents(&self) -> Result<()> {
        self.nodes.iter().try_for_each(|node| self.start_agent(&node.name))
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

/// What the nodes have in common. The policy gets the line that lets the lab's clients in.
fn common(spec: &LabSpec, walls: Walls, etcd: &Etcd, directory: &Path) -> Common {
    let from = if walls == Walls::Namespaces { "10.77.0.0/24" } else { "127.0.0.1/32" };
    let mut policy = spec.policy.clone();
    policy.hba.push(format!("host all all {from} trust"));
    // PostgreSQL's owner runs it too (restore_command), and may not look into the home of whoever built it.
    let closed = geteuid().is_root() && !is_open_to_all(&spec.agent);
    Common {
        agent: if closed { directory.join("pgbaton") } else { spec.agent.clone() },
        bin_dir: spec.bin_dir.clone(),
        cluster: spec.cluster.clone(),
        endpoints: etcd.endpoints(),
        prefix: "/pgbaton".into(),
        policy,
        password: clock::nonce().to_string(),
        peer_key: clock::nonce().to_string(),
        restart_after: spec.restart_after,
        env: spec.env.clone(),
        extra: spec.extra.clone(),
    }
}

/// Whether every user may reach a program.
fn is_open_to_all(program: &Path) -> bool {
    let path = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    path.ancestors().all(|part| fs::metadata(part).is_ok_and(|part| part.permissions().mode() & 0o001 != 0))
}

fn directory_of(name: &str) -> PathBuf {
    Path::new(BASE).join(format!("pgbaton-lab-{name}"))
}

fn sweep(name: &str, files: Files) -> Result<()> {
    // A keeper that is just ending removes its cgroup too.
    let end = clock::boot().plus(Span::from_secs(3));
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
