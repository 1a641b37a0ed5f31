//! The first claim: a new cluster, or one whose data was there before us (protocol 1.2, *First claim*).

use super::{
    decision::{Action, ClaimStory, Completed, Purpose, Task},
    draft::Draft,
    registration::new_life,
    snapshot::Snapshot,
};
use crate::model::{
    instance::{ControlState, DataDir, DiskFacts},
    key::{Compare, Key, Txn, Write},
    lsn::Lsn,
    node::SystemId,
    node_file::{NodeFile, Operation},
    observed::Observed,
    policy::{ClusterPolicy, LONGEST_HOLD},
    record::{
        BaseTimelines, BootstrapRecord, ClusterRecord, Holder, LeaderRecord, LeaderState, PolicyRecord, SyncMode, SyncRecord, TermRecord,
        TimelineRecord, TimelineState, Unknown, VERSION, to_text,
    },
    term::Term,
    timeline::TimelineId,
};

pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    if !s.etcd_answers() {
        d.waits("etcd-silent", "etcd has not answered yet: whether this cluster exists is not known");
        return;
    }
    if !s.etcd.records.is_blank() {
        d.alarm(
            "records-incomplete",
            "`leader` is missing from etcd while other records of this cluster are there: see `pgbaton etcd recover`",
        );
        return;
    }
    if !s.is_fenced() && !s.me.first_policy.allow_unfenced {
        d.refused("unfenced", format!("the first claim is left to another node: {}", super::candidacy::UNFENCED));
        return;
    }
    if s.file.operation == Some(Operation::InitDb) {
        let under_way = s.busy(Task::Data) || s.completed == Some(Completed::InitDb);
        if under_way || !is_not_initdbs(s, d) {
            initialise(s, d);
        }
        return;
    }
    match &s.disk {
        Observed::Known { value: DataDir::Present(disk), .. } => with_data(s, d, disk),
        Observed::Known { value: DataDir::Missing | DataDir::Empty, .. } => without_data(s, d),
        Observed::Known { value: DataDir::Unusable { .. }, .. } => {}
        Observed::Absent { .. } | Observed::Unknown { .. } => {
            d.waits("inspect", "the data directory is being inspected");
            d.act(s, Action::InspectDisk);
        }
    }
}

/// Nobody has data yet, as far as this node knows: one node wins by create and runs `initdb`.
fn without_data(s: &Snapshot, d: &mut Draft) {
    if s.me.tags.no_failover {
        d.waits("bootstrap", "this node is tagged no_failover: another one has to make the first claim");
        return;
    }
    match &s.etcd.records.bootstrap {
        Some(stored) if stored.record.agent == s.me.agent && !s.file.initialised => initialise(s, d),
        Some(stored) => {
            d.waits(
                "bootstrap",
                format!("waits for {} to initialise the cluster (its claim ends by itself if that agent dies)", stored.record.node),
            );
        }
        None => {
            d.waits("bootstrap", "the cluster does not exist yet; this node asks to initialise it");
            let record = BootstrapRecord { v: VERSION, node: s.me.node.clone(), agent: s.me.agent.clone() };
            let missing = [Key::Bootstrap, Key::Cluster, Key::Leader, Key::Doubt].map(Compare::Missing);
            let then = vec![Write::Put(Key::Bootstrap, to_text(&record))];
            d.act(s, Action::Txn(Purpose::Bootstrap, Txn { nonce: s.nonce("bootstrap"), when: missing.to_vec(), then }));
        }
    }
}

