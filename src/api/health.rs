//! The paths of load balancers and monitors, compatible with Patroni's: 200 or 503, computed from memory at the very moment.

use super::query::Wanted;
use crate::{
    agent::handle::Published,
    decide::snapshot::Snapshot,
    model::{
        instance::{Process, Receiver, ServerFacts, ServerRole},
        lsn::{Bytes, Lsn},
        moment::{Moment, Span},
        node::Replica,
    },
};
use serde_json::{Map, Value, json};

/// A loop that has not decided for so long knows nothing of its PostgreSQL any more: it is offered to nobody.
///
/// Writes have a sharper limit, the lease's deadline. A healthy loop decides every 2 s at the least.
pub const STALE: Span = Span::from_secs(5);

/// The health paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Takes writes.
    Primary,
    /// A standby that readers are sent to.
    Replica,
    /// Either.
    ReadOnly,
    /// PostgreSQL runs.
    Health,
    /// No path of ours. Patroni answers 503 with the node's state, and so do we: clients test for that.
    Other,
}

impl Check {
    /// What a path asks for, by its first part.
    pub fn of(path: &str) -> Self {
        match path.trim_start_matches('/').split('/').next().unwrap_or_default() {
            "" | "primary" | "master" | "read-write" | "leader" => Self::Primary,
            "replica" => Self::Replica,
            "read-only" => Self::ReadOnly,
            "health" => Self::Health,
            _ => Self::Other,
        }
    }

    /// Whether the node may be used for this, at `now`.
    pub fn passes(self, query: &str, published: Option<&Published>, now: Moment) -> bool {
        let Some(published) = published else { return false };
        match self {
            Self::Primary => takes_writes(published, now),
            Self::Replica => is_replica(published, &Wanted::parse(query), now),
            Self::ReadOnly => {
                let wanted = Wanted::parse(query);
                // A primary is offered to readers even with the tag against load balancing, as Patroni does.
                takes_writes(published, now) && tags_match(published, &wanted) || is_replica(published, &wanted, now)
            }
            Self::Health => is_fresh(published, now) && published.snapshot.role().is_some() && tags_match(published, &Wanted::parse(query)),
            Self::Other => false,
        }
    }
}

/// Whether writes may come here at `now`: by the last decision, and before the deadline that it named, whoever hangs since.
pub fn takes_writes(published: &Published, now: Moment) -> bool {
    published.decision.routing.writes.is_some_and(|writes| now < writes.until)
}

/// Whether the loop has decided lately.
pub fn is_fresh(published: &Published, now: Moment) -> bool {
    now.since(published.snapshot.now.boot) <= STALE
}

fn tags_match(published: &Published, wanted: &Wanted) -> bool {
    wanted.tags_match(&published.snapshot.me.tags, &published.snapshot.me.zone)
}

fn is_replica(published: &Published, wanted: &Wanted, now: Moment) -> bool {
    let s = &published.snapshot;
    let Some(ServerRole::Standby { replay, receiver, .. }) = s.role() else { return false };
    let lag = lag(published, *replay, receiver.as_ref());
    let near = wanted.lag.is_none_or(|limit| lag.is_none_or(|lag| lag <= limit));
    let state = wanted.replication_state.as_deref().is_none_or(|state| replication_state(published, receiver.as_ref()) == Some(state));
    published.decision.routing.reads
        && is_fresh(published, now)
        && !s.me.tags.no_load_balance
        && near
        && state
        && tags_match(published, wanted)
}

/// What is not replayed yet, against the newest position that is known of the primary; `None` where none is.
fn lag(published: &Published, replay: Lsn, receiver: Option<&Receiver>) -> Option<Bytes> {
    let streamed = receiver.and_then(|receiver| receiver.latest_end);
    let recorded = published.snapshot.primary_position().map(|(_, lsn)| lsn);
    streamed.max(recorded).map(|end| end.bytes_ahead_of(replay))
}

