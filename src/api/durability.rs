//! What a commit waits for now, and what the loss of the primary's host would cost.

use crate::{
    decide::snapshot::Snapshot,
    model::{
        instance::{ServerRole, Waiting},
        lsn::Lsn,
        node::Replica,
        policy::Durability,
        record::{MemberRecord, MemberRole, SyncMode},
    },
};
use serde::{Deserialize, Serialize};

/// What a commit waits for now, and what the loss of the primary's host would cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DurabilityStatus {
    /// What the policy asks for.
    pub wanted: Durability,
    /// What is in force, as `sync` records it.
    pub mode: SyncMode,
    /// So many of `voters` have to have flushed a commit before it is acknowledged; 0 where it waits for nobody.
    pub k: u32,
    /// Whose confirmation counts, and who elects.
    pub voters: Vec<Replica>,
    /// Whether nothing acknowledged is lost if the primary's host is lost at this moment.
    pub loses_nothing: bool,
    /// Otherwise: how many bytes of WAL would be at the most, by what replicas have confirmed, or are known to have had; on others than the primary, by
    /// what that one said last, some seconds ago. Absent where nobody is known to have had any of the primary's timeline.
    pub may_lose: Option<u64>,
    /// Commits that wait now. Known to the primary alone.
    pub waiting: Option<WaitingStatus>,
}

/// Commits that wait now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingStatus {
    /// How many sessions wait.
    pub sessions: u32,
    /// For how long the first of them has, in seconds.
    pub longest_seconds: f64,
}

impl DurabilityStatus {
    /// As this node knows it; `None` while there is no `sync`.
    pub fn of(s: &Snapshot) -> Option<Self> {
        let sync = &s.sync()?.record;
        let quorum = sync.quorum();
        // What was acknowledged before commits waited, or while nobody voted, is nowhere else for sure.
        let loses_nothing = !quorum.is_nobody() && !goes_by_itself(s);
        let waiting = |waiting: Waiting| WaitingStatus { sessions: waiting.sessions, longest_seconds: waiting.longest.as_secs_f64() };
        Some(Self {
            wanted: s.policy.durability,
            mode: sync.mode,
            k: quorum.k(),
            voters: sync.voters.clone(),
            loses_nothing,
            may_lose: if loses_nothing { None } else { behind(s) },
            waiting: s.server().and_then(|facts| facts.waiting).map(waiting),
        })
    }
}

/// Whether the primary's server acknowledges by another rule than `sync` knows, as it says itself.
fn goes_by_itself(s: &Snapshot) -> bool {
    match s.role() {
        Some(ServerRole::Primary { .. }) => s.acknowledges_otherwise(),
        _ => primary(s).is_some_and(|primary| primary.acknowledges_otherwise),
    }
}

/// What the primary says of itself, to others.
fn primary(s: &Snapshot) -> Option<&MemberRecord> {
    let holder = &s.leader()?.record.holder;
    let said = &s.etcd.records.members.get(&holder.node)?.record;
    (said.data == holder.data && said.role == MemberRole::Primary).then_some(said)
}

/// How far the foremost replica is behind the primary's end of WAL: of those that may take over, or that stream, where none may. Where none streams,
/// by what etcd has of each that was on this timeline.
fn behind(s: &Snapshot) -> Option<u64> {
    let electable = &s.sync()?.record.electable;
    let Some(ServerRole::Primary { insert, tli, .. }) = s.role() else {
        let lags = primary(s)?.replicas.iter();
        let lags = lags.filter(|(node, _)| electable.is_empty() || electable.iter().any(|replica| replica.node == **node));
        return lags.filter_map(|(_, lag)| lag.flush).min();
    };
    let may = |replica: &Replica| electable.is_empty() || electable.contains(replica);
    let streaming = s.server()?.walsenders.iter().filter(|row| row.streaming);
    let rows = streaming.filter(|row| Replica::from_application_name(&row.application_name).is_some_and(|replica| may(&replica)));
    let noted = s.etcd.records.nodes.iter().filter(|(node, of)| {
        **node != s.me.node && of.record.tli == Some(*tli) && may(&Replica::new((*node).clone(), of.record.data.clone()))
    });
    let foremost: Lsn = rows.filter_map(|row| row.flush).max().or_else(|| noted.map(|(_, of)| of.record.whole).max())?;
    Some(insert.bytes_ahead_of(foremost).get())
}
