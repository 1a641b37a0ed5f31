//! Policy, intent, history, audit: what is asked of the agent, and what operators change.

use super::{
    caller::Caller,
    problem::Problem,
    routes::{App, Shared},
};
use crate::{
    agent::handle::Asker,
    model::{
        moment::Span,
        policy::ClusterPolicy,
        record::{PolicyRecord, VERSION},
        request::Request,
        term::Term,
    },
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{
        Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// So long the agent may take for a command: longer than its attempts at etcd, shorter than the patience of a client.
const DEADLINE: Span = Span::from_secs(5);

/// The policy in force, with its version as `ETag`; version 0 where etcd holds none.
pub(super) async fn policy(State(app): Shared) -> Result<Response, Problem> {
    let published = app.published()?;
    let stored = published.snapshot.etcd.records.policy.as_ref().map(|stored| stored.record.clone());
    let record = stored.unwrap_or_else(|| PolicyRecord { v: VERSION, version: 0, policy: published.snapshot.policy.clone() });
    Ok(with_version(record))
}

fn with_version(record: PolicyRecord) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{}\"", record.version));
    let mut response = Json(record).into_response();
    if let Ok(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Replaces the policy: the policy itself with `If-Match`, or `{"version": 3, "policy": {…}, "reason": "…"}`.
pub(super) async fn replace_policy(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    may_change(&app, caller)?;
    let mut value: Value = json_body(body)?;
    let matched = headers.get(header::IF_MATCH).map(if_match).transpose()?;
    let mut reason = None;
    let mut named = None;
    if let Some(object) = value.as_object_mut().filter(|object| object.contains_key("policy")) {
        reason = object.get("reason").and_then(Value::as_str).map(str::to_owned);
        named = object.get("version").and_then(Value::as_u64);
        value = object.remove("policy").unwrap_or_default();
    }
    let version = matched.or(named).ok_or_else(|| {
        Problem::new(StatusCode::PRECONDITION_REQUIRED, "version-required", "name the version that is replaced: If-Match, or \"version\"")
    })?;
    let policy = policy_of(value)?;
    let record = app.handle.replace_policy(policy, version, asker(caller, &headers, reason), DEADLINE).await?;
    Ok(with_version(record))
}

fn if_match(value: &HeaderValue) -> Result<u64, Problem> {
    let text = value.to_str().unwrap_or_default().trim().trim_matches('"');
    text.parse().map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "bad-request", "If-Match is no version of a policy"))
}

/// Reads a policy. Every key is tried by itself, so that all faults come at once.
fn policy_of(value: Value) -> Result<ClusterPolicy, Problem> {
    let fault = |key: &str, what: String| json!({ "key": key, "what": what, "remedy": "see `pgbaton config explain`" });
    let Value::Object(object) = &value else {
        return Err(Problem::invalid(vec![fault("", "a policy is a JSON object".to_owned())]));
    };
    let alone = |key: &String, value: &Value| {
        let single = Value::Object([(key.clone(), value.clone())].into_iter().collect());
        serde_json::from_value::<ClusterPolicy>(single).err().map(|error| fault(key, error.to_string()))
    };
    let faults: Vec<Value> = object.iter().filter_map(|(key, value)| alone(key, value)).collect();
    if !faults.is_empty() {
        return Err(Problem::invalid(faults));
    }
    let policy: ClusterPolicy = serde_json::from_value(value).map_err(|error| Problem::invalid(vec![fault("", error.to_string())]))?;
    let faults = crate::model::policy_check::faults(&policy);
    if faults.is_empty() {
        return Ok(policy);
    }
    let faults = faults.into_iter().map(|fault| json!({ "key": fault.key, "what": fault.what, "remedy": fault.remedy }));
    Err(Problem::invalid(faults.collect()))
}

/// The operator request that waits, or null.
pub(super) async fn intent(State(app): Shared) -> Result<Response, Problem> {
    let published = app.published()?;
    let intent = published.snapshot.etcd.records.intent.as_ref().map(|stored| &stored.record);
    Ok(Json(json!({ "intent": intent })).into_response())
}

#[derive(Deserialize)]
struct Wish {
    #[serde(flatten)]
    request: Request,
    term: Term,
    reason: Option<String>,
}

/// Puts an operator request: `{"kind": "remove", "node": "n3", "term": 7, "reason": "…"}`, or another [`Request`]. Accepted is not done: see `/v1/intent`.
pub(super) async fn put_intent(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    may_change(&app, caller)?;
    let mut wish: Wish = json_body(body)?;
    if let Request::Pause { reason, .. } = &mut wish.request {
        *reason = wish.reason.clone().unwrap_or_default();
    }
    let record = app.handle.put_intent(wish.request, wish.term, asker(caller, &headers, wish.reason), DEADLINE).await?;
    Ok((StatusCode::ACCEPTED, Json(record)).into_response())
}

/// Every change of leadership that is kept, newest first.
pub(super) async fn history(State(app): Shared) -> Result<Response, Problem> {
    let history = app.handle.history(DEADLINE).await?;
    Ok(Json(json!({ "history": history })).into_response())
}

#[derive(Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
}

/// The newest operator changes, newest first: `limit` of them, 100 where it is not given, 1,000 at the most.
pub(super) async fn audit(State(app): Shared, page: Result<Query<Page>, QueryRejection>) -> Result<Response, Problem> {
    let Query(page) = page.map_err(|rejection| Problem::new(rejection.status(), "bad-request", rejection.body_text()))?;
    let limit = page.limit.unwrap_or(100).min(1_000);
    let audit = app.handle.audit(limit, DEADLINE).await?;
    Ok(Json(json!({ "audit": audit })).into_response())
}

fn may_change(app: &App, caller: Caller) -> Result<(), Problem> {
    match caller.may_not_change(&app.settings) {
        Some(why) => Err(Problem::new(StatusCode::FORBIDDEN, "not-authorised", why)),
        None => Ok(()),
    }
}

fn asker(caller: Caller, headers: &HeaderMap, reason: Option<String>) -> Asker {
    Asker { actor: caller.actor(headers), from: caller.origin(), reason }
}

fn json_body<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let body = body.map_err(|rejection| Problem::new(rejection.status(), "body", rejection.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| {
        let (status, kind) =
            if error.is_data() { (StatusCode::UNPROCESSABLE_ENTITY, "invalid") } else { (StatusCode::BAD_REQUEST, "not-json") };
        Problem::new(status, kind, error.to_string())
    })
}
