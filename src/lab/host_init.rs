//! The first process of a lab host (`pgbaton lab-init`), started by the lab and by nobody else.
//!
//! A host is two processes of ours. The *keeper* holds the line to the lab's owner and stands outside the host's
//! cgroup, so that a frozen host dies with its lab too. The *init* is process 1 of the host's PID namespace: it starts
//! and restarts the host's services, reaps every orphan at once (PID 1 of a development machine may take a second, in
//! which a dead postmaster looks alive), and takes everything with it when it is killed: that is a power-off.
//!
//! Where namespaces are not allowed one process is both: a sub-reaper that kills its descendants when the line breaks.

use super::{command::command, janitor, procfs};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, User, sethostname},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

/// The hidden verb under which the program's `main` calls [`run`].
pub const VERB: &str = "lab-init";

/// What a host is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Its name, also its host name.
    pub name: String,
    /// Whether it gets namespaces of its own: network, mounts, processes, System V memory, host name.
    pub namespaces: bool,
    /// The cgroup for everything in it.
    pub cgroup: Option<PathBuf>,
    /// File systems on images, mounted for this host alone.
    pub disks: Vec<Disk>,
    /// Directories that this host alone sees elsewhere.
    #[serde(default)]
    pub binds: Vec<Bind>,
}

/// A directory that stands in another's place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bind {
    /// The directory.
    pub source: PathBuf,
    /// Where it is seen; must exist.
    pub at: PathBuf,
}

/// A file system on an image file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// The image.
    pub image: PathBuf,
    /// An existing directory.
    pub at: PathBuf,
}

/// A program that a host runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Takes standard output and error, appended.
    pub log: PathBuf,
    /// The directory it starts in.
    pub directory: PathBuf,
    /// Whose process it is; the lab's own where `None`.
    #[serde(default)]
    pub user: Option<String>,
    /// How long after its end it is started again; never where `None`.
    #[serde(default)]
    pub restart_after: Option<Span>,
}

/// What the lab asks of a host. Each request is answered once.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    /// Start a service under this name; a present one must have ended.
    Start(String, Service),
    /// Change how a service is started from the next time on; a running one goes on.
    Change(String, Service),
    /// Send a signal, by number.
    Signal(String, i32),
    /// How a service is.
    State(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) request: Request,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Answered {
    pub(super) id: u64,
    pub(super) answer: Result<ServiceState, String>,
}

/// How a service is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Its process id inside the host, while it runs.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u32,
    /// How it ended last.
    pub ended: Option<String>,
}

/// Runs a host until the line to the lab breaks. `arguments` are those after the verb.
///
/// # Errors
/// When the host cannot be set up; the lab sees the line close and the text on standard error.
pub fn run(arguments: &[String]) -> Result<()> {
    let text = arguments.first().context("lab-init is started by the lab, not by hand")?;
    if let (janitor::STAGE, Some(lab)) = (text.as_str(), arguments.get(1)) {
        return janitor::run(lab);
    }
    let boot: Boot = serde_json::from_str(text).context("read the host's description")?;
    let line = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().context("take over the line to the lab")?);
    match (boot.namespaces, arguments.get(1).map(String::as_str)) {
        (true, None) => keep(&boot, text, &line),
        (true, Some("inside")) => {
            // The keeper is a single thread: its death is the process's.
            prctl::set_pdeathsig(Signal::SIGKILL).context("bind the init to its keeper")?;
            furnish(&boot).with_context(|| format!("furnish host {}", boot.name))?;
            serve(line)
        }
        (false, None) => {
            prctl::set_child_subreaper(true).context("become a sub-reaper")?;
            join(boot.cgroup.as_deref())?;
            let served = serve(line);
            procfs::signal_descendants(std::process::id().cast_signed(), Signal::SIGKILL);
            served
        }
        (_, Some(other)) => bail!("unknown stage {other:?}"),
    }
}

