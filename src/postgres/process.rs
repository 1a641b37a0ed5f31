//! PostgreSQL's own programs, run as children with a deadline: the one place of this room that starts processes.
//!
//! A program runs as the owner of the data directory, in a process group of its own, without our environment, and dies
//! with the thread that started it (so none is started on a thread that ends before its work: no `block_in_place` around it). At its
//! deadline, or when its caller gives up, the whole group is killed.

#![expect(unsafe_code, reason = "the parent-death signal is asked for between fork and exec")]

use crate::model::moment::Span;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, geteuid},
};
use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Child,
    time::timeout,
};

/// What is kept of a stream: the first bytes of standard output, the last ones of standard error.
const OUTPUT_LIMIT: usize = 4 << 20;
const TAIL_LIMIT: usize = 8 << 10;

/// How long output may still come after the program has ended: a grandchild may hold the pipe open.
const DRAIN: Span = Span::from_millis(500);

/// The operating system's user that owns the data directory and runs PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id; PostgreSQL refuses 0.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A program to run: where it lies, its arguments, its environment and whom it runs as.
///
/// The environment is empty but for `PATH`, `LC_ALL=C` (its messages are parsed) and what [`Program::env`] adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    directory: PathBuf,
    owner: Option<Owner>,
}

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A program that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// The first 4 MiB of standard output.
    pub stdout: Vec<u8>,
    /// The last 8 KiB of standard error.
    pub stderr: String,
}

impl Ended {
    /// Standard output as text; bytes that are no UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Why a program did not do its work. Carries the command line, which never holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It was never started.
    #[error("start {command}")]
    Start {
        /// The command line.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended with another status than 0.
    #[error("run {command}: {how}: {stderr}")]
    Status {
        /// The command line.
        command: String,
        /// `exit code N` or `signal N`.
        how: String,
        /// The end of its standard error.
        stderr: String,
    },
    /// It had not ended at its deadline and was killed, with its process group. What it did until then is unknown.
    #[error("run {command}: killed after {}: {stderr}", .limit.rounded())]
    Deadline {
        /// The command line.
        command: String,
        /// How long it was given.
        limit: Span,
        /// The end of its standard error.
        stderr: String,
    },
}

impl Program {
    /// The program at `path`, without arguments, in `/`, as whoever we are.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), args: Vec::new(), env: Vec::new(), directory: PathBuf::from("/"), owner: None }
    }

    /// One more argument. Never a password: everybody on the machine can read it.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The working directory, `/` else.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Whom it runs as. Only root can change that; any other user runs it as itself.
    #[must_use]
    pub fn owner(mut self, owner: Owner) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Runs it to its end, which must be exit status 0, within `limit`.
    ///
    /// # Errors
    /// [`Failure`]: only [`Failure::Start`] means that nothing was done.
    pub async fn run(&self, limit: Span) -> Result<Ended, Failure> {
        self.run_watched(limit, |_, _| ()).await
    }

    /// As [`Program::run`], and hands every line (ended by LF or CR) to `line` as it comes.
    ///
    /// # Errors
    /// As [`Program::run`].
    pub async fn run_watched(&self, limit: Span, line: impl FnMut(Stream, &str)) -> Result<Ended, Failure> {
        let ended = self.run_to_end(limit, line).await?;
        if ended.status.success() {
            return Ok(ended);
        }
        Err(Failure::Status { command: self.to_string(), how: how(ended.status), stderr: ended.stderr })
    }

