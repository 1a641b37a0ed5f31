//! What the evidence proves: two writers, and what was lost. Computed from journals alone.

use super::journal::{Ack, Journal};
use crate::model::{
    moment::{Moment, Span},
    record::HistoryRecord,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How many rows a proof names.
const EXAMPLES: usize = 10;

/// One acknowledged row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    /// Who wrote it.
    pub client: String,
    /// Its number.
    pub seq: u64,
}

/// Proof of two writers: an older primary acknowledged after a newer one had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwoWriters {
    /// The node that should have been silent, and its timeline.
    pub older: (String, u32),
    /// The node that had acknowledged already, and its timeline.
    pub newer: (String, u32),
    /// From the newer one's first acknowledgement to the older one's last.
    pub span: Span,
    /// How many writes the older one acknowledged in that time.
    pub acks: usize,
    /// To whom.
    pub clients: BTreeSet<String>,
    /// The first of them.
    pub examples: Vec<Row>,
}

/// The older node with its timeline, and the newer one with its own.
type Pair = (String, u32, String, u32);

/// All pairs of nodes that acknowledged at the same time.
///
/// Strict: one acknowledgement on a timeline, received after the first one on a higher timeline, is a violation; so is
/// one timeline that two nodes wrote. Every client of the run has to be given, those on isolated nodes above all.
pub fn two_writers(journals: &[Journal]) -> Vec<TwoWriters> {
    let all = || journals.iter().flat_map(|journal| journal.acks.iter().map(|ack| (journal.client.as_str(), ack)));
    let mut first: BTreeMap<(u32, &str), Moment> = BTreeMap::new();
    for (_, ack) in all() {
        let entry = first.entry((ack.tli, ack.node.as_str())).or_insert(ack.at);
        *entry = (*entry).min(ack.at);
    }
    // When anything later than each timeline was heard of: of most acknowledgements nothing else has to be looked at.
    let mut later: BTreeMap<u32, Moment> = BTreeMap::new();
    let mut earliest = Moment::MAX;
    for ((tli, _), since) in first.iter().rev() {
        later.entry(*tli).or_insert(earliest);
        earliest = earliest.min(*since);
    }
    let mut found: BTreeMap<Pair, Vec<(&str, &Ack)>> = BTreeMap::new();
    for (client, ack) in all() {
        let alone = later.get(&ack.tli).is_some_and(|later| ack.at <= *later);
        let until = if alone { ack.tli } else { u32::MAX };
        for ((tli, node), since) in first.range((ack.tli, "")..).take_while(|((tli, _), _)| *tli <= until) {
            let newer = *tli > ack.tli || *node != ack.node;
            if newer && ack.at > *since {
                found.entry((ack.node.clone(), ack.tli, (*node).to_owned(), *tli)).or_default().push((client, ack));
            }
        }
    }
    let proof = |((older, older_tli, newer, newer_tli), mut acks): (_, Vec<(&str, &Ack)>)| {
        acks.sort_by_key(|(_, ack)| ack.at);
        let since = first.get(&(newer_tli, String::as_str(&newer))).copied().unwrap_or_default();
        let last = acks.iter().map(|(_, ack)| ack.at).max().unwrap_or(since);
        let examples = acks.iter().take(EXAMPLES).map(|(client, ack)| Row { client: (*client).to_owned(), seq: ack.seq }).collect();
        let clients = acks.iter().map(|(client, _)| (*client).to_owned()).collect();
        TwoWriters { older: (older, older_tli), newer: (newer, newer_tli), span: last.since(since), acks: acks.len(), clients, examples }
    };
    found.into_iter().map(proof).collect()
}

/// What a promotion recorded about what it may lose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedLoss {
    /// The timeline that was left.
    pub left: u32,
    /// Where it was left.
    pub switch: Option<u64>,
    /// Everything of it that lies before this is in the timeline that followed: up to the switch, where the record shows that the switch is on no
    /// timeline between the two. 0 where it does not show that; `None` for a timeline that was given up, out of which nothing has grown.
    #[serde(default)]
    pub kept: Option<u64>,
    /// At most so many acknowledged bytes beyond that are lost; `None` where nothing bounds it.
    pub bound: Option<u64>,
    /// For how long the primary that was left may have gone on beyond the bound, unseen.
    pub unseen: Span,
}

