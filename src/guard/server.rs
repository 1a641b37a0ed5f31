//! The guard's process: one thread, one loop around `poll`, no async runtime.

use super::{
    Error, GuardSettings, KillChoice, StartCommand,
    cut::Wall,
    deadline::Deadline,
    instance::{Event, Instance, Prepared, Ticket, Wish},
    kernel::{self, Forked},
    law::Law,
    log,
    protocol::{Answer, Verb},
    selftest,
    session::{Asked, Doors},
};
use crate::{
    clock,
    model::{
        instance::{Armed, GuardStatus, KillMode, StartAs, StopMode},
        moment::Moment,
        node::Incarnation,
        term::Term,
    },
};
use nix::{
    fcntl::{Flock, FlockArg},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        mman::{MlockAllFlags, mlockall},
        prctl,
        resource::{Resource, getrlimit},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, geteuid, setsid},
};
use std::{
    fs,
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, lchown},
    },
    path::Path,
};

/// Runs the guard whose settings are the JSON file at `path`. Returns when it has stopped PostgreSQL after SIGTERM.
///
/// # Errors
/// As [`run`]; also a file that cannot be read or understood.
pub fn main_from_json(path: &Path) -> Result<(), Error> {
    let text = fs::read(path).map_err(Error::system(format!("read {}", path.display())))?;
    run(understand(&text, &path.display().to_string())?)
}

/// Runs the guard whose settings come as JSON on stdin, up to its end: no file stands between the starter and its guard.
///
/// # Errors
/// As [`run`]; also what cannot be read or understood.
pub fn main_from_stdin() -> Result<(), Error> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(Error::system("read the settings from stdin"))?;
    run(understand(&text, "the settings on stdin")?)
}

fn understand(text: &[u8], from: &str) -> Result<GuardSettings, Error> {
    serde_json::from_slice(text).map_err(|error| Error::Settings(format!("{from}: {error}")))
}

/// Runs the guard in this process, which must have one thread. Returns when it has stopped PostgreSQL after SIGTERM.
///
/// A log subscriber of this process must write to [`log::Sink`] (or never fail and never wait).
///
/// With `detach` the caller's process ends, successfully once the guard listens, and the guard goes on in a child of its own session.
///
/// # Errors
/// Nothing runs then: the settings cannot be met, another guard holds the directory, or the system refused something essential.
pub fn run(settings: GuardSettings) -> Result<(), Error> {
    if settings.kill == KillChoice::Cgroup {
        return Err(Error::Settings("kill mode \"cgroup\" needs the systemd units, which are not available yet".to_owned()));
    }
    for path in [&settings.data_dir, &settings.run_dir].into_iter().chain(&settings.log_file) {
        if !path.is_absolute() {
            return Err(Error::Settings(format!("{} is not an absolute path", path.display())));
        }
    }
    let caller = if settings.detach { Some(detach(&settings)?) } else { None };
    let started = Guard::begin(settings);
    if let Some(mut caller) = caller {
        let word = started.as_ref().err().map_or_else(|| "ok".to_owned(), describe);
        let _ = caller.write_all(word.as_bytes());
    }
    started?.serve()
}

fn describe(error: &Error) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

/// Goes on in a child that has its own session and no terminal. The parent waits for the child's word and exits.
fn detach(settings: &GuardSettings) -> Result<std::io::PipeWriter, Error> {
    let (mut reader, writer) = std::io::pipe().map_err(Error::system("make a pipe"))?;
    if let Forked::Parent(_) = kernel::fork().map_err(Error::errno("fork"))? {
        drop(writer);
        let mut word = String::new();
        let _ = reader.read_to_string(&mut word);
        if word != "ok" {
            let why = if word.is_empty() { "the guard died while it started" } else { &word };
            let _ = writeln!(std::io::stderr(), "pgbaton guard: {why}");
        }
        kernel::exit_now(i32::from(word != "ok"))
    }
    drop(reader);
    setsid().map_err(Error::errno("leave the session"))?;
    // The second fork: a session leader could get a terminal again.
    if let Forked::Parent(_) = kernel::fork().map_err(Error::errno("fork"))? {
        kernel::exit_now(0)
    }
    // What a careless caller has left open shall not stay open as long as PostgreSQL runs.
    kernel::close_all_but(&[writer.as_fd()]);
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(Error::system("open /dev/null"))?;
    dup2_stdin(&null).map_err(Error::errno("redirect stdin"))?;
    dup2_stdout(&null).map_err(Error::errno("redirect stdout"))?;
    if settings.log_file.is_none() {
        dup2_stderr(&null).map_err(Error::errno("redirect stderr"))?;
    }
    Ok(writer)
}

