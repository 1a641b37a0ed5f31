//! The view of etcd: what lists, watches and refusals show, and that no key of it ever goes back.

use super::State;
use crate::model::{
    key::Key,
    moment::{Clocks, Moment},
    node::Replica,
    observed::Observed,
    record::ClusterRecord,
    records::Records,
};
use std::sync::Arc;

/// Deleted keys are remembered for so many revisions.
const GONE_KEPT: u64 = 100_000;

impl State {
    pub(super) fn listed(&mut self, entries: &[(Key, String, u64)], revision: u64, sent: Moment, now: Clocks) {
        let records = Records::listed(entries, revision);
        self.suspect = self.undercut(&records, sent);
        self.went_back = self.suspect.is_some() && !self.is_foreign(&records);
        if self.suspect.is_some() {
            // What an etcd that is not believed shows is not taken over: the last believed view stays.
            self.answered = Observed::known((), now.boot);
            return;
        }
        if self.generation_raised(&records) {
            self.gone.clear();
            self.records = Arc::new(records);
        } else {
            self.merge(records);
        }
        self.answered = Observed::known((), now.boot);
        self.view_changed(now);
    }

    pub(super) fn changed(&mut self, changes: Vec<(Key, Option<String>, u64)>, revision: u64, now: Clocks) {
        let deleted = changes.iter().map(|(key, text, at)| (key, text.as_deref(), *at));
        self.suspect = self.suspect.take().or_else(|| self.torn_down(deleted)).or_else(|| self.made_anew(&changes));
        if self.suspect.is_some() {
            return;
        }
        for (key, text, written) in changes {
            // Old and repeated events never take a key back.
            if self.known_revision(&key).is_none_or(|known| written > known) {
                self.take(&key, text.as_deref(), written);
            }
        }
        if revision > self.records.revision {
            Arc::make_mut(&mut self.records).revision = revision;
        }
        self.answered = Observed::known((), now.boot);
        self.view_changed(now);
    }

    /// A refusal is a linearizable look at the compared keys.
    pub(super) fn refused(&mut self, values: Vec<(Key, Option<String>, u64)>, revision: u64, sent: Moment, now: Clocks) {
        let deleted = values.iter().map(|(key, text, written)| (key, text.as_deref(), if text.is_some() { *written } else { revision }));
        let found = self.torn_down(deleted).or_else(|| self.made_anew(&values)).or_else(|| self.undercut_by(revision, sent));
        self.suspect = self.suspect.take().or(found);
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

    /// These records are never deleted by us: somebody wipes the prefix, and what it held is not forgotten key by key. The next list
    /// says how it stands (protocol 1.2, *suspect etcd*).
    fn torn_down<'a>(&self, mut changes: impl Iterator<Item = (&'a Key, Option<&'a str>, u64)>) -> Option<String> {
        let lasts = |key: &Key| matches!(key, Key::Cluster | Key::Term | Key::Leader | Key::Sync);
        let (key, ..) = changes
            .find(|(key, text, at)| lasts(key) && text.is_none() && self.records.revision_of(key).is_some_and(|known| *at > known))?;
        Some(format!("the record `{key}` was deleted"))
    }

    /// A raised generation starts the revisions of all keys anew: taken over key by key, those that were newer before would hide what is
    /// there now. The next list shows them all.
    fn made_anew(&self, changes: &[(Key, Option<String>, u64)]) -> Option<String> {
        let text = changes.iter().find_map(|(key, text, _)| text.as_ref().filter(|_| *key == Key::Cluster))?;
        let shown = serde_json::from_str::<ClusterRecord>(text).ok()?.generation;
        let floors = self.newest_floors();
        let known = floors.uuid.map(|_| floors.generation)?;
        (shown > known)
            .then(|| format!("its records are being made anew (generation {shown}, this node knows {known}): they are read again"))
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
        let records = Arc::make_mut(&mut self.records);
        records.unreadable = list.unreadable;
        records.revision = records.revision.max(list.revision);
        // Changes come again for a while only.
        self.gone.retain(|_, at| at.saturating_add(GONE_KEPT) > list.revision);
    }

    /// Whether the view shows what a list shows, and nothing else.
    pub(super) fn shows_all(&self, entries: &[(Key, String, u64)]) -> bool {
        // An etcd that was restored may give out the same revisions for other values.
        let same = |(key, text, written): &(Key, String, u64)| {
            self.records.revision_of(key) == Some(*written) && self.records.text(key) == Some(text.as_str())
        };
        matches!(self.answered, Observed::Known { .. })
            && self.records.unreadable.is_empty()
            && self.records.keys().len() == entries.len()
            && entries.iter().all(same)
    }

    /// The revision of the newest change of a key that this state has taken in; `None` where it knows of none.
    pub(super) fn known_revision(&self, key: &Key) -> Option<u64> {
        self.records.revision_of(key).max(self.gone.get(key).copied())
    }

    /// Takes over one newer value.
    fn take(&mut self, key: &Key, text: Option<&str>, revision: u64) {
        Arc::make_mut(&mut self.records).apply(key, text, revision);
        if self.records.revision_of(key).is_some() {
            self.gone.remove(key);
        } else if !matches!(key, Key::History(_) | Key::Audit(_)) {
            self.gone.insert(key.clone(), revision);
        }
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
        self.learn_boundary_from_leader();
    }
}