/// What `history` records say about losses, in the order of their terms.
pub fn recorded(history: &[HistoryRecord]) -> Vec<RecordedLoss> {
    let mut history: Vec<&HistoryRecord> = history.iter().collect();
    history.sort_by_key(|record| record.term);
    // Nothing of a timeline that was given up is kept, from its first row on.
    let given_up = history.iter().flat_map(|record| &record.given_up).map(|given| RecordedLoss {
        left: given.tli.get(),
        switch: None,
        kept: None,
        bound: Some(0),
        unseen: Span::from_millis(given.unseen_ms),
    });
    let pairs = history.windows(2).filter_map(|pair| match pair {
        // A restart in place goes on on its timeline and leaves nothing behind.
        [former, record] if former.tli < record.tli => Some(RecordedLoss {
            left: former.tli.get(),
            switch: record.switch.map(|lsn| lsn.get()),
            kept: Some(kept(former, record)),
            bound: record.loss_bound,
            unseen: Span::from_millis(record.unseen_ms),
        }),
        _ => None,
    });
    pairs.chain(given_up).collect()
}

/// See [`RecordedLoss::kept`]. The switch is where the new timeline left its parent, and a record names as given up every id that was given out
/// after that parent: so the parent is the former timeline, or an older one, where all between are named.
fn kept(former: &HistoryRecord, record: &HistoryRecord) -> u64 {
    let given_up: BTreeSet<u32> = record.given_up.iter().map(|given| given.tli.get()).collect();
    let (left, next) = (former.tli.get(), record.tli.get());
    let shown = !given_up.contains(&left) && (left + 1..next).all(|between| given_up.contains(&between));
    record.switch.filter(|_| shown).map_or(0, |lsn| lsn.get())
}

/// What was lost of one timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostTail {
    /// The timeline.
    pub tli: u32,
    /// Who acknowledged the lost rows.
    pub nodes: BTreeSet<String>,
    /// How many acknowledged rows are missing.
    pub rows: usize,
    /// From the switch point to the last lost row: at least so many acknowledged bytes are lost. `None` where no
    /// record names the switch point.
    pub bytes: Option<u64>,
    /// Whether that was announced.
    pub judgement: Judgement,
    /// The first of the missing rows.
    pub examples: Vec<Row>,
}

/// Whether a loss was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// It is within the bound that the promotion recorded.
    Within,
    /// It is more than the bound that the promotion recorded.
    Exceeds,
    /// The promotion recorded that nothing bounds it.
    Unbounded,
    /// No promotion recorded anything about this timeline.
    Unrecorded,
    /// Part of it lies before something that is left, or before where the timeline was left: no promotion cuts that out, whatever it recorded.
    Amid,
}

/// Acknowledged rows that the final primary lacks, by timeline. Empty when nothing was lost.
pub fn lost(journals: &[Journal], survivors: &BTreeSet<Row>, records: &[RecordedLoss]) -> Vec<LostTail> {
    let all = || journals.iter().flat_map(|journal| journal.acks.iter().map(|ack| (&journal.client, ack)));
    let row = |client: &str, ack: &Ack| Row { client: client.to_owned(), seq: ack.seq };
    let certain = certain(all().map(|(client, ack)| (ack, survivors.contains(&row(client, ack)))), records);
    let mut tails: BTreeMap<u32, LostTail> = BTreeMap::new();
    let mut acks: BTreeMap<u32, Vec<&Ack>> = BTreeMap::new();
    for (client, ack) in all() {
        let row = row(client, ack);
        if survivors.contains(&row) {
            continue;
        }
        let tail = tails.entry(ack.tli).or_insert_with(|| LostTail {
            tli: ack.tli,
            nodes: BTreeSet::new(),
            rows: 0,
            bytes: None,
            judgement: Judgement::Unrecorded,
            examples: Vec::new(),
        });
        tail.rows += 1;
        tail.nodes.insert(ack.node.clone());
        if certain.get(&ack.tli).is_some_and(|sent| ack.at < *sent) {
            // Those first: of the others a record may tell.
            tail.judgement = Judgement::Amid;
            tail.examples.insert(0, row);
        } else {
            tail.examples.push(row);
        }
        tail.examples.truncate(EXAMPLES);
        acks.entry(ack.tli).or_default().push(ack);
    }
    for tail in tails.values_mut() {
        let Some(record) = records.iter().find(|record| record.left == tail.tli) else { continue };
        let acks = acks.remove(&tail.tli).unwrap_or_default();
        tail.bytes = record.switch.zip(acks.iter().map(|ack| ack.lsn).max()).map(|(switch, end)| end.saturating_sub(switch));
        tail.judgement = match (record.bound, tail.bytes) {
            _ if tail.judgement == Judgement::Amid => Judgement::Amid,
            (None, _) => Judgement::Unbounded,
            (Some(bound), bytes) if bytes.is_some_and(|bytes| bytes <= bound) || was_unseen(&acks, record) => Judgement::Within,
            // A loss whose size nobody can tell is not within anything, unless nothing at all was allowed to be told.
            (Some(_), _) => Judgement::Exceeds,
        };
    }
    tails.into_values().collect()
}

