//! Lists: one order for all, nothing half, nothing stale, nothing that was shown and is gone.
//!
//! A list only grows at its end, so a read is right when it saw a beginning of the list at the end, and enough of it.

use super::{
    super::history::{Entry, Place},
    Finding, Known, Verdict,
};
use crate::model::moment::Moment;
use std::collections::{BTreeMap, BTreeSet};

/// Judges all that was appended and read.
pub(super) fn judge(known: &Known<'_>, verdict: &mut Verdict) {
    for (key, items) in &known.remains.lists {
        verdict.findings.extend(strangers(known, *key, items));
        verdict.findings.extend(reordered(known, *key, items));
    }
    let acknowledged = || known.evidence.entries.iter().filter(|entry| entry.is_acknowledged());
    verdict.findings.extend(known.evidence.entries.iter().filter_map(|entry| half(known, entry)));
    let signs = signs(known);
    for entry in acknowledged() {
        verdict.findings.extend(fractured(known, entry));
        for (key, seen) in entry.reads() {
            let read = Read { known, entry, key, seen, agreed: known.agreed(key, seen) };
            read.judge_rest(verdict);
            read.judge_freshness(signs.get(&key).map_or(&[], Vec::as_slice), verdict);
        }
    }
}

/// Judges reads by each other and by what was acknowledged, without what is left at the end.
pub(super) fn seen(known: &Known<'_>) -> Vec<Finding> {
    let acknowledged = || known.evidence.entries.iter().filter(|entry| entry.is_acknowledged());
    let mut appends: BTreeMap<u64, Vec<&Entry>> = BTreeMap::new();
    for entry in acknowledged() {
        entry.appends().for_each(|key| appends.entry(key).or_default().push(entry));
    }
    let mut found: Vec<Finding> = acknowledged().filter_map(|entry| fractured(known, entry)).collect();
    for (entry, (key, seen)) in acknowledged().flat_map(|entry| entry.reads().map(move |read| (entry, read))) {
        found.extend(strangers_seen(known, key, seen));
        // On the same timeline of the same node: how much another one had of it is known at the end alone.
        let same = |other: &&&Entry| other.tli().is_some() && (other.place, &other.node) == (entry.place, &entry.node);
        let missed = |other: &&&Entry| other.at < entry.sent && !seen.contains(&other.id);
        if let Some(other) = appends.get(&key).and_then(|all| all.iter().filter(same).find(missed)) {
            let (id, node, by) = (entry.id, entry.node.clone(), entry.sent.since(other.at));
            found.push(Finding::Stale { key, id, node, missed: other.id, by });
        }
    }
    found
}

/// Items that a read saw, and that nobody can have appended.
fn strangers_seen(known: &Known<'_>, key: u64, seen: &[u64]) -> Vec<Finding> {
    let made = |entry: &Entry| entry.appends().any(|of| of == key);
    let what = format!("read in list {key}:");
    seen.iter().filter_map(|item| known.stranger(*item, &what, made)).collect()
}

fn strangers(known: &Known<'_>, key: u64, items: &[u64]) -> Vec<Finding> {
    let made = |entry: &Entry| entry.appends().any(|of| of == key);
    let what = format!("in list {key}");
    let mut found: Vec<Finding> = items.iter().filter_map(|item| known.stranger(*item, &what, made)).collect();
    let mut met = BTreeSet::new();
    let twice = items.iter().filter(|item| !met.insert(**item));
    found.extend(twice.map(|item| Finding::Stranger { id: *item, what: what.clone(), why: "is there twice".into() }));
    found
}

/// Appends that stand in another order than time has it.
fn reordered(known: &Known<'_>, key: u64, items: &[u64]) -> Option<Finding> {
    let mut earliest: Option<(Moment, u64)> = None;
    for item in items.iter().rev() {
        let Some(entry) = known.by_id.get(item) else { continue };
        if let Some((_, first)) = earliest.filter(|(at, _)| *at < entry.sent) {
            return Some(Finding::Reordered { key, first, then: *item });
        }
        if entry.is_acknowledged() && earliest.is_none_or(|(at, _)| entry.at < at) {
            earliest = Some((entry.at, *item));
        }
    }
    None
}

/// A transaction that is there on one list and not on another.
fn half(known: &Known<'_>, entry: &Entry) -> Option<Finding> {
    let there = |key: &u64| known.positions.contains_key(&(*key, entry.id));
    let (with, without): (Vec<u64>, Vec<u64>) = entry.appends().partition(there);
    let what = format!("it is in lists {with:?} and not in {without:?}");
    (!with.is_empty() && !without.is_empty()).then_some(Finding::Half { id: entry.id, what })
}

