//! Virtual time, the queue of what happens, and the loop of each agent.

use super::{
    Options,
    coverage::Coverage,
    network::Network,
    node::{Agent, Node, fresh},
    oracle::Oracle,
    random::Random,
    store::Store,
    trace::Trace,
    wal::Wal,
};
use crate::{
    agent::{event::Event, state::State},
    decide::{
        decide,
        decision::{Action, ReasonKind},
        snapshot::{Fresh, Me},
    },
    model::{
        instance::ServerRole,
        key::{Key, Write},
        node::{Address, DataIncarnation},
        node_file::NodeFile,
        policy::ClusterPolicy,
        record::SyncRecord,
    },
};
use std::collections::{BTreeMap, VecDeque};

/// Something that happens at a point of time.
pub(super) type Job = Box<dyn FnOnce(&mut World)>;

/// Clients that wait for so long find that nobody takes writes.
const OUTAGE: u64 = 250_000_000;

/// Everything there is.
pub(super) struct World {
    pub(super) now: u64,
    counter: u64,
    jobs: BTreeMap<(u64, u64), Job>,
    pub(super) random: Random,
    /// The members of the cluster, and behind them the machine that may become somebody's copy.
    pub(super) nodes: Vec<Node>,
    pub(super) members: usize,
    pub(super) store: Store,
    pub(super) leases: BTreeMap<(usize, u64), u64>,
    pub(super) network: Network,
    pub(super) questions: Vec<super::peers::Question>,
    pub(super) wal: Wal,
    pub(super) oracle: Oracle,
    pub(super) coverage: Coverage,
    pub(super) trace: Trace,
    pub(super) options: Options,
    pub(super) policy: ClusterPolicy,
    /// Agents crash at so many of a thousand action boundaries, until.
    pub(super) brittle: (u64, u64),
    /// One step at which the plan is interrupted.
    pub(super) interruption: Option<super::plans::Interruption>,
    /// The faults that struck: their place in the schedule, and what they were.
    pub(super) struck: Vec<(usize, String)>,
    /// By kind of fault: how often it struck, and the outages that began after it, in milliseconds.
    pub(super) hits: BTreeMap<String, (u64, Vec<u64>)>,
    pub(super) last_fault: Option<super::faults::Fault>,
    /// Faults that wait for their moment.
    pub(super) ambushes: super::faults::Ambushes,
    /// When a client was last told of its commit.
    last_ack: u64,
}

impl World {
    pub(super) fn new(seed: u64, options: Options, policy: ClusterPolicy, nodes: usize) -> Self {
        let mut random = Random::new(seed);
        let mut made: Vec<Node> = (0..nodes).map(|index| fresh(index, &mut random)).collect();
        // In a larger cluster some may not lead.
        let never = usize::try_from(random.below(3)).unwrap_or_default();
        made.iter_mut().skip(3).take(never).for_each(|node| node.tags.no_failover = true);
        // In some clusters the hosts are in two places, and now and then one is nobody's voter.
        let (zones, outside) = (random.chance(400), nodes > 3 && random.chance(300));
        for (index, node) in made.iter_mut().enumerate() {
            node.zone = if zones { ["east", "west"][index % 2].to_owned() } else { String::new() };
            node.tags.no_sync = outside && index == 2;
        }
        made.push(Node { present: false, up: false, ..fresh(nodes, &mut random) });
        Self {
            now: 1_000_000_000,
            counter: 0,
            jobs: BTreeMap::new(),
            random,
            nodes: made,
            members: nodes,
            store: Store::default(),
            leases: BTreeMap::new(),
            network: Network::new(nodes + 1),
            questions: Vec::new(),
            wal: Wal::default(),
            oracle: Oracle::default(),
            coverage: Coverage::default(),
            trace: Trace::new(options.trace),
            options,
            policy,
            brittle: (0, 0),
            interruption: None,
            struck: Vec::new(),
            hits: BTreeMap::new(),
            last_fault: None,
            ambushes: super::faults::Ambushes::default(),
            last_ack: 0,
        }
    }

    /// Runs until `end`, or until the first violation.
    pub(super) fn run_until(&mut self, end: u64) {
        while self.oracle.violations.is_empty() {
            let Some(entry) = self.jobs.first_entry().filter(|entry| entry.key().0 <= end) else { break };
            let ((at, _), job) = entry.remove_entry();
            self.now = self.now.max(at);
            job(self);
        }
        self.now = self.now.max(end);
    }

    /// How many machines there are.
    pub(super) fn machines(&self) -> usize {
        self.members + usize::from(self.nodes.last().is_some_and(|copy| copy.present))
    }

