//! etcd members as services of lab hosts, and what can be done to them.

use super::{
    command::{QUICK, wait_until},
    host::{Host, Walls},
    host_init::Service,
};
use crate::model::moment::Span;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The name of etcd's service on its host.
const SERVICE: &str = "etcd";
/// How long a cluster may take to elect a leader after a start.
const ELECTING: Span = Span::from_secs(20);

/// How long a member may take to say how it is.
const GLANCE: Span = Span::from_millis(500);

/// etcd's heartbeat interval and election timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtcdTiming {
    /// Between two heartbeats of the leader.
    pub heartbeat: Span,
    /// How long a follower waits for one.
    pub election: Span,
}

impl EtcdTiming {
    /// etcd's own defaults.
    pub const DEFAULT: Self = Self { heartbeat: Span::from_millis(100), election: Span::from_millis(1_000) };
    /// For a LAN; what the preset `fast` wants.
    pub const FAST: Self = Self { heartbeat: Span::from_millis(50), election: Span::from_millis(500) };
}

/// One member.
#[derive(Debug)]
pub struct EtcdMember {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub host: Arc<Host>,
    /// Where it answers clients.
    pub client: SocketAddr,
    /// Where it answers other members.
    pub peer: SocketAddr,
}

/// An etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<EtcdMember>,
    timing: EtcdTiming,
    directory: PathBuf,
    token: String,
}

impl Etcd {
    /// A cluster that is not started. Data and logs lie in `directory`, which must exist.
    pub fn new(members: Vec<EtcdMember>, timing: EtcdTiming, directory: &Path, token: &str) -> Self {
        Self { members, timing, directory: directory.to_owned(), token: token.to_owned() }
    }

    /// The members.
    pub fn members(&self) -> &[EtcdMember] {
        &self.members
    }