/// A read that saw a transaction on one list and not on another, in one snapshot.
fn fractured(known: &Known<'_>, entry: &Entry) -> Option<Finding> {
    let reads: Vec<(u64, &[u64])> = entry.reads().collect();
    let others = |item: &u64| *item != entry.id;
    for item in reads.iter().flat_map(|(_, seen)| seen.iter()).filter(|item| others(item)) {
        let Some(writer) = known.by_id.get(item) else { continue };
        let appended: BTreeSet<u64> = writer.appends().collect();
        let missing = reads.iter().find(|(key, seen)| appended.contains(key) && !seen.contains(item));
        if let Some((key, _)) = missing {
            return Some(Finding::Half { id: *item, what: format!("transaction {} saw it, and not in list {key}", entry.id) });
        }
    }
    None
}

/// That so many items of a list were there: a moment at which somebody was told so, and the timeline that told it.
struct Sign {
    at: Moment,
    length: usize,
    tli: u32,
}

fn signs(known: &Known<'_>) -> BTreeMap<u64, Vec<Sign>> {
    let mut signs: BTreeMap<u64, Vec<Sign>> = BTreeMap::new();
    for entry in known.evidence.entries.iter().filter(|entry| entry.is_acknowledged()) {
        let Place::Primary(tli) = entry.place else { continue };
        let appended = entry.appends().filter_map(|key| Some((key, known.positions.get(&(key, entry.id))? + 1)));
        let read = entry.reads().map(|(key, seen)| (key, known.agreed(key, seen)));
        for (key, length) in appended.chain(read).filter(|(_, length)| *length > 0) {
            signs.entry(key).or_default().push(Sign { at: entry.at, length, tli });
        }
    }
    signs
}

/// One acknowledged read of a list.
struct Read<'a> {
    known: &'a Known<'a>,
    entry: &'a Entry,
    key: u64,
    seen: &'a [u64],
    /// How many of the items are the beginning of what is left.
    agreed: usize,
}

