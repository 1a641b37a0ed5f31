//! Who may take over: the holder keeps `sync.electable` (protocol 1.2, *electable*; here for `async`).

use super::{
    decision::{Action, Purpose},
    draft::Draft,
    snapshot::Snapshot,
};
use crate::model::{
    key::{Compare, Key, Txn, Write},
    moment::{Moment, Span},
    node::Replica,
    record::{Stored, SyncRecord, to_text},
    term::Term,
};

pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    let Some(sync) = s.sync() else { return };
    // Only in its own term may the holder write it, and only with authority.
    let ours = s.leader().is_some_and(|leader| leader.record.term == sync.record.term) && sync.record.primary == s.myself();
    if !ours || s.authority().is_none() {
        return;
    }
    let since = watching(s, d, sync.record.term);
    let wanted = electable(s, d, &sync.record, since);
    if wanted == sync.record.electable {
        return;
    }
    let names: Vec<String> = wanted.iter().map(|replica| replica.node.to_string()).collect();
    d.because("electable", format!("electable becomes {}", if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }));
    if let Some(txn) = swap(s, sync, wanted) {
        d.act(s, Action::Txn(Purpose::Membership, txn));
    }
}

fn swap(s: &Snapshot, sync: &Stored<SyncRecord>, electable: Vec<Replica>) -> Option<Txn> {
    let term = s.etcd.records.term.as_ref()?;
    let nonce = s.nonce("sync");
    let record = SyncRecord { nonce: nonce.clone(), electable, ..sync.record.clone() };
    Some(Txn {
        nonce,
        when: vec![Compare::Is(Key::Sync, sync.text.clone()), Compare::Is(Key::Term, term.text.clone())],
        then: vec![Write::Put(Key::Sync, to_text(&record))],
    })
}

/// Since when this agent watches its replicas in this term. What they confirmed to an earlier primary, or to an agent before us,
/// is not known here; and what they confirmed to us in an earlier term is no silence in this one.
fn watching(s: &Snapshot, d: &mut Draft, term: Term) -> Moment {
    match d.memory.watching {
        Some((of, since)) if of == term => since,
        _ => {
            d.memory.watching = Some((term, s.now.boot));
            s.now.boot
        }
    }
}

/// Those who stream and are not barred join; those who confirmed nothing for two waits, or began another life, leave.
fn electable(s: &Snapshot, d: &mut Draft, sync: &SyncRecord, since: Moment) -> Vec<Replica> {
    let limit = s.policy.timers().wait.times(2);
    let mut wanted: Vec<Replica> = Vec::new();
    for replica in &sync.electable {
        if barred(s, replica) {
            continue;
        }
        let last = s.confirmed.get(replica).map_or(since, |at| since.max(*at));
        let silent = s.now.boot.since(last);
        if silent > limit {
            d.because("silent", format!("{} has confirmed nothing for {}: it is no longer electable", replica.node, silent.rounded()));
        } else {
            wanted.push(replica.clone());
            d.wake(last.plus(limit).plus(Span::from_millis(1)));
        }
    }
    let streaming = s.server().into_iter().flat_map(|facts| &facts.walsenders).filter(|row| row.streaming && row.flush.is_some());
    for row in streaming {
        let Some(replica) = Replica::from_application_name(&row.application_name) else { continue };
        let recent = s.confirmed.get(&replica).is_some_and(|at| s.now.boot.since(*at) <= limit);
        if recent && !barred(s, &replica) && !wanted.contains(&replica) && is_present_life(s, &replica) {
            wanted.push(replica);
        }
    }
    wanted.sort();
    wanted
}

/// Tagged, in another life by now, or ourselves.
fn barred(s: &Snapshot, replica: &Replica) -> bool {
    let records = &s.etcd.records;
    let tagged = records.members.get(&replica.node).is_some_and(|member| member.record.tags.no_failover);
    let other_life = records.nodes.get(&replica.node).is_some_and(|node| node.record.data != replica.data);
    tagged || other_life || replica.node == s.me.node
}

/// Whether its own `nodes` key says that this is its present life.
fn is_present_life(s: &Snapshot, replica: &Replica) -> bool {
    s.etcd.records.nodes.get(&replica.node).is_some_and(|node| node.record.data == replica.data)
}