    /// As [`Program::run_watched`], with any exit status.
    ///
    /// # Errors
    /// [`Failure::Start`] and [`Failure::Deadline`].
    pub async fn run_to_end(&self, limit: Span, line: impl FnMut(Stream, &str)) -> Result<Ended, Failure> {
        let mut child = self.spawn()?;
        let mut output = Output::of(&mut child, line);
        let group = Group(child.id());
        let status = timeout(limit.to_std(), async {
            // Reading goes on beside the waiting, else a full pipe would stop the program.
            tokio::select! {
                biased;
                status = child.wait() => status,
                never = output.read_for_ever() => match never {},
            }
        })
        .await;
        match status {
            Ok(Ok(status)) => {
                let _ = timeout(DRAIN.to_std(), output.read_to_end()).await;
                // What the program left behind in its group has no more business here.
                drop(group);
                Ok(Ended { status, stderr: output.tail(), stdout: output.stdout.kept })
            }
            Ok(Err(source)) => Err(Failure::Start { command: self.to_string(), source }),
            Err(_) => {
                drop(group);
                let _ = timeout(DRAIN.to_std(), child.wait()).await;
                Err(Failure::Deadline { command: self.to_string(), limit, stderr: output.tail() })
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this file starts PostgreSQL's programs")]
    fn spawn(&self) -> Result<Child, Failure> {
        let mut command = tokio::process::Command::new(&self.path);
        command.args(&self.args).current_dir(&self.directory).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        if let Some(owner) = self.owner.filter(|_| geteuid().is_root()) {
            command.uid(owner.uid).gid(owner.gid);
        }
        // SAFETY: prctl is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from));
        }
        command.spawn().map_err(|source| Failure::Start { command: self.to_string(), source })
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.args.iter().try_for_each(|arg| match arg.to_string_lossy() {
            text if text.is_empty() || text.contains([' ', '\'', '"']) => write!(f, " {text:?}"),
            text => write!(f, " {text}"),
        })
    }
}

/// Asks a process to end (SIGTERM). One that is gone already, or not ours, is none of our business.
pub(super) fn terminate(pid: i32) {
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
}

/// `exit code N` or `signal N`.
pub(super) fn how(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit status".to_owned(),
    }
}

/// A process group that is killed when this is dropped, also when the caller gave up waiting.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        // A group keeps its number while one member lives, and process ids are given out in turn: in the instant since the
        // leader was reaped nobody else has come to bear it.
        if let Some(pid) = self.0.and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Both streams of a child while they are read.
struct Output<O, E, L> {
    out: Option<O>,
    err: Option<E>,
    stdout: Kept,
    stderr: Kept,
    line: L,
}

/// What is kept of a stream, and its last line as far as it has come.
struct Kept {
    kept: Vec<u8>,
    unfinished: Vec<u8>,
}

impl<L: FnMut(Stream, &str)> Output<tokio::process::ChildStdout, tokio::process::ChildStderr, L> {
    fn of(child: &mut Child, line: L) -> Self {
        let empty = || Kept { kept: Vec::new(), unfinished: Vec::new() };
        Self { out: child.stdout.take(), err: child.stderr.take(), stdout: empty(), stderr: empty(), line }
    }
}

impl<O: AsyncRead + Unpin, E: AsyncRead + Unpin, L: FnMut(Stream, &str)> Output<O, E, L> {
    async fn read_for_ever(&mut self) -> std::convert::Infallible {
        self.read_to_end().await;
        std::future::pending().await
    }

    /// Reads until both streams are closed. May be dropped and called again.
    async fn read_to_end(&mut self) {
        let (mut out, mut err) = (vec![0; 16 << 10], vec![0; 4 << 10]);
        while self.out.is_some() || self.err.is_some() {
            tokio::select! {
                biased;
                count = read(&mut self.err, &mut err) => self.take(Stream::Err, &err[..count]),
                count = read(&mut self.out, &mut out) => self.take(Stream::Out, &out[..count]),
            }
        }
    }

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let kept = match stream {
            Stream::Out => &mut self.stdout,
            Stream::Err => &mut self.stderr,
        };
        if bytes.is_empty() {
            match stream {
                Stream::Out => self.out = None,
                Stream::Err => self.err = None,
            }
            if !kept.unfinished.is_empty() {
                (self.line)(stream, &String::from_utf8_lossy(&std::mem::take(&mut kept.unfinished)));
            }
            return;
        }
        kept.keep(stream, bytes);
        kept.unfinished.extend_from_slice(bytes);
        while let Some(end) = kept.unfinished.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            let rest = kept.unfinished.split_off(end + 1);
            let finished = std::mem::replace(&mut kept.unfinished, rest);
            (self.line)(stream, &String::from_utf8_lossy(&finished[..end]));
        }
        // A stream without line ends is no text: it is handed on in pieces.
        if kept.unfinished.len() > TAIL_LIMIT {
            (self.line)(stream, &String::from_utf8_lossy(&std::mem::take(&mut kept.unfinished)));
        }
    }

    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.stderr.kept).trim().to_owned()
    }
}

