//! What failed, and how often in a row.

use crate::model::moment::Moment;
use serde::{Deserialize, Serialize};

/// What failed last, of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// How often in a row.
    pub count: u32,
    /// When last.
    pub at: Moment,
    /// How.
    pub why: String,
    /// How many of these were not even begun, as what they need was not there yet: a source that answers, a disk that can be read.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held: u32,
}

impl Failure {
    /// How many were begun, and failed.
    pub const fn begun(&self) -> u32 {
        self.count.saturating_sub(self.held)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}
