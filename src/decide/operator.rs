//! What operators ask for: one request at a time, at the term that they saw, and once at the most (protocol I8, 1.12).
//!
//! A request is removed by the transaction that does what cannot be undone: the pause itself, the resumption, the claim of the node that is to
//! take over. Before that it may be taken up by whoever comes to act next; in another term it is dropped.

use super::{
    decision::{Action, Purpose},
    draft::Draft,
    flap,
    leadership::next,
    pause,
    snapshot::Snapshot,
};
use crate::model::{
    instance::{Process, ServerRole},
    key::{Compare, Key, Txn, Write},
    node::{NodeName, Replica},
    node_file::Order,
    record::{Answer, IntentRecord, LeaderRecord, LeaderState, Stored, SyncRecord, to_text},
    request::Request,
};

/// Who renews its lease is not dead, whatever is asserted: so many renewals have to be missing.
const MISSED: u64 = 3;

/// The request that waits, if it was made in the present term.
pub(super) fn wish(s: &Snapshot) -> Option<&Stored<IntentRecord>> {
    let intent = s.etcd.records.intent.as_ref()?;
    s.leader().filter(|leader| leader.record.term == intent.record.term).map(|_| intent)
}

/// The request that this node takes over.
pub(super) fn order(s: &Snapshot) -> Option<Order> {
    let IntentRecord { request, actor, .. } = &wish(s)?.record;
    match request {
        Request::Failover { to, accept_loss, assert_dead } if *to == s.me.node => {
            Some(Order { by: actor.clone(), accept_loss: *accept_loss, assert_dead: *assert_dead, boundless: false })
        }
        _ => None,
    }
}

/// The node that somebody wants to take over.
pub(super) fn wanted(s: &Snapshot) -> Option<&NodeName> {
    match &wish(s)?.record.request {
        Request::Failover { to, .. } => Some(to),
        _ => None,
    }
}

/// The operator's word that the holder is dead, where it may be taken: nothing of that node speaks against it.
pub(super) fn asserted(s: &Snapshot, d: &mut Draft, leader: &LeaderRecord) -> Option<String> {
    let IntentRecord { request, actor, .. } = &wish(s)?.record;
    let asserts = match request {
        Request::Failover { to, assert_dead, .. } => *assert_dead && *to == s.me.node,
        // Said of the holder of a paused record, and of no other.
        Request::Resume { assert_dead } => *assert_dead && matches!(leader.state, LeaderState::Paused(_)),
        _ => false,
    };
    let holder = &leader.holder.node;
    if !asserts || s.holds() {
        return None;
    }
    if s.etcd.records.acts(leader) {
        d.refused("not-dead", format!("{actor} asserts that {holder} is dead, but its agent lives: it does what is asked for itself"));
        return None;
    }
    let renewed = s.stood_still();
    let needed = s.policy.timers().renew_every.times(MISSED);
    if matches!(leader.state, LeaderState::Claimed | LeaderState::Serving) && renewed < needed {
        d.wake(s.now.boot.plus(needed.minus(renewed)));
        d.refused("not-dead", format!("{actor} asserts that {holder} is dead, but it has renewed its lease {renewed} ago"));
        return None;
    }
    Some(format!("{actor} asserts that {holder} is dead"))
}

/// Why nobody else is followed: this node is to take over from a holder that is dead by the operator's word, whatever is lost with it.
pub(super) fn takes_from_the_dead(s: &Snapshot, d: &mut Draft, leader: &LeaderRecord) -> Option<String> {
    order(s).filter(|order| order.accept_loss && order.assert_dead)?;
    asserted(s, d, leader)
}

/// As the holder: to whom an operator wants the lease handed, where that is possible.
pub(super) fn hands_to(s: &Snapshot) -> Option<NodeName> {
    // A request that is seen in an etcd which no longer answers is carried out once it does.
    let to = wanted(s).filter(|_| s.etcd_answers() && (s.is_leased() || s.holds_paused()))?;
    unfit(s, to).is_none().then(|| to.clone())
}

/// Why the holder cannot hand over to this node, and what would make it possible.
pub(super) fn unfit(s: &Snapshot, to: &NodeName) -> Option<String> {
    let Some(Request::Failover { accept_loss, .. }) = wish(s).map(|intent| &intent.record.request) else { return None };
    if *to == s.me.node {
        return Some(format!("{to} is the primary already"));
    }
    let listed = s.sync().and_then(|sync| sync.record.electable.iter().find(|replica| replica.node == *to));
    let Some(replica) = listed else {
        return Some(format!(
            "{to} may not take over: `sync` does not list it; it does once it streams from {} and no tag bars it",
            s.me.node
        ));
    };
    let streams = |replica: &Replica| {
        let name = replica.application_name();
        s.server().is_none_or(|facts| facts.walsenders.iter().any(|row| row.streaming && row.application_name == name))
    };
    let asked =
        matches!(s.process(), Some(Process::Running { stopping: None, .. })) && matches!(s.role(), Some(ServerRole::Primary { .. }));
    (asked && !accept_loss && !streams(replica))
        .then(|| format!("{to} does not stream from {} at this moment; once it does, or with --accept-loss, it may", s.me.node))
}

