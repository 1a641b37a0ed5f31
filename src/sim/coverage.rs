//! What a run exercised (oracle O19).

/// How often what was exercised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Decisions taken.
    pub steps: u64,
    /// Claims sent.
    pub claims: u64,
    /// Promotions that ended.
    pub promotions: u64,
    /// Starts as primary that ended.
    pub restarts_in_place: u64,
    /// Changes of the node that serves, after the first.
    pub leaderships: u64,
    /// Rewinds begun.
    pub rewinds: u64,
    /// Clones begun.
    pub clones: u64,
    /// Directories initialised.
    pub initdbs: u64,
    /// Leases adopted by a new agent.
    pub adoptions: u64,
    /// Releases sent.
    pub releases: u64,
    /// Claims handed on.
    pub handoffs: u64,
    /// Claims by a quorum that did not sit out the lease.
    pub deposed: u64,
    /// Fetches of WAL from a voter that could not lead.
    pub fetches: u64,
    /// Questions to peers while etcd was silent.
    pub asked: u64,
    /// Of these, answered with a yes.
    pub acked: u64,
    /// Transactions of unknown outcome.
    pub ambiguous: u64,
    /// Claims of unknown outcome.
    pub ambiguous_claims: u64,
    /// Guards that died by their deadline.
    pub deadlines: u64,
    /// Agents killed between two actions.
    pub boundary_crashes: u64,
    /// Timeline ids burnt.
    pub burnt: u64,
    /// Commits acknowledged.
    pub acks: u64,
    /// Of these, while nothing might be lost.
    pub lossless: u64,
    /// Of these, not in the final history.
    pub lost: u64,
    /// Revisions of etcd while faults were injected.
    pub writes: u64,
    /// Requests of operators.
    pub requests: u64,
    /// Pauses that began.
    pub pauses: u64,
    /// Pauses that ended with the same holder serving.
    pub resumptions: u64,
    /// Faults injected.
    pub faults: u64,
    /// Machines and data directories set back to a former state.
    pub rolled_back: u64,
    /// Node files lost.
    pub files_lost: u64,
    /// Times that etcd was restored to an older state.
    pub etcd_restored: u64,
    /// Times that all records were deleted.
    pub etcd_wiped: u64,
    /// Times that an operator made the records anew.
    pub etcd_recovered: u64,
    /// Commits acknowledged by a server that was frozen, by a time that was over.
    pub after_freeze: u64,
    /// Rewinds and copies that ended half-way.
    pub half_done: u64,
    /// Promotions that took longer than a second.
    pub late_promotions: u64,
    /// How long it took after the last fault until all was well, in milliseconds.
    pub recovery_ms: u64,
}
