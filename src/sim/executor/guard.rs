//! Verbs of the guard, and its start.

use super::Outcome;
use crate::{
    agent::event::Event,
    decide::decision::Task,
    model::{instance::StartAs, term::Term},
    sim::{
        Mutation,
        node::{Guard, Unread, Verb},
        world::World,
    },
};

/// How long an agent waits for an answer.
const GUARD_LIMIT: u64 = 2_000_000_000;

impl World {
    /// A verb goes to the guard, its answer comes back, after what it changed.
    pub(super) fn verb(&mut self, node: usize, run: u64, task: Task, verb: impl FnOnce(&mut Self) -> Outcome + 'static) {
        let there = self.random.tailed(1, 2);
        let of = self.connection_of(node, run);
        self.in_agent(node, run, there, move |world| world.send_verb(node, run, of, task, Box::new(verb)));
    }

    /// PostgreSQL is asked for its settings first. The start is one for the guard that was in session then, and ends by its own word.
    pub(super) fn prepare_start(&mut self, node: usize, run: u64, start: StartAs, term: Term) {
        let slow = if self.nodes[node].slow_disk > self.now { 10 } else { 1 };
        let takes = self.random.tailed(10, 40 * slow);
        let of = self.connection_of(node, run);
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_of(run).is_none_or(|agent| !agent.rendered) {
                let why = "the managed configuration has not been written yet".to_owned();
                return world.end(node, run, 300_000, Task::Start, Err(why));
            }
            world.send_verb(node, run, of, Task::Start, Box::new(move |world| world.start_postgres(node, start, term)));
        });
    }

    /// By what this agent is in session with the guard.
    fn connection_of(&self, node: usize, run: u64) -> Option<u64> {
        let guard = self.nodes[node].guard.as_ref()?;
        (guard.session == Some(run)).then_some(guard.connection)
    }

    /// What is sent on a connection that is gone reaches nobody. What is sent to a guard that stands still is read later, or never.
    fn send_verb(&mut self, node: usize, run: u64, of: Option<u64>, task: Task, verb: Verb) {
        if of.is_none() || self.connection_of(node, run) != of {
            self.end(node, run, 300_000, task, Err("its guard is gone".to_owned()));
            return;
        }
        let (id, now) = (self.token(), self.now);
        let Some(guard) = &mut self.nodes[node].guard else { return };
        let (stops_for, at) = guard.stops_for;
        if stops_for > 0 && at.is_none_or(|at| at == task) {
            guard.stops_for = (0, None);
            self.halt_guard(node, now + stops_for);
        }
        match &mut self.nodes[node].guard {
            Some(guard) if guard.stopped_until > 0 => {
                guard.unread.push(Unread { id, connection: guard.connection, run, task, verb });
                self.in_agent(node, run, GUARD_LIMIT, move |world| world.give_up(node, run, id));
            }
            _ => self.obey(node, Some(run), task, verb),
        }
    }

    /// `run`: the agent that waits for the answer.
    fn obey(&mut self, node: usize, run: Option<u64>, task: Task, verb: Verb) {
        let outcome = verb(self);
        self.tell_guard(node);
        if let Some(run) = run {
            self.end(node, run, 300_000, task, outcome);
        }
    }

    /// No answer has come in time: the agent ends the session, and asks for another one. Until then the guard is not known.
    fn give_up(&mut self, node: usize, run: u64, id: u64) {
        let believed = self.options.mutation == Mutation::QueuedVerbs;
        let Some(guard) = &mut self.nodes[node].guard else { return };
        let Some(unread) = guard.unread.iter_mut().find(|unread| unread.id == id) else { return };
        let (task, connection) = (unread.task, unread.connection);
        if believed {
            // Nobody waits for its answer any more.
            unread.connection = 0;
            self.end(node, run, 300_000, task, Err("no answer".to_owned()));
            return;
        }
        if guard.session != Some(run) || guard.connection != connection {
            return;
        }
        guard.session = None;
        let given_up: Vec<Task> = guard.unread.iter().filter(|unread| unread.connection == connection).map(|unread| unread.task).collect();
        self.deliver_after(node, run, 100_000, Event::GuardGone { why: "the guard does not answer".to_owned() });
        for task in given_up {
            self.end(node, run, 300_000, task, Err("no answer".to_owned()));
        }
        let again = self.random.millis(1, 20);
        self.in_agent(node, run, again, move |world| world.attach(node, run));
    }

    /// The guard alone is stopped: at once, or just before it reads the next verb, or the next start. Its deadline is the kernel's, and is none of what stands still.
    pub(in crate::sim) fn stop_guard(&mut self, node: usize, lasts: u64) {
        let waits = self.random.pick(&[None, Some(None), Some(Some(Task::Start)), Some(Some(Task::Start))]);
        if let Some(at) = waits {
            // Hardly longer than an answer is waited for, or for as long as anything else.
            let lasts = if self.random.chance(600) { self.random.millis(2_000, 4_500) } else { lasts };
            if let Some(guard) = &mut self.nodes[node].guard {
                guard.stops_for = (lasts, at);
            }
            return;
        }
        self.halt_guard(node, self.now + lasts);
    }

    fn halt_guard(&mut self, node: usize, until: u64) {
        let Some(guard) = self.nodes[node].guard.as_mut().filter(|guard| guard.stopped_until == 0) else { return };
        guard.stopped_until = until;
        let of = guard.incarnation.clone();
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, "guard stands still");
        self.later_at(node, until - self.now, move |world| {
            let same = |guard: &&Guard| guard.incarnation == of && guard.stopped_until == until;
            if world.nodes[node].guard.as_ref().filter(same).is_some() {
                world.continue_guard(node);
            }
        });
    }

    /// It runs again: it lets in who waits, and does what was asked on the connection that is still there. Of what was asked on one that is gone
    /// it does only what ends PostgreSQL.
    pub(in crate::sim) fn continue_guard(&mut self, node: usize) {
        let lives = self.nodes[node].agent_run();
        let Some(guard) = &mut self.nodes[node].guard else { return };
        guard.stops_for = (0, None);
        if std::mem::take(&mut guard.stopped_until) == 0 {
            return;
        }
        let of = guard.incarnation.clone();
        let (unread, halted) = (std::mem::take(&mut guard.unread), std::mem::take(&mut guard.halted));
        let knocks = guard.knocking.take().filter(|run| lives == Some(*run));
        // It has seen the tree empty by now.
        if self.nodes[node].server.is_none()
            && let Some(data) = &mut self.nodes[node].disk
        {
            data.standby_signal = true;
        }
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, "guard goes on");
        match knocks {
            Some(run) => self.attach(node, run),
            None => self.tell_guard(node),
        }
        halted.into_iter().for_each(|job| job(self));
        for unread in unread {
            if self.nodes[node].guard.as_ref().is_none_or(|guard| guard.incarnation != of) {
                return;
            }
            let open = self.connection_of(node, unread.run) == Some(unread.connection);
            let only_ends = matches!(unread.task, Task::Kill | Task::Stop) && knocks.is_none();
            if open || only_ends || self.options.mutation == Mutation::QueuedVerbs {
                self.obey(node, Some(unread.run).filter(|_| open), unread.task, unread.verb);
            } else {
                self.coverage.unread += 1;
            }
        }
    }

    /// The same in the guard's own process: it stands still while that does. Runs also when that guard is gone.
    pub(in crate::sim) fn in_guard(&mut self, node: usize, after: u64, job: impl FnOnce(&mut Self) + 'static) {
        self.later_at(node, after, move |world| match &mut world.nodes[node].guard {
            Some(guard) if guard.stopped_until > 0 => guard.halted.push(Box::new(job)),
            _ => job(world),
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
            if world.nodes[node].guard.as_ref().is_some_and(|guard| guard.stopped_until > 0) {
                // It answers no question, and no other one can take its place.
                let why = "another guard serves this directory".to_owned();
                return world.end(node, run, 3_000_000_000, Task::StartGuard, Err(why));
            }
            world.end(node, run, 300_000, Task::StartGuard, Ok(()));
        });
    }
}
