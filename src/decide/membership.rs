//! Who may take over: the holder keeps `sync.electable` (protocol 1.2, *electable*). In `async` by itself; else it goes with the voters.

use super::{draft::Draft, durability, snapshot::Snapshot};
use crate::model::{
    instance::ServerRole,
    lsn::Lsn,
    moment::{Moment, Span},
    node::Replica,
    record::{MemberRole, Stored, SyncRecord},
    request::Request,
    term::Term,
};

/// The `electable` of `async`: whoever streams and has what was acknowledged.
pub(super) fn rule(s: &Snapshot, d: &mut Draft, sync: &Stored<SyncRecord>, since: Moment) {
    let wanted = electable(s, d, &sync.record, since);
    if wanted == sync.record.electable {
        return;
    }
    let names: Vec<String> = wanted.iter().map(|replica| replica.node.to_string()).collect();
    d.because("electable", format!("electable becomes {}", if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }));
    durability::write(s, d, sync, SyncRecord { electable: wanted, ..sync.record.clone() });
}

/// Since when this agent watches its replicas in this term. What they confirmed to an earlier primary, or to an agent before us,
/// is not known here; and what they confirmed to us in an earlier term is no silence in this one.
pub(super) fn watching(s: &Snapshot, d: &mut Draft, term: Term) -> Moment {
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
    let mut wanted: Vec<Replica> = Vec::new();
    for replica in &sync.electable {
        if !barred(s, replica) && is_heard(s, d, replica, since) {
            wanted.push(replica.clone());
        }
    }
    let joins_at = joins_at(s, d, sync.term);
    let streaming = s.server().into_iter().flat_map(|facts| &facts.walsenders).filter(|row| row.streaming);
    for row in streaming.filter(|row| row.flush.is_some_and(|flush| flush >= joins_at)) {
        let Some(replica) = Replica::from_application_name(&row.application_name) else { continue };
        let fit = is_recent(s, &replica) && !barred(s, &replica) && is_present_life(s, &replica) && answers(s, &replica);
        if fit && !wanted.contains(&replica) {
            wanted.push(replica);
        }
    }
    wanted.sort();
    wanted
}

/// Whether its agent says that PostgreSQL answers there. What a rewind or a copy has left streams before it is consistent, and cannot be promoted:
/// nobody could take over, and the holder would hang on its word where etcd is silent.
pub(super) fn answers(s: &Snapshot, replica: &Replica) -> bool {
    let member = s.etcd.records.members.get(&replica.node).map(|member| &member.record);
    member.is_some_and(|member| member.data == replica.data && member.role == MemberRole::Replica)
}

/// What a replica must have confirmed before it may take over in `async`: all that had been flushed when the mode, or this agent's watch, began.
/// Commits that voters acknowledged may not have reached it. A look from before says too little: some were acknowledged since.
fn joins_at(s: &Snapshot, d: &mut Draft, term: Term) -> Lsn {
    if let Some((_, at)) = d.memory.joins_at.filter(|(of, _)| *of == term) {
        return at;
    }
    let (_, since) = *d.memory.joins_from.insert(s.memory.joins_from.filter(|(of, _)| *of == term).unwrap_or((term, s.now.boot)));
    let flush = match s.role() {
        Some(ServerRole::Primary { flush, .. }) if s.server.seen_at().is_some_and(|at| at >= since) => *flush,
        _ => {
            d.hurry = true;
            return Lsn::MAX;
        }
    };
    d.memory.joins_at = Some((term, flush));
    flush
}

/// How long a replica may be silent.
fn patience(s: &Snapshot) -> Span {
    s.policy.timers().wait.times(2)
}

/// Whether a replica that is listed has confirmed anything lately. Says so where it has not.
pub(super) fn is_heard(s: &Snapshot, d: &mut Draft, replica: &Replica, since: Moment) -> bool {
    let last = s.confirmed.get(replica).map_or(since, |at| since.max(*at));
    let silent = s.now.boot.since(last);
    if silent > patience(s) {
        d.because("silent", format!("{} has confirmed nothing for {}: it is no longer electable", replica.node, silent.rounded()));
        return false;
    }
    d.wake(last.plus(patience(s)).plus(Span::from_millis(1)));
    true
}

/// Whether it has confirmed anything to us lately.
pub(super) fn is_recent(s: &Snapshot, replica: &Replica) -> bool {
    s.confirmed.get(replica).is_some_and(|at| s.now.boot.since(*at) <= patience(s))
}

/// Tagged, in another life by now, or ourselves.
pub(super) fn barred(s: &Snapshot, replica: &Replica) -> bool {
    s.etcd.records.members.get(&replica.node).is_some_and(|member| member.record.tags.no_failover) || is_gone(s, replica)
}

/// The same for voting; and who is to be removed, or does not say that it is ready to.
pub(super) fn barred_from_voting(s: &Snapshot, replica: &Replica) -> bool {
    let unready = s.etcd.records.nodes.get(&replica.node).is_some_and(|node| !node.record.sync_ready);
    let term = s.leader().map(|leader| leader.record.term);
    let removed = s
        .etcd
        .records
        .intent
        .as_ref()
        .filter(|intent| Some(intent.record.term) == term)
        .is_some_and(|intent| matches!(&intent.record.request, Request::Remove { node } if *node == replica.node));
    let tagged = s.etcd.records.members.get(&replica.node).is_some_and(|member| member.record.tags.no_sync);
    unready || removed || tagged || is_gone(s, replica)
}

/// In another life by now, or ourselves.
pub(super) fn is_gone(s: &Snapshot, replica: &Replica) -> bool {
    let other_life = s.etcd.records.nodes.get(&replica.node).is_some_and(|node| node.record.data != replica.data);
    other_life || replica.node == s.me.node
}

/// Whether its own `nodes` key says that this is its present life.
pub(super) fn is_present_life(s: &Snapshot, replica: &Replica) -> bool {
    s.etcd.records.nodes.get(&replica.node).is_some_and(|node| node.record.data == replica.data)
}
