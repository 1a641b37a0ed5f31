//! What a run exercised (oracle O19).

use super::Swarm;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// How often what was exercised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Decisions taken.
    pub steps: u64,
    /// Claims sent.
    pub claims: u64,
    /// Promotions that ended.
    pub promotions: u64,
    /// Starts as primary that ended.
    pub restarts_in_place: u64,
    /// Changes of the node that serves, after the first.
    pub leaderships: u64,
    /// Rewinds begun.
    pub rewinds: u64,
    /// Clones begun.
    pub clones: u64,
    /// Directories initialised.
    pub initdbs: u64,
    /// Leases adopted by a new agent.
    pub adoptions: u64,
    /// Releases sent.
    pub releases: u64,
    /// Claims handed on.
    pub handoffs: u64,
    /// Claims by a quorum that did not sit out the lease.
    pub deposed: u64,
    /// Fetches of WAL from a voter that could not lead.
    pub fetches: u64,
    /// Questions to peers while etcd was silent.
    pub asked: u64,
    /// Of these, answered with a yes.
    pub acked: u64,
    /// Transactions of unknown outcome.
    pub ambiguous: u64,
    /// Claims of unknown outcome.
    pub ambiguous_claims: u64,
    /// Guards that died by their deadline.
    pub deadlines: u64,
    /// Verbs that a guard had not read when nobody waited for them any more.
    pub unread: u64,
    /// Agents killed between two actions.
    pub boundary_crashes: u64,
    /// Timeline ids burnt.
    pub burnt: u64,
    /// Commits acknowledged.
    pub acks: u64,
    /// Of these, while nothing might be lost.
    pub lossless: u64,
    /// Of these, not in the final history.
    pub lost: u64,
    /// Revisions of etcd while faults were injected.
    pub writes: u64,
    /// Requests of operators.
    pub requests: u64,
    /// Of these, done.
    pub requests_done: u64,
    /// Pauses that began.
    pub pauses: u64,
    /// Pauses that ended with the same holder serving.
    pub resumptions: u64,
    /// Faults injected.
    pub faults: u64,
    /// Machines and data directories set back to a former state.
    pub rolled_back: u64,
    /// Machines of which a copy was started.
    pub copied: u64,
    /// Node files lost.
    pub files_lost: u64,
    /// Times that etcd was restored to an older state.
    pub etcd_restored: u64,
    /// Times that all records were deleted.
    pub etcd_wiped: u64,
    /// Keys that somebody deleted.
    pub keys_deleted: u64,
    /// Times that an operator made the records anew.
    pub etcd_recovered: u64,
    /// Commits acknowledged by a server that was frozen, by a time that was over.
    pub after_freeze: u64,
    /// Times that somebody set `synchronous_standby_names` by hand.
    pub names_by_hand: u64,
    /// Commits acknowledged by such names.
    pub acks_by_hand: u64,
    /// The most writes of etcd by one agent within five seconds.
    pub most_writes: u64,
    /// By what the node was that a fault struck, and by the state of `leader`: how often each kind did.
    pub struck: BTreeMap<(&'static str, &'static str), BTreeMap<String, u64>>,
    /// Rewinds and copies that ended half-way.
    pub half_done: u64,
    /// Promotions that took longer than a second.
    pub late_promotions: u64,
    /// How long it took after the last fault until all was well, in milliseconds.
    pub recovery_ms: u64,
}