/// What a holder whose PostgreSQL serves, or is paused, does about a request.
pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    let Some(stored) = &s.etcd.records.intent else { return };
    let Some(leader) = s.leader() else { return };
    let IntentRecord { request, actor, term, .. } = &stored.record;
    if *term != leader.record.term {
        let text = format!("the request of {actor} was made in term {term}, this is term {}: it is dropped", leader.record.term);
        return drop(s, d, stored, text);
    }
    match request {
        Request::Remove { node } => remove(s, d, stored, node),
        Request::Pause { .. } => match &leader.record.state {
            LeaderState::Paused(before) => drop(s, d, stored, format!("{} has paused already: {}", before.by, before.reason)),
            _ => pause::begin(s, d, stored),
        },
        // Where it is paused the holder does this itself.
        Request::Resume { .. } if matches!(leader.record.state, LeaderState::Paused(_)) => {}
        Request::Resume { .. } => drop(s, d, stored, "nothing is paused".to_owned()),
        Request::Failover { to, .. } => match unfit(s, to) {
            Some(why) => drop(s, d, stored, why),
            None if !s.etcd_answers() => {
                d.waits("failover", format!("{actor} wants {to} to take over: that waits for an answer of etcd"));
            }
            None => {
                d.because("failover", format!("{actor} wants {to} to take over: PostgreSQL is stopped here, and the lease handed to it"))
            }
        },
        Request::Acknowledge => acknowledge(s, d, leader, stored),
    }
}

/// Drops a request, and tells why in our member record.
pub(super) fn drop(s: &Snapshot, d: &mut Draft, stored: &Stored<IntentRecord>, why: String) {
    d.refused("intent", why.clone());
    d.memory.answer = Some(Answer { id: stored.record.id.clone(), refused: why });
    let txn = Txn { nonce: s.nonce("intent"), when: vec![is(stored)], then: vec![Write::Delete(Key::Intent)] };
    d.act(s, Action::Txn(Purpose::Intent, txn));
}

fn is(stored: &Stored<IntentRecord>) -> Compare {
    Compare::Is(Key::Intent, stored.text.clone())
}

/// Swaps `leader`, and takes the request that asks for it.
pub(super) fn swap_for(leader: &Stored<LeaderRecord>, record: &LeaderRecord, stored: Option<&Stored<IntentRecord>>) -> Txn {
    let mut txn = super::leadership::swap(leader, record);
    if let Some(stored) = stored {
        take(&mut txn, stored);
    }
    txn
}

/// This transaction does what was asked for: it removes the request.
pub(super) fn take(txn: &mut Txn, stored: &Stored<IntentRecord>) {
    txn.when.push(is(stored));
    txn.then.push(Write::Delete(Key::Intent));
}

fn acknowledge(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, stored: &Stored<IntentRecord>) {
    if !flap::was_stopped(leader) {
        return drop(s, d, stored, "nothing is to be acknowledged: failovers go on by themselves".to_owned());
    }
    d.because("acknowledged", format!("{} has acknowledged: failovers go on by themselves", stored.record.actor));
    let record = LeaderRecord { failovers: None, ..next(s, &leader.record) };
    d.act(s, Action::Txn(Purpose::Acknowledge, swap_for(leader, &record, Some(stored))));
}

fn remove(s: &Snapshot, d: &mut Draft, stored: &Stored<IntentRecord>, node: &NodeName) {
    let actor = &stored.record.actor;
    if *node == s.me.node {
        return drop(s, d, stored, "the primary cannot be removed; it is dropped".to_owned());
    }
    if let Some(why) = s.leader().and_then(|leader| s.etcd.records.cannot_spare(&leader.record, node, s.policy.quorum_standbys)) {
        return drop(s, d, stored, format!("{node} cannot be removed: {why}"));
    }
    if s.sync().is_some_and(|sync| sync.record.voters.iter().any(|voter| voter.node == *node)) {
        d.waits("intent", format!("{node} is to be removed, as {actor} asked: commits stop to wait for it first"));
        return;
    }
    let Some(leader) = s.leader() else { return };
    d.because("intent", format!("{node} is removed from the cluster, as {actor} asked"));
    // While a renewal is on its way `leader` is about to change: the next decision finds it settled.
    let when = vec![is(stored), Compare::Is(Key::Leader, leader.text.clone())];
    let mut txn = Txn { nonce: s.nonce("intent"), when, then: vec![Write::Delete(Key::Intent)] };
    forget(s, node, &mut txn);
    d.act(s, Action::Txn(Purpose::Intent, txn));
}

fn forget(s: &Snapshot, node: &NodeName, txn: &mut Txn) {
    if let Some(sync) = s.sync() {
        let electable: Vec<Replica> = sync.record.electable.iter().filter(|replica| replica.node != *node).cloned().collect();
        if electable != sync.record.electable {
            let record = SyncRecord { nonce: s.nonce("forget"), electable, ..sync.record.clone() };
            txn.when.push(Compare::Is(Key::Sync, sync.text.clone()));
            txn.then.push(Write::Put(Key::Sync, to_text(&record)));
        }
    }
    txn.then.push(Write::Delete(Key::Node(node.clone())));
    txn.then.push(Write::Delete(Key::Member(node.clone())));
}