    /// What clients connect to.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://{}", member.client)).collect()
    }

    /// A member by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn member(&self, name: &str) -> Result<&EtcdMember> {
        self.members.iter().find(|member| member.name == name).with_context(|| format!("no etcd member {name}"))
    }

    /// Starts all members and waits for a leader.
    ///
    /// # Errors
    /// When one cannot be started, or none leads after 20 s.
    pub fn start(&self) -> Result<()> {
        self.members.iter().try_for_each(|member| self.start_member(member))?;
        self.wait_leader().map(|_| ())
    }

    fn data_dir(&self, member: &EtcdMember) -> PathBuf {
        self.directory.join(format!("{}.data", member.name))
    }

    fn initial_cluster(&self) -> String {
        self.members.iter().map(|member| format!("{}=http://{}", member.name, member.peer)).collect::<Vec<_>>().join(",")
    }

    fn start_member(&self, member: &EtcdMember) -> Result<()> {
        let (client, peer) = (format!("http://{}", member.client), format!("http://{}", member.peer));
        // Also on the loopback, where the lab asks it while its network is cut.
        let local = format!("http://127.0.0.1:{}", member.client.port());
        let listen = if member.host.walls() == Walls::Namespaces { format!("{client},{local}") } else { client.clone() };
        let options = [
            ("name", member.name.clone()),
            ("data-dir", self.data_dir(member).display().to_string()),
            ("listen-client-urls", listen),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer),
            ("initial-cluster", self.initial_cluster()),
            ("initial-cluster-token", self.token.clone()),
            ("initial-cluster-state", "new".to_owned()),
            ("heartbeat-interval", self.timing.heartbeat.as_millis().to_string()),
            ("election-timeout", self.timing.election.as_millis().to_string()),
            ("auto-compaction-mode", "periodic".to_owned()),
            ("auto-compaction-retention", "5m".to_owned()),
            ("logger", "zap".to_owned()),
        ];
        let argv = std::iter::once("etcd".to_owned()).chain(options.map(|(option, value)| format!("--{option}={value}")));
        let service = Service {
            argv: argv.collect(),
            env: BTreeMap::new(),
            log: self.directory.join(format!("{}.log", member.name)),
            directory: self.directory.clone(),
            user: None,
            restart_after: None,
        };
        member.host.start(SERVICE, service).with_context(|| format!("start etcd member {}", member.name)).map(|_| ())
    }

    /// Runs `etcdctl` against one member alone, on that member's host.
    ///
    /// # Errors
    /// When the host is off, or etcdctl fails: with a timeout the request may still be carried out.
    pub fn ctl(&self, member: &EtcdMember, arguments: &[&str]) -> Result<String> {
        self.ctl_within(member, arguments, Span::from_secs(2))
    }

    fn ctl_within(&self, member: &EtcdMember, arguments: &[&str], deadline: Span) -> Result<String> {
        let endpoint = format!("--endpoints=http://127.0.0.1:{}", member.client.port());
        let options = ["--command-timeout", "--dial-timeout"].map(|option| format!("{option}={}ms", deadline.as_millis()));
        let options = [endpoint.as_str(), options[0].as_str(), options[1].as_str()];
        let argv: Vec<&str> = std::iter::once("etcdctl").chain(options).chain(arguments.iter().copied()).collect();
        member.host.run(&argv, QUICK)
    }

    /// Runs `etcdctl` against the first member that answers.
    ///
    /// # Errors
    /// The last member's, when none does.
    pub fn any(&self, arguments: &[&str]) -> Result<String> {
        let mut last = None;
        for member in self.members.iter().filter(|member| runs(member)) {
            match self.ctl(member, arguments) {
                Ok(output) => return Ok(output),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no etcd member runs")))
    }

    /// The member that leads in the highest term; `None` while nobody does.
    pub fn leader(&self) -> Option<&EtcdMember> {
        let views = self.members.iter().filter(|member| runs(member)).filter_map(|member| {
            let status = self.ctl_within(member, &["endpoint", "status", "--write-out=json"], GLANCE).ok()?;
            let status: Value = serde_json::from_str(&status).ok()?;
            let status = status.get(0)?.get("Status")?;
            let (own, term) = (status.pointer("/header/member_id")?.as_u64()?, status.pointer("/header/raft_term")?.as_u64()?);
            let leads = status.get("leader")?.as_u64()? == own;
            Some((term, leads, member))
        });
        views.filter(|(_, leads, _)| *leads).max_by_key(|(term, _, _)| *term).map(|(_, _, member)| member)
    }

    /// Waits until somebody leads and answers a linearizable read.
    ///
    /// # Errors
    /// After 20 s.
    pub fn wait_leader(&self) -> Result<&EtcdMember> {
        let leads = || self.leader().filter(|leader| self.ctl_within(leader, &["get", "lab-wait-leader"], GLANCE).is_ok());
        wait_until("an etcd leader", ELECTING, leads)
    }

    /// Sends SIGKILL to a member.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.member(name)?.host.kill_service(SERVICE)
    }

    /// Starts a member again on the data it has.
    ///
    /// # Errors
    /// When it runs.
    pub fn start_again(&self, name: &str) -> Result<()> {
        self.start_member(self.member(name)?)
    }

    /// Starts every member that does not run and whose host is on.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn start_missing(&self) -> Result<()> {
        self.members.iter().filter(|member| member.host.is_on() && !runs(member)).try_for_each(|member| self.start_member(member))
    }

    /// The members whose process runs on a host that answers.
    pub fn running(&self) -> Vec<&EtcdMember> {
        self.members.iter().filter(|member| runs(member)).collect()
    }

    /// Starts the member that belongs on a host, if there is one and it does not run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_on(&self, host: &str) -> Result<()> {
        let mut here = self.members.iter().filter(|member| member.host.name() == host && !runs(member));
        here.try_for_each(|member| self.start_member(member))
    }

    /// Writes a snapshot of one member's state to `path`.
    ///
    /// # Errors
    /// When no member answers.
    pub fn snapshot(&self, path: &Path) -> Result<()> {
        self.any(&["snapshot", "save", &path.display().to_string()]).map(|_| ())
    }

    /// Stops all members, replaces their data by a snapshot's, and starts them: etcd goes back in time (EXP-26).
    ///
    /// # Errors
    /// When a host is off, or the snapshot cannot be restored.
    pub fn restore(&self, snapshot: &Path) -> Result<()> {
        for member in self.members.iter().filter(|member| runs(member)) {
            self.kill(&member.name)?;
        }
        for member in &self.members {
            let data = self.data_dir(member);
            fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
            let peer = format!("--initial-advertise-peer-urls=http://{}", member.peer);
            let options = [
                format!("--name={}", member.name),
                format!("--data-dir={}", data.display()),
                format!("--initial-cluster={}", self.initial_cluster()),
                format!("--initial-cluster-token={}", self.token),
                peer,
            ];
            let snapshot = snapshot.display().to_string();
            let argv: Vec<&str> =
                ["etcdctl", "snapshot", "restore", &snapshot].into_iter().chain(options.iter().map(String::as_str)).collect();
            member.host.run(&argv, QUICK).with_context(|| format!("restore etcd member {}", member.name))?;
        }
        self.start()
    }

    /// Removes every key below a prefix.
    ///
    /// # Errors
    /// When no member answers, or the prefix is empty.
    pub fn wipe(&self, prefix: &str) -> Result<()> {
        if prefix.is_empty() {
            bail!("wiping every key of etcd needs a prefix");
        }
        self.any(&["del", "--prefix", prefix]).map(|_| ())
    }
}

/// Whether a member's process runs, as its host knows. A host that is frozen or off does not answer.
fn runs(member: &EtcdMember) -> bool {
    member.host.service(SERVICE).is_ok_and(|state| state.pid.is_some())
}
