//! PURE. The newest fact per source, and the snapshot that freezes them.
//!
//! One owner; no clock, no randomness, no I/O: time and fresh names are arguments. The simulator runs this very code.
//!
//! What is known, by where it comes from, in reading order:
//! - `view`: etcd's records; `floors`: whether etcd went back; `lease`: our writes of `leader`;
//! - `peers`: what other nodes ask and answer while etcd is silent;
//! - `processes`: guard and runs; `server`: what PostgreSQL says; `data`: its directory; `boundary`: how far its WAL surely reaches;
//! - `next`: when that has to be thought about again.

mod boundary;
mod data;
mod floors;
mod lease;
mod next;
mod peers;
mod processes;
mod server;
mod view;

use super::event::Event;
use crate::{
    decide::{
        decision::{Action, Completed, Configuration, Decision, Memory, Task},
        snapshot::{CopyPlace, Etcd, Failure, Fresh, Lease, Me, Probed, Scanned, Shown, Snapshot, Standing},
    },
    model::{
        failsafe::Peers,
        instance::{ControlData, DataDir, GuardStatus, Run, ServerFacts},
        key::Key,
        lsn::Lsn,
        moment::{Clocks, Moment},
        node::{Incarnation, Nonce, Replica},
        node_file::{Boundary, Floors, NodeFile},
        observed::Observed,
        policy::ClusterPolicy,
        record::SyncRecord,
        records::Records,
        term::Term,
        timeline::TimelineId,
        wal_layout::Layout,
    },
};
use boundary::newest;
use lease::{Pending, leader_attempt};
use next::Next;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Everything that one agent knows.
#[derive(Clone, Debug)]
pub struct State {
    me: Me,
    file: NodeFile,
    policy: ClusterPolicy,
    guard: Observed<GuardStatus>,
    former_guard: Option<Incarnation>,
    records: Arc<Records>,
    /// The newest change of keys that are not in `records`: deleted, or not readable. An older change does not bring them back.
    gone: BTreeMap<Key, u64>,
    answered: Observed<()>,
    suspect: Option<String>,
    /// It is suspect by a list that was asked for after what it undercuts was known, and it is no other cluster's.
    went_back: bool,
    /// When the view last changed: only answers asked for later can undercut what it shows.
    floors_at: Moment,
    /// What the file had noted when this run began, and when that was: every answer can undercut that.
    noted: (Floors, Moment),
    lease: Lease,
    standing: Option<Standing>,
    server: Observed<ServerFacts>,
    /// Since when the server of this run has said that it is not consistent.
    inconsistent_since: Option<Moment>,
    layout: Layout,
    disk: Observed<DataDir>,
    place: Option<CopyPlace>,
    completed: Option<Completed>,
    whole: Option<Scanned>,
    /// What `pg_control` said at the last look.
    control: Option<ControlData>,
    /// When the stream last changed: what a scan that began before found may be less than what is there now.
    stream_changed: Moment,
    boundary: Option<Boundary>,
    /// The last insert position of a primary: a boundary once the flush has passed it.
    inserted: Option<(Run, Boundary)>,
    received: Option<(Run, Lsn)>,
    received_at: Option<Moment>,
    configured: Option<Configuration>,
    shown: Option<Shown>,
    /// When other `synchronous_standby_names` were last written.
    names_changed: Moment,
    probed: Option<Probed>,
    histories: Arc<BTreeMap<TimelineId, String>>,
    confirmed: BTreeMap<Replica, Moment>,
    replies: BTreeMap<Replica, (Option<i64>, Option<Lsn>)>,
    tasks: BTreeMap<Task, Moment>,
    failures: BTreeMap<Task, Failure>,
    /// The `sync` that writes of ours replace of which nothing is known, and what they write. Once another one is seen each of them has
    /// happened, or never can.
    sync_unsettled: Option<(String, Vec<SyncRecord>)>,
    peers: Peers,
    /// Transactions on their way, by nonce; a write of `leader` with what it would give us.
    pending: BTreeMap<Nonce, Pending>,
    stopping: bool,
    memory: Memory,
    /// What the last decision waits for the end of.
    held: BTreeSet<Task>,
    /// When the next decision is due.
    next: Next,
}

