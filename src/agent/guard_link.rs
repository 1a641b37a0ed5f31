//! The session with the guard: found, kept, and told of every change of its status.

use super::{event::Event, observe::chain};
use crate::{
    guard::client::Guard,
    model::{instance::GuardStatus, moment::Span, node::Incarnation},
};
use std::{path::PathBuf, sync::Arc};
use tokio::sync::{Notify, mpsc, watch};

/// How long the former agent's death and the greeting may take.
const SESSION_LIMIT: Span = Span::from_secs(10);

/// Between two looks for a guard when nobody has said that one was started.
const LOOK_EVERY: Span = Span::from_millis(500);

/// Keeps the session: publishes each status, and each loss.
pub(super) async fn keep(
    socket: PathBuf,
    agent: Incarnation,
    session: watch::Sender<Option<Guard>>,
    started: Arc<Notify>,
    events: mpsc::Sender<Event>,
) {
    loop {
        match Guard::connect(&socket, agent.clone(), SESSION_LIMIT).await {
            Ok((guard, mut statuses)) => {
                session.send_replace(Some(guard.clone()));
                while let Some(status) = statuses.recv().await {
                    if tell(&guard, status, &events).await.is_err() {
                        return;
                    }
                }
                let unanswered = guard.gave_up();
                let why = if unanswered { "the guard does not answer" } else { "the session with the guard ended" };
                if events.send(Event::GuardGone { why: why.to_owned() }).await.is_err() {
                    return;
                }
                // Who waits for that has been told before.
                session.send_replace(None);
                if unanswered {
                    // It may live: the next session tells.
                    continue;
                }
            }
            Err(fault) => {
                if events.send(Event::GuardGone { why: chain(&fault) }).await.is_err() {
                    return;
                }
            }
        }
        let rest = tokio::time::sleep(LOOK_EVERY.to_std());
        tokio::select! {
            biased;
            () = started.notified() => {}
            () = rest => {}
        }
    }
}

/// Publishes what `guard` said, unless its session has ended by then: nothing that it said before is told after that. `Err`: nobody listens.
///
/// Returns whether it was told.
pub(super) async fn tell(guard: &Guard, status: GuardStatus, events: &mpsc::Sender<Event>) -> Result<bool, ()> {
    let place = events.reserve().await.map_err(drop)?;
    let holds = !guard.has_ended();
    if holds {
        place.send(Event::Guard(status));
    }
    Ok(holds)
}

/// Waits until the end of `guard`'s session was published.
pub(super) async fn told_of_the_end(guard: &Guard, session: &watch::Receiver<Option<Guard>>) {
    let over = |now: &Option<Guard>| now.as_ref().is_none_or(|now| !now.is(guard));
    // Fails when the link itself has ended, and the agent with it.
    drop(session.clone().wait_for(over).await);
}
