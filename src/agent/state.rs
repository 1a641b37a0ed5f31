//! PURE. The newest fact per source, and the snapshot that freezes them.
//!
//! One owner; no clock, no randomness, no I/O: time and fresh names are arguments. The simulator runs this very code.

use super::event::{Event, TxnOutcome};
use crate::{
    decide::{
        decision::{Action, Completed, Configuration, Decision, Memory, Task},
        snapshot::{Attempt, Etcd, Failure, Fresh, Lease, Me, Scanned, Snapshot, Standing, is_held},
    },
    model::{
        instance::{DataDir, GuardStatus, Process, Run, ServerFacts, ServerRole},
        key::{Key, Txn, Write},
        lsn::Lsn,
        moment::{Clocks, Moment, Span},
        node::{Incarnation, Nonce, Replica},
        node_file::{Boundary, ClonePlace, Floors, NodeFile},
        observed::Observed,
        policy::ClusterPolicy,
        record::LeaderRecord,
        records::Records,
        term::Term,
        timeline::TimelineId,
    },
};
use std::collections::BTreeMap;

/// So many writes of `leader` without an answer are kept, the newest: they outlast the longest hold, and an outage of etcd does
/// not fill the memory.
const UNSETTLED_KEPT: usize = 256;

/// Deleted keys are remembered for so many revisions.
const GONE_KEPT: u64 = 100_000;

/// A transaction on its way.
#[derive(Clone, Debug)]
struct Pending {
    txn: Txn,
    attempt: Option<Attempt>,
}

/// Everything that one agent knows.
#[derive(Clone, Debug)]
pub struct State {
    me: Me,
    file: NodeFile,
    policy: ClusterPolicy,
    guard: Observed<GuardStatus>,
    former_guard: Option<Incarnation>,
    records: Records,
    /// The newest change of keys that are not in `records`: deleted, or not readable. An older change does not bring them back.
    gone: BTreeMap<Key, u64>,
    answered: Observed<()>,
    suspect: Option<String>,
    /// When the highest values of `file.floors` were received: only answers asked for later can undercut them.
    floors_at: Moment,
    lease: Lease,
    standing: Option<Standing>,
    server: Observed<ServerFacts>,
    disk: Observed<DataDir>,
    place: Option<ClonePlace>,
    completed: Option<Completed>,
    whole: Option<Scanned>,
    /// When the stream last changed: what a scan that began before found may be less than what is there now.
    stream_changed: Moment,
    boundary: Option<Boundary>,
    /// The last insert position of a primary: a boundary once the flush has passed it.
    inserted: Option<(Run, Boundary)>,
    received: Option<(Run, Lsn)>,
    received_at: Option<Moment>,
    configured: Option<Configuration>,
    histories: BTreeMap<TimelineId, String>,
    confirmed: BTreeMap<Replica, Moment>,
    replies: BTreeMap<Replica, (Option<i64>, Option<Lsn>)>,
    tasks: BTreeMap<Task, Moment>,
    failures: BTreeMap<Task, Failure>,
    /// Transactions on their way, by nonce; a write of `leader` with what it would give us.
    pending: BTreeMap<Nonce, Pending>,
    stopping: bool,
    memory: Memory,
    /// Something that a decision could depend on has changed since the last snapshot's decision.
    news: bool,
}

