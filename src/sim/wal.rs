//! The write-ahead log: a tree of branches, and what of it lies on a disk.
//!
//! A branch is one real line of history. Its timeline id is only what PostgreSQL calls it: two branches may, wrongly,
//! bear one id, and only this room can tell them apart (EXP-7).

use crate::model::{lsn::Lsn, timeline::TimelineId};

/// Where the log of a new cluster begins.
pub(super) const ORIGIN: u64 = 0x100_0028;

/// One real line of history.
pub(super) struct Branch {
    pub(super) tli: TimelineId,
    /// The branch that it left, and where.
    pub(super) parent: Option<(usize, u64)>,
    /// Where the records of this branch end, in order.
    pub(super) ends: Vec<u64>,
}

/// All branches that ever were.
#[derive(Default)]
pub(super) struct Wal {
    pub(super) branches: Vec<Branch>,
}

impl Wal {
    pub(super) fn root(&mut self) -> usize {
        self.branches.push(Branch { tli: TimelineId::FIRST, parent: None, ends: vec![ORIGIN] });
        self.branches.len() - 1
    }

    pub(super) fn fork(&mut self, parent: usize, at: u64, tli: TimelineId) -> usize {
        self.branches.push(Branch { tli, parent: Some((parent, at)), ends: Vec::new() });
        self.branches.len() - 1
    }

    /// The end of the last record of a branch.
    pub(super) fn end(&self, branch: usize) -> u64 {
        let branch = &self.branches[branch];
        branch.ends.last().copied().or(branch.parent.map(|(_, at)| at)).unwrap_or(ORIGIN)
    }

    pub(super) fn append(&mut self, branch: usize, bytes: u64) -> u64 {
        let end = self.end(branch) + bytes;
        self.branches[branch].ends.push(end);
        end
    }

    /// The end of the last whole record up to `position`, which lies on this branch or before it.
    pub(super) fn whole(&self, branch: usize, position: u64) -> u64 {
        let of = &self.branches[branch];
        if let Some((parent, at)) = of.parent
            && position <= at
        {
            return self.whole(parent, position);
        }
        let count = of.ends.partition_point(|end| *end <= position);
        count.checked_sub(1).map(|last| of.ends[last]).or(of.parent.map(|(_, at)| at)).unwrap_or(ORIGIN)
    }

    /// Some record's end between `least` and `position`: where replay or a restart point may stand.
    pub(super) fn boundary_before(&self, branch: usize, position: u64, back: u64) -> u64 {
        self.whole(branch, position.saturating_sub(back)).max(ORIGIN)
    }

    pub(super) fn truncate(&mut self, branch: usize, position: u64) {
        let of = &mut self.branches[branch];
        let count = of.ends.partition_point(|end| *end <= position);
        of.ends.truncate(count);
    }

    /// The branch that holds `position` in the history of `branch`.
    pub(super) fn branch_at(&self, branch: usize, position: u64) -> usize {
        match self.branches[branch].parent {
            Some((parent, at)) if position <= at => self.branch_at(parent, position),
            _ => branch,
        }
    }

    /// Up to where the history of `branch` runs over `ancestor`: its end where they are one, `None` where it does not.
    pub(super) fn shared(&self, branch: usize, ancestor: usize) -> Option<u64> {
        if branch == ancestor {
            return Some(u64::MAX);
        }
        let mut at = branch;
        let mut least = u64::MAX;
        while let Some((parent, left)) = self.branches[at].parent {
            least = least.min(left);
            if parent == ancestor {
                return Some(least);
            }
            at = parent;
        }
        None
    }

    /// Whether a record of `row`'s branch that ends there lies in the history of (`branch`, `end`).
    pub(super) fn holds(&self, branch: usize, end: u64, row: (usize, u64)) -> bool {
        self.shared(branch, row.0).is_some_and(|shared| row.1 <= shared.min(end))
    }

    /// The branches that lead to `branch`, the oldest first.
    pub(super) fn path(&self, branch: usize) -> Vec<usize> {
        let mut path = vec![branch];
        while let Some((parent, _)) = path.last().and_then(|last| self.branches[*last].parent) {
            path.push(parent);
        }
        path.reverse();
        path
    }

    /// The branch of timeline `tli` in the history of `branch`.
    pub(super) fn ancestor_of(&self, branch: usize, tli: TimelineId) -> Option<usize> {
        let mut at = branch;
        loop {
            if self.branches[at].tli == tli {
                return Some(at);
            }
            at = self.branches[at].parent?.0;
        }
    }
}

/// Bytes as PostgreSQL's position.
pub(super) const fn lsn(byte: u64) -> Lsn {
    Lsn::new(byte)
}
