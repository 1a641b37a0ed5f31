//! What the evidence proves: pure functions of it, one question a file.
//!
//! - [`finding`]: what can be found;
//! - `writes`: two writers, losses, writes that are there though they were refused or nobody made them;
//! - `money`: balances, their total, and the log of transfers;
//! - `lists`: order, stale reads, reads of what vanished; `order`: whether any one order explains all transactions on lists;
//! - `made`: histories made for tests.

pub mod finding;
mod lists;
#[cfg(test)]
mod made;
mod money;
mod order;
mod writes;

pub use finding::{Finding, Verdict};

use super::history::{Entry, Evidence, Outcome, Place};
use crate::model::moment::Moment;
use std::collections::BTreeMap;

/// Judges a run.
pub fn judge(evidence: &Evidence) -> Verdict {
    let known = Known::of(evidence);
    let (writes, losses) = writes::findings(&known);
    let mut verdict = Verdict { losses, ..Verdict::default() };
    verdict.findings.extend(writes);
    verdict.findings.extend(money::findings(&known));
    lists::judge(&known, &mut verdict);
    verdict.findings.extend(order::finding(&known));
    verdict.findings.extend(evidence.remains.differ.iter().map(|node| Finding::OtherData { node: node.clone() }));
    verdict.count(evidence);
    verdict
}

/// The evidence, and what is looked up in it again and again.
struct Known<'a> {
    evidence: &'a Evidence,
    by_id: BTreeMap<u64, &'a Entry>,
    /// When a primary acknowledged its first write: its voters hold everything that it came up with by then.
    confirmed: BTreeMap<(&'a str, u32), Moment>,
    /// When a timeline was first heard of in an acknowledged answer.
    heard: BTreeMap<u32, Moment>,
    /// Where each item of a list is.
    positions: BTreeMap<(u64, u64), usize>,
}

impl<'a> Known<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let (mut confirmed, mut heard) = (BTreeMap::new(), BTreeMap::new());
        for entry in evidence.entries.iter().filter(|entry| entry.is_acknowledged()) {
            let Place::Primary(tli) = entry.place else { continue };
            earliest(&mut heard, tli, entry.at);
            if entry.writes() {
                earliest(&mut confirmed, (entry.node.as_str(), tli), entry.at);
            }
        }
        let lists = &evidence.remains.lists;
        let positions = lists.iter().flat_map(|(key, items)| items.iter().enumerate().map(|(at, item)| ((*key, *item), at)));
        let positions = positions.collect();
        let by_id = evidence.entries.iter().map(|entry| (entry.id, entry)).collect();
        Self { evidence, by_id, confirmed, heard, positions }
    }

    fn list(&self, key: u64) -> &'a [u64] {
        self.evidence.remains.lists.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Whether so many of the items that a read saw are the beginning of what is left.
    fn agreed(&self, key: u64, seen: &[u64]) -> usize {
        self.list(key).iter().zip(seen).take_while(|(left, right)| left == right).count()
    }

    /// What is wrong with something that is there under this number, if anything is. `made` says whether the entry could have made it.
    fn stranger(&self, id: u64, what: &str, made: impl Fn(&Entry) -> bool) -> Option<Finding> {
        let of = |why: &str| Some(Finding::Stranger { id, what: what.to_owned(), why: why.to_owned() });
        match self.by_id.get(&id) {
            Some(entry) if made(entry) => match &entry.outcome {
                Outcome::Refused(why) => of(&format!("was refused: {why}")),
                _ => None,
            },
            _ => of("was sent by nobody"),
        }
    }
}

fn earliest<K: Ord>(of: &mut BTreeMap<K, Moment>, key: K, at: Moment) {
    let first = of.entry(key).or_insert(at);
    *first = (*first).min(at);
}
