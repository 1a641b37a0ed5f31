//! Programs that the lab calls and waits for (`ip`, `nft`, `etcdctl`, `initdb`, …): the one place that starts them.

use crate::{
    clock,
    model::moment::{Moment, Span},
};
use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    ffi::OsStr,
    io::{Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

/// How long a program that only configures something may take.
pub const QUICK: Span = Span::from_secs(10);

/// A command in a process group of its own, so that Ctrl-C at the terminal reaches the lab's owner alone.
#[expect(clippy::disallowed_methods, reason = "this file starts the lab's processes")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    command
}

/// Runs `argv`, feeds it `input`, and returns its standard output.
///
/// # Errors
/// Says argv, exit status and the end of standard error. After `deadline` the whole process group is killed;
/// what the program had done by then stays done.
pub fn run<S: AsRef<OsStr>>(argv: &[S], input: &str, deadline: Span) -> Result<String> {
    let Some((program, arguments)) = argv.split_first() else { bail!("no program to run") };
    let mut command = command(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = show(argv);
    let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
    let (status, output, errors) = attend(&mut child, input, deadline).with_context(|| format!("run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}: {}", tail(&errors));
    }
    Ok(output)
}

fn attend(child: &mut Child, input: &str, deadline: Span) -> Result<(ExitStatus, String, String)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // Readers of their own: a program that fills one pipe while we wait on the other would hang.
        let output = scope.spawn(|| drain(stdout));
        let errors = scope.spawn(|| drain(stderr));
        scope.spawn(|| stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        let status = wait(child, deadline);
        let (output, errors) = (output.join().unwrap_or_default(), errors.join().unwrap_or_default());
        Ok((status?, output, errors))
    })
}

fn drain(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // A broken pipe ends the text; what came before it is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child that leads its own process group; kills the group at the deadline.
fn wait(child: &mut Child, deadline: Span) -> Result<ExitStatus> {
    let end = clock::boot().plus(deadline);
    let exited = poll_until(end, || child.try_wait().transpose());
    if let Some(status) = exited {
        return Ok(status?);
    }
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    child.wait()?;
    bail!("no end within {deadline}: killed");
}

/// Asks `question` until it answers or the moment has come; at first often, later every 10 ms.
pub fn poll_until<T>(end: Moment, mut question: impl FnMut() -> Option<T>) -> Option<T> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = question() {
            return Some(answer);
        }
        if clock::boot() >= end {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Asks `question` until it answers.
///
/// # Errors
/// When it has not within `deadline`; `what` says what was waited for.
pub fn wait_until<T>(what: &str, deadline: Span, question: impl FnMut() -> Option<T>) -> Result<T> {
    poll_until(clock::boot().plus(deadline), question).with_context(|| format!("waited {deadline} for {what}"))
}

fn show<S: AsRef<OsStr>>(argv: &[S]) -> String {
    argv.iter().map(|argument| argument.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}
