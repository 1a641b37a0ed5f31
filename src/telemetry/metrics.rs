//! The one table of what is measured. A metric is one row of it.
//!
//! Every metric also carries `cluster` and `node`. Names end in their base unit; counters in `_total`.

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number without a unit.
    One,
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
}

/// How values of a metric go together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The newest value counts. Gone from the output a minute after it was last set.
    Gauge,
    /// Only grows.
    Counter,
    /// How many values lie below each of these bounds.
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// As Prometheus knows it.
    pub name: &'static str,
    /// How its values go together.
    pub kind: Kind,
    /// What a value counts.
    pub unit: Unit,
    /// Its labels, beside `cluster` and `node`.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

/// A metric whose newest value counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gauge(pub(super) Row);

/// A metric that only grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counter(pub(super) Row);

/// A metric of which the distribution counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Histogram(pub(super) Row);

/// Bounds for what takes from less than a millisecond to seconds: requests, renewals.
const REQUESTS: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.5, 5.0];
/// Bounds for what takes microseconds: decisions.
const DECISIONS: &[f64] = &[0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.1];
/// Bounds for what takes tenths of seconds to minutes: phases of a failover.
const PHASES: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0];

macro_rules! table {
    ($($variable:ident: $type:ident($kind:expr), $name:literal, $unit:ident, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $variable: $type = $type(Row { name: $name, kind: $kind, unit: Unit::$unit, labels: &[$($label),*], help: $help });
        )*

        /// Every metric there is.
        pub const TABLE: &[Row] = &[$($variable.0),*];
    };
}

table! {
    BUILD_INFO: Gauge(Kind::Gauge), "pgbaton_build_info", One, ["version"], "Always 1; the label tells the version of the agent.";
    ROLE: Gauge(Kind::Gauge), "pgbaton_role", One, ["role"], "1 for the role of this node (primary, replica, down), 0 for the others.";
    POSTGRES_STATE: Gauge(Kind::Gauge), "pgbaton_postgres_state", One, ["state"],
        "1 for the state of PostgreSQL's processes (empty, running, stopping, dying), 0 for the others.";
    TIMELINE: Gauge(Kind::Gauge), "pgbaton_timeline", One, [], "The timeline that this node is on.";
    TERM: Gauge(Kind::Gauge), "pgbaton_term", One, [], "The newest term that this node knows.";
    LAG_BYTES: Gauge(Kind::Gauge), "pgbaton_lag_bytes", Bytes, ["member", "stage"],
        "How far a member is behind the primary, by stage (sent, write, flush, replay).";
    LAG_SECONDS: Gauge(Kind::Gauge), "pgbaton_lag_seconds", Seconds, ["member", "stage"],
        "How far a member is behind the primary in time, by stage (sent, write, flush, replay).";
    SLOT_RETAINED: Gauge(Kind::Gauge), "pgbaton_slot_retained_bytes", Bytes, ["slot"], "How much WAL a replication slot holds back.";
    SYNC_VOTERS: Gauge(Kind::Gauge), "pgbaton_sync_voters", One, [],
        "Of a primary: how many replicas' confirmation counts; 0 where commits wait for nobody.";
    COMMITS_WAITING: Gauge(Kind::Gauge), "pgbaton_commits_waiting", One, [], "Of a primary: how many sessions wait for replicas to confirm a commit.";
    COMMITS_WAITING_SECONDS: Gauge(Kind::Gauge), "pgbaton_commits_waiting_seconds", Seconds, [],
        "Of a primary: for how long the first of them has waited.";
    LEASE_REMAINING: Gauge(Kind::Gauge), "pgbaton_lease_remaining_seconds", Seconds, [],
        "How long this node may still act as the holder; 0 when it does not hold.";
    GUARD_DEADLINE_REMAINING: Gauge(Kind::Gauge), "pgbaton_guard_deadline_remaining_seconds", Seconds, [],
        "How long until the kernel ends PostgreSQL unless the guard is armed anew; absent when no deadline is armed.";
    ALARM: Gauge(Kind::Gauge), "pgbaton_alarm", One, ["alarm"], "1 while this alarm is raised.";
    LAST_FAILOVER: Gauge(Kind::Gauge), "pgbaton_last_failover_timestamp_seconds", Seconds, [],
        "When this node last became primary, in seconds since 1970.";
    RENEWAL: Histogram(Kind::Histogram(REQUESTS)), "pgbaton_renewal_duration_seconds", Seconds, ["outcome"],
        "From the send of a renewal to its answer, by outcome (applied, refused, unknown).";
    ETCD_REQUEST: Histogram(Kind::Histogram(REQUESTS)), "pgbaton_etcd_request_duration_seconds", Seconds, ["request"],
        "From the send of a request to etcd to its answer, by kind of request.";
    ETCD_ERRORS: Counter(Kind::Counter), "pgbaton_etcd_errors_total", One, ["request", "error"], "Requests to etcd that failed, by kind of request and error.";
    DECISION: Histogram(Kind::Histogram(DECISIONS)), "pgbaton_decision_duration_seconds", Seconds, [], "How long one decision took.";
    DECISIONS_WITHHELD: Counter(Kind::Counter), "pgbaton_decisions_withheld_total", One, ["invariant"],
        "Decisions whose actions were withheld because they would have broken an invariant.";
    FAILOVERS: Counter(Kind::Counter), "pgbaton_failovers_total", One, ["cause"], "How often this node became primary, by cause.";
    FAILOVER_PHASE: Histogram(Kind::Histogram(PHASES)), "pgbaton_failover_phase_duration_seconds", Seconds, ["phase"],
        "How long each phase of a change of primary took on this node.";
    REWINDS: Counter(Kind::Counter), "pgbaton_rewinds_total", One, ["result"], "Runs of pg_rewind, by result (done, failed).";
    CLONES: Counter(Kind::Counter), "pgbaton_clones_total", One, ["result"], "Copies of the primary, by result (done, failed).";
    API_REQUEST: Histogram(Kind::Histogram(REQUESTS)), "pgbaton_api_request_duration_seconds", Seconds, ["method", "path", "status"],
        "How long a request to this node's API took, by method, path pattern and status.";
}
