//! What keeps this node from acting at all.

use super::{Flow, decision::Action, draft::Draft, leadership, snapshot::Snapshot, went_back};
use crate::model::{instance::DataDir, key::Key, observed::Observed, record::LeaderState};

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    if s.guard().is_none() {
        d.waits("no-guard", "no guard is in session: PostgreSQL can be neither started nor watched; one is started");
        d.act(s, Action::StartGuard);
        return Flow::Settled;
    }
    if let Some(why) = &s.etcd.suspect {
        d.alarm("etcd-suspect", format!("etcd is not believed: {why}. Nobody claims or renews; look at etcd, then `pgbaton etcd recover`"));
        went_back::look(s, d);
        return Flow::Settled;
    }
    if let Observed::Known { value: DataDir::Unusable { why }, .. } = &s.disk {
        d.alarm("data-directory", format!("the data directory cannot be used: {why}"));
        if s.authority().is_some() && !s.is_empty() {
            // The server that runs on it goes on serving.
            return unreadable_records(s, d);
        }
        if s.is_empty() && s.holds() {
            d.refused("release", "the lease is not released: what is on the disk cannot be read; it runs out by itself");
        }
        let looked_at = s.disk.seen_at().unwrap_or_default();
        let again = looked_at.plus(crate::model::moment::Span::from_secs(5));
        if s.now.boot >= again {
            d.act(s, Action::InspectDisk);
        }
        d.wake(again);
        return Flow::Settled;
    }
    unreadable_records(s, d)
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
