//! The agent's side of the guard: the session, a verb a method, and starting a guard.

use super::{
    StartCommand,
    protocol::{Answer, Hello, LONGEST_LINE, Request, VERSION, Verb, mismatch, version_of},
};
use crate::model::{
    instance::{GuardStatus, StartAs, StopMode},
    moment::{Moment, Span},
    node::{Address, Incarnation},
    term::Term,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

/// How many requests and statuses may wait.
const QUEUE: usize = 16;

/// Why the guard did not do it, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guard refused: nothing was done.
    ///
    /// For a promotion whose file could not be written for certain, `status.primary_of` names the term all the same: PostgreSQL may promote.
    #[error("the guard refuses: {why}")]
    Refused {
        /// Why, for people.
        why: String,
        /// The guard as it is.
        status: Box<GuardStatus>,
    },
    /// The guard does not let this agent in, or speaks another protocol: nothing was done.
    #[error("the guard lets nobody in: {0}")]
    Rejected(String),
    /// No guard listens: nothing was done.
    #[error("connect to the guard at {}", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection ended: whether the verb was done is unknown. The guard may be dead, and PostgreSQL with it.
    #[error("the guard's connection is gone")]
    Gone,
    /// No answer in time: whether the verb was or will be done is unknown.
    #[error("no answer from the guard in {0}")]
    Timeout(Span),
    /// A guard could not be started.
    #[error("start a guard: {0}")]
    Spawn(String),
}

/// Whether a verb that failed may have been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not.
    NotDone,
    /// It may have been, or may yet be: observe before acting again.
    Unknown,
}

impl Error {
    /// What is known of the verb.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused { .. } | Self::Rejected(_) | Self::Absent { .. } | Self::Spawn(_) => Outcome::NotDone,
            Self::Gone | Self::Timeout(_) => Outcome::Unknown,
        }
    }
}

/// Who says that the lease is this agent's: only its own swap makes a deadline later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArmedBy {
    /// This agent renewed or adopted the lease in this session by a swap of its own that is confirmed.
    OwnSwap,
    /// Anything else: an earlier deadline is accepted all the same.
    Caution,
}

/// Why the deadline goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disarm {
    /// PostgreSQL is not and was not primary in this run, or is verified empty.
    NotPrimary,
    /// The cluster's pause is committed.
    Paused,
}

/// The session with the guard. Clones share it.
///
/// A verb that gets no answer in time ends the session: what was done, and is, shows in the first status of the next one. The guard does not do
/// any more what it then has not begun, but for a stop and a kill.
#[derive(Clone, Debug)]
pub struct Guard {
    agent: Incarnation,
    requests: mpsc::Sender<Pending>,
    end: watch::Sender<bool>,
}

struct Pending {
    term: Term,
    verb: Verb,
    answer: oneshot::Sender<Result<GuardStatus, Error>>,
}

impl Guard {
    /// Takes the session of the guard that listens at `socket`, within `deadline`. A former agent's process is killed and waited for.
    ///
    /// The receiver gets the present status, then each change. When it is not read, older statuses give way to the newest. It ends once the
    /// connection is closed. Call it in a tokio runtime: a task there serves the connection until the last clone is dropped.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Rejected`], [`Error::Gone`], [`Error::Timeout`].
    pub async fn connect(socket: &Path, agent: Incarnation, deadline: Span) -> Result<(Self, mpsc::Receiver<GuardStatus>), Error> {
        let hello = Hello::Session { protocol: VERSION, agent: agent.clone() };
        let (status, reader, writer) = within(deadline, greet(socket, &hello)).await?;
        let (requests, asked) = mpsc::channel(QUEUE);
        let (changes, statuses) = mpsc::channel(QUEUE);
        let (end, ended) = watch::channel(false);
        let line = Line { agent: agent.clone(), writer, counter: 0, waiting: BTreeMap::new(), unread: Some(status) };
        #[expect(clippy::disallowed_methods, reason = "one task a connection, ended by the drop of its handles")]
        tokio::spawn(async move {
            line.serve(reader, asked, &changes, ended).await;
            // Closed by now, whatever waits there unread; only then the receiver learns of it.
            drop(changes);
        });
        Ok((Self { agent, requests, end }, statuses))
    }

    /// Whether the session is over: what it said last is no fact any more.
    pub fn has_ended(&self) -> bool {
        self.gave_up() || self.requests.is_closed()
    }

    /// Whether it ended because a verb got no answer in time.
    pub fn gave_up(&self) -> bool {
        *self.end.borrow()
    }

    /// Whether these are the same session.
    pub fn is(&self, other: &Self) -> bool {
        self.requests.same_channel(&other.requests)
    }