impl Kept {
    fn keep(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Out => self.kept.extend_from_slice(&bytes[..bytes.len().min(OUTPUT_LIMIT - self.kept.len())]),
            Stream::Err => {
                self.kept.extend_from_slice(bytes);
                self.kept.drain(..self.kept.len().saturating_sub(TAIL_LIMIT));
            }
        }
    }
}

/// Bytes read; 0 at the end of the stream or where it cannot be read. Never ready on a stream that is already closed.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    match stream {
        Some(open) => open.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn shell(script: &str) -> Program {
        Program::new("/bin/sh").arg("-c").arg(script)
    }

    const LONG: Span = Span::from_secs(10);

    #[tokio::test]
    async fn a_failed_program_tells_its_status_and_what_it_wrote() {
        let failure = shell("echo half; echo wrong >&2; exit 3").run(LONG).await.expect_err("exit 3");
        let text = failure.to_string();
        assert!(text.contains("exit code 3: wrong") && text.contains("/bin/sh -c"), "{text}");
    }

    #[tokio::test]
    async fn at_the_deadline_the_whole_group_is_killed() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let script = format!("(sleep 0.6; echo alive > {}) & echo started >&2; sleep 30", file.path().display());
        let begin = clock::boot();
        let failure = shell(&script).run(Span::from_millis(200)).await.expect_err("deadline");
        assert!(matches!(&failure, Failure::Deadline { stderr, .. } if stderr == "started"), "{failure}");
        assert!(clock::boot().since(begin) < Span::from_secs(2));
        tokio::time::sleep(Span::from_millis(700).to_std()).await;
        assert_eq!(std::fs::read_to_string(file.path()).expect("read"), "");
    }

    #[tokio::test]
    async fn lines_are_seen_as_they_come_and_long_output_does_not_block() {
        let mut lines = Vec::new();
        let script = "printf 'a\\rb\\nc' >&2; head -c 6000000 /dev/zero";
        let program = shell(script);
        let ended = program.run_watched(LONG, |stream, line| {
            if stream == Stream::Err {
                lines.push(line.to_owned());
            }
        });
        let ended = ended.await.expect("run");
        assert_eq!(lines, ["a", "b", "c"]);
        assert_eq!(ended.stdout.len(), OUTPUT_LIMIT);
    }

    #[tokio::test]
    async fn the_environment_is_not_ours() {
        let ended = shell("env").env("PGPASSFILE", "/x").run(LONG).await.expect("env");
        let names: Vec<_> = ended.text().lines().filter_map(|line| line.split('=').next().map(str::to_owned)).collect();
        assert!(
            names.iter().all(|name| ["PATH", "LC_ALL", "PGPASSFILE", "PWD", "SHLVL", "_", "OLDPWD"].contains(&name.as_str())),
            "{names:?}"
        );
        assert!(names.contains(&"PGPASSFILE".to_owned()));
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_was_not_started() {
        let failure = Program::new("/nowhere/postgres").run(LONG).await.expect_err("missing");
        assert!(matches!(failure, Failure::Start { .. }), "{failure}");
    }
}
