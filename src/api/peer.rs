//! `/v1/peer/…`: what other nodes ask. Whoever holds the peer key is answered, from wherever he asks; nobody else is.

use super::{problem::Problem, routes::Shared};
use crate::{
    model::moment::Span,
    peers::{
        LARGEST, SEAL,
        door::{Entry, Refused},
    },
};
use axum::{
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};

/// Who asks waits no longer.
const LIMIT: Span = Span::from_millis(1_300);

/// A holder that etcd does not answer asks not to be followed. The answer leaves once it stands in the node file.
pub(super) async fn failsafe(State(app): Shared, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Response, Problem> {
    let door = app.settings.door.as_ref().ok_or_else(|| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-peer-key", "this node has no peer key: see [api] peer_key_file")
    })?;
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", format!("a question has {LARGEST} bytes at the most"))
        }
        status => Problem::new(status, "body", rejection.body_text()),
    })?;
    let seal = headers.get(SEAL).and_then(|value| value.to_str().ok());
    let (nonce, answer) = match door.open(&body, seal).map_err(refused)? {
        Entry::Again(nonce) => (nonce, None),
        Entry::New(ask) => {
            let nonce = ask.nonce.clone();
            let answer = app.handle.bind(ask, LIMIT).await.ok_or_else(|| {
                Problem::new(StatusCode::GATEWAY_TIMEOUT, "no-answer", format!("this node has not decided within {LIMIT}"))
            })?;
            (nonce, Some(answer))
        }
    };
    let (body, seal) = door.reply(&nonce, answer);
    Ok(([(header::CONTENT_TYPE.as_str(), "application/json"), (SEAL, seal.as_str())], body).into_response())
}

fn refused(why: Refused) -> Problem {
    let (status, kind) = match why {
        Refused::Forged => (StatusCode::UNAUTHORIZED, "forged"),
        Refused::Unreadable => (StatusCode::BAD_REQUEST, "not-json"),
        Refused::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "misdirected"),
        Refused::Replayed => (StatusCode::CONFLICT, "replayed"),
    };
    Problem::new(status, kind, format!("the question is not let in: {why}"))
}