impl State {
    /// At an agent's start. `file` has already counted this start, and is on disk.
    pub fn new(me: Me, file: NodeFile, now: Clocks) -> Self {
        Self {
            policy: me.first_policy.clone(),
            boundary: file.boundary,
            noted: (file.floors.clone(), now.boot),
            me,
            file,
            guard: Observed::never(),
            former_guard: None,
            records: Arc::default(),
            gone: BTreeMap::new(),
            answered: Observed::never(),
            suspect: None,
            went_back: false,
            floors_at: now.boot,
            lease: Lease::default(),
            standing: None,
            server: Observed::never(),
            inconsistent_since: None,
            layout: Layout::DEFAULT,
            disk: Observed::never(),
            place: None,
            completed: None,
            whole: None,
            control: None,
            stream_changed: now.boot,
            inserted: None,
            received: None,
            received_at: None,
            configured: None,
            shown: None,
            names_changed: now.boot,
            probed: None,
            histories: Arc::default(),
            confirmed: BTreeMap::new(),
            replies: BTreeMap::new(),
            tasks: BTreeMap::new(),
            failures: BTreeMap::new(),
            sync_unsettled: None,
            peers: Peers::default(),
            pending: BTreeMap::new(),
            stopping: false,
            memory: Memory::default(),
            held: BTreeSet::new(),
            next: Next { news: true, heard: None, wake_at: now.boot },
        }
    }

    /// The node file, as last written.
    pub const fn file(&self) -> &NodeFile {
        &self.file
    }

    /// Freezes what is known at `now`.
    pub fn snapshot(&self, now: Clocks, fresh: Fresh) -> Snapshot {
        Snapshot {
            now,
            me: self.me.clone(),
            file: self.file.clone(),
            policy: self.policy.clone(),
            guard: self.guard.clone(),
            former_guard: self.former_guard.clone(),
            etcd: Etcd {
                records: Arc::clone(&self.records),
                answered: self.answered.clone(),
                suspect: self.suspect.clone().or_else(|| self.doubted()),
                went_back: self.went_back && self.suspect.is_some(),
            },
            lease: self.lease.clone(),
            standing: self.standing.clone(),
            server: self.server.clone(),
            inconsistent_since: self.inconsistent_since,
            layout: self.layout,
            disk: self.disk.clone(),
            place: self.place.clone(),
            completed: self.completed,
            whole: self.whole.clone(),
            boundary: self.boundary,
            received_at: self.received_at,
            configured: self.configured.clone(),
            shown: self.shown.clone(),
            probed: self.probed.clone(),
            sync_unsettled: self.unsettled_sync().is_some(),
            sync_written: self.written_sync(),
            peers: self.peers.clone(),
            histories: Arc::clone(&self.histories),
            confirmed: self.confirmed.clone(),
            tasks: self.tasks.clone(),
            failures: self.failures.clone(),
            stopping: self.stopping,
            fresh,
            memory: self.memory.clone(),
        }
    }

    /// Takes over what a decision wants remembered, and marks its actions as going on.
    ///
    /// Called before the actions are handed to their executors. Node files that are about to be written get the newest floors.
    pub fn decided(&mut self, decision: &mut Decision, now: Moment) {
        self.next = Next { news: false, heard: None, wake_at: decision.wake_at };
        self.memory = decision.memory.clone();
        self.held.clone_from(&decision.held);
        for action in &mut decision.actions {
            if let Action::WriteFile(file) = action {
                file.floors = self.newest_floors();
                file.term = file.term.max(self.records.leader.as_ref().map_or(Term::ZERO, |leader| leader.record.term));
                if file.data == self.file.data {
                    file.boundary = newest(file.boundary, self.boundary);
                }
            }
            if let Action::Txn(purpose, txn) = action {
                let attempt = leader_attempt(&self.me, &self.file, txn).filter(|_| purpose.writes_leader());
                self.pending.insert(txn.nonce.clone(), Pending { txn: txn.clone(), attempt });
            }
            self.tasks.insert(action.task(), now);
        }
    }

