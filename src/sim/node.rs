//! One host: its clocks, its disk, its guard, its PostgreSQL, its agent.

use super::{
    SECOND,
    random::Random,
    server::Server,
    store::Client,
    world::{Job, World, parsed},
};
use crate::{
    agent::{event::Event, state::State},
    decide::decision::{Action, Configuration, Decision, Task},
    model::{
        instance::{ControlState, Cut, Ended, GuardStatus, Process},
        moment::{Clocks, Moment},
        node::{Address, ClusterName, DataIncarnation, Incarnation, NodeName, SlotName},
        node_file::NodeFile,
        record::{MEMBER_LEASE, Tags},
        term::Term,
        timeline::TimelineId,
    },
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The clocks of one host: they run at their own rate, and begin anew at each boot.
pub(super) struct Clock {
    /// How much too fast, in millionths.
    ppm: i64,
    /// At this real time the clock showed this much.
    since: u64,
    shown: u64,
    /// What `CLOCK_BOOTTIME` counts and `CLOCK_MONOTONIC` does not.
    suspended: u64,
    /// A frozen machine's clocks stand still.
    frozen: bool,
}

const MILLION: i128 = 1_000_000;

/// What a clock shows at boot: an acknowledgement of before counts as given then.
const FIRST: u64 = 0;

impl Clock {
    pub(super) const fn new(ppm: i64, booted: u64, suspended: u64) -> Self {
        Self { ppm, since: booted, shown: FIRST, suspended, frozen: false }
    }

    /// The host boots.
    pub(super) const fn start(&mut self, now: u64) {
        *self = Self::new(self.ppm, now, 0);
    }

    /// From now on it runs at another rate.
    pub(super) fn drift(&mut self, ppm: i64, now: u64) {
        (self.shown, self.since) = (self.boot(now).as_nanos(), now);
        self.ppm = ppm;
    }

    /// The machine is frozen, or runs again: no clock of it has noticed.
    pub(super) fn freeze(&mut self, frozen: bool, now: u64) {
        (self.shown, self.since) = (self.boot(now).as_nanos(), now);
        self.frozen = frozen;
    }

    /// The host was suspended for so long.
    pub(super) fn slept(&mut self, lasts: u64) {
        self.suspended += self.counted(lasts);
    }

    fn counted(&self, real: u64) -> u64 {
        u64::try_from(i128::from(real) * (MILLION + i128::from(self.ppm)) / MILLION).unwrap_or_default()
    }

    pub(super) fn boot(&self, now: u64) -> Moment {
        let passed = if self.frozen { 0 } else { self.counted(now.saturating_sub(self.since)) };
        Moment::from_nanos(self.shown + passed)
    }

    pub(super) fn both(&self, now: u64) -> Clocks {
        let boot = self.boot(now);
        Clocks { boot, mono: Moment::from_nanos(boot.as_nanos().saturating_sub(self.suspended)) }
    }

    /// The first real instant at which the clock shows `moment` or more, if nothing happens to it before.
    pub(super) fn real(&self, moment: Moment) -> u64 {
        let passed = i128::from(moment.as_nanos().saturating_sub(self.shown));
        let real = (passed * MILLION + MILLION - 1) / (MILLION + i128::from(self.ppm));
        self.since + u64::try_from(real).unwrap_or_default() + 2
    }
}

/// A data directory.
#[derive(Clone)]
pub(super) struct Data {
    pub(super) system: u64,
    pub(super) control: ControlState,
    pub(super) checkpoint_tli: TimelineId,
    pub(super) redo: u64,
    pub(super) min_recovery: (u64, Option<TimelineId>),
    /// What WAL lies here: a branch, and up to which byte.
    pub(super) branch: usize,
    pub(super) end: u64,
    pub(super) standby_signal: bool,
    /// A rewind has left it, and nothing has started on it since.
    pub(super) backup_label: bool,
    /// A server ever ran on it.
    pub(super) started: bool,
    pub(super) histories: BTreeMap<TimelineId, String>,
    pub(super) slots: BTreeSet<SlotName>,
    /// A rewind has begun here and not ended.
    pub(super) half_rewound: bool,
    /// It is the whole copy that was made as this life.
    pub(super) copied: Option<DataIncarnation>,
    /// The life of the data that the newest rewind ended.
    pub(super) rewound: Option<DataIncarnation>,
}

impl Data {
    /// The newest timeline that it is known to have followed, as `pg_control` says it.
    pub(super) fn tli(&self) -> TimelineId {
        self.min_recovery.1.map_or(self.checkpoint_tli, |tli| tli.max(self.checkpoint_tli))
    }
}

/// The parent of the postmaster.
pub(super) struct Guard {
    pub(super) incarnation: Incarnation,
    pub(super) term: crate::model::term::Term,
    pub(super) armed: Option<crate::model::instance::Armed>,
    pub(super) primary_of: Option<crate::model::term::Term>,
    pub(super) last: Option<Ended>,
    /// The run of the agent in session.
    pub(super) session: Option<u64>,
    /// By which connection: one agent may come back by another.
    pub(super) connection: u64,
    /// The run of an agent that waits to be let in, while the guard stands still.
    pub(super) knocking: Option<u64>,
    /// It alone stands still until then; 0: it runs.
    pub(super) stopped_until: u64,
    /// For how long it will stand still from the moment on at which the next verb comes, of this kind if one is named; 0: not at all.
    pub(super) stops_for: (u64, Option<Task>),
    /// What was sent to it while it stood still.
    pub(super) unread: Vec<Unread>,
    /// What it goes on with once it runs again.
    pub(super) halted: Vec<Job>,
    pub(super) runs: u64,
    /// A start is being prepared.
    pub(super) starting: bool,
    pub(super) cut: Cut,
    /// Whom the kernel keeps this host from, whatever the guard knows of it.
    pub(super) kernel: BTreeSet<Address>,
}

/// A verb that a guard has not read yet.
pub(super) struct Unread {
    pub(super) id: u64,
    pub(super) connection: u64,
    pub(super) run: u64,
    pub(super) task: Task,
    pub(super) verb: Verb,
}

/// What a verb does, and how it ends.
pub(super) type Verb = Box<dyn FnOnce(&mut World) -> Result<(), String>>;

/// One run of the agent: the real state, and the loop around it.
pub(super) struct Agent {
    pub(super) run: u64,
    pub(super) state: State,
    pub(super) inbox: VecDeque<Event>,
    /// The next step is taken then.
    pub(super) step_at: u64,
    pub(super) paused_until: u64,
    pub(super) probe_at: u64,
    pub(super) hurry: bool,
    pub(super) client: Client,
    pub(super) last: Option<Decision>,
    /// Since when it neither does nor serves anything, and says no reason.
    pub(super) mute_since: Option<u64>,
    pub(super) spins: u32,
    /// The newest actions, since when the very same are asked for, and how often.
    pub(super) asked: (Vec<Action>, u64, u32),
    /// This run has written the managed files.
    pub(super) rendered: bool,
}

/// One host.
pub(super) struct Node {
    pub(super) name: NodeName,
    /// Where it is reached: a copied machine has another address than its original.
    pub(super) host: String,
    /// There is such a machine: the last one is there only while somebody's copy runs.
    pub(super) present: bool,
    pub(super) clock: Clock,
    pub(super) tags: Tags,
    pub(super) zone: String,
    /// Counts boots: what was under way in a former life of the host is lost.
    pub(super) life: u64,
    pub(super) up: bool,
    pub(super) asleep_until: u64,
    /// A guard keeps a later deadline than it was told, until then (a mutation only).
    pub(super) late_until: Moment,
    /// For how long it was frozen in all: what was under way when that began comes so much later.
    pub(super) frozen_for: u64,
    /// Until then, on its own clock, it may act by an authority that was over while it was frozen.
    pub(super) excused: Option<Moment>,
    /// What it had claimed and promised when its power went: such a write may still be under way.
    pub(super) vowed: Term,
    /// The lives of its data that a rollback ended, noticed or not.
    pub(super) spoilt: BTreeSet<DataIncarnation>,
    /// Since when its agent runs, and until when one did that had time to note how far the data are.
    pub(super) attended: (u64, u64),
    /// When etcd last took its own record of it (protocol 1.2, `nodes`).
    pub(super) published_at: u64,
    /// What its disks held at some former points of time.
    pub(super) saved: Vec<(u64, NodeFile, Data)>,
    pub(super) file: NodeFile,
    pub(super) file_made: bool,
    pub(super) conf: Option<Configuration>,
    /// `synchronous_standby_names` as somebody has set it with ALTER SYSTEM; until the next write of the configuration takes that back.
    pub(super) by_hand: Option<String>,
    pub(super) disk: Option<Data>,
    /// When somebody emptied its data directory.
    pub(super) wiped: u64,
    pub(super) guard: Option<Guard>,
    pub(super) server: Option<Server>,
    pub(super) agent: Option<Agent>,
    /// fsync takes long until.
    pub(super) slow_disk: u64,
    /// Until then WAL cannot be read and no history file be written.
    pub(super) sick_disk: u64,
    /// Until then no configuration can be written.
    pub(super) full_disk: u64,
    /// Starts of PostgreSQL fail until.
    pub(super) bad_starts: u64,
    /// Promotions and recoveries take long until.
    pub(super) slow_server: u64,
    /// There is no room for a second copy beside the directory.
    pub(super) cramped: bool,
    /// A copy in place was begun: what it has made is no data directory yet.
    pub(super) half_copied: bool,
    /// Real times of the last starts.
    pub(super) starts: Vec<u64>,
    /// An operator stopped it: its agent ends for good.
    pub(super) stopped: bool,
}

impl Node {
    pub(super) fn who(&self) -> String {
        self.host.clone()
    }

    /// What its kernel calls this boot: no other one of any machine has that name.
    pub(super) fn boot(&self) -> String {
        format!("{}b{}", self.host, self.life)
    }

    /// Whether its data are there, and nothing has begun to replace them.
    pub(super) fn is_whole(&self) -> bool {
        self.disk.as_ref().is_some_and(|data| !data.half_rewound) && self.file.operation.is_none()
    }

    /// Whether its data were lost a moment ago: who has asked it before that cannot know.
    pub(super) fn is_just_wiped(&self, now: u64) -> bool {
        self.disk.is_none() && self.wiped > 0 && self.wiped + MEMBER_LEASE.as_nanos() + SECOND > now
    }

    pub(super) fn agent_run(&self) -> Option<u64> {
        self.agent.as_ref().map(|agent| agent.run)
    }

    pub(super) fn agent_of(&mut self, run: u64) -> Option<&mut Agent> {
        self.agent.as_mut().filter(|agent| agent.run == run)
    }

    /// What it is at this moment, in one word or two.
    pub(super) fn role(&self) -> &'static str {
        match (&self.server, &self.disk, &self.file.operation) {
            _ if !self.up => "host without power",
            (_, _, Some(_)) => "node being rewound or copied",
            (None, None, None) => "node without data",
            (None, Some(_), None) => "stopped node",
            (Some(server), ..) if !server.postmaster => "dying server",
            (Some(server), ..) if server.stopping.is_some() => "stopping server",
            (Some(server), ..) if server.primary => "primary",
            (Some(server), ..) if server.promoting => "server being promoted",
            (Some(server), ..) if !server.ready => "starting server",
            (Some(_), ..) => "standby",
        }
    }

    /// Whether PostgreSQL is out of recovery and a process of it lives.
    pub(super) fn is_primary(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.primary)
    }

    /// Whether it was frozen, and may not know yet that its time is over.
    pub(super) fn is_excused(&self, now: u64) -> bool {
        self.excused.is_some_and(|until| self.clock.boot(now) <= until)
    }

    pub(super) fn process(&self) -> Process {
        let Some(server) = &self.server else {
            return Process::Empty { last: self.guard.as_ref().and_then(|guard| guard.last.clone()) };
        };
        if server.hidden {
            return Process::Empty { last: self.guard.as_ref().and_then(|guard| guard.last.clone()) };
        }
        if server.postmaster {
            Process::Running { run: server.run, start: server.start, stopping: server.stopping }
        } else {
            Process::Dying { run: server.run }
        }
    }

    /// Where its PostgreSQL is reached.
    pub(super) fn address(&self) -> Address {
        Address { host: self.host.clone(), port: 5432 }
    }

    pub(super) fn guard_status(&self) -> Option<GuardStatus> {
        let guard = self.guard.as_ref()?;
        Some(GuardStatus {
            incarnation: guard.incarnation.clone(),
            term: guard.term,
            armed: guard.armed,
            primary_of: guard.primary_of,
            process: self.process(),
            kill: crate::model::instance::KillMode::Namespace,
            fenced: true,
            starting: guard.starting,
            cut: guard.cut.clone(),
        })
    }
}

