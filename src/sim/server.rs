//! PostgreSQL, asynchronous: recovery, promotion, streaming, stops and crashes, as lessons.md section 0 measured them.

use super::{
    node::Data,
    wal::lsn,
    world::{Job, World},
};
use crate::{
    decide::decision::Follow,
    model::{
        instance::{ControlState, Ended, Pause, Receiver, Run, ServerFacts, ServerRole, Slot, StartAs, StopMode, Walsender},
        node::{Replica, SystemId},
        record::{TimelineRecord, TimelineState},
        timeline::{TimelineHistory, TimelineId},
    },
};
use std::collections::BTreeMap;

/// After so long without a message a stream is given up.
const STREAM_TIMEOUT: u64 = 3_300_000_000;

/// One run of PostgreSQL.
pub(super) struct Server {
    /// Its own number in the whole world.
    pub(super) id: u64,
    pub(super) run: Run,
    pub(super) start: StartAs,
    pub(super) postmaster: bool,
    /// A guard that lies says that nothing runs (a mutation only).
    pub(super) hidden: bool,
    /// Out of recovery.
    pub(super) primary: bool,
    /// Answers.
    pub(super) ready: bool,
    pub(super) stopping: Option<StopMode>,
    pub(super) frozen_until: u64,
    pub(super) replay: u64,
    pub(super) received: bool,
    pub(super) conninfo: Option<Follow>,
    pub(super) recovery_only: bool,
    pub(super) application_name: String,
    pub(super) promoting: bool,
    pub(super) upstream: Option<Upstream>,
    pub(super) senders: BTreeMap<usize, Sender>,
}

/// The stream that a standby receives.
pub(super) struct Upstream {
    node: usize,
    id: u64,
    heard: u64,
}

/// The stream that a server sends.
pub(super) struct Sender {
    name: String,
    flush: u64,
    replay: u64,
    reply: i64,
    heard: u64,
}

impl World {
    pub(super) fn server_of(&mut self, node: usize, id: u64) -> Option<&mut Server> {
        self.nodes[node].server.as_mut().filter(|server| server.id == id)
    }

    /// As [`World::later_at`], for as long as this run of PostgreSQL has a living process.
    fn in_server(&mut self, node: usize, id: u64, after: u64, job: impl FnOnce(&mut World) + 'static) {
        let job: Job = Box::new(job);
        self.later_at(node, after, move |world| {
            let now = world.now;
            let Some(server) = world.server_of(node, id) else { return };
            if server.frozen_until > now {
                let after = server.frozen_until - now;
                world.in_server(node, id, after, job);
                return;
            }
            job(world);
        });
    }

    /// The guard has forked a postmaster.
    pub(super) fn launch(&mut self, node: usize, run: Run, start: StartAs) {
        let id = self.token();
        let now = self.now;
        let of = &mut self.nodes[node];
        of.starts.push(now);
        let conf = of.conf.clone();
        let application_name = conf.as_ref().map(|conf| conf.application_name.clone()).unwrap_or_default();
        let recovery_only = conf.as_ref().is_some_and(|conf| conf.recovery_only);
        let conninfo = conf.and_then(|conf| conf.follow);
        of.server = Some(Server {
            id,
            run,
            start,
            postmaster: true,
            hidden: false,
            primary: false,
            ready: false,
            stopping: None,
            frozen_until: 0,
            replay: 0,
            received: false,
            conninfo,
            recovery_only,
            application_name,
            promoting: false,
            upstream: None,
            senders: BTreeMap::new(),
        });
        let who = of.who();
        self.leave_empty_branch(node);
        let of = &mut self.nodes[node];
        let bad = of.bad_starts > now;
        let fault = of.disk.as_ref().map_or(Some("no data directory"), |data| data.broken);
        if let Some(data) = &mut of.disk {
            data.standby_signal = start == StartAs::Standby;
        }
        self.trace.line(now, &who, &format!("postgres run {} starts as {start:?}", run.0));
        if fault.is_some() {
            self.violation("I7", format!("{who}: a start on a directory that is not whole: {fault:?}"));
        }
        let slow = if self.random.chance(50) { 8 } else { 1 };
        let recovery = self.random.millis(30, 350 * slow);
        if bad || fault.is_some() {
            self.in_server(node, id, recovery, move |world| world.end_server(node, "exit code 1", false));
            return;
        }
        self.in_server(node, id, recovery, move |world| world.recovered(node, id, start));
    }

