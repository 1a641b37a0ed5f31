//! Verbs of the guard, and its start.

use super::Outcome;
use crate::{
    decide::decision::Task,
    model::{instance::StartAs, node::Incarnation, term::Term},
    sim::world::World,
};

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

    /// PostgreSQL is asked for its settings first. The start is one for the guard that was there then, and ends by its own word.
    pub(super) fn prepare_start(&mut self, node: usize, run: u64, start: StartAs, term: Term) {
        let slow = if self.nodes[node].slow_disk > self.now { 10 } else { 1 };
        let takes = self.random.tailed(10, 40 * slow);
        let of = self.session_of(node, run);
        self.in_agent(node, run, takes, move |world| {
            let outcome = if of.is_none() || world.session_of(node, run) != of {
                Err("its guard is gone".to_owned())
            } else if world.nodes[node].agent_of(run).is_none_or(|agent| !agent.rendered) {
                Err("the managed configuration has not been written yet".to_owned())
            } else {
                world.start_postgres(node, start, term)
            };
            world.tell_guard(node);
            world.end(node, run, 300_000, Task::Start, outcome);
        });
    }

    /// The guard with which this agent is in session.
    fn session_of(&self, node: usize, run: u64) -> Option<Incarnation> {
        let guard = self.nodes[node].guard.as_ref()?;
        (guard.session == Some(run)).then(|| guard.incarnation.clone())
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