/// Of each timeline, when the last one of the writes was sent of which it is certain that it is part of what is left: every write that was acknowledged on
/// that timeline before then lies before it in the WAL, and is part of it too.
///
/// Its row is there; or its position, which was taken after it was sent, lies before the lowest place where this timeline or a later one was left. The
/// position of a write itself shows nothing of that kind: it is taken before its commit, which may lie far behind it.
fn certain<'a>(acks: impl Iterator<Item = (&'a Ack, bool)>, records: &[RecordedLoss]) -> BTreeMap<u32, Moment> {
    let kept = |tli: u32| {
        let all = records.iter().filter(|record| record.left >= tli).filter_map(|record| Some((record.left, record.kept?)));
        let own = all.clone().any(|(left, _)| left == tli);
        all.map(|(_, kept)| kept).min().filter(|_| own).unwrap_or_default()
    };
    let (mut places, mut certain) = (BTreeMap::new(), BTreeMap::new());
    for (ack, survives) in acks {
        let kept = *places.entry(ack.tli).or_insert_with(|| kept(ack.tli));
        // A position that could not be read is 0.
        if survives || (ack.lsn > 0 && ack.lsn <= kept) {
            let sent = certain.entry(ack.tli).or_insert(ack.sent);
            *sent = (*sent).max(ack.sent);
        }
    }
    certain
}