    /// The machine that is reached at this address.
    pub(super) fn at_address(&self, address: &Address) -> Option<usize> {
        self.nodes.iter().position(|node| node.present && node.address() == *address)
    }

    pub(super) fn token(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// A name that nothing else has.
    pub(super) fn name<T: std::str::FromStr>(&mut self, prefix: &str) -> T
    where
        T::Err: std::fmt::Debug,
    {
        let token = self.token();
        parsed(&format!("{prefix}{token:x}"))
    }

    pub(super) fn data_incarnation(&mut self) -> DataIncarnation {
        let token = self.token();
        parsed(&format!("{:08x}", token & 0xFFFF_FFFF))
    }

    /// Does `job` after `after` nanoseconds.
    pub(super) fn later(&mut self, after: u64, job: impl FnOnce(&mut Self) + 'static) {
        let key = (self.now + after, self.token());
        self.jobs.insert(key, Box::new(job));
    }

    /// The same on one host: not if it loses power before, and not while it sleeps.
    pub(super) fn later_at(&mut self, node: usize, after: u64, job: impl FnOnce(&mut Self) + 'static) {
        let (life, frozen) = (self.nodes[node].life, self.nodes[node].frozen_for);
        let job: Job = Box::new(job);
        self.later(after, move |world| world.wake(node, life, frozen, job));
    }

    /// `frozen`: for how long the host had been frozen when the job was begun. What went on then stands still with it.
    fn wake(&mut self, node: usize, life: u64, frozen: u64, job: Job) {
        if self.nodes[node].life != life || !self.nodes[node].up {
            return;
        }
        let since = self.nodes[node].frozen_for;
        if since > frozen {
            self.later(since - frozen, move |world| world.wake(node, life, since, job));
            return;
        }
        let asleep_until = self.nodes[node].asleep_until;
        if asleep_until > self.now {
            self.later(asleep_until - self.now, move |world| world.wake(node, life, frozen, job));
            return;
        }
        job(self);
    }

    /// The same in the agent's own process: it stands still while that does. Runs also when that run of the agent is gone.
    pub(super) fn in_agent(&mut self, node: usize, run: u64, after: u64, job: impl FnOnce(&mut Self) + 'static) {
        let job: Job = Box::new(job);
        self.later_at(node, after, move |world| {
            let now = world.now;
            match world.nodes[node].agent_of(run).map(|agent| agent.paused_until).filter(|until| *until > now) {
                Some(until) => world.in_agent(node, run, until - now, job),
                None => job(world),
            }
        });
    }

    // ---- the agent's loop ----

    /// Starts an agent; its file counts the start first.
    pub(super) fn start_agent(&mut self, node: usize) {
        if self.nodes[node].agent.is_some() || !self.nodes[node].up {
            return;
        }
        let data = self.data_incarnation();
        let agent_name = self.name("a");
        let run = self.token();
        let policy = self.policy.clone();
        let now = self.now;
        let of = &mut self.nodes[node];
        if !of.file_made {
            of.file = NodeFile::fresh(of.file.cluster.clone(), of.name.clone(), data);
            of.file_made = true;
        }
        of.file.starts += 1;
        of.attended.0 = now;
        let me = Me {
            node: of.name.clone(),
            agent: agent_name,
            postgres: of.address(),
            api: Some(of.host.clone()),
            zone: of.zone.clone(),
            tags: of.tags.clone(),
            version: "sim".to_owned(),
            adopted_durability: policy.durability,
            first_policy: policy,
            major: 15,
            boot: parsed(&of.boot()),
            boot_is_named: true,
            peer_key: true,
        };
        let state = State::new(me, of.file.clone(), of.clock.both(now));
        of.agent = Some(Agent {
            run,
            state,
            inbox: VecDeque::new(),
            step_at: 0,
            paused_until: 0,
            probe_at: 0,
            hurry: false,
            client: super::store::Client::default(),
            last: None,
            mute_since: None,
            spins: 0,
            asked: (Vec::new(), 0, 0),
            rendered: false,
        });
        let who = self.nodes[node].who();
        self.trace.line(now, &who, "agent starts");
        let session = self.random.millis(3, 40);
        self.later_at(node, session, move |world| world.attach(node, run));
        self.later_at(node, 10_000_000, move |world| world.keep_etcd(node, run));
        self.schedule_probe(node, run, 20_000_000);
        self.poke(node, run);
    }

    /// The agent's process is gone; what it had begun in other processes goes on.
    pub(super) fn kill_agent(&mut self, node: usize, why: &str) {
        self.nodes[node].attended.1 = self.attended_until(node);
        if self.nodes[node].agent.take().is_some() {
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, &format!("agent is gone: {why}"));
            if let Some(guard) = &mut self.nodes[node].guard {
                guard.session = None;
            }
        }
    }

