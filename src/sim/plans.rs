//! One plan, interrupted after one step: the agent dies, or an answer is lost, and what follows is decided from what is there.
//!
//! No other fault: the step at which it happens is the only difference between two runs.

use super::{Options, SECOND, policy_of, random::Random, watch_leases, world::World};
use crate::{
    decide::decision::{Action, Purpose},
    model::{
        policy::{ClusterPolicy, CrashPolicy, Durability},
        record::LeaderState,
        request::Request,
        term::Term,
    },
};

/// Steps of a plan are looked for until then: what an interruption leaves has to come right before the end.
const LAST_STEP: u64 = 40 * SECOND;

/// What a cluster of three is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The first start.
    Bootstrap,
    /// The postmaster dies; a replica takes over.
    Crash,
    /// The primary's host loses power and comes back.
    HostLoss,
    /// The postmaster dies; the node restarts it as primary.
    RestartInPlace,
    /// The primary loses its replicas, then its power: what it wrote meanwhile has to go.
    Rewind,
    /// A replica's directory is lost.
    Clone,
    /// An operator wants a replica to take over from a primary that is well.
    Handover,
}

/// How a step is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The agent dies before the action leaves it.
    Before,
    /// The agent dies when the action has left.
    After,
    /// The host of the agent loses its power when the action has left.
    Power,
    /// The transaction gets an answer that says nothing. Other actions are not cut.
    Answer,
}

/// A plan with its interruption.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interruption {
    step: u64,
    cut: Cut,
    seen: u64,
    done: bool,
}

/// What came of an interrupted plan.
#[derive(Clone, Debug)]
pub struct Interrupted {
    /// Whether the plan had so many steps; else it was not interrupted.
    pub reached: bool,
    /// What an oracle found, and what is not well a minute later.
    pub faults: Vec<String>,
    /// The trace, for looking at it.
    pub trace: String,
}

/// Runs `plan` and interrupts it at `step`, counted from 0 over the actions of all agents since the plan began.
///
/// Renewals, and what members say of themselves, are no steps.
pub fn interrupt(seed: u64, plan: Plan, durability: Durability, step: u64, cut: Cut, trace: bool) -> Interrupted {
    let policy = ClusterPolicy {
        durability,
        crash_policy: if plan == Plan::RestartInPlace { CrashPolicy::Restart } else { CrashPolicy::Lossless },
        ..policy_of(&mut Random::new(seed))
    };
    let mut world = World::new(seed, Options { trace, durability, ..Options::default() }, policy, 3);
    let cutting = Interruption { step, cut, seen: 0, done: false };
    if plan == Plan::Bootstrap {
        world.interruption = Some(cutting);
    }
    for node in 0..3 {
        let after = world.random.millis(0, 500);
        world.later(after, move |world| world.start_agent(node));
    }
    watch_leases(&mut world);
    world.run_until(20 * SECOND);
    if plan != Plan::Bootstrap {
        world.interruption = Some(cutting);
        world.begin(plan);
    }
    world.run_until(80 * SECOND);
    let mut faults = world.oracle.violations.clone();
    faults.extend(world.troubles());
    let reasons = (0..3).map(|node| format!("{}: {}", world.nodes[node].name, world.reasons(node)));
    if !faults.is_empty() {
        let reasons: Vec<String> = reasons.collect();
        faults.extend(reasons);
    }
    Interrupted { reached: world.interruption.is_some_and(|cutting| cutting.done), faults, trace: world.trace.into_text() }
}

/// The primary's host is lost, and the disk of whoever claims first fails for good. What is not well a minute and a half later.
///
/// # Panics
/// Never: a world without a primary is a fault that is told.
pub fn sick_claimant(seed: u64) -> (Vec<String>, String) {
    let policy = ClusterPolicy { durability: Durability::Async, ..ClusterPolicy::default() };
    let mut world = World::new(seed, Options { trace: true, ..Options::default() }, policy, 3);
    for node in 0..3 {
        let after = world.random.millis(0, 500);
        world.later(after, move |world| world.start_agent(node));
    }
    watch_leases(&mut world);
    world.run_until(20 * SECOND);
    let Some(primary) = world.nodes.iter().position(super::node::Node::is_primary) else {
        return (vec!["there was no primary to lose".to_owned()], world.trace.into_text());
    };
    world.lose_host(primary, 300 * SECOND);
    let mut sick = None;
    let mut now = 20 * SECOND;
    while now < 110 * SECOND {
        now += 5_000_000;
        world.run_until(now);
        let claimed = world.store.leader().filter(|leader| leader.state == LeaderState::Claimed);
        if let Some(leader) = claimed.filter(|_| sick.is_none()) {
            sick = world.nodes.iter().position(|node| node.name == leader.holder.node);
            sick.into_iter().for_each(|node| world.nodes[node].sick_disk = u64::MAX);
        }
    }
    let mut faults = world.oracle.violations.clone();
    let primary = world.nodes.iter().position(super::node::Node::is_primary);
    if sick.is_none() || primary.is_none() || primary == sick {
        faults.push(format!("node {sick:?} claimed and fell sick, and {primary:?} is the primary"));
        faults.extend((0..3).map(|node| format!("{}: {}", world.nodes[node].name, world.reasons(node))));
    }
    (faults, world.trace.into_text())
}

