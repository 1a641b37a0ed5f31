//! The evidence: what clients did and were told, and what is there at the end.

use super::super::{
    journal::{Ack, Indeterminate, Journal},
    verdict::{RecordedLoss, Row},
};
use crate::model::moment::{Moment, Span};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a server was when it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// It had said that it is no standby, and on which timeline it writes.
    Primary(u32),
    /// It had said that it is in recovery. It may have been promoted since.
    Replica,
}

/// One step of a transaction on lists. What is appended is the transaction's number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Appends to the list of a key, at most once in a transaction.
    Append(u64),
    /// Reads the list of a key: what was seen means something in an acknowledged transaction alone.
    Read(u64, Vec<u64>),
}

/// Money that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The account that gives, counted from 1.
    pub from: i32,
    /// The account that gets.
    pub to: i32,
    /// How much.
    pub amount: i64,
}

/// What one transaction was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// One row with the transaction's number.
    Insert,
    /// Steps on lists, all in one transaction.
    Lists(Vec<Step>),
    /// A transfer, logged under the transaction's number in the same transaction.
    Transfer(Transfer),
    /// All balances, read at once.
    Balances(Vec<i64>),
}

/// How a transaction ended, as far as its client knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Acknowledged without a warning. The insert position just before the commit; 0 where nothing was written.
    Acknowledged(u64),
    /// A lost answer, an error that does not say, or a warning: it may be there or not. Why.
    Unclear(String),
    /// The server said so, or was never asked to commit: it is not there. Why.
    Refused(String),
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, unique in the run.
    pub id: u64,
    /// The client.
    pub client: String,
    /// The node that it was sent to.
    pub node: String,
    /// What that was.
    pub place: Place,
    /// When it was sent.
    pub sent: Moment,
    /// When its end was known.
    pub at: Moment,
    /// What it was about.
    pub work: Work,
    /// How it ended.
    pub outcome: Outcome,
}

impl Entry {
    /// Whether it was acknowledged.
    pub const fn is_acknowledged(&self) -> bool {
        matches!(self.outcome, Outcome::Acknowledged(_))
    }

    /// Whether it was to change anything.
    pub fn writes(&self) -> bool {
        match &self.work {
            Work::Insert | Work::Transfer(_) => true,
            Work::Lists(steps) => steps.iter().any(|step| matches!(step, Step::Append(_))),
            Work::Balances(_) => false,
        }
    }

    /// The keys that it appends to.
    pub fn appends(&self) -> impl Iterator<Item = u64> {
        self.steps().iter().filter_map(|step| if let Step::Append(key) = step { Some(*key) } else { None })
    }

    /// What it read of lists: key and items.
    pub fn reads(&self) -> impl Iterator<Item = (u64, &[u64])> {
        self.steps().iter().filter_map(|step| if let Step::Read(key, seen) = step { Some((*key, seen.as_slice())) } else { None })
    }

    fn steps(&self) -> &[Step] {
        if let Work::Lists(steps) = &self.work { steps } else { &[] }
    }

    /// The row that it is judged by.
    pub fn row(&self) -> Row {
        Row { client: self.client.clone(), seq: self.id }
    }

    /// The timeline of a primary.
    pub const fn tli(&self) -> Option<u32> {
        if let Place::Primary(tli) = self.place { Some(tli) } else { None }
    }
}

/// What the last primary has, read at once after all clients ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// Who was asked.
    pub node: String,
    /// The rows, those of islands too.
    pub rows: BTreeSet<Row>,
    /// The lists by their keys.
    pub lists: BTreeMap<u64, Vec<u64>>,
    /// The log of transfers.
    pub transfers: BTreeMap<u64, Transfer>,
    /// The balances in the order of the accounts.
    pub balances: Vec<i64>,
    /// Nodes that hold something else although they had time to catch up.
    pub differ: Vec<String>,
}

/// What a mode promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Nothing acknowledged may be lost; else no more than a change of primary recorded.
    pub lossless: bool,
    /// So many bytes at the most may a change of primary record as lost before the last known position of the former one; `None` for any number.
    #[serde(default)]
    pub most: Option<u64>,
    /// For how long after the first answer of a newer primary an older one may still show what is old (depose by quorum).
    pub old_reads: Span,
}

/// Everything that a run is judged by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What was promised.
    pub limits: Limits,
    /// What each account had at first.
    pub start: i64,
    /// Transactions, in the order of their ends.
    pub entries: Vec<Entry>,
    /// What islands were told.
    pub islands: Vec<Journal>,
    /// What changes of primary recorded about losses.
    pub recorded: Vec<RecordedLoss>,
    /// Clients that panicked, for people.
    #[serde(default)]
    pub broken: Vec<String>,
    /// What is left; `None` where a run did not come to its end.
    pub remains: Option<Remains>,
}

impl Evidence {
    /// What every client was told of its writes, a journal for each.
    pub fn journals(&self) -> Vec<Journal> {
        let mut journals: BTreeMap<&str, Journal> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.writes()) {
            let journal = journals.entry(&entry.client).or_insert_with(|| Journal::new(&entry.client));
            let (seq, node, sent) = (entry.id, entry.node.clone(), entry.sent);
            match &entry.outcome {
                Outcome::Acknowledged(lsn) => {
                    journal.acks.push(Ack { seq, node, tli: entry.tli().unwrap_or_default(), lsn: *lsn, sent, at: entry.at });
                }
                Outcome::Unclear(why) => journal.indeterminate.push(Indeterminate { seq, node, sent, why: why.clone() }),
                Outcome::Refused(why) => {
                    journal.refused += 1;
                    journal.last_refusal = Some(why.clone());
                }
            }
        }
        journals.into_values().chain(self.islands.iter().cloned()).collect()
    }

    /// What is left of the writes, as rows: of a transaction on lists, where all that it appended is there.
    pub(super) fn survivors(&self, remains: &Remains) -> BTreeSet<Row> {
        let mut rows = remains.rows.clone();
        let items: BTreeSet<(u64, u64)> = remains.lists.iter().flat_map(|(key, items)| items.iter().map(|item| (*key, *item))).collect();
        for entry in &self.entries {
            let there = match &entry.work {
                Work::Insert | Work::Balances(_) => false,
                Work::Lists(_) => entry.writes() && entry.appends().all(|key| items.contains(&(key, entry.id))),
                Work::Transfer(_) => remains.transfers.contains_key(&entry.id),
            };
            if there {
                rows.insert(entry.row());
            }
        }
        rows
    }
}