/// How wrong a clock runs: often as wrong as it may (protocol 1.1, ρ).
pub(super) fn rate(random: &mut Random) -> i64 {
    let between = i64::try_from(random.below(2_001)).unwrap_or_default() - 1_000;
    random.pick(&[-1_000, 1_000, between, between])
}

/// A host that has never run.
pub(super) fn fresh(index: usize, random: &mut Random) -> Node {
    let name: NodeName = parsed(&format!("n{}", index + 1));
    let ppm = rate(random);
    let cluster: ClusterName = parsed("sim");
    let file = NodeFile::fresh(cluster, parsed(&format!("n{}", index + 1)), parsed("00000000"));
    Node {
        host: name.to_string(),
        present: true,
        name,
        clock: Clock::new(ppm, random.millis(0, 900), random.millis(0, 5_000) / 2),
        tags: Tags::default(),
        zone: String::new(),
        life: 0,
        up: true,
        asleep_until: 0,
        late_until: Moment::ZERO,
        frozen_for: 0,
        excused: None,
        vowed: Term::ZERO,
        spoilt: BTreeSet::new(),
        attended: (0, 0),
        published_at: 0,
        saved: Vec::new(),
        file,
        file_made: false,
        conf: None,
        by_hand: None,
        disk: None,
        guard: None,
        server: None,
        agent: None,
        slow_disk: 0,
        sick_disk: 0,
        full_disk: 0,
        bad_starts: 0,
        slow_server: 0,
        cramped: random.chance(150),
        wiped: 0,
        half_copied: false,
        starts: Vec::new(),
        stopped: false,
    }
}
