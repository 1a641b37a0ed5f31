//! So many of these: whose flush acknowledges a commit, and whose promises elect (protocol 1.8).

use super::node::Replica;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// `k` of these: as names they acknowledge, as voters they elect. Nobody: commits wait for nobody, and only the owner may lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum<T: Ord = Replica> {
    /// From 1 to the number of members; 0 where there are none.
    k: u32,
    members: BTreeSet<T>,
}

impl<T: Ord + Clone> Quorum<T> {
    /// `k` of `members`: at least one where there is one, and no more than there are.
    pub fn new(k: u32, members: impl IntoIterator<Item = T>) -> Self {
        let members: BTreeSet<T> = members.into_iter().collect();
        let k = k.max(1).min(size(&members));
        Self { k, members }
    }

    /// Nobody.
    pub const fn nobody() -> Self {
        Self { k: 0, members: BTreeSet::new() }
    }

    /// Whether there is nobody in it.
    pub fn is_nobody(&self) -> bool {
        self.members.is_empty()
    }

    /// How many have to confirm.
    pub const fn k(&self) -> u32 {
        self.k
    }

    /// Of whom.
    pub const fn members(&self) -> &BTreeSet<T> {
        &self.members
    }

    /// R: so many of these voters elect.
    pub fn electors(&self) -> u32 {
        if self.is_nobody() { 0 } else { size(&self.members) - self.k + 1 }
    }

    /// Whether every set that these names let acknowledge has a member in every set that `record` lets elect.
    ///
    /// Of k acknowledgers all but those who are no voters are voters, and an electing set misses |V| − R = k(record) − 1 voters.
    #[cfg(test)]
    pub(crate) fn meets(&self, record: &Self) -> bool {
        let strangers = self.members.difference(&record.members).count();
        record.is_nobody() || self.k as usize >= record.k as usize + strangers
    }

    /// Whether these voters meet `names` also while other names that they cover are in force beside them, in other processes (ADR 24): a
    /// walsender lets as many confirm as the list that it has read asks for, and counts all whose own walsender has read a list that they are in.
    pub fn covers(&self, names: &Self) -> bool {
        self.is_nobody() || (names.k >= self.k && names.members.is_subset(&self.members))
    }
}

/// `synchronous_standby_names` with a name that no server bears: what waits, waits for good. In force on a standby from its start on, so that
/// a promotion never meets processes that believe that nobody has to confirm (EXP-24).
pub const NOBODY_CONFIRMS: &str = "ANY 1 (\"pgbaton: nobody\")";

impl Quorum {
    /// What `synchronous_standby_names` has to say for these to acknowledge; empty for nobody.
    pub fn names(&self) -> String {
        if self.is_nobody() {
            return String::new();
        }
        let names: Vec<String> = self.members.iter().map(|replica| format!("\"{}\"", replica.application_name())).collect();
        format!("ANY {} ({})", self.k, names.join(", "))
    }
}

fn size<T>(members: &BTreeSet<T>) -> u32 {
    u32::try_from(members.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every quorum of `nodes` nodes with k up to `most`, nobody included.
    fn all(nodes: u8, most: u32) -> Vec<Quorum<u8>> {
        let sets = (1..1_u32 << nodes).map(|bits| (0..nodes).filter(move |node| bits & (1 << node) != 0));
        let some = sets.flat_map(|members| (1..=most.min(members.clone().count() as u32)).map(move |k| Quorum::new(k, members.clone())));
        std::iter::once(Quorum::nobody()).chain(some).collect()
    }

    fn subsets(of: &BTreeSet<u8>, size: u32) -> impl Iterator<Item = BTreeSet<u8>> {
        let members: Vec<u8> = of.iter().copied().collect();
        (0..1_u32 << members.len())
            .filter(move |bits| bits.count_ones() == size)
            .map(move |bits| members.iter().enumerate().filter(|(place, _)| bits & (1 << place) != 0).map(|(_, node)| *node).collect())
    }

    #[test]
    fn meeting_is_what_the_sets_themselves_say() {
        for record in all(4, 3) {
            for names in all(4, 3) {
                let meets = record.is_nobody()
                    || subsets(&names.members, names.k)
                        .all(|acknowledge| subsets(&record.members, record.electors()).all(|elect| !acknowledge.is_disjoint(&elect)));
                assert_eq!(names.meets(&record), meets, "{names:?} against {record:?}");
            }
        }
    }

    #[test]
    fn names_are_those_that_walreceivers_bear() {
        let replica = |node: &str, data: &str| Replica::new(node.parse().expect("name"), data.parse().expect("id"));
        let two = [replica("n-2", "0123abcd"), replica("n-10", "00000001")];
        assert_eq!(Quorum::new(1, two.clone()).names(), "ANY 1 (\"n-10_00000001\", \"n-2_0123abcd\")");
        assert_eq!(Quorum::new(9, two.clone()).names(), "ANY 2 (\"n-10_00000001\", \"n-2_0123abcd\")", "no more than there are");
        assert_eq!(Quorum::new(0, two).k(), 1, "at least one where there is one");
        assert_eq!(Quorum::<Replica>::new(1, []).names(), "");
    }
}
