//! The ledger of timelines: which ids exist, whose they are, and the text of every history file.

use super::{
    decision::{Action, Task},
    draft::Draft,
    snapshot::Snapshot,
};
use crate::model::{
    instance::Whole,
    lsn::Lsn,
    moment::Span,
    node::Replica,
    record::{GivenUp, LeaderRecord, Stored, TimelineRecord, TimelineState},
    term::Term,
    timeline::{TimelineHistory, TimelineId},
};
use std::collections::BTreeMap;

/// Whether WAL of timeline `tli` up to `lsn` is not on the way of the history in this text: that is never on `tli`, or left it before.
pub(super) fn goes_another_way(s: &Snapshot, text: &str, tli: TimelineId, lsn: Lsn) -> bool {
    TimelineHistory::left(text, tli).is_none_or(|fork| s.layout.boundary(fork) < lsn)
}

/// The newest id that the ledger knows in any state: the next reservation follows it.
pub(super) fn newest(s: &Snapshot) -> Option<TimelineId> {
    s.known_timelines().last().copied()
}

/// The id that is reserved for us in the term of this record.
pub(super) fn reserved_by_us(s: &Snapshot, leader: &Stored<LeaderRecord>) -> Option<TimelineId> {
    let ours =
        |entry: &TimelineRecord| entry.state == TimelineState::Reserved && entry.owner == s.myself() && entry.term == leader.record.term;
    s.etcd.records.timelines.iter().rev().find(|(_, stored)| ours(&stored.record)).map(|(tli, _)| *tli)
}

/// The newest `used` id, and to whom it belongs.
pub(super) fn newest_used(s: &Snapshot) -> Option<(TimelineId, Replica)> {
    let records = &s.etcd.records;
    let ours = records.timelines.iter().rev().find(|(_, stored)| stored.record.state == TimelineState::Used);
    let ours = ours.map(|(tli, stored)| (*tli, stored.record.owner.clone()));
    let base = records.base.as_ref().map(|base| (base.record.newest, base.record.owner.clone()));
    match (ours, base) {
        (Some(ours), Some(base)) => Some(if ours.0 >= base.0 { ours } else { base }),
        (ours, base) => ours.or(base),
    }
}

/// The ledger's entry of `tli`.
pub(super) fn entry(s: &Snapshot, tli: TimelineId) -> Option<&TimelineRecord> {
    s.etcd.records.timelines.get(&tli).map(|stored| &stored.record)
}

/// Where the history of `tli` forked, oldest first. `None` where the ledger does not know it.
pub(super) fn history(s: &Snapshot, tli: TimelineId) -> Option<TimelineHistory> {
    if let Some(entry) = entry(s, tli) {
        return (entry.state == TimelineState::Used).then(|| entry.history.parse().ok()).flatten();
    }
    let base = &s.etcd.records.base.as_ref()?.record;
    match base.histories.get(&tli) {
        Some(text) => text.parse().ok(),
        None if tli <= base.newest => Some(TimelineHistory::default()),
        None => None,
    }
}

/// The text of every history file that a node must have before it follows or promotes, by id.
///
/// A gap strands replicas. Of burnt ids the text is a comment: PostgreSQL then skips the id (EXP-4).
pub fn texts(s: &Snapshot) -> BTreeMap<TimelineId, String> {
    owned(known_texts(s))
}

fn known_texts(s: &Snapshot) -> BTreeMap<TimelineId, &str> {
    let records = &s.etcd.records;
    let base = records.base.iter().flat_map(|base| base.record.histories.iter().map(|(tli, text)| (*tli, text.as_str())));
    let written = |record: &TimelineRecord| record.state != TimelineState::Reserved;
    let ours = records.timelines.iter().filter(|(tli, stored)| **tli != TimelineId::FIRST && written(&stored.record));
    base.chain(ours.map(|(tli, stored)| (*tli, stored.record.history.as_str()))).collect()
}

fn owned(texts: BTreeMap<TimelineId, &str>) -> BTreeMap<TimelineId, String> {
    texts.into_iter().map(|(tli, text)| (tli, text.to_owned())).collect()
}

/// The ids that were given out after `since` and lead nowhere: burnt ones, and those of a claimant that came up and was followed by somebody
/// who did not have its timeline before anyone knew that it served. `on`: the one that goes on.
///
/// `longest`: for how long a claimant may have acknowledged unseen.
pub(super) fn given_up(s: &Snapshot, since: TimelineId, on: TimelineId, longest: Span) -> Vec<GivenUp> {
    let ended = |record: &TimelineRecord| record.state != TimelineState::Reserved;
    let later = s.etcd.records.timelines.iter().filter(|(given, stored)| **given > since && **given != on && ended(&stored.record));
    let given_up = later.map(|(tli, stored)| GivenUp {
        tli: *tli,
        node: stored.record.owner.node.clone(),
        term: stored.record.term,
        unseen_ms: longest.as_millis(),
    });
    given_up.collect()
}

/// Whether this id leads nowhere.
pub(super) fn is_burnt(s: &Snapshot, tli: TimelineId) -> bool {
    entry(s, tli).is_some_and(|entry| entry.state == TimelineState::Burnt)
}

/// What counts of a log that ends there, whose timeline has this history: what lies on a timeline that was given up was acknowledged to nobody, what
/// it grew out of may have been.
pub(super) fn counted(s: &Snapshot, history: &str, end: Whole) -> Whole {
    let (Ok(history), mut end) = (history.parse::<TimelineHistory>(), end) else { return end };
    for fork in history.forks().iter().rev() {
        if !is_burnt(s, end.tli) {
            break;
        }
        end = Whole { tli: fork.parent, lsn: end.lsn.min(s.layout.boundary(fork.at)) };
    }
    end
}

