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

/// `doubt`: a node has seen more than this etcd holds (protocol 1.2, *suspect etcd*). Who has seen less believes it on that node's word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoubtRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Who says so.
    pub node: NodeName,
    /// The generation of the records that it knows. One that is raised (`etcd recover`) ends the doubt.
    pub generation: u64,
    /// What went back, for people.
    pub why: String,
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