impl State {
    /// At an agent's start. `file` has already counted this start, and is on disk.
    pub fn new(me: Me, file: NodeFile, now: Clocks) -> Self {
        Self {
            policy: me.first_policy.clone(),
            boundary: file.boundary,
            me,
            file,
            guard: Observed::never(),
            former_guard: None,
            records: Records::default(),
            gone: BTreeMap::new(),
            answered: Observed::never(),
            suspect: None,
            floors_at: now.boot,
            lease: Lease::default(),
            standing: None,
            server: Observed::never(),
            disk: Observed::never(),
            place: None,
            completed: None,
            whole: None,
            stream_changed: now.boot,
            inserted: None,
            received: None,
            received_at: None,
            configured: None,
            histories: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            replies: BTreeMap::new(),
            tasks: BTreeMap::new(),
            failures: BTreeMap::new(),
            pending: BTreeMap::new(),
            stopping: false,
            memory: Memory::default(),
            news: true,
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
            etcd: Etcd { records: self.records.clone(), answered: self.answered.clone(), suspect: self.suspect.clone() },
            lease: self.lease.clone(),
            standing: self.standing.clone(),
            server: self.server.clone(),
            disk: self.disk.clone(),
            place: self.place,
            completed: self.completed,
            whole: self.whole.clone(),
            boundary: self.boundary,
            received_at: self.received_at,
            configured: self.configured.clone(),
            histories: self.histories.clone(),
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
        self.news = false;
        self.memory = decision.memory.clone();
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

    /// Whether anything was learned since the last decision that could change the next one.
    ///
    /// Most of what an idle cluster says is said again: it does not have to be thought about again before the next wake-up.
    pub const fn has_news(&self) -> bool {
        self.news
    }

    /// Takes over one event.
    pub fn apply(&mut self, event: Event, now: Clocks) {
        self.news |= !self.is_repetition(&event);
        match event {
            Event::Listed { entries, revision, sent } => self.listed(entries, revision, sent, now),
            Event::Changed { changes, revision } => self.changed(changes, revision, now),
            Event::EtcdSilent { why } => self.answered.lost(now.boot, why),
            Event::TxnSent { nonce, at } => self.txn_sent(&nonce, at),
            Event::TxnDone { nonce, task, outcome } => self.txn_done(&nonce, task, outcome, now),
            Event::Guard(status) => self.guard(status, now.boot),
            Event::GuardGone { why } => self.guard_gone(why, now.boot),
            Event::Server(facts) => self.server(facts, now.boot),
            Event::ServerSilent { run, why } => {
                if self.server.value().is_none_or(|facts| facts.run == run) {
                    self.server.lost(now.boot, why);
                }
            }
            Event::Disk { dir, place, at } => self.disk(dir, place, at),
            Event::Scanned { whole, run, at } => self.scanned(Scanned { whole, run, at }),
            Event::FileWritten(file) => self.file_written(*file),
            Event::Configured(configuration) => {
                let same = self.configured.as_ref().is_some_and(|before| before.follow == configuration.follow);
                if !same {
                    self.stream_changed(now.boot);
                }
                self.configured = Some(*configuration);
            }
            Event::StreamCut => {
                self.stream_changed(now.boot);
                if let Some(configured) = &mut self.configured {
                    configured.follow = None;
                }
            }
            Event::HistoriesWritten(texts) => self.histories = texts,
            Event::Completed(completed) => self.completed(completed),
            Event::Done { task, outcome } => self.done(task, outcome, now.boot),
            Event::Stop => self.stopping = true,
        }
    }

    /// Whether an event says what is known already.
    fn is_repetition(&self, event: &Event) -> bool {
        match event {
            Event::Guard(status) => self.guard.value() == Some(status),
            Event::Server(facts) => self.server.value().is_some_and(|known| is_idle_repetition(known, facts)),
            Event::Changed { changes, .. } => {
                matches!(self.answered, Observed::Known { .. })
                    && changes.iter().all(|(key, _, written)| self.known_revision(key).is_some_and(|known| *written <= known))
            }
            _ => false,
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
                    self.disk.lost(now, format!("{task:?} failed"));
                }
                if matches!(task, Task::Configure | Task::CutStream) {
                    // The files may say either by now.
                    self.configured = None;
                }
                let count = self.failures.get(&task).map_or(0, |failure| failure.count).saturating_add(1);
                self.failures.insert(task, Failure { count, at: now, why });
            }
        }
    }

    // ---- etcd ----

    fn listed(&mut self, entries: Vec<(Key, String, u64)>, revision: u64, sent: Moment, now: Clocks) {
        let mut records = Records::default();
        for (key, text, written) in entries {
            records.apply(&key, Some(&text), written);
        }
        records.revision = revision;
        self.suspect = self.undercut(&records, sent);
        if self.suspect.is_some() {
            // What an etcd that is not believed shows is not taken over: the last believed view stays.
            self.answered = Observed::known((), now.boot);
            return;
        }
        if self.generation_raised(&records) {
            self.gone.clear();
            self.records = records;
        } else {
            self.merge(records);
        }
        self.answered = Observed::known((), now.boot);
        self.view_changed(now);
    }

    fn generation_raised(&self, records: &Records) -> bool {
        // What the view shows counts too: the file notes it a moment later, and until then no older list may take the view back.
        records.cluster.as_ref().is_some_and(|cluster| cluster.record.generation > self.newest_floors().generation)
    }

    /// Takes over a whole list. Our own writes may be ahead of it: a key that is newer in the view stays.
    fn merge(&mut self, list: Records) {
        for key in self.records.keys() {
            let older = self.records.revision_of(&key).is_some_and(|revision| revision <= list.revision);
            if older && list.revision_of(&key).is_none() {
                self.take(&key, None, list.revision);
            }
        }
        for key in list.keys() {
            if list.revision_of(&key) > self.known_revision(&key) {
                self.take(&key, list.text(&key), list.revision_of(&key).unwrap_or_default());
            }
        }
        self.records.unreadable = list.unreadable;
        // Changes come again for a while only.
        self.gone.retain(|_, at| at.saturating_add(GONE_KEPT) > list.revision);
        self.records.revision = self.records.revision.max(list.revision);
    }

