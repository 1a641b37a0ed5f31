//! What a node remembers on its own disk, outside the data directory.

use super::{
    failsafe::Ack,
    lsn::Lsn,
    node::{ClusterName, DataIncarnation, Incarnation, NodeName},
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The node file. One writer; written whole and fsynced before what it says takes effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    /// Format version.
    pub v: u32,
    /// Whose file this is.
    pub cluster: ClusterName,
    /// Whose file this is.
    pub node: NodeName,
    /// The present life of the data directory.
    pub data: DataIncarnation,
    /// Agent starts, and new lives of the data that began while an agent ran.
    pub starts: u64,
    /// The newest count that etcd was told of; written before it is sent. A file that went back does not become the newer one by being
    /// started often while etcd is away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<u64>,
    /// The run of the agent that told it: another one's of the same count is a copy's, or our original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_by: Option<Incarnation>,
    /// The highest term seen.
    pub term: Term,
    /// No candidate, and no primary, of a lower term than this is followed.
    pub promised: Term,
    /// The newest claim; written before it is sent.
    pub claimed: Option<Term>,
    /// `leader.seq` of the value that it compares: once a later one is seen in a lower term, it can never be done any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_over: Option<u64>,
    /// The operator's request that it carries out: the one in etcd is gone with the claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<Order>,
    /// What this node has bound itself to while etcd was silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
    /// "I promoted timeline n at term e"; written before the promotion.
    pub promoted: Option<Promoted>,
    /// The term in which this node became primary and its voters have not confirmed all that it came up with: it may show commits that nobody
    /// else has (protocol 1.7 step 6, 1.8, *read barrier*).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub barrier: Option<Term>,
    /// The newest term in which this node verified that its PostgreSQL was dead before it gave up the lease.
    pub demoted: Option<Term>,
    /// The newest record boundary known to be on this disk.
    pub boundary: Option<Boundary>,
    /// A destructive or creating operation that has begun and not ended.
    pub operation: Option<Operation>,
    /// The directory that this node's own `initdb` made and never started as primary.
    pub initialised: bool,
    /// The highest values that linearizable answers of etcd showed.
    pub floors: Floors,
}

/// An operator's request that this node take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Who asks.
    pub by: String,
    /// Also where this node lacks what was acknowledged.
    pub accept_loss: bool,
    /// The operator's word that the former primary is dead.
    pub assert_dead: bool,
    /// Nobody can say for how long that one went on: where etcd is silent it needs not this node's word, and an operator alone says that it is dead.
    #[serde(default)]
    pub boundless: bool,
}

/// "I promoted timeline n at term e".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// The timeline.
    pub tli: TimelineId,
    /// The term.
    pub term: Term,
}

/// A record boundary on a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boundary {
    /// The timeline.
    pub tli: TimelineId,
    /// The position.
    pub lsn: Lsn,
}

/// An operation that must not be forgotten half-way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Operation {
    /// `initdb` into an empty or missing directory.
    InitDb,
    /// A copy of another node.
    Clone {
        /// Copied from.
        source: NodeName,
        /// Where the copy is made: beside the old directory, or in place of it.
        place: ClonePlace,
    },
    /// `pg_rewind` of our data directory.
    Rewind {
        /// Rewound by.
        source: NodeName,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InitDb => f.write_str("initdb"),
            Self::Clone { source, place } => write!(f, "the clone from {source} ({place})"),
            Self::Rewind { source } => write!(f, "the rewind to the history of {source}"),
        }
    }
}

/// Where a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClonePlace {
    /// Beside the old directory, swapped at the end.
    Beside,
    /// In place, for want of space or because the directory is a mount point.
    InPlace,
}

impl fmt::Display for ClonePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Beside => "beside the old directory",
            Self::InPlace => "in place of the old directory",
        })
    }
}

/// What etcd must not fall below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floors {
    /// The cluster's uuid, once known.
    pub uuid: Option<Incarnation>,
    /// Raised by `etcd recover`; the floors below are of this generation.
    pub generation: u64,
    /// etcd's revision.
    pub revision: u64,
    /// `leader.seq`.
    pub seq: u64,
    /// `sync.term`.
    pub sync_term: Term,
    /// `leader.term`. What this node has promised or claimed beyond that is in the file itself.
    #[serde(default)]
    pub term: Term,
}

impl NodeFile {
    /// The file of a node that has never run.
    pub fn fresh(cluster: ClusterName, node: NodeName, data: DataIncarnation) -> Self {
        Self {
            v: super::record::VERSION,
            cluster,
            node,
            data,
            starts: 0,
            told: None,
            told_by: None,
            term: Term::ZERO,
            promised: Term::ZERO,
            claimed: None,
            claimed_over: None,
            claimed_by: None,
            ack: None,
            promoted: None,
            barrier: None,
            demoted: None,
            boundary: None,
            operation: None,
            initialised: false,
            floors: Floors::default(),
        }
    }
}
