//! Where clients may be sent (protocol I5): writes only to a holder that serves, before its deadline.

use super::{
    decision::{Routing, Writable},
    depose,
    draft::Draft,
    durability, operator, pause,
    snapshot::Snapshot,
};
use crate::model::{instance::ServerRole, record::LeaderState};

pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    d.routing = Routing { writes: writes(s), reads: matches!(s.role(), Some(ServerRole::Standby { .. })) };
}

/// Nowhere while this node is being stopped, or hands over.
fn writes(s: &Snapshot) -> Option<Writable> {
    let leader = s.leader()?;
    let is_primary = matches!(s.role(), Some(ServerRole::Primary { .. }));
    // What it came up with may be on this node alone.
    let shows_more = durability::shows_more(s, leader.record.term);
    if operator::hands_to(s).is_some() || s.stopping || shows_more || !is_primary {
        return None;
    }
    if s.holds_paused() {
        return pause::routes_until(s).map(|until| Writable { term: leader.record.term, until });
    }
    if leader.record.state != LeaderState::Serving {
        return None;
    }
    // Doors close before the stop begins (protocol 1.5, F1).
    let until = s.authority()?.minus(s.policy.timers().soft_stop).min(depose::surely_leads_until(s));
    (s.now.boot < until).then_some(Writable { term: leader.record.term, until })
}