struct Guard {
    settings: GuardSettings,
    incarnation: Incarnation,
    kill: KillMode,
    fenced: bool,
    law: Law,
    deadline: Deadline,
    instance: Instance,
    wall: Wall,
    doors: Doors,
    signals: SignalFd,
    /// SIGTERM has come: the guard ends once PostgreSQL has.
    leaving: bool,
    told: Option<GuardStatus>,
}

impl Guard {
    fn begin(settings: GuardSettings) -> Result<Self, Error> {
        let signals = take_signals().map_err(Error::errno("take signals"))?;
        // Fails where the caller has made this the leader of its group, which is as good.
        let _ = setsid();
        // No mount shall be busy because of it.
        let _ = chdir("/");
        let lock = lock(&settings)?;
        if let Some(log_file) = &settings.log_file {
            log::divert(log_file)?;
        }
        let _ = fs::write("/proc/self/oom_score_adj", "-900");
        // Where the processor is busy, those who end things go first. Not allowed without root.
        let _ = kernel::set_nice(-15);
        let (kill, fenced) = selftest::choose(settings.kill);
        if kill == KillMode::Descendants {
            // Orphans of a keeper that was killed become children of the guard.
            prctl::set_child_subreaper(true).map_err(Error::errno("become a sub-reaper"))?;
        }
        lock_memory();
        let deadline = Deadline::new().map_err(Error::errno("create the deadline's timer"))?;
        let instance = Instance::new(settings.data_dir.clone(), kill, lock);
        let wall = Wall::new(&settings, !instance.lives());
        let doors = Doors::open(&settings)?;
        let incarnation = clock::incarnation();
        tracing::info!(cluster = %settings.cluster, node = %settings.node, %incarnation, %kill, fenced, "the guard listens");
        let law = Law::default();
        Ok(Self { settings, incarnation, kill, fenced, law, deadline, instance, wall, doors, signals, leaving: false, told: None })
    }