/// The marker first, then `initdb`: an interrupted one is recognised, and made again from the beginning.
fn initialise(s: &Snapshot, d: &mut Draft) {
    if s.busy(Task::Data) {
        d.waits("initdb", "initdb runs");
        return;
    }
    if s.completed == Some(Completed::InitDb) {
        let file = NodeFile { operation: None, initialised: true, ..s.file.clone() };
        d.act(s, Action::WriteFile(Box::new(file)));
        return;
    }
    let ours = s.etcd.records.bootstrap.as_ref().is_some_and(|stored| stored.record.agent == s.me.agent);
    if !ours {
        without_data(s, d);
        return;
    }
    d.because("initdb", "this node initialises the cluster");
    initdb_fails(s, d);
    if s.file.operation == Some(Operation::InitDb) {
        d.act(s, Action::InitDb);
    } else {
        let file = NodeFile { operation: Some(Operation::InitDb), ..new_life(s) };
        d.act(s, Action::WriteFile(Box::new(file)));
    }
}

/// Whether what lies in the directory is no work of our interrupted `initdb`. Then the note of it goes: the operator has put something else
/// there. Whoever discards looks too, so it is looked at here only after that was refused.
pub(super) fn is_not_initdbs(s: &Snapshot, d: &mut Draft) -> bool {
    match s.disk() {
        Some(DataDir::Present(disk)) if disk.started => {
            d.because("operation", "an initdb was noted here, but PostgreSQL has served from this directory since: it is judged as it is");
            d.act(s, Action::WriteFile(Box::new(new_life(s))));
            true
        }
        None if s.failures.contains_key(&Task::Data) => {
            d.waits("inspect", "the data directory is being inspected: an initdb of this node was interrupted");
            d.act(s, Action::InspectDisk);
            true
        }
        _ => false,
    }
}

/// So many failures of `initdb` in a row are no accident.
const INITDB_TRIES: u32 = 3;

/// The right to initialise is kept while this agent lives, so that nobody else does it: what an operator can do is said.
fn initdb_fails(s: &Snapshot, d: &mut Draft) {
    let Some(failure) = s.failures.get(&Task::Data).filter(|failure| failure.count >= INITDB_TRIES) else { return };
    let text = format!(
        "initdb has failed {} times here, and while this agent runs no other node initialises the cluster: {}. Correct that \
         (`pgbaton config check` looks at the directories), or stop this agent, and another node takes its place",
        failure.count,
        failure.why.trim_end_matches('.')
    );
    d.alarm("initdb-fails", text);
}

fn with_data(s: &Snapshot, d: &mut Draft, disk: &DiskFacts) {
    if !s.is_empty() {
        d.waits("bootstrap", "PostgreSQL runs without a cluster record; it has to be stopped before the first claim");
        return;
    }
    if s.file.operation.is_some() {
        d.refused("bootstrap", "an operation on the data directory was interrupted: it is not whole, and cannot become a cluster");
        return;
    }
    if disk.control.state != ControlState::ShutDown || disk.standby_signal && !s.file.initialised {
        d.refused(
            "bootstrap",
            format!(
                "the data directory was a standby, or was not stopped cleanly (pg_control says \"{}\"): start the agent of the cleanly stopped \
                 primary first; it makes the first claim",
                disk.control.state
            ),
        );
        return;
    }
    if s.file.initialised && s.etcd.records.bootstrap.as_ref().is_none_or(|stored| stored.record.agent != s.me.agent) {
        // Our `initdb` is done, but our right to it ended with our former agent: ask again, keep the directory.
        without_data(s, d);
        return;
    }
    claim(s, d, disk);
}

const FIRST_TERM: Term = Term::new(1);

/// File first, then one transaction that makes the cluster. Death before it leaves nothing behind; after it we are the owner.
fn claim(s: &Snapshot, d: &mut Draft, disk: &DiskFacts) {
    if s.file.claimed != Some(FIRST_TERM) {
        let file = NodeFile { claimed: Some(FIRST_TERM), term: s.file.term.max(FIRST_TERM), ..s.file.clone() };
        d.act(s, Action::WriteFile(Box::new(file)));
        return;
    }
    d.because(
        "first-claim",
        format!("the first claim: this node's data (system identifier {}) becomes the cluster", disk.control.system_id),
    );
    let why = if s.file.initialised { "the cluster was initialised" } else { "the cluster was taken over as it was" };
    let triggered = s.memory.claim.as_ref().map_or(s.now.boot, |story| story.triggered);
    d.memory.claim = Some(ClaimStory::begun(FIRST_TERM, why.to_owned(), triggered));
    if let Some(txn) = first_claim(s, disk) {
        d.act(s, Action::Txn(Purpose::FirstClaim, txn));
    }
}