    fn recovered(&mut self, node: usize, id: u64, start: StartAs) {
        let back = self.random.below(20_000);
        let Some(data) = &self.nodes[node].disk else { return };
        match start {
            StartAs::Standby => {
                let from = self
                    .wal
                    .boundary_before(data.branch, data.end, back)
                    .max(data.min_recovery.0.min(self.wal.whole(data.branch, data.end)));
                let stuck = self.lured(node);
                if let Some(data) = &mut self.nodes[node].disk {
                    data.control = ControlState::InArchiveRecovery;
                }
                if let Some(why) = stuck {
                    self.trace.line(self.now, &self.nodes[node].who(), &format!("postgres is lured: {why}"));
                    if !why.is_empty() {
                        self.end_server(node, &why, false);
                    }
                    return;
                }
                if let Some(server) = self.server_of(node, id) {
                    (server.replay, server.ready) = (from, true);
                }
                self.tick(node, id);
            }
            StartAs::Primary => {
                self.open_in_place(node, id);
                self.tick(node, id);
            }
        }
    }

    /// A real history file of a newer timeline that left ours before our checkpoint is fatal at a start (EXP-30 ii).
    fn lured(&self, node: usize) -> Option<String> {
        let server = self.nodes[node].server.as_ref()?;
        let data = self.nodes[node].disk.as_ref()?;
        if server.recovery_only {
            return None;
        }
        let own = self.wal.branches[self.wal.branch_at(data.branch, data.redo)].tli;
        let control = data.checkpoint_tli.max(own);
        let newest = newest_consecutive(data, control);
        let text = data.histories.get(&newest).filter(|_| newest != control)?;
        let history: TimelineHistory = text.parse().unwrap_or_default();
        if history.forks().is_empty() {
            // It takes the burnt id for its target, is never consistent, and lets nobody in.
            return self.options.burnt_ids_are_fatal.then(String::new);
        }
        let child = history.leaves(own).is_some_and(|at| at.get() >= data.redo);
        (!child).then(|| format!("exit code 1: requested timeline {newest} is not a child of this server's history"))
    }

    /// Crash recovery without standby.signal: on the timeline that pg_control names.
    fn open_in_place(&mut self, node: usize, id: u64) {
        let Some(data) = self.nodes[node].disk.clone() else { return };
        let control = data.min_recovery.1.map_or(data.checkpoint_tli, |tli| tli.max(data.checkpoint_tli));
        let mut branch = data.branch;
        while self.wal.branches[branch].tli > control {
            let Some((parent, _)) = self.wal.branches[branch].parent else { break };
            branch = parent;
        }
        let end = if branch == data.branch { data.end } else { u64::MAX };
        let whole = self.wal.whole(branch, end.min(data.end));
        self.cut_branch(branch, whole, node);
        let end = self.wal.append(branch, 114);
        if let Some(data) = &mut self.nodes[node].disk {
            (data.branch, data.end, data.control) = (branch, end, ControlState::InProduction);
            (data.redo, data.checkpoint_tli, data.min_recovery) = (whole, self.wal.branches[branch].tli, (0, None));
        }
        self.coverage.restarts_in_place += 1;
        self.opened(node, id, end);
    }