    fn serve(mut self) -> Result<(), Error> {
        loop {
            self.wait()?;
            let now = clock::boot();
            self.take_signals(now);
            for asked in self.doors.turn(&self.status()) {
                self.answer(&asked);
            }
            for event in self.instance.turn(now, self.wall.errand()) {
                self.follow(event);
            }
            if let Some((ticket, result)) = self.wall.turn() {
                self.reply(ticket, result);
            }
            let status = self.status();
            if self.told.as_ref() != Some(&status) {
                self.doors.push(&status);
                self.told = Some(status);
            }
            if self.leaving && self.instance.is_at_rest() {
                let _ = fs::remove_file(self.settings.socket());
                tracing::info!("the guard ends");
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Result<(), Error> {
        let now = clock::boot();
        let timeout = match self.instance.wake_at(now) {
            None => PollTimeout::NONE,
            // Rounded up: a wake just before its time would spin.
            Some(at) => PollTimeout::try_from(at.since(now).as_millis() + u64::from(at > now)).unwrap_or(PollTimeout::MAX),
        };
        let (read, write) = self.doors.watched();
        let read = read.into_iter().chain(self.instance.watched()).chain(self.wall.watched()).chain([self.signals.as_fd()]);
        let mut fds: Vec<_> = read.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        fds.extend(write.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(Error::errno("wait for events")(errno)),
        }
    }

    fn take_signals(&mut self, now: Moment) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if i32::try_from(signal.ssi_signo) != Ok(Signal::SIGTERM as i32) {
                continue;
            }
            if std::mem::replace(&mut self.leaving, true) {
                self.instance.kill(now);
            } else {
                tracing::info!("SIGTERM: PostgreSQL is stopped, then the guard ends");
                self.instance.stop(StopMode::Fast, now.plus(self.settings.stop_timeout));
            }
        }
    }

    fn status(&self) -> GuardStatus {
        GuardStatus {
            incarnation: self.incarnation.clone(),
            term: self.law.term,
            armed: self.law.armed,
            primary_of: self.law.primary_of,
            process: self.instance.process(),
            kill: self.kill,
            fenced: self.fenced,
            starting: self.instance.is_starting(),
            cut: self.wall.status(),
        }
    }

    fn answer(&mut self, asked: &Asked) {
        let request = &asked.request;
        let ticket = Ticket { connection: asked.connection, id: request.id };
        let verb =
            serde_json::from_value::<Verb>(request.verb.clone()).map_err(|error| format!("this guard does not know the verb: {error}"));
        match verb.and_then(|verb| self.act(ticket, request.term, verb)) {
            Ok(Answered::Now) => self.reply(ticket, Ok(())),
            Ok(Answered::Later) => {}
            Err(why) => self.reply(ticket, Err(why)),
        }
    }

    fn reply(&mut self, ticket: Ticket, result: Result<(), String>) {
        let (id, status) = (ticket.id, self.status());
        let answer = match result {
            Ok(()) => Answer::Done { id, status },
            Err(why) => {
                tracing::info!(reason = why, "a verb is refused");
                Answer::Refused { id, why, status }
            }
        };
        self.doors.send(ticket.connection, &answer);
    }

    fn act(&mut self, ticket: Ticket, term: Term, verb: Verb) -> Result<Answered, String> {
        if !matches!(verb, Verb::Status) {
            self.law.hear(term)?;
        }
        let now = clock::boot();
        match verb {
            Verb::Status => Ok(Answered::Now),
            Verb::Quit if self.instance.is_at_rest() => {
                self.leaving = true;
                Ok(Answered::Now)
            }
            Verb::Quit => Err("PostgreSQL is not verified dead: stop it first".to_owned()),
            Verb::Start { start, command } => {
                self.may_start(start, term, &command)?;
                self.instance.start(Wish { ticket, start, term, command })?;
                Ok(Answered::Later)
            }
            Verb::Stop { mode, deadline } => {
                self.instance.stop(mode, deadline);
                Ok(Answered::Now)
            }
            Verb::Kill => {
                self.instance.kill(now);
                Ok(Answered::Now)
            }
            Verb::Arm { until, by_own_swap } => {
                let armed = Armed { term, until };
                self.law.may_arm(armed, by_own_swap)?;
                self.deadline.arm(until).map_err(|errno| format!("set the kernel's timer: {errno}"))?;
                self.law.armed = Some(armed);
                Ok(Answered::Now)
            }
            Verb::Promote => {
                self.law.may_lead(term, now)?;
                self.instance.promote(ticket)?;
                self.law.led(StartAs::Primary, term);
                Ok(Answered::Later)
            }
            Verb::Cut { from } => {
                self.wall.change(ticket, from, &self.settings)?;
                Ok(Answered::Later)
            }
            Verb::Disarm { paused } => {
                self.law.may_disarm(self.instance.lives(), paused)?;
                self.deadline.disarm().map_err(|errno| format!("stop the kernel's timer: {errno}"))?;
                self.law.armed = None;
                Ok(Answered::Now)
            }
        }
    }

    fn may_start(&self, start: StartAs, term: Term, command: &StartCommand) -> Result<(), String> {
        if self.leaving {
            return Err("the guard is ending".to_owned());
        }
        if command.uid == 0 {
            return Err("PostgreSQL does not run as root".to_owned());
        }
        let me = geteuid();
        if !me.is_root() && me.as_raw() != command.uid {
            return Err(format!("the guard runs as uid {me} and cannot start PostgreSQL as uid {}", command.uid));
        }
        // Who speaks for that user shall not gain another's rights, nor a group's such as root's or the disks'.
        let (uid, gid) = (self.settings.service_uid.unwrap_or(command.uid), self.settings.service_gid.unwrap_or(command.gid));
        if me.is_root() && (command.uid, command.gid) != (uid, gid) {
            return Err(format!(
                "this guard starts PostgreSQL as uid {uid} and gid {gid}, not as uid {} and gid {}",
                command.uid, command.gid
            ));
        }
        if command.data_dir != self.settings.data_dir {
            return Err(format!("this guard is for {}, not for {}", self.settings.data_dir.display(), command.data_dir.display()));
        }
        match start {
            StartAs::Primary => self.law.may_lead(term, clock::boot()),
            StartAs::Standby => Ok(()),
        }
    }

    fn follow(&mut self, event: Event) {
        match event {
            Event::Answer(ticket, result) => self.reply(ticket, result),
            Event::NotPromoted(ticket, why) => {
                self.law.not_led();
                self.reply(ticket, Err(why));
            }
            Event::Prepared(prepared) => {
                let ticket = prepared.wish.ticket;
                let result = self.launch(*prepared);
                self.reply(ticket, result);
            }
        }
    }

    fn launch(&mut self, prepared: Prepared) -> Result<(), String> {
        let (start, term) = (prepared.wish.start, prepared.wish.term);
        // Time has passed and other verbs may have come since the start was accepted.
        let still = self.law.hear(term).and_then(|()| match start {
            StartAs::Primary => self.law.may_lead(term, clock::boot()),
            StartAs::Standby => Ok(()),
        });
        if self.leaving || still.is_err() {
            self.instance.abandon(&prepared);
            return still.and(Err("the guard is ending".to_owned()));
        }
        self.law.led(start, term);
        self.instance.launch(prepared)
    }
}

enum Answered {
    Now,
    Later,
}

/// SIGTERM and SIGCHLD are read from a descriptor; what a terminal sends is ignored.
fn take_signals() -> nix::Result<SignalFd> {
    use Signal::{SIGCHLD, SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};
    kernel::ignore(&[SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTSTP, SIGTTIN, SIGTTOU])?;
    let mut mask = SigSet::empty();
    mask.add(SIGTERM);
    mask.add(SIGCHLD);
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Takes the lock that makes this guard the only one. What a former guard started may hold it for the moment it needs to die.
fn lock(settings: &GuardSettings) -> Result<OwnedFd, Error> {
    let dir = &settings.run_dir;
    match fs::DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::system(format!("make {}", dir.display()))(error));
        }
        // The agent keeps a socket of its own there.
        Ok(()) if geteuid().is_root() => {
            lchown(dir, settings.service_uid, settings.service_gid).map_err(Error::system(format!("give away {}", dir.display())))?
        }
        _ => {}
    }
    let path = dir.join("guard.lock");
    // The directory may belong to the service user: what he plants there is not followed.
    let open =
        || fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
    for _ in 0..100 {
        let file: OwnedFd = open().map_err(Error::system(format!("open {}", path.display())))?.into();
        if let Ok(lock) = Flock::lock(file.try_clone().map_err(Error::system("duplicate a descriptor"))?, FlockArg::LockExclusiveNonblock) {
            // The lock belongs to the open file: it stays while any duplicate of the descriptor is open.
            std::mem::forget(lock);
            return Ok(file);
        }
        let _ = poll(&mut [], PollTimeout::from(20_u8));
    }
    Err(Error::Taken { run_dir: dir.clone() })
}

/// Keeps the guard's pages in memory: it must not wait for a swap device. Touched pages only, so that it stays small.
fn lock_memory() {
    // Under a limit later allocations would fail, which is worse than a page fault.
    let unlimited = geteuid().is_root() || getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == nix::libc::RLIM_INFINITY);
    if unlimited {
        let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
        if let Err(errno) = mlockall(flags) {
            tracing::warn!(reason = %errno, "the guard's memory is not locked");
        }
    }
}
