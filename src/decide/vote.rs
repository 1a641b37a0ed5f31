//! Promising a claimant (protocol 1.7 step 3): fsync → cut → seen gone → whole → publish. Never withdrawn.

use super::{
    candidacy, cut,
    decision::{Action, Purpose, Task},
    draft::Draft,
    failsafe, scan,
    snapshot::Snapshot,
    stop, went_back,
};
use crate::model::{
    instance::{DataDir, Process, ServerRole, StartAs, Whole},
    key::{Compare, Key, Txn, Write},
    moment::Span,
    node_file::NodeFile,
    observed::Observed,
    record::{LeaderRecord, LeaderState, PromiseRecord, Stored, VERSION, to_text},
    timeline::TimelineId,
};

/// So long a standby may be silent before it is stopped for a promise.
const MUTE: Span = Span::from_secs(2);

/// So often in a row telling it to follow nobody may fail before it is stopped for a promise.
const TRIES: u32 = 3;

/// What failed longer ago says nothing of now.
const LATELY: Span = Span::from_secs(10);

/// As a voter: somebody else has claimed.
pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    let Some(leader) = s.leader() else { return };
    let claimed = leader.record.state == LeaderState::Claimed;
    if !claimed || !s.is_elector() || leader.record.holder.node == s.me.node || leader.record.term < s.file.promised {
        return;
    }
    // An owner that starts in place needs nobody's promise; its replicas wait where they are, their streams are dead.
    let Some(whole) = promised(s, d, leader) else { return };
    publish(s, d, leader, whole);
}

