//! etcd: linearizable transactions, revisions, a log for watches, leases of members; elections and outages.
//!
//! `history`: compacted, wiped, restored, and the operator who then puts it right. `leases`: what hangs on an agent's life.

mod history;
mod leases;

pub(super) use history::RECOVERED;
use leases::is_leased;

use super::{mutation::Mutation, world::World};
use crate::{
    agent::event::{Event, TxnOutcome},
    decide::decision::{Purpose, Task},
    model::{
        key::{Compare, Key, Txn, Write},
        moment::Moment,
        policy::ClusterPolicy,
        record::{LeaderRecord, LeaderState, PolicyRecord, SyncRecord},
    },
};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

/// After so long the client lists everything, whatever its watch says.
const LISTS: u64 = 2_000_000_000;

/// How long the client waits for one attempt.
const ATTEMPT: u64 = 350_000_000;

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) revision: u64,
    /// The agent whose etcd lease it hangs on: node and run.
    lease: Option<(usize, u64)>,
}

type Change = (Key, Option<String>, u64);

/// The values, and what happens to requests.
#[derive(Default)]
pub(super) struct Store {
    pub(super) entries: BTreeMap<Key, Entry>,
    pub(super) revision: u64,
    log: Vec<Change>,
    /// No leader until then.
    pub(super) away_until: u64,
    /// Out of space until then: what would be written is refused, what is read is answered.
    pub(super) full_until: u64,
    /// Of a thousand answers so many are errors that say nothing, until.
    pub(super) ambiguous: (u64, u64),
    /// Watches from before this revision are refused.
    compacted: u64,
    /// Snapshots, the newest last.
    backups: Vec<history::Saved>,
    /// `sync` as it was last read, and from which text.
    read: RefCell<Option<(String, Rc<SyncRecord>)>>,
    /// What it held when somebody wiped it or restored an older state; `None` while nobody did, or once the records are made anew.
    pub(super) before: Option<history::Saved>,
}

impl Store {
    /// Read once for each text: the oracles ask for it all the time.
    pub(super) fn sync(&self) -> Option<Rc<SyncRecord>> {
        let text = &self.entries.get(&Key::Sync)?.text;
        let mut read = self.read.borrow_mut();
        if read.as_ref().is_none_or(|(of, _)| of != text) {
            *read = Some((text.clone(), Rc::new(serde_json::from_str(text).ok()?)));
        }
        read.as_ref().map(|(_, sync)| Rc::clone(sync))
    }

    /// The policy that agents find.
    pub(super) fn policy(&self) -> Option<ClusterPolicy> {
        let record: PolicyRecord = serde_json::from_str(&self.entries.get(&Key::Policy)?.text).ok()?;
        Some(record.policy)
    }

    pub(super) fn leader(&self) -> Option<LeaderRecord> {
        serde_json::from_str(&self.entries.get(&Key::Leader)?.text).ok()
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Is(key, text) => self.entries.get(key).is_some_and(|entry| entry.text == *text),
            Compare::Missing(key) => !self.entries.contains_key(key),
        }
    }

    fn values(&self, txn: &Txn) -> Vec<Change> {
        let value = |key: &Key| match self.entries.get(key) {
            Some(entry) => (key.clone(), Some(entry.text.clone()), entry.revision),
            None => (key.clone(), None, 0),
        };
        txn.when.iter().map(|compare| value(compare.key())).collect()
    }

    fn list(&self) -> Vec<(Key, String, u64)> {
        let kept = self.entries.iter().filter(|(key, _)| !matches!(key, Key::History(_) | Key::Audit(_)));
        kept.map(|(key, entry)| (key.clone(), entry.text.clone(), entry.revision)).collect()
    }
}

/// What one etcd client of one agent is doing.
#[derive(Default)]
pub(super) struct Client {
    /// The watch has delivered up to here.
    seen: u64,
    /// The watch has to be made anew, with a list before it.
    broken: bool,
    /// The agent was told that etcd is silent.
    silent: bool,
    /// A list is on its way.
    listing: bool,
    /// The newest list.
    listed: u64,
    /// Requests that wait for an answer, and when they were sent.
    waiting: BTreeMap<u64, Moment>,
    /// The watch says nothing, and nobody notices, until then.
    pub(super) stalled_until: u64,
}

