//! Timelines, their history files, and who descends from whom.

use super::lsn::Lsn;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A timeline id: one line of history after a promotion. Printed in decimal; file names use eight hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct TimelineId(u32);

/// Why a number is no timeline id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timeline ids start at 1")]
pub struct NotATimeline;

impl TimelineId {
    /// The timeline that `initdb` makes.
    pub const FIRST: Self = Self(1);

    /// The timeline with this number; `None` for 0.
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 { None } else { Some(Self(number)) }
    }

    /// The plain number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The id after this one.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The name of its history file in `pg_wal`.
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl TryFrom<u32> for TimelineId {
    type Error = NotATimeline;

    fn try_from(number: u32) -> Result<Self, NotATimeline> {
        Self::new(number).ok_or(NotATimeline)
    }
}

impl From<TimelineId> for u32 {
    fn from(tli: TimelineId) -> Self {
        tli.0
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a timeline left its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The timeline that was left.
    pub parent: TimelineId,
    /// Where it was left.
    pub at: Lsn,
}

/// The forks that lead to one timeline, oldest first: what its history file says.
///
/// Timeline 1 (and any other without a known parent) has no fork. The text is PostgreSQL's:
/// a line a fork, `parent<TAB>switch point<TAB>reason`; lines that begin with `#` are comments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineHistory(Vec<Fork>);

/// Why a text is no history file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the history file is not \"<timeline><TAB><switch point><TAB><reason>\": {text:?}")]
pub struct NotAHistory {
    line: usize,
    text: String,
}

impl TimelineHistory {
    /// From forks, oldest first.
    pub const fn new(forks: Vec<Fork>) -> Self {
        Self(forks)
    }

    /// The forks, oldest first.
    pub fn forks(&self) -> &[Fork] {
        &self.0
    }

    /// The last fork: the direct parent and where it was left.
    pub fn last(&self) -> Option<Fork> {
        self.0.last().copied()
    }

    /// Where this history leaves `tli`, if it runs over it. `None` for a timeline that is no ancestor.
    ///
    /// Not always where its own line says: a standby that is promoted on its way to a newer timeline names that one as the parent, and leaves
    /// it before it begins. Nothing of the timelines that a later fork goes back over is part of this history (`tliOfPointInHistory`).
    pub fn leaves(&self, tli: TimelineId) -> Option<Lsn> {
        let own = self.0.iter().position(|fork| fork.parent == tli)?;
        self.0[own..].iter().map(|fork| fork.at).min()
    }

    /// The same, of the history in this text; `None` too where it cannot be read.
    pub fn left(text: &str, tli: TimelineId) -> Option<Lsn> {
        text.parse::<Self>().ok()?.leaves(tli)
    }

    /// Whether a timeline was left before it began: it was named as the parent by a standby that was promoted on its way there.
    pub fn goes_back(&self) -> bool {
        !self.0.is_sorted_by_key(|fork| fork.at)
    }

    /// This history with one more fork at its end: that of a child of `parent`, left at `at`.
    #[must_use]
    pub fn child(&self, parent: TimelineId, at: Lsn) -> Self {
        let mut forks = self.0.clone();
        forks.push(Fork { parent, at });
        Self(forks)
    }
}

impl FromStr for TimelineHistory {
    type Err = NotAHistory;

    fn from_str(text: &str) -> Result<Self, NotAHistory> {
        let mut forks = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let mut words = trimmed.split_whitespace();
            let parent = words.next().and_then(|word| word.parse().ok()).and_then(TimelineId::new);
            let at = words.next().and_then(|word| word.parse().ok());
            let (Some(parent), Some(at)) = (parent, at) else {
                return Err(NotAHistory { line: index + 1, text: line.to_owned() });
            };
            forks.push(Fork { parent, at });
        }
        Ok(Self(forks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_is_read_without_its_comments() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# burnt\n2\t0/50002A0\tno recovery target specified\n";
        let history: TimelineHistory = text.parse().expect("history");
        assert_eq!(history.leaves(TimelineId(1)), Some(Lsn::new(0x300_0148)));
        assert_eq!(history.last().map(|fork| fork.parent), Some(TimelineId(2)));
        assert_eq!(history.leaves(TimelineId(3)), None);
    }

    /// As PostgreSQL writes it after a promotion on timeline 4, at 0/12ED983, on the way to 5.
    #[test]
    fn a_timeline_is_left_where_a_later_fork_goes_back_over_it() {
        let history: TimelineHistory = "3\t0/1200000\tx\n4\t0/13A50BD\tx\n5\t0/12ED983\tx\n".parse().expect("history");
        assert_eq!(history.leaves(TimelineId(4)), Some(Lsn::new(0x12E_D983)));
        assert_eq!(history.leaves(TimelineId(5)), Some(Lsn::new(0x12E_D983)));
        assert_eq!(history.leaves(TimelineId(3)), Some(Lsn::new(0x120_0000)));
        assert!(history.goes_back() && !TimelineHistory::new(history.forks()[..2].to_vec()).goes_back());
    }

    #[test]
    fn a_broken_history_names_its_line() {
        assert_eq!("1\t0/1\n0\tx".parse::<TimelineHistory>(), Err(NotAHistory { line: 2, text: "0\tx".to_owned() }));
    }

    #[test]
    fn files_are_named_in_hexadecimal() {
        assert_eq!(TimelineId(26).history_file(), "0000001A.history");
    }
}
