//! One host: its clocks, its disk, its guard, its PostgreSQL, its agent.

use super::{server::Server, store::Client};
use crate::{
    agent::{event::Event, state::State},
    decide::decision::{Action, Configuration, Decision},
    model::{
        instance::{ControlState, Cut, Ended, GuardStatus, Process},
        moment::{Clocks, Moment},
        node::{Address, DataIncarnation, Incarnation, NodeName, SlotName},
        node_file::NodeFile,
        timeline::TimelineId,
    },
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The clocks of one host: they run at their own rate, and begin anew at each boot.
pub(super) struct Clock {
    pub(super) ppm: i64,
    pub(super) booted: u64,
    /// What `CLOCK_BOOTTIME` counts and `CLOCK_MONOTONIC` does not.
    pub(super) suspended: u64,
}

const MILLION: i128 = 1_000_000;

/// What a clock shows at boot: an acknowledgement of before counts as given then.
const FIRST: u64 = 0;

impl Clock {
    pub(super) fn boot(&self, now: u64) -> Moment {
        let passed = i128::from(now.saturating_sub(self.booted)) * (MILLION + i128::from(self.ppm)) / MILLION;
        Moment::from_nanos(FIRST + u64::try_from(passed).unwrap_or_default())
    }

    pub(super) fn both(&self, now: u64) -> Clocks {
        let boot = self.boot(now);
        Clocks { boot, mono: Moment::from_nanos(boot.as_nanos().saturating_sub(self.suspended)) }
    }

    /// The first real instant at which the clock shows `moment` or more.
    pub(super) fn real(&self, moment: Moment) -> u64 {
        let passed = i128::from(moment.as_nanos().saturating_sub(FIRST));
        let real = (passed * MILLION + MILLION - 1) / (MILLION + i128::from(self.ppm));
        self.booted + u64::try_from(real).unwrap_or_default() + 2
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
    /// A rewind has left it: not consistent before `min_recovery`.
    pub(super) backup_label: bool,
    /// A server ever ran on it.
    pub(super) started: bool,
    pub(super) histories: BTreeMap<TimelineId, String>,
    pub(super) slots: BTreeSet<SlotName>,
    /// What left it half done.
    pub(super) broken: Option<&'static str>,
    /// The life of the data that the newest rewind ended.
    pub(super) rewound: Option<DataIncarnation>,
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
    pub(super) runs: u64,
    /// A start is being prepared.
    pub(super) starting: bool,
    pub(super) cut: Cut,
    /// Whom the kernel keeps this host from, whatever the guard knows of it.
    pub(super) kernel: BTreeSet<Address>,
}

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
    pub(super) clock: Clock,
    /// Counts boots: what was under way in a former life of the host is lost.
    pub(super) life: u64,
    pub(super) up: bool,
    pub(super) asleep_until: u64,
    pub(super) file: NodeFile,
    pub(super) file_made: bool,
    pub(super) conf: Option<Configuration>,
    pub(super) disk: Option<Data>,
    pub(super) guard: Option<Guard>,
    pub(super) server: Option<Server>,
    pub(super) agent: Option<Agent>,
    /// fsync takes long until.
    pub(super) slow_disk: u64,
    /// Until then WAL cannot be read and no history file be written.
    pub(super) sick_disk: u64,
    /// Starts of PostgreSQL fail until.
    pub(super) bad_starts: u64,
    /// Real times of the last starts.
    pub(super) starts: Vec<u64>,
    /// An operator stopped it: its agent ends for good.
    pub(super) stopped: bool,
}

impl Node {
    pub(super) fn who(&self) -> String {
        self.name.to_string()
    }

    pub(super) fn agent_run(&self) -> Option<u64> {
        self.agent.as_ref().map(|agent| agent.run)
    }

    pub(super) fn agent_of(&mut self, run: u64) -> Option<&mut Agent> {
        self.agent.as_mut().filter(|agent| agent.run == run)
    }

    /// Whether PostgreSQL is out of recovery and a process of it lives.
    pub(super) fn is_primary(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.primary)
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
        Address { host: self.name.to_string(), port: 5432 }
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