impl World {
    /// Runs a transaction at the store, now.
    pub(super) fn commit(&mut self, node: usize, run: u64, txn: &Txn) -> TxnOutcome {
        let sent = Moment::ZERO;
        if !txn.when.iter().all(|compare| self.store.holds(compare)) {
            return TxnOutcome::Refused { values: self.store.values(txn), revision: self.store.revision, sent };
        }
        self.note_accepted(txn);
        self.judge_request(node, txn);
        self.judge_pace(node, run);
        self.store.revision += 1;
        let revision = self.store.revision;
        for write in &txn.then {
            match write {
                Write::Put(key, text) => {
                    let before = (*key == Key::Leader).then(|| self.store.leader()).flatten();
                    let entry = Entry { text: text.clone(), revision, lease: is_leased(key).then_some((node, run)) };
                    self.store.entries.insert(key.clone(), entry);
                    self.store.log.push((key.clone(), Some(text.clone()), revision));
                    match key {
                        Key::Leader => self.leader_written(node, before),
                        Key::Sync => self.sync_written(),
                        Key::Node(of) if self.nodes[node].name == *of => self.nodes[node].published_at = self.now,
                        Key::Promise(term, _) => self.judge_promise(*term, node, run),
                        _ => {}
                    }
                }
                // A mutation only: the request stays when it is done.
                Write::Delete(Key::Intent) if txn.then.len() > 1 && self.options.mutation == Mutation::RequestKept => {}
                Write::Delete(key) => {
                    if self.store.entries.remove(key).is_some() {
                        self.store.log.push((key.clone(), None, revision));
                    }
                }
            }
        }
        self.tell_watchers();
        TxnOutcome::Applied { revision, sent }
    }

    fn sync_written(&mut self) {
        let Some(sync) = self.store.sync() else { return };
        let primaries: Vec<usize> = (0..self.machines()).filter(|node| self.nodes[*node].name == sync.primary.node).collect();
        self.oracle.syncs.insert(sync.term, SyncRecord::clone(&sync));
        primaries.into_iter().for_each(|primary| self.judge_names(primary));
    }

    fn leader_written(&mut self, writer: usize, before: Option<LeaderRecord>) {
        let Some(record) = self.store.leader() else { return };
        let name = self.nodes[writer].who();
        let text = format!("leader: term {} seq {} {} {}", record.term, record.seq, record.holder.node, state(&record.state));
        if before.as_ref().is_none_or(|before| before.term != record.term || before.state != record.state) {
            self.trace.line(self.now, &name, &text);
        }
        self.judge_leader(writer, before.as_ref(), &record);
    }

    fn tell_watchers(&mut self) {
        for node in 0..self.nodes.len() {
            let delay = self.random.tailed(1, 6);
            if let Some(run) = self.nodes[node].agent_run() {
                self.later_at(node, delay, move |world| world.pump(node, run));
            }
        }
    }

    /// Delivers what the watch has not delivered yet.
    fn pump(&mut self, node: usize, run: u64) {
        let now = self.now;
        let open = self.network.hears_etcd(node, now);
        let again = self.random.chance(10);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        let client = &mut agent.client;
        if client.broken || client.stalled_until > now {
            return;
        }
        if !open {
            client.broken = true;
            return;
        }
        if client.seen < self.store.compacted {
            client.broken = true;
            return;
        }
        // Now and then old events come again.
        let from = if again { client.seen.saturating_sub(3) } else { client.seen };
        client.seen = self.store.revision;
        let changes: Vec<Change> = self.store.log.iter().rev().take_while(|change| change.2 > from).cloned().collect();
        if changes.is_empty() {
            return;
        }
        let changes = changes.into_iter().rev().collect();
        self.deliver(node, run, Event::Changed { changes, revision: self.store.revision });
    }

    /// Every half second: is etcd there, does the watch live? Lists where needed, and keeps the member's lease.
    pub(super) fn keep_etcd(&mut self, node: usize, run: u64) {
        let refresh = self.random.chance(50);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        let client = &mut agent.client;
        let stalled = client.stalled_until != 0 && client.stalled_until <= self.now;
        if stalled {
            // The client noticed, and makes a new watch; or the old one goes on.
            (client.stalled_until, client.broken) = (0, refresh || client.broken || self.now.is_multiple_of(2));
        }
        // A watch that goes on says nothing of an etcd that went back: the client lists every four polls in any case.
        let due = client.listed + LISTS <= self.now;
        let wants = refresh || due || client.broken || client.silent || client.seen == 0;
        if !client.listing {
            self.ask(node, run, wants);
        }
        self.later_at(node, 500_000_000, move |world| world.keep_etcd(node, run));
    }

