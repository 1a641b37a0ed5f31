//! Clients: they write to every server that takes writes, whatever anybody says about it.

use super::world::World;

impl World {
    /// One client's turn on a primary.
    pub(super) fn workload(&mut self, node: usize, id: u64) {
        let Some(server) = self.nodes[node].server.as_ref() else { return };
        // A backend outlives its postmaster and finishes what it began (EXP-1).
        if server.stopping.is_some() {
            return;
        }
        let Some(branch) = self.nodes[node].disk.as_ref().map(|data| data.branch) else { return };
        if self.random.chance(150) {
            // A bulk load in between: the flush position lies inside a record.
            let size = self.random.between(2_000, 20_000);
            let end = self.wal.append(branch, size);
            let part = end - self.random.between(1, size - 1);
            if let Some(data) = &mut self.nodes[node].disk {
                data.end = data.end.max(part);
            }
        }
        let size = self.random.between(60, 400);
        let end = self.wal.append(branch, size);
        let takes = self.random.tailed(0, 4);
        self.later_at(node, takes, move |world| {
            if world.server_of(node, id).is_none() {
                return;
            }
            let Some(data) = world.nodes[node].disk.as_mut().filter(|data| data.branch == branch) else { return };
            data.end = data.end.max(end);
            world.committed(node, id, (branch, end));
        });
    }
}
