//! What happens to a whole host: it loses power, sleeps, or comes back as it once was.

use crate::{
    model::{key::Key, record::NodeRecord, timeline::TimelineId},
    sim::{
        Mutation,
        node::{Data, Node, fresh},
        world::World,
    },
};

/// A snapshot of a machine is older than this when the machine is set back to it.
const OLD: u64 = 15_000_000_000;

/// An agent that has just been started needs so long to note how far its data are.
const LOOKS: u64 = 5_000_000_000;

impl World {
    /// Power off: everything in memory is gone at once.
    pub(in crate::sim) fn lose_host(&mut self, node: usize, back: u64) {
        if !self.nodes[node].up {
            return;
        }
        self.kill_agent(node, "power off");
        self.nodes[node].guard = None;
        if self.nodes[node].server.is_some() {
            self.end_server(node, "power off", false);
        }
        let of = &mut self.nodes[node];
        of.life += 1;
        of.up = false;
        of.asleep_until = 0;
        of.excused = None;
        of.vowed = of.file.promised.max(of.file.claimed.unwrap_or(of.file.promised));
        self.later(back, move |world| world.boot_host(node));
    }

    pub(in crate::sim) fn boot_host(&mut self, node: usize) {
        let now = self.now;
        let of = &mut self.nodes[node];
        if of.up || !of.present {
            return;
        }
        of.up = true;
        of.clock.start(now);
        let who = of.who();
        self.trace.line(now, &who, "host boots");
        let after = self.random.millis(100, 2_000);
        self.later_at(node, after, move |world| {
            world.nodes[node].stopped = false;
            world.start_agent(node);
        });
    }

    /// `CLOCK_BOOTTIME` goes on, `CLOCK_MONOTONIC` and everything else stand still.
    pub(super) fn suspend(&mut self, node: usize, lasts: u64) {
        let of = &mut self.nodes[node];
        if !of.up || of.asleep_until > self.now {
            return;
        }
        of.asleep_until = self.now + lasts;
        let life = of.life;
        // On waking, the kernel's timers are the first to run.
        self.later(lasts, move |world| {
            let of = &mut world.nodes[node];
            if of.life != life {
                return;
            }
            of.clock.slept(lasts);
            let now = of.clock.boot(world.now);
            let dying = of.server.as_ref().is_some_and(|server| !server.postmaster && !server.hidden);
            if dying {
                // What was killed before is dead at once.
                world.end_server(node, "signal 9", false);
                return;
            }
            let late = of.guard.as_ref().is_some_and(|guard| guard.armed.is_some_and(|armed| armed.until <= now));
            if late && world.options.mutation != Mutation::DeafGuard {
                world.coverage.deadlines += 1;
                world.kill_guard(node, "the deadline passed while the host slept");
                if world.nodes[node].server.is_some() {
                    world.end_server(node, "signal 9", false);
                }
            }
        });
    }

    /// A virtual machine stands still, and none of its clocks notices. What it may still do by them the protocol leaves open (1.3, *I1'*).
    pub(super) fn freeze(&mut self, node: usize, lasts: u64) {
        let now = self.now;
        let bound = self.policy.timers().kill_bound;
        // By the store's word or its peers', whichever its guard was armed for, or will be: an answer that was on its way counts from its send.
        let armed = self.nodes[node].guard.as_ref().and_then(|guard| guard.armed.as_ref()).map(|armed| armed.until);
        let longest = self.oracle.longest.get(&node).copied();
        let authority = self.authority(node).map(|(_, until)| until).max(armed).max(longest).map(|until| until.plus(bound));
        let of = &mut self.nodes[node];
        if !of.up || of.asleep_until > now {
            return;
        }
        of.asleep_until = now + lasts;
        of.frozen_for += lasts;
        of.clock.freeze(true, now);
        of.excused = authority.max(of.excused);
        let life = of.life;
        self.later(lasts, move |world| {
            let now = world.now;
            if let Some(of) = world.nodes.get_mut(node).filter(|of| of.life == life) {
                of.clock.freeze(false, now);
            }
        });
    }

    /// Its clocks run at another rate from now on, within what the protocol allows.
    pub(super) fn change_rate(&mut self, node: usize) {
        let ppm = crate::sim::node::rate(&mut self.random);
        let now = self.now;
        if self.nodes[node].up && self.nodes[node].asleep_until <= now {
            self.nodes[node].clock.drift(ppm, now);
            self.watch_deadline(node);
        }
    }

