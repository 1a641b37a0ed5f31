//! The processes of one run: how they begin, and how they end.

use super::{STREAM_TIMEOUT, Server};
use crate::{
    model::{
        instance::{ControlState, Ended, Run, StartAs, StopMode},
        timeline::TimelineId,
    },
    sim::{Mutation, world::World},
};
use std::collections::BTreeMap;

impl World {
    /// The guard has forked a postmaster.
    pub(in crate::sim) fn launch(&mut self, node: usize, run: Run, start: StartAs) {
        let id = self.token();
        let now = self.now;
        let of = &mut self.nodes[node];
        of.starts.push(now);
        let conf = of.conf.clone();
        let application_name = conf.as_ref().map(|conf| conf.application_name.clone()).unwrap_or_default();
        let names = of.by_hand.clone().or_else(|| conf.as_ref().map(|conf| conf.sync_names.clone())).unwrap_or_default();
        let target = conf.as_ref().map(|conf| conf.recovery).unwrap_or_default();
        let conninfo = conf.and_then(|conf| conf.follow);
        of.server = Some(Server {
            id,
            run,
            start,
            postmaster: true,
            hidden: false,
            primary: false,
            ready: false,
            inconsistent: false,
            stopping: None,
            frozen_until: 0,
            replay: 0,
            received: false,
            conninfo,
            target,
            aims: TimelineId::FIRST,
            application_name,
            promoting: false,
            came_up_with: 0,
            was_routed: false,
            upstream: None,
            senders: BTreeMap::new(),
            defined: !names.is_empty() && (self.options.mutation != Mutation::LateFlag || start != StartAs::Standby),
            by_hand: of.by_hand.iter().cloned().collect(),
            flag_by_hand: of.by_hand.is_some(),
            names,
            names_at: 0,
            waiting: Vec::new(),
        });
        let who = of.who();
        self.leave_empty_branch(node);
        self.aim_first(node);
        let of = &mut self.nodes[node];
        let bad = of.bad_starts > now;
        // It may have been taken away since the start was asked for: PostgreSQL itself starts on none.
        let missing = of.disk.is_none();
        let half_rewound = of.disk.as_ref().is_some_and(|data| data.half_rewound);
        if let Some(data) = &mut of.disk {
            (data.standby_signal, data.started) = (start == StartAs::Standby, true);
        }
        self.trace.line(now, &who, &format!("postgres run {} starts as {start:?}", run.0));
        if half_rewound {
            self.violation("I7", format!("{who}: a start on a directory that is half rewound"));
        }
        let slow = if self.has_bad_luck(50) { 8 } else { 1 };
        let slower = if self.nodes[node].slow_server > self.now { self.random.millis(0, 20_000) } else { 0 };
        let recovery = self.random.millis(30, 350 * slow) + slower;
        if bad || missing || half_rewound {
            self.in_server(node, id, recovery, move |world| world.end_server(node, "exit code 1", false));
            return;
        }
        self.in_server(node, id, recovery, move |world| world.recovered(node, id, start));
    }

    /// The postmaster gets SIGKILL; its backends live on until the guard has killed them.
    pub(in crate::sim) fn kill_postmaster(&mut self, node: usize) {
        let Some(server) = self.nodes[node].server.as_mut().filter(|server| server.postmaster) else { return };
        server.postmaster = false;
        server.upstream = None;
        let id = server.id;
        let bound = self.dies_within();
        let longest = if self.random.chance(50) { bound * 8 / 10 } else { 60 };
        let takes = self.random.millis(3, longest);
        if self.options.mutation == Mutation::HastyRelease
            && let Some(server) = self.server_of(node, id)
        {
            server.hidden = true;
            self.note_end(node, "signal 9", false);
        }
        let takes = if self.options.mutation == Mutation::HastyRelease { takes + 2_000_000_000 } else { takes };
        self.tell_guard(node);
        self.in_guard(node, takes, move |world| {
            if world.server_of(node, id).is_some() {
                world.end_server(node, "signal 9", false);
            }
        });
    }

