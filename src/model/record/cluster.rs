//! Which cluster this is, and who makes it.

use super::Unknown;
use crate::model::node::{Incarnation, NodeName, SystemId};
use serde::{Deserialize, Serialize};

/// `bootstrap`: who runs `initdb`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BootstrapRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// The node that won.
    pub node: NodeName,
    /// The run of its agent.
    pub agent: Incarnation,
}

/// `cluster`: which cluster this is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// PostgreSQL's identifier of the data.
    pub system_id: SystemId,
    /// Ours: made by the first claim.
    pub uuid: Incarnation,
    /// Raised by `etcd recover`.
    pub generation: u64,
    /// Who made the first claim.
    pub initialised_by: NodeName,
    /// When, for people (RFC 3339).
    pub initialised_at: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}