fn replication_state(published: &Published, receiver: Option<&Receiver>) -> Option<&'static str> {
    let restores = published.snapshot.policy.parameters.get("restore_command").is_some_and(|command| !command.trim().is_empty());
    match receiver {
        Some(receiver) if receiver.streaming => Some("streaming"),
        _ if restores => Some("in archive recovery"),
        _ => None,
    }
}

/// The node's state in Patroni's words: the body of every health answer.
pub fn body(published: Option<&Published>) -> Value {
    let mut body = Map::new();
    let Some(published) = published else {
        body.insert("state".to_owned(), json!("starting"));
        return Value::Object(body);
    };
    let s = &published.snapshot;
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    put("state", json!(state(published)));
    put("role", json!(if matches!(s.role(), Some(ServerRole::Primary { .. })) { "primary" } else { "replica" }));
    if let Some(facts) = s.server() {
        put("server_version", json!(facts.version_num));
        put("database_system_identifier", json!(facts.system_id));
        put("xlog", xlog(&facts.role));
        put("timeline", json!(timeline(&facts.role)));
        if !facts.walsenders.is_empty() {
            put("replication", replication(s, facts));
        }
        if let ServerRole::Standby { receiver, .. } = &facts.role
            && let Some(state) = replication_state(published, receiver.as_ref())
        {
            put("replication_state", json!(state));
        }
        if !facts.pending_restart.is_empty() {
            put("pending_restart", json!(true));
        }
    }
    if !s.leader().is_some_and(|leader| crate::decide::snapshot::is_held(&leader.record)) {
        put("cluster_unlocked", json!(true));
    }
    if s.pause().is_some() {
        put("pause", json!(true));
    }
    if let Some(tags) = tags(published) {
        put("tags", tags);
    }
    let cluster = &s.file.cluster;
    put("patroni", json!({ "version": s.me.version, "scope": cluster, "name": s.me.node }));
    Value::Object(body)
}

/// The state of PostgreSQL in Patroni's words.
fn state(published: &Published) -> &'static str {
    let s = &published.snapshot;
    match s.process() {
        Some(Process::Running { stopping: Some(_), .. } | Process::Dying { .. }) => "stopping",
        Some(Process::Running { .. }) if s.role().is_some() => "running",
        Some(Process::Running { .. }) => "starting",
        Some(Process::Empty { last: Some(ended) }) if !ended.wanted => "crashed",
        Some(Process::Empty { .. }) | None => "stopped",
    }
}

fn xlog(role: &ServerRole) -> Value {
    match role {
        ServerRole::Primary { insert, .. } => json!({ "location": insert.get() }),
        ServerRole::Standby { receive, replay, pause, .. } => json!({
            "received_location": receive.unwrap_or(*replay).get(),
            "replayed_location": replay.get(),
            "paused": pause.is_some(),
        }),
    }
}

const fn timeline(role: &ServerRole) -> u32 {
    match role {
        ServerRole::Primary { tli, .. } | ServerRole::Standby { tli, .. } => tli.get(),
    }
}

fn replication(s: &Snapshot, facts: &ServerFacts) -> Value {
    let sync = s.sync().map(|sync| &sync.record).filter(|sync| sync.is_lossless());
    let rows = facts.walsenders.iter().map(|row| {
        let state = if row.streaming { "streaming" } else { "catchup" };
        let replica = Replica::from_application_name(&row.application_name);
        let votes = sync.zip(replica).is_some_and(|(sync, replica)| sync.voters.contains(&replica));
        let (sync_state, priority) = if votes { ("quorum", 1) } else { ("async", 0) };
        json!({ "application_name": row.application_name, "state": state, "sync_state": sync_state, "sync_priority": priority })
    });
    rows.collect()
}

fn tags(published: &Published) -> Option<Value> {
    let tags = &published.snapshot.me.tags;
    let set = [("nofailover", tags.no_failover), ("noloadbalance", tags.no_load_balance), ("nosync", tags.no_sync)];
    let named: Map<String, Value> = set.iter().filter(|(_, set)| *set).map(|(name, _)| ((*name).to_owned(), Value::Bool(true))).collect();
    (!named.is_empty()).then_some(Value::Object(named))
}