/// What one fault costs a cluster of three to which nothing else happens.
#[derive(Clone, Debug)]
pub struct Alone {
    /// For how long no commit was acknowledged, at the longest, in milliseconds.
    pub outage_ms: u64,
    /// How often PostgreSQL was started on the node where that was most often.
    pub starts: usize,
    /// What an oracle found, and what is not well a minute later.
    pub faults: Vec<String>,
    /// The trace, for looking at it.
    pub trace: String,
}

/// Runs `plan` under `policy`, and nothing else goes wrong.
pub fn alone(seed: u64, plan: Plan, policy: &ClusterPolicy) -> Alone {
    let options = Options { trace: true, faults: false, durability: policy.durability, ..Options::default() };
    let mut world = World::new(seed, options, policy.clone(), 3);
    for node in 0..3 {
        let after = world.random.millis(0, 500);
        world.later(after, move |world| world.start_agent(node));
    }
    watch_leases(&mut world);
    world.run_until(30 * SECOND);
    let began = world.now;
    let mut faults = world.troubles();
    world.begin(plan);
    world.run_until(began + 60 * SECOND);
    let acks = world.oracle.acks.iter().map(|ack| ack.at).filter(|at| *at >= began);
    let times: Vec<u64> = [began].into_iter().chain(acks).chain([world.now]).collect();
    let longest = times.array_windows().map(|[one, next]| next.saturating_sub(*one)).max().unwrap_or_default();
    faults.extend(world.oracle.violations.clone());
    faults.extend(world.troubles());
    let starts = world.nodes.iter().map(|node| node.starts.iter().filter(|at| **at > began).count()).max().unwrap_or_default();
    Alone { outage_ms: longest / 1_000_000, starts, faults, trace: world.trace.into_text() }
}

impl World {
    fn begin(&mut self, plan: Plan) {
        let primary = self.nodes.iter().position(super::node::Node::is_primary).unwrap_or_default();
        match plan {
            Plan::Bootstrap => {}
            Plan::Crash | Plan::RestartInPlace => self.kill_postmaster(primary),
            Plan::Handover => {
                let to = self.nodes[(primary + 1) % 3].name.clone();
                let term = self.store.leader().map_or(Term::ZERO, |leader| leader.term);
                self.request(Request::Failover { to, accept_loss: false, assert_dead: false }, term);
            }
            Plan::HostLoss => self.lose_host(primary, 8 * SECOND),
            Plan::Rewind => {
                let until = self.now + 3 * SECOND;
                self.cut(primary, until, super::faults::Link::Hosts, (true, true));
                self.later(SECOND, move |world| world.lose_host(primary, 8 * SECOND));
            }
            Plan::Clone => {
                let replica = (primary + 1) % 3;
                self.kill_agent(replica, "its host is set up anew");
                if self.nodes[replica].server.is_some() {
                    self.end_server(replica, "signal 9", false);
                }
                self.nodes[replica].disk = None;
                self.later(SECOND, move |world| world.start_agent(replica));
            }
        }
    }

    /// Before an action leaves. Whether the agent died instead.
    pub(super) fn cut_before(&mut self, node: usize, action: &Action) -> bool {
        let Some(cutting) = &mut self.interruption else { return false };
        // What is done by and by afterwards is no step of the plan.
        if cutting.done
            || self.now > LAST_STEP
            || matches!(action, Action::PutMember(_) | Action::Txn(Purpose::Renew, _))
            || self.renewed_deadline(node, action)
        {
            return false;
        }
        let Some(cutting) = &mut self.interruption else { return false };
        cutting.seen += 1;
        if cutting.seen <= cutting.step {
            return false;
        }
        match cutting.cut {
            Cut::Before => {
                cutting.done = true;
                self.crash_agent(node, "interrupted before an action");
                true
            }
            Cut::Answer if matches!(action, Action::Txn(..)) => {
                cutting.done = true;
                self.store.ambiguous = (1_000, self.now + 20_000_000);
                false
            }
            Cut::Answer | Cut::After | Cut::Power => false,
        }
    }

    /// When an action has left. Whether the agent died then.
    pub(super) fn cut_after(&mut self, node: usize) -> bool {
        let Some(cutting) = self.interruption.as_mut().filter(|cutting| !cutting.done && cutting.seen > cutting.step) else { return false };
        match cutting.cut {
            Cut::After => {
                cutting.done = true;
                self.crash_agent(node, "interrupted after an action");
                true
            }
            Cut::Power => {
                cutting.done = true;
                self.lose_host(node, 4 * SECOND);
                true
            }
            Cut::Before | Cut::Answer => false,
        }
    }

    fn renewed_deadline(&self, node: usize, action: &Action) -> bool {
        let armed = self.nodes[node].guard.as_ref().and_then(|guard| guard.armed);
        matches!(action, Action::Arm { term, .. } if armed.is_some_and(|armed| armed.term == *term))
    }
}
