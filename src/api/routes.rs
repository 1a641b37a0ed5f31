//! Every path on one screen, and what is asked of every request before it is answered.

use super::{
    Settings,
    caller::Caller,
    events,
    health::{self, Check},
    operations, peer,
    problem::Problem,
    status::Status,
};
use crate::{
    agent::handle::{Handle, Published},
    clock,
    peers::{LARGEST, PATH},
    telemetry::metrics::API_REQUEST,
};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// No request is larger: a policy with thousands of `pg_hba.conf` lines fits.
pub(super) const LARGEST_BODY: usize = 256 << 10;

/// No answer takes longer, the request's body included.
const LONGEST: Duration = Duration::from_secs(10);

/// What every handler sees.
pub(super) struct App {
    pub(super) settings: Settings,
    pub(super) handle: Handle,
    /// Places for those who listen for long.
    pub(super) listeners: Arc<Semaphore>,
}

impl App {
    pub(super) fn new(settings: Settings, handle: Handle) -> Self {
        Self { settings, handle, listeners: Arc::new(Semaphore::new(events::LISTENERS)) }
    }

    pub(super) fn published(&self) -> Result<Arc<Published>, Problem> {
        self.handle.published().ok_or_else(Problem::starting)
    }
}

pub(super) type Shared = State<Arc<App>>;

pub(super) fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/status", get(status))
        .route("/members", get(members))
        .route("/reasons", get(reasons))
        .route("/records", get(records))
        .route("/events", get(events::events))
        .route("/policy", get(operations::policy).put(operations::replace_policy))
        .route("/intent", get(operations::intent).post(operations::put_intent))
        .route("/history", get(operations::history))
        .route("/audit", get(operations::audit))
        .route("/peer/failsafe", post(peer::failsafe).layer(DefaultBodyLimit::max(LARGEST)))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method);
    Router::new()
        .nest("/v1", v1)
        .route("/metrics", get(metrics))
        .fallback(check)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), gate))
        .with_state(app)
}

/// Before every request: whether he is answered. After it: how long that took.
async fn gate(State(app): Shared, request: Request, next: Next) -> Response {
    let begun = clock::boot();
    let (method, path) = (request.method().clone(), pattern(request.uri().path()));
    // Peers prove who they are by their key.
    let allowed = path == PATH || request.extensions().get::<Caller>().is_some_and(|caller| caller.may_ask(&app.settings));
    let response = if allowed {
        match tokio::time::timeout(LONGEST, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request took too long; look before repeating a change")
                .into_response(),
        }
    } else {
        Problem::new(StatusCode::FORBIDDEN, "not-allowed", "requests from this address are not answered: see [api] allow").into_response()
    };
    if let Some(metrics) = &app.settings.metrics {
        let status = response.status();
        let labels = [word(&method), path, status.as_str()];
        metrics.observe(API_REQUEST, &labels, clock::boot().since(begun).as_secs_f64());
    }
    response
}

/// The path as a label: those that nobody serves count as one.
fn pattern(path: &str) -> &'static str {
    const PATHS: [&str; 20] = [
        "/",
        "/primary",
        "/master",
        "/read-write",
        "/leader",
        "/replica",
        "/read-only",
        "/health",
        "/metrics",
        "/v1/status",
        "/v1/members",
        "/v1/reasons",
        "/v1/records",
        "/v1/events",
        "/v1/policy",
        "/v1/intent",
        "/v1/history",
        "/v1/audit",
        PATH,
        "other",
    ];
    PATHS.iter().find(|known| **known == path).copied().unwrap_or("other")
}

/// The method as a label: clients may invent some.
fn word(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        "POST" => "POST",
        "PUT" => "PUT",
        _ => "other",
    }
}

/// The paths of load balancers. Any other path with a safe method is answered as Patroni does: 503 with the node's state.
async fn check(State(app): Shared, method: Method, uri: Uri) -> Response {
    if ![Method::GET, Method::HEAD, Method::OPTIONS].contains(&method) {
        return Problem::new(StatusCode::NOT_IMPLEMENTED, "not-implemented", "nothing can be changed under this path").into_response();
    }
    let published = app.handle.published();
    // Read after everything else: what is compared with it may only have become older.
    let now = clock::boot();
    let passes = Check::of(uri.path()).passes(uri.query().unwrap_or_default(), published.as_deref(), now);
    let status = if passes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = status.into_response();
    if method == Method::GET {
        response = (status, health::body(published.as_deref()).to_string()).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Some(published) = &published {
        number(&mut response, "x-pgbaton-age-ms", now.since(published.snapshot.now.boot).as_millis());
        if let Some(writes) = published.decision.routing.writes {
            number(&mut response, "x-pgbaton-lease-left-ms", writes.until.since(now).as_millis());
        }
    }
    response
}

fn number(response: &mut Response, name: &'static str, value: u64) {
    response.headers_mut().insert(name, HeaderValue::from(value));
}

async fn status(State(app): Shared) -> Result<Json<Status>, Problem> {
    let published = app.published()?;
    Ok(Json(Status::of(&published, clock::boot(), clock::wall())))
}

async fn members(State(app): Shared) -> Result<Response, Problem> {
    let published = app.published()?;
    let status = Status::of(&published, clock::boot(), clock::wall());
    Ok(Json(json!({ "cluster": status.cluster, "term": status.term, "members": status.members })).into_response())
}

async fn reasons(State(app): Shared) -> Result<Response, Problem> {
    let published = app.published()?;
    let s = &published.snapshot;
    let age = clock::boot().since(s.now.boot).as_secs_f64();
    let reasons = &published.decision.reasons;
    Ok(Json(json!({ "node": s.me.node, "at": s.fresh.wall, "age_seconds": age, "term": s.file.term, "reasons": reasons })).into_response())
}

/// The records as this node believes them: what `etcd recover` begins from.
async fn records(State(app): Shared) -> Result<Response, Problem> {
    let published = app.published()?;
    let s = &published.snapshot;
    let histories = &s.histories;
    Ok(Json(json!({ "records": s.etcd.records, "histories": histories, "postgres": s.me.postgres })).into_response())
}

async fn metrics(State(app): Shared) -> Response {
    let text = (app.settings.render)();
    let mut response = text.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    response
}

async fn no_such_path() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not-found", "there is no such path under /v1")
}

async fn no_such_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not know the method")
}
