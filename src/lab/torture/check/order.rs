//! Whether one order explains all transactions on lists (serializability, by a circle in who must come before whom).
//!
//! Who appended before whom is read from the lists at the end; who read what, from the reads. Time is no part of it: a primary that is old
//! within its limit shows a past that is an order all the same. Reads on replicas are left out: PostgreSQL does not promise it of them.

use super::{super::history::Entry, Finding, Known};
use std::collections::BTreeMap;

/// The first circle, if there is one.
pub(super) fn finding(known: &Known<'_>) -> Option<Finding> {
    let befores = befores(known);
    circle(&befores).map(|circle| Finding::NoOrder { circle })
}

/// Who must come before whom.
type Befores = BTreeMap<u64, Vec<u64>>;

fn befores(known: &Known<'_>) -> Befores {
    let mut befores = Befores::new();
    let mut add = |before: u64, after: u64| {
        if before != after {
            befores.entry(before).or_default().push(after);
        }
    };
    for items in known.remains.lists.values() {
        items.windows(2).for_each(|pair| add(pair[0], pair[1]));
    }
    for entry in known.evidence.entries.iter().filter(|entry| counts(known, entry)) {
        for (key, seen) in entry.reads() {
            let list = known.list(key);
            // Its own append is before what it read then; its place is known from the list.
            let others = seen.iter().rev().find(|item| **item != entry.id);
            others.iter().for_each(|item| add(**item, entry.id));
            list.get(seen.len()).iter().for_each(|next| add(entry.id, **next));
        }
    }
    befores
}

/// Whether what it read is part of the history that is left.
fn counts(known: &Known<'_>, entry: &Entry) -> bool {
    entry.is_acknowledged() && entry.tli().is_some() && entry.reads().all(|(key, seen)| known.agreed(key, seen) == seen.len())
}

/// A circle, found by walking in depth; without recursion: a run has a hundred thousand transactions.
fn circle(befores: &Befores) -> Option<Vec<u64>> {
    let mut done: BTreeMap<u64, bool> = BTreeMap::new();
    for start in befores.keys() {
        let mut path: Vec<(u64, usize)> = vec![(*start, 0)];
        while let Some((at, next)) = path.last().copied() {
            if next == 0 && done.contains_key(&at) {
                path.pop();
                continue;
            }
            done.entry(at).or_insert(false);
            let Some(after) = befores.get(&at).and_then(|all| all.get(next)) else {
                done.insert(at, true);
                path.pop();
                continue;
            };
            path.last_mut().into_iter().for_each(|step| step.1 += 1);
            match done.get(after) {
                Some(true) => {}
                Some(false) => return Some(path.iter().map(|(id, _)| *id).skip_while(|id| id != after).collect()),
                None => path.push((*after, 0)),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{judge, made::Made};
    use super::*;

    /// Two transactions of which each read what the other had not yet appended to (write skew).
    #[test]
    fn two_transactions_that_missed_each_other_have_no_order() {
        let mut made = Made::ordinary();
        let one = made.read_and_append("n2", 2, 950, 21, 22);
        let two = made.read_and_append("n2", 2, 950, 22, 21);
        let found = judge(&made.evidence).findings;
        assert!(matches!(found.as_slice(), [Finding::NoOrder { circle }] if circle.contains(&one) && circle.contains(&two)), "{found:?}");
    }

    /// Appended twice by transactions of which both saw the list empty (lost update).
    #[test]
    fn a_lost_update_has_no_order() {
        let mut made = Made::ordinary();
        made.read_and_append("n2", 2, 950, 21, 21);
        made.read_and_append("n2", 2, 950, 21, 21);
        assert!(matches!(judge(&made.evidence).findings.as_slice(), [Finding::NoOrder { .. }]));
    }

    #[test]
    fn one_after_the_other_is_an_order() {
        let mut made = Made::ordinary();
        made.read_and_append("n2", 2, 950, 21, 22);
        let seen = made.left().lists[&22].clone();
        made.read("n2", 2, 970, &[(21, 0), (22, 0)]);
        assert_eq!((judge(&made.evidence).findings, seen.len()), (vec![], 1));
    }

    #[test]
    fn a_long_row_without_a_circle_is_walked_once() {
        let mut befores: Befores = (0..200_000).map(|id| (id, vec![id + 1])).collect();
        assert_eq!(circle(&befores), None);
        befores.insert(200_000, vec![199_998]);
        assert_eq!(circle(&befores), Some(vec![199_998, 199_999, 200_000]));
    }
}
