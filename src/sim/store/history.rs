//! etcd whose history does not simply go on: compacted, wiped, restored from a snapshot; and the operator's `etcd recover`.

use super::{Change, Entry, Store};
use crate::{
    agent::event::Event,
    decide::snapshot::{Fresh, Snapshot},
    model::{
        instance::StartAs,
        key::Key,
        node::{NodeName, Replica},
        node_file::Boundary,
        record::{
            ClusterRecord, DoubtRecord, Holder, LeaderRecord, LeaderState, SyncMode, SyncRecord, TermRecord, TimelineRecord, TimelineState,
            Unknown, VERSION, to_text,
        },
        term::Term,
        timeline::TimelineId,
    },
    sim::{
        SECOND,
        node::Node,
        world::{World, parsed},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// A snapshot is older than this when it is restored: backups are made by the hour.
const OLD: u64 = 60 * SECOND;

/// The guard that `etcd recover` names: nobody's.
pub(in crate::sim) const RECOVERED: &str = "recovered";

/// All records at one point of time.
#[derive(Clone)]
pub(in crate::sim) struct Saved {
    at: u64,
    entries: BTreeMap<Key, Entry>,
    revision: u64,
}

impl Saved {
    fn read<T: serde::de::DeserializeOwned>(&self, key: &Key) -> Option<T> {
        serde_json::from_str(&self.entries.get(key)?.text).ok()
    }

    /// An id of the ledger, as it was.
    pub(in crate::sim) fn timeline(&self, tli: TimelineId) -> Option<TimelineRecord> {
        self.read(&Key::Timeline(tli))
    }

    /// What a cluster is, with what somebody had deleted here as it was before.
    fn cluster(&self, before: &Self) -> Option<(SyncRecord, LeaderRecord, ClusterRecord)> {
        let leader = self.read(&Key::Leader).or_else(|| before.read(&Key::Leader))?;
        let cluster = self.read(&Key::Cluster).or_else(|| before.read(&Key::Cluster))?;
        Some((self.sync()?, leader, cluster))
    }

    /// `sync`, as it was.
    pub(in crate::sim) fn sync(&self) -> Option<SyncRecord> {
        self.read(&Key::Sync)
    }
}

impl Store {
    /// Old revisions are forgotten: whoever watches from there has to list.
    pub(in crate::sim) fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
    }

    fn saved(&self, now: u64) -> Saved {
        Saved { at: now, entries: self.entries.clone(), revision: self.revision }
    }
}

impl World {
    /// `sync` as whoever serves knows it: an etcd that went back says nothing of that.
    pub(in crate::sim) fn sync_in_force(&self) -> Option<Rc<SyncRecord>> {
        let before = self.store.before.as_ref().and_then(Saved::sync).map(Rc::new);
        let there = self.store.sync();
        match (before, there) {
            (Some(before), Some(there)) => Some(if there.term > before.term { there } else { before }),
            (before, there) => before.or(there),
        }
    }

    /// Nobody claims while a node that knows better says so in that very etcd, until an operator has made the records anew (O4).
    pub(in crate::sim) fn judge_doubt(&mut self, claim: &LeaderRecord) {
        let there = self.store.saved(self.now);
        let (Some(doubt), Some(cluster)) = (there.read::<DoubtRecord>(&Key::Doubt), there.read::<ClusterRecord>(&Key::Cluster)) else {
            return;
        };
        if doubt.generation >= cluster.generation {
            let (node, term) = (&claim.holder.node, claim.term);
            self.violation("O4", format!("{node} has claimed term {term}, and {} doubts this etcd: {}", doubt.node, doubt.why));
        }
    }

    /// Somebody makes a backup every now and then.
    pub(in crate::sim) fn back_up(&mut self) {
        if self.store.before.is_none() {
            let saved = self.store.saved(self.now);
            self.store.backups.push(saved);
            if self.store.backups.len() > 8 {
                self.store.backups.remove(0);
            }
        }
        self.later(20 * SECOND, Self::back_up);
    }

    /// The watch of a node misses what has changed by now, and says nothing.
    pub(in crate::sim) fn watch_gap(&mut self, node: usize) {
        let revision = self.store.revision;
        if let Some(agent) = &mut self.nodes[node].agent
            && !agent.client.broken
        {
            agent.client.seen = revision;
        }
    }

    /// The watch of a node tells it again what it knows.
    pub(in crate::sim) fn watch_replays(&mut self, node: usize) {
        let (now, back) = (self.now, self.random.between(5, 300));
        let Some(run) = self.nodes[node].agent_run().filter(|_| self.network.hears_etcd(node, now)) else { return };
        let from = self.store.revision.saturating_sub(back);
        let changes: Vec<Change> = self.store.log.iter().filter(|change| change.2 > from).cloned().collect();
        let revision = self.store.revision;
        self.deliver(node, run, Event::Changed { changes, revision });
    }

    /// An operator restores an old snapshot: revisions are given out a second time. Another one comes after `lasts`, and recovers.
    pub(in crate::sim) fn restore_etcd(&mut self, lasts: u64) {
        let now = self.now;
        let old: Vec<Saved> = self.store.backups.iter().filter(|saved| saved.at + OLD <= now).cloned().collect();
        if old.is_empty() || self.store.before.is_some() || self.is_set_back() {
            return;
        }
        let pick = usize::try_from(self.random.below(old.len() as u64)).unwrap_or_default();
        self.store.before = Some(self.store.saved(now));
        self.begin_anew(old[pick].entries.clone(), old[pick].revision);
        self.coverage.etcd_restored += 1;
        self.call_operator(lasts);
    }

    /// Somebody deletes every key of this cluster.
    pub(in crate::sim) fn wipe_prefix(&mut self, lasts: u64) {
        // A node that knows of no cluster makes a new one where there is none: its data and file are lost, and etcd's (safety.md).
        let knows = |node: &Node| node.disk.is_some() || node.file_made && node.file.floors.uuid.is_some();
        let members = self.nodes.iter().take(self.members);
        if self.store.before.is_some() || self.store.entries.is_empty() || self.is_set_back() || !members.into_iter().all(knows) {
            return;
        }
        self.store.before = Some(self.store.saved(self.now));
        self.store.revision += 1;
        let revision = self.store.revision;
        let keys: Vec<Key> = std::mem::take(&mut self.store.entries).into_keys().collect();
        self.store.log.extend(keys.into_iter().map(|key| (key, None, revision)));
        self.tell_watchers();
        self.coverage.etcd_wiped += 1;
        self.call_operator(lasts);
    }

    /// Somebody deletes one key. Without some of them the records are no cluster's until an operator has made them anew.
    pub(in crate::sim) fn delete_key(&mut self, lasts: u64) {
        let matters = |key: &Key| matches!(key, Key::Leader | Key::Sync | Key::Cluster | Key::Term);
        let may = |key: &&Key| match key {
            // It alone knows what is lost of a machine that is set back.
            Key::Node(name) => self.nodes.iter().any(|of| of.name == *name && of.agent.is_some() && !of.spoilt.contains(&of.file.data)),
            Key::Member(_) | Key::Policy | Key::Intent => true,
            key => matters(key),
        };
        let keys: Vec<Key> = self.store.entries.keys().filter(may).cloned().collect();
        if keys.is_empty() || self.store.before.is_some() || self.is_set_back() {
            return;
        }
        let pick = usize::try_from(self.random.below(keys.len() as u64)).unwrap_or_default();
        let Some(key) = keys.into_iter().nth(pick) else { return };
        self.trace.line(self.now, "----", &format!("somebody deletes {key}"));
        if matters(&key) {
            self.store.before = Some(self.store.saved(self.now));
            self.call_operator(lasts);
        }
        self.store.revision += 1;
        self.store.entries.remove(&key);
        self.store.log.push((key, None, self.store.revision));
        self.tell_watchers();
        self.coverage.keys_deleted += 1;
    }

    fn begin_anew(&mut self, entries: BTreeMap<Key, Entry>, revision: u64) {
        (self.store.entries, self.store.revision) = (entries, revision);
        self.store.log.clear();
        self.store.backups.clear();
        self.store.compacted = 0;
        // Leases come back with it, and have their whole time again: also of agents that are no more.
        let leases: BTreeSet<(usize, u64)> = self.store.entries.values().filter_map(|entry| entry.lease).collect();
        for (node, run) in leases {
            self.refresh_lease(node, run);
        }
    }

    /// An operator looks after `after`, and again until the records are made anew.
    pub(in crate::sim) fn call_operator(&mut self, after: u64) {
        self.later(after, |world| {
            if world.store.before.is_some() && !world.recover() {
                world.call_operator(2 * SECOND);
            }
        });
    }

    /// `etcd recover --confirm`, as its plan makes the records (protocol 1.2); `false` where that has to wait.
    fn recover(&mut self) -> bool {
        let Some(before) = self.store.before.clone() else { return true };
        if self.store.away_until > self.now {
            return false;
        }
        let there = self.store.saved(self.now);
        let newest = if there.sync().map(|sync| sync.term) > before.sync().map(|sync| sync.term) { &there } else { &before };
        let Some((last, leader, cluster)) = newest.cluster(&before) else { return false };
        let running = self.nodes.iter().position(Node::is_primary);
        // The one that runs; else the last primary, unless the plan warns that another one has more: then that one.
        let intact = |node: &Node| !node.spoilt.contains(&node.file.data);
        let most = self.most_advanced(&last.primary.node);
        let Some(chosen) = running.or(most).filter(|chosen| self.is_proven(*chosen)) else { return false };
        let of = &self.nodes[chosen];
        let Some(on) = self.position(chosen) else { return false };
        let tli = on.tli;
        let primary = Replica::new(of.name.clone(), of.file.data.clone());
        let owns = running.is_some() || last.primary == primary || of.file.promoted.is_some_and(|promoted| promoted.tli == tli);
        let files = self.nodes.iter().take(self.members).map(|node| &node.file);
        let known = files.clone().flat_map(|file| [file.term, file.promised, file.claimed.unwrap_or(Term::ZERO)]).max();
        let stored = [&before, &there].into_iter().filter_map(|saved| saved.read::<LeaderRecord>(&Key::Leader));
        let term = stored.clone().map(|leader| leader.term).chain(known).max().unwrap_or(Term::ZERO).next();
        let seq = stored.map(|leader| leader.seq).chain(files.clone().map(|file| file.floors.seq)).max().unwrap_or_default();
        let generation = files.map(|file| file.floors.generation).chain([cluster.generation]).max().unwrap_or_default() + 1;
        let leader = LeaderRecord {
            term,
            holder: Holder { node: of.name.clone(), data: of.file.data.clone(), guard: parsed(RECOVERED), postgres: of.address() },
            nonce: parsed(&format!("r{generation}")),
            seq: seq + 1,
            tli,
            lsn: on.lsn,
            dead: None,
            wal_end: None,
            state: LeaderState::Vacant { reason: "etcd was recovered".to_owned() },
            failovers: None,
            unknown: Unknown::new(),
            ..leader
        };
        let sync = SyncRecord {
            term: of.file.claimed.filter(|_| owns).unwrap_or(term),
            nonce: leader.nonce.clone(),
            primary: primary.clone(),
            address: of.address(),
            mode: SyncMode::Async,
            k: 0,
            voters: Vec::new(),
            electable: vec![primary.clone()],
            ..last.clone()
        };
        // Written in a new term it ends every word to a former holder, as any other does: each of those is proven dead (protocol 1.2).
        self.oracle.syncs.entry(sync.term).or_insert_with(|| sync.clone());
        let cluster = ClusterRecord { generation, ..cluster };
        let owner = if owns { primary.clone() } else { Replica::new(of.name.clone(), parsed("00000000")) };
        let mut records = self.kept(&before, newest, chosen, on, &owner);
        records.extend([
            (Key::Term, to_text(&TermRecord { v: VERSION, term, holder: primary.clone() })),
            (Key::Sync, to_text(&sync)),
            (Key::Cluster, to_text(&cluster)),
            (Key::Leader, to_text(&leader)),
        ]);
        if primary != last.primary || !intact(of) {
            // The operator was told what may be lost, and took it.
            let (disk, wal) = (self.nodes[chosen].disk.clone(), &self.wal);
            let has = |row| disk.as_ref().is_some_and(|disk| wal.holds(disk.branch, disk.end, row));
            self.oracle.acks.retain(|ack| has(ack.row));
        }
        self.trace.line(self.now, "----", &format!("etcd is recovered: {} may become primary in term {term}", primary.node));
        let revision = self.store.revision + 1;
        let entries = records.into_iter().map(|(key, text)| (key, Entry { text, revision, lease: None })).collect();
        self.begin_anew(entries, revision);
        self.store.compacted = revision;
        self.store.before = None;
        self.coverage.etcd_recovered += 1;
        true
    }

    /// The node that has most, of those that could lead; of equals the last primary.
    fn most_advanced(&self, last: &NodeName) -> Option<usize> {
        let has = |node: usize| self.position(node).map(|on| (on.tli, on.lsn));
        let fit = (0..self.members).filter(|node| self.nodes[*node].is_whole() && !self.falls_short(*node));
        fit.max_by_key(|node| (has(*node), self.nodes[*node].name == *last))
    }

    /// Whether the chosen node is there and whole, and every other one's PostgreSQL is no primary and not about to be: its agent says so, or its
    /// host is off; and nobody is bound to another one.
    fn is_proven(&self, chosen: usize) -> bool {
        let of = &self.nodes[chosen];
        let acts = |node: &Node| {
            let armed = node.guard.as_ref().and_then(|guard| guard.armed.as_ref());
            armed.is_some_and(|armed| armed.until > node.clock.boot(self.now))
        };
        let bound = |node: usize| self.said(node).is_some_and(|said| said.bound().is_some_and(|(ack, _)| ack.holder.node != of.name));
        if (0..self.members).any(bound) {
            return false;
        }
        let harmless = |node: &Node| {
            let server = node.server.as_ref();
            !node.up
                || (node.agent.is_some()
                    && !acts(node)
                    && node.asleep_until <= self.now
                    && server.is_none_or(|server| server.start == StartAs::Standby && !server.primary && !server.promoting))
        };
        let others = (0..self.members).filter(|node| *node != chosen);
        of.up
            && of.agent.is_some()
            && of.asleep_until <= self.now
            && of.is_whole()
            && others.into_iter().all(|node| harmless(&self.nodes[node]))
    }

    /// What the agent of a node says of its data, if it is there.
    fn position(&self, node: usize) -> Option<Boundary> {
        self.said(node)?.position()
    }

    /// Whether its agent says that nobody can lead from its data: the plan refuses them.
    fn falls_short(&self, node: usize) -> bool {
        self.said(node).is_some_and(|snapshot| snapshot.falls_short().is_some())
    }

    fn said(&self, node: usize) -> Option<Snapshot> {
        let of = &self.nodes[node];
        let fresh = Fresh { nonce: parsed("n"), data: of.file.data.clone(), uuid: parsed("u"), wall: String::new() };
        let agent = of.agent.as_ref().filter(|_| of.up && of.asleep_until <= self.now)?;
        Some(agent.state.snapshot(of.clock.both(self.now), fresh))
    }

    /// What stays as it was, but for what the history of the chosen node contradicts. Ids that somebody promoted to, and that the ledger does
    /// not have, must never be given out again.
    fn kept(&self, before: &Saved, newest: &Saved, chosen: usize, on: Boundary, owner: &Replica) -> BTreeMap<Key, String> {
        let stays = |key: &Key| matches!(key, Key::Policy | Key::Timeline(_) | Key::TimelineBase | Key::History(_));
        let entries = before.entries.iter().chain(&newest.entries).filter(|(key, _)| stays(key));
        let mut records: BTreeMap<Key, String> = entries.map(|(key, entry)| (key.clone(), entry.text.clone())).collect();
        let histories = self.nodes[chosen].disk.as_ref().map(|data| data.histories.clone()).unwrap_or_default();
        for (key, text) in &mut records {
            if let (Key::Timeline(tli), Ok(entry)) = (key, serde_json::from_str::<TimelineRecord>(text)) {
                *text = to_text(&entry.chosen(*tli, on, owner, &histories));
            }
        }
        let promoted: Vec<(TimelineId, Term, Replica)> = self
            .nodes
            .iter()
            .filter_map(|node| {
                node.file.promoted.map(|promoted| (promoted.tli, promoted.term, Replica::new(node.name.clone(), node.file.data.clone())))
            })
            .collect();
        for (tli, term, owner) in promoted {
            records.entry(Key::Timeline(tli)).or_insert_with(|| {
                let (state, history) = (TimelineState::Burnt, format!("# timeline {tli} was given up in term {term}\n"));
                to_text(&TimelineRecord { v: VERSION, owner, term, parent: None, switch: None, state, history, unknown: Unknown::new() })
            });
        }
        records
    }
}