    /// A linearizable look; `wants`: the whole list is asked for.
    pub(super) fn ask(&mut self, node: usize, run: u64, wants: bool) {
        let sent = self.nodes[node].clock.boot(self.now);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        agent.client.listing = true;
        let there = self.way();
        let back = self.way();
        let token = self.token();
        self.later_at(node, ATTEMPT, move |world| {
            if world.settle_request(node, run, token) {
                world.nodes[node].agent_of(run).into_iter().for_each(|agent| agent.client.listing = false);
                world.silence(node, run, "no answer within 350ms");
            }
        });
        if let Some(agent) = self.nodes[node].agent_of(run) {
            agent.client.waiting.insert(token, sent);
        }
        self.later(there, move |world| {
            if !world.network.reaches_etcd(node, world.now) || world.store.away_until > world.now {
                return;
            }
            world.refresh_lease(node, run);
            let (entries, revision) = if wants { (world.store.list(), world.store.revision) } else { (Vec::new(), 0) };
            world.later_at(node, back, move |world| {
                if !world.network.hears_etcd(node, world.now) || !world.settle_request(node, run, token) {
                    return;
                }
                let Some(agent) = world.nodes[node].agent_of(run) else { return };
                agent.client.listing = false;
                if wants {
                    agent.client.silent = false;
                    agent.client.broken = false;
                    (agent.client.seen, agent.client.listed) = (revision, world.now);
                    world.deliver(node, run, Event::Listed { entries, revision, sent });
                }
            });
        });
    }

    /// Whether this request still waited; it waits no more.
    fn settle_request(&mut self, node: usize, run: u64, token: u64) -> bool {
        self.nodes[node].agent_of(run).is_some_and(|agent| agent.client.waiting.remove(&token).is_some())
    }

    fn silence(&mut self, node: usize, run: u64, why: &str) {
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        if !agent.client.silent {
            agent.client.silent = true;
            self.deliver(node, run, Event::EtcdSilent { why: why.to_owned() });
        }
    }

    /// Sends a transaction; its outcome comes as an event, sooner or later, or not at all.
    pub(super) fn send_txn(&mut self, node: usize, run: u64, purpose: Option<Purpose>, txn: Txn, done: Reply) {
        let token = self.token();
        let sent = self.nodes[node].clock.boot(self.now);
        if let Some(agent) = self.nodes[node].agent_of(run) {
            agent.client.waiting.insert(token, sent);
        }
        let open = self.network.reaches_etcd(node, self.now);
        if !open && self.random.chance(300) {
            // Refused at once: it certainly was not sent.
            let after = self.random.millis(1, 20);
            self.answer(node, run, after, token, done, TxnOutcome::NotDone { why: "connection refused".to_owned() });
            return;
        }
        let late = done.clone();
        self.later_at(node, ATTEMPT, move |world| {
            if world.settle_request(node, run, token) {
                world.note_ambiguous(purpose);
                let outcome = TxnOutcome::Unknown { why: "no answer within 350ms".to_owned() };
                world.finish(node, run, &late, outcome);
            }
        });
        let queued = self.network.queued[node].saturating_sub(self.now);
        let held = self.holds_write(node, purpose, &txn);
        let there = match held {
            Some(held) => held,
            None if queued > 0 && self.random.chance(500) => queued + self.random.millis(1, 60),
            None => self.way(),
        };
        let lost = self.lost();
        self.later(there, move |world| {
            if !lost && (held.is_some() || world.network.reaches_etcd(node, world.now)) {
                world.arrive(node, run, token, purpose, txn, done);
            }
        });
    }

