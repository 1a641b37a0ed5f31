//! A host of the lab: its processes, its network, its power.

use super::{
    command::{self, command, poll_until, wait_until},
    freezer::Freezer,
    host_init::{Answered, Asked, Bind, Boot, Disk, Request, Service, ServiceState, VERB},
    procfs::{self, Process},
};
use crate::{clock, model::moment::Span};
use anyhow::{Context, Result, anyhow, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

/// How long a host may take to answer its lab; a frozen one does not.
const ANSWER: Span = Span::from_secs(3);

/// How a host is separated from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walls {
    /// Namespaces of its own; needs root.
    Namespaces,
    /// None: a group of ordinary processes on loopback ports.
    Loopback,
}

/// A thing that cannot be done in this kind of lab.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be done here: {0}")]
pub struct NotHere(pub String);

/// A host. All methods may be called from any thread.
#[derive(Debug)]
pub struct Host {
    name: String,
    lab: String,
    program: PathBuf,
    walls: Walls,
    disks: Vec<Disk>,
    binds: Vec<Bind>,
    network: Network,
    power: Mutex<Option<Power>>,
}

#[derive(Debug)]
struct Power {
    keeper: Child,
    line: BufReader<UnixStream>,
    asked: u64,
    freezer: Option<Freezer>,
    /// Of the init, in the lab's PID namespace.
    pid: i32,
}

/// The network of a host, for threads that want to open sockets there. Follows the host through power-off and power-on.
#[derive(Clone, Debug, Default)]
pub struct Network(Option<Arc<AtomicI32>>);

impl Network {
    /// Moves the calling thread into this network: sockets that it opens from now on belong there. Existing ones stay.
    /// Does nothing where the host has no network of its own.
    ///
    /// # Errors
    /// When the host is off, or the lab is not root.
    pub fn enter(&self) -> Result<()> {
        let Some(pid) = &self.0 else { return Ok(()) };
        let path = format!("/proc/{}/ns/net", pid.load(Ordering::SeqCst));
        let file = File::open(&path).with_context(|| format!("open {path}: is the host off?"))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {path}"))
    }

    /// What a command line needs before it to run in this network.
    pub fn prefix(&self) -> Vec<String> {
        self.0
            .as_ref()
            .map_or_else(Vec::new, |pid| vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", pid.load(Ordering::SeqCst)), "--".into()])
    }
}

impl Host {
    /// A host that is off. `program` is a `pgbaton` binary (it runs [`super::host_init`]); `lab` names its cgroups.
    pub fn new(lab: &str, name: &str, program: &Path, walls: Walls, disks: Vec<Disk>) -> Self {
        let network = Network((walls == Walls::Namespaces).then(Arc::default));
        let (lab, name, program) = (lab.to_owned(), name.to_owned(), program.to_owned());
        Self { name, lab, program, walls, disks, binds: Vec::new(), network, power: Mutex::new(None) }
    }

    /// The same host, seeing directories where they are not. Has no effect without namespaces.
    #[must_use]
    pub fn with_binds(self, binds: Vec<Bind>) -> Self {
        // Its drop does nothing while it is off, but forbids taking it apart.
        let mut host = self;
        host.binds = binds;
        host
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network.
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// How it is separated from the machine.
    pub const fn walls(&self) -> Walls {
        self.walls
    }

    /// Whether it has file systems of its own.
    pub const fn has_disks(&self) -> bool {
        !self.disks.is_empty()
    }

    fn power(&self) -> MutexGuard<'_, Option<Power>> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.power().is_some()
    }

    /// The id of its first process.
    ///
    /// # Errors
    /// When it is off.
    pub fn pid(&self) -> Result<i32> {
        self.power().as_ref().map(|power| power.pid).with_context(|| format!("host {} is off", self.name))
    }

    /// Switches it on; returns when its init answers. Nothing runs in it yet, and no cable is plugged in.
    ///
    /// # Errors
    /// When it is on, or cannot be set up; nothing is left of it then.
    pub fn power_on(&self) -> Result<()> {
        let mut slot = self.power();
        if slot.is_some() {
            bail!("host {} is on already", self.name);
        }
        let freezer = Freezer::create(&self.lab, &self.name);
        let boot = Boot {
            name: self.name.clone(),
            namespaces: self.walls == Walls::Namespaces,
            cgroup: freezer.as_ref().map(|freezer| freezer.directory().to_owned()),
            disks: self.disks.clone(),
            binds: self.binds.clone(),
        };
        let (ours, theirs) = UnixStream::pair().context("make a line to the host")?;
        ours.set_read_timeout(Some(Span::from_millis(100).to_std())).context("set a deadline on the line")?;
        let keeper = command(&self.program)
            .args([VERB, &serde_json::to_string(&boot)?])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let pid = keeper.id().cast_signed();
        let mut power = Power { keeper, line: BufReader::new(ours), asked: 0, freezer, pid };
        if let Err(error) = self.boot(&mut power) {
            let said = power.last_words();
            return Err(error.context(format!("switch host {} on: {said}", self.name)));
        }
        if let Network(Some(network)) = &self.network {
            network.store(power.pid, Ordering::SeqCst);
        }
        *slot = Some(power);
        Ok(())
    }