    fn note_end(&mut self, node: usize, how: &str, wanted: bool) {
        let of = &mut self.nodes[node];
        let Some(server) = &of.server else { return };
        let ended = Ended { run: server.run, start: server.start, how: how.to_owned(), wanted };
        if let Some(guard) = &mut of.guard {
            guard.last = Some(ended);
        }
    }

    /// Not one process is left, and what was not flushed is gone.
    pub(in crate::sim) fn end_server(&mut self, node: usize, how: &str, wanted: bool) {
        self.note_end(node, how, wanted);
        let Some(server) = self.nodes[node].server.take() else { return };
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, &format!("postgres run {} is gone: {how}", server.run.0));
        if let Some(data) = self.nodes[node].disk.clone()
            && server.primary
        {
            let end = self.wal.end(data.branch);
            let kept = self.random.between(data.end, end.max(data.end));
            let whole = self.wal.whole(data.branch, kept);
            self.cut_branch(data.branch, whole, node);
            if let Some(data) = &mut self.nodes[node].disk {
                data.end = kept.max(data.end);
            }
        }
        // The guard that saw the tree empty puts the signal back (protocol I6).
        if self.nodes[node].guard.as_ref().is_some_and(|guard| guard.stopped_until == 0)
            && let Some(data) = &mut self.nodes[node].disk
        {
            data.standby_signal = true;
        }
        self.tell_guard(node);
    }

    /// A fast stop: clients go, everything is sent, a shutdown checkpoint ends the log.
    pub(in crate::sim) fn stop_server(&mut self, node: usize, mode: StopMode, deadline: u64) {
        let now = self.now;
        let Some(server) = self.nodes[node].server.as_mut().filter(|server| server.postmaster) else { return };
        if server.stopping.is_some() {
            return;
        }
        server.stopping = Some(mode);
        let (id, was_primary) = (server.id, server.primary);
        let peers: Vec<usize> = server.senders.keys().copied().collect();
        let blocked = was_primary && peers.iter().any(|peer| !self.network.talks(node, *peer, now));
        let takes = if blocked { STREAM_TIMEOUT } else { self.random.tailed(30, 300) };
        self.tell_guard(node);
        self.in_server(node, id, takes, move |world| world.stopped(node, id));
        self.in_guard(node, deadline.saturating_sub(now), move |world| {
            if world.server_of(node, id).is_some() {
                world.kill_postmaster(node);
            }
        });
    }

    fn stopped(&mut self, node: usize, id: u64) {
        let Some(server) = self.server_of(node, id).filter(|server| server.postmaster) else { return };
        let (was_primary, ready, replay) = (server.primary, server.ready, server.replay);
        if !was_primary {
            if let Some(data) = self.nodes[node].disk.clone().filter(|_| ready) {
                let tli = self.wal.branches[self.wal.branch_at(data.branch, replay)].tli;
                if let Some(data) = &mut self.nodes[node].disk {
                    (data.control, data.min_recovery) = (ControlState::ShutDownInRecovery, (replay, Some(tli)));
                }
            }
            self.end_server(node, "exit code 0", true);
            return;
        }
        let Some(data) = self.nodes[node].disk.clone() else { return };
        let redo = self.wal.end(data.branch);
        let end = self.wal.append(data.branch, 114);
        let peers: Vec<usize> = self.nodes[node].server.iter().flat_map(|server| server.senders.keys().copied()).collect();
        if let Some(data) = &mut self.nodes[node].disk {
            (data.end, data.redo, data.checkpoint_tli, data.min_recovery) = (end, redo, self.wal.branches[data.branch].tli, (0, None));
            data.control = ControlState::ShutDown;
        }
        for peer in peers {
            let follows = self.nodes[peer].server.as_ref().is_some_and(|there| there.upstream.as_ref().is_some_and(|up| up.id == id));
            if follows && self.network.talks(node, peer, self.now) && self.nodes[peer].asleep_until <= self.now {
                self.transfer(peer, node);
            }
        }
        self.end_server(node, "exit code 0", true);
    }
}