    /// What lay beyond `position` on a branch is gone from this disk for good; torn bytes of it elsewhere mean nothing.
    fn cut_branch(&mut self, branch: usize, position: u64, owner: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != owner) {
            let Some(data) = &self.nodes[other].disk else { continue };
            let Some(shared) = self.wal.shared(data.branch, branch) else { continue };
            let has = self.wal.whole(data.branch, data.end).min(shared);
            if has > position && data.branch == branch {
                let text = format!(
                    "{} holds timeline {} to {} beyond what its primary has ({})",
                    self.nodes[other].name,
                    self.wal.branches[branch].tli,
                    lsn(has),
                    lsn(position)
                );
                self.violation("O5", text);
            }
            if let Some(data) = &mut self.nodes[other].disk
                && data.branch == branch
            {
                data.end = data.end.min(position);
            }
        }
        self.wal.truncate(branch, position);
    }

    /// Out of recovery: from now on it can acknowledge.
    fn opened(&mut self, node: usize, id: u64, at: u64) {
        if let Some(server) = self.server_of(node, id) {
            (server.primary, server.ready, server.replay, server.promoting) = (true, true, at, false);
            (server.upstream, server.conninfo) = (None, None);
        }
        let who = self.nodes[node].who();
        let tli = self.nodes[node].disk.as_ref().map(|data| self.wal.branches[data.branch].tli.get()).unwrap_or_default();
        self.trace.line(self.now, &who, &format!("postgres accepts writes on timeline {tli}"));
        self.judge_primary(node);
        self.in_server(node, id, 20_000_000, move |world| {
            if let Some(data) = &mut world.nodes[node].disk {
                data.standby_signal = true;
            }
        });
    }

    /// `pg_promote`: the id is the one after the newest history file that follows ours without a gap.
    pub(super) fn promote_server(&mut self, node: usize) {
        let Some(server) = &mut self.nodes[node].server else { return };
        let id = server.id;
        (server.promoting, server.upstream) = (true, None);
        if self.random.chance(10) {
            return; // It never ends.
        }
        let slow = if self.random.chance(80) { 10 } else { 1 };
        let takes = self.random.millis(40, 200 * slow);
        if self.random.chance(20) {
            self.in_server(node, id, takes, move |world| world.end_server(node, "signal 6", false));
            return;
        }
        self.in_server(node, id, takes * 4 / 5, move |world| world.write_own_history(node));
        self.in_server(node, id, takes, move |world| world.promoted(node, id));
    }

    /// The history file, and the last segment under its new name: data that dies now lies on a timeline without a record.
    fn write_own_history(&mut self, node: usize) {
        let Some(data) = self.nodes[node].disk.as_ref() else { return };
        let (parent, at) = (data.branch, self.wal.whole(data.branch, data.end));
        let own = self.wal.branches[parent].tli;
        let tli = newest_consecutive(data, own).next();
        let before = data.histories.get(&own).cloned().unwrap_or_default();
        let branch = self.wal.fork(parent, at, tli);
        if let Some(data) = &mut self.nodes[node].disk {
            data.histories.insert(tli, format!("{before}{own}\t{}\tno recovery target specified\n", lsn(at)));
            (data.branch, data.end, data.standby_signal) = (branch, at, false);
        }
    }

    fn promoted(&mut self, node: usize, id: u64) {
        let Some(branch) = self.nodes[node].disk.as_ref().map(|data| data.branch) else { return };
        let tli = self.wal.branches[branch].tli;
        let end = self.wal.append(branch, 42);
        if let Some(data) = &mut self.nodes[node].disk {
            (data.end, data.control) = (end, ControlState::InProduction);
            data.min_recovery = (end, Some(tli));
        }
        self.coverage.promotions += 1;
        self.judge_branch(node, branch);
        self.opened(node, id, end);
    }

    /// What goes on all the time in a running server: replay, the stream, or clients.
    fn tick(&mut self, node: usize, id: u64) {
        let Some(server) = self.nodes[node].server.as_ref().filter(|server| server.id == id) else { return };
        if server.primary {
            self.workload(node, id);
        } else if server.postmaster && server.ready && server.stopping.is_none() {
            if !server.promoting {
                self.stream(node, id);
            }
            self.replay(node, id);
        }
        let pause = self.random.millis(20, 70);
        self.in_server(node, id, pause, move |world| world.tick(node, id));
    }

    fn replay(&mut self, node: usize, id: u64) {
        let lag = if self.random.chance(200) { self.random.below(3_000) } else { 0 };
        let Some(data) = &self.nodes[node].disk else { return };
        let to = self.wal.boundary_before(data.branch, data.end, lag);
        let restart = self.random.chance(20);
        let tli = self.wal.branches[self.wal.branch_at(data.branch, to)].tli;
        let Some(server) = self.server_of(node, id) else { return };
        server.replay = server.replay.max(to);
        let replay = server.replay;
        if restart && let Some(data) = &mut self.nodes[node].disk {
            (data.redo, data.checkpoint_tli, data.min_recovery) = (replay, tli, (replay, Some(tli)));
        }
    }

    fn stream(&mut self, node: usize, id: u64) {
        let now = self.now;
        let Some(server) = self.nodes[node].server.as_ref() else { return };
        let Some(upstream) = &server.upstream else {
            self.connect(node, id);
            return;
        };
        let (from, from_id, heard) = (upstream.node, upstream.id, upstream.heard);
        let reaches = self.network.reaches(from, node, now) && self.nodes[from].asleep_until <= now && self.nodes[from].up;
        let lives = self.nodes[from].server.as_ref().is_some_and(|there| there.id == from_id && there.ready);
        let frozen = self.nodes[from].server.as_ref().is_some_and(|there| there.frozen_until > now);
        if (!reaches || frozen) && now.saturating_sub(heard) < STREAM_TIMEOUT {
            return;
        }
        if !reaches || frozen || !lives || !self.transfer(node, from) {
            self.hang_up(node, id);
            return;
        }
        self.acknowledge(node, id, from);
    }

    fn hang_up(&mut self, node: usize, id: u64) {
        let now = self.now;
        let Some(server) = self.server_of(node, id) else { return };
        let Some(upstream) = server.upstream.take() else { return };
        if self.network.reaches(node, upstream.node, now)
            && let Some(there) = self.server_of(upstream.node, upstream.id)
        {
            there.senders.remove(&node);
        }
    }

    fn connect(&mut self, node: usize, id: u64) {
        let now = self.now;
        let Some(server) = self.nodes[node].server.as_ref().filter(|server| !server.recovery_only) else { return };
        let Some(follow) = &server.conninfo else { return };
        let name = server.application_name.clone();
        let slot = follow.slot.clone();
        let Some(to) = self.nodes.iter().position(|other| other.name == follow.node).filter(|to| *to != node) else { return };
        if !self.network.talks(node, to, now) || self.nodes[to].asleep_until > now {
            return;
        }
        let has_slot = self.nodes[to].disk.as_ref().is_some_and(|data| data.slots.contains(&slot));
        let Some(there) = self.nodes[to].server.as_mut() else { return };
        if !there.ready || !there.postmaster || there.stopping.is_some() || there.frozen_until > now || !has_slot {
            return;
        }
        let there_id = there.id;
        let reply = i64::try_from(now / 1_000).unwrap_or_default();
        there.senders.insert(node, Sender { name, flush: 0, replay: 0, reply, heard: now });
        if let Some(server) = self.server_of(node, id) {
            server.upstream = Some(Upstream { node: to, id: there_id, heard: now });
        }
    }

    /// A timeline that was made and never written to is left again without a trace, once its history file is replaced.
    fn leave_empty_branch(&mut self, node: usize) {
        let Some(data) = self.nodes[node].disk.as_ref() else { return };
        let of = &self.wal.branches[data.branch];
        let replaced = data.histories.get(&of.tli).is_none_or(|text| text.starts_with('#'));
        if let (true, true, Some((parent, at))) = (of.ends.is_empty(), replaced, of.parent)
            && let Some(data) = &mut self.nodes[node].disk
        {
            (data.branch, data.end) = (parent, at);
        }
    }

    /// Moves WAL; `false` where the sender refuses: the position asked for is not in its history.
    fn transfer(&mut self, node: usize, from: usize) -> bool {
        let slow = self.network.slow_streams > self.now;
        let step = if slow { self.random.below(300) } else { u64::MAX / 2 };
        let Some(theirs) = self.nodes[from].disk.as_ref() else { return false };
        let sends = match &self.nodes[from].server {
            Some(there) if there.primary => theirs.end,
            Some(there) => there.replay,
            None => return false,
        };
        let (branch, Some(mine)) = (theirs.branch, self.nodes[node].disk.as_ref()) else { return false };
        let whole = self.wal.whole(mine.branch, mine.end);
        let (own, own_end) = (mine.branch, mine.end);
        let Some(shared) = self.wal.shared(branch, own) else {
            if self.wal.branches[own].tli == self.wal.branches[branch].tli {
                let text = format!(
                    "{} streams timeline {} from {}, which is another history of the same id",
                    self.nodes[node].name, self.wal.branches[own].tli, self.nodes[from].name
                );
                self.violation("I7", text);
            }
            return false;
        };
        let replay = self.nodes[node].server.as_ref().map(|server| server.replay).unwrap_or_default();
        if own != branch && whole > shared {
            if replay <= shared {
                let text = format!(
                    "{} holds {} of timeline {} and would stream from {}, which left it at {}",
                    self.nodes[node].name,
                    lsn(whole),
                    self.wal.branches[own].tli,
                    self.nodes[from].name,
                    lsn(shared)
                );
                self.violation("I7", text);
            }
            return false;
        }
        let before = if own == branch { own_end } else { shared };
        let to = if sends < before { before } else { sends.min(before.saturating_add(step)) };
        if let Some(data) = &mut self.nodes[node].disk {
            (data.branch, data.end) = (branch, to);
        }
        if let Some(server) = &mut self.nodes[node].server {
            server.received = true;
        }
        true
    }

    fn acknowledge(&mut self, node: usize, id: u64, to: usize) {
        let now = self.now;
        let open = self.network.reaches(node, to, now);
        let flush = self.nodes[node].disk.as_ref().map(|data| data.end).unwrap_or_default();
        let Some(server) = self.server_of(node, id) else { return };
        let (replay, name) = (server.replay, server.application_name.clone());
        let Some(upstream) = &mut server.upstream else { return };
        upstream.heard = now;
        let there_id = upstream.id;
        let reply = i64::try_from(now / 1_000).unwrap_or_default();
        if open && let Some(there) = self.server_of(to, there_id) {
            let fresh = there.senders.get(&node).is_none_or(|row| row.flush != flush || now - row.heard > 1_000_000_000);
            if fresh {
                there.senders.insert(node, Sender { name, flush, replay, reply, heard: now });
            }
        }
    }

    /// What a session on this server sees; `None` where it does not answer.
    pub(super) fn facts(&mut self, node: usize) -> Option<ServerFacts> {
        let now = self.now;
        let nodes = &mut self.nodes;
        let server = nodes[node].server.as_mut()?;
        if !server.ready || !server.postmaster || server.frozen_until > now || server.stopping.is_some() || server.hidden {
            return None;
        }
        server.senders.retain(|_, row| now.saturating_sub(row.heard) < STREAM_TIMEOUT);
        let server = nodes[node].server.as_ref()?;
        let data = nodes[node].disk.as_ref()?;
        let tli = self.wal.branches[self.wal.branch_at(data.branch, server.replay)].tli;
        let role = if server.primary {
            let tli = self.wal.branches[data.branch].tli;
            ServerRole::Primary { tli, insert: lsn(self.wal.end(data.branch)), flush: lsn(data.end) }
        } else {
            let receiver = server.upstream.as_ref().map(|upstream| Receiver {
                streaming: true,
                sender: None,
                tli: Some(self.wal.branches[data.branch].tli),
                latest_end: nodes[upstream.node].disk.as_ref().map(|data| lsn(data.end)),
            });
            let conninfo = server
                .conninfo
                .as_ref()
                .filter(|_| !server.recovery_only)
                .map(|follow| format!("host={}", follow.address.host))
                .unwrap_or_default();
            let pause: Option<Pause> = None;
            ServerRole::Standby {
                tli,
                receive: server.received.then(|| lsn(data.end)),
                replay: lsn(server.replay),
                receiver,
                conninfo,
                pause,
                replay_ms: 0,
            }
        };
        let walsenders = server.senders.values().map(|row| Walsender {
            application_name: row.name.clone(),
            streaming: true,
            sent: Some(lsn(data.end)),
            write: Some(lsn(row.flush)),
            flush: Some(lsn(row.flush)),
            replay: Some(lsn(row.replay)),
            replay_ms: Some(0),
            reply: Some(row.reply),
        });
        let active = |name: &str| {
            server
                .senders
                .values()
                .any(|row| Replica::from_application_name(&row.name).is_some_and(|replica| replica.node.slot().as_str() == name))
        };
        let slots = data.slots.iter().map(|name| Slot { name: name.clone(), active: active(name.as_str()), retained: 0, lost: false });
        Some(ServerFacts {
            run: server.run,
            version_num: 150_018,
            system_id: SystemId::new(data.system),
            role,
            walsenders: walsenders.collect(),
            slots: slots.collect(),
            pending_restart: Vec::new(),
            sync_names: String::new(),
        })
    }

    /// The postmaster gets SIGKILL; its backends live on until the guard has killed them.
    pub(super) fn kill_postmaster(&mut self, node: usize) {
        let Some(server) = self.nodes[node].server.as_mut().filter(|server| server.postmaster) else { return };
        server.postmaster = false;
        server.upstream = None;
        let id = server.id;
        let bound = self.policy.timers().kill_bound.as_nanos() / 1_000_000;
        let longest = if self.random.chance(50) { bound * 8 / 10 } else { 60 };
        let takes = self.random.millis(3, longest);
        if self.options.mutation == super::Mutation::HastyRelease
            && let Some(server) = self.server_of(node, id)
        {
            server.hidden = true;
            self.note_end(node, "signal 9", false);
        }
        let takes = if self.options.mutation == super::Mutation::HastyRelease { takes + 2_000_000_000 } else { takes };
        self.tell_guard(node);
        self.later_at(node, takes, move |world| {
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
    pub(super) fn end_server(&mut self, node: usize, how: &str, wanted: bool) {
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
        if self.nodes[node].guard.is_some()
            && let Some(data) = &mut self.nodes[node].disk
        {
            data.standby_signal = true;
        }
        self.tell_guard(node);
    }

    /// A fast stop: clients go, everything is sent, a shutdown checkpoint ends the log.
    pub(super) fn stop_server(&mut self, node: usize, mode: StopMode, deadline: u64) {
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
        self.later_at(node, deadline.saturating_sub(now), move |world| {
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

    /// What the ledger has for this id.
    pub(super) fn ledger(&self, tli: TimelineId) -> Option<TimelineRecord> {
        let entry = self.store.entries.get(&crate::model::key::Key::Timeline(tli))?;
        serde_json::from_str(&entry.text).ok()
    }

    pub(super) fn ledger_reserves(&self, tli: TimelineId, node: usize) -> bool {
        self.ledger(tli).is_some_and(|entry| entry.state == TimelineState::Reserved && entry.owner.node == self.nodes[node].name)
    }
}

/// The newest history file that follows `from` without a gap.
fn newest_consecutive(data: &Data, from: TimelineId) -> TimelineId {
    let mut newest = from;
    while data.histories.contains_key(&newest.next()) {
        newest = newest.next();
    }
    newest
}

impl Server {
    pub(super) fn upstream_node(&self) -> Option<usize> {
        self.upstream.as_ref().map(|upstream| upstream.node)
    }

    /// The stream ends; its sender notices by itself.
    pub(super) fn drop_upstream(&mut self) {
        self.upstream = None;
    }
}
