//! `/v1/events`: what changes, live, as server-sent events.
//!
//! `event:` is the kind, `data:` the change as JSON, `id:` what a reader comes back with (`Last-Event-ID`) to hear what it missed.
//! One who reads too slowly is told by an event `missed` how many were skipped.

use super::{problem::Problem, routes::Shared};
use crate::agent::handle::{Heard, Reader};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::stream::unfold;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// So many may listen at once.
pub(super) const LISTENERS: usize = 32;

/// A comment so often, when nothing changes: both ends notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(10);

pub(super) async fn events(State(app): Shared, headers: HeaderMap) -> Response {
    let Ok(place) = Arc::clone(&app.listeners).try_acquire_owned() else {
        let detail = format!("{LISTENERS} clients listen already");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).into_response();
    };
    let after = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let stream = unfold((app.handle.listen(after), place), next);
    Sse::new(stream).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response()
}

type Listener = (Reader, OwnedSemaphorePermit);

async fn next((mut reader, place): Listener) -> Option<(Result<Event, Infallible>, Listener)> {
    let event = match reader.next().await? {
        Heard::Event(id, news) => {
            let data = serde_json::to_string(&news).unwrap_or_default();
            Event::default().id(id).event(news.kind).data(data)
        }
        Heard::Missed(count) => Event::default().event("missed").data(format!("{{\"missed\":{count}}}")),
    };
    Some((Ok(event), (reader, place)))
}