fn keep(boot: &Boot, text: &str, line: &UnixStream) -> Result<()> {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(flags).context("make namespaces")?;
    let signals = child_signals()?;
    let mut child = command("/proc/self/exe").args([VERB, text, "inside"]).spawn().context("start the init")?;
    loop {
        let mut fds = [PollFd::new(line.as_fd(), PollFlags::empty()), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        wait_for(&mut fds, PollTimeout::NONE)?;
        let broken = fds[0].revents().is_some_and(|events| !events.is_empty());
        let _ = signals.read_signal();
        if broken {
            child.kill().context("kill the init")?;
            child.wait()?;
        }
        if broken || child.try_wait()?.is_some() {
            leave(boot.cgroup.as_deref());
            return Ok(());
        }
    }
}

fn child_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block().context("block SIGCHLD")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("open a signal descriptor")
}

fn wait_for(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("poll"),
    }
}

fn join(cgroup: Option<&Path>) -> Result<()> {
    let Some(cgroup) = cgroup else { return Ok(()) };
    // 0 is the writer itself, in both versions.
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("join {}", cgroup.display()))
}

/// Removes the host's cgroup, and the lab's with the last host. Another host in it, or a boot at this moment, keeps it.
fn leave(cgroup: Option<&Path>) {
    let Some(cgroup) = cgroup else { return };
    if fs::remove_dir(cgroup).is_ok() {
        let _ = cgroup.parent().map(fs::remove_dir);
    }
}

fn furnish(boot: &Boot) -> Result<()> {
    // The cgroup first: its file system is hidden by the new /sys.
    join(boot.cgroup.as_deref())?;
    // Here and not in the keeper, which needs the machine's own /sys to clear up.
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).context("make mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).context("mount /proc")?;
    // Named shared memory of two PostgreSQL instances must not meet.
    mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).context("mount /dev/shm")?;
    // /sys shows the interfaces of the network namespace in which it was mounted.
    umount2("/sys", MntFlags::MNT_DETACH).context("unmount /sys")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).context("mount /sys")?;
    sethostname(&boot.name).context("set the host name")?;
    // A host that forwards would carry packets for an address that it no longer owns, and hide a missing announcement.
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("switch forwarding off")?;
    for bind in &boot.binds {
        mount(Some(&bind.source), &bind.at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("show {} at {}", bind.source.display(), bind.at.display()))?;
    }
    for disk in &boot.disks {
        let (image, at) = (disk.image.display().to_string(), disk.at.display().to_string());
        super::command::run(&["mount", "-o", "loop", &image, &at], "", super::command::QUICK)?;
    }
    super::command::run(&["ip", "link", "set", "lo", "up"], "", super::command::QUICK)?;
    Ok(())
}

struct Running {
    service: Service,
    state: ServiceState,
    again_at: Option<Moment>,
}

struct Init {
    line: UnixStream,
    services: BTreeMap<String, Running>,
}

