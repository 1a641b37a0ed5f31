//! Who may speak with the guard: connections, their peers' credentials, and the one session.
//!
//! A new agent is let in only after the former agent's *process* is dead: it is killed through a descriptor taken when it connected, and
//! waited for. A zombie is dead: whoever should reap it may be slow. A connection that breaks changes nothing that was done; what was asked on
//! it and has not been begun is not done any more, but for what only ends PostgreSQL: who asked has given it up, and may count on that.

use super::{
    Error, GuardSettings, kernel,
    protocol::{Answer, Hello, LONGEST_LINE, Request, VERSION, mismatch, only_ends, version_of},
};
use crate::model::{instance::GuardStatus, node::Incarnation};
use nix::{
    sys::{
        signal::Signal,
        socket::{
            getsockopt,
            sockopt::{PeerCredentials, PeerPidfd},
        },
        stat::{Mode, umask},
    },
    unistd::{Pid, geteuid, getpid},
};
use serde_json::Value;
use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::lchown,
            net::{UnixListener, UnixStream},
        },
    },
};

/// How many connections are kept; the oldest that is not the session goes first.
const MOST_CONNECTIONS: usize = 16;
/// How much may wait for a peer that does not read.
const MOST_UNSENT: usize = 1024 * 1024;

/// The listener, all connections and the session.
pub(super) struct Doors {
    listener: UnixListener,
    service_uid: Option<u32>,
    connections: Vec<Connection>,
    /// The agent in session, or the last one: it may live though its connection is gone.
    agent: Option<Agent>,
    counter: u64,
}

struct Connection {
    id: u64,
    stream: UnixStream,
    peer: Pid,
    /// Of the peer's process, until it becomes the agent's.
    pidfd: Option<OwnedFd>,
    stage: Stage,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    broken: bool,
}

enum Stage {
    /// Nothing was said yet.
    New,
    /// Waits until the former agent is dead.
    Waiting { agent: Incarnation },
    /// The agent.
    Session,
    /// Has got, or gets, its only answer.
    Leaving,
}

struct Agent {
    incarnation: Incarnation,
    pid: Pid,
    pidfd: OwnedFd,
}

/// What the agent in session asks.
pub(super) struct Asked {
    pub(super) connection: u64,
    pub(super) request: Request<Value>,
}