impl Coverage {
    /// All of them, by what people call them.
    pub fn figures(&self) -> [(&'static str, u64); 44] {
        [
            ("faults", self.faults),
            ("decisions", self.steps),
            ("claims", self.claims),
            ("promotions", self.promotions),
            ("restarts in place", self.restarts_in_place),
            ("leadership changes", self.leaderships),
            ("rewinds", self.rewinds),
            ("clones", self.clones),
            ("initdb", self.initdbs),
            ("adoptions", self.adoptions),
            ("releases", self.releases),
            ("handoffs", self.handoffs),
            ("peers asked", self.asked),
            ("acknowledged", self.acked),
            ("unknown outcomes", self.ambiguous),
            ("unknown claims", self.ambiguous_claims),
            ("deadlines", self.deadlines),
            ("verbs never read", self.unread),
            ("crashes at a boundary", self.boundary_crashes),
            ("deposed", self.deposed),
            ("fetches", self.fetches),
            ("requests", self.requests),
            ("requests done", self.requests_done),
            ("pauses", self.pauses),
            ("resumptions", self.resumptions),
            ("burnt timelines", self.burnt),
            ("commits acknowledged", self.acks),
            ("of these, for good", self.lossless),
            ("lost", self.lost),
            ("recovery in ms", self.recovery_ms),
            ("writes of etcd", self.writes),
            ("data set back", self.rolled_back),
            ("machines copied", self.copied),
            ("node files lost", self.files_lost),
            ("etcd restored", self.etcd_restored),
            ("etcd wiped", self.etcd_wiped),
            ("keys deleted", self.keys_deleted),
            ("etcd recovered", self.etcd_recovered),
            ("acks after a freeze", self.after_freeze),
            ("names set by hand", self.names_by_hand),
            ("acks by such names", self.acks_by_hand),
            ("most writes in 5s", self.most_writes),
            ("half rewinds, copies", self.half_done),
            ("late promotions", self.late_promotions),
        ]
    }

    /// What all of these seeds exercised, and the median one, as lines of a table; nothing where there are none.
    pub fn table(of: &[Self]) -> String {
        let all: Vec<_> = of.iter().map(Self::figures).collect();
        let Some(first) = all.first() else { return String::new() };
        let mut text = String::new();
        for (at, (name, _)) in first.iter().enumerate() {
            let mut values: Vec<u64> = all.iter().map(|figures| figures[at].1).collect();
            values.sort_unstable();
            let (sum, median) = (values.iter().sum::<u64>(), values[values.len() / 2]);
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{name:>22}: {sum:>9} in all, {median:>6} in the median seed");
        }
        for ((role, state), kinds) in Self::all_struck(of) {
            let times = kinds.values().sum::<u64>();
            let _ = writeln!(text, "{:>22}: {times:>9} faults of {} kinds while `leader` was {state}", format!("a {role}"), kinds.len());
        }
        text
    }

    /// What a few hundred seeds of all kinds should have exercised, and did not: a figure that stays at zero, a kind of fault that struck no primary or
    /// no standby while one served, a state of `leader` in which next to nothing went wrong.
    pub fn gaps(of: &[Self]) -> Vec<String> {
        let mut found = Vec::new();
        for (at, (name, _)) in Self::default().figures().iter().enumerate() {
            if of.iter().all(|coverage| coverage.figures()[at].1 == 0) {
                found.push(format!("never exercised: {name}"));
            }
        }
        let struck = Self::all_struck(of);
        let drawn = Swarm::All.kinds().iter().map(|kind| format!("{kind:?}"));
        let kinds: BTreeSet<String> = struck.values().flat_map(|kinds| kinds.keys().cloned()).chain(drawn).collect();
        for role in ["primary", "standby"] {
            let there = struck.get(&(role, "serving"));
            let never = kinds.iter().filter(|kind| there.is_none_or(|there| !there.contains_key(*kind)));
            found.extend(never.map(|kind| format!("{kind} never struck a {role} while `leader` was serving")));
        }
        for state in ["claimed", "serving", "vacant", "paused", "missing"] {
            let there: BTreeSet<&String> = struck.iter().filter(|((_, of), _)| *of == state).flat_map(|(_, kinds)| kinds.keys()).collect();
            if there.len() * 2 < kinds.len() {
                found.push(format!("{} of {} kinds of fault struck while `leader` was {state}", there.len(), kinds.len()));
            }
        }
        found
    }

    /// What was struck in all of these seeds.
    fn all_struck(of: &[Self]) -> BTreeMap<(&'static str, &'static str), BTreeMap<String, u64>> {
        let mut all: BTreeMap<_, BTreeMap<String, u64>> = BTreeMap::new();
        for (pair, kinds) in of.iter().flat_map(|coverage| &coverage.struck) {
            let sums = all.entry(*pair).or_default();
            kinds.iter().for_each(|(kind, times)| *sums.entry(kind.clone()).or_default() += times);
        }
        all
    }
}