    /// Keeps what lies on each host's disks, for a machine that is set back to it later.
    pub(in crate::sim) fn save_hosts(&mut self) {
        for node in 0..self.members {
            let of = &mut self.nodes[node];
            if let (true, Some(disk)) = (of.up && of.file_made && of.asleep_until <= self.now, &of.disk) {
                of.saved.push((self.now, of.file.clone(), disk.clone()));
                if of.saved.len() > 3 {
                    of.saved.remove(0);
                }
            }
        }
        let next = self.random.millis(15_000, 45_000);
        self.later(next, Self::save_hosts);
    }

    /// Until when somebody was there to note how far this host's data are (protocol 1.2, `nodes`).
    pub(in crate::sim) fn attended_until(&self, node: usize) -> u64 {
        let of = &self.nodes[node];
        let looks = of.agent.is_some() && of.attended.0 + LOOKS <= self.now;
        if looks { self.now } else { of.attended.1 }
    }

    /// Whether a disk was set back, and nobody has noticed yet: that takes the other one, and etcd. Both gone at once are two losses (1.14).
    pub(in crate::sim) fn is_set_back(&self) -> bool {
        self.nodes.iter().any(|of| of.present && of.spoilt.contains(&of.file.data))
    }

    /// The machine is set back to a snapshot: its data alone, or the node file too.
    pub(super) fn roll_back(&mut self, node: usize, back: u64) {
        let (oldest, file_too) = (self.random.chance(500), self.random.chance(600));
        // What a disk lost in the last moments before the power went nothing can tell from a disk that lies (1.7, *I2*). Nor can anything
        // tell what came after its agent's end: nobody has noted it anywhere. Where the file goes too, etcd alone knows better.
        let attended = self.attended_until(node);
        let noted = if file_too { attended.min(self.nodes[node].published_at) } else { attended };
        let before = noted.saturating_sub(OLD);
        self.lose_host(node, back);
        self.later(back.saturating_sub(1), move |world| {
            if !world.can_spare(node) || world.nodes[node].up {
                return;
            }
            let of = &mut world.nodes[node];
            // Its file knows more than the disk that comes back, unless what was there was the same.
            let noted = of.file.boundary.map_or(0, |noted| noted.lsn.get());
            let known = |disk: &Data| file_too || noted > disk.end || of.disk.as_ref().is_some_and(|there| there.end == disk.end);
            let mut saved = of.saved.iter().filter(|(at, _, disk)| *at < before && known(disk));
            let Some((_, file, disk)) = (if oldest { saved.next() } else { saved.next_back() }).cloned() else { return };
            if of.disk.is_none() || disk.half_rewound {
                return;
            }
            of.disk = Some(disk);
            of.spoilt.insert(of.file.data.clone());
            if file_too {
                of.file = file;
                of.spoilt.insert(of.file.data.clone());
            }
            world.coverage.rolled_back += 1;
            let who = world.nodes[node].who();
            world.trace.line(world.now, &who, if file_too { "machine is set back" } else { "data directory is set back" });
        });
    }

    /// A copy of the machine, as a snapshot has kept it, is started beside it: under the same name, at another address. Somebody takes it away
    /// later.
    pub(super) fn copy_host(&mut self, node: usize, lasts: u64) {
        let copy = self.members;
        // What is newer than what etcd heard of the original nothing can tell from a copy that has lost it.
        let before = self.attended_until(node).min(self.nodes[node].published_at).saturating_sub(OLD);
        let known = self.nodes[node].saved.iter().rev().find(|(at, _, disk)| *at < before && !disk.half_rewound);
        let Some((_, file, disk)) = known.cloned().filter(|_| self.machines() == self.members && self.can_spare(node)) else { return };
        let (name, tags, ppm) = (self.nodes[node].name.clone(), self.nodes[node].tags.clone(), crate::sim::node::rate(&mut self.random));
        let zone = self.nodes[node].zone.clone();
        let of = &mut self.nodes[copy];
        let life = of.life + 1;
        *of = Node { present: true, up: false, host: format!("{name}-copy"), name, tags, zone, life, ..fresh(copy, &mut self.random) };
        of.clock.drift(ppm, self.now);
        (of.spoilt, of.file_made) = ([file.data.clone()].into(), true);
        (of.file, of.disk) = (file, Some(disk));
        self.coverage.copied += 1;
        self.boot_host(copy);
        self.later(lasts.max(5 * crate::sim::SECOND), Self::remove_copy);
    }

