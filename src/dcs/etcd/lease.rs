//! etcd leases: for what may vanish with its writer (`bootstrap`, `members/<node>`). Never for leadership.

use super::{
    super::{Error, Hedge, TxnOutcome},
    Etcd, Shared,
    endpoint::Endpoint,
};
use crate::{
    clock,
    model::{
        key::{Key, Txn, Write},
        moment::{Moment, Span},
        node::NodeName,
    },
};
use etcd_client::{Client, GetOptions};
use futures_util::future::join_all;
use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

/// `initdb` may take a while, and its record must not vanish under it; it vanishes this long after its writer's death.
const BOOTSTRAP_TTL: Span = Span::from_secs(60);
/// How often the upkeep looks for what is due.
const UPKEEP: Duration = Duration::from_secs(1);
/// Every endpoint is asked this often, so that its token (300 s by default) and its connection stay fresh.
const TOUCH: Span = Span::from_secs(60);
/// One that has been failing is asked this often: only an answer makes it eligible again.
const TOUCH_FAILING: Span = Span::from_secs(2);

/// What an etcd lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    Bootstrap,
    Member,
}

/// The leases of this process.
pub(super) type Leases = BTreeMap<Purpose, Lease>;

/// Which endpoint leads etcd, and since which raft term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leading {
    index: usize,
    raft_term: u64,
}

/// One granted lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    id: i64,
    ttl: Span,
    /// Before its grant or newest confirmed renewal was sent.
    renewed_at: Moment,
}

impl Etcd {
    /// Writes what this node says of itself, on an etcd lease of `member_ttl`.
    ///
    /// # Errors
    /// A hint was not published, or nobody knows. Never wait for this on the renewal's path.
    pub async fn put_member(&self, node: &NodeName, text: String, deadline: Span) -> Result<u64, Error> {
        let key = Key::Member(node.clone());
        let txn = Txn { nonce: clock::nonce(), when: Vec::new(), then: vec![Write::Put(key, text)] };
        match self.txn(&txn, Hedge::Allowed, deadline).await?.outcome {
            TxnOutcome::Applied { revision } => Ok(revision),
            TxnOutcome::Refused { .. } => Err(Error::Rejected("an unconditional write was refused".to_owned())),
        }
    }

    /// Keeps this process's leases alive and idle connections fresh, for ever. One task of the agent; off the renewal's path.
    ///
    /// Without it a member's record still lives as long as `put_member` is called in time.
    pub async fn keep_up(self) {
        let shared = &self.shared;
        let (mut touched, mut retried) = (Moment::ZERO, Moment::ZERO);
        loop {
            tokio::time::sleep(UPKEEP).await;
            for (purpose, lease) in shared.due_leases() {
                shared.renew(purpose, lease, shared.settings.attempt.times(2)).await;
            }
            let now = clock::boot();
            let (all, failing) = (now.since(touched) >= TOUCH, now.since(retried) >= TOUCH_FAILING);
            let due = shared.endpoints.iter().filter(|endpoint| all || (failing && endpoint.failing_since().is_some()));
            join_all(due.map(|endpoint| shared.touch(endpoint))).await;
            touched = if all { now } else { touched };
            retried = if failing { now } else { retried };
        }
    }
}

