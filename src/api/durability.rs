//! What a commit waits for now, and what the loss of the primary's host would cost.

use crate::{
    decide::snapshot::Snapshot,
    model::{
        instance::{ServerRole, Waiting},
        lsn::Lsn,
        node::Replica,
        policy::Durability,
        record::SyncMode,
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
        let loses_nothing = !quorum.is_nobody() || sync.mode == SyncMode::StrictQuorum;
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

/// How far the foremost replica that may take over is behind this primary's end of WAL.
fn behind(s: &Snapshot) -> Option<u64> {
    let (facts, electable) = (s.server()?, &s.sync()?.record.electable);
    let ServerRole::Primary { insert, .. } = &facts.role else { return None };
    let rows = facts
        .walsenders
        .iter()
        .filter(|row| Replica::from_application_name(&row.application_name).is_some_and(|replica| electable.contains(&replica)));
    let foremost: Lsn = rows.filter_map(|row| row.flush).max()?;
    Some(insert.bytes_ahead_of(foremost).get())
}