impl Doors {
    /// Listens in `run_dir`. The caller holds the lock: a socket that is there has no listener.
    pub(super) fn open(settings: &GuardSettings) -> Result<Self, Error> {
        let path = settings.socket();
        let fail = || Error::system(format!("listen on {}", path.display()));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail()(error)),
            _ => {}
        }
        // Credentials are checked on every connection; the mode only keeps others from knocking.
        let before = umask(Mode::from_bits_truncate(0o117));
        let listener = UnixListener::bind(&path);
        umask(before);
        let listener = listener.map_err(fail())?;
        listener.set_nonblocking(true).map_err(fail())?;
        if geteuid().is_root() {
            lchown(&path, None, settings.service_gid).map_err(fail())?;
        }
        Ok(Self { listener, service_uid: settings.service_uid, connections: Vec::new(), agent: None, counter: 0 })
    }

    /// What to wait for: descriptors to read from, and those that can be written to again.
    pub(super) fn watched(&self) -> (Vec<BorrowedFd<'_>>, Vec<BorrowedFd<'_>>) {
        let mut read: Vec<_> = self.connections.iter().map(|connection| connection.stream.as_fd()).collect();
        read.push(self.listener.as_fd());
        if let (Some(agent), true) = (&self.agent, self.connections.iter().any(Connection::is_waiting)) {
            read.push(agent.pidfd.as_fd());
        }
        let unsent = self.connections.iter().filter(|connection| !connection.unsent.is_empty());
        (read, unsent.map(|connection| connection.stream.as_fd()).collect())
    }

    /// Takes in everything that is there; never waits.
    pub(super) fn turn(&mut self, status: &GuardStatus) -> Vec<Asked> {
        self.accept();
        let mut asked = Vec::new();
        for index in 0..self.connections.len() {
            self.connections[index].read();
            if matches!(self.connections[index].stage, Stage::New)
                && !self.connections[index].broken
                && let Some(line) = self.connections[index].line()
            {
                self.greet(index, &line, status);
            }
        }
        // Who has gone away meanwhile is let in no more, and keeps nobody out. Of several of one process the newest stays.
        self.connections.retain(|connection| !connection.broken || matches!(connection.stage, Stage::Session));
        while self.admit(status) {}
        // While another agent is let in, the former one is being killed: it has nothing more to say.
        let heard = !self.connections.iter().any(Connection::is_waiting);
        for index in 0..self.connections.len() {
            while heard
                && matches!(self.connections[index].stage, Stage::Session)
                && let Some(line) = self.connections[index].line()
            {
                asked.extend(self.hear(index, &line, status));
            }
        }
        for connection in &mut self.connections {
            connection.flush();
        }
        self.connections.retain(|connection| !connection.is_over());
        asked
    }

    /// Sends `answer` on a connection that may be gone by now.
    pub(super) fn send(&mut self, connection: u64, answer: &Answer) {
        if let Some(connection) = self.connections.iter_mut().find(|candidate| candidate.id == connection) {
            connection.send(answer);
        }
    }

    /// Tells the agent in session, if it is connected.
    pub(super) fn push(&mut self, status: &GuardStatus) {
        for connection in self.connections.iter_mut().filter(|connection| matches!(connection.stage, Stage::Session)) {
            connection.send(&Answer::Status(status.clone()));
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let Ok(peer) = getsockopt(&stream, PeerCredentials) else { continue };
            let known = peer.uid() == 0 || peer.uid() == geteuid().as_raw() || Some(peer.uid()) == self.service_uid;
            if !known || stream.set_nonblocking(true).is_err() {
                tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a stranger's connection is refused");
                continue;
            }
            self.make_room();
            self.counter += 1;
            let (id, peer) = (self.counter, Pid::from_raw(peer.pid()));
            // From the socket where the kernel can (6.5): then it is the very process that connected. Else at once, before its id is given away.
            let pidfd = getsockopt(&stream, PeerPidfd).or_else(|_| kernel::pidfd_open(peer)).ok();
            self.connections.push(Connection {
                id,
                stream,
                peer,
                pidfd,
                stage: Stage::New,
                unread: Vec::new(),
                unsent: Vec::new(),
                broken: false,
            });
        }
    }

    fn make_room(&mut self) {
        if self.connections.len() >= MOST_CONNECTIONS
            && let Some(oldest) = self.connections.iter().position(|connection| !matches!(connection.stage, Stage::Session))
        {
            self.connections.remove(oldest);
        }
    }

    fn greet(&mut self, index: usize, line: &[u8], status: &GuardStatus) {
        let connection = &mut self.connections[index];
        if let Some(why) = version_of(line).and_then(|version| mismatch(VERSION, version)) {
            return connection.reject(why);
        }
        match serde_json::from_slice(line) {
            Ok(Hello::Query { .. }) => {
                connection.send(&Answer::Welcome { protocol: VERSION, status: status.clone() });
                connection.stage = Stage::Leaving;
            }
            Ok(Hello::Session { agent, .. }) => match self.knock(index) {
                Ok(()) => self.connections[index].stage = Stage::Waiting { agent },
                Err(why) => self.connections[index].reject(why),
            },
            Err(error) => connection.reject(format!("this is no greeting: {error}")),
        }
    }

    /// A new agent: the former one is killed, unless it is the same process.
    fn knock(&self, index: usize) -> Result<(), String> {
        let Connection { peer, pidfd, .. } = &self.connections[index];
        let peer = *peer;
        if peer.as_raw() <= 0 || pidfd.is_none() {
            return Err("the guard cannot see your process: it has ended or lives in another PID namespace".to_owned());
        }
        if self.connections.iter().any(|connection| connection.is_waiting() && connection.peer != peer) {
            return Err("another agent is being let in".to_owned());
        }
        if let Some(former) = self.agent.as_ref().filter(|former| former.pid != peer && former.lives()) {
            if former.pid == getpid() || former.pid == Pid::from_raw(1) {
                return Err(format!("the former agent is process {}, which this guard does not kill", former.pid));
            }
            tracing::warn!(pid = former.pid.as_raw(), agent = %former.incarnation, "a new agent takes the session: the former one is killed");
            kernel::pidfd_signal(former.pidfd.as_fd(), Signal::SIGKILL).map_err(|error| format!("kill the former agent: {error}"))?;
        }
        Ok(())
    }

    /// Lets a waiting agent in once nothing is in its way; returns whether it did.
    fn admit(&mut self, status: &GuardStatus) -> bool {
        let Some(index) = self.connections.iter().position(Connection::is_waiting) else { return false };
        let peer = self.connections[index].peer;
        if self.agent.as_ref().is_some_and(|former| former.pid != peer && former.lives()) {
            return false;
        }
        // The same process again, or a dead one's: its old connection has nothing more to say.
        for connection in self.connections.iter_mut().filter(|connection| matches!(connection.stage, Stage::Session)) {
            connection.stage = Stage::Leaving;
        }
        let connection = &mut self.connections[index];
        if let (Stage::Waiting { agent }, Some(pidfd)) = (std::mem::replace(&mut connection.stage, Stage::Session), connection.pidfd.take())
        {
            tracing::info!(pid = peer.as_raw(), %agent, "an agent has the session");
            self.agent = Some(Agent { incarnation: agent, pid: peer, pidfd });
            connection.send(&Answer::Welcome { protocol: VERSION, status: status.clone() });
        }
        true
    }

    fn hear(&mut self, index: usize, line: &[u8], status: &GuardStatus) -> Option<Asked> {
        let connection = &mut self.connections[index];
        match serde_json::from_slice::<Request<Value>>(line) {
            Ok(request) if connection.broken && !only_ends(&request.verb) => {
                tracing::info!(id = request.id, "who asked this has gone away: it is not done");
                None
            }
            Ok(request) if self.agent.as_ref().is_some_and(|agent| agent.incarnation == request.agent) => {
                Some(Asked { connection: connection.id, request })
            }
            Ok(request) => {
                let why = format!("agent {} is not in session", request.agent);
                connection.send(&Answer::Refused { id: request.id, why, status: status.clone() });
                None
            }
            Err(error) => {
                connection.reject(format!("this is no request: {error}"));
                None
            }
        }
    }
}

