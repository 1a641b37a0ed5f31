//! Verbs of the guard, and its start.

use super::Outcome;
use crate::{decide::decision::Task, sim::world::World};

impl World {
    /// A verb goes to the guard, its answer comes back, after what it changed.
    pub(super) fn verb(&mut self, node: usize, run: u64, task: Task, verb: impl FnOnce(&mut Self) -> Outcome + 'static) {
        let there = self.random.tailed(1, 2);
        self.in_agent(node, run, there, move |world| {
            // A guard that is gone answers nothing: the agent hears that it is gone.
            let session = world.nodes[node].guard.as_ref().and_then(|guard| guard.session);
            if session != Some(run) {
                return;
            }
            let outcome = verb(world);
            world.tell_guard(node);
            world.end(node, run, 300_000, task, outcome);
        });
    }

    pub(super) fn start_guard_when_empty(&mut self, node: usize, run: u64, after: u64) {
        self.later_at(node, after, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
            if world.nodes[node].guard.is_none() && world.nodes[node].server.is_some() {
                // What a former guard left is still dying: the new one starts when it is gone.
                world.start_guard_when_empty(node, run, 20_000_000);
                return;
            }
            world.start_guard(node, run);
            world.end(node, run, 300_000, Task::StartGuard, Ok(()));
        });
    }
}
