//! Looks at the nodes and at etcd all the time, beside what is done to them.

use crate::{
    api::{
        client::{Client, Event},
        status::Status,
    },
    clock,
    lab::{Lab, MemberLook},
    model::moment::{Moment, Span},
};
use anyhow::{Context, Result};
use futures_util::future::join_all;
use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Scope},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// Between two looks at a node.
const NODES: Duration = Duration::from_millis(250);
/// Between two looks at etcd.
const ETCD: Duration = Duration::from_millis(500);
/// How long an answer may take.
const GLANCE: Span = Span::from_millis(400);
/// So many of the newest events are kept.
const KEPT: usize = 500;

/// One event, as a node told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// When it was heard, by our clock.
    pub(super) at: Moment,
    /// Who told it.
    pub(super) node: String,
    /// As [`crate::agent::handle::EventNews`] has it.
    pub(super) kind: String,
    /// Its id.
    pub(super) id: String,
    /// The sentence.
    pub(super) text: String,
}

/// What was seen last.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// What each node says of itself, with when; `None` while it says nothing.
    pub(super) nodes: BTreeMap<String, Option<(Moment, Status)>>,
    /// How each etcd member is.
    pub(super) etcd: BTreeMap<String, MemberLook>,
    /// The newest events, oldest first.
    pub(super) told: VecDeque<Told>,
}

/// Looks at the nodes and at etcd all the time.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: Mutex<Seen>,
    stop: AtomicBool,
}

/// Ends a [`Watch`] when dropped.
pub(super) struct Watching<'a>(&'a Watch);

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

impl Watch {
    /// What was seen last.
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins; ends soon after what it returns is dropped, which has to happen within the scope.
    #[must_use]
    pub(super) fn start<'scope>(&'scope self, lab: &'scope Lab, scope: &'scope Scope<'scope, '_>) -> Watching<'scope> {
        scope.spawn(move || self.look_at_nodes(lab));
        scope.spawn(move || self.look_at_etcd(lab));
        Watching(self)
    }

    fn goes(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn look_at_etcd(&self, lab: &Lab) {
        // Sockets of this thread belong to the clients' host from now on.
        if lab.client().network().enter().is_err() {
            return;
        }
        while self.goes() {
            for member in lab.etcd().members() {
                let look = if member.host.is_on() { lab.etcd().look(member, GLANCE) } else { MemberLook::Silent };
                self.seen().etcd.insert(member.name.clone(), look);
            }
            thread::sleep(ETCD);
        }
    }

    fn look_at_nodes(&self, lab: &Lab) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        let nodes = || lab.nodes().iter().map(|node| (node.name.clone(), node.agent_socket()));
        let looks = join_all(nodes().map(|(name, socket)| self.look_at(name, socket)));
        let listens = join_all(nodes().map(|(name, socket)| self.listen_to(name, socket)));
        runtime.block_on(async { tokio::join!(looks, listens) });
    }

    async fn look_at(&self, node: String, socket: PathBuf) {
        let client = Client::unix(&socket).map(|client| client.within(GLANCE));
        while self.goes() {
            let status = match &client {
                Ok(client) => client.get_json::<Status>("/v1/status").await.ok(),
                Err(_) => None,
            };
            self.seen().nodes.insert(node.clone(), status.map(|status| (clock::boot(), status)));
            sleep(NODES).await;
        }
    }

    async fn listen_to(&self, node: String, socket: PathBuf) {
        let mut after = None;
        while self.goes() {
            // An agent that is away is asked again.
            let _ = self.listen(&node, &socket, &mut after).await;
            sleep(NODES).await;
        }
    }

    async fn listen(&self, node: &str, socket: &std::path::Path, after: &mut Option<String>) -> Result<()> {
        let client = Client::unix(socket)?;
        let asked = timeout(GLANCE.to_std(), client.events(after.as_deref())).await;
        let mut events = asked.context("no answer")??;
        while self.goes() {
            // Nothing is lost by giving up: what was received stays with the stream.
            let Ok(event) = timeout(NODES, events.next()).await else { continue };
            match event? {
                None => return Ok(()),
                Some(Event::Missed) => {}
                Some(Event::News(id, news)) => {
                    *after = Some(id);
                    let told = Told { at: clock::boot(), node: node.to_owned(), kind: news.kind, id: news.id, text: news.text };
                    self.tell(told);
                }
            }
        }
        Ok(())
    }

    fn tell(&self, told: Told) {
        let mut seen = self.seen();
        // All nodes see the same record change: once is enough.
        let again = told.kind == "leader" && seen.told.iter().rev().take(30).any(|other| other.kind == "leader" && other.text == told.text);
        if again {
            return;
        }
        if seen.told.len() == KEPT {
            seen.told.pop_front();
        }
        seen.told.push_back(told);
    }
}