    /// The revision of the newest change of a key that this state has taken in; `None` where it knows of none.
    fn known_revision(&self, key: &Key) -> Option<u64> {
        self.records.revision_of(key).max(self.gone.get(key).copied())
    }

    /// Takes over one newer value.
    fn take(&mut self, key: &Key, text: Option<&str>, revision: u64) {
        self.records.apply(key, text, revision);
        if self.records.revision_of(key).is_some() {
            self.gone.remove(key);
        } else if !matches!(key, Key::History(_) | Key::Audit(_)) {
            self.gone.insert(key.clone(), revision);
        }
    }

    fn changed(&mut self, changes: Vec<(Key, Option<String>, u64)>, revision: u64, now: Clocks) {
        if self.suspect.is_some() {
            return;
        }
        for (key, text, written) in changes {
            // Old and repeated events never take a key back.
            if self.known_revision(&key).is_none_or(|known| written > known) {
                self.take(&key, text.as_deref(), written);
            }
        }
        self.records.revision = self.records.revision.max(revision);
        self.answered = Observed::known((), now.boot);
        self.view_changed(now);
    }

    /// What this answer undercuts of the floors, if it was asked for after they were known (protocol 1.2, *suspect etcd*).
    fn undercut(&self, records: &Records, sent: Moment) -> Option<String> {
        if sent < self.floors_at {
            return None;
        }
        let floors = &self.newest_floors();
        let uuid = floors.uuid.as_ref()?;
        let Some(cluster) = &records.cluster else {
            return Some(format!("nothing is left under this cluster's prefix; this node knows it with uuid {uuid}"));
        };
        if cluster.record.uuid != *uuid {
            return Some(format!("the cluster there has uuid {}, this node belongs to {uuid}", cluster.record.uuid));
        }
        if cluster.record.generation > floors.generation {
            return None;
        }
        let leader = records.leader.as_ref().map(|leader| &leader.record);
        let checks = [
            ("revision", records.revision, floors.revision),
            ("leader.seq", leader.map_or(0, |leader| leader.seq), floors.seq),
            ("sync.term", records.sync.as_ref().map_or(0, |sync| sync.record.term.get()), floors.sync_term.get()),
            ("term", leader.map_or(0, |leader| leader.term.get()), self.known_term()),
        ];
        checks.into_iter().find(|(_, there, floor)| there < floor).map(|(what, there, floor)| {
            format!("its {what} is {there}, and this node has seen {floor}: it was restored from an older state, or is not the same etcd")
        })
    }

    fn known_term(&self) -> u64 {
        let seen = self.records.leader.as_ref().map_or(Term::ZERO, |leader| leader.record.term);
        seen.max(self.file.term).get()
    }

    /// The file's floors, raised by what the believed view shows.
    fn newest_floors(&self) -> Floors {
        let Some(cluster) = &self.records.cluster else { return self.file.floors.clone() };
        let leader = self.records.leader.as_ref().map(|leader| &leader.record);
        let now = Floors {
            uuid: Some(cluster.record.uuid.clone()),
            generation: cluster.record.generation,
            revision: self.records.revision,
            seq: leader.map_or(0, |leader| leader.seq),
            sync_term: self.records.sync.as_ref().map_or(Term::ZERO, |sync| sync.record.term),
        };
        if now.generation > self.file.floors.generation {
            return now;
        }
        let old = &self.file.floors;
        Floors { revision: now.revision.max(old.revision), seq: now.seq.max(old.seq), sync_term: now.sync_term.max(old.sync_term), ..now }
    }

    /// The view changed: the policy, the taker's observation, and our own lease follow.
    fn view_changed(&mut self, now: Clocks) {
        // Answers that were asked for before this moment may still be older, and prove nothing.
        self.floors_at = now.boot;
        if let Some(policy) = &self.records.policy {
            // A set of timers that cannot work is not taken over; the last good one stays.
            if policy.record.policy.check_timers().is_ok() {
                self.policy = policy.record.policy.clone();
            }
        }
        self.observe_leader(now);
        if let Some(leader) = &self.records.leader {
            let nonce = leader.record.nonce.clone();
            let (holder, term) = (leader.record.holder.replica(), leader.record.term);
            self.settle(&nonce);
            if holder != Replica::new(self.me.node.clone(), self.file.data.clone()) {
                // Another's value: what compared an older one can never be committed any more.
                self.lease.unsettled.retain(|attempt| attempt.term > term);
            }
        }
        let boundary = self.records.leader.as_ref().map(|leader| Boundary { tli: leader.record.tli, lsn: leader.record.lsn });
        self.learn_boundary_from_leader(boundary);
    }

