//! What can be found in the evidence of a run.

use super::super::{
    super::{
        conclusion,
        verdict::{LostTail, TwoWriters},
    },
    history::{Evidence, Outcome},
};
use crate::model::moment::Span;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// A client panicked: what it did is not all in the evidence.
    Broken {
        /// Which.
        client: String,
    },
    /// Two primaries acknowledged at the same time.
    TwoWriters(TwoWriters),
    /// Acknowledged writes are gone, and the mode or the record does not allow it.
    Lost(LostTail),
    /// A change of primary took place although the new one lacked more than it may have lacked.
    TooMuch {
        /// The timeline that was left.
        left: u32,
        /// How many bytes may be lost, as was recorded.
        bound: u64,
        /// How many would have been allowed.
        most: u64,
    },
    /// Something is there that was refused, or that nobody sent.
    Stranger {
        /// The number that it bears.
        id: u64,
        /// What it is.
        what: String,
        /// Why it is strange.
        why: String,
    },
    /// A transaction is there in part.
    Half {
        /// Which.
        id: u64,
        /// What is there, and what is not.
        what: String,
    },
    /// An account does not have what the log of transfers gives it.
    Money {
        /// The account; 0 for the total.
        account: usize,
        /// What it has.
        has: i64,
        /// What it ought to have.
        ought: i64,
        /// The read that saw it; `None` at the end.
        seen_by: Option<u64>,
    },
    /// A read saw a list that is no beginning of the list at the end, although both hold what came after: two histories.
    Fork {
        /// The list.
        key: u64,
        /// The reading transaction.
        id: u64,
        /// What it saw.
        seen: Vec<u64>,
    },
    /// An append that was acknowledged before another one began stands after it.
    Reordered {
        /// The list.
        key: u64,
        /// The one that came first in time.
        first: u64,
        /// The one that stands before it.
        then: u64,
    },
    /// A read missed what had been acknowledged, or shown by another read, before it began.
    Stale {
        /// The list.
        key: u64,
        /// The reading transaction.
        id: u64,
        /// Where.
        node: String,
        /// The item that it missed.
        missed: u64,
        /// How long before the read began that item was known.
        by: Span,
    },
    /// A read of a primary whose voters had confirmed saw what is gone now.
    Vanished {
        /// The list.
        key: u64,
        /// The reading transaction.
        id: u64,
        /// Where.
        node: String,
        /// The item.
        item: u64,
    },
    /// No order of these transactions explains what each of them saw.
    NoOrder {
        /// A circle of them: each has to come before the next, and the last before the first.
        circle: Vec<u64>,
    },
    /// A node that had time to catch up holds something else than the primary.
    OtherData {
        /// The node.
        node: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { client } => f.write_str(&conclusion::broken(client)),
            Self::TwoWriters(proof) => f.write_str(&conclusion::two_writers(proof)),
            Self::Lost(tail) => f.write_str(&conclusion::lost(tail)),
            Self::TooMuch { left, bound, most } => {
                write!(f, "timeline {left} was left with {bound} bytes lost, and {most} are the most")
            }
            Self::Stranger { id, what, why } => write!(f, "{what} {id} is there, and {why}"),
            Self::Half { id, what } => write!(f, "half of transaction {id} is there: {what}"),
            Self::Money { account, has, ought, seen_by } => {
                let what = if *account == 0 { "the total".to_owned() } else { format!("account {account}") };
                let by = seen_by.map_or_else(|| "at the end".to_owned(), |id| format!("as transaction {id} saw it"));
                write!(f, "{what} is {has} and ought to be {ought}, {by}")
            }
            Self::Fork { key, id, seen } => write!(f, "transaction {id} saw another history of list {key}: {seen:?}"),
            Self::Reordered { key, first, then } => {
                write!(f, "in list {key} {then} stands before {first}, which was acknowledged before {then} was sent")
            }
            Self::Stale { key, id, node, missed, by } => {
                write!(f, "stale: transaction {id} on {node} missed {missed} in list {key}, known {by} before it began")
            }
            Self::Vanished { key, id, node, item } => {
                write!(f, "transaction {id} on {node} saw {item} in list {key}, and it is gone")
            }
            Self::NoOrder { circle } => write!(f, "no order explains these transactions: {circle:?}"),
            Self::OtherData { node } => write!(f, "{node} holds other data than the primary"),
        }
    }
}

/// What a run proves, with what it consisted of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What must not be; empty when all is well.
    pub findings: Vec<Finding>,
    /// Losses that were announced: in `async` alone.
    pub losses: Vec<LostTail>,
    /// Transactions.
    pub operations: usize,
    /// Acknowledged ones.
    pub acknowledged: usize,
    /// Those of the acknowledged ones that changed something.
    pub written: usize,
    /// Those of unknown outcome.
    pub unclear: usize,
    /// Acknowledged reads of lists.
    pub reads: usize,
    /// How many timelines acknowledged writes.
    pub timelines: usize,
    /// Reads of an older primary that were old, and allowed to be.
    pub old_reads: usize,
    /// Reads that saw what is gone now, and are outside of what is promised.
    pub early_reads: usize,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, acknowledged, written, unclear, reads, timelines, old_reads, early_reads, .. } = self;
        write!(
            f,
            "{operations} operations, {acknowledged} acknowledged ({written} of them wrote), {unclear} unclear, {reads} reads of lists, {timelines} timelines; "
        )?;
        write!(f, "{} lost, {old_reads} old reads, {early_reads} of what is gone; {} findings", self.lost(), self.findings.len())
    }
}

impl Verdict {
    /// Acknowledged writes that are gone, allowed or not.
    pub fn lost(&self) -> usize {
        let found = self.findings.iter().map(|finding| if let Finding::Lost(tail) = finding { tail.rows } else { 0 });
        found.chain(self.losses.iter().map(|tail| tail.rows)).sum()
    }

    pub(super) fn count(&mut self, evidence: &Evidence) {
        let entries = &evidence.entries;
        self.operations = entries.len();
        self.acknowledged = entries.iter().filter(|entry| entry.is_acknowledged()).count();
        self.unclear = entries.iter().filter(|entry| matches!(entry.outcome, Outcome::Unclear(_))).count();
        self.reads = entries.iter().filter(|entry| entry.is_acknowledged()).map(|entry| entry.reads().count()).sum();
        let written = || entries.iter().filter(|entry| entry.is_acknowledged() && entry.writes());
        self.written = written().count();
        self.timelines = written().filter_map(super::super::history::Entry::tli).collect::<std::collections::BTreeSet<_>>().len();
    }
}