    /// This run of the agent, as the guard knows it.
    pub fn agent(&self) -> &Incarnation {
        &self.agent
    }

    /// Starts PostgreSQL. Done: its processes exist. `Primary` needs a deadline armed for `term` with the promotion margin left.
    ///
    /// # Errors
    /// [`Error::Refused`] also where PostgreSQL of this data directory lives already, under this guard or outside.
    pub async fn start(&self, start: StartAs, command: StartCommand, term: Term, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Start { start, command }, deadline).await
    }

    /// Begins a stop that becomes a kill at `kill_at`; a later call may make it harder. Done: it was begun, or nothing runs.
    ///
    /// # Errors
    /// As every verb.
    pub async fn stop(&self, mode: StopMode, kill_at: Moment, term: Term, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Stop { mode, deadline: kill_at }, deadline).await
    }

    /// Kills every process of PostgreSQL. Done: it was begun; `Process::Empty` tells when the last one is gone.
    ///
    /// # Errors
    /// As every verb.
    pub async fn kill(&self, term: Term, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Kill, deadline).await
    }

    /// Moves the kernel's deadline to `until`. A deadline in the past kills the guard and PostgreSQL at once.
    ///
    /// # Errors
    /// [`Error::Refused`]: a later deadline without [`ArmedBy::OwnSwap`].
    pub async fn arm(&self, term: Term, until: Moment, by: ArmedBy, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Arm { until, by_own_swap: by == ArmedBy::OwnSwap }, deadline).await
    }

    /// Promotes the standby. Done: PostgreSQL has been told. Needs a deadline armed for `term` with the promotion margin left.
    ///
    /// # Errors
    /// As every verb.
    pub async fn promote(&self, term: Term, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Promote, deadline).await
    }

    /// Takes the deadline away.
    ///
    /// # Errors
    /// [`Error::Refused`]: processes live that are or may be a primary, and it is no pause.
    pub async fn disarm(&self, term: Term, why: Disarm, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Disarm { paused: why == Disarm::Paused }, deadline).await
    }

    /// Cuts this host off from the PostgreSQL of these addresses, and from no others any more: the kernel lets no TCP pass, established or new.
    /// Done: it is so.
    ///
    /// # Errors
    /// [`Error::Refused`] also where there is no `nft` here, the guard lacks the right (`CAP_NET_ADMIN`), or a name cannot be resolved: what was
    /// cut before still is.
    pub async fn cut(&self, from: BTreeSet<Address>, term: Term, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Cut { from }, deadline).await
    }

    /// Ends the guard, whose PostgreSQL is stopped.
    ///
    /// # Errors
    /// [`Error::Refused`]: PostgreSQL is not verified dead.
    pub async fn quit(&self, term: Term, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(term, Verb::Quit, deadline).await
    }

    /// The guard as it is.
    ///
    /// # Errors
    /// As every verb.
    pub async fn status(&self, deadline: Span) -> Result<GuardStatus, Error> {
        self.ask(Term::ZERO, Verb::Status, deadline).await
    }

    async fn ask(&self, term: Term, verb: Verb, deadline: Span) -> Result<GuardStatus, Error> {
        let asked = within(deadline, async {
            let (answer, answered) = oneshot::channel();
            self.requests.send(Pending { term, verb, answer }).await.map_err(|_| Error::Gone)?;
            answered.await.map_err(|_| Error::Gone)?
        })
        .await;
        if matches!(asked, Err(Error::Timeout(_))) {
            // What waits unread shall not be done later, when nobody expects it any more.
            self.end.send_replace(true);
        }
        asked
    }
}

/// The status of the guard that listens at `socket`, without taking its session.
///
/// # Errors
/// As [`Guard::connect`].
pub async fn query_status(socket: &Path, deadline: Span) -> Result<GuardStatus, Error> {
    within(deadline, greet(socket, &Hello::Query { protocol: VERSION })).await.map(|(status, _, _)| status)
}

/// Starts a guard that outlives this process: `program` with `args`, whose settings say `detach`, listening at `socket`.
///
/// Returns its status once it answers, within `deadline`. Where the deadline passes, the guard may still come up.
///
/// # Errors
/// [`Error::Spawn`] with what it said on stderr; [`Error::Timeout`].
pub async fn spawn(program: &Path, args: &[String], socket: &Path, deadline: Span) -> Result<GuardStatus, Error> {
    within(deadline, async {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts a guard")]
        let mut command = tokio::process::Command::new(program);
        // A group of its own: a signal to this process's group does not reach it.
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let failed = |error: std::io::Error| Error::Spawn(format!("{}: {error}", program.display()));
        let mut child = command.spawn().map_err(failed)?;
        // The first process ends once the guard listens; the guard keeps no copy of this pipe, whatever it inherits.
        let status = child.wait().await.map_err(failed)?;
        if !status.success() {
            let mut said = Vec::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = timeout(Duration::from_millis(200), stderr.read_to_end(&mut said)).await;
            }
            return Err(Error::Spawn(format!("{status}: {}", String::from_utf8_lossy(&said).trim())));
        }
        query_status(socket, deadline).await
    })
    .await
}