    fn arrive(&mut self, node: usize, run: u64, token: u64, purpose: Option<Purpose>, txn: Txn, done: Reply) {
        let away = self.store.away_until;
        if away > self.now {
            // Some members queue it, and do it when there is a leader again, whoever still waits.
            if self.random.chance(500) {
                let after = away - self.now + self.random.millis(1, 400);
                self.later(after, move |world| world.arrive(node, run, token, purpose, txn, done));
            }
            return;
        }
        if self.store.full_until > self.now && txn.then.iter().any(|write| matches!(write, Write::Put(..))) {
            // Mostly it is refused before it is proposed; where the space ends meanwhile it is done, and told so all the same.
            if self.random.chance(100) {
                self.commit_late(node, run, &txn);
            }
            let back = self.way();
            self.answer(node, run, back, token, done, TxnOutcome::Unknown { why: "etcdserver: mvcc: database space exceeded".to_owned() });
            return;
        }
        let unclear = self.store.ambiguous.1 > self.now && self.random.chance(self.store.ambiguous.0);
        if unclear && self.random.chance(500) {
            if self.random.chance(500) {
                let after = self.random.millis(100, 4_000);
                self.later(after, move |world| world.commit_late(node, run, &txn));
            }
            self.unclear(node, run, token, purpose, done);
            return;
        }
        let mut outcome = self.commit(node, run, &txn);
        let asked = self.nodes[node].agent_of(run).and_then(|agent| agent.client.waiting.get(&token).copied());
        if let (TxnOutcome::Applied { sent, .. } | TxnOutcome::Refused { sent, .. }, Some(asked)) = (&mut outcome, asked) {
            *sent = asked;
        }
        self.refresh_lease(node, run);
        if unclear {
            self.unclear(node, run, token, purpose, done);
            return;
        }
        let back = self.way();
        let lost = self.lost();
        if !lost {
            self.answer(node, run, back, token, done, outcome);
        }
    }

    fn unclear(&mut self, node: usize, run: u64, token: u64, purpose: Option<Purpose>, done: Reply) {
        self.note_ambiguous(purpose);
        let after = self.random.millis(1, 200);
        let why = "etcdserver: request timed out, possibly due to previous leader failure".to_owned();
        self.answer(node, run, after, token, done, TxnOutcome::Unknown { why });
    }

    fn answer(&mut self, node: usize, run: u64, after: u64, token: u64, done: Reply, outcome: TxnOutcome) {
        self.later_at(node, after, move |world| {
            let local = matches!(outcome, TxnOutcome::NotDone { .. });
            if (local || world.network.hears_etcd(node, world.now)) && world.settle_request(node, run, token) {
                world.finish(node, run, &done, outcome);
            }
        });
    }

    fn finish(&mut self, node: usize, run: u64, done: &Reply, outcome: TxnOutcome) {
        let clear = matches!(outcome, TxnOutcome::Applied { .. } | TxnOutcome::Refused { .. });
        if !clear {
            // The client looks for itself what became of it.
            let after = self.random.millis(5, 50);
            self.later_at(node, after, move |world| {
                if let Some(agent) = world.nodes[node].agent_of(run) {
                    agent.client.broken = true;
                    if !agent.client.listing {
                        world.ask(node, run, true);
                    }
                }
            });
        }
        match done {
            Reply::Txn(nonce, task) => self.txn_done(node, run, nonce, *task, outcome),
            Reply::Put(task) => {
                let ended = if clear { Ok(()) } else { Err("etcd did not answer".to_owned()) };
                self.deliver(node, run, Event::Done { task: *task, outcome: ended });
            }
        }
    }

    /// How long a message to etcd or from it takes: later ones may come sooner.
    fn way(&mut self) -> u64 {
        let (most, until) = self.network.slow_etcd;
        let slow = if until > self.now { self.random.millis(0, most) } else { 0 };
        slow + self.random.tailed(1, 4)
    }

    pub(super) fn lost(&mut self) -> bool {
        let (permille, until) = self.network.loss;
        until > self.now && self.random.chance(permille)
    }

    fn note_ambiguous(&mut self, purpose: Option<Purpose>) {
        if purpose == Some(Purpose::Claim) {
            self.coverage.ambiguous_claims += 1;
        }
        if purpose.is_some() {
            self.coverage.ambiguous += 1;
        }
    }
}

/// To whom the outcome of a request goes.
#[derive(Clone)]
pub(super) enum Reply {
    Txn(crate::model::node::Nonce, Task),
    Put(Task),
}

/// What the record of a leader says of itself, in one word.
pub(super) const fn kind(state: &LeaderState) -> &'static str {
    match state {
        LeaderState::Claimed => "claimed",
        LeaderState::Serving => "serving",
        LeaderState::Handoff { .. } => "handed over",
        LeaderState::Vacant { .. } => "vacant",
        LeaderState::Paused(_) => "paused",
        LeaderState::Foreign { .. } => "foreign",
    }
}

pub(super) fn state(state: &LeaderState) -> String {
    match state {
        LeaderState::Handoff { to } => format!("handoff to {to}"),
        LeaderState::Vacant { reason } => format!("vacant ({reason})"),
        LeaderState::Foreign { name } => name.clone(),
        LeaderState::Claimed | LeaderState::Serving | LeaderState::Paused(_) => kind(state).to_owned(),
    }
}
