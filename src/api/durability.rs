//! What a commit waits for now, and what the loss of the primary's host would cost.

use crate::{
    decide::{snapshot::Snapshot, transition::Older},
    model::{
        instance::{ServerRole, Waiting},
        lsn::Lsn,
        node::Replica,
        policy::Durability,
        quorum::{NOBODY_CONFIRMS, Quorum},
        record::{SyncMode, SyncRecord},
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
    /// Otherwise: how many bytes of WAL would be, by what replicas have confirmed. Known to the primary alone.
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
        let waits = !quorum.is_nobody() || sync.mode == SyncMode::StrictQuorum;
        let loses_nothing = waits && !goes_by_itself(s, sync);
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

/// Whether this primary's server acknowledges by another rule than `sync` knows: somebody has set what it waits for.
fn goes_by_itself(s: &Snapshot, sync: &SyncRecord) -> bool {
    let Some(facts) = s.server().filter(|facts| matches!(facts.role, ServerRole::Primary { .. })) else { return false };
    let in_force = s.memory.names.as_ref().map(|names| &names.in_force);
    let older = in_force.map(|in_force| &in_force.older);
    let older: &[Quorum] = if let Some(Older::These(older)) = older { older } else { &[] };
    let newest = in_force.and_then(|in_force| in_force.newest.as_ref());
    let mut ours = older.iter().chain(newest).map(Quorum::names).chain([sync.quorum().names(), NOBODY_CONFIRMS.to_owned()]);
    let nobody = facts.sync_names.is_empty();
    facts.weak_commits.is_some() || nobody || ours.all(|names| names != facts.sync_names)
}

/// How far the foremost replica is behind this primary's end of WAL: of those that may take over, or that stream, where none may.
fn behind(s: &Snapshot) -> Option<u64> {
    let (facts, electable) = (s.server()?, &s.sync()?.record.electable);
    let ServerRole::Primary { insert, .. } = &facts.role else { return None };
    let may = |replica: &Replica| electable.is_empty() || electable.contains(replica);
    let streaming = facts.walsenders.iter().filter(|row| row.streaming);
    let rows = streaming.filter(|row| Replica::from_application_name(&row.application_name).is_some_and(|replica| may(&replica)));
    let foremost: Lsn = rows.filter_map(|row| row.flush).max()?;
    Some(insert.bytes_ahead_of(foremost).get())
}