    fn boot(&self, power: &mut Power) -> Result<()> {
        // It answers once it is furnished, and knows no such service.
        power.ask(Request::State(String::new()))?.err().context("an answer to the first question")?;
        if self.walls == Walls::Namespaces {
            let keeper = power.pid;
            let init = procfs::all().into_iter().find(|process| process.parent == keeper);
            power.pid = init.context("find the init below its keeper")?.pid;
        }
        Ok(())
    }

    /// Takes the power away: everything in it is dead when this returns, whatever it was doing.
    ///
    /// The cable has to be pulled before, else the kernel still sends the dead processes' goodbyes, which no
    /// host without power does.
    ///
    /// # Errors
    /// When something could not be killed within 5 s.
    pub fn power_off(&self) -> Result<()> {
        let Some(mut power) = self.power().take() else { return Ok(()) };
        let below = if self.walls == Walls::Loopback { procfs::descendants(power.pid) } else { Vec::new() };
        if self.walls == Walls::Loopback {
            // Stopped first, so that nobody sees another die and reacts to it.
            procfs::signal_descendants(power.pid, Signal::SIGSTOP);
            procfs::signal_descendants(power.pid, Signal::SIGKILL);
        }
        // The kernel ends a PID namespace with its first process, nested ones included.
        let _ = kill(Pid::from_raw(power.pid), Signal::SIGKILL);
        if let Some(freezer) = power.freezer.as_ref().filter(|freezer| freezer.holds_the_dying()) {
            freezer.thaw()?;
        }
        wait_until("the host to end", Span::from_secs(5), || {
            let ended = power.keeper.try_wait().is_ok_and(|status| status.is_some());
            (ended && !below.iter().any(|process| procfs::lives(process.pid))).then_some(())
        })
        .with_context(|| format!("switch host {} off", self.name))
    }

    fn ask(&self, request: Request) -> Result<ServiceState> {
        let mut slot = self.power();
        let power = slot.as_mut().with_context(|| format!("host {} is off", self.name))?;
        if power.freezer.as_ref().is_some_and(Freezer::frozen) {
            bail!("host {} is frozen", self.name);
        }
        let answer = power.ask(request).with_context(|| format!("ask host {}", self.name))?;
        answer.map_err(|text| anyhow!("host {}: {text}", self.name))
    }

    /// Starts a service under a name of its own.
    ///
    /// # Errors
    /// When it runs already or cannot be started. No answer in time means that it may have been started.
    pub fn start(&self, name: &str, service: Service) -> Result<ServiceState> {
        self.ask(Request::Start(name.to_owned(), service))
    }

    /// Changes how a service is started from the next time on. One that has ended and may restart now starts at once.
    ///
    /// # Errors
    /// When there is no such service, or no answer.
    pub fn change(&self, name: &str, service: Service) -> Result<ServiceState> {
        self.ask(Request::Change(name.to_owned(), service))
    }

    /// How a service is.
    ///
    /// # Errors
    /// When there is no such service, or no answer.
    pub fn service(&self, name: &str) -> Result<ServiceState> {
        self.ask(Request::State(name.to_owned()))
    }

    /// Sends a signal to a service.
    ///
    /// # Errors
    /// When it does not run, or no answer.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        self.ask(Request::Signal(name.to_owned(), signal as i32)).map(|_| ())
    }

    /// Sends SIGKILL to a service and waits until it is gone (or runs again as another process).
    ///
    /// # Errors
    /// When it does not run, or lives on for 5 s.
    pub fn kill_service(&self, name: &str) -> Result<()> {
        let before = self.service(name)?.pid;
        self.signal(name, Signal::SIGKILL)?;
        let gone = || self.service(name).ok().filter(|state| state.pid != before).map(|_| ());
        wait_until(&format!("{name} to end"), Span::from_secs(5), gone)
    }