    /// An event for the agent, now.
    pub(super) fn deliver(&mut self, node: usize, run: u64, event: Event) {
        if let Some(agent) = self.nodes[node].agent_of(run) {
            agent.inbox.push_back(event);
            self.poke(node, run);
        }
    }

    pub(super) fn deliver_after(&mut self, node: usize, run: u64, after: u64, event: Event) {
        self.later_at(node, after, move |world| world.deliver(node, run, event));
    }

    /// The agent takes a step soon.
    pub(super) fn poke(&mut self, node: usize, run: u64) {
        let after = self.random.between(100_000, 1_500_000);
        self.step_in(node, run, after);
    }

    fn step_in(&mut self, node: usize, run: u64, after: u64) {
        let now = self.now;
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        let at = (now + after).max(agent.paused_until);
        if agent.step_at > now && agent.step_at <= at {
            return;
        }
        agent.step_at = at;
        self.later_at(node, at - now, move |world| {
            let now = world.now;
            let Some(agent) = world.nodes[node].agent_of(run) else { return };
            if agent.step_at != at {
                return;
            }
            agent.step_at = 0;
            if agent.paused_until > now {
                let after = agent.paused_until - now;
                world.step_in(node, run, after);
                return;
            }
            world.step(node, run);
        });
    }

    /// apply → snapshot → decide → act.
    fn step(&mut self, node: usize, run: u64) {
        let fresh = Fresh { nonce: self.name("n"), data: self.data_incarnation(), uuid: self.name("u"), wall: String::new() };
        let clocks = self.nodes[node].clock.both(self.now);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        while let Some(event) = agent.inbox.pop_front() {
            agent.state.apply(event, clocks);
        }
        if agent.state.decide_at() > clocks.boot {
            self.rest(node, run);
            return;
        }
        let mut snapshot = agent.state.snapshot(clocks, fresh);
        self.options.mutation.blind(&mut snapshot);
        let mut decision = decide(&snapshot);
        let last = self.nodes[node].agent_of(run).and_then(|agent| agent.last.as_ref()).map(|last| last.routing);
        self.options.mutation.bend(&mut decision, last, clocks.boot);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        agent.state.decided(&mut decision, clocks.boot);
        agent.hurry = decision.hurry;
        let probe_at = agent.probe_at;
        self.coverage.steps += 1;
        self.judge_decision(node, run, &snapshot, &decision);
        self.answer_peers(node, run, &snapshot, &decision);
        if decision.hurry && probe_at > self.now + 20_000_000 {
            self.schedule_probe(node, run, 20_000_000);
        }
        let actions = std::mem::take(&mut decision.actions);
        if let Some(agent) = self.nodes[node].agent_of(run) {
            agent.last = Some(decision);
        }
        for action in actions {
            if self.brittle.1 > self.now && self.random.chance(self.brittle.0) {
                self.coverage.boundary_crashes += 1;
                self.crash_agent(node, "killed before an action");
                return;
            }
            if self.cut_before(node, &action) {
                return;
            }
            self.act(node, run, action);
            if self.cut_after(node) {
                return;
            }
            if self.brittle.1 > self.now && self.random.chance(self.brittle.0) {
                self.coverage.boundary_crashes += 1;
                self.crash_agent(node, "killed after an action was begun");
                return;
            }
        }
        self.rest(node, run);
    }

    /// Until the next decision is due, or something comes.
    fn rest(&mut self, node: usize, run: u64) {
        let Some(due) = self.nodes[node].agent_of(run).map(|agent| agent.state.decide_at()) else { return };
        let wait = self.nodes[node].clock.real(due).saturating_sub(self.now);
        self.step_in(node, run, wait.max(1_000_000));
    }

    /// Kills the agent; the service manager starts another one.
    pub(super) fn crash_agent(&mut self, node: usize, why: &str) {
        self.kill_agent(node, why);
        let back = self.random.tailed(20, 900);
        self.later_at(node, back, move |world| {
            if !world.nodes[node].stopped {
                world.start_agent(node);
            }
        });
    }

