//! All records of one cluster as one view.

use super::{
    key::Key,
    node::NodeName,
    record::{
        BaseTimelines, BootstrapRecord, ClusterRecord, DoubtRecord, IntentRecord, LeaderRecord, MemberRecord, NodeRecord, PolicyRecord,
        PromiseRecord, Stored, SyncMode, SyncRecord, TermRecord, TimelineRecord,
    },
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, sync::Arc};

/// What stands in etcd under a cluster's prefix, as far as a node needs it to decide.
///
/// `history/*` and `audit/*` are not kept here: they are written and read on demand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Records {
    /// The newest revision that this view includes.
    pub revision: u64,
    /// Who runs `initdb`.
    pub bootstrap: Option<Stored<BootstrapRecord>>,
    /// Which cluster.
    pub cluster: Option<Stored<ClusterRecord>>,
    /// Who says that this etcd went back.
    pub doubt: Option<Stored<DoubtRecord>>,
    /// The newest claim.
    pub term: Option<Stored<TermRecord>>,
    /// Who may write.
    pub leader: Option<Stored<LeaderRecord>>,
    /// Who holds the data.
    pub sync: Option<Stored<SyncRecord>>,
    /// The ledger. It grows with every failover and changes with none but those: views share it.
    pub timelines: Arc<BTreeMap<TimelineId, Stored<TimelineRecord>>>,
    /// The timelines before us.
    pub base: Option<Stored<BaseTimelines>>,
    /// Present lives.
    pub nodes: BTreeMap<NodeName, Stored<NodeRecord>>,
    /// Promises, by term.
    pub promises: BTreeMap<Term, BTreeMap<NodeName, Stored<PromiseRecord>>>,
    /// The operator request.
    pub intent: Option<Stored<IntentRecord>>,
    /// Cluster policy.
    pub policy: Option<Stored<PolicyRecord>>,
    /// What nodes say of themselves.
    pub members: BTreeMap<NodeName, Stored<MemberRecord>>,
    /// Keys whose value this version cannot read, and why. Their last readable value is not kept.
    pub unreadable: BTreeMap<Key, String>,
}

fn stored<T: DeserializeOwned>(text: &str, revision: u64) -> Result<Stored<T>, String> {
    let record = serde_json::from_str(text).map_err(|fault| fault.to_string())?;
    Ok(Stored { record, text: text.to_owned(), revision })
}

/// Sets or clears `slot`; a fault clears it and is returned.
fn set<T: DeserializeOwned>(slot: &mut Option<Stored<T>>, text: Option<&str>, revision: u64) -> Result<(), String> {
    *slot = None;
    if let Some(text) = text {
        *slot = Some(stored(text, revision)?);
    }
    Ok(())
}

fn set_entry<K: Ord, T: DeserializeOwned>(
    map: &mut BTreeMap<K, Stored<T>>,
    key: K,
    text: Option<&str>,
    revision: u64,
) -> Result<(), String> {
    let mut slot = None;
    let outcome = set(&mut slot, text, revision);
    match slot {
        Some(found) => map.insert(key, found),
        None => map.remove(&key),
    };
    outcome
}

impl Records {
    /// Whether somebody acts for the holder that `leader` names, by its own word: its agent lives, in session with the guard that the record
    /// names. A hint, that only keeps from believing that it is dead.
    pub fn acts(&self, leader: &LeaderRecord) -> bool {
        self.members.get(&leader.holder.node).is_some_and(|member| member.record.acts_in == Some(leader.term))
    }

    /// Why `node` cannot be removed: it votes, nobody is there to take its place, and with `strict-quorum` commits would go on to wait for it.
    /// `needed`: how many have to confirm.
    pub fn cannot_spare(&self, leader: &LeaderRecord, node: &NodeName, needed: u32) -> Option<String> {
        let sync = &self.sync.as_ref()?.record;
        let votes = sync.mode == SyncMode::StrictQuorum && sync.voters.iter().any(|voter| voter.node == *node);
        let others =
            self.members.iter().filter(|(other, _)| *other != node && **other != leader.holder.node).map(|(_, stored)| &stored.record);
        let ready = others.filter(|member| member.state == "streaming" && !member.tags.no_sync).count();
        (votes && ready < needed as usize).then(|| {
            format!(
                "with strict-quorum {needed} replicas have to confirm commits, and {ready} would be left: add a replica first, or lower \
                 quorum_standbys, or choose durability = \"quorum\""
            )
        })
    }

    /// The view that a list of all keys at `revision` shows: each with its value and the revision that wrote it.
    pub fn listed(entries: &[(Key, String, u64)], revision: u64) -> Self {
        let mut records = Self::default();
        for (key, text, written) in entries {
            records.apply(key, Some(text), *written);
        }
        records.revision = revision;
        records
    }

