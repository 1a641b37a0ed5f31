//! The newest record boundary that is known to be on this node's disk.

use super::State;
use crate::model::{instance::ServerRole, node_file::Boundary};

impl State {
    /// The primary's boundary is one here too, once we have received that far on the same timeline.
    pub(super) fn learn_boundary_from_leader(&mut self) {
        let Some(leader) = self.records.leader.as_ref().map(|leader| Boundary { tli: leader.record.tli, lsn: leader.record.lsn }) else {
            return;
        };
        let Some(ServerRole::Standby { tli, receive: Some(received), .. }) = self.server.value().map(|facts| &facts.role) else { return };
        if *tli == leader.tli && *received >= leader.lsn {
            self.learn_boundary(leader);
        }
    }

    pub(super) fn learn_boundary(&mut self, boundary: Boundary) {
        self.boundary = newest(self.boundary, Some(boundary));
    }
}

/// The newer of two boundaries. Of two timelines the higher id counts: ids only grow.
pub(super) fn newest(one: Option<Boundary>, other: Option<Boundary>) -> Option<Boundary> {
    let order = |boundary: &Boundary| (boundary.tli, boundary.lsn);
    [one, other].into_iter().flatten().max_by_key(order)
}