fn serve(line: UnixStream) -> Result<()> {
    let signals = child_signals()?;
    let mut init = Init { line, services: BTreeMap::new() };
    let mut pending = Vec::new();
    loop {
        let line_fd: BorrowedFd<'_> = init.line.as_fd();
        let mut fds = [PollFd::new(line_fd, PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        wait_for(&mut fds, init.timeout())?;
        let asked = fds[0].revents().is_some_and(|events| !events.is_empty());
        while matches!(signals.read_signal(), Ok(Some(_))) {}
        init.reap();
        init.start_due();
        if asked && !init.read(&mut pending)? {
            return Ok(());
        }
    }
}

impl Init {
    fn timeout(&self) -> PollTimeout {
        let next = self.services.values().filter_map(|running| running.again_at).min();
        let millis = next.map(|at| at.since(clock::boot()).as_millis().saturating_add(1));
        millis.map_or(PollTimeout::NONE, |millis| PollTimeout::from(u16::try_from(millis).unwrap_or(u16::MAX)))
    }

    fn reap(&mut self) {
        loop {
            let (pid, how) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {signal}")),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let ended = self.services.values_mut().find(|running| running.state.pid == Some(pid.as_raw()));
            if let Some(running) = ended {
                running.state.pid = None;
                running.state.ended = Some(how);
                running.again_at = running.service.restart_after.map(|span| clock::boot().plus(span));
            }
        }
    }

    fn start_due(&mut self) {
        let now = clock::boot();
        let due = |running: &Running| running.again_at.is_some_and(|at| at <= now);
        let names: Vec<String> = self.services.iter().filter(|(_, running)| due(running)).map(|(name, _)| name.clone()).collect();
        for name in names {
            let Some(running) = self.services.get_mut(&name) else { continue };
            running.again_at = None;
            if let Err(error) = start(running) {
                running.state.ended = Some(format!("{error:#}"));
                running.again_at = running.service.restart_after.map(|span| now.plus(span));
            }
        }
        // A child that ended while its start had SIGCHLD unblocked sent its signal to nobody.
        self.reap();
    }

    /// Reads and answers whole lines; false when the line is closed.
    fn read(&mut self, pending: &mut Vec<u8>) -> Result<bool> {
        let mut buffer = [0; 65_536];
        let count = self.line.read(&mut buffer).context("read from the lab")?;
        pending.extend_from_slice(&buffer[..count]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let text: Vec<u8> = pending.drain(..=end).collect();
            let asked: Asked = serde_json::from_slice(&text).context("read a request")?;
            let answer = self.answer(asked.request).map_err(|error| format!("{error:#}"));
            self.reap();
            let mut reply = serde_json::to_vec(&Answered { id: asked.id, answer })?;
            reply.push(b'\n');
            self.line.write_all(&reply).context("answer the lab")?;
        }
        Ok(count > 0)
    }

    fn answer(&mut self, request: Request) -> Result<ServiceState> {
        match request {
            Request::Start(name, service) => {
                let state = self.services.remove(&name).map(|running| running.state).unwrap_or_default();
                let alive = state.pid;
                let mut running = Running { service, state, again_at: None };
                let started = if alive.is_some() { Err(anyhow::anyhow!("{name} runs already")) } else { start(&mut running) };
                let state = running.state.clone();
                self.services.insert(name, running);
                started.map(|()| state)
            }
            Request::Change(name, service) => {
                let running = self.services.get_mut(&name).with_context(|| format!("no service {name}"))?;
                running.again_at = running.again_at.filter(|_| service.restart_after.is_some());
                if running.state.pid.is_none() && service.restart_after.is_some() {
                    running.again_at.get_or_insert(clock::boot());
                }
                running.service = service;
                Ok(running.state.clone())
            }
            Request::Signal(name, number) => {
                let running = self.services.get(&name).with_context(|| format!("no service {name}"))?;
                let pid = running.state.pid.with_context(|| format!("{name} does not run"))?;
                let signal = Signal::try_from(number).context("read the signal's number")?;
                kill(Pid::from_raw(pid), signal).with_context(|| format!("signal {name}"))?;
                Ok(running.state.clone())
            }
            Request::State(name) => {
                let running = self.services.get(&name).with_context(|| format!("no service {name}"))?;
                Ok(running.state.clone())
            }
        }
    }
}

fn start(running: &mut Running) -> Result<()> {
    let service = &running.service;
    let (program, arguments) = service.argv.split_first().context("no program to start")?;
    let log =
        File::options().create(true).append(true).open(&service.log).with_context(|| format!("open the log {}", service.log.display()))?;
    let mut child = command(program);
    child.args(arguments).envs(&service.env).current_dir(&service.directory);
    child.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    if let Some(name) = &service.user {
        let user = User::from_name(name).context("look up the user")?.with_context(|| format!("no user {name}"))?;
        child.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    // A child inherits the mask, and a server that never sees SIGCHLD never reaps.
    set.thread_unblock().context("unblock SIGCHLD")?;
    let spawned = child.spawn();
    set.thread_block().context("block SIGCHLD")?;
    let spawned = spawned.with_context(|| format!("start {program}"))?;
    running.state.pid = Some(spawned.id().cast_signed());
    running.state.starts += 1;
    Ok(())
}