    /// Everything that runs in it, its init not included; ids are those of the lab's PID namespace.
    pub fn processes(&self) -> Vec<Process> {
        self.pid().map_or_else(|_| Vec::new(), procfs::descendants)
    }

    /// Sends SIGKILL to one of its processes, given by its id in the lab's PID namespace, and waits until it is gone.
    ///
    /// # Errors
    /// When it lives on for 5 s.
    pub fn kill_process(&self, pid: i32) -> Result<()> {
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("kill process {pid} of host {}", self.name))?;
        wait_until(&format!("process {pid} to end"), Span::from_secs(5), || (!procfs::lives(pid)).then_some(()))
    }

    /// Runs a program in it, as root, and returns its standard output.
    ///
    /// # Errors
    /// When the host is off, or as [`command::run`].
    pub fn run(&self, argv: &[&str], deadline: Span) -> Result<String> {
        self.run_as(None, argv, "", deadline)
    }

    /// Runs a program in it as another user, with this on its standard input.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn run_as(&self, user: Option<&str>, argv: &[&str], input: &str, deadline: Span) -> Result<String> {
        let mut all = self.inside()?;
        if let Some(user) = user.filter(|_| nix::unistd::geteuid().is_root()) {
            all.extend(["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--"].map(str::to_owned));
        }
        all.extend(argv.iter().map(|argument| (*argument).to_owned()));
        command::run(&all, input, deadline).with_context(|| format!("on host {}", self.name))
    }

    /// What a command line needs before it to run in this host.
    ///
    /// # Errors
    /// When the host is off.
    pub fn inside(&self) -> Result<Vec<String>> {
        let pid = self.pid()?.to_string();
        let enter = ["nsenter", "--target", &pid, "--net", "--mount", "--pid", "--ipc", "--uts", "--"];
        Ok(if self.walls == Walls::Namespaces { enter.map(str::to_owned).to_vec() } else { Vec::new() })
    }

    /// A path of this host as the lab can open it.
    ///
    /// # Errors
    /// When the host is off.
    pub fn path(&self, path: &Path) -> Result<PathBuf> {
        let pid = self.pid()?;
        Ok(if self.walls == Walls::Namespaces { procfs::seen_by(pid, path) } else { path.to_owned() })
    }

    /// Stops everything in it at once.
    ///
    /// # Errors
    /// When it is off, or something did not stop within 2 s.
    pub fn freeze(&self) -> Result<()> {
        match &*self.power() {
            None => bail!("host {} is off", self.name),
            Some(Power { freezer: Some(freezer), .. }) => freezer.freeze(),
            Some(Power { freezer: None, pid, .. }) => {
                procfs::signal_descendants(*pid, Signal::SIGSTOP);
                Ok(())
            }
        }
    }

    /// Lets everything in it go on.
    ///
    /// # Errors
    /// When it is off.
    pub fn thaw(&self) -> Result<()> {
        match &*self.power() {
            None => bail!("host {} is off", self.name),
            Some(Power { freezer: Some(freezer), .. }) => freezer.thaw(),
            Some(Power { freezer: None, pid, .. }) => {
                procfs::signal_descendants(*pid, Signal::SIGCONT);
                Ok(())
            }
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nobody is left to be told; the keeper ends the host too when the line closes.
        let _ = self.power_off();
    }
}

impl Power {
    /// One question, one answer. An answer to a question that was given up is skipped.
    fn ask(&mut self, request: Request) -> Result<Result<ServiceState, String>> {
        self.asked += 1;
        let mut text = serde_json::to_vec(&Asked { id: self.asked, request })?;
        text.push(b'\n');
        self.line.get_mut().write_all(&text).context("write to the host")?;
        let end = clock::boot().plus(ANSWER);
        let mut line = String::new();
        let answer = poll_until(end, || match self.line.read_line(&mut line) {
            Ok(0) => Some(Err(anyhow!("the host has closed the line"))),
            Ok(_) => match serde_json::from_str::<Answered>(&line) {
                Ok(answered) if answered.id == self.asked => Some(Ok(answered.answer)),
                // The rest of an answer that was given up.
                _ => {
                    line.clear();
                    None
                }
            },
            // What was read of a line so far stays in it.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => None,
            Err(error) => Some(Err(error.into())),
        });
        answer.context("no answer: is the host frozen?")?
    }

    fn last_words(&mut self) -> String {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let mut text = String::new();
        let _ = self.keeper.stderr.take().map(|mut pipe| pipe.read_to_string(&mut text));
        text.trim().to_owned()
    }
}
