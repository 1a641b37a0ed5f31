//! All clients of a run at work, on one thread of a host: each of them at every server at once.

use super::{
    super::{
        host::Network,
        sql::{self, Login, Server},
    },
    hand::Hand,
    history::Entry,
    lots::Lots,
};
use crate::model::moment::Moment;
use anyhow::{Context, Result};
use std::{
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};
use tokio::task::spawn_local;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Inserts rows.
    Rows,
    /// Appends to lists and reads them.
    Lists,
    /// Moves money and looks at all of it.
    Bank,
}

/// Those of one crowd.
const CLIENTS: [(&str, Kind); 6] = [
    ("rows", Kind::Rows),
    ("lists-1", Kind::Lists),
    ("lists-2", Kind::Lists),
    ("lists-3", Kind::Lists),
    ("bank-1", Kind::Bank),
    ("bank-2", Kind::Bank),
];

/// The clients at work. Dropping it stops them too.
#[derive(Debug)]
pub struct Crowd {
    /// Begins the names of its clients.
    name: String,
    stop: Arc<AtomicBool>,
    common: Common,
    thread: Option<JoinHandle<()>>,
}

/// What all crowds of a run have in common.
#[derive(Clone, Debug, Default)]
struct Common {
    entries: Arc<Mutex<Vec<Entry>>>,
    /// The newest number of a transaction.
    newest: Arc<AtomicU64>,
    /// How many appends were chosen so far.
    appended: Arc<AtomicU64>,
    /// Clients that panicked.
    broken: Arc<Mutex<Vec<String>>>,
}

/// What clients did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Their transactions, in the order of their ends.
    pub entries: Vec<Entry>,
    /// Those that panicked, for people: what they did is not all here.
    pub broken: Vec<String>,
}

/// What the hands of all clients of a crowd share.
pub(super) struct Shared {
    pub(super) login: Login,
    stop: Arc<AtomicBool>,
    common: Common,
}

impl Shared {
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// A number that no other transaction of the run has.
    pub(super) fn number(&self) -> u64 {
        self.common.newest.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// How many appends were chosen so far.
    pub(super) fn appended(&self) -> u64 {
        self.common.appended.load(Ordering::SeqCst)
    }

    pub(super) fn appends(&self) {
        self.common.appended.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn note(&self, entry: Entry) {
        lock(&self.common.entries).push(entry);
    }
}

impl Crowd {
    /// Starts all clients in a network; the tables of [`super::ground`] have to be there. `seed` chooses what they do.
    ///
    /// # Errors
    /// When the network cannot be entered.
    pub fn start(network: &Network, servers: Vec<Server>, login: &Login, seed: u64) -> Result<Self> {
        Self::begin("main", network, servers, login, seed, Common::default())
    }

    /// Starts as many clients again that work at one server from that server's own host, on the same lists and accounts. What they do goes
    /// into the history of this crowd. `name` has to be one of its own.
    ///
    /// # Errors
    /// As [`Crowd::start`].
    pub fn island(&self, name: &str, network: &Network, server: Server, login: &Login, seed: u64) -> Result<Self> {
        Self::begin(name, network, vec![server], login, seed, self.common.clone())
    }

    fn begin(name: &str, network: &Network, servers: Vec<Server>, login: &Login, seed: u64, common: Common) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Shared { login: login.clone(), stop: stop.clone(), common: common.clone() };
        let crowd = name.to_owned();
        let work = move || async move {
            let broken = shared.common.broken.clone();
            let shared = Rc::new(shared);
            let all = CLIENTS.iter().flat_map(|client| servers.iter().map(move |server| (client, server))).zip(1..);
            let hand = |(((client, kind), server), part): ((&(&str, Kind), &Server), u64)| {
                let name = format!("{crowd}-{client}");
                let hand = Hand {
                    shared: shared.clone(),
                    client: name.clone(),
                    kind: *kind,
                    server: server.clone(),
                    lots: Lots::new(seed, part),
                    session: None,
                    rests_until: Moment::ZERO,
                };
                (format!("{name}, its hand at {},", server.node), spawn_local(hand.work()))
            };
            let tasks: Vec<_> = all.map(hand).collect();
            for (name, task) in tasks {
                // It ends by the stop flag alone; else it has panicked.
                if task.await.is_err() {
                    lock(&broken).push(name);
                }
            }
        };
        let thread = sql::thread("lab-crowd", network, work).context("start the clients")?;
        Ok(Self { name: name.to_owned(), stop, common, thread: Some(thread) })
    }

    /// Whoever acknowledged a write of this crowd since a moment, if anybody did: the newest one.
    pub fn writes_to(&self, since: Moment) -> Option<String> {
        let entries = lock(&self.common.entries);
        let mut newest = entries.iter().rev().take_while(|entry| entry.at > since);
        let ours = |entry: &&Entry| entry.client.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with('-'));
        newest.find(|entry| ours(entry) && entry.is_acknowledged() && entry.writes()).map(|entry| entry.node.clone())
    }

    /// Stops them and takes the history, that of its islands too. Those have to be stopped before.
    pub fn stop(mut self) -> Told {
        self.end();
        let Common { entries, broken, .. } = &self.common;
        Told { entries: std::mem::take(&mut *lock(entries)), broken: std::mem::take(&mut *lock(broken)) }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // What was written down still counts.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            lock(&self.common.broken).push(format!("the thread of {}", self.name));
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
