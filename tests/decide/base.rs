//! The snapshots that scripts begin with: three nodes, n1 has served since term 3 on timeline 2.

use pgbaton::{
    decide::{
        decision::{Configuration, Follow, Memory},
        snapshot::{Attempt, CopyPlace, Etcd, Fresh, Lease, Me, Snapshot, Standing},
    },
    model::{
        failsafe::Peers,
        instance::{
            Armed, ControlData, ControlState, Cut, DataDir, DiskFacts, Ended, GuardStatus, KillMode, Process, Receiver, RecoveryTarget,
            Run, ServerFacts, ServerRole, Slot, StartAs, Walsender,
        },
        lsn::{Bytes, Lsn},
        moment::{Clocks, Moment, Span},
        node::{Address, Replica, SystemId},
        node_file::{Boundary, ClonePlace, Floors, NodeFile, Promoted},
        observed::Observed,
        policy::{ClusterPolicy, Durability},
        record::{
            ClusterRecord, Holder, Lag, LeaderRecord, LeaderState, MemberRecord, MemberRole, NodeRecord, PolicyRecord, Stored, SyncMode,
            SyncRecord, Tags, TermRecord, TimelineRecord, TimelineState, Unknown, VERSION,
        },
        records::Records,
        term::Term,
        timeline::TimelineId,
        wal_layout::Layout,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// `CLOCK_BOOTTIME` in every base; `CLOCK_MONOTONIC` is 100 s behind it.
pub(crate) const NOW: Moment = Moment::from_nanos(1_000_000_000_000);
const SLEPT: Span = Span::from_secs(100);

/// Where all WAL ends.
pub(crate) const END: Lsn = Lsn::new(0x300_0100);
/// What files and `nodes` keys have noted of it.
const NOTED: Lsn = Lsn::new(0x300_0000);

pub(crate) fn parsed<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

pub(crate) fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

pub(crate) fn address(node: u32) -> Address {
    parsed(&format!("10.0.0.{node}:5432"))
}

pub(crate) fn replica(node: u32) -> Replica {
    Replica::new(parsed(&format!("n{node}")), parsed(&format!("000000a{node}")))
}

/// The history file of timeline 2.
pub(crate) const HISTORY_2: &str = "1\t0/2000000\tno recovery target specified\n";

/// The snapshot of that name.
pub(crate) fn named(name: &str) -> Result<Snapshot, String> {
    Ok(match name {
        "n1 serves" => serves(),
        "n1 is down" => down(1),
        "n2 streams" => streams(2),
        "n3 streams" => streams(3),
        "n2 is down" => down(2),
        "n2 claims" => claims(),
        "a new cluster, n1 without data" => blank(),
        other => return Err(format!("no base is called {other:?}")),
    })
}

/// n1, primary.
pub(crate) fn serves() -> Snapshot {
    let mut s = node(1);
    s.file.claimed = Some(Term::new(3));
    s.file.promoted = Some(Promoted { tli: tli(2), term: Term::new(3) });
    let attempt = Attempt { nonce: parsed("L40"), term: Term::new(3), sent: NOW, hold: Span::from_millis(2_800), holds: true };
    s.lease = Lease { confirmed: Some(attempt), unsettled: Vec::new() };
    s.guard = Observed::known(
        GuardStatus {
            armed: Some(Armed { term: Term::new(3), until: NOW.plus(Span::from_millis(2_800)) }),
            primary_of: Some(Term::new(3)),
            ..guard(1, Process::Running { run: Run(1), start: StartAs::Standby, stopping: None })
        },
        NOW,
    );
    let walsender = |number: u32| Walsender {
        application_name: replica(number).application_name(),
        streaming: true,
        sent: Some(END),
        write: Some(END),
        flush: Some(END),
        replay: Some(END),
        replay_ms: Some(0),
        reply: Some(1),
    };
    let slot = |number: u32| Slot { name: replica(number).node.slot(), active: true, retained: 0, lost: false };
    s.server = Observed::known(
        ServerFacts {
            walsenders: vec![walsender(2), walsender(3)],
            slots: vec![slot(2), slot(3)],
            ..facts(ServerRole::Primary { tli: tli(2), insert: END, flush: END })
        },
        NOW,
    );
    s.configured = Some(configuration(1, None));
    s.confirmed = [(replica(2), NOW), (replica(3), NOW)].into();
    let term = Some(Term::new(3));
    s.memory = Memory { checkpointed: term, migrated: term, recorded: term, ..s.memory };
    s
}

/// A standby that streams from n1.
pub(crate) fn streams(number: u32) -> Snapshot {
    let mut s = node(number);
    s.guard = Observed::known(guard(number, Process::Running { run: Run(1), start: StartAs::Standby, stopping: None }), NOW);
    s.server = Observed::known(facts(standby(Some(1))), NOW);
    s.received_at = Some(NOW);
    s.configured = Some(configuration(number, Some(1)));
    s
}

/// n2 has claimed term 4 after n1 fell silent; its own promise stands in its file, its stream is cut, its WAL is scanned.
pub(crate) fn claims() -> Snapshot {
    let mut s = streams(2);
    let term = Term::new(4);
    (s.file.term, s.file.promised, s.file.claimed) = (term, term, Some(term));
    let records = Arc::make_mut(&mut s.etcd.records);
    let leader = LeaderRecord {
        term,
        holder: holder(2),
        nonce: parsed("L41"),
        seq: 41,
        state: LeaderState::Claimed,
        ..records.leader.clone().unwrap().record
    };
    records.leader = Some(Stored::written(leader, 110));
    records.term = Some(Stored::written(TermRecord { v: VERSION, term, holder: replica(2) }, 110));
    let attempt = Attempt { nonce: parsed("L41"), term, sent: NOW, hold: Span::from_millis(2_800), holds: true };
    s.lease.confirmed = Some(attempt);
    s.standing = Some(Standing { nonce: parsed("L41"), since: mono(), suspended: SLEPT });
    s.guard = Observed::known(
        GuardStatus {
            term,
            armed: Some(Armed { term, until: NOW.plus(Span::from_millis(2_800)) }),
            ..guard(2, Process::Running { run: Run(1), start: StartAs::Standby, stopping: None })
        },
        NOW,
    );
    s.server = Observed::known(facts(standby(None)), NOW);
    s.configured = Some(configuration(2, None));
    s.whole = Some(pgbaton::decide::snapshot::Scanned {
        whole: pgbaton::model::instance::Whole { tli: tli(2), lsn: END },
        run: Some(Run(1)),
        at: NOW,
    });
    s
}

/// PostgreSQL is down under a guard that never started one, as after a boot; n1's directory is a crashed primary's.
pub(crate) fn down(number: u32) -> Snapshot {
    let mut s = node(number);
    s.guard = Observed::known(guard(number, Process::Empty { last: None }), NOW);
    let state = if number == 1 { ControlState::InProduction } else { ControlState::InArchiveRecovery };
    s.disk = Observed::known(DataDir::Present(disk(state)), NOW);
    if number == 1 {
        s.file.claimed = Some(Term::new(3));
        s.file.promoted = Some(Promoted { tli: tli(2), term: Term::new(3) });
        // A guard of before the boot.
        Arc::make_mut(&mut s.etcd.records).leader.as_mut().unwrap().record.holder.guard = parsed("g0");
    }
    let records = Arc::make_mut(&mut s.etcd.records);
    records.leader = records.leader.take().map(|leader| Stored::written(leader.record, leader.revision));
    s
}

/// No cluster, no data.
pub(crate) fn blank() -> Snapshot {
    let mut s = down(1);
    s.file = NodeFile { starts: 1, ..NodeFile::fresh(parsed("orders"), parsed("n1"), parsed("000000a1")) };
    s.etcd.records = Arc::new(Records { revision: 1, ..Records::default() });
    s.standing = None;
    s.boundary = None;
    s.histories = Arc::default();
    s.disk = Observed::known(DataDir::Empty, NOW);
    s.memory = Memory::default();
    s
}

fn mono() -> Moment {
    NOW.minus(SLEPT)
}

fn node(number: u32) -> Snapshot {
    let me = replica(number);
    Snapshot {
        now: Clocks { boot: NOW, mono: mono() },
        me: Me {
            node: me.node.clone(),
            agent: parsed(&format!("agent{number}")),
            postgres: address(number),
            api: None,
            zone: String::new(),
            tags: Tags::default(),
            version: "0.1.0".to_owned(),
            first_policy: policy(),
            adopted_durability: Durability::Async,
            major: 15,
            boot: parsed("b1"),
            boot_is_named: true,
            peer_key: true,
        },
        file: NodeFile {
            starts: 1,
            term: Term::new(3),
            promised: Term::new(3),
            boundary: Some(Boundary { tli: tli(2), lsn: NOTED }),
            floors: Floors { uuid: Some(parsed("u1")), generation: 1, revision: 100, seq: 40, sync_term: Term::new(3), term: Term::new(3) },
            ..NodeFile::fresh(parsed("orders"), me.node, me.data)
        },
        policy: policy(),
        guard: Observed::never(),
        former_guard: None,
        etcd: Etcd { records: Arc::new(records()), answered: Observed::known((), NOW), suspect: None, went_back: false },
        lease: Lease::default(),
        standing: Some(Standing { nonce: parsed("L40"), since: mono(), suspended: SLEPT }),
        server: Observed::never(),
        disk: Observed::never(),
        place: Some(CopyPlace {
            source: parsed("n2"),
            size: Bytes::new(8 << 30),
            place: ClonePlace::Beside,
            why: String::new(),
            free: Bytes::new(90 << 30),
            at: NOW,
        }),
        completed: None,
        whole: None,
        boundary: Some(Boundary { tli: tli(2), lsn: END }),
        received_at: None,
        configured: None,
        layout: Layout::DEFAULT,
        inconsistent_since: None,
        shown: None,
        probed: None,
        sync_unsettled: false,
        sync_written: Vec::new(),
        peers: Peers::default(),
        histories: Arc::new([(tli(2), HISTORY_2.to_owned())].into()),
        confirmed: BTreeMap::new(),
        tasks: BTreeMap::new(),
        failures: BTreeMap::new(),
        stopping: false,
        fresh: Fresh { nonce: parsed("fresh"), data: parsed("000000ff"), uuid: parsed("u9"), wall: "2026-01-01T00:00:00Z".to_owned() },
        memory: Memory { registered: true, ..Memory::default() },
    }
}

fn guard(number: u32, process: Process) -> GuardStatus {
    GuardStatus {
        incarnation: parsed(&format!("g{number}")),
        term: Term::new(3),
        armed: None,
        primary_of: None,
        process,
        kill: KillMode::Namespace,
        fenced: true,
        starting: false,
        cut: Cut::From(BTreeSet::new()),
    }
}

fn facts(role: ServerRole) -> ServerFacts {
    ServerFacts {
        run: Run(1),
        version_num: 150_004,
        system_id: SystemId::new(7_000),
        role,
        walsenders: Vec::new(),
        slots: Vec::new(),
        pending_restart: Vec::new(),
        oldest_wal: None,
        sync_names: String::new(),
        weak_commits: None,
        waiting: None,
    }
}

/// In recovery on timeline 2, everything replayed; streaming from that node.
pub(crate) fn standby(from: Option<u32>) -> ServerRole {
    let receiver = from.map(|from| Receiver { streaming: true, sender: Some(address(from)), tli: Some(tli(2)), latest_end: Some(END) });
    let conninfo = from.map(|from| format!("host=10.0.0.{from} port=5432")).unwrap_or_default();
    ServerRole::Standby {
        tli: tli(2),
        receive: Some(END),
        replay: END,
        receiver,
        conninfo,
        target: RecoveryTarget::Latest,
        pause: None,
        replay_ms: 0,
    }
}

fn configuration(number: u32, follow: Option<u32>) -> Configuration {
    let policy = policy();
    Configuration {
        follow: follow.map(|of| Follow { node: replica(of).node, address: address(of), slot: Some(replica(number).node.slot()) }),
        recovery: RecoveryTarget::Latest,
        application_name: replica(number).application_name(),
        sync_names: String::new(),
        members_only: false,
        parameters: policy.parameters.clone(),
        hba: policy.hba.clone(),
        members: (1..=3).map(|number| address(number).host).collect(),
        slots: policy.member_slot_retention.clone(),
        wait: policy.timers().wait,
    }
}

pub(crate) fn disk(state: ControlState) -> DiskFacts {
    DiskFacts {
        copied: None,
        major: 15,
        control: ControlData {
            system_id: SystemId::new(7_000),
            state,
            checkpoint_tli: tli(2),
            checkpoint: Lsn::new(0x2F0_0060),
            redo: Lsn::new(0x2F0_0028),
            min_recovery: Lsn::ZERO,
            min_recovery_tli: None,
            can_rewind: true,
            wal_segment: Layout::DEFAULT.segment,
        },
        standby_signal: true,
        backup_label: false,
        started: true,
        rewind: None,
        histories: [(tli(2), HISTORY_2.to_owned())].into(),
    }
}

/// How a run ended that nobody had asked to end.
pub(crate) fn ended(run: Run, start: StartAs, how: &str) -> Ended {
    Ended { run, start, how: how.to_owned(), wanted: false }
}

pub(crate) fn holder(number: u32) -> Holder {
    let of = replica(number);
    Holder { node: of.node, data: of.data, guard: parsed(&format!("g{number}")), postgres: address(number) }
}

fn timeline(owner: u32, term: u64, parent: Option<u32>, switch: &str, history: &str) -> Stored<TimelineRecord> {
    Stored::written(
        TimelineRecord {
            v: VERSION,
            owner: replica(owner),
            term: Term::new(term),
            parent: parent.map(tli),
            switch: Some(parsed(switch)),
            state: TimelineState::Used,
            history: history.to_owned(),
            unknown: Unknown::new(),
        },
        50,
    )
}

fn member(number: u32) -> Stored<MemberRecord> {
    Stored::written(
        MemberRecord {
            v: VERSION,
            data: replica(number).data,
            postgres: address(number),
            agent: None,
            boot: None,
            api: Some(format!("http://10.0.0.{number}:8008")),
            role: if number == 1 { MemberRole::Primary } else { MemberRole::Replica },
            state: "running".to_owned(),
            tli: Some(tli(2)),
            lsn: END,
            replay: END,
            lag: Lag::default(),
            replicas: std::collections::BTreeMap::new(),
            term: Term::new(3),
            zone: String::new(),
            tags: Tags::default(),
            version: "0.1.0".to_owned(),
            postgres_version: "15.4".to_owned(),
            fencing: String::new(),
            pending_restart: false,
            oldest_wal: None,
            acknowledges_otherwise: false,
            finds_gone: None,
            acts_in: (number == 1).then(|| Term::new(3)),
            answer: None,
            roles_missing: false,
            unknown: Unknown::new(),
        },
        90,
    )
}

fn records() -> Records {
    let term = Term::new(3);
    let cluster = ClusterRecord {
        v: VERSION,
        system_id: SystemId::new(7_000),
        uuid: parsed("u1"),
        generation: 1,
        initialised_by: parsed("n2"),
        initialised_at: "2026-01-01T00:00:00Z".to_owned(),
        unknown: Unknown::new(),
    };
    let leader = LeaderRecord {
        term,
        holder: holder(1),
        nonce: parsed("L40"),
        seq: 40,
        hold: Span::from_millis(2_800),
        wait: Span::from_millis(3_300),
        tli: tli(2),
        lsn: END,
        dead: None,
        wal_end: None,
        state: LeaderState::Serving,
        failovers: None,
        unknown: Unknown::new(),
    };
    let sync = SyncRecord {
        v: VERSION,
        term,
        nonce: parsed("S1"),
        primary: replica(1),
        address: address(1),
        mode: SyncMode::Async,
        k: 0,
        voters: Vec::new(),
        electable: vec![replica(2), replica(3)],
        unknown: Unknown::new(),
    };
    let node = |number| NodeRecord {
        v: VERSION,
        data: replica(number).data,
        starts: 1,
        agent: None,
        whole: NOTED,
        tli: Some(tli(2)),
        sync_ready: false,
        unknown: Unknown::new(),
    };
    Records {
        revision: 100,
        bootstrap: None,
        doubt: None,
        cluster: Some(Stored::written(cluster, 10)),
        term: Some(Stored::written(TermRecord { v: VERSION, term, holder: replica(1) }, 50)),
        leader: Some(Stored::written(leader, 100)),
        sync: Some(Stored::written(sync, 60)),
        timelines: Arc::new([(tli(1), timeline(2, 1, None, "0/0", "")), (tli(2), timeline(1, 3, Some(1), "0/2000000", HISTORY_2))].into()),
        base: None,
        nodes: (1..=3).map(|number| (replica(number).node, Stored::written(node(number), 20))).collect(),
        promises: BTreeMap::new(),
        intent: None,
        policy: Some(Stored::written(PolicyRecord { v: VERSION, version: 1, policy: policy() }, 10)),
        members: (1..=3).map(|number| (replica(number).node, member(number))).collect(),
        unreadable: BTreeMap::new(),
    }
}

/// That of a cluster whose commits wait for nobody, unless a script says otherwise.
fn policy() -> ClusterPolicy {
    ClusterPolicy { durability: Durability::Async, ..ClusterPolicy::default() }
}
