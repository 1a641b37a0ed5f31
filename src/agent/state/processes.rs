//! The processes: the guard, and whether PostgreSQL lives under it. A new run ends what was known of the one before.

use super::State;
use crate::{
    decide::decision::Task,
    model::{
        instance::{GuardStatus, Process, Run},
        moment::Moment,
        observed::Observed,
    },
};

impl State {
    pub(super) fn guard(&mut self, status: GuardStatus, now: Moment) {
        if let Some(known) = self.guard.value().filter(|known| known.incarnation != status.incarnation) {
            self.former_guard = Some(known.incarnation.clone());
        }
        let run = running(&status.process);
        if run != self.guard.value().and_then(|known| running(&known.process)) {
            // Facts of one run say nothing of another.
            self.server.lost(now, "PostgreSQL was started or ended");
            self.whole = None;
            self.disk.lost(now, "PostgreSQL was started or ended");
            self.received = None;
            self.inserted = None;
            self.inconsistent_since = None;
            self.shown = None;
        }
        self.guard = Observed::known(status, now);
    }

    pub(super) fn guard_gone(&mut self, why: String, now: Moment) {
        if let Some(known) = self.guard.value() {
            self.former_guard = Some(known.incarnation.clone());
        }
        self.guard.lost(now, why);
        self.server.lost(now, "no guard is in session");
        self.disk.lost(now, "no guard is in session");
        self.inconsistent_since = None;
        self.whole = None;
        // A start is prepared for long before the guard hears of it: it ends by its own word, or that would be taken for the next one's.
        for task in [Task::Arm, Task::Stop, Task::Kill, Task::Promote, Task::Cut] {
            self.tasks.remove(&task);
        }
    }
}

pub(super) fn running(process: &Process) -> Option<Run> {
    match process {
        Process::Running { run, .. } | Process::Dying { run } => Some(*run),
        Process::Empty { .. } => None,
    }
}