impl Shared {
    /// A local read: uses the token, and needs no quorum. How it goes shows in the endpoint's own state.
    async fn touch(&self, endpoint: &Endpoint) {
        let path = self.space.path(&Key::Leader);
        let call = |client: Client| {
            let path = path.clone();
            async move { client.kv_client().get(path, Some(GetOptions::new().with_serializable())).await }
        };
        let _ = endpoint.attempt(self.settings.attempt, &call).await;
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of which a third of the time is over.
    fn due_leases(&self) -> Vec<(Purpose, Lease)> {
        let now = clock::boot();
        let leases = self.leases();
        leases.iter().filter(|(_, lease)| now.since(lease.renewed_at).times(3) >= lease.ttl).map(|(p, l)| (*p, *l)).collect()
    }

    /// A lease for `purpose` that has not ended, granted or renewed where that is due.
    pub(super) async fn lease(&self, purpose: Purpose, deadline: Span) -> Result<i64, Error> {
        let present = self.leases().get(&purpose).copied();
        if let Some(lease) = present {
            let age = clock::boot().since(lease.renewed_at);
            if age.times(3) < lease.ttl {
                return Ok(lease.id);
            }
            if age < lease.ttl && self.renew(purpose, lease, deadline).await {
                return Ok(lease.id);
            }
        }
        let ttl = match purpose {
            Purpose::Bootstrap => BOOTSTRAP_TTL,
            Purpose::Member => self.settings.member_ttl,
        };
        let seconds = (ttl.as_millis().div_ceil(1_000)).cast_signed();
        let raced = self.race(Hedge::Allowed, deadline, |client| async move { client.lease_client().grant(seconds, None).await });
        // A second grant by a hedged attempt is never used, and ends by itself.
        let raced = raced.await?;
        let lease = Lease { id: raced.answer.id(), ttl, renewed_at: raced.sent_at };
        self.leases().insert(purpose, lease);
        Ok(lease.id)
    }

    pub(super) fn forget_lease(&self, purpose: Purpose) {
        self.leases().remove(&purpose);
    }

    /// Whether the lease lives on. One that etcd does not know is forgotten; the next write grants another.
    ///
    /// Only etcd's leader renews, so it is asked itself. A follower hands each renewal on by HTTP, and while its leader's process is dead it
    /// tries that again without any pause: a few renewals from all agents then cost the hosts of etcd whole processors, just when it elects.
    async fn renew(&self, purpose: Purpose, lease: Lease, deadline: Span) -> bool {
        let call = |client: Client| async move {
            // The call itself is one renewal and takes its answer; a further message would have to be asked for.
            match client.lease_client().keep_alive(lease.id).await {
                Ok(_) => Ok(true),
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        let renewed = match self.leading().await {
            Some(index) => {
                let sent_at = clock::boot();
                let answer = self.endpoints[index].attempt(self.settings.attempt.min(deadline), &call).await;
                if answer.is_err() {
                    *self.known_leading() = None;
                }
                answer.ok().map(|answer| (answer, sent_at))
            }
            // Nobody is known to lead. There is time to wait for an election; but one that is not among our endpoints stays unknown.
            None if clock::boot().since(lease.renewed_at).times(2) < lease.ttl => None,
            None => {
                self.race(Hedge::Never, self.settings.attempt.min(deadline), call).await.ok().map(|raced| (raced.answer, raced.sent_at))
            }
        };
        match renewed {
            Some((true, sent_at)) => {
                let renewed = Lease { renewed_at: sent_at, ..lease };
                self.leases().entry(purpose).and_modify(|present| {
                    if present.id == lease.id {
                        *present = renewed;
                    }
                });
                true
            }
            Some((false, _)) => {
                self.leases().retain(|_, present| present.id != lease.id);
                false
            }
            None => false,
        }
    }

    /// The endpoint that leads, asked of all where it is not known or may have changed.
    async fn leading(&self) -> Option<usize> {
        let newest = self.raft_term.load(Ordering::Relaxed);
        let known = *self.known_leading();
        if let Some(leading) = known.filter(|leading| leading.raft_term >= newest) {
            return Some(leading.index);
        }
        let asked = self.endpoints.iter().map(|endpoint| {
            endpoint.attempt(self.settings.attempt, &|client: Client| async move { client.maintenance_client().status().await })
        });
        let answers = join_all(asked).await;
        let leads = answers.iter().enumerate().filter_map(|(index, answer)| {
            let status = answer.as_ref().ok()?;
            let member = status.header()?.member_id();
            (status.leader() == member).then_some(Leading { index, raft_term: status.raft_term() })
        });
        // One that was deposed while it was cut off may still believe that it leads.
        let found = leads.max_by_key(|leading| leading.raft_term).filter(|leading| leading.raft_term >= newest);
        *self.known_leading() = found;
        found.map(|leading| leading.index)
    }

    fn known_leading(&self) -> MutexGuard<'_, Option<Leading>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
