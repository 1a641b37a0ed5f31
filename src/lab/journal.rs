//! What a client did and was told: the evidence.

use crate::model::moment::{Moment, Span};
use serde::{Deserialize, Serialize};

/// A write that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Its number, unique to the client.
    pub seq: u64,
    /// Which node answered.
    pub node: String,
    /// On which timeline that node wrote: a newer primary has a higher one (I3).
    pub tli: u32,
    /// The insert position just before its commit record.
    pub lsn: u64,
    /// When it was sent.
    pub sent: Moment,
    /// When the answer was there.
    pub at: Moment,
}

/// A write without an answer, or with one that does not count: it may or may not be there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indeterminate {
    /// Its number.
    pub seq: u64,
    /// To which node it was sent; empty where the client cannot know.
    pub node: String,
    /// When it was sent.
    pub sent: Moment,
    /// Why it does not count.
    pub why: String,
}

/// Everything that one client did, in the order of the answers. All moments are of one clock, the lab's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The client's name.
    pub client: String,
    /// Acknowledged writes.
    pub acks: Vec<Ack>,
    /// Writes of unknown outcome.
    pub indeterminate: Vec<Indeterminate>,
    /// Writes that a server refused.
    pub refused: u64,
    /// The newest refusal, for people.
    pub last_refusal: Option<String>,
    /// Parts of the client that panicked, for people: what they did is not all here.
    #[serde(default)]
    pub broken: Vec<String>,
}

/// A time without an acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The last acknowledgement before it, or the begin of the window.
    pub from: Moment,
    /// The first one after it, or the end of the window.
    pub to: Moment,
    /// Who acknowledged before.
    pub before: Option<String>,
    /// Who acknowledged after; `None` while nobody has.
    pub after: Option<String>,
}

impl Gap {
    /// How long it is.
    pub const fn length(&self) -> Span {
        self.to.since(self.from)
    }
}

impl Journal {
    /// An empty one.
    pub fn new(client: &str) -> Self {
        Self { client: client.to_owned(), ..Self::default() }
    }

    /// The longest time without an acknowledged write that touches the window; `None` where the window is empty.
    ///
    /// A gap that began before the window counts in full, one that has not ended counts up to the window's end.
    pub fn longest_gap(&self, from: Moment, to: Moment) -> Option<Gap> {
        // In the order of the answers: a client at work is held up for a short look only.
        let since = self.acks.partition_point(|ack| ack.at <= from);
        let until = self.acks.partition_point(|ack| ack.at <= to);
        let mut left = since.checked_sub(1).and_then(|index| self.acks.get(index));
        let mut longest: Option<Gap> = None;
        for right in self.acks.get(since..until).unwrap_or_default().iter().map(Some).chain([None]) {
            let (begin, end) = (left.map_or(from, |ack| ack.at), right.map_or(to, |ack| ack.at));
            if longest.as_ref().is_none_or(|gap| end.since(begin) >= gap.length()) {
                let name = |ack: Option<&Ack>| ack.map(|ack| ack.node.clone());
                longest = Some(Gap { from: begin, to: end, before: name(left), after: name(right) });
            }
            left = right;
        }
        longest.filter(|_| to > from)
    }

    /// Its parts that panicked, for people.
    pub fn broken_parts(&self) -> impl Iterator<Item = String> {
        self.broken.iter().map(|part| format!("{}, {part},", self.client))
    }

    /// The newest acknowledgement.
    pub fn last(&self) -> Option<&Ack> {
        self.acks.last()
    }

    /// Acknowledgements of one node since a moment.
    pub fn acks_of<'a>(&'a self, node: &'a str, since: Moment) -> impl Iterator<Item = &'a Ack> {
        self.acks.iter().filter(move |ack| ack.node == node && ack.at >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Span::from_millis(millis))
    }

    fn journal(acks: &[(u64, &str)]) -> Journal {
        let ack = |(seq, (millis, node)): (usize, &(u64, &str))| Ack {
            seq: seq as u64,
            node: (*node).to_owned(),
            tli: 1,
            lsn: 0,
            sent: at(*millis),
            at: at(*millis),
        };
        Journal { acks: acks.iter().enumerate().map(ack).collect(), ..Journal::new("c") }
    }

    #[test]
    fn the_longest_gap_names_who_stood_on_both_sides() {
        let journal = journal(&[(10, "n1"), (20, "n1"), (620, "n2"), (630, "n2")]);
        let gap = journal.longest_gap(at(15), at(640)).expect("gap");
        assert_eq!(gap.length(), Span::from_millis(600));
        assert_eq!((gap.before.as_deref(), gap.after.as_deref()), (Some("n1"), Some("n2")));
    }

    #[test]
    fn a_gap_that_has_not_ended_counts_up_to_the_end() {
        let gap = journal(&[(10, "n1")]).longest_gap(at(20), at(5_010)).expect("gap");
        assert_eq!((gap.length(), gap.after), (Span::from_secs(5), None));
    }
}
