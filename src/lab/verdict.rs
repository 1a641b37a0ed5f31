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
    let mut found: BTreeMap<Pair, Vec<(&str, &Ack)>> = BTreeMap::new();
    for (client, ack) in all() {
        for ((tli, node), since) in &first {
            let newer = *tli > ack.tli || (*tli == ack.tli && *node != ack.node);
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
        bound: Some(0),
        unseen: Span::from_millis(given.unseen_ms),
    });
    let pairs = history.windows(2).filter_map(|pair| match pair {
        // A restart in place goes on on its timeline and leaves nothing behind.
        [former, record] if former.tli < record.tli => Some(RecordedLoss {
            left: former.tli.get(),
            switch: record.switch.map(|lsn| lsn.get()),
            bound: record.loss_bound,
            unseen: Span::from_millis(record.unseen_ms),
        }),
        _ => None,
    });
    pairs.chain(given_up).collect()
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
}

/// Acknowledged rows that the final primary lacks, by timeline. Empty when nothing was lost.
pub fn lost(journals: &[Journal], survivors: &BTreeSet<Row>, records: &[RecordedLoss]) -> Vec<LostTail> {
    let mut tails: BTreeMap<u32, LostTail> = BTreeMap::new();
    let mut acks: BTreeMap<u32, Vec<&Ack>> = BTreeMap::new();
    for (client, ack) in journals.iter().flat_map(|journal| journal.acks.iter().map(|ack| (&journal.client, ack))) {
        let row = Row { client: client.clone(), seq: ack.seq };
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
        if tail.examples.len() < EXAMPLES {
            tail.examples.push(row);
        }
        acks.entry(ack.tli).or_default().push(ack);
    }
    for tail in tails.values_mut() {
        let Some(record) = records.iter().find(|record| record.left == tail.tli) else { continue };
        let acks = acks.remove(&tail.tli).unwrap_or_default();
        tail.bytes = record.switch.zip(acks.iter().map(|ack| ack.lsn).max()).map(|(switch, end)| end.saturating_sub(switch));
        tail.judgement = match (record.bound, tail.bytes) {
            (None, _) => Judgement::Unbounded,
            (Some(bound), bytes) if bytes.is_some_and(|bytes| bytes <= bound) || was_unseen(&acks, record) => Judgement::Within,
            // A loss whose size nobody can tell is not within anything, unless nothing at all was allowed to be told.
            (Some(_), _) => Judgement::Exceeds,
        };
    }
    tails.into_values().collect()
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
            let records = [RecordedLoss { left: 1, switch: Some(1_006), bound, unseen }];
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
}
