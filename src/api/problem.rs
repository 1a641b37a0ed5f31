//! Errors under `/v1`, as RFC 9457 describes them.

use crate::agent::handle::Refusal;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

/// What went wrong with a request.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    status: StatusCode,
    /// Names the kind of problem; the last part of its `type`.
    kind: &'static str,
    detail: String,
    more: Map<String, Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), more: Map::new() }
    }

    /// With one more field.
    pub(super) fn with(mut self, key: &str, value: Value) -> Self {
        self.more.insert(key.to_owned(), value);
        self
    }

    pub(super) fn starting() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "starting", "the agent has not decided anything yet; ask again in a moment")
    }

    /// What is wrong with a policy, every fault with its key and its remedy.
    pub(super) fn invalid(faults: Vec<Value>) -> Self {
        let detail = format!("{} faults", faults.len());
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail).with("faults", Value::Array(faults))
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::Invalid(faults) => {
                let faults = faults.iter().map(|fault| json!({ "key": fault.key, "what": fault.what, "remedy": fault.remedy }));
                Self::invalid(faults.collect())
            }
            Refusal::Conflict(_) => Self::new(StatusCode::CONFLICT, "conflict", detail),
            Refusal::NotNow(_) => Self::new(StatusCode::CONFLICT, "refused", detail),
            Refusal::Busy(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail),
            Refusal::Unreachable(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "etcd-unreachable", detail),
            Refusal::Unknown(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, "outcome-unknown", detail),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = self.more;
        body.insert("type".to_owned(), Value::String(format!("urn:pgbaton:problem:{}", self.kind)));
        body.insert("title".to_owned(), Value::String(self.status.canonical_reason().unwrap_or("problem").to_owned()));
        body.insert("status".to_owned(), Value::from(self.status.as_u16()));
        body.insert("detail".to_owned(), Value::String(self.detail));
        let mut response = (self.status, Value::Object(body).to_string()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}