/// The timeline that ids which were given up grew out of, or `least` where that is passed on the way. Where it was left their texts here may not say any more: who holds it
/// up to the position that was seen on the id lacks nothing that counts.
pub(super) fn grown_out_of(s: &Snapshot, tli: TimelineId, least: TimelineId) -> TimelineId {
    let mut tli = tli;
    while tli != least && is_burnt(s, tli) {
        let Some(parent) = entry(s, tli).and_then(|entry| entry.parent).filter(|parent| *parent < tli) else { break };
        tli = parent;
    }
    tli
}

/// The text of a burnt id's history file.
pub(super) fn burnt_text(tli: TimelineId, term: Term) -> String {
    format!("# timeline {tli} was given up in term {term}\n")
}

/// The history files that a running server still lacks, of the whole ledger: a promotion then skips every burnt id.
pub(super) fn texts_missing(s: &Snapshot) -> BTreeMap<TimelineId, String> {
    let mut texts = known_texts(s);
    texts.retain(|tli, text| !s.histories.get(tli).is_some_and(|there| says_the_same(there, text)));
    owned(texts)
}

/// The same for a standby on its way to `tli`: without ids that were given up later. Recovery looks at the newest file alone (`rescanLatestTimeLine`), and
/// does not go on where no real history ends with it. A promotion is told of the rest.
pub(super) fn texts_on_the_way(s: &Snapshot, tli: TimelineId) -> BTreeMap<TimelineId, String> {
    let mut texts = texts_missing(s);
    texts.retain(|other, _| *other <= tli);
    texts
}

/// Puts history files in place. After a failure it is looked at first what is there.
pub(super) fn put(s: &Snapshot, d: &mut Draft, texts: BTreeMap<TimelineId, String>) {
    let failed = s.failures.contains_key(&Task::WriteHistories);
    d.act(s, if failed && s.disk().is_none() { Action::InspectDisk } else { Action::WriteHistories(texts) });
}

/// A history file here that says something else than the ledger: somebody promoted to an id that was then burnt (EXP-29).
///
/// A running server may have taken it for its target: it is replaced while PostgreSQL is stopped.
pub(super) fn conflict(s: &Snapshot) -> Option<TimelineId> {
    known_texts(s).into_iter().find(|(tli, text)| s.histories.get(tli).is_some_and(|there| !says_the_same(there, text))).map(|(tli, _)| tli)
}

/// Whether a directory's timeline is not the one that the ledger knows by that number: each was made by another node (EXP-7).
pub(super) fn is_of_another(s: &Snapshot, tli: TimelineId, histories: &BTreeMap<TimelineId, String>) -> bool {
    let there = histories.get(&tli).filter(|text| is_real(text));
    known_texts(s).get(&tli).filter(|text| is_real(text)).zip(there).is_some_and(|(known, there)| !says_the_same(there, known))
}

/// What is wrong with the history files before a start: what has to be written; `None` when all is well.
///
/// A server that starts in recovery takes the newest history file for its target, and dies where that is a comment of a burnt
/// id. So those that no real history follows must not be there at a start; they come back once it runs.
pub(super) fn wrong_before_start(s: &Snapshot) -> Option<BTreeMap<TimelineId, String>> {
    let texts = known_texts(s);
    let newest = newest_real(&texts).max(newest_real(&s.histories)).unwrap_or(TimelineId::FIRST);
    let missing = texts.range(..=newest).any(|(tli, text)| !s.histories.get(tli).is_some_and(|there| says_the_same(there, text)));
    let trailing = s.histories.keys().any(|tli| *tli > newest);
    (missing || trailing).then(|| owned(texts))
}

/// Real history files here of ids that the ledger has burnt, newer than what `pg_control` is on: a promotion that nobody came to know of.
/// A standby that finds one goes there. `Some`: what is written instead, of the files that are here.
pub(super) fn burnt_but_real(s: &Snapshot, on: TimelineId) -> Option<BTreeMap<TimelineId, String>> {
    let found = s.histories.iter().any(|(tli, text)| *tli > on && is_burnt(s, *tli) && is_real(text));
    found.then(|| owned(known_texts(s).into_iter().filter(|(tli, _)| s.histories.contains_key(tli)).collect()))
}

/// Comments of burnt ids that no real history on this disk follows: at a start they would be taken for the target. `Some`: what stays.
pub(super) fn trailing_placeholders(s: &Snapshot) -> Option<BTreeMap<TimelineId, String>> {
    let newest = newest_real(&s.histories);
    let trailing = s.histories.keys().any(|tli| newest.is_none_or(|newest| *tli > newest));
    trailing.then(|| {
        s.histories.iter().filter(|(tli, _)| newest.is_some_and(|newest| **tli <= newest)).map(|(tli, text)| (*tli, text.clone())).collect()
    })
}

/// Whether two history texts name the same forks: reasons and comments do not count.
fn says_the_same(one: &str, other: &str) -> bool {
    let forks = |text: &str| text.parse::<TimelineHistory>().ok();
    // After many failovers there are many texts, of which each decision asks: most are what was written.
    one == other || forks(one).is_some() && forks(one) == forks(other)
}

/// The newest timeline among these that somebody used.
pub(super) fn newest_real<T: AsRef<str>>(texts: &BTreeMap<TimelineId, T>) -> Option<TimelineId> {
    texts.iter().rev().find(|(_, text)| is_real(text.as_ref())).map(|(tli, _)| *tli)
}

/// Whether the text is of a timeline that somebody used: burnt ids have a comment only.
pub(super) fn is_real(text: &str) -> bool {
    text.parse::<TimelineHistory>().is_ok_and(|history| history.last().is_some())
}
