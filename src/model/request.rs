//! What operators ask for.

use super::node::NodeName;
use serde::{Deserialize, Serialize};

/// A request that goes through `intent` and is applied at most once, at the term that the operator saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Request {
    /// Forget a node: its member, slot and place in `sync`.
    Remove {
        /// Which.
        node: NodeName,
    },
}
