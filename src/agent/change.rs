//! PURE. Operator changes as transactions: what is compared, what is written, and the `audit` record that goes with it.

use super::{
    handle::{Asker, Refusal},
    wish,
};
use crate::model::{
    key::{Compare, Key, Txn, Write},
    node::{NodeName, Nonce},
    policy::{ClusterPolicy, Durability},
    policy_check::{self, PolicyFault},
    record::{AuditRecord, IntentRecord, PolicyRecord, VERSION, to_text},
    records::Records,
    request::Request,
    term::Term,
};

/// What a change needs of the world: names that nobody used before, and the time for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// For the transaction, and for the request.
    pub nonce: Nonce,
    /// Seconds since 1970: `audit` keys sort by it.
    pub seconds: u64,
    /// The wall clock (RFC 3339).
    pub wall: String,
}

impl Stamp {
    /// The key of the `audit` record: sorts by time, and differs from every other.
    fn audit(&self) -> Key {
        let unique: String = self.nonce.as_str().chars().filter(char::is_ascii_alphanumeric).take(16).collect();
        let text = format!("{:012}-{unique}", self.seconds);
        Key::Audit(text.parse().unwrap_or_else(|_| self.nonce.clone()))
    }

    /// The `audit` record of an accepted change: its key and its text.
    pub fn audited(&self, verb: &str, asker: Asker, before: serde_json::Value, after: serde_json::Value) -> (Key, String) {
        let Asker { actor, from, reason } = asker;
        let record = AuditRecord { v: VERSION, actor, from, verb: verb.to_owned(), reason, before, after, at: self.wall.clone() };
        (self.audit(), to_text(&record))
    }

    fn record(&self, verb: &str, asker: Asker, before: serde_json::Value, after: serde_json::Value) -> Write {
        let (key, text) = self.audited(verb, asker, before, after);
        Write::Put(key, text)
    }
}

fn json<T: serde::Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Replaces the policy; see [`super::handle::Command::ReplacePolicy`]. Returns the record that will stand there.
///
/// # Errors
/// [`Refusal::Invalid`] and [`Refusal::Conflict`]. A transaction that is refused by etcd is a conflict too.
pub fn replace_policy(
    records: &Records,
    policy: ClusterPolicy,
    version: u64,
    asker: Asker,
    stamp: &Stamp,
) -> Result<(PolicyRecord, Txn), Refusal> {
    let mut faults = policy_check::faults(&policy);
    faults.extend(too_few(records, &policy));
    if !faults.is_empty() {
        return Err(Refusal::Invalid(faults));
    }
    if let Some(fault) = records.unreadable.get(&Key::Policy) {
        return Err(Refusal::NotNow(format!("the policy in etcd cannot be read by this version: {fault}")));
    }
    let now = records.policy.as_ref();
    let stands = now.map_or(0, |stored| stored.record.version);
    if stands != version {
        return Err(Refusal::Conflict(format!("the policy is at version {stands}, the change was made to version {version}")));
    }
    let record = PolicyRecord { v: VERSION, version: version.saturating_add(1), policy };
    let when = now.map_or(Compare::Missing(Key::Policy), |stored| Compare::Is(Key::Policy, stored.text.clone()));
    let before = now.map_or(serde_json::Value::Null, |stored| json(&stored.record));
    let audit = stamp.record("policy", asker, before, json(&record));
    let then = vec![Write::Put(Key::Policy, to_text(&record)), audit];
    Ok((record, Txn { nonce: stamp.nonce.clone(), when: vec![when], then }))
}

/// More replicas would have to confirm than there are: `strict-quorum` would let nobody write, and `quorum` would wait for fewer than it says. What
/// asks for less than stands is no such thing: a node may have left since.
fn too_few(records: &Records, policy: &ClusterPolicy) -> Option<PolicyFault> {
    let strength = |durability| match durability {
        Durability::Quorum => 1,
        Durability::StrictQuorum => 2,
        Durability::Async | Durability::Auto => 0,
    };
    let asked = |policy: &ClusterPolicy| (strength(policy.durability), policy.quorum_standbys);
    let leader = &records.leader.as_ref()?.record.holder.node;
    let (mode, k) = asked(policy);
    let stands = records.policy.as_ref().map(|stored| asked(&stored.record.policy));
    if mode == 0 || stands.is_some_and(|(before, most)| mode <= before && k <= most) {
        return None;
    }
    let tagged = |node: &NodeName| records.members.get(node).is_some_and(|member| member.record.tags.no_sync);
    let replicas: Vec<&str> = records.nodes.keys().filter(|node| *node != leader && !tagged(node)).map(|node| node.as_str()).collect();
    let there = u32::try_from(replicas.len()).unwrap_or(u32::MAX);
    (there < k).then(|| PolicyFault {
        key: "quorum_standbys".to_owned(),
        what: format!(
            "{k} replicas would have to confirm each commit, and there are {there} that may ({})",
            if replicas.is_empty() { "none".to_owned() } else { replicas.join(", ") }
        ),
        remedy: "choose fewer, or add replicas (without the tag no_sync) first".to_owned(),
    })
}

/// Puts an operator request; see [`super::handle::Command::PutIntent`]. Returns the record that will stand there.
///
/// The transaction must be sent once (no hedging): the holder removes what it applied, and a second attempt would put it again.
///
/// # Errors
/// [`Refusal::Conflict`] and [`Refusal::NotNow`].
pub fn put_intent(records: &Records, request: Request, term: Term, asker: Asker, stamp: &Stamp) -> Result<(IntentRecord, Txn), Refusal> {
    let Some(leader) = records.leader.as_ref().map(|leader| &leader.record) else {
        return Err(Refusal::NotNow("the cluster does not exist yet".to_owned()));
    };
    if leader.term != term {
        return Err(Refusal::Conflict(format!("the cluster is in term {}, the request was made in term {term}", leader.term)));
    }
    let acts = records.acts(leader);
    if let Some(other) = records.intent.as_ref().filter(|other| other.record.term == term && !request.replaces(&other.record.request, acts))
    {
        return Err(Refusal::Conflict(format!("a request of {} waits already, since {}", other.record.actor, other.record.at)));
    }
    if let Some(why) = wish::impossible(records, leader, &request) {
        return Err(Refusal::NotNow(why));
    }
    let before = match &request {
        Request::Remove { node } => records.nodes.get(node).map_or(serde_json::Value::Null, |stored| json(&stored.record)),
        Request::Pause { .. } | Request::Resume { .. } | Request::Failover { .. } | Request::Acknowledge => json(leader),
    };
    let verb = request.verb();
    let record = IntentRecord { v: VERSION, id: stamp.nonce.clone(), request, term, actor: asker.actor.clone(), at: stamp.wall.clone() };
    let audit = stamp.record(verb, asker, before, json(&record));
    let then = vec![Write::Put(Key::Intent, to_text(&record)), audit];
    // One of an earlier term, which nobody has dropped yet, makes way.
    let free = records.intent.as_ref().map_or(Compare::Missing(Key::Intent), |other| Compare::Is(Key::Intent, other.text.clone()));
    Ok((record, Txn { nonce: stamp.nonce.clone(), when: vec![free], then }))
}
