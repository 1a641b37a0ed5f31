//! The measuring client, and the island writer, which is the same client with one server, a place beside it, and patience.
//!
//! Like the client of the comparison with the peers: an insert every 10 ms, all servers tried at once, a statement given
//! up after 200 ms. So the cluster is measured and not an endpoint. A server that is in recovery is only asked whether it
//! still is, every 10 ms. Whoever says that it is not gets writes, also when there are two: the client is adversarial.
//!
//! It runs on a thread of its own in the network of a lab host, and reads one clock, the lab's.

use super::{
    host::Network,
    journal::{Ack, Indeterminate, Journal},
    link::Link,
    sql::{self, Login, Server, database_error},
};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use anyhow::{Context, Result};
use std::{
    cell::Cell,
    future::Future,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};
use tokio::{
    task::spawn_local,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_postgres::{Error, Statement};

/// Between two writes.
pub const EVERY: Span = Span::from_millis(10);
/// How long the measuring client's statement may take before it is given up.
pub const GIVE_UP: Span = Span::from_millis(200);
/// How long an island writer waits: as long as a frozen host may stay frozen, so that it hears what is acknowledged after the thaw.
const PATIENCE: Span = Span::from_secs(600);
/// How often a waiting client looks whether it is to stop.
const LOOK_UP: Span = Span::from_millis(50);

/// Returning the timeline tells primaries apart without asking anybody who is one.
const INSERT: &str = "INSERT INTO lab_writes (client, seq, node) VALUES ($1, $2, $3) \
    RETURNING pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_insert_lsn()::text";

const PROBE: &str = "SELECT NOT pg_is_in_recovery()";

/// A client at work. Dropping it stops it too.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    journal: Arc<Mutex<Journal>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts a client named `client` (unique in a run: its rows are told apart by it) in a network.
    ///
    /// # Errors
    /// When the network cannot be entered.
    pub fn start(client: &str, network: &Network, servers: Vec<Server>, login: &Login) -> Result<Self> {
        Self::begin(client, network, servers, login, GIVE_UP)
    }

    /// Starts an adversarial client that goes on writing to one server from that server's own host, and takes every
    /// answer, however late.
    ///
    /// # Errors
    /// As [`Writer::start`].
    pub fn island(client: &str, network: &Network, server: Server, login: &Login) -> Result<Self> {
        Self::begin(client, network, vec![server], login, PATIENCE)
    }

    fn begin(client: &str, network: &Network, servers: Vec<Server>, login: &Login, patience: Span) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let journal = Arc::new(Mutex::new(Journal::new(client)));
        let shared = Shared {
            client: client.to_owned(),
            patience,
            network: network.clone(),
            login: login.clone(),
            stop: stop.clone(),
            journal: journal.clone(),
        };
        let thread = sql::thread("lab-writer", network, move || write_to_all(Rc::new(shared), servers)).context("start a writer")?;
        Ok(Self { stop, journal, thread: Some(thread) })
    }

    /// Looks at what it has so far.
    pub fn look<T>(&self, look: impl FnOnce(&Journal) -> T) -> T {
        look(&lock(&self.journal))
    }

    /// Stops it and takes its journal.
    pub fn stop(mut self) -> Journal {
        self.end();
        std::mem::take(&mut *lock(&self.journal))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // What it wrote down still counts.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            lock(&self.journal).broken.push("its thread".to_owned());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Shared {
    client: String,
    patience: Span,
    network: Network,
    login: Login,
    stop: Arc<AtomicBool>,
    journal: Arc<Mutex<Journal>>,
}

impl Shared {
    /// The answer, unless it takes longer than this client waits, or the client is stopped.
    async fn within_patience<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let end = clock::boot().plus(self.patience);
        tokio::pin!(answer);
        loop {
            if let Ok(answer) = timeout(LOOK_UP.min(self.patience).to_std(), &mut answer).await {
                return Some(answer);
            }
            if self.stop.load(Ordering::SeqCst) || clock::boot() >= end {
                return None;
            }
        }
    }
}

async fn write_to_all(shared: Rc<Shared>, servers: Vec<Server>) {
    let next = Rc::new(Cell::new(1));
    let hand = |server: Server| {
        let name = server.node.clone();
        (name, spawn_local(Hand { shared: shared.clone(), server, next: next.clone(), session: None }.work()))
    };
    let tasks: Vec<_> = servers.into_iter().map(hand).collect();
    for (name, task) in tasks {
        // It ends by the stop flag alone; else it has panicked.
        if task.await.is_err() {
            lock(&shared.journal).broken.push(format!("its hand at {name}"));
        }
    }
}