    /// The agent asks PostgreSQL how it is: often while something is awaited.
    pub(super) fn schedule_probe(&mut self, node: usize, run: u64, after: u64) {
        let at = self.now + after;
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        agent.probe_at = at;
        self.later_at(node, after, move |world| {
            let now = world.now;
            let Some(agent) = world.nodes[node].agent_of(run) else { return };
            if agent.probe_at != at {
                return;
            }
            let (hurry, paused_until) = (agent.hurry, agent.paused_until);
            let calm = world.policy.timers().renew_every.as_nanos();
            if paused_until > now {
                world.schedule_probe(node, run, paused_until - now);
                return;
            }
            // One look after the other: an older answer never comes after a newer one.
            let took = world.probe(node, run);
            world.schedule_probe(node, run, took + if hurry { 25_000_000 } else { calm });
        });
    }

    fn probe(&mut self, node: usize, run: u64) -> u64 {
        let Some(server) = self.nodes[node].server.as_ref() else { return 0 };
        let server_run = server.run;
        let frozen = server.frozen_until > self.now;
        let inconsistent = server.inconsistent && server.postmaster && !frozen;
        // A server that stands still is given up only after the look's limit.
        let takes = if frozen { 3_000_000_000 } else { self.random.tailed(1, 5) };
        let event = match self.facts(node) {
            Some(facts) => Event::Server { facts, asked: self.nodes[node].clock.boot(self.now) },
            None => Event::ServerSilent { run: server_run, why: "no answer".to_owned(), inconsistent },
        };
        self.deliver_after(node, run, takes, event);
        takes
    }

    /// A client is told of its commit. For how long none was counts for the fault that came last before that.
    pub(super) fn note_ack(&mut self) {
        let gap = self.now - std::mem::replace(&mut self.last_ack, self.now);
        if let Some(fault) = self.last_fault.filter(|_| gap >= OUTAGE) {
            self.hits.entry(format!("{fault:?}")).or_default().1.push(gap / 1_000_000);
        }
    }

    /// The reasons that a node's last decision gave.
    pub(super) fn reasons(&self, node: usize) -> String {
        let last = self.nodes[node].agent.as_ref().and_then(|agent| agent.last.as_ref());
        let Some(last) = last else { return "no agent, or no decision yet".to_owned() };
        let texts: Vec<String> = last.reasons.iter().map(|reason| format!("{:?} {}: {}", reason.kind, reason.id, reason.text)).collect();
        texts.join("; ")
    }

    /// Whether a decision explains itself, or leaves nothing to explain.
    pub(super) fn explains(decision: &crate::decide::decision::Decision, snapshot: &crate::decide::snapshot::Snapshot) -> bool {
        let said = decision.reasons.iter().any(|reason| reason.kind != ReasonKind::Because);
        let goes_on = !decision.actions.is_empty() || !snapshot.tasks.is_empty();
        let fine = match snapshot.role() {
            Some(ServerRole::Primary { .. }) => decision.routing.writes.is_some(),
            Some(role) => role.streams(),
            None => false,
        };
        said || goes_on || fine
    }

    pub(super) fn note_action(&mut self, node: usize, action: &Action) {
        if self.options.trace {
            let text = match action {
                Action::Txn(purpose, txn) => {
                    let sync = txn.then.iter().find_map(|write| match write {
                        Write::Put(Key::Sync, text) => serde_json::from_str::<SyncRecord>(text).ok(),
                        _ => None,
                    });
                    let votes = sync.map(|sync| format!(" {:?} {:?} of {:?}", sync.mode, sync.k, sync.quorum().names()));
                    format!("txn {purpose:?} {}{}", txn.nonce, votes.unwrap_or_default())
                }
                Action::PutMember(_) => return,
                Action::WriteFile(file) => format!(
                    "writes file: term {} promised {} claimed {:?} promoted {:?} demoted {:?} data {} op {:?}",
                    file.term, file.promised, file.claimed, file.promoted, file.demoted, file.data, file.operation
                ),
                Action::Configure(conf) => format!(
                    "configures: follow {:?} recovery {} names {:?}",
                    conf.follow.as_ref().map(|follow| follow.node.to_string()),
                    conf.recovery,
                    conf.sync_names
                ),
                Action::AppendHistory(record) => format!(
                    "history: term {} switch {:?} former {:?} bound {:?} unseen {}",
                    record.term, record.switch, record.former_lsn, record.loss_bound, record.unseen_ms
                ),
                other => format!("{other:?}"),
            };
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, &text);
        }
    }
}

/// Parses a name that this room made: it is right by construction.
#[expect(clippy::expect_used, reason = "the names that the simulator makes are valid")]
pub(super) fn parsed<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("a name of the simulator's own")
}
