//! Lies planted into the evidence of a real run, and into that of one that did not come to its end: the judge has to find each.

use pgbaton::{
    lab::{
        torture::{Entry, Evidence, Finding, Outcome, Place, Remains, Step, Work, judge},
        verdict::{Judgement, RecordedLoss},
    },
    model::moment::Span,
};

/// A lie: what is changed, and whether a finding is the one that it has to lead to. `None` where the evidence has no place for it.
struct Lie {
    name: &'static str,
    plant: fn(&mut Evidence) -> Option<()>,
    is_found: fn(&Finding) -> bool,
}

const LIES: &[Lie] = &[
    Lie { name: "a lost row", plant: lost_row, is_found: |finding| matches!(finding, Finding::Lost(tail) if tail.rows == 1) },
    Lie { name: "a lost append", plant: lost_append, is_found: |finding| matches!(finding, Finding::Lost(_)) },
    Lie { name: "a lost transfer", plant: lost_transfer, is_found: |finding| matches!(finding, Finding::Money { seen_by: None, .. }) },
    Lie { name: "a double writer", plant: double_writer, is_found: |finding| matches!(finding, Finding::TwoWriters(_)) },
    Lie { name: "two histories of a list", plant: fork, is_found: |finding| matches!(finding, Finding::Fork { .. }) },
    Lie { name: "a stale read", plant: stale_read, is_found: |finding| matches!(finding, Finding::Stale { .. }) },
    Lie { name: "half a transfer", plant: half_transfer, is_found: |finding| matches!(finding, Finding::Money { account: 0, .. }) },
    Lie { name: "a refused row that is there", plant: refused_row, is_found: |finding| matches!(finding, Finding::Stranger { .. }) },
    Lie { name: "a lost row and records that excuse anything", plant: excused_row, is_found: is_amid },
    Lie { name: "a record of too much", plant: too_much, is_found: |finding| matches!(finding, Finding::TooMuch { .. }) },
    Lie { name: "a client that panicked", plant: panicked, is_found: |finding| matches!(finding, Finding::Broken { .. }) },
];

/// Those that what clients were told shows.
const WITHOUT_END: &[Lie] = &[
    Lie { name: "a double writer, without an end", plant: double_writer, is_found: |finding| matches!(finding, Finding::TwoWriters(_)) },
    Lie { name: "a stale read, without an end", plant: stale_read, is_found: |finding| matches!(finding, Finding::Stale { .. }) },
    Lie {
        name: "half a transfer in a read, without an end",
        plant: half_read,
        is_found: |finding| matches!(finding, Finding::Money { seen_by: Some(_), .. }),
    },
    Lie {
        name: "a refused append that a read saw, without an end",
        plant: refused_append,
        is_found: |finding| matches!(finding, Finding::Stranger { .. }),
    },
];

/// The lies that were not found, and those that had no place, in evidence in which all is well.
pub(crate) fn unnoticed(evidence: &Evidence) -> Vec<&'static str> {
    let unnoticed = |evidence: &Evidence, lies: &[Lie]| -> Vec<&'static str> {
        let is_silent = |lie: &&Lie| {
            let mut told = evidence.clone();
            (lie.plant)(&mut told).is_none_or(|()| !judge(&told).findings.iter().any(lie.is_found))
        };
        lies.iter().filter(is_silent).map(|lie| lie.name).collect()
    };
    let unended = Evidence { remains: None, ..evidence.clone() };
    let slander = judge(&unended).findings.is_empty().then(Vec::new).unwrap_or_else(|| vec!["that all was well, without an end"]);
    [unnoticed(evidence, LIES), unnoticed(&unended, WITHOUT_END), slander].concat()
}

fn left(evidence: &mut Evidence) -> Option<&mut Remains> {
    evidence.remains.as_mut()
}

fn is_amid(finding: &Finding) -> bool {
    matches!(finding, Finding::Lost(tail) if tail.judgement == Judgement::Amid)
}

fn acknowledged(evidence: &Evidence, what: impl Fn(&Entry) -> bool) -> Option<usize> {
    let half = evidence.entries.len() / 2;
    // In the middle of the run, with something before it and after it.
    let there = evidence.entries.iter().skip(half).position(|entry| entry.is_acknowledged() && what(entry));
    there.map(|at| at + half)
}

fn lost_row(evidence: &mut Evidence) -> Option<()> {
    let row = evidence.entries[acknowledged(evidence, |entry| entry.work == Work::Insert)?].row();
    left(evidence)?.rows.remove(&row).then_some(())
}

fn lost_append(evidence: &mut Evidence) -> Option<()> {
    let entry = evidence.entries[acknowledged(evidence, |entry| entry.appends().count() == 1)?].clone();
    let items = left(evidence)?.lists.get_mut(&entry.appends().next()?)?;
    items.retain(|item| *item != entry.id);
    Some(())
}

