//! Where clients may be sent (protocol I5): writes only to a holder that serves, before its deadline.

use super::{
    decision::{Routing, Writable},
    depose,
    draft::Draft,
    snapshot::Snapshot,
};
use crate::model::{instance::ServerRole, record::LeaderState};

pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    d.routing = Routing { writes: writes(s), reads: matches!(s.role(), Some(ServerRole::Standby { .. })) };
}

fn writes(s: &Snapshot) -> Option<Writable> {
    let leader = s.leader().filter(|leader| leader.record.state == LeaderState::Serving)?;
    // Doors close before the stop begins (protocol 1.5, F1), and while this node is being stopped.
    let until = s.authority()?.minus(s.policy.timers().soft_stop).min(depose::surely_leads_until(s));
    if s.stopping || s.now.boot >= until {
        return None;
    }
    // What it came up with may be on this node alone.
    let shows_more = s.file.barrier == Some(leader.record.term);
    (!shows_more && matches!(s.role(), Some(ServerRole::Primary { .. }))).then_some(Writable { term: leader.record.term, until })
}