impl Read<'_> {
    /// What it saw beyond the beginning of what is left.
    fn judge_rest(&self, verdict: &mut Verdict) {
        let (known, key, id) = (self.known, self.key, self.entry.id);
        let rest = &self.seen[self.agreed..];
        if rest.iter().any(|item| known.positions.contains_key(&(key, *item))) {
            verdict.findings.push(Finding::Fork { key, id, seen: self.seen.to_vec() });
            return;
        }
        verdict.findings.extend(strangers_seen(known, key, rest));
        // Its own append is judged as a write.
        let Some(item) = rest.iter().find(|item| **item != id) else { return };
        if self.is_confirmed() && known.evidence.limits.lossless {
            verdict.findings.push(Finding::Vanished { key, id, node: self.entry.node.clone(), item: *item });
        } else {
            verdict.early_reads += 1;
        }
    }

    /// Whether it was asked of a primary that had acknowledged a write by then.
    fn is_confirmed(&self) -> bool {
        let since = self.entry.tli().and_then(|tli| self.known.confirmed.get(&(self.entry.node.as_str(), tli)));
        since.is_some_and(|since| *since < self.entry.sent)
    }

    /// What it missed. A replica may lag.
    fn judge_freshness(&self, signs: &[Sign], verdict: &mut Verdict) {
        let Some(tli) = self.entry.tli() else { return };
        let missed = signs.iter().filter(|sign| sign.length > self.agreed && sign.at < self.entry.sent);
        let (mut old, mut stale): (bool, Option<&Sign>) = (false, None);
        for sign in missed {
            if sign.tli > tli && self.may_be_old(tli) {
                old = true;
            } else if stale.is_none_or(|stale| sign.at < stale.at) {
                stale = Some(sign);
            }
        }
        if let Some(sign) = stale {
            let missed = self.known.list(self.key).get(self.agreed).copied().unwrap_or_default();
            let (key, id, node, by) = (self.key, self.entry.id, self.entry.node.clone(), self.entry.sent.since(sign.at));
            verdict.findings.push(Finding::Stale { key, id, node, missed, by });
        } else if old {
            verdict.old_reads += 1;
        }
    }

    /// Whether the lease of an older primary may have lasted until the answer.
    fn may_be_old(&self, tli: u32) -> bool {
        let newer = self.known.heard.range(tli + 1..).map(|(_, at)| *at).min();
        newer.is_some_and(|newer| self.entry.at < newer.plus(self.known.evidence.limits.old_reads))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{super::history::Step, judge, made::Made};
    use super::*;
    use crate::model::moment::Span;

    fn findings(made: &Made) -> Vec<Finding> {
        judge(&made.evidence).findings
    }

    /// Planted: a read that begins after an append was acknowledged, on the same primary, does not see it.
    #[test]
    fn a_stale_read_is_found() {
        let mut made = Made::ordinary();
        let item = made.append("n2", 2, 950, &[1]);
        let id = made.read("n2", 2, 960, &[(1, -1)]);
        let expected = Finding::Stale { key: 1, id, node: "n2".into(), missed: item, by: Span::from_millis(9) };
        assert_eq!(findings(&made)[0], expected);
        // At the same time is no order, and a replica may lag.
        let mut made = Made::ordinary();
        made.append("n2", 2, 950, &[1]);
        made.read("n2", 2, 951, &[(1, -1)]);
        made.read_replica("n3", 990, &[(1, -1)]);
        assert_eq!(findings(&made), []);
    }

    /// What a read has shown stays shown, acknowledged or not.
    #[test]
    fn a_read_that_goes_back_behind_another_one_is_stale() {
        let mut made = Made::ordinary();
        let item = made.append("n2", 2, 950, &[1]);
        made.entry(item).outcome = super::super::super::history::Outcome::Unclear("connection closed".into());
        made.read("n2", 2, 960, &[(1, 0)]);
        let id = made.read("n2", 2, 970, &[(1, -1)]);
        assert!(matches!(findings(&made).as_slice(), [Finding::Stale { id: found, .. }] if *found == id), "{:?}", findings(&made));
    }

    /// An older primary may show what is old for the rest of its lease, where it was followed without waiting for that.
    #[test]
    fn an_old_primary_may_be_old_for_one_lease_in_the_quorum_modes() {
        let judged = |old_reads, at| {
            let mut made = Made::ordinary();
            made.append("n2", 2, 950, &[1]);
            made.evidence.limits.old_reads = Span::from_millis(old_reads);
            made.read("n1", 1, at, &[(1, -1)]);
            let verdict = judge(&made.evidence);
            (verdict.findings.len(), verdict.old_reads)
        };
        // The new primary was heard of at 500 first.
        assert_eq!(judged(600, 1_050), (0, 1));
        assert_eq!(judged(600, 1_150), (1, 0));
        assert_eq!(judged(0, 1_050), (1, 0));
    }

    /// Planted: two primaries append to one list, and one of them is what is left.
    #[test]
    fn a_read_of_another_history_is_found() {
        let mut made = Made::ordinary();
        let item = made.append("n2", 2, 950, &[1]);
        let id = made.read("n2", 2, 960, &[(1, 0)]);
        made.left().lists.entry(1).or_default().swap(0, 1);
        assert!(findings(&made).iter().any(|finding| matches!(finding, Finding::Fork { id: found, .. } if *found == id)), "{item}");
    }

    #[test]
    fn what_a_confirmed_primary_showed_may_not_vanish() {
        let vanish = |node: &str, tli: Option<u32>, at| {
            let mut made = Made::ordinary();
            let item = made.append("n2", 2, 950, &[1]);
            made.entry(item).outcome = super::super::super::history::Outcome::Unclear("connection closed".into());
            match tli {
                Some(tli) => made.read(node, tli, at, &[(1, 0)]),
                None => made.read_replica(node, at, &[(1, 0)]),
            };
            made.left().lists.entry(1).or_default().retain(|left| *left != item);
            let verdict = judge(&made.evidence);
            (verdict.findings, verdict.early_reads)
        };
        let (found, _) = vanish("n2", Some(2), 960);
        assert!(matches!(found.as_slice(), [Finding::Vanished { .. }]), "{found:?}");
        // A replica, and a primary that has acknowledged nothing yet, may show what is never confirmed.
        assert_eq!(vanish("n3", None, 960), (vec![], 1));
        assert_eq!(vanish("n3", Some(3), 960), (vec![], 1));
    }

    #[test]
    fn half_a_transaction_is_found_at_the_end_and_in_a_read() {
        let mut made = Made::ordinary();
        let item = made.append("n2", 2, 950, &[1, 2]);
        made.read_replica("n3", 970, &[(1, 0), (2, -1)]);
        assert!(matches!(findings(&made).as_slice(), [Finding::Half { id, .. }] if *id == item), "{:?}", findings(&made));
        let mut made = Made::ordinary();
        let item = made.append("n2", 2, 950, &[1, 2]);
        made.entry(item).outcome = super::super::super::history::Outcome::Unclear("connection closed".into());
        made.left().lists.entry(2).or_default().retain(|left| *left != item);
        assert!(matches!(findings(&made).as_slice(), [Finding::Half { id, .. }] if *id == item), "{:?}", findings(&made));
    }

    #[test]
    fn appends_in_another_order_than_that_of_time_are_found() {
        let mut made = Made::ordinary();
        let first = made.append("n2", 2, 950, &[9]);
        let then = made.append("n2", 2, 960, &[9]);
        made.left().lists.insert(9, vec![then, first]);
        assert!(findings(&made).contains(&Finding::Reordered { key: 9, first, then }), "{:?}", findings(&made));
    }

    #[test]
    fn an_item_that_nobody_appended_is_found() {
        let mut made = Made::ordinary();
        made.left().lists.entry(1).or_default().push(8_000);
        let what = Finding::Stranger { id: 8_000, what: "in list 1".into(), why: "was sent by nobody".into() };
        assert_eq!(findings(&made), [what]);
        assert!(
            made.evidence
                .entries
                .iter()
                .any(|entry| matches!(&entry.work, super::super::super::history::Work::Lists(steps) if matches!(steps[0], Step::Read(..))))
        );
    }
}
