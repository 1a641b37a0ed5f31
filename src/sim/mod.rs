//! PROVING. The real decisions and the real state on virtual time, against everything that goes wrong.
//!
//! May use [`model`](crate::model), [`decide`](crate::decide) and [`agent::state`](crate::agent::state) only. One seed decides everything: no clock,
//! no thread, no map without an order. Equal seeds give equal traces, byte for byte.
//!
//! In reading order:
//! - [`run`]: one seed, from the first start to the verdict; [`Options`], [`Outcome`];
//! - `world`: virtual time and the loop of each agent; `node`: one host; `executor`: what actions do;
//! - `guard`, `server`, `wal`: the fence, PostgreSQL, and its log; `store`: etcd; `network`; `peers`: what agents ask each other;
//! - `faults`, `workload`: what goes wrong, and who writes meanwhile; `operators`: who pauses, resumes and fails over; `shrink`: which faults a
//!   failing seed needs;
//! - `plans`: one plan, interrupted after one step; [`interrupt`];
//! - `mutation`: rules that are broken on purpose, to see that an oracle notices;
//! - `settle`: what must be so in the end; `oracle`: what must never happen (`fence`: by whom a server may act; `votes`: what promises are worth); `coverage`: what was exercised; `trace`: what happened; `random`: the one source of chance.

mod coverage;
mod executor;
mod faults;
mod fence;
mod guard;
mod mutation;
mod network;
mod node;
mod operators;
mod oracle;
mod peers;
mod plans;
mod random;
mod server;
mod settle;
mod shrink;
mod store;
mod trace;
mod votes;
mod wal;
mod workload;
mod world;

pub use coverage::Coverage;
pub use mutation::Mutation;
pub use plans::{Alone, Cut, Interrupted, Plan, alone, interrupt, sick_claimant};
pub use shrink::{Shrunk, shrink};

use crate::model::{
    moment::Span,
    policy::{AntiFlap, ClusterPolicy, CrashPolicy, Durability, Preset, Reclone},
};
use random::Random;
use std::collections::{BTreeMap, BTreeSet};
use world::World;

const SECOND: u64 = 1_000_000_000;

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long faults are injected, in seconds of virtual time.
    pub seconds: u64,
    /// Whether anything goes wrong at all.
    pub faults: bool,
    /// How long the cluster may take after the last fault until all is well, in seconds.
    pub patience: u64,
    /// Keep the trace's text.
    pub trace: bool,
    /// A rule that is broken on purpose: some oracle must notice.
    pub mutation: Mutation,
    /// Which faults there are.
    pub swarm: Swarm,
    /// What commits wait for.
    pub durability: Durability,
    /// PostgreSQL as strict about comment-only history files at a start as about real ones.
    pub burnt_ids_are_fatal: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seconds: 600,
            faults: true,
            patience: 120,
            trace: false,
            mutation: Mutation::None,
            swarm: Swarm::All,
            durability: Durability::Async,
            burnt_ids_are_fatal: true,
        }
    }
}

/// What goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swarm {
    /// Everything that the model knows.
    All,
    /// The policy changes all the time, and answers are lost: for the rules about holds and waits that differ.
    Policy,
    /// Operators are at work, and answers are lost.
    Operators,
    /// etcd goes back, is wiped, forgets and repeats.
    Etcd,
    /// Hosts that sleep or are frozen, and clocks that run wrong.
    Clocks,
    /// Data and node files that go back, or are lost.
    Data,
    /// Agents that are replaced while their writes are still on their way, and networks in pieces.
    Queues,
    /// Members that leave while others do not see it.
    Members,
    /// Primaries that die before etcd has heard of their promotion.
    Promotions,
    /// Guards that stand still while PostgreSQL is started and stopped.
    Guards,
}

impl Swarm {
    /// All of them, `All` first.
    pub const EVERY: [Self; 10] = [
        Self::All,
        Self::Policy,
        Self::Operators,
        Self::Etcd,
        Self::Clocks,
        Self::Data,
        Self::Queues,
        Self::Members,
        Self::Promotions,
        Self::Guards,
    ];
}

