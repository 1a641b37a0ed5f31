//! Our own `nodes` key: one life of a data directory, one running agent (protocol 1.2, *node file*).

use super::{
    Flow,
    decision::{Action, Purpose},
    draft::Draft,
    durability,
    snapshot::Snapshot,
    upkeep, went_back,
};
use crate::model::{
    key::{Compare, Key, Txn, Write},
    moment::Span,
    node_file::{NodeFile, Operation},
    observed::Observed,
    record::{NodeRecord, Stored, VERSION, to_text},
};

/// etcd elects a leader within this time.
const SILENCE: Span = Span::from_secs(5);

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    // Whose cluster a directory is of never changes: it needs no fresh answer.
    if foreign_cluster(s, d) {
        return Flow::Settled;
    }
    if !s.etcd_answers() {
        // What was seen before may still be acted on by rules that need no fresh answer. They start nothing on data that nobody has looked at.
        silent(s, d);
        return if s.memory.registered { Flow::Goes } else { went_back::data(s, d) };
    }
    let mine = s.etcd.records.nodes.get(&s.me.node);
    if s.memory.registered {
        return registered(s, d, mine);
    }
    match mine {
        Some(stored) if went_back::file(s, &stored.record) => {
            d.alarm(
                "data-went-back",
                format!(
                    "the node file ({} starts, data {}) is behind etcd's ({} starts, data {}): this is a copy, or the disk went back; \
                     its data gets a new incarnation",
                    s.file.starts, s.file.data, stored.record.starts, stored.record.data
                ),
            );
            // What was under way on the directory is, in whichever life.
            let operation = s.file.operation.clone();
            // After starts of which etcd never heard the file is ahead: a lower count would be taken for what an older agent wrote.
            let starts = stored.record.starts.saturating_add(1).max(s.file.starts);
            let file = NodeFile { starts, told: s.file.told.max(Some(stored.record.starts)), operation, ..new_life(s) };
            d.act(s, Action::WriteFile(Box::new(file)));
            Flow::Settled
        }
        _ if went_back::data(s, d) == Flow::Settled => Flow::Settled,
        Some(stored) if says_the_same(s, &stored.record) => {
            d.memory.registered = true;
            Flow::Goes
        }
        mine => {
            d.waits("registration", "this node's present life is being published");
            if s.file.told != Some(s.file.starts) {
                d.act(s, Action::WriteFile(Box::new(NodeFile { told: Some(s.file.starts), ..s.file.clone() })));
                return Flow::Settled;
            }
            // Another agent changes nothing of what was said of the server.
            let ready = mine.is_some_and(|mine| mine.record.data == s.file.data && mine.record.sync_ready);
            d.memory.registering |= put(s, d, mine, ready);
            Flow::Settled
        }
    }
}

/// An election of etcd is waited for; what lasts longer is told with its cause.
fn silent(s: &Snapshot, d: &mut Draft) {
    match &s.etcd.answered {
        Observed::Unknown { since, why } if s.etcd.answered != Observed::never() && s.now.boot.since(*since) >= SILENCE => {
            let remedy = if why.contains("be let in by etcd") {
                "check [etcd] username, password_file and client certificate, and that user's roles in etcd"
            } else {
                "look at its members and the network between; `pgbaton doctor` asks each of them"
            };
            d.refused(
                "etcd-unreachable",
                format!("etcd does not answer (could not {why}): what it holds is not known, and nothing is decided anew; {remedy}"),
            );
        }
        Observed::Unknown { since, .. } => {
            d.wake(since.plus(SILENCE));
            d.waits("etcd-silent", "etcd has not answered: what it holds is not known");
        }
        Observed::Known { .. } | Observed::Absent { .. } => {}
    }
}

/// Another agent took our name, or our key was removed: we are not this node any more. Else keeps the key fresh.
fn registered(s: &Snapshot, d: &mut Draft, mine: Option<&Stored<NodeRecord>>) -> Flow {
    let Some(stored) = mine else {
        d.waits("registration", "this node's key was removed from etcd; it is published again");
        put(s, d, None, false);
        return Flow::Goes;
    };
    let theirs = &stored.record;
    if theirs.starts > s.file.starts {
        d.alarm(
            "name-taken",
            format!(
                "another agent runs as {}: it wrote {} starts where this one wrote {}. This agent stops; one of the two must get another name",
                s.me.node, theirs.starts, s.file.starts
            ),
        );
        d.act(s, Action::Exit { why: "another agent runs under this node's name".to_owned() });
        return Flow::Settled;
    }
    let ready = durability::ready(s, d);
    if theirs.data != s.file.data || moved_far(s, theirs) || theirs.sync_ready != ready {
        put(s, d, Some(stored), ready);
    }
    Flow::Goes
}

/// Whether the file's boundary has moved on by so much, or to another timeline, that it is worth a write: the file itself is written
/// rarely enough where nothing acknowledged may be lost, and in a pause.
fn moved_far(s: &Snapshot, theirs: &NodeRecord) -> bool {
    let worth = if s.is_lossless() || s.pause().is_some() { 1 } else { upkeep::NOTED_WITHIN };
    s.file.boundary.is_some_and(|boundary| Some(boundary.tli) != theirs.tli || boundary.lsn.bytes_ahead_of(theirs.whole).get() >= worth)
}

/// The file that follows ours when the data directory begins a new life.
pub(super) fn new_life(s: &Snapshot) -> NodeFile {
    NodeFile {
        data: s.fresh.data.clone(),
        claimed: None,
        promoted: None,
        barrier: None,
        demoted: None,
        boundary: None,
        operation: None,
        initialised: false,
        ..s.file.clone()
    }
}

fn says_the_same(s: &Snapshot, theirs: &NodeRecord) -> bool {
    theirs.data == s.file.data && theirs.starts == s.file.starts
}

fn put(s: &Snapshot, d: &mut Draft, mine: Option<&Stored<NodeRecord>>, sync_ready: bool) -> bool {
    let key = Key::Node(s.me.node.clone());
    let record = NodeRecord {
        v: VERSION,
        data: s.file.data.clone(),
        starts: s.file.starts,
        // Only what the file has noted: a file that is behind this key went back.
        whole: s.file.boundary.map(|boundary| boundary.lsn).unwrap_or_default(),
        tli: s.file.boundary.map(|boundary| boundary.tli),
        sync_ready,
        unknown: mine.map(|stored| stored.record.unknown.clone()).unwrap_or_default(),
    };
    let condition = mine.map_or_else(|| Compare::Missing(key.clone()), |stored| Compare::Is(key.clone(), stored.text.clone()));
    let txn = Txn { nonce: s.nonce("register"), when: vec![condition], then: vec![Write::Put(key, to_text(&record))] };
    d.act(s, Action::Txn(Purpose::Register, txn))
}

/// A data directory of another cluster, or another uuid under the same name, is never joined.
fn foreign_cluster(s: &Snapshot, d: &mut Draft) -> bool {
    use crate::model::instance::DataDir;
    let Some(cluster) = &s.etcd.records.cluster else { return false };
    let Some(DataDir::Present(disk)) = s.disk() else { return false };
    // What our own initdb has made and nobody ever started is discarded.
    let made_here = s.file.initialised || s.file.operation == Some(Operation::InitDb);
    if disk.control.system_id == cluster.record.system_id || (made_here && !disk.started) {
        return false;
    }
    d.alarm(
        "other-cluster",
        format!(
            "the data directory has system identifier {}, the cluster {}: it belongs to another cluster. Move it away, or choose another \
             cluster name or etcd prefix",
            disk.control.system_id, cluster.record.system_id
        ),
    );
    true
}