/// The part of a client that speaks with one server.
struct Hand {
    shared: Rc<Shared>,
    server: Server,
    next: Rc<Cell<u64>>,
    session: Option<Session>,
}

struct Session {
    link: Link,
    probe: Statement,
    insert: Option<Statement>,
    writable: bool,
}

impl Hand {
    async fn work(mut self) {
        let mut ticks = interval(EVERY.to_std());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while !self.shared.stop.load(Ordering::SeqCst) {
            ticks.tick().await;
            if self.prepare().await.is_none() {
                self.session = None;
            } else if self.session.as_ref().is_some_and(|session| session.writable) {
                self.write().await;
            }
        }
    }

    /// Connects where needed, and asks whether the server takes writes; `None` without an answer in time.
    async fn prepare(&mut self) -> Option<()> {
        if self.session.is_none() {
            // The host may have got a new network since.
            self.shared.network.enter().ok()?;
            self.session = timeout(GIVE_UP.to_std(), connect(&self.shared.login, &self.server)).await.ok()?.ok();
        }
        let session = self.session.as_mut()?;
        timeout(GIVE_UP.to_std(), session.ready()).await.ok()?.ok()
    }

    async fn write(&mut self) {
        let Some(session) = &mut self.session else { return };
        let seq = self.next.get();
        self.next.set(seq + 1);
        let (warned, sent) = (session.link.warnings(), clock::boot());
        let answer = self.shared.within_patience(session.insert(&self.shared.client, seq, &self.server.node)).await;
        let at = clock::boot();
        // A cancelled wait for replication comes back as success with a warning (EXP-2).
        let warned = session.link.warnings() != warned;
        let mut journal = lock(&self.shared.journal);
        let why = match answer {
            Some(Ok((tli, lsn))) if !warned => {
                journal.acks.push(Ack { seq, node: self.server.node.clone(), tli, lsn, sent, at });
                return;
            }
            Some(Ok(_)) => "acknowledged with a warning".to_owned(),
            Some(Err(error)) if refused(&error) => {
                journal.refused += 1;
                journal.last_refusal = Some(format!("{}: {:#}", self.server.node, database_error(&error)));
                session.writable = false;
                return;
            }
            Some(Err(error)) => format!("{:#}", database_error(&error)),
            None => format!("given up after {}", at.since(sent)),
        };
        journal.indeterminate.push(Indeterminate { seq, node: self.server.node.clone(), sent, why });
        drop(journal);
        if !warned {
            self.session = None;
        }
    }
}

/// Whether the server says that nothing was done. A connection that it ends (class 57P) may have committed before.
fn refused(error: &Error) -> bool {
    error.as_db_error().is_some_and(|db| !db.code().code().starts_with("57P"))
}

async fn connect(login: &Login, server: &Server) -> Result<Session, Error> {
    let link = Link::open(login, server, GIVE_UP).await?;
    let probe = link.client.prepare(PROBE).await?;
    Ok(Session { link, probe, insert: None, writable: false })
}

impl Session {
    async fn ready(&mut self) -> Result<(), Error> {
        if !self.writable {
            let row = self.link.client.query_one(&self.probe, &[]).await?;
            self.writable = row.try_get(0)?;
        }
        if self.insert.is_none() {
            // On a standby too: a freshly promoted server is written to in one round trip. Before the table is there
            // the statement is refused, and tried again.
            self.insert = match self.link.client.prepare(INSERT).await {
                Ok(statement) => Some(statement),
                Err(error) if refused(&error) => None,
                Err(error) => return Err(error),
            };
        }
        self.writable &= self.insert.is_some();
        Ok(())
    }

    async fn insert(&mut self, client: &str, seq: u64, node: &str) -> Result<(u32, u64), Error> {
        let Some(statement) = &self.insert else { return Ok((0, 0)) };
        let number = i64::try_from(seq).unwrap_or(i64::MAX);
        let row = self.link.client.query_one(statement, &[&client, &number, &node]).await?;
        let (file, lsn): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        Ok(position(&file, &lsn))
    }
}

/// Timeline and position from a WAL file's name and an LSN as PostgreSQL prints it.
pub(super) fn position(file: &str, lsn: &str) -> (u32, u64) {
    let tli = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    let lsn = lsn.parse::<crate::model::lsn::Lsn>().map(|lsn| lsn.get()).unwrap_or_default();
    (tli, lsn)
}

/// Waits until a client has an acknowledgement after a moment, and returns the first one.
///
/// # Errors
/// When there is none within `deadline`.
pub fn next_ack(writer: &Writer, after: Moment, deadline: Span) -> Result<Ack> {
    super::command::wait_until("an acknowledged write", deadline, || {
        writer.look(|journal| journal.acks.iter().rev().take_while(|ack| ack.at > after).last().cloned())
    })
}
