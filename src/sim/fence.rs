//! Oracle O10: no server acts beyond what its lease, or its peers, allow.

use super::world::World;
use crate::model::{moment::Moment, policy::Preset};

impl World {
    /// A host ends PostgreSQL within this time, in milliseconds. It is no slower where the policy says that it may be: others are chosen later.
    pub(super) fn dies_within(&self) -> u64 {
        self.policy.timers().kill_bound.min(Preset::Default.timers().kill_bound).as_millis()
    }

    /// A deadline is never later than the newest send allows (O10, at its root).
    pub(super) fn judge_deadline(&mut self, node: usize, until: Moment) {
        // Who has nobody to ask may go on from any moment.
        let longest = self.policy.timers().hold.max(Preset::Default.timers().hold);
        let alone = self.has_nobody_to_ask(node).then(|| self.nodes[node].clock.boot(self.now).plus(longest));
        let allowed = self.oracle.longest.get(&node).copied().max(alone);
        if allowed.is_none_or(|allowed| until > allowed) && !self.arms_to_resume(node, until) {
            let name = self.nodes[node].who();
            self.violation("O10", format!("{name} arms {until}, its sends allow {allowed:?}"));
        }
    }

    /// O10, looked at all the time.
    pub(super) fn judge_leases(&mut self) {
        let bound = self.policy.timers().kill_bound;
        for node in 0..self.nodes.len() {
            let of = &self.nodes[node];
            if !of.is_primary() || of.asleep_until > self.now || self.is_paused_for(node) || of.is_excused(self.now) {
                continue;
            }
            let now = of.clock.boot(self.now);
            let held = self.authority(node);
            let allowed = held.map(|(_, until)| until.plus(bound));
            // A claim of its own that was queued, and is taken while it goes on by its peers' word, writes no `sync`: that word, and who has
            // to give it, are of the term before (protocol 1.11).
            let newest = self.oracle.syncs.keys().next_back();
            let kept = held.is_some_and(|(term, _)| newest.is_some_and(|newest| self.kept_by_peers(node, term.min(*newest))));
            if !kept && allowed.is_none_or(|until| now > until.plus(crate::model::moment::Span::from_millis(5))) {
                let name = of.who();
                self.violation("O10", format!("{name} accepts writes at {now}, its lease allowed it until {allowed:?}"));
            }
        }
    }
}
