//! Observe: what publishes events without being asked: etcd's watch, and the samples of the server.

use super::event::Event;
use crate::{
    clock,
    dcs::{Etcd, Update},
    model::{
        failsafe::Asked,
        instance::{Run, ServerFacts, ServerRole},
        moment::Span,
        node::Incarnation,
    },
    postgres::{self, NotReady, Server, Via, segment::Layout},
};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// How often the server is looked at, and in which run; changed by the loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    /// The run that is alive, and the guard that counts it; `None`: nothing to look at.
    pub(super) run: Option<(Incarnation, Run)>,
    /// Between two looks.
    pub(super) every: Span,
    /// Nothing is awaited: there is time for a look over a new connection.
    pub(super) calm: bool,
}

/// How long one look at the server may take.
const LOOK_LIMIT: Span = Span::from_secs(3);

/// One look in so many is made over a new connection: a postmaster that is hung lets nobody new in (scenario 124).
const FRESH_EVERY: u32 = 20;

/// How the WAL of the present run is laid out. Read once a run: it stays what `initdb` made it, and no directory is replaced under a run.
#[derive(Debug, Default)]
struct LaidOut(Option<(Incarnation, Run, Layout)>);

impl LaidOut {
    /// What `read` says, asked until it says anything of `run`.
    async fn of(&mut self, guard: &Incarnation, run: Run, read: impl AsyncFnOnce() -> Option<Layout>) -> Option<Layout> {
        if self.0.as_ref().is_none_or(|(of, known, _)| of != guard || *known != run) {
            self.0 = read().await.map(|layout| (guard.clone(), run, layout));
        }
        self.0.as_ref().map(|(_, _, layout)| *layout)
    }
}

/// How the server's WAL is laid out on disk; `None` where nothing says so, or the disk does not answer.
pub(super) async fn layout(server: &Server) -> Option<Layout> {
    postgres::segment::layout(server.settings()).await.ok().flatten()
}

/// Hands on what other nodes ask, until every handle is gone.
pub(super) async fn asks(mut asks: mpsc::Receiver<Asked>, events: mpsc::Sender<Event>) {
    while let Some(asked) = asks.recv().await {
        drop(events.send(Event::Asked(asked)).await);
    }
    std::future::pending::<()>().await;
}

/// Samples the server at the pace that the loop sets, until the loop ends.
pub(super) async fn server(server: Arc<Server>, mut pace: watch::Receiver<Pace>, events: mpsc::Sender<Event>) {
    let (mut looks, mut laid_out, mut closed) = (0_u32, LaidOut::default(), false);
    loop {
        let now = pace.borrow_and_update().clone();
        if let Some((guard, run)) = now.run {
            looks = looks.wrapping_add(1);
            let via = if closed || (now.calm && looks.is_multiple_of(FRESH_EVERY)) { Via::Fresh } else { Via::Kept };
            let asked = clock::boot();
            let seen = server.probe(run, via, LOOK_LIMIT).await;
            // A kept session says nothing of whether anybody new is let in: that is asked until somebody is.
            closed = via == Via::Fresh && matches!(&seen, Err(fault) if is_no_answer(fault));
            let event = match seen {
                Ok(facts) => Event::Server { facts: normal(facts, laid_out.of(&guard, run, async || layout(&server).await).await), asked },
                Err(fault) => {
                    let inconsistent = matches!(fault, postgres::Error::NotReady { why: NotReady::NotConsistent, .. });
                    Event::ServerSilent { run, why: chain(&fault), inconsistent }
                }
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
        let rest = tokio::time::sleep(now.every.to_std());
        tokio::select! {
            biased;
            changed = pace.changed() => if changed.is_err() { return },
            () = rest => {}
        }
    }
}

/// Whether nobody answered at all. Whoever is refused has met a process that the postmaster made.
fn is_no_answer(fault: &postgres::Error) -> bool {
    matches!(fault, postgres::Error::Timeout { .. } | postgres::Error::NotListening { .. } | postgres::Error::Gone { .. })
}

/// One place in the log may have two numbers: before and behind the header of a page. Boundaries are compared by the latter.
pub(super) fn normal(mut facts: ServerFacts, layout: Option<Layout>) -> ServerFacts {
    if let (ServerRole::Standby { replay, .. }, Some(layout)) = (&mut facts.role, layout) {
        *replay = layout.boundary(*replay);
    }
    facts
}

/// Turns etcd's updates into events, until the loop ends.
pub(super) async fn etcd(etcd: Etcd, events: mpsc::Sender<Event>) {
    let (updates, mut updated) = mpsc::channel(64);
    let watching = etcd.watch(updates);
    let forwarding = async {
        while let Some(update) = updated.recv().await {
            if events.send(event(update)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(watching, forwarding);
}

fn event(update: Update) -> Event {
    match update {
        // Whether it went back is found again by the state, which knows the file's floors too.
        Update::Listed { listing, .. } => Event::Listed { entries: listing.entries, revision: listing.revision, sent: listing.sent_at },
        Update::Changed { changes, revision } => Event::Changed { changes, revision },
        Update::Silent { why, .. } => Event::EtcdSilent { why },
    }
}

/// An error with its causes, in one line.
pub(crate) fn chain(fault: &dyn std::error::Error) -> String {
    let mut text = fault.to_string();
    let mut cause = fault.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_layout_of_wal_is_read_once_a_run() {
        let (small, default) = (Layout { segment: crate::model::lsn::Bytes::new(1 << 20), ..Layout::DEFAULT }, Layout::DEFAULT);
        let [guard, next]: [Incarnation; 2] = ["g1", "g2"].map(|name| name.parse().expect("incarnation"));
        let mut laid_out = LaidOut::default();
        assert_eq!(laid_out.of(&guard, Run(1), async || None).await, None, "nothing says so yet");
        assert_eq!(laid_out.of(&guard, Run(1), async || Some(small)).await, Some(small));
        assert_eq!(laid_out.of(&guard, Run(1), async || Some(default)).await, Some(small));
        assert_eq!(laid_out.of(&guard, Run(2), async || Some(default)).await, Some(default), "another run may have another directory");
        assert_eq!(laid_out.of(&next, Run(2), async || None).await, None, "another guard counts anew");
    }
}
