//! The session with the guard: found, kept, and told of every change of its status.

use super::{event::Event, observe::chain};
use crate::{
    guard::client::Guard,
    model::{moment::Span, node::Incarnation},
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
        let why = match Guard::connect(&socket, agent.clone(), SESSION_LIMIT).await {
            Ok((guard, mut statuses)) => {
                session.send_replace(Some(guard));
                while let Some(status) = statuses.recv().await {
                    if events.send(Event::Guard(status)).await.is_err() {
                        return;
                    }
                }
                session.send_replace(None);
                "the session with the guard ended".to_owned()
            }
            Err(fault) => chain(&fault),
        };
        if events.send(Event::GuardGone { why }).await.is_err() {
            return;
        }
        let rest = tokio::time::sleep(LOOK_EVERY.to_std());
        tokio::select! {
            biased;
            () = started.notified() => {}
            () = rest => {}
        }
    }
}
