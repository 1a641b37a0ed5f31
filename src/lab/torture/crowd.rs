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
    cell::Cell,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
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
    stop: Arc<AtomicBool>,
    entries: Arc<Mutex<Vec<Entry>>>,
    thread: Option<JoinHandle<()>>,
}

/// What the hands of all clients share.
pub(super) struct Shared {
    pub(super) login: Login,
    /// How many appends were chosen so far.
    pub(super) appended: Cell<u64>,
    next: Cell<u64>,
    stop: Arc<AtomicBool>,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl Shared {
    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// A number that no other transaction of the run has.
    pub(super) fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    pub(super) fn note(&self, entry: Entry) {
        lock(&self.entries).push(entry);
    }
}

impl Crowd {
    /// Starts all clients in a network; the tables of [`super::ground`] have to be there. `seed` chooses what they do.
    ///
    /// # Errors
    /// When the network cannot be entered.
    pub fn start(network: &Network, servers: Vec<Server>, login: &Login, seed: u64) -> Result<Self> {
        let (stop, entries) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (login, flag, shared_entries) = (login.clone(), stop.clone(), entries.clone());
        let work = move || async move {
            let shared = Rc::new(Shared { login, appended: Cell::new(0), next: Cell::new(0), stop: flag, entries: shared_entries });
            let all = CLIENTS.iter().flat_map(|client| servers.iter().map(move |server| (client, server))).zip(1..);
            let hand = |(((client, kind), server), part): ((&(&str, Kind), &Server), u64)| Hand {
                shared: shared.clone(),
                client: (*client).to_owned(),
                kind: *kind,
                server: server.clone(),
                lots: Lots::new(seed, part),
                session: None,
                rests_until: Moment::ZERO,
            };
            let tasks: Vec<_> = all.map(|part| spawn_local(hand(part).work())).collect();
            for task in tasks {
                // It ends by the stop flag alone.
                let _ = task.await;
            }
        };
        let thread = sql::thread("lab-crowd", network, work).context("start the clients")?;
        Ok(Self { stop, entries, thread: Some(thread) })
    }

    /// Looks at what they have so far, in the order of the ends.
    pub fn look<T>(&self, look: impl FnOnce(&[Entry]) -> T) -> T {
        look(&lock(&self.entries))
    }

    /// Whoever acknowledged a write since a moment, if anybody did: the newest one.
    pub fn writes_to(&self, since: Moment) -> Option<String> {
        self.look(|entries| {
            let mut newest = entries.iter().rev().take_while(|entry| entry.at > since);
            newest.find(|entry| entry.is_acknowledged() && entry.writes()).map(|entry| entry.node.clone())
        })
    }

    /// Stops them and takes what they have.
    pub fn stop(mut self) -> Vec<Entry> {
        self.end();
        std::mem::take(&mut *lock(&self.entries))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // A panic there has been printed; what was written down still counts.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(entries: &Mutex<Vec<Entry>>) -> MutexGuard<'_, Vec<Entry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}