    /// The copy is taken away for good, as soon as all others have what is needed: who knows which of the two has it.
    pub(in crate::sim) fn remove_copy(&mut self) {
        let copy = self.members;
        if !self.nodes[copy].present {
            return;
        }
        if !self.can_go(copy) {
            self.later(crate::sim::SECOND, Self::remove_copy);
            return;
        }
        self.lose_host(copy, u64::MAX / 2);
        // What it has confirmed it had: its disk is looked at by oracles alone.
        let of = &mut self.nodes[copy];
        of.present = false;
        of.spoilt.clear();
        let who = of.who();
        self.trace.line(self.now, &who, "the copied machine is taken away");
    }

    /// Whether somebody of another name may lead, and all those on whom `sync` counts have what it promises.
    fn can_go(&self, copy: usize) -> bool {
        let Some(sync) = self.sync_in_force() else { return false };
        let name = &self.nodes[copy].name;
        let there = |replica: &crate::model::node::Replica| {
            let of = self.nodes.iter().take(self.members).find(|of| of.name == replica.node);
            of.is_some_and(|of| of.file.data == replica.data && of.is_whole() && !of.spoilt.contains(&of.file.data))
        };
        let lead: Vec<_> = sync.electable.iter().chain([&sync.primary]).filter(|replica| replica.node != *name).collect();
        let counted = lead.iter().copied().chain(&sync.voters).filter(|replica| replica.node != *name);
        // What it has begun as primary, also if it is off now, another one has to go on with.
        let of = &self.nodes[copy];
        let began = of.is_primary() || of.file.claimed == Some(sync.term) && sync.primary.data == of.file.data;
        let log = |of: &Node| of.disk.as_ref().map(|disk| (disk.branch, disk.end));
        let has_all = |of: &Node| log(of).zip(log(&self.nodes[copy])).is_some_and(|((branch, end), row)| self.wal.holds(branch, end, row));
        let follows =
            |replica: &&crate::model::node::Replica| self.nodes.iter().take(self.members).any(|of| of.name == replica.node && has_all(of));
        !lead.is_empty() && (!began || lead.iter().any(follows)) && counted.into_iter().all(there)
    }

    /// The node file is gone when the host comes back.
    pub(super) fn lose_file(&mut self, node: usize, back: u64) {
        self.lose_host(node, back);
        self.later(back.saturating_sub(1), move |world| {
            if world.can_spare(node) && !world.nodes[node].up && world.nodes[node].disk.as_ref().is_some_and(|disk| !disk.half_rewound) {
                world.nodes[node].file_made = false;
                world.coverage.files_lost += 1;
                let who = world.nodes[node].who();
                world.trace.line(world.now, &who, "node file is lost");
            }
        });
    }

    /// Whether all others have what this node has, as far as `sync` promises that: two such losses at once may need the operator (1.14).
    fn can_spare(&self, node: usize) -> bool {
        let Some(sync) = self.sync_in_force() else { return false };
        // A copy of it may have begun another life in its name: then its own counts no more. Or its key was deleted.
        let published = |of: &crate::sim::node::Node| {
            let stored = self.store.entries.get(&Key::Node(of.name.clone())).map(|entry| &entry.text);
            stored.and_then(|text| serde_json::from_str::<NodeRecord>(text).ok()).is_some_and(|node| node.data == of.file.data)
        };
        let known = |of: &crate::sim::node::Node| {
            let replica = crate::model::node::Replica::new(of.name.clone(), of.file.data.clone());
            of.is_whole()
                && of.file_made
                && published(of)
                && !of.spoilt.contains(&of.file.data)
                && (sync.primary == replica || sync.electable.contains(&replica))
        };
        let on =
            |of: usize| self.nodes[of].disk.as_ref().map_or((TimelineId::FIRST, 0), |disk| (self.wal.branches[disk.branch].tli, disk.end));
        let others = (0..self.machines()).filter(|other| *other != node);
        // In `async` nobody takes over who is on an older timeline, or lacks more than `max_lag`.
        let ((tli, end), mut others_on) = (on(node), others.clone().map(on));
        let near = sync.is_lossless() || others_on.any(|(theirs, there)| theirs >= tli && there + 500_000 > end);
        // What a life that is gone has confirmed may be here alone, until `sync` has dropped it.
        let present = self.nodes.iter().filter(|of| of.present);
        let lives = |voter: &crate::model::node::Replica| present.clone().any(|of| of.name == voter.node && of.file.data == voter.data);
        near && sync.voters.iter().all(lives)
            && self.members > 1
            && self.store.before.is_none()
            && published(&self.nodes[node])
            && others.into_iter().all(|other| known(&self.nodes[other]))
    }
}