async fn within<T>(deadline: Span, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(deadline.to_std(), work).await.unwrap_or(Err(Error::Timeout(deadline)))
}

type Reader = BufReader<OwnedReadHalf>;

async fn greet(socket: &Path, hello: &Hello) -> Result<(GuardStatus, Reader, OwnedWriteHalf), Error> {
    let absent = |source| Error::Absent { path: socket.to_owned(), source };
    let (reader, mut writer) = UnixStream::connect(socket).await.map_err(absent)?.into_split();
    let mut reader = BufReader::new(reader);
    write(&mut writer, hello).await?;
    let mut line = Vec::new();
    read_line(&mut reader, &mut line).await?;
    if let Some(why) = version_of(&line).and_then(|version| mismatch(version, VERSION)) {
        return Err(Error::Rejected(why));
    }
    match serde_json::from_slice(&line).map_err(|_| Error::Gone)? {
        Answer::Welcome { status, .. } => Ok((status, reader, writer)),
        Answer::Rejected { why } => Err(Error::Rejected(why)),
        Answer::Done { .. } | Answer::Refused { .. } | Answer::Status(_) => Err(Error::Rejected("it does not greet".to_owned())),
    }
}

async fn write(writer: &mut OwnedWriteHalf, value: &impl Serialize) -> Result<(), Error> {
    let mut line = serde_json::to_vec(value).map_err(|_| Error::Gone)?;
    line.push(b'\n');
    writer.write_all(&line).await.map_err(|_| Error::Gone)
}

/// Reads on until `line` is whole. Cancelled, it leaves what has come in `line`.
async fn read_line(reader: &mut Reader, line: &mut Vec<u8>) -> Result<(), Error> {
    let room = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX);
    match reader.take(room).read_until(b'\n', line).await {
        Ok(read) if read > 0 && line.ends_with(b"\n") => Ok(()),
        _ => Err(Error::Gone),
    }
}

/// The connection, owned by its task.
struct Line {
    agent: Incarnation,
    writer: OwnedWriteHalf,
    counter: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Result<GuardStatus, Error>>>,
    /// The newest status that the receiver has not taken yet.
    unread: Option<GuardStatus>,
}

impl Line {
    async fn serve(
        mut self,
        mut reader: Reader,
        mut asked: mpsc::Receiver<Pending>,
        changes: &mpsc::Sender<GuardStatus>,
        mut ended: watch::Receiver<bool>,
    ) {
        let mut line = Vec::new();
        loop {
            let result = tokio::select! {
                biased;
                // Fails once no handle is left.
                () = async { drop(ended.wait_for(|end| *end).await) } => return,
                room = changes.reserve(), if self.unread.is_some() && !changes.is_closed() => {
                    if let (Ok(room), Some(status)) = (room, self.unread.take()) {
                        room.send(status);
                    }
                    Ok(())
                }
                pending = asked.recv() => match pending {
                    Some(pending) => self.send(pending).await,
                    None => return,
                },
                read = read_line(&mut reader, &mut line) => match read {
                    Ok(()) => self.take(&std::mem::take(&mut line)),
                    Err(error) => Err(error),
                },
            };
            // What waits for an answer learns of the end by the drop of its sender.
            if result.is_err() {
                return;
            }
        }
    }

    async fn send(&mut self, pending: Pending) -> Result<(), Error> {
        self.counter += 1;
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.waiting.insert(self.counter, pending.answer);
        let request = Request { id: self.counter, agent: self.agent.clone(), term: pending.term, verb: pending.verb };
        write(&mut self.writer, &request).await
    }

    fn take(&mut self, line: &[u8]) -> Result<(), Error> {
        match serde_json::from_slice(line).map_err(|_| Error::Gone)? {
            Answer::Done { id, status } => self.answer(id, Ok(status)),
            Answer::Refused { id, why, status } => self.answer(id, Err(Error::Refused { why, status: Box::new(status) })),
            Answer::Status(status) => self.unread = Some(status),
            Answer::Welcome { .. } | Answer::Rejected { .. } => return Err(Error::Gone),
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, result: Result<GuardStatus, Error>) {
        if let Some(waiting) = self.waiting.remove(&id) {
            // The asker may have given up.
            let _ = waiting.send(result);
        }
    }
}