    /// Takes over one key's new value (`None`: deleted), written at `revision`.
    ///
    /// An unreadable value is noted in `unreadable` and leaves the record empty.
    pub fn apply(&mut self, key: &Key, text: Option<&str>, revision: u64) {
        self.revision = self.revision.max(revision);
        self.unreadable.remove(key);
        let outcome = match key {
            Key::Bootstrap => set(&mut self.bootstrap, text, revision),
            Key::Cluster => set(&mut self.cluster, text, revision),
            Key::Doubt => set(&mut self.doubt, text, revision),
            Key::Term => set(&mut self.term, text, revision),
            Key::Leader => set(&mut self.leader, text, revision),
            Key::Sync => set(&mut self.sync, text, revision),
            Key::Timeline(tli) => set_entry(Arc::make_mut(&mut self.timelines), *tli, text, revision),
            Key::TimelineBase => set(&mut self.base, text, revision),
            Key::Node(node) => set_entry(&mut self.nodes, node.clone(), text, revision),
            Key::Promise(term, node) => self.set_promise(*term, node, text, revision),
            Key::Intent => set(&mut self.intent, text, revision),
            Key::Policy => set(&mut self.policy, text, revision),
            Key::Member(node) => set_entry(&mut self.members, node.clone(), text, revision),
            Key::History(_) | Key::Audit(_) => Ok(()),
        };
        if let Err(fault) = outcome {
            self.unreadable.insert(key.clone(), fault);
        }
    }

    fn set_promise(&mut self, term: Term, node: &NodeName, text: Option<&str>, revision: u64) -> Result<(), String> {
        let of_term = self.promises.entry(term).or_default();
        let outcome = set_entry(of_term, node.clone(), text, revision);
        if of_term.is_empty() {
            self.promises.remove(&term);
        }
        outcome
    }

    /// The text that a key holds in this view; `None` where it is not there (or not kept).
    pub fn text(&self, key: &Key) -> Option<&str> {
        match key {
            Key::Bootstrap => self.bootstrap.as_ref().map(|s| s.text.as_str()),
            Key::Cluster => self.cluster.as_ref().map(|s| s.text.as_str()),
            Key::Doubt => self.doubt.as_ref().map(|s| s.text.as_str()),
            Key::Term => self.term.as_ref().map(|s| s.text.as_str()),
            Key::Leader => self.leader.as_ref().map(|s| s.text.as_str()),
            Key::Sync => self.sync.as_ref().map(|s| s.text.as_str()),
            Key::Timeline(tli) => self.timelines.get(tli).map(|s| s.text.as_str()),
            Key::TimelineBase => self.base.as_ref().map(|s| s.text.as_str()),
            Key::Node(node) => self.nodes.get(node).map(|s| s.text.as_str()),
            Key::Promise(term, node) => self.promises.get(term)?.get(node).map(|s| s.text.as_str()),
            Key::Intent => self.intent.as_ref().map(|s| s.text.as_str()),
            Key::Policy => self.policy.as_ref().map(|s| s.text.as_str()),
            Key::Member(node) => self.members.get(node).map(|s| s.text.as_str()),
            Key::History(_) | Key::Audit(_) => None,
        }
    }

    /// The revision that wrote a key; `None` where it is not in this view.
    pub fn revision_of(&self, key: &Key) -> Option<u64> {
        match key {
            Key::Bootstrap => self.bootstrap.as_ref().map(|s| s.revision),
            Key::Cluster => self.cluster.as_ref().map(|s| s.revision),
            Key::Doubt => self.doubt.as_ref().map(|s| s.revision),
            Key::Term => self.term.as_ref().map(|s| s.revision),
            Key::Leader => self.leader.as_ref().map(|s| s.revision),
            Key::Sync => self.sync.as_ref().map(|s| s.revision),
            Key::Timeline(tli) => self.timelines.get(tli).map(|s| s.revision),
            Key::TimelineBase => self.base.as_ref().map(|s| s.revision),
            Key::Node(node) => self.nodes.get(node).map(|s| s.revision),
            Key::Promise(term, node) => self.promises.get(term)?.get(node).map(|s| s.revision),
            Key::Intent => self.intent.as_ref().map(|s| s.revision),
            Key::Policy => self.policy.as_ref().map(|s| s.revision),
            Key::Member(node) => self.members.get(node).map(|s| s.revision),
            Key::History(_) | Key::Audit(_) => None,
        }
    }

    /// Every key that is readable in this view.
    pub fn keys(&self) -> Vec<Key> {
        let single =
            [Key::Bootstrap, Key::Cluster, Key::Doubt, Key::Term, Key::Leader, Key::Sync, Key::TimelineBase, Key::Intent, Key::Policy];
        let mut keys: Vec<Key> = single.into_iter().filter(|key| self.revision_of(key).is_some()).collect();
        keys.extend(self.timelines.keys().map(|tli| Key::Timeline(*tli)));
        keys.extend(self.nodes.keys().cloned().map(Key::Node));
        keys.extend(self.promises.iter().flat_map(|(term, nodes)| nodes.keys().map(|node| Key::Promise(*term, node.clone()))));
        keys.extend(self.members.keys().cloned().map(Key::Member));
        keys
    }

    /// Whether nothing at all stands under the prefix that matters to safety.
    pub const fn is_blank(&self) -> bool {
        self.cluster.is_none() && self.term.is_none() && self.leader.is_none() && self.sync.is_none()
    }
}
