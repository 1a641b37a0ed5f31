//! How the set that acknowledges and the set that elects change without ever missing each other (protocol 1.8).
//!
//! A commit is acknowledged by any `k` of the names in `synchronous_standby_names`; a leader is elected by any R = |V| − k + 1 of the voters
//! in `sync`. Both are written one after the other, either write may be interrupted, and after a reload old and new names are in force side by
//! side for a while: a walsender that has read one list counts whoever is in the list that his own walsender has read (ADR 24). So each single
//! step here keeps everybody who is in any list among the voters, and every list asking for as many as `sync` does: then every acknowledging set
//! meets every electing set, whichever lists are mixed.

use crate::model::{node::Replica, quorum::Quorum};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The next single step towards a goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<T: Ord = Replica> {
    /// Write this to `sync`.
    Record(Quorum<T>),
    /// Write this to `synchronous_standby_names`.
    Names(Quorum<T>),
    /// The names are written; it is not proven yet that no older ones are in force anywhere.
    Prove,
    /// `sync` and names say what they should.
    Done,
}

/// Which `synchronous_standby_names` processes of the primary may act on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce<T: Ord = Replica> {
    /// What was written last; `None`: who wrote it is gone.
    pub newest: Option<Quorum<T>>,
    /// What may be in force beside it.
    pub older: Older<T>,
}

/// Names that were in force before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Older<T: Ord = Replica> {
    /// These; empty: the newest alone is in force, and that is proven.
    These(Vec<Quorum<T>>),
    /// Not known: anything that is covered by what `sync` says.
    Unknown,
}

impl<T: Ord + Clone> InForce<T> {
    /// Whether `record` covers all that may be in force, while `present` is what `sync` says.
    fn is_covered(&self, record: &Quorum<T>, present: &Quorum<T>) -> bool {
        let older = match &self.older {
            Older::These(older) => older.iter().all(|names| record.covers(names)),
            // `present` covers them, and so does whatever covers `present`.
            Older::Unknown => record.covers(present),
        };
        older && self.newest.iter().all(|names| record.covers(names))
    }

    fn is_proven(&self) -> bool {
        matches!(&self.older, Older::These(older) if older.is_empty())
    }
}

