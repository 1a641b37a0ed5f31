//! Two writers, losses, and writes that nobody was told of.

use super::{
    super::{
        super::verdict::{self, LostTail},
        history::{Evidence, Work},
    },
    Finding, Known,
};
use crate::model::moment::Span;
use std::collections::BTreeSet;

/// Who acknowledged beside another primary: by what clients were told alone.
pub(super) fn two_writers(evidence: &Evidence) -> impl Iterator<Item = Finding> {
    verdict::two_writers(&evidence.journals()).into_iter().map(Finding::TwoWriters)
}

/// Changes of primary that recorded more than is allowed. The records need not have been read to the end for that.
///
/// Where the end of the former primary's WAL was known (nothing is unseen then) the bound counts from that end, and the new one was measured by the
/// last position before it.
pub(super) fn too_much(evidence: &Evidence) -> impl Iterator<Item = Finding> {
    let guessed = evidence.recorded.iter().filter(|record| record.unseen > Span::ZERO);
    guessed.filter_map(|record| {
        let (bound, most) = (record.bound?, evidence.limits.most?);
        (bound > most).then_some(Finding::TooMuch { left: record.left, bound, most })
    })
}

/// What must not be lost, or be there, and the losses that were announced.
pub(super) fn findings(known: &Known<'_>) -> (Vec<Finding>, Vec<LostTail>) {
    let (evidence, remains) = (known.evidence, known.remains);
    let lost = verdict::lost(&evidence.journals(), &evidence.survivors(remains), &evidence.recorded);
    let (announced, others): (Vec<_>, Vec<_>) = lost.into_iter().partition(|tail| !evidence.limits.lossless && tail.is_announced());
    let mut found: Vec<Finding> = others.into_iter().map(Finding::Lost).collect();
    // Islands count what they were refused without its number, so nothing can be said of their rows.
    let clients: BTreeSet<&str> = evidence.entries.iter().map(|entry| entry.client.as_str()).collect();
    let rows = remains.rows.iter().filter(|row| clients.contains(row.client.as_str()));
    found.extend(rows.filter_map(|row| known.stranger(row.seq, "row", |entry| entry.work == Work::Insert && entry.client == row.client)));
    (found, announced)
}

#[cfg(test)]
mod tests {
    use super::super::{super::history::Outcome, made::Made};
    use super::*;

    #[test]
    fn a_history_in_which_all_is_well_proves_nothing() {
        let verdict = super::super::judge(&Made::ordinary().evidence);
        assert_eq!(verdict.findings, []);
        assert!(verdict.operations >= 12 && verdict.timelines == 2 && verdict.reads >= 4, "{verdict:?}");
    }

    /// Planted: an acknowledged row, list item, transfer is not there.
    #[test]
    fn a_loss_is_found_in_each_kind_of_writes() {
        for (client, lose) in [
            ("rows", (|made| made.left().rows.clear()) as fn(&mut Made)),
            ("bank", |made| made.left().transfers.clear()),
            ("lists", |made| made.left().lists.values_mut().for_each(Vec::clear)),
        ] {
            let mut made = Made::ordinary();
            lose(&mut made);
            let found = super::super::judge(&made.evidence).findings;
            let lost = |finding: &Finding| matches!(finding, Finding::Lost(tail) if tail.examples.iter().any(|row| row.client == client));
            assert!(found.iter().any(lost), "{client}: {found:?}");
        }
    }

    /// What is announced may be lost in `async`, and nowhere else.
    #[test]
    fn a_recorded_bound_excuses_a_loss_in_async_alone() {
        for lossless in [false, true] {
            let mut made = Made::ordinary();
            let gone = made.insert("n1", 1, 90);
            made.left().rows.retain(|row| row.seq != gone);
            made.evidence.recorded.push(verdict::RecordedLoss {
                left: 1,
                switch: Some(0),
                kept: Some(0),
                bound: Some(1 << 20),
                unseen: Span::ZERO,
            });
            made.evidence.limits.lossless = lossless;
            let verdict = super::super::judge(&made.evidence);
            assert_eq!((verdict.findings.is_empty(), verdict.lost()), (!lossless, 1), "{verdict:?}");
        }
    }

    /// Planted: whoever took over lacked more than `max_lag` allows.
    #[test]
    fn a_change_of_primary_that_cost_more_than_it_may_is_found() {
        let judge = |bound, unseen, most| {
            let mut made = Made::ordinary();
            made.evidence.limits.most = most;
            made.evidence.recorded.push(verdict::RecordedLoss {
                left: 1,
                switch: Some(0),
                kept: Some(0),
                bound,
                unseen: Span::from_secs(unseen),
            });
            super::super::judge(&made.evidence).findings
        };
        assert_eq!(judge(Some(101), 3, Some(100)), [Finding::TooMuch { left: 1, bound: 101, most: 100 }]);
        for (bound, unseen, most) in [(Some(100), 3, Some(100)), (Some(101), 0, Some(100)), (Some(101), 3, None), (None, 3, Some(100))] {
            assert_eq!(judge(bound, unseen, most), [], "{bound:?} {unseen} {most:?}");
        }
    }

    /// Planted: the old primary acknowledges once more after the new one has begun.
    #[test]
    fn a_double_writer_is_found() {
        let mut made = Made::ordinary();
        made.insert("n1", 1, 950);
        let found = super::super::judge(&made.evidence).findings;
        assert!(matches!(found.as_slice(), [Finding::TwoWriters(proof)] if proof.older == ("n1".to_owned(), 1)), "{found:?}");
    }

    #[test]
    fn what_was_refused_may_not_be_there() {
        let mut made = Made::ordinary();
        let id = made.insert("n2", 2, 960);
        made.entry(id).outcome = Outcome::Refused("read only".into());
        let found = super::super::judge(&made.evidence).findings;
        assert_eq!(found, [Finding::Stranger { id, what: "row".into(), why: "was refused: read only".into() }]);
        made.entry(id).outcome = Outcome::Unclear("connection closed".into());
        assert_eq!(super::super::judge(&made.evidence).findings, []);
    }
}