/// Whether the rows beyond the bound were acknowledged within the announced time, which begins before the first of them.
fn was_unseen(acks: &[&Ack], record: &RecordedLoss) -> bool {
    let known = record.switch.unwrap_or_default().saturating_add(record.bound.unwrap_or_default());
    let beyond = || acks.iter().filter(|ack| ack.lsn > known).map(|ack| ack.at);
    let lasted = beyond().max().unwrap_or_default().since(beyond().min().unwrap_or_default());
    record.unseen > Span::ZERO && lasted <= record.unseen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(seq: u64, node: &str, tli: u32, millis: u64) -> Ack {
        let at = Moment::ZERO.plus(Span::from_millis(millis));
        Ack { seq, node: node.to_owned(), tli, lsn: 1_000 + seq, sent: at, at }
    }

    fn journal(client: &str, acks: Vec<Ack>) -> Journal {
        Journal { acks, ..Journal::new(client) }
    }

    #[test]
    fn a_failover_and_the_way_back_are_no_two_writers() {
        let acks = vec![ack(1, "n1", 1, 10), ack(2, "n2", 2, 500), ack(3, "n1", 3, 900), ack(4, "n1", 3, 910)];
        assert_eq!(two_writers(&[journal("c", acks)]), []);
    }

    #[test]
    fn one_late_acknowledgement_of_an_island_is_proof() {
        let main = journal("main", vec![ack(1, "n1", 1, 10), ack(2, "n2", 2, 500), ack(3, "n2", 2, 700)]);
        let island = journal("island", vec![ack(1, "n1", 1, 499), ack(2, "n1", 1, 650)]);
        let proofs = two_writers(&[main, island]);
        let row = Row { client: "island".into(), seq: 2 };
        let expected = TwoWriters {
            older: ("n1".into(), 1),
            newer: ("n2".into(), 2),
            span: Span::from_millis(150),
            acks: 1,
            clients: BTreeSet::from(["island".into()]),
            examples: vec![row],
        };
        assert_eq!(proofs, [expected]);
    }

    /// EXP-7: two nodes promoted to the same timeline.
    #[test]
    fn one_timeline_that_two_nodes_wrote_is_proof() {
        let proofs = two_writers(&[journal("c", vec![ack(1, "n1", 2, 10), ack(2, "n2", 2, 20)])]);
        assert_eq!(proofs.len(), 1);
    }

    #[test]
    fn a_lost_tail_is_measured_against_its_record() {
        let journals = [journal("c", (1..=9).map(|seq| ack(seq, "n1", 1, seq)).collect())];
        let survivors: BTreeSet<Row> = (1..=6).map(|seq| Row { client: "c".into(), seq }).collect();
        let judge = |bound, unseen| {
            let records = [RecordedLoss { left: 1, switch: Some(1_006), kept: Some(1_006), bound, unseen }];
            let tails = lost(&journals, &survivors, &records);
            (tails[0].rows, tails[0].bytes, tails[0].judgement)
        };
        let judged = |bound| judge(bound, Span::ZERO);
        assert_eq!(judged(Some(3)), (3, Some(3), Judgement::Within));
        assert_eq!(judged(Some(2)), (3, Some(3), Judgement::Exceeds));
        assert_eq!(judged(None), (3, Some(3), Judgement::Unbounded));
        // Rows 8 and 9 lie beyond a bound of one byte, one millisecond apart.
        assert_eq!(judge(Some(1), Span::from_millis(1)), (3, Some(3), Judgement::Within));
        assert_eq!(judge(Some(1), Span::from_nanos(1)), (3, Some(3), Judgement::Exceeds));
        assert_eq!(lost(&journals, &survivors, &[])[0].judgement, Judgement::Unrecorded);
    }

    fn record(left: u32, switch: u64, kept: u64) -> RecordedLoss {
        RecordedLoss { left, switch: Some(switch), kept: Some(kept), bound: Some(1 << 20), unseen: Span::from_secs(9) }
    }

    fn rows(seqs: &[u64]) -> BTreeSet<Row> {
        seqs.iter().map(|seq| Row { client: "c".into(), seq: *seq }).collect()
    }

    /// Whatever a promotion recorded, it cuts a tail off, and nothing out.
    #[test]
    fn no_record_excuses_a_loss_amid_what_is_left() {
        let journals = [journal("c", (1..=9).map(|seq| ack(seq, "n1", 1, seq)).collect())];
        let judge = |there: &[u64], kept| {
            let tail = lost(&journals, &rows(there), &[record(1, kept, kept)]).remove(0);
            (tail.rows, tail.judgement, tail.examples[0].seq)
        };
        assert_eq!(judge(&[1, 2, 3, 4, 6], 0), (4, Judgement::Amid, 5), "6 was sent after 5 was acknowledged, and is there");
        assert_eq!(judge(&[1, 2, 3, 4, 5], 0), (4, Judgement::Within, 6));
        // Nothing later is there, but 8 has its position before the switch, and was sent after 7 was acknowledged.
        assert_eq!(judge(&[1, 2, 3, 4, 5, 6], 1_008), (3, Judgement::Amid, 7));
        // The commit of 7 may lie far behind the position that was taken before it.
        assert_eq!(judge(&[1, 2, 3, 4, 5, 6], 1_007), (3, Judgement::Within, 7));
        let unrecorded = lost(&journals, &rows(&[1, 2, 4]), &[]);
        assert_eq!(unrecorded[0].judgement, Judgement::Amid);
    }

    /// Two at once have no order, and what another timeline shows says nothing of this one.
    #[test]
    fn what_was_sent_at_the_same_time_or_on_another_timeline_may_be_left_alone() {
        let mut acks = vec![ack(1, "n1", 1, 10), ack(2, "n1", 1, 10), ack(3, "n2", 2, 500)];
        acks[0].sent = Moment::ZERO;
        let judged = lost(&[journal("c", acks)], &rows(&[2, 3]), &[record(1, 1_000, 1_000)]);
        assert_eq!((judged.len(), judged[0].judgement), (1, Judgement::Within));
    }

    /// A later primary that grew out of less than an earlier one, or that nobody knows where it grew, takes what lay behind that.
    #[test]
    fn the_lowest_switch_of_all_that_came_later_counts() {
        let journals = [journal("c", (1..=9).map(|seq| ack(seq, "n1", 1, seq)).collect())];
        let judge = |records: &[RecordedLoss]| lost(&journals, &rows(&[1, 2]), records)[0].judgement;
        assert_eq!(judge(&[record(1, 1_008, 1_008)]), Judgement::Amid);
        assert_eq!(judge(&[record(1, 1_008, 1_008), record(2, 1_002, 1_002)]), Judgement::Within);
        assert_eq!(judge(&[record(1, 1_008, 1_008), record(2, 1_100, 0)]), Judgement::Within);
        assert_eq!(judge(&[record(1, 1_008, 1_008), RecordedLoss { kept: None, switch: None, ..record(2, 0, 0) }]), Judgement::Amid);
    }

    #[test]
    fn a_switch_counts_where_the_record_shows_whose_it_is() {
        let of = |tli: u32, given_up: &[u32]| -> HistoryRecord {
            let given: Vec<_> =
                given_up.iter().map(|tli| serde_json::json!({"tli": tli, "node": "n2", "term": 2, "unseen_ms": 5})).collect();
            let record = serde_json::json!({
                "term": tli, "primary": "n1", "from": null, "why": "", "tli": tli, "switch": "0/3000000", "former_lsn": null,
                "loss_bound": 0, "given_up": given, "phases": {}, "at": ""
            });
            serde_json::from_value(record).expect("a record")
        };
        let kept = |given_up: &[u32]| recorded(&[of(1, &[]), of(3, given_up)])[0].kept;
        assert_eq!(recorded(&[of(1, &[]), of(2, &[])])[0].kept, Some(0x300_0000));
        assert_eq!(kept(&[2]), Some(0x300_0000));
        assert_eq!(kept(&[]), Some(0), "3 may have grown out of 2, and 2 have left 1 long before");
        assert_eq!(kept(&[1, 2]), Some(0), "3 has grown out of what was there before 1");
    }
}