/// The next step from what is recorded and in force to `wanted`: as record and as names.
///
/// Those who leave go before others come: one who is gone neither holds commits up nor is missed at an election meanwhile. Only where fewer would
/// be left than have to confirm do the new ones come first; and where fewer will have to, whoever leaves is needed until that is proven.
pub(super) fn next<T: Ord + Clone>(record: &Quorum<T>, in_force: &InForce<T>, wanted: &Quorum<T>) -> Step<T> {
    let stays: BTreeSet<T> = record.members().intersection(wanted.members()).cloned().collect();
    // Where fewer stay than have to confirm, others come first: nothing is ever acknowledged by less than what is wanted.
    let few = stays.len() < wanted.k() as usize;
    let goal = match few || stays == *record.members() {
        true => wanted.clone(),
        false => Quorum::new(record.k(), stays),
    };
    if goal != *record && in_force.is_covered(&goal, record) {
        return Step::Record(goal);
    }
    if !record.covers(&goal) {
        // All voters of both, and no more of them than either asks for: that covers what is in force, and the names to come.
        return Step::Record(Quorum::new(record.k().min(goal.k()), record.members().union(goal.members()).cloned()));
    }
    if in_force.newest.as_ref() != Some(&goal) {
        return Step::Names(goal);
    }
    // Names that nobody is listed in hold nothing up, and nothing rests on them.
    if goal.is_nobody() || in_force.is_proven() { Step::Done } else { Step::Prove }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every quorum of `nodes` nodes with k up to `most`, nobody included.
    fn all(nodes: u8, most: u32) -> Vec<Quorum<u8>> {
        let mut found = vec![Quorum::nobody()];
        for bits in 1..1_u32 << nodes {
            let members: Vec<u8> = (0..nodes).filter(|node| bits & (1 << node) != 0).collect();
            found.extend((1..=most.min(bits.count_ones())).map(|k| Quorum::new(k, members.iter().copied())));
        }
        found
    }

    /// What a step does; `false` where there was nothing to do.
    fn take(step: Step<u8>, record: &mut Quorum<u8>, in_force: &mut InForce<u8>) -> bool {
        match step {
            Step::Record(next) => *record = next,
            Step::Names(names) => {
                let before = in_force.newest.replace(names);
                if let Older::These(older) = &mut in_force.older {
                    older.extend(before);
                }
            }
            Step::Prove => in_force.older = Older::These(Vec::new()),
            Step::Done => return false,
        }
        true
    }

    /// What acknowledges where these lists are in force side by side: so many as one asks for, of all that are in any.
    fn mixed(lists: &[&Quorum<u8>]) -> Vec<Quorum<u8>> {
        let all: BTreeSet<u8> = lists.iter().flat_map(|names| names.members().iter().copied()).collect();
        let of = |names: &Quorum<u8>| Quorum::new(names.k(), all.iter().copied());
        lists.iter().map(|names| if names.is_nobody() { Quorum::nobody() } else { of(names) }).collect()
    }

    fn check(step: &Step<u8>, record: &Quorum<u8>, lists: &[&Quorum<u8>], what: &dyn Fn() -> String) {
        let meet = |lists: &[&Quorum<u8>], record: &Quorum<u8>| mixed(lists).iter().all(|names| names.meets(record));
        match step {
            Step::Record(next) => {
                assert_ne!(next, record, "{}", what());
                assert!(meet(lists, next), "{} leads to {next:?}", what());
            }
            Step::Names(names) => {
                let lists: Vec<&Quorum<u8>> = lists.iter().copied().chain([names]).collect();
                assert!(meet(&lists, record), "{} leads to names {names:?}", what());
            }
            Step::Prove | Step::Done => {}
        }
    }

    /// One step from every state that can be: whatever was interrupted before, record and names meet afterwards as they did before, also where
    /// one process acts on one list and another one on another.
    #[test]
    fn no_step_lets_the_sets_miss_each_other() {
        for nodes in 1..=5 {
            let quorums = all(nodes, 3);
            for record in &quorums {
                let covered: Vec<&Quorum<u8>> = quorums.iter().filter(|names| record.covers(names)).collect();
                for wanted in &quorums {
                    for newest in &covered {
                        for older in &covered {
                            let in_force = InForce { newest: Some((*newest).clone()), older: Older::These(vec![(*older).clone()]) };
                            let step = next(record, &in_force, wanted);
                            check(&step, record, &[newest, older], &|| format!("{record:?}, {in_force:?}, for {wanted:?}"));
                        }
                        let proven = InForce { newest: Some((*newest).clone()), older: Older::These(Vec::new()) };
                        let step = next(record, &proven, wanted);
                        check(&step, record, &[newest], &|| format!("{record:?}, {proven:?}, for {wanted:?}"));
                    }
                    let unknown = InForce { newest: None, older: Older::Unknown };
                    let step = next(record, &unknown, wanted);
                    check(&step, record, &covered, &|| format!("{record:?}, unknown names, for {wanted:?}"));
                }
            }
        }
    }

    /// From everywhere to everywhere, interrupted nowhere or after any one step, by an agent that then knows nothing of the names; and what is
    /// in force is covered all the way.
    #[test]
    fn every_goal_is_reached() {
        let quorums = all(5, 3);
        for from in &quorums {
            for wanted in &quorums {
                for lost_after in 0..10 {
                    let mut record = from.clone();
                    let mut in_force = InForce { newest: Some(from.clone()), older: Older::These(Vec::new()) };
                    let mut steps = 0;
                    while take(next(&record, &in_force, wanted), &mut record, &mut in_force) {
                        steps += 1;
                        if steps == lost_after {
                            in_force = InForce { newest: None, older: Older::Unknown };
                        }
                        assert!(steps < 20, "{from:?} never comes to {wanted:?}, interrupted after {lost_after}");
                        assert!(in_force.is_covered(&record, &record), "{from:?} comes to {record:?} with {in_force:?} for {wanted:?}");
                    }
                    assert_eq!((&record, in_force.newest.as_ref()), (wanted, Some(wanted)), "{from:?}, interrupted after {lost_after}");
                }
            }
        }
    }

    /// On no way is a commit acknowledged by fewer than what it leads from and what it leads to ask for.
    #[test]
    fn nobody_is_told_of_a_commit_that_fewer_have() {
        let quorums = all(5, 3);
        for from in &quorums {
            for wanted in &quorums {
                let mut record = from.clone();
                let mut in_force = InForce { newest: Some(from.clone()), older: Older::These(Vec::new()) };
                loop {
                    let step = next(&record, &in_force, wanted);
                    if let Step::Names(names) = &step {
                        assert!(names.k() >= from.k().min(wanted.k()), "from {from:?} to {wanted:?} by names {names:?}");
                    }
                    if !take(step, &mut record, &mut in_force) {
                        break;
                    }
                }
            }
        }
    }

    /// Where those who stay or come could elect at the start, they can at every step; unless so few stay that others have to come first, or that
    /// fewer can confirm: while the lists in force let the one who leaves confirm alone, he is needed.
    #[test]
    fn nobody_who_leaves_is_missed_at_an_election() {
        let quorums = all(5, 3);
        for from in &quorums {
            let few = |wanted: &Quorum<u8>| {
                let stay = from.members().intersection(wanted.members()).count();
                (1..wanted.k() as usize).contains(&stay) || stay < from.k() as usize && wanted.k() < from.k()
            };
            for wanted in quorums.iter().filter(|wanted| !wanted.is_nobody() && !few(wanted)) {
                let can_elect = |record: &Quorum<u8>| {
                    let there = record.members().intersection(wanted.members()).count();
                    record.is_nobody() || there >= record.electors() as usize
                };
                let mut record = from.clone();
                let mut in_force = InForce { newest: Some(from.clone()), older: Older::These(Vec::new()) };
                let could = can_elect(from);
                while take(next(&record, &in_force, wanted), &mut record, &mut in_force) {
                    assert!(!could || can_elect(&record), "from {from:?} to {wanted:?} by {record:?}");
                }
            }
        }
    }
}
