//! A decision in the making.

use super::{
    decision::{Action, Decision, Memory, Reason, ReasonKind, Routing, Task},
    snapshot::Snapshot,
    wording,
};
use crate::model::{
    instance::{Process, Run},
    moment::{Moment, Span},
};
use std::collections::BTreeSet;

/// With nothing else to wait for, decide again after this.
const IDLE: Span = Span::from_secs(2);

/// What should have been done already goes on, or rests: its end is an event, and nothing is won by asking without a pause.
const OVERDUE: Span = Span::from_millis(10);

/// A decision in the making: rules add to it, in the order of `mod.rs`.
pub(super) struct Draft {
    pub(super) actions: Vec<Action>,
    pub(super) reasons: Vec<Reason>,
    now: Moment,
    pub(super) wake_at: Moment,
    held: BTreeSet<Task>,
    pub(super) hurry: bool,
    pub(super) routing: Routing,
    pub(super) memory: Memory,
}

impl Draft {
    pub(super) fn new(s: &Snapshot) -> Self {
        Self {
            actions: Vec::new(),
            reasons: Vec::new(),
            now: s.now.boot,
            wake_at: s.now.boot.plus(IDLE),
            held: BTreeSet::new(),
            hurry: false,
            routing: Routing::default(),
            memory: s.memory.clone(),
        }
    }

    pub(super) fn finish(self) -> Decision {
        Decision {
            actions: self.actions,
            reasons: self.reasons,
            wake_at: self.wake_at,
            held: self.held,
            hurry: self.hurry,
            routing: self.routing,
            memory: self.memory,
        }
    }

    /// Adds an action, unless one of its kind goes on, was added already, or has to rest after a failure.
    ///
    /// Returns whether it was added. A rest shows as a reason, with what failed.
    pub(super) fn act(&mut self, s: &Snapshot, action: Action) -> bool {
        let task = action.task();
        if s.busy(task) {
            self.held.insert(task);
            return false;
        }
        if self.actions.iter().any(|added| added.task() == task) {
            return false;
        }
        // The guard sees to the end of what is dying; only what another one started it kills when it is told to.
        if task == Task::Kill && matches!(s.process(), Some(Process::Dying { run }) if *run != Run(0)) {
            return false;
        }
        let rested = s.ready_at(task, longest_rest(task)).unwrap_or(Moment::ZERO);
        if rested > s.now.boot {
            self.wake(rested);
            if let Some(failure) = s.failures.get(&task) {
                let rest = s.left(rested);
                let times = wording::times(failure.count);
                self.waits("retry", format!("could not {action}, tried {times}: {}; again in {rest}", failure.why));
            }
            return false;
        }
        self.actions.push(action);
        true
    }

    /// Decides again at `at` at the latest.
    pub(super) fn wake(&mut self, at: Moment) {
        let at = if at <= self.now { self.now.plus(OVERDUE) } else { at };
        self.wake_at = self.wake_at.min(at);
    }

    pub(super) fn because(&mut self, id: &str, text: impl Into<String>) {
        self.reason(ReasonKind::Because, id, text);
    }

    pub(super) fn waits(&mut self, id: &str, text: impl Into<String>) {
        self.reason(ReasonKind::Waits, id, text);
    }

    pub(super) fn refused(&mut self, id: &str, text: impl Into<String>) {
        self.reason(ReasonKind::Refused, id, text);
    }

    pub(super) fn alarm(&mut self, id: &str, text: impl Into<String>) {
        self.reason(ReasonKind::Alarm, id, text);
    }

    fn reason(&mut self, kind: ReasonKind, id: &str, text: impl Into<String>) {
        self.reasons.push(Reason { id: id.to_owned(), text: text.into(), kind });
    }
}

/// How long a kind of task rests at the most after failures in a row.
const fn longest_rest(task: Task) -> Span {
    match task {
        // What keeps or ends authority never waits long.
        Task::LeaderTxn | Task::Arm | Task::Kill | Task::Stop | Task::AskPeers => Span::from_millis(100),
        Task::Data | Task::Start => Span::from_secs(30),
        Task::Migrate | Task::Checkpoint | Task::Slot => Span::from_secs(10),
        _ => Span::from_secs(2),
    }
}