impl std::str::FromStr for Swarm {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::EVERY
            .into_iter()
            .find(|swarm| format!("{swarm:?}").eq_ignore_ascii_case(name))
            .ok_or_else(|| format!("there is no swarm {name}"))
    }
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which run.
    pub seed: u64,
    /// What an oracle found, with its time; empty when all was well.
    pub violations: Vec<String>,
    /// Alarms that decisions raised, and how often.
    pub alarms: BTreeMap<String, u64>,
    /// What was exercised.
    pub coverage: Coverage,
    /// Of every line of the trace.
    pub digest: u64,
    /// The trace, if it was kept.
    pub trace: String,
    /// The faults that struck: their place in the schedule, and what they were.
    pub struck: Vec<(usize, String)>,
    /// By kind of fault: how often it struck, and how long nobody took writes right after it, in milliseconds, each time that it was so.
    pub hits: BTreeMap<String, (u64, Vec<u64>)>,
}

/// Runs one seed from the first start to the verdict.
pub fn run(seed: u64, options: Options) -> Outcome {
    run_without(seed, options, &BTreeSet::new())
}

/// The same without these faults of its schedule: all others are as they were.
pub fn run_without(seed: u64, options: Options, dropped: &BTreeSet<usize>) -> Outcome {
    let policy = policy_of(&mut Random::new(seed ^ 0x907C));
    run_by(seed, options, dropped, ClusterPolicy { durability: options.durability, ..policy })
}

/// One seed with an operator's own policy, and with what commits wait for in it.
pub fn run_with(seed: u64, options: Options, policy: &ClusterPolicy) -> Outcome {
    run_by(seed, Options { durability: policy.durability, ..options }, &BTreeSet::new(), policy.clone())
}

fn run_by(seed: u64, options: Options, dropped: &BTreeSet<usize>, policy: ClusterPolicy) -> Outcome {
    let mut draw = Random::new(seed ^ 0x5EED);
    let nodes = draw.pick(&[3, 3, 3, 3, 3, 2, 1, 5]);
    let mut world = World::new(seed, options, policy, nodes);
    for node in 0..nodes {
        let after = world.random.millis(0, 3_000);
        world.later(after, move |world| world.start_agent(node));
    }
    watch_leases(&mut world);
    world.back_up();
    world.save_hosts();
    world.run_until(20 * SECOND);
    let end = (20 + options.seconds) * SECOND;
    if options.faults {
        world.torment(faults::schedule(seed, options.swarm, 20 * SECOND, end), dropped);
    }
    world.run_until(end);
    world.coverage.writes = world.store.revision;
    world.heal();
    world.withdraw();
    world.tend();
    settle::settle(&mut world, end, options.patience);
    world.count_lost();
    Outcome {
        seed,
        violations: world.oracle.violations,
        alarms: world.oracle.alarms,
        coverage: world.coverage,
        digest: world.trace.digest(),
        trace: world.trace.into_text(),
        struck: world.struck,
        hits: world.hits,
    }
}

fn policy_of(draw: &mut Random) -> ClusterPolicy {
    ClusterPolicy {
        preset: draw.pick(&[
            Preset::Default,
            Preset::Default,
            Preset::Default,
            Preset::Default,
            Preset::Fast,
            Preset::Fast,
            Preset::Fast,
            Preset::Wan,
        ]),
        failsafe: draw.pick(&[true, true, true, true, true, true, true, false]),
        crash_policy: draw.pick(&[CrashPolicy::Lossless, CrashPolicy::Lossless, CrashPolicy::Failover, CrashPolicy::Restart]),
        reclone: Reclone::WhenRewindFails,
        stop_timeout: Span::from_secs(10),
        primary_start_timeout: Span::from_secs(15),
        durability: Durability::Async,
        anti_flap: AntiFlap { failovers: draw.pick(&[0, 0, 3, 6]), ..AntiFlap::default() },
        ..ClusterPolicy::default()
    }
}

fn watch_leases(world: &mut World) {
    world.judge_leases();
    world.later(20_000_000, watch_leases);
}