fn first_claim(s: &Snapshot, disk: &DiskFacts) -> Option<Txn> {
    let guard = s.guard()?;
    let me = s.myself();
    let nonce = s.nonce("leader");
    let tli = disk.control.checkpoint_tli;
    let timers = s.me.first_policy.timers();
    let leader = LeaderRecord {
        term: FIRST_TERM,
        holder: Holder { node: me.node.clone(), data: me.data.clone(), guard: guard.incarnation.clone(), postgres: s.me.postgres.clone() },
        nonce: nonce.clone(),
        seq: 1,
        hold: timers.hold.min(LONGEST_HOLD),
        wait: timers.wait,
        tli,
        lsn: disk.control.redo,
        dead: None,
        wal_end: None,
        state: LeaderState::Claimed,
        failovers: None,
        unknown: Unknown::new(),
    };
    let sync = SyncRecord {
        v: VERSION,
        term: FIRST_TERM,
        nonce: s.nonce("sync"),
        primary: me.clone(),
        address: s.me.postgres.clone(),
        mode: SyncMode::Async,
        k: 0,
        voters: Vec::new(),
        electable: Vec::new(),
        unknown: Unknown::new(),
    };
    let (ledger_key, ledger_text) = first_timelines(s, disk, tli);
    let mut when: Vec<Compare> = [Key::Cluster, Key::Term, Key::Leader, Key::Sync, ledger_key.clone()].map(Compare::Missing).to_vec();
    if s.file.initialised {
        when.push(Compare::Is(Key::Bootstrap, s.etcd.records.bootstrap.as_ref()?.text.clone()));
    }
    let mut then = vec![
        Write::Put(Key::Cluster, to_text(&cluster(s, disk.control.system_id))),
        Write::Put(Key::Term, to_text(&TermRecord { v: VERSION, term: FIRST_TERM, holder: me })),
        Write::Put(Key::Leader, to_text(&leader)),
        Write::Put(Key::Sync, to_text(&sync)),
        Write::Put(ledger_key, ledger_text),
    ];
    if s.etcd.records.policy.is_none() {
        when.push(Compare::Missing(Key::Policy));
        let durability = if s.file.initialised { s.me.first_policy.durability } else { s.me.adopted_durability };
        let policy = PolicyRecord { v: VERSION, version: 1, policy: ClusterPolicy { durability, ..s.me.first_policy.clone() } };
        then.push(Write::Put(Key::Policy, to_text(&policy)));
    }
    Some(Txn { nonce, when, then })
}

fn cluster(s: &Snapshot, system_id: SystemId) -> ClusterRecord {
    ClusterRecord {
        v: VERSION,
        system_id,
        uuid: s.fresh.uuid.clone(),
        generation: 1,
        initialised_by: s.me.node.clone(),
        initialised_at: s.fresh.wall.clone(),
        unknown: Unknown::new(),
    }
}

/// A directory of our own making is on timeline 1; one that was there before brings its histories as the base.
fn first_timelines(s: &Snapshot, disk: &DiskFacts, tli: TimelineId) -> (Key, String) {
    if s.file.initialised {
        let record = TimelineRecord {
            v: VERSION,
            owner: s.myself(),
            term: FIRST_TERM,
            parent: None,
            switch: Some(Lsn::ZERO),
            state: TimelineState::Used,
            history: String::new(),
            unknown: Unknown::new(),
        };
        return (Key::Timeline(TimelineId::FIRST), to_text(&record));
    }
    let base = BaseTimelines { v: VERSION, newest: tli, owner: s.myself(), histories: disk.histories.clone(), unknown: Unknown::new() };
    (Key::TimelineBase, to_text(&base))
}