    /// Takes over one event.
    pub fn apply(&mut self, event: Event, now: Clocks) {
        let repeats = self.is_repetition(&event);
        if let (true, Event::Listed { .. }) = (repeats, &event) {
            // Nothing of it has to be read again.
            self.answered = Observed::known((), now.boot);
            self.observe_leader(now);
        } else {
            self.take_in(event, now);
        }
        self.next.heard = Some(now.boot);
        self.next.news |= !repeats || self.suspect.is_some();
    }

    fn take_in(&mut self, event: Event, now: Clocks) {
        match event {
            Event::Listed { entries, revision, sent } => self.listed(&entries, revision, sent, now),
            Event::Changed { changes, revision } => self.changed(changes, revision, now),
            Event::EtcdSilent { why } => self.answered.lost(now.boot, why),
            Event::TxnSent { nonce, at } => self.txn_sent(&nonce, at),
            Event::TxnDone { nonce, task, outcome } => self.txn_done(&nonce, task, outcome, now),
            Event::Guard(status) => self.guard(status, now.boot),
            Event::GuardGone { why } => self.guard_gone(why, now.boot),
            Event::Server { facts, asked } => self.server(facts, asked, now.boot),
            Event::ServerSilent { run, why, inconsistent } => self.server_silent(run, why, inconsistent, now.boot),
            Event::Disk { dir, at } => self.disk(dir, at),
            Event::Measured(place) => self.place = Some(place),
            Event::Scanned { whole, run, at } => self.scanned(Scanned { whole, run, at }),
            Event::FileWritten(file) => self.file_written(*file),
            Event::Configured(configuration) => self.configured(*configuration, now.boot),
            Event::Shown(shown) if shown.at < self.names_changed => {}
            Event::Shown(shown) => self.shown = Some(Shown { known: now.boot, ..shown }),
            Event::Probed(probed) => self.probed = Some(probed),
            Event::Asked(asked) => self.peers.asked = Some(asked),
            Event::Answered { answer, ask, sent } => self.answered_by(answer, &ask, sent),
            Event::StreamCut => self.stream_cut(now.boot),
            Event::HistoriesWritten(texts) => self.histories = Arc::new(texts),
            Event::Completed(completed) => self.completed(completed),
            Event::Done { task, outcome } => self.done(task, outcome, now.boot),
            Event::Held { task, why } => {
                self.tasks.remove(&task);
                self.unread(task);
                self.failed(task, why, true, now.boot);
            }
            Event::Stop => self.stopping = true,
        }
    }

    fn done(&mut self, task: Task, outcome: Result<(), String>, now: Moment) {
        self.tasks.remove(&task);
        match outcome {
            Ok(()) => {
                self.failures.remove(&task);
            }
            Err(why) => {
                if matches!(task, Task::Start | Task::Scan | Task::Data | Task::WriteHistories) {
                    // The directory may not be what it was when it was looked at.
                    self.disk.lost(now, format!("could not {task}"));
                }
                self.unread(task);
                if matches!(task, Task::Configure | Task::CutStream) {
                    // The files may say either by now.
                    self.configured = None;
                }
                self.failed(task, why, false, now);
            }
        }
    }

    fn failed(&mut self, task: Task, why: String, held: bool, now: Moment) {
        let (count, before) = self.failures.get(&task).map_or((0, 0), |failure| (failure.count, failure.held));
        let held = before.saturating_add(u32::from(held));
        self.failures.insert(task, Failure { count: count.saturating_add(1), at: now, why, held });
    }
}

#[cfg(test)]
mod tests;