/// Makes our promise for the claim's term a fact on this node, step by step; returns our end of WAL once it is.
pub(super) fn promised(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Option<Whole> {
    let term = leader.record.term;
    if failsafe::holds_back(s, d, term) || failsafe::may_have_forgotten(s, d) {
        return None;
    }
    if let Some(operation) = &s.file.operation {
        // What lies here is of two histories, or half of one: no end of WAL in it says anything.
        d.refused("promise", format!("promises nothing: {operation} has not ended"));
        return None;
    }
    if s.busy(Task::Data) || s.disk().is_some_and(DataDir::is_half_rewound) {
        d.refused("promise", "promises nothing: the data directory is being replaced, or was left half done");
        return None;
    }
    if s.file.promised < term {
        d.because("promise", format!("promises to follow nobody below term {term}, the claim of {}", leader.record.holder.node));
        let file = NodeFile { promised: term, term: s.file.term.max(term), ..s.file.clone() };
        d.act(s, Action::WriteFile(Box::new(file)));
        return None;
    }
    if is_due(s) && is_mute(s) {
        // It cannot show that its stream is gone, nor be told. Stopped, it receives nothing, and its WAL says what it has.
        d.waits(
            "cut",
            "PostgreSQL does not answer, so that nobody knows whether its stream is cut: it is stopped, to promise by what lies here",
        );
        stop::stop_postgres(s, d);
        return None;
    }
    if let Some(why) = cannot_be_told(s) {
        let text = format!("PostgreSQL cannot be told to follow nobody ({why}): it is stopped, to promise by what lies here");
        d.waits("cut", text);
        stop::stop_postgres(s, d);
        return None;
    }
    // After our own start it is not known what the managed files say: they are written first, with nobody to follow.
    if s.configured.is_none() && !s.is_empty() {
        super::upkeep::configured(s, d, None);
        return None;
    }
    let (gone, kept_out) = (is_cut(s), cut::off(s, d));
    if !gone {
        d.waits("cut", "the stream from the former primary is being cut");
        d.act(s, Action::CutStream);
    }
    if !gone || !kept_out {
        d.hurry = true;
        return None;
    }
    scan::whole(s, d).filter(|whole| !went_back::in_this_run(s, d, *whole))
}

/// Whether a promise was noted that others do not see yet: until they do, what lies here is looked at, and PostgreSQL stays as it is.
pub(super) fn is_due(s: &Snapshot) -> bool {
    let Some(leader) = s.leader().filter(|leader| leader.record.state == LeaderState::Claimed) else { return false };
    let term = leader.record.term;
    let noted = s.is_elector() && leader.record.holder.node != s.me.node && s.file.promised == term && s.file.operation.is_none();
    noted && s.etcd.records.text(&Key::Promise(term, s.me.node.clone())).is_none()
}

/// Whether a standby runs that has not answered for a while: it may wait for WAL that nobody will send any more.
fn is_mute(s: &Snapshot) -> bool {
    let runs = matches!(s.process(), Some(Process::Running { start: StartAs::Standby, .. }));
    runs && matches!(&s.server, Observed::Unknown { since, .. } if s.now.boot.since(*since) >= MUTE)
}

/// Why a standby that answers goes on following, where that was tried so often that it will not end by itself: its configuration cannot be written on
/// a file system that is full or read-only. Stopped, it needs no configuration to promise.
fn cannot_be_told(s: &Snapshot) -> Option<&str> {
    let failed = |task| s.failures.get(&task).filter(|failure| failure.count >= TRIES && s.now.boot.since(failure.at) < LATELY);
    let runs = is_due(s) && matches!(s.process(), Some(Process::Running { start: StartAs::Standby, stopping: None, .. }));
    [Task::Configure, Task::CutStream].into_iter().filter(|_| runs && !is_cut(s)).find_map(failed).map(|failure| failure.why.as_str())
}

/// Whether nothing can be received any more: nothing runs, or the conninfo in force is empty and no walreceiver is there.
fn is_cut(s: &Snapshot) -> bool {
    if s.is_empty() {
        return true;
    }
    let unconfigured = s.configured.as_ref().is_some_and(|configured| configured.follow.is_none());
    match s.role() {
        Some(ServerRole::Standby { receiver, conninfo, .. }) => unconfigured && receiver.is_none() && conninfo.is_empty(),
        _ => false,
    }
}

fn publish(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, whole: Whole) {
    let records = &s.etcd.records;
    let key = Key::Promise(leader.record.term, s.me.node.clone());
    let (Some(term), Some(node)) = (&records.term, records.nodes.get(&s.me.node)) else { return };
    if records.text(&key).is_some() || term.record.term != leader.record.term {
        return;
    }
    // After our start the history files are not known yet, and who reads the promise judges our timeline by its history.
    if whole.tli != TimelineId::FIRST && !s.histories.contains_key(&whole.tli) && s.disk().is_none() {
        d.waits("inspect", "the data directory has to be inspected before the promise is published");
        d.act(s, Action::InspectDisk);
        return;
    }
    let replay = match s.role() {
        Some(ServerRole::Standby { replay, .. }) => *replay,
        _ => match s.disk() {
            Some(DataDir::Present(disk)) => disk.control.redo,
            _ => whole.lsn,
        },
    };
    let record = PromiseRecord {
        v: VERSION,
        data: s.file.data.clone(),
        tli: whole.tli,
        history: s.histories.get(&whole.tli).cloned().unwrap_or_default(),
        whole: whole.lsn,
        replay_lag: whole.lsn.bytes_ahead_of(replay).get(),
        postgres: s.me.postgres.clone(),
        unfit: candidacy::unable(s),
    };
    d.because(
        "promise",
        format!("the promise for term {} is published: our WAL ends at {} on timeline {}", leader.record.term, whole.lsn, whole.tli),
    );
    let when = vec![
        Compare::Is(Key::Term, term.text.clone()),
        Compare::Is(Key::Node(s.me.node.clone()), node.text.clone()),
        Compare::Missing(key.clone()),
    ];
    let txn = Txn { nonce: s.nonce("promise"), when, then: vec![Write::Put(key, to_text(&record))] };
    d.act(s, Action::Txn(Purpose::Promise, txn));
}