fn lost_transfer(evidence: &mut Evidence) -> Option<()> {
    let id = evidence.entries[acknowledged(evidence, |entry| matches!(entry.work, Work::Transfer(_)))?].id;
    left(evidence)?.transfers.remove(&id).map(|_| ())
}

/// The last write of the first primary comes once more, just after its successor's first one.
fn double_writer(evidence: &mut Evidence) -> Option<()> {
    let writes = |entry: &&Entry| entry.is_acknowledged() && entry.work == Work::Insert;
    let first = evidence.entries.iter().find(writes)?.place;
    let newer = evidence.entries.iter().find(|entry| writes(entry) && entry.place != first)?.at;
    let last =
        evidence.entries.iter_mut().rev().find(|entry| entry.is_acknowledged() && entry.work == Work::Insert && entry.place == first)?;
    last.at = newer.plus(Span::from_millis(1));
    Some(())
}

/// What two servers would leave that both appended: the read of one, and the list of the other.
fn fork(evidence: &mut Evidence) -> Option<()> {
    let read = |entry: &&Entry| entry.is_acknowledged() && entry.reads().any(|(_, seen)| seen.len() > 1);
    let key = evidence.entries.iter().find(read)?.reads().find(|(_, seen)| seen.len() > 1)?.0;
    left(evidence)?.lists.get_mut(&key)?.swap(0, 1);
    Some(())
}

/// A read of a primary forgets the end of what was acknowledged by that same primary long before.
fn stale_read(evidence: &mut Evidence) -> Option<()> {
    let at = acknowledged(evidence, |entry| {
        let fresh = |(key, seen): (u64, &[u64])| {
            let before = |other: &&Entry| seen.contains(&other.id) && other.appends().any(|of| of == key);
            let appended = evidence.entries.iter().find(before);
            appended.is_some_and(|other| other.is_acknowledged() && other.at < entry.sent && other.place == entry.place)
        };
        matches!(entry.place, Place::Primary(_)) && !entry.writes() && entry.reads().any(fresh)
    })?;
    let Work::Lists(steps) = &mut evidence.entries[at].work else { return None };
    for step in steps {
        if let Step::Read(_, seen) = step {
            seen.clear();
        }
    }
    Some(())
}

fn half_transfer(evidence: &mut Evidence) -> Option<()> {
    *left(evidence)?.balances.first_mut()? -= 3;
    Some(())
}

fn refused_row(evidence: &mut Evidence) -> Option<()> {
    let at = acknowledged(evidence, |entry| entry.work == Work::Insert)?;
    evidence.entries[at].outcome = Outcome::Refused("read-only".into());
    Some(())
}

/// In `async`, with a record of every timeline that any loss is within: but something that was sent later is there.
fn excused_row(evidence: &mut Evidence) -> Option<()> {
    let later = |entry: &Entry| {
        let after =
            |other: &&Entry| other.is_acknowledged() && other.work == Work::Insert && other.place == entry.place && other.sent > entry.at;
        evidence.entries.iter().any(|other| after(&other))
    };
    let row = evidence.entries[acknowledged(evidence, |entry| entry.work == Work::Insert && later(entry))?].row();
    let timelines = evidence.entries.iter().filter_map(Entry::tli).collect::<std::collections::BTreeSet<_>>();
    let record = |left| RecordedLoss { left, switch: Some(0), kept: Some(0), bound: Some(u64::MAX), unseen: Span::from_secs(3_600) };
    evidence.recorded = timelines.into_iter().map(record).collect();
    evidence.limits.lossless = false;
    left(evidence)?.rows.remove(&row).then_some(())
}

fn too_much(evidence: &mut Evidence) -> Option<()> {
    evidence.limits.most = Some(1 << 20);
    let bound = Some(2 << 20);
    evidence.recorded.push(RecordedLoss { left: 1, switch: Some(0), kept: Some(0), bound, unseen: Span::from_secs(1) });
    Some(())
}

fn panicked(evidence: &mut Evidence) -> Option<()> {
    evidence.broken.push("main-rows".into());
    Some(())
}

fn half_read(evidence: &mut Evidence) -> Option<()> {
    let at = acknowledged(evidence, |entry| matches!(entry.work, Work::Balances(_)))?;
    let Work::Balances(balances) = &mut evidence.entries[at].work else { return None };
    *balances.first_mut()? -= 3;
    Some(())
}

fn refused_append(evidence: &mut Evidence) -> Option<()> {
    let seen: Vec<u64> = evidence
        .entries
        .iter()
        .filter(|entry| entry.is_acknowledged())
        .flat_map(Entry::reads)
        .flat_map(|(_, seen)| seen)
        .copied()
        .collect();
    let item = *seen.get(seen.len() / 2)?;
    evidence.entries.iter_mut().find(|entry| entry.id == item)?.outcome = Outcome::Refused("read-only".into());
    Some(())
}