    fn observe_leader(&mut self, now: Clocks) {
        let Some(leader) = &self.records.leader else {
            self.standing = None;
            return;
        };
        let same = |standing: &Standing| standing.nonce == leader.record.nonce && !now.slept_since(standing.suspended);
        if !self.standing.as_ref().is_some_and(same) {
            self.standing = Some(Standing { nonce: leader.record.nonce.clone(), since: now.mono, suspended: now.suspended() });
        }
    }

    // ---- our writes of `leader` ----

    fn txn_sent(&mut self, nonce: &Nonce, at: Moment) {
        let Some(attempt) = self.pending.get(nonce).and_then(|pending| pending.attempt.clone()) else { return };
        self.lease.unsettled.push(Attempt { sent: at, ..attempt });
        if self.lease.unsettled.len() > UNSETTLED_KEPT {
            self.lease.unsettled.remove(0);
        }
    }

    fn txn_done(&mut self, nonce: &Nonce, task: Task, outcome: TxnOutcome, now: Clocks) {
        let pending = self.pending.remove(nonce);
        let failed = match outcome {
            TxnOutcome::Applied { revision, .. } => {
                self.settle(nonce);
                if let Some(pending) = pending {
                    self.applied(&pending.txn, revision, now);
                }
                None
            }
            TxnOutcome::Refused { values, revision, .. } => {
                self.lease.unsettled.retain(|attempt| attempt.nonce != *nonce);
                self.refused(values, revision, now);
                None
            }
            TxnOutcome::NotDone { why } => {
                self.lease.unsettled.retain(|attempt| attempt.nonce != *nonce);
                self.answered.lost(now.boot, why.clone());
                Some(why)
            }
            TxnOutcome::Unknown { why } => {
                self.answered.lost(now.boot, why.clone());
                Some(why)
            }
        };
        self.done(task, failed.map_or(Ok(()), Err), now.boot);
    }

    /// A refusal is a linearizable look at the compared keys.
    fn refused(&mut self, values: Vec<(Key, Option<String>, u64)>, revision: u64, now: Clocks) {
        if self.suspect.is_some() {
            return;
        }
        for (key, text, written) in values {
            let known = self.known_revision(&key);
            let newer = match text {
                Some(_) => known.is_none_or(|known| written > known),
                None => known.is_some_and(|known| known <= revision),
            };
            if newer {
                let at = if text.is_some() { written } else { revision };
                self.take(&key, text.as_deref(), at);
            }
        }
        self.answered = Observed::known((), now.boot);
        self.view_changed(now);
    }

    /// This write of ours is committed: earlier ones that are not settled can never be.
    fn settle(&mut self, nonce: &Nonce) {
        let Some(index) = self.lease.unsettled.iter().position(|attempt| attempt.nonce == *nonce) else { return };
        let later = self.lease.unsettled.split_off(index + 1);
        self.lease.confirmed = self.lease.unsettled.pop();
        self.lease.unsettled = later;
    }

    /// Shows the applied writes of a transaction at once, as the watch will in a moment.
    fn applied(&mut self, txn: &Txn, revision: u64, now: Clocks) {
        let changes = txn.then.iter().map(|write| match write {
            Write::Put(key, text) => (key.clone(), Some(text.clone()), revision),
            Write::Delete(key) => (key.clone(), None, revision),
        });
        self.changed(changes.collect(), revision, now);
    }

    // ---- guard, processes ----

