//! What a watcher hands out: revisions that never go back, unless etcd itself did.
//!
//! Pure. A watch can replay old events or repeat them after a snapshot download, and a list that was sent before an event may
//! be answered after it; neither may take the view back. A *linearizable* list that was *sent after* the higher revision had
//! been received and still shows a lower one proves that etcd lost writes.

use super::{Listing, Present, Update};
use crate::model::moment::Moment;

/// What has been handed out so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    seen: u64,
    seen_at: Moment,
}

impl Order {
    /// The highest revision handed out.
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// A list was received at `received`. `None`: it is older than what was handed out, and proves nothing.
    pub fn listed(&mut self, listing: Listing, received: Moment) -> Option<Update> {
        let lower = listing.revision < self.seen;
        if lower && listing.sent_at <= self.seen_at {
            return None;
        }
        if listing.revision != self.seen {
            self.seen = listing.revision;
            self.seen_at = received;
        }
        Some(Update::Listed { listing, went_back: lower })
    }

    /// Events were received at `received`. `None`: all of them were handed out before.
    pub fn changed(&mut self, mut changes: Vec<Present>, newest: u64, received: Moment) -> Option<Update> {
        changes.retain(|(_, _, revision)| *revision > self.seen);
        if newest > self.seen {
            self.seen = newest;
            self.seen_at = received;
        }
        let revision = changes.iter().map(|(_, _, revision)| *revision).max()?;
        Some(Update::Changed { changes, revision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{key::Key, moment::Span};

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Span::from_millis(millis))
    }

    fn listing(revision: u64, sent_at: Moment) -> Listing {
        Listing { entries: Vec::new(), unknown: 0, revision, sent_at, cluster_id: 1, raft_term: 1 }
    }

    fn change(revision: u64) -> Present {
        (Key::Leader, Some(format!("r{revision}")), revision)
    }

    /// Scenario 35.
    #[test]
    fn old_and_repeated_events_are_not_handed_out() {
        let mut order = Order::default();
        assert!(order.listed(listing(10, at(0)), at(1)).is_some());
        assert_eq!(order.changed(vec![change(9), change(10)], 10, at(2)), None);
        let update = order.changed(vec![change(10), change(11), change(12)], 12, at(3));
        assert_eq!(update, Some(Update::Changed { changes: vec![change(11), change(12)], revision: 12 }));
        assert_eq!(order.changed(vec![change(12)], 12, at(4)), None);
    }

    #[test]
    fn a_list_that_was_sent_before_the_newest_event_came_proves_nothing() {
        let mut order = Order::default();
        assert!(order.listed(listing(10, at(0)), at(1)).is_some());
        assert!(order.changed(vec![change(12)], 12, at(50)).is_some());
        assert_eq!(order.listed(listing(11, at(50)), at(60)), None);
        assert_eq!(order.seen(), 12);
    }

    /// Scenario 39.
    #[test]
    fn a_lower_revision_in_a_later_list_means_that_etcd_went_back() {
        let mut order = Order::default();
        assert!(order.listed(listing(10, at(0)), at(1)).is_some());
        let back = listing(7, at(2));
        assert_eq!(order.listed(back.clone(), at(3)), Some(Update::Listed { listing: back, went_back: true }));
        let again = listing(7, at(4));
        assert_eq!(order.listed(again.clone(), at(5)), Some(Update::Listed { listing: again, went_back: false }));
        assert!(order.changed(vec![change(8)], 8, at(6)).is_some());
    }

    #[test]
    fn events_of_unknown_keys_move_the_revision_on() {
        let mut order = Order::default();
        assert_eq!(order.changed(Vec::new(), 5, at(1)), None);
        assert_eq!(order.seen(), 5);
    }
}
