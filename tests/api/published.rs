//! A hand-made pair of snapshot and decision: three nodes, of which one is looked at.

use pgbaton::{
    agent::handle::Published,
    clock,
    decide::{
        decision::{Decision, Memory, Reason, ReasonKind, Routing, Writable},
        snapshot::{Attempt, Etcd, Fresh, Lease, Me, Snapshot, Standing},
    },
    model::{
        instance::{
            Armed, Cut, GuardStatus, KillMode, Process, Receiver, RecoveryTarget, Run, ServerFacts, ServerRole, StartAs, Walsender,
        },
        key::Key,
        lsn::Lsn,
        moment::{Clocks, Moment, Span},
        node::{NodeName, SystemId},
        node_file::NodeFile,
        observed::Observed,
        policy::ClusterPolicy,
        record::Tags,
        records::Records,
        term::Term,
        timeline::TimelineId,
    },
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// What the tests vary.
pub(super) struct Builder {
    pub(super) node: &'static str,
    pub(super) now: Clocks,
    pub(super) primary: bool,
    pub(super) running: bool,
    pub(super) until: Option<Moment>,
    pub(super) streaming: bool,
    /// Replayed so many bytes less than the primary has written.
    pub(super) behind: u64,
    pub(super) tags: Tags,
    pub(super) policy: ClusterPolicy,
    pub(super) reasons: Vec<Reason>,
    pub(super) intent: bool,
}

pub(super) const END: u64 = 0x0500_0000;

pub(super) fn primary(lease: Span) -> Builder {
    let now = clock::now();
    Builder { node: "n1", primary: true, until: Some(now.boot.plus(lease)), ..base(now) }
}

pub(super) fn replica() -> Builder {
    Builder { node: "n2", primary: false, until: None, ..base(clock::now()) }
}

fn base(now: Clocks) -> Builder {
    Builder {
        node: "n1",
        now,
        primary: true,
        running: true,
        until: None,
        streaming: true,
        behind: 0,
        tags: Tags::default(),
        policy: ClusterPolicy::default(),
        reasons: Vec::new(),
        intent: false,
    }
}

pub(super) fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

pub(super) fn reason(kind: ReasonKind, id: &str, text: &str) -> Reason {
    Reason { id: id.to_owned(), text: text.to_owned(), kind }
}

fn data(node: &str) -> String {
    format!("0000000{}", &node[1..])
}

fn tli() -> TimelineId {
    TimelineId::new(2).expect("a timeline")
}

impl Builder {
    pub(super) fn build(self) -> Published {
        let routing =
            Routing { writes: self.until.map(|until| Writable { term: Term::new(5), until }), reads: self.running && !self.primary };
        let decision = Decision {
            actions: Vec::new(),
            reasons: self.reasons.clone(),
            wake_at: self.now.boot,
            held: BTreeSet::new(),
            hurry: false,
            routing,
            memory: Memory::default(),
        };
        Published { snapshot: self.snapshot(), decision, heard: BTreeMap::new() }
    }

    fn snapshot(self) -> Snapshot {
        let now = self.now;
        let mut file = NodeFile::fresh("orders".parse().expect("name"), name(self.node), data(self.node).parse().expect("id"));
        file.term = Term::new(5);
        let confirmed = self.until.map(|until| Attempt {
            nonce: "l9".parse().expect("nonce"),
            term: Term::new(5),
            sent: until.minus(Span::from_millis(2_800)),
            hold: Span::from_millis(2_800),
            holds: true,
        });
        Snapshot {
            now,
            me: self.me(),
            file,
            policy: self.policy.clone(),
            guard: Observed::known(self.guard(), now.boot),
            former_guard: None,
            etcd: Etcd { records: self.records().into(), answered: Observed::known((), now.boot), suspect: None, went_back: false },
            lease: Lease { confirmed, unsettled: Vec::new() },
            standing: Some(Standing { nonce: "l9".parse().expect("nonce"), since: now.mono, suspended: now.suspended() }),
            server: if self.running {
                Observed::known(self.facts(), now.boot)
            } else {
                Observed::Unknown { since: now.boot, why: "it starts".to_owned() }
            },
            disk: Observed::never(),
            place: None,
            completed: None,
            whole: None,
            boundary: None,
            received_at: None,
            configured: None,
            layout: pgbaton::model::wal_layout::Layout::DEFAULT,
            inconsistent_since: None,
            shown: None,
            probed: None,
            sync_unsettled: false,
            sync_written: Vec::new(),
            peers: pgbaton::model::failsafe::Peers::default(),
            histories: std::sync::Arc::default(),
            confirmed: BTreeMap::new(),
            tasks: BTreeMap::new(),
            failures: BTreeMap::new(),
            stopping: false,
            fresh: Fresh {
                nonce: "f1".parse().expect("nonce"),
                data: "ffffffff".parse().expect("id"),
                uuid: "u2".parse().expect("uuid"),
                wall: "2026-01-02T03:04:05.678Z".to_owned(),
            },
            memory: Memory::default(),
        }
    }

    fn me(&self) -> Me {
        Me {
            node: name(self.node),
            agent: "a1".parse().expect("id"),
            postgres: format!("10.0.0.{}:5432", &self.node[1..]).parse().expect("address"),
            api: None,
            zone: "a".to_owned(),
            tags: self.tags.clone(),
            version: "0.1.0".to_owned(),
            first_policy: ClusterPolicy::default(),
            adopted_durability: pgbaton::model::policy::Durability::Async,
            major: 15,
            boot: "b1".parse().expect("id"),
            boot_is_named: true,
            peer_key: false,
        }
    }

    fn guard(&self) -> GuardStatus {
        let start = if self.primary { StartAs::Primary } else { StartAs::Standby };
        GuardStatus {
            incarnation: format!("g{}", &self.node[1..]).parse().expect("id"),
            term: Term::new(5),
            armed: self.until.map(|until| Armed { term: Term::new(5), until }),
            primary_of: self.primary.then(|| Term::new(5)),
            process: Process::Running { run: Run(1), start, stopping: None },
            kill: KillMode::Namespace,
            fenced: true,
            starting: false,
            cut: Cut::From(BTreeSet::new()),
        }
    }

    fn facts(&self) -> ServerFacts {
        let end = Lsn::new(END);
        let replay = Lsn::new(END - self.behind);
        let receiver = Receiver { streaming: self.streaming, sender: None, tli: Some(tli()), latest_end: Some(end) };
        let role = if self.primary {
            ServerRole::Primary { tli: tli(), insert: end, flush: end }
        } else {
            ServerRole::Standby {
                tli: tli(),
                receive: Some(end),
                replay,
                receiver: Some(receiver),
                conninfo: "host=10.0.0.1".to_owned(),
                target: RecoveryTarget::Latest,
                pause: None,
                replay_ms: 0,
            }
        };
        let walsender = |node: &str, behind: u64| Walsender {
            application_name: format!("{node}_{}", data(node)),
            streaming: true,
            sent: Some(end),
            write: Some(end),
            flush: Some(end),
            replay: Some(Lsn::new(END - behind)),
            replay_ms: Some(behind / 1024),
            reply: Some(1),
        };
        ServerFacts {
            run: Run(1),
            version_num: 150_006,
            system_id: SystemId::new(7_000_000_000_000_000_001),
            role,
            walsenders: if self.primary { vec![walsender("n2", 0), walsender("n3", 2 << 20)] } else { Vec::new() },
            slots: Vec::new(),
            pending_restart: Vec::new(),
            oldest_wal: None,
            sync_names: String::new(),
            weak_commits: None,
            waiting: None,
        }
    }

    fn records(&self) -> Records {
        let mut records = Records::default();
        let replica = |node: &str| json!({ "node": node, "data": data(node) });
        let mut put = |path: &str, value: serde_json::Value| {
            let key: Key = path.parse().expect("a key");
            records.apply(&key, Some(&value.to_string()), 10);
        };
        put(
            "cluster",
            json!({"v": 1, "system_id": "7000000000000000001", "uuid": "u1", "generation": 1, "initialised_by": "n1", "initialised_at": "2026-01-01T00:00:00.000Z"}),
        );
        put(
            "leader",
            json!({
                "v": 1, "term": 5, "holder": {"node": "n1", "data": data("n1"), "guard": "g1", "postgres": "10.0.0.1:5432"}, "nonce": "l9", "seq": 9,
                "hold_ms": 2800, "wait_ms": 3300, "tli": 2, "lsn": "0/4FFFF00", "state": "serving"
            }),
        );
        put(
            "sync",
            json!({
                "v": 1, "term": 5, "nonce": "s1", "primary": replica("n1"), "address": "10.0.0.1:5432", "mode": "async", "k": 0, "voters": [],
                "electable": [replica("n2")]
            }),
        );
        put("policy", json!({"v": 1, "version": 3, "policy": self.policy}));
        for node in ["n1", "n2", "n3", "n4"] {
            put(&format!("nodes/{node}"), json!({"v": 1, "data": data(node), "starts": 1, "whole": "0/4000000", "tli": 2}));
        }
        for (node, role, state) in [("n1", "primary", "running"), ("n2", "replica", "streaming"), ("n3", "replica", "streaming")] {
            let lag = if node == "n3" {
                json!({"replay": 2 << 20, "write": 0, "flush": 0, "replay_ms": 2048})
            } else {
                json!({"replay": 0, "replay_ms": 0})
            };
            put(
                &format!("members/{node}"),
                json!({
                    "v": 1, "data": data(node), "postgres": format!("10.0.0.{}:5432", &node[1..]), "api": format!("10.0.0.{}:8008", &node[1..]),
                    "role": role, "state": state, "tli": 2, "lsn": "0/5000000", "replay": "0/5000000", "lag": lag, "term": 5, "zone": "a", "tags": {},
                    "version": "0.1.0", "postgres_version": "15.6", "fencing": "kernel deadline (namespace)", "pending_restart": node == "n3",
                    "acts_in": (node == "n1").then_some(5)
                }),
            );
        }
        if self.intent {
            put(
                "intent",
                json!({"v": 1, "id": "i1", "request": {"kind": "remove", "node": "n4"}, "term": 5, "actor": "ann", "at": "2026-01-02T03:04:05.000Z"}),
            );
        }
        assert!(records.unreadable.is_empty(), "{:?}", records.unreadable);
        records
    }
}
