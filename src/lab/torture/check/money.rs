//! Money is neither made nor lost: at the end, and in whatever any server ever showed.

use super::{
    super::history::{Evidence, Transfer, Work},
    Finding, Known,
};

/// What is wrong with the money.
pub(super) fn findings(known: &Known<'_>) -> Vec<Finding> {
    let (evidence, remains) = (known.evidence, known.remains);
    let mut ought = vec![evidence.start; remains.balances.len()];
    for Transfer { from, to, amount } in remains.transfers.values() {
        for (account, change) in [(from, -amount), (to, *amount)] {
            let at = usize::try_from(*account).ok().and_then(|number| ought.get_mut(number.checked_sub(1)?));
            at.into_iter().for_each(|balance| *balance += change);
        }
    }
    let differ = remains.balances.iter().zip(&ought).enumerate().filter(|(_, (has, ought))| has != ought);
    let mut found: Vec<Finding> =
        differ.map(|(at, (has, ought))| Finding::Money { account: at + 1, has: *has, ought: *ought, seen_by: None }).collect();
    found.extend(wrong_total(evidence.start, remains.balances.len(), &remains.balances, None));
    found.extend(totals_seen(evidence, |_| remains.balances.len()));
    let logged = remains.transfers.iter();
    found.extend(logged.filter_map(|(id, transfer)| known.stranger(*id, "transfer", |entry| entry.work == Work::Transfer(*transfer))));
    found
}

/// The same of what was read, without what is left at the end.
pub(super) fn seen(evidence: &Evidence) -> impl Iterator<Item = Finding> {
    totals_seen(evidence, <[i64]>::len)
}

fn totals_seen(evidence: &Evidence, accounts: impl Fn(&[i64]) -> usize) -> impl Iterator<Item = Finding> {
    evidence.entries.iter().filter(|entry| entry.is_acknowledged()).filter_map(move |entry| match &entry.work {
        Work::Balances(balances) => wrong_total(evidence.start, accounts(balances), balances, Some(entry.id)),
        _ => None,
    })
}

fn wrong_total(start: i64, accounts: usize, balances: &[i64], seen_by: Option<u64>) -> Option<Finding> {
    let (has, ought) = (balances.iter().sum(), start * i64::try_from(accounts).unwrap_or(i64::MAX));
    (has != ought).then_some(Finding::Money { account: 0, has, ought, seen_by })
}

#[cfg(test)]
mod tests {
    use super::super::{judge, made::Made};
    use super::*;

    /// Planted: the money left one account and did not reach the other.
    #[test]
    fn half_a_transfer_is_found_at_the_end() {
        let mut made = Made::ordinary();
        made.left().balances[1] -= 5;
        let (has, total) = (made.left().balances[1], made.evidence.start * 3);
        let expected = [
            Finding::Money { account: 2, has, ought: has + 5, seen_by: None },
            Finding::Money { account: 0, has: total - 5, ought: total, seen_by: None },
        ];
        assert_eq!(judge(&made.evidence).findings, expected);
    }

    /// The total is right, and the log says something else.
    #[test]
    fn a_transfer_without_its_log_is_found() {
        let mut made = Made::ordinary();
        made.left().balances[0] -= 7;
        made.left().balances[2] += 7;
        assert_eq!(judge(&made.evidence).findings.len(), 2);
    }

    #[test]
    fn half_a_transfer_that_a_read_saw_is_found() {
        let mut made = Made::ordinary();
        let id = made.balances("n3", 970, vec![99, 100, 100]);
        let expected = [Finding::Money { account: 0, has: 299, ought: 300, seen_by: Some(id) }];
        assert_eq!(judge(&made.evidence).findings, expected);
    }

    #[test]
    fn a_transfer_that_nobody_made_is_found() {
        let mut made = Made::ordinary();
        made.left().transfers.insert(7_000, Transfer { from: 1, to: 1, amount: 1 });
        assert_eq!(
            judge(&made.evidence).findings,
            [Finding::Stranger { id: 7_000, what: "transfer".into(), why: "was sent by nobody".into() }]
        );
    }
}
