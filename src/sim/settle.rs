//! What must be so in the end, and stay so (oracle O16).

use super::{SECOND, world::World};
use crate::model::{node::NodeName, policy::Durability, record::LeaderState};

/// After the last fault all must be well within `patience`, and stay so (oracle O16).
pub(super) fn settle(world: &mut World, healed: u64, patience: u64) {
    let mut well_since = None;
    let mut now = healed;
    let limit = healed + patience * SECOND;
    while now < limit && world.oracle.violations.is_empty() {
        now += SECOND / 4;
        world.run_until(now);
        match (world.troubles().is_empty(), well_since) {
            (true, None) => well_since = Some(now),
            (false, Some(_)) => well_since = None,
            _ => {}
        }
        if well_since.is_some_and(|since| now - since >= 10 * SECOND) {
            break;
        }
    }
    if !world.oracle.violations.is_empty() {
        return;
    }
    if let Some(since) = well_since {
        world.coverage.recovery_ms = (since - healed) / 1_000_000;
        calm(world, since + 2 * SECOND);
        return;
    }
    let troubles = world.troubles().join("; ");
    let reasons: Vec<String> =
        (0..world.machines()).map(|node| format!("\n    {}: {}", world.nodes[node].name, world.reasons(node))).collect();
    world.violation("O16", format!("{patience}s after the last fault: {troubles}{}", reasons.concat()));
}

/// Once all is well nobody claims, and nothing is started again (oracle O16).
fn calm(world: &mut World, since: u64) {
    let claims = world.oracle.claims_at.iter().filter(|at| **at > since).count();
    let starts = world.nodes.iter().flat_map(|node| &node.starts).filter(|at| **at > since).count();
    if claims + starts > 0 {
        world.violation("O16", format!("all is well, and yet there are {claims} claims and {starts} starts of PostgreSQL"));
    }
}

impl World {
    /// What is not as it should be, as one sees it from outside.
    pub(super) fn troubles(&self) -> Vec<String> {
        let mut found = Vec::new();
        let leader = self.store.leader();
        let holder = leader.as_ref().filter(|leader| leader.state == LeaderState::Serving);
        let primary = holder.and_then(|leader| self.nodes.iter().position(|node| node.name == leader.holder.node));
        let Some(primary) = primary.filter(|primary| self.nodes[*primary].is_primary()) else {
            found.push("no primary serves".to_owned());
            return found;
        };
        let others = self.members - 1;
        // Who may vote: not whom its tag keeps out.
        let may = self.nodes.iter().enumerate().take(self.members).filter(|(index, node)| *index != primary && !node.tags.no_sync).count();
        let sync = self.store.sync().filter(|sync| sync.is_lossless());
        let waits = match self.store.policy().map_or(self.policy.durability, |policy| policy.durability) {
            Durability::Async => false,
            Durability::Auto => sync.is_some() || others >= 2,
            Durability::Quorum | Durability::StrictQuorum => true,
        };
        let voters = sync.as_ref().map_or(0, |sync| sync.voters.len());
        let needed = self.store.policy().map_or(self.policy.quorum_standbys, |policy| policy.quorum_standbys) as usize + 1;
        if (waits && voters != may.min(needed)) || (!waits && sync.is_some()) {
            found.push(format!("{voters} of {others} others vote, and {} should", may.min(needed)));
        }
        // One of the voters can take over, wherever a replica can.
        let leads = |node: &NodeName| self.nodes.iter().any(|of| of.name == *node && !of.tags.no_failover);
        let able = |(index, node): (usize, &super::node::Node)| index != primary && leads(&node.name) && !node.tags.no_sync;
        let able = self.nodes.iter().enumerate().take(self.members).any(able);
        if able && sync.as_ref().is_some_and(|sync| !sync.voters.is_empty() && !sync.voters.iter().any(|voter| leads(&voter.node))) {
            found.push("no voter can lead, and another replica can".to_owned());
        }
        if self.machines() > self.members {
            found.push("the copy of a machine runs beside it".to_owned());
        }
        for (index, node) in self.nodes.iter().enumerate().take(self.members) {
            let server = node.server.as_ref();
            if index != primary && server.is_none_or(|server| server.upstream_node() != Some(primary)) {
                found.push(format!("{} does not stream from {}", node.name, self.nodes[primary].name));
            }
        }
        found
    }
}