    fn guard(&mut self, status: GuardStatus, now: Moment) {
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
        }
        self.guard = Observed::known(status, now);
    }

    fn guard_gone(&mut self, why: String, now: Moment) {
        if let Some(known) = self.guard.value() {
            self.former_guard = Some(known.incarnation.clone());
        }
        self.guard.lost(now, why);
        self.server.lost(now, "no guard is in session");
        self.disk.lost(now, "no guard is in session");
        self.whole = None;
        for task in [Task::Arm, Task::Start, Task::Stop, Task::Kill, Task::Promote] {
            self.tasks.remove(&task);
        }
    }

    // ---- PostgreSQL ----

    fn stream_changed(&mut self, now: Moment) {
        self.whole = None;
        self.stream_changed = now;
    }

    fn server(&mut self, facts: ServerFacts, now: Moment) {
        match &facts.role {
            ServerRole::Primary { tli, insert, flush } => {
                if let Some((_, inserted)) = self.inserted.filter(|(run, inserted)| *run == facts.run && inserted.lsn <= *flush) {
                    self.learn_boundary(inserted);
                }
                self.inserted = Some((facts.run, Boundary { tli: *tli, lsn: *insert }));
                self.note_replies(&facts, now);
            }
            ServerRole::Standby { tli, receive, replay, .. } => {
                self.learn_boundary(Boundary { tli: *tli, lsn: *replay });
                if let Some(received) = receive {
                    if self.received.is_none_or(|(run, before)| run == facts.run && before < *received) {
                        self.received_at = Some(now);
                    }
                    self.received = Some((facts.run, *received));
                }
            }
        }
        self.server = Observed::known(facts, now);
        let leader = self.records.leader.as_ref().map(|leader| Boundary { tli: leader.record.tli, lsn: leader.record.lsn });
        self.learn_boundary_from_leader(leader);
    }

    /// The primary's boundary is one here too, once we have received that far on the same timeline.
    fn learn_boundary_from_leader(&mut self, leader: Option<Boundary>) {
        let Some(leader) = leader else { return };
        let Some(ServerRole::Standby { tli, receive: Some(received), .. }) = self.server.value().map(|facts| &facts.role) else { return };
        if *tli == leader.tli && *received >= leader.lsn {
            self.learn_boundary(leader);
        }
    }

    fn learn_boundary(&mut self, boundary: Boundary) {
        self.boundary = newest(self.boundary, Some(boundary));
    }

    /// A replica has confirmed something when its row says something new.
    fn note_replies(&mut self, facts: &ServerFacts, now: Moment) {
        for row in facts.walsenders.iter().filter(|row| row.streaming) {
            let Some(replica) = Replica::from_application_name(&row.application_name) else { continue };
            let said = (row.reply, row.flush);
            if self.replies.insert(replica.clone(), said) != Some(said) {
                self.confirmed.insert(replica, now);
            }
        }
    }

    fn disk(&mut self, dir: DataDir, place: Option<ClonePlace>, at: Moment) {
        if let DataDir::Present(facts) = &dir {
            self.histories.clone_from(&facts.histories);
        } else {
            self.histories.clear();
        }
        self.place = place;
        self.disk = Observed::known(dir, at);
    }

    fn scanned(&mut self, scanned: Scanned) {
        let run = self.guard.value().and_then(|guard| running(&guard.process));
        if scanned.run == run && scanned.at >= self.stream_changed {
            self.learn_boundary(Boundary { tli: scanned.whole.tli, lsn: scanned.whole.lsn });
            self.whole = Some(scanned);
        }
    }

    fn file_written(&mut self, file: NodeFile) {
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

    fn completed(&mut self, completed: Completed) {
        self.completed = Some(completed);
        self.disk = Observed::never();
        self.histories.clear();
        self.whole = None;
        self.boundary = None;
    }
}

/// Whether a sample differs from the one before by the time of replicas' messages alone.
fn is_idle_repetition(known: &ServerFacts, facts: &ServerFacts) -> bool {
    let quiet = |facts: &ServerFacts| {
        let mut facts = facts.clone();
        for row in &mut facts.walsenders {
            (row.reply, row.replay_ms) = (None, None);
        }
        facts
    };
    quiet(known) == quiet(facts)
}

fn running(process: &Process) -> Option<Run> {
    match process {
        Process::Running { run, .. } | Process::Dying { run } => Some(*run),
        Process::Empty { .. } => None,
    }
}

/// The newer of two boundaries. Of two timelines the higher id counts: ids only grow.
fn newest(one: Option<Boundary>, other: Option<Boundary>) -> Option<Boundary> {
    let order = |boundary: &Boundary| (boundary.tli, boundary.lsn);
    [one, other].into_iter().flatten().max_by_key(order)
}

/// The write of `leader` in a transaction, as an attempt without its send.
fn leader_attempt(me: &Me, file: &NodeFile, txn: &Txn) -> Option<Attempt> {
    let text = txn.then.iter().find_map(|write| match write {
        Write::Put(Key::Leader, text) => Some(text),
        _ => None,
    })?;
    let record: LeaderRecord = serde_json::from_str(text).ok()?;
    let ours = record.holder.node == me.node && record.holder.data == file.data;
    let handed = matches!(record.state, crate::model::record::LeaderState::Handoff { .. });
    Some(Attempt {
        nonce: txn.nonce.clone(),
        term: record.term,
        sent: Moment::ZERO,
        hold: if ours { record.hold } else { Span::ZERO },
        holds: ours && is_held(&record) && !handed,
    })
}

#[cfg(test)]
mod tests;