impl Agent {
    fn lives(&self) -> bool {
        !kernel::is_readable(self.pidfd.as_fd())
    }
}

impl Connection {
    fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting { .. })
    }

    fn is_over(&self) -> bool {
        self.broken || (matches!(self.stage, Stage::Leaving) && self.unsent.is_empty())
    }

    fn reject(&mut self, why: String) {
        self.send(&Answer::Rejected { why });
        self.stage = Stage::Leaving;
    }

    fn send(&mut self, answer: &Answer) {
        self.unsent.extend(serde_json::to_vec(answer).unwrap_or_default());
        self.unsent.push(b'\n');
        self.flush();
        // A peer that does not read has lost its connection, not its session.
        self.broken |= self.unsent.len() > MOST_UNSENT;
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.broken {
            match self.stream.write(&self.unsent) {
                Ok(0) => self.broken = true,
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
    }

    /// Takes in what has come.
    fn read(&mut self) {
        let mut buffer = [0; 4096];
        while self.unread.len() <= LONGEST_LINE {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.broken = true;
                    return;
                }
                Ok(read) => self.unread.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
        // A line without an end; nor does our agent send so much ahead.
        self.broken = true;
    }

    /// The next whole line.
    fn line(&mut self) -> Option<Vec<u8>> {
        let end = self.unread.iter().position(|byte| *byte == b'\n')?;
        Some(self.unread.drain(..=end).collect())
    }
}
