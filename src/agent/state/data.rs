//! The data directory: what lies in it, how far its WAL is whole, and that each of its lives is known apart.

use super::{State, processes::running};
use crate::{
    decide::{decision::Completed, snapshot::Scanned},
    model::{
        instance::DataDir,
        moment::Moment,
        node_file::{Boundary, NodeFile},
        observed::Observed,
        wal_layout::Layout,
    },
};
use std::sync::Arc;

impl State {
    pub(super) fn disk(&mut self, dir: DataDir, at: Moment) {
        if let DataDir::Present(facts) = &dir {
            self.histories = Arc::new(facts.histories.clone());
            self.layout = Layout { segment: facts.control.wal_segment, ..Layout::DEFAULT };
        } else {
            self.histories = Arc::default();
            // What was scanned once is not here any more.
            self.whole = None;
        }
        self.disk = Observed::known(dir, at);
    }

    pub(super) fn scanned(&mut self, scanned: Scanned) {
        let run = self.guard.value().and_then(|guard| running(&guard.process));
        if scanned.run == run && scanned.at >= self.stream_changed {
            self.learn_boundary(Boundary { tli: scanned.whole.tli, lsn: scanned.whole.lsn });
            self.whole = Some(scanned);
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
