//! What keeps this node from acting at all.

use super::{
    Flow,
    decision::{Action, Purpose, Task},
    draft::Draft,
    leadership,
    snapshot::Snapshot,
    went_back,
};
use crate::model::{
    instance::DataDir,
    key::{Compare, Key, Txn, Write},
    moment::Span,
    node_file::{ClonePlace, Operation},
    observed::Observed,
    record::{DoubtRecord, LeaderState, VERSION, to_text},
};

/// An etcd that is not believed may be put back once more.
const DOUBT_EVERY: Span = Span::from_secs(10);

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    if s.guard().is_none() {
        d.waits("no-guard", "no guard is in session: PostgreSQL can be neither started nor watched; one is started");
        d.act(s, Action::StartGuard);
        return Flow::Settled;
    }
    if let Some(why) = &s.etcd.suspect {
        doubt(s, d, why);
        d.alarm("etcd-suspect", format!("etcd is not believed: {why}. Nobody claims or renews; look at etcd, then `pgbaton etcd recover`"));
        went_back::look(s, d);
        return Flow::Settled;
    }
    believe(s, d);
    // What our own copy in place has left half made: it is made again, and whoever makes it looks at what lies there once more.
    let half_made = matches!(s.file.operation, Some(Operation::Clone { place: ClonePlace::InPlace, .. })) && s.is_empty();
    if let (Observed::Known { value: DataDir::Unusable { why }, .. }, false) = (&s.disk, half_made) {
        d.alarm("data-directory", format!("the data directory cannot be used: {why}"));
        if s.authority().is_some() && !s.is_empty() {
            // The server that runs on it goes on serving.
            return unreadable_records(s, d);
        }
        if s.is_empty() && s.holds() {
            d.refused("release", "the lease is not released: what is on the disk cannot be read; it runs out by itself");
        }
        let looked_at = s.disk.seen_at().unwrap_or_default();
        let again = looked_at.plus(Span::from_secs(5));
        if s.now.boot >= again {
            d.act(s, Action::InspectDisk);
        }
        d.wake(again);
        return Flow::Settled;
    }
    unreadable_records(s, d)
}

/// Whoever has seen less than this node would believe this etcd, claim in it, and be a second writer: it is told in that very etcd.
fn doubt(s: &Snapshot, d: &mut Draft, why: &str) {
    let again = s.memory.doubted.map(|at| at.plus(DOUBT_EVERY));
    if !s.etcd.went_back || s.busy(Task::Txn) {
        return;
    }
    if let Some(again) = again.filter(|again| s.now.boot < *again) {
        d.wake(again);
        return;
    }
    let known = s.etcd.records.cluster.as_ref().map_or(0, |cluster| cluster.record.generation);
    let record = DoubtRecord { v: VERSION, node: s.me.node.clone(), generation: known.max(s.file.floors.generation), why: why.to_owned() };
    let txn = Txn { nonce: s.nonce("doubt"), when: Vec::new(), then: vec![Write::Put(Key::Doubt, to_text(&record))] };
    if d.act(s, Action::Txn(Purpose::Doubt, txn)) {
        d.memory.doubted = Some(s.now.boot);
    }
}

/// What this node said of an etcd that it believes again holds nobody up.
fn believe(s: &Snapshot, d: &mut Draft) {
    let Some(doubt) = s.etcd.records.doubt.as_ref().filter(|doubt| doubt.record.node == s.me.node) else { return };
    let when = vec![Compare::Is(Key::Doubt, doubt.text.clone())];
    d.act(s, Action::Txn(Purpose::Doubt, Txn { nonce: s.nonce("doubt"), when, then: vec![Write::Delete(Key::Doubt)] }));
}

/// A record that this version cannot read stops it from acting on it; authority that we have is kept.
fn unreadable_records(s: &Snapshot, d: &mut Draft) -> Flow {
    let records = &s.etcd.records;
    let critical = [Key::Cluster, Key::Term, Key::Leader, Key::Sync];
    for key in critical {
        if let Some(fault) = records.unreadable.get(&key) {
            d.alarm("record-unreadable", format!("the etcd key {key} cannot be read by this version: {fault}"));
            leadership::hold_on(s, d);
            return Flow::Settled;
        }
    }
    if let Some(LeaderState::Foreign { name }) = records.leader.as_ref().map(|leader| &leader.record.state) {
        d.alarm(
            "newer-version",
            format!("`leader` is in state {name:?}, which this version does not know: it holds still; upgrade this node"),
        );
        return Flow::Settled;
    }
    if let Some((key, fault)) = records.unreadable.iter().next() {
        d.alarm("record-unreadable", format!("the etcd key {key} cannot be read by this version and is ignored: {fault}"));
    }
    Flow::Goes
}
