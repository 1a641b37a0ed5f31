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

use super::{
    super::journal::Journal,
    history::{Entry, Evidence, Outcome, Place, Remains},
};
use crate::model::moment::Moment;
use std::collections::BTreeMap;

/// Judges a run. One that did not come to its end is judged by what clients were told alone: nothing is known then of losses, of what is there
/// although it should not be, and of one order of everything.
pub fn judge(evidence: &Evidence) -> Verdict {
    let nothing = Remains::default();
    let known = Known::of(evidence, evidence.remains.as_ref().unwrap_or(&nothing));
    let mut verdict = Verdict::default();
    let broken = evidence.broken.iter().cloned().chain(evidence.islands.iter().flat_map(Journal::broken_parts));
    verdict.findings.extend(broken.map(|client| Finding::Broken { client }));
    verdict.findings.extend(writes::two_writers(evidence));
    verdict.findings.extend(writes::too_much(evidence));
    match &evidence.remains {
        Some(remains) => {
            let (writes, losses) = writes::findings(&known);
            verdict.losses = losses;
            verdict.findings.extend(writes);
            verdict.findings.extend(money::findings(&known));
            lists::judge(&known, &mut verdict);
            verdict.findings.extend(order::finding(&known));
            verdict.findings.extend(remains.differ.iter().map(|node| Finding::OtherData { node: node.clone() }));
        }
        None => {
            verdict.findings.extend(money::seen(evidence));
            verdict.findings.extend(lists::seen(&known));
        }
    }
    verdict.count(evidence);
    verdict
}

/// The evidence, and what is looked up in it again and again.
struct Known<'a> {
    evidence: &'a Evidence,
    /// What is left, nothing where that was not read.
    remains: &'a Remains,
    by_id: BTreeMap<u64, &'a Entry>,
    /// When a primary acknowledged its first write: its voters hold everything that it came up with by then.
    confirmed: BTreeMap<(&'a str, u32), Moment>,
    /// When a timeline was first heard of in an acknowledged answer.
    heard: BTreeMap<u32, Moment>,
    /// Where each item of a list is.
    positions: BTreeMap<(u64, u64), usize>,
}

impl<'a> Known<'a> {
    fn of(evidence: &'a Evidence, remains: &'a Remains) -> Self {
        let (mut confirmed, mut heard) = (BTreeMap::new(), BTreeMap::new());
        for entry in evidence.entries.iter().filter(|entry| entry.is_acknowledged()) {
            let Place::Primary(tli) = entry.place else { continue };
            earliest(&mut heard, tli, entry.at);
            if entry.writes() {
                earliest(&mut confirmed, (entry.node.as_str(), tli), entry.at);
            }
        }
        let lists = &remains.lists;
        let positions = lists.iter().flat_map(|(key, items)| items.iter().enumerate().map(|(at, item)| ((*key, *item), at)));
        let positions = positions.collect();
        let by_id = evidence.entries.iter().map(|entry| (entry.id, entry)).collect();
        Self { evidence, remains, by_id, confirmed, heard, positions }
    }

    fn list(&self, key: u64) -> &'a [u64] {
        self.remains.lists.get(&key).map_or(&[], Vec::as_slice)
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

#[cfg(test)]
mod tests {
    use super::{super::history::Outcome, made::Made, *};
    use crate::model::moment::Span;

    fn findings(change: impl FnOnce(&mut Made)) -> Vec<Finding> {
        let mut made = Made::ordinary();
        change(&mut made);
        made.evidence.remains = None;
        judge(&made.evidence).findings
    }

    /// Planted: lies that need no look at what is left.
    #[test]
    fn a_run_that_did_not_end_is_judged_by_what_clients_were_told() {
        assert_eq!(findings(|_| ()), []);
        let found = findings(|made| {
            made.insert("n1", 1, 950);
        });
        assert!(matches!(found.as_slice(), [Finding::TwoWriters(_)]), "{found:?}");
        let found = findings(|made| {
            made.append("n2", 2, 950, &[1]);
            made.read("n2", 2, 960, &[(1, -1)]);
        });
        assert!(matches!(found.as_slice(), [Finding::Stale { key: 1, by, .. }] if *by == Span::from_millis(9)), "{found:?}");
        let found = findings(|made| {
            made.append("n2", 2, 950, &[1, 2]);
            made.read_replica("n3", 970, &[(1, 0), (2, -1)]);
        });
        assert!(matches!(found.as_slice(), [Finding::Half { .. }]), "{found:?}");
        let found = findings(|made| {
            made.balances("n3", 970, vec![99, 100, 100]);
        });
        assert!(matches!(found.as_slice(), [Finding::Money { has: 299, .. }]), "{found:?}");
        let found = findings(|made| {
            let item = made.append("n2", 2, 950, &[1]);
            made.entry(item).outcome = Outcome::Refused("read only".into());
            made.read("n2", 2, 970, &[(1, 0)]);
        });
        assert!(matches!(found.as_slice(), [Finding::Stranger { .. }]), "{found:?}");
    }

    /// How much a replica, or another primary, had to show is known at the end alone.
    #[test]
    fn what_may_be_old_is_not_judged_without_the_end() {
        let found = findings(|made| {
            made.append("n2", 2, 950, &[1]);
            made.read("n1", 1, 960, &[(1, -1)]);
            made.read("n2", 2, 950, &[(1, -1)]);
            made.read_replica("n3", 970, &[(1, -1)]);
        });
        assert_eq!(found, []);
    }

    #[test]
    fn a_client_that_panicked_is_found_with_and_without_an_end() {
        for ended in [true, false] {
            let mut made = Made::ordinary();
            made.evidence.broken.push("main-rows".into());
            made.evidence.islands.push(Journal { broken: vec!["its thread".into()], ..Journal::new("island1") });
            made.evidence.remains = made.evidence.remains.filter(|_| ended);
            let clients = ["main-rows", "island1, its thread,"].map(|client| Finding::Broken { client: client.to_owned() });
            assert_eq!(judge(&made.evidence).findings, clients);
        }
    }

    #[test]
    fn reads_are_acknowledged_and_write_nothing() {
        let mut made = Made::ordinary();
        let before = judge(&made.evidence);
        made.read("n2", 2, 950, &[(1, 0)]);
        made.balances("n3", 960, vec![80, 100, 120]);
        let after = judge(&made.evidence);
        assert_eq!((after.written, after.acknowledged, after.findings.len()), (before.written, before.acknowledged + 2, 0));
        assert!(before.written < before.acknowledged);
    }
}
