//! From fork to exec: what a new process gives up before it becomes PostgreSQL.

use super::{StartCommand, kernel};
use nix::{
    sys::{prctl, signal::Signal, stat::Mode, stat::umask},
    unistd::{Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, geteuid, setgroups, setresgid, setresuid, setsid},
};
use std::{
    ffi::CString,
    fs,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

/// A user whose rights a process takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// User id, never 0.
    pub(super) uid: u32,
    /// Primary group.
    pub(super) gid: u32,
    /// All groups.
    pub(super) groups: Vec<u32>,
}

impl Owner {
    /// Takes the owner's rights for good. Without root, one may only stay who one is.
    pub(super) fn become_it(&self) -> nix::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        if !geteuid().is_root() {
            return if geteuid() == uid { Ok(()) } else { Err(nix::errno::Errno::EPERM) };
        }
        setgroups(&self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect::<Vec<_>>())?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)
    }
}

/// Everything that the postmaster is started with.
pub(super) struct Launch {
    /// Program, arguments, environment.
    pub(super) command: StartCommand,
    /// As whom.
    pub(super) owner: Owner,
    /// Its stdout and stderr.
    pub(super) log: OwnedFd,
}

/// Becomes PostgreSQL. What fails is written to the server's log and is the exit code 126.
pub(super) fn exec(launch: &Launch) -> ! {
    let why = prepare(launch).and_then(|()| replace(&launch.command)).err().unwrap_or_default();
    let program = launch.command.program.display();
    let _ = nix::unistd::write(&launch.log, format!("pgbaton guard: could not start {program}: {why}\n").as_bytes());
    kernel::exit_now(126)
}

fn prepare(launch: &Launch) -> Result<(), String> {
    let fail = |what: &'static str| move |error: nix::errno::Errno| format!("{what}: {error}");
    // A terminal's signals are not for a server.
    let _ = setsid();
    let null = fs::File::open("/dev/null").map_err(|error| format!("open /dev/null: {error}"))?;
    dup2_stdin(&null).map_err(fail("redirect stdin"))?;
    dup2_stdout(&launch.log).map_err(fail("redirect stdout"))?;
    dup2_stderr(&launch.log).map_err(fail("redirect stderr"))?;
    umask(Mode::from_bits_truncate(0o077));
    // The guard's haste is not for a server.
    let _ = kernel::set_nice(0);
    launch.owner.become_it().map_err(fail("take the owner's rights"))?;
    // After the change of credentials, which clears it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(fail("set the parent-death signal"))?;
    chdir(&launch.command.working_dir).map_err(fail("enter the working directory"))?;
    kernel::close_at_exec().map_err(fail("mark descriptors"))?;
    kernel::default_signals().map_err(fail("reset signals"))
}

fn replace(command: &StartCommand) -> Result<(), String> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| "an argument holds a zero byte".to_owned());
    let program = text(command.program.as_os_str().as_bytes())?;
    let args: Result<Vec<_>, _> = command.args.iter().map(|arg| text(arg.as_bytes())).collect();
    let mut argv = vec![program.clone()];
    argv.extend(args?);
    // PG manual, "Linux Memory Overcommit": the postmaster stays protected as the guard is, its children do not.
    let ours =
        [("PG_OOM_ADJUST_FILE".to_owned(), "/proc/self/oom_score_adj".to_owned()), ("PG_OOM_ADJUST_VALUE".to_owned(), "0".to_owned())];
    let given = |name: &str| command.env.iter().any(|(key, _)| key == name);
    let added = ours.iter().filter(|(name, _)| !given(name));
    let env: Result<Vec<_>, _> = command.env.iter().chain(added).map(|(name, value)| text(format!("{name}={value}").as_bytes())).collect();
    match execve(&program, &argv, &env?) {
        Ok(never) => match never {},
        Err(error) => Err(format!("execute it: {error}")),
    }
}
