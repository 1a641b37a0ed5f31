//! What is known about the outside, and since when. Silence is not absence.

use super::moment::Moment;
use serde::{Deserialize, Serialize};

/// A fact from outside this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observed<T> {
    /// Seen, with this value.
    Known {
        /// What was seen.
        value: T,
        /// When it was seen (`CLOCK_BOOTTIME`).
        at: Moment,
    },
    /// Looked for and not there.
    Absent {
        /// When it was looked for.
        at: Moment,
    },
    /// Nothing can be said.
    Unknown {
        /// Since when nothing can be said.
        since: Moment,
        /// Why not, for people.
        why: String,
    },
}

impl<T> Observed<T> {
    /// Seen at `at` with `value`.
    pub const fn known(value: T, at: Moment) -> Self {
        Self::Known { value, at }
    }

    /// Never looked at yet.
    pub fn never() -> Self {
        Self::Unknown { since: Moment::ZERO, why: "not observed yet".to_owned() }
    }

    /// The value, where it is known. `None` says nothing about absence.
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Absent { .. } | Self::Unknown { .. } => None,
        }
    }

    /// When the last look succeeded.
    pub const fn seen_at(&self) -> Option<Moment> {
        match self {
            Self::Known { at, .. } | Self::Absent { at } => Some(*at),
            Self::Unknown { .. } => None,
        }
    }

    /// The fact after a look that failed at `now`: what was known is known no more, and since when is kept.
    pub fn lost(&mut self, now: Moment, why: impl Into<String>) {
        let since = match self {
            Self::Unknown { since, .. } => *since,
            Self::Known { .. } | Self::Absent { .. } => now,
        };
        *self = Self::Unknown { since, why: why.into() };
    }
}

impl<T> Default for Observed<T> {
    fn default() -> Self {
        Self::never()
    }
}
