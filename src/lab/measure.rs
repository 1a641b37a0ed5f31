//! One measured outage: how long, and where the time went.

use super::journal::{Gap, Journal};
use crate::model::{
    moment::{Moment, Span},
    record::HistoryRecord,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a fault cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// The longest time between two acknowledged writes.
    pub gap: Gap,
    /// The longest such time of an equally long run before the fault, which is what "no outage" means here.
    pub usual: Option<Gap>,
    /// From the fault to the last acknowledgement before the gap's end: how long the old primary went on.
    pub went_on: Span,
    /// What each phase took, as the nodes recorded it.
    pub phases: BTreeMap<String, Span>,
}

impl Outage {
    /// The outage that a journal shows around a fault; `None` while the window is empty.
    pub fn of(journal: &Journal, fault: Moment, until: Moment) -> Option<Self> {
        let gap = journal.longest_gap(fault, until)?;
        let before = fault.minus(until.since(fault));
        let usual = journal.acks.first().and_then(|first| journal.longest_gap(before.max(first.at), fault));
        Some(Self { went_on: gap.from.since(fault), gap, usual, phases: BTreeMap::new() })
    }

    /// With the phases of a history record.
    #[must_use]
    pub fn with_history(mut self, record: &HistoryRecord) -> Self {
        self.phases.extend(record.phases.iter().map(|(name, millis)| (name.clone(), Span::from_millis(*millis))));
        self
    }

    /// With the phases that a JSON document of a node names: the object at `pointer` maps a phase's name to milliseconds.
    #[must_use]
    pub fn with_phases(mut self, document: &Value, pointer: &str) -> Self {
        let phases = document.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
        self.phases.extend(phases.filter_map(|(name, millis)| Some((name.clone(), Span::from_millis(millis.as_u64()?)))));
        self
    }

    /// Whether writes were held up for longer than they are without a fault.
    pub fn is_felt(&self) -> bool {
        self.usual.as_ref().is_none_or(|usual| self.gap.length() > usual.length())
    }
}

/// The median of some lengths of time; of an even number, the longer of the middle two.
pub fn median(spans: &[Span]) -> Option<Span> {
    let mut sorted = spans.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::{super::journal::Ack, *};

    #[test]
    fn an_outage_is_compared_with_the_time_before_it() {
        let at = |millis| Moment::ZERO.plus(Span::from_millis(millis));
        let ack = |millis| Ack { seq: millis, node: "n1".into(), tli: 1, lsn: 0, sent: at(millis), at: at(millis) };
        let acks = [1_000, 1_010, 1_040, 1_050, 1_450, 1_460].map(ack).to_vec();
        let journal = Journal { acks, ..Journal::new("c") };
        let outage = Outage::of(&journal, at(1_045), at(1_470)).expect("outage");
        assert_eq!(outage.gap.length(), Span::from_millis(400));
        assert_eq!(outage.usual.as_ref().map(Gap::length), Some(Span::from_millis(30)));
        assert!(outage.is_felt());
        let document = serde_json::json!({"data": {"phases": {"detect": 7}}});
        assert_eq!(outage.with_phases(&document, "/data/phases").phases["detect"], Span::from_millis(7));
    }
}
