//! Histories made for tests: one change of primary from n1 (timeline 1) to n2 (timeline 2) at 500 ms, and whatever a test adds.

use super::super::{
    super::verdict::Row,
    history::{Entry, Evidence, Limits, Outcome, Place, Remains, Step, Transfer, Work},
};
use crate::model::moment::{Moment, Span};

pub(super) struct Made {
    pub(super) evidence: Evidence,
}

impl Made {
    /// Writes and reads of every kind on both primaries and a replica, and all of it is there.
    pub(super) fn ordinary() -> Self {
        let remains = Remains { node: "n2".into(), balances: vec![100, 100, 100], ..Remains::default() };
        let limits = Limits { lossless: true, most: None, old_reads: Span::ZERO };
        let evidence = Evidence {
            limits,
            start: 100,
            entries: Vec::new(),
            islands: Vec::new(),
            recorded: Vec::new(),
            broken: Vec::new(),
            remains: Some(remains),
        };
        let mut made = Self { evidence };
        for (node, tli, from) in [("n1", 1, 0), ("n2", 2, 500)] {
            made.insert(node, tli, from);
            made.append(node, tli, from + 10, &[1]);
            made.append(node, tli, from + 20, &[1, 2]);
            made.read(node, tli, from + 30, &[(1, 0), (2, 0)]);
            made.transfer(node, tli, from + 40);
            let balances = made.left().balances.clone();
            made.balances(node, from + 50, balances);
            made.read_replica("n3", from + 60, &[(1, -1), (2, -1)]);
        }
        made
    }

    pub(super) fn left(&mut self) -> &mut Remains {
        self.evidence.remains.as_mut().expect("what is left")
    }

    /// Acknowledged 1 ms after `sent`.
    fn add(&mut self, client: &str, node: &str, place: Place, sent: u64, work: Work) -> u64 {
        let id = 1 + self.evidence.entries.len() as u64;
        let at = |millis| Moment::ZERO.plus(Span::from_millis(millis));
        let lsn = 1_000 + id;
        let (client, node) = (client.to_owned(), node.to_owned());
        let entry = Entry { id, client, node, place, sent: at(sent), at: at(sent + 1), work, outcome: Outcome::Acknowledged(lsn) };
        self.evidence.entries.push(entry);
        id
    }

    pub(super) fn entry(&mut self, id: u64) -> &mut Entry {
        self.evidence.entries.iter_mut().find(|entry| entry.id == id).expect("an entry")
    }

    pub(super) fn insert(&mut self, node: &str, tli: u32, sent: u64) -> u64 {
        let id = self.add("rows", node, Place::Primary(tli), sent, Work::Insert);
        self.left().rows.insert(Row { client: "rows".into(), seq: id });
        id
    }

    pub(super) fn append(&mut self, node: &str, tli: u32, sent: u64, keys: &[u64]) -> u64 {
        let steps = keys.iter().map(|key| Step::Append(*key)).collect();
        let id = self.add("lists", node, Place::Primary(tli), sent, Work::Lists(steps));
        for key in keys {
            self.left().lists.entry(*key).or_default().push(id);
        }
        id
    }

    pub(super) fn read_and_append(&mut self, node: &str, tli: u32, sent: u64, empty: u64, appended: u64) -> u64 {
        let steps = vec![Step::Read(empty, Vec::new()), Step::Append(appended)];
        let id = self.add("lists", node, Place::Primary(tli), sent, Work::Lists(steps));
        self.left().lists.entry(appended).or_default().push(id);
        id
    }

    /// Sees the lists as they are now, without so many (negative) of their last items.
    fn steps(&mut self, keys: &[(u64, i8)]) -> Vec<Step> {
        let left = self.left();
        let step = |(key, off): &(u64, i8)| {
            let mut items = left.lists.get(key).cloned().unwrap_or_default();
            items.truncate(items.len().saturating_sub(usize::from(off.unsigned_abs())));
            Step::Read(*key, items)
        };
        keys.iter().map(step).collect()
    }

    pub(super) fn read(&mut self, node: &str, tli: u32, sent: u64, keys: &[(u64, i8)]) -> u64 {
        let steps = self.steps(keys);
        self.add("lists", node, Place::Primary(tli), sent, Work::Lists(steps))
    }

    pub(super) fn read_replica(&mut self, node: &str, sent: u64, keys: &[(u64, i8)]) -> u64 {
        let steps = self.steps(keys);
        self.add("lists", node, Place::Replica, sent, Work::Lists(steps))
    }

    fn transfer(&mut self, node: &str, tli: u32, sent: u64) -> u64 {
        let transfer = Transfer { from: 1, to: 3, amount: 10 };
        let id = self.add("bank", node, Place::Primary(tli), sent, Work::Transfer(transfer));
        self.left().transfers.insert(id, transfer);
        self.left().balances[0] -= 10;
        self.left().balances[2] += 10;
        id
    }

    pub(super) fn balances(&mut self, node: &str, sent: u64, balances: Vec<i64>) -> u64 {
        self.add("bank", node, Place::Replica, sent, Work::Balances(balances))
    }
}
