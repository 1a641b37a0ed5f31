//! PostgreSQL, asynchronous: recovery, promotion, streaming, stops and crashes, as lessons.md section 0 measured them.
//!
//! In reading order: `process` (its starts and ends), `recovery`, `promotion`, `stream`, `sync` (what commits wait for).

mod process;
mod promotion;
mod recovery;
mod stream;
mod sync;

use super::{
    wal::lsn,
    world::{Job, World},
};
use crate::{
    decide::decision::Follow,
    model::{
        instance::{Pause, Receiver, RecoveryTarget, Run, ServerFacts, ServerRole, Slot, StartAs, StopMode, Walsender},
        node::{Replica, SystemId},
        timeline::TimelineId,
    },
};
use std::collections::{BTreeMap, BTreeSet};

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
    /// Replays, and lets nobody in before it has reached the point of consistency.
    pub(super) inconsistent: bool,
    pub(super) stopping: Option<StopMode>,
    pub(super) frozen_until: u64,
    pub(super) replay: u64,
    pub(super) received: bool,
    pub(super) conninfo: Option<Follow>,
    pub(super) target: RecoveryTarget,
    /// The timeline that recovery takes for its target, which it leaves for one that grew out of it alone.
    pub(super) aims: TimelineId,
    pub(super) application_name: String,
    pub(super) promoting: bool,
    /// The end of what it came up with as a primary.
    pub(super) came_up_with: u64,
    /// Whether clients were sent here since.
    pub(super) was_routed: bool,
    pub(super) upstream: Option<Upstream>,
    pub(super) senders: BTreeMap<usize, Sender>,
    /// `synchronous_standby_names` as the postmaster, and so each new session, has it.
    pub(super) names: String,
    /// Where the log ended when the postmaster had passed that on.
    pub(super) names_at: u64,
    /// The checkpointer's flag: whether anybody has to confirm.
    pub(super) defined: bool,
    /// What somebody has set by hand while it ran; and whether the flag comes from that.
    pub(super) by_hand: BTreeSet<String>,
    pub(super) flag_by_hand: bool,
    /// Commits that are flushed here and wait: their branch, and where they end.
    pub(super) waiting: Vec<(usize, u64)>,
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
    /// `synchronous_standby_names` as this walsender has it.
    names: String,
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

    /// What goes on all the time in a running server: replay, the stream, or clients.
    fn tick(&mut self, node: usize, id: u64) {
        let Some(server) = self.nodes[node].server.as_ref().filter(|server| server.id == id) else { return };
        if server.primary {
            self.workload(node, id);
        } else if server.postmaster && (server.ready || server.inconsistent) && server.stopping.is_none() {
            if !server.promoting {
                self.stream(node, id);
            }
            self.replay(node, id);
        }
        let pause = self.random.millis(20, 70);
        self.in_server(node, id, pause, move |world| world.tick(node, id));
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
                sender: Some(nodes[upstream.node].address()),
                tli: Some(self.wal.branches[data.branch].tli),
                latest_end: nodes[upstream.node].disk.as_ref().map(|data| lsn(data.end)),
            });
            let conninfo = server
                .conninfo
                .as_ref()
                .filter(|_| server.target == RecoveryTarget::Latest)
                .map(|follow| format!("host={}", follow.address.host))
                .unwrap_or_default();
            let pause: Option<Pause> = None;
            ServerRole::Standby {
                tli,
                receive: server.received.then(|| lsn(data.end)),
                replay: lsn(server.replay),
                receiver,
                conninfo,
                target: server.target,
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
            oldest_wal: None,
            sync_names: server.names.clone(),
            weak_commits: None,
            waiting: None,
        })
    }
}

pub(super) use sync::listed;

impl Sender {
    /// Whether it finds its own name among those that it acts on.
    fn counts(&self) -> bool {
        listed(&self.names).is_some_and(|view| view.names.contains(&self.name))
    }
}

impl Server {
    /// These walsenders are gone; their receivers notice, and come again.
    pub(super) fn end_senders(&mut self, names: &[String]) {
        self.senders.retain(|_, row| !names.contains(&row.name));
    }

    /// The names that each walsender acts on. One that does not find its own among them releases nobody.
    pub(super) fn views(&self) -> impl Iterator<Item = &str> {
        self.senders.values().filter(|row| row.counts()).map(|row| row.names.as_str())
    }

    pub(super) fn upstream_node(&self) -> Option<usize> {
        self.upstream.as_ref().map(|upstream| upstream.node)
    }

    /// Takes writes of whoever can reach it.
    pub(super) const fn serves(&self, now: u64) -> bool {
        self.primary && self.postmaster && self.frozen_until <= now
    }

    /// The stream ends; its sender notices by itself.
    pub(super) fn drop_upstream(&mut self) {
        self.upstream = None;
    }
}
