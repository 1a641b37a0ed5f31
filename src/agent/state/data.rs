//! The data directory: what lies in it, how far its WAL is whole, and that each of its lives is known apart.

use super::{State, processes::running};
use crate::{
    decide::{
        decision::{Completed, Task},
        snapshot::Scanned,
    },
    model::{
        instance::DataDir,
        moment::Moment,
        node_file::{Boundary, NodeFile},
        observed::Observed,
        timeline::TimelineId,
        wal_layout::Layout,
    },
};
use std::sync::Arc;

impl State {
    pub(super) fn disk(&mut self, dir: DataDir, at: Moment) {
        if let DataDir::Present(facts) = &dir {
            self.histories = Arc::new(facts.histories.clone());
            self.layout = Layout { segment: facts.control.wal_segment, ..Layout::DEFAULT };
            // Somebody has put another directory in its place, or something has run on it.
            if self.whole.as_ref().is_some_and(|scanned| scanned.run.is_none())
                && self.control.as_ref().is_some_and(|known| *known != facts.control)
            {
                self.whole = None;
            }
            self.control = Some(facts.control.clone());
        } else {
            self.histories = Arc::default();
            // What was scanned once is not here any more.
            self.whole = None;
        }
        self.disk = Observed::known(dir, at);
        self.look_for_history();
    }

    /// A timeline that its stream brought since the last look has a history file that is not known yet: without it nobody could tell what the
    /// log of this node grew out of.
    fn look_for_history(&mut self) {
        let Some(scanned) = &self.whole else { return };
        let known = scanned.whole.tli == TimelineId::FIRST || self.histories.contains_key(&scanned.whole.tli);
        if !known && self.disk.seen_at().is_some_and(|seen| seen < scanned.at) {
            self.disk.lost(scanned.at, "the WAL here is on a timeline that was not here at the last look");
        }
    }

    pub(super) fn scanned(&mut self, scanned: Scanned) {
        let run = self.guard.value().and_then(|guard| running(&guard.process));
        if scanned.run == run && scanned.at >= self.stream_changed {
            self.learn_boundary(Boundary { tli: scanned.whole.tli, lsn: scanned.whole.lsn });
            self.whole = Some(scanned);
            self.look_for_history();
        }
    }

    /// Where a stopped directory was searched anew, and no end of its WAL was found, what was known of it before says nothing any more.
    pub(super) fn unread(&mut self, task: Task) {
        if task == Task::Scan && self.whole.as_ref().is_some_and(|scanned| scanned.run.is_none()) {
            self.whole = None;
        }
    }

    pub(super) fn file_written(&mut self, file: NodeFile) {
        if file.data != self.file.data {
            // Another life: nothing that was known of the former one holds.
            self.boundary = file.boundary;
            self.whole = None;
        }
        if file.operation.is_none() {
            self.completed = None;
        }
        self.file = file;
    }

    pub(super) fn completed(&mut self, completed: Completed) {
        self.completed = Some(completed);
        self.place = None;
        self.disk = Observed::never();
        self.histories = Arc::default();
        self.whole = None;
        self.boundary = None;
    }
}
