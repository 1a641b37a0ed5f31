//! The etcd leases of agents, and what hangs on them.

use super::Entry;
use crate::{
    model::{
        key::{Key, Txn, Write},
        record::MEMBER_LEASE,
    },
    sim::world::World,
};

/// How long a lease lasts that nobody keeps alive.
const LEASE: u64 = MEMBER_LEASE.as_nanos();

/// Whether a key goes when nobody keeps the etcd lease of its writer alive.
pub(super) const fn is_leased(key: &Key) -> bool {
    matches!(key, Key::Bootstrap | Key::Member(_))
}

impl World {
    /// As etcd does it: what hangs on a lease that has ended meanwhile is not written.
    pub(super) fn commit_late(&mut self, node: usize, run: u64, txn: &Txn) {
        let leased = txn.then.iter().any(|write| matches!(write, Write::Put(key, _) if is_leased(key)));
        let kept = self.leases.get(&(node, run)).copied().unwrap_or_default();
        if !leased || kept + LEASE > self.now {
            let _ = self.commit(node, run, txn);
        }
    }

    pub(in crate::sim) fn refresh_lease(&mut self, node: usize, run: u64) {
        let now = self.now;
        self.leases.insert((node, run), now);
        self.later(LEASE, move |world| world.expire_lease(node, run));
    }

    /// Deletes what hangs on a lease that nobody kept alive.
    fn expire_lease(&mut self, node: usize, run: u64) {
        let kept = self.leases.get(&(node, run)).copied().unwrap_or_default();
        if kept + LEASE > self.now {
            return;
        }
        if self.store.away_until > self.now {
            // A new leader of etcd gives every lease its whole time again.
            self.leases.insert((node, run), self.store.away_until);
            let after = self.store.away_until + LEASE - self.now;
            self.later(after, move |world| world.expire_lease(node, run));
            return;
        }
        let hangs = |entry: &Entry| entry.lease == Some((node, run));
        let gone: Vec<Key> = self.store.entries.iter().filter(|(_, entry)| hangs(entry)).map(|(key, _)| key.clone()).collect();
        if gone.is_empty() {
            return;
        }
        self.store.revision += 1;
        for key in gone {
            self.store.entries.remove(&key);
            self.store.log.push((key, None, self.store.revision));
        }
        self.tell_watchers();
    }
}
