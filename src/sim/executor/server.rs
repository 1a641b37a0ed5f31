//! What is told to a running PostgreSQL: its configuration, the end of its stream, statements.

use crate::{
    agent::event::Event,
    decide::{
        decision::{Configuration, Task},
        snapshot::{Probed, Shown},
    },
    model::{
        moment::Moment,
        node::{Address, Replica},
        timeline::TimelineId,
    },
    sim::{Mutation, node::Data, wal::lsn, world::World},
};

/// Nothing is written on a disk that has no room.
const FULL: &str = "No space left on device";

impl World {
    pub(super) fn configure(&mut self, node: usize, run: u64, configuration: Configuration) {
        let takes = self.random.tailed(5, 60);
        self.in_run(node, run, takes, move |world| {
            let written = world.nodes[node].conf.as_ref() == Some(&configuration);
            if world.nodes[node].full_disk > world.now && !written {
                world.end(node, run, 0, Task::Configure, Err(FULL.to_owned()));
                return;
            }
            let standby = world.nodes[node].server.as_ref().is_some_and(|server| !server.primary);
            let mut written = configuration.clone();
            if standby && world.options.mutation == Mutation::NamesDropped {
                written.sync_names.clear();
            }
            world.nodes[node].conf = Some(written);
            if let Some(agent) = world.nodes[node].agent_of(run) {
                agent.rendered = true;
            }
            let deaf = world.nodes[node]
                .server
                .as_ref()
                .is_some_and(|server| !server.ready || !server.postmaster || server.stopping.is_some() || server.frozen_until > world.now);
            if deaf {
                world.end(node, run, 0, Task::Configure, Err("PostgreSQL does not answer".to_owned()));
                return;
            }
            world.nodes[node].by_hand = None;
            if let Some(server) = world.nodes[node].server.as_mut().filter(|server| !server.primary) {
                // The name stands in primary_conninfo, too.
                let moved = server.conninfo != configuration.follow || server.application_name != configuration.application_name;
                server.conninfo.clone_from(&configuration.follow);
                server.application_name.clone_from(&configuration.application_name);
                if moved {
                    server.drop_upstream();
                }
            }
            if configuration.follow.as_ref().is_some_and(|follow| follow.slot.is_none()) {
                world.coverage.fetches += 1;
            }
            world.reload_names(node);
            world.deliver(node, run, Event::Configured(Box::new(configuration)));
            world.end(node, run, 0, Task::Configure, Ok(()));
        });
    }

    pub(super) fn cut_stream(&mut self, node: usize, run: u64) {
        let takes = self.random.tailed(10, 120);
        self.in_run(node, run, takes, move |world| {
            let written = world.nodes[node].conf.as_ref().is_some_and(|conf| conf.follow.is_none());
            if world.nodes[node].full_disk > world.now && !written {
                world.end(node, run, 0, Task::CutStream, Err(FULL.to_owned()));
                return;
            }
            let rendered = world.nodes[node].agent_of(run).is_some_and(|agent| agent.rendered);
            let answers = world.nodes[node]
                .server
                .as_ref()
                .is_some_and(|server| server.ready && server.postmaster && server.stopping.is_none() && server.frozen_until <= world.now);
            if !rendered || !answers {
                let why = if rendered { "PostgreSQL does not answer" } else { "the managed configuration has not been written yet" };
                world.end(node, run, 0, Task::CutStream, Err(why.to_owned()));
                return;
            }
            if let Some(conf) = &mut world.nodes[node].conf {
                conf.follow = None;
            }
            let believed = world.options.mutation == Mutation::CutBelieved;
            if let Some(server) = world.nodes[node].server.as_mut().filter(|_| !believed) {
                let (id, former) = (server.id, server.conninfo.take());
                server.drop_upstream();
                if let Some(former) = former.filter(|_| world.random.chance(200)) {
                    world.start_late(node, id, former);
                    world.after_cut();
                }
            }
            world.deliver(node, run, Event::StreamCut);
            if let Some(facts) = world.facts(node) {
                let asked = world.nodes[node].clock.boot(world.now);
                world.deliver(node, run, Event::Server { facts, asked });
            }
            world.end(node, run, 0, Task::CutStream, Ok(()));
        });
    }

    /// Asks another server for any answer at all.
    pub(super) fn ask_primary(&mut self, node: usize, run: u64, address: Address) {
        let at = self.nodes[node].clock.boot(self.now);
        let to = self.at_address(&address);
        let there = move |world: &Self| {
            to.filter(|to| {
                world.network.talks(node, *to, world.now) && world.nodes[*to].asleep_until <= world.now && !world.is_cut_off(node, *to)
            })
        };
        let reached = there(self);
        // A port that nobody listens on refuses at once.
        let refused = reached.is_some_and(|to| self.nodes[to].up && self.nodes[to].server.is_none());
        let answers = reached
            .and_then(|to| self.nodes[to].server.as_ref())
            .is_some_and(|server| server.postmaster && server.frozen_until <= self.now);
        let takes = if refused || answers { self.random.tailed(2, 40) } else { 500_000_000 };
        self.in_run(node, run, takes, move |world| {
            let answered = answers && there(world).is_some();
            world.deliver(node, run, Event::Probed(Probed { address, answered, at }));
            world.end(node, run, 0, Task::Probe, Ok(()));
        });
    }

    /// Waits for a new session that shows the names, makes two checkpoints, and writes something behind that.
    pub(super) fn show_names(&mut self, node: usize, run: u64, names: String, checkpoints: bool) {
        let at = self.nodes[node].clock.boot(self.now);
        let end = self.now + 5_000_000_000;
        self.look_for_names(node, run, names, checkpoints, at, end);
    }

    fn look_for_names(&mut self, node: usize, run: u64, names: String, checkpoints: bool, at: Moment, end: u64) {
        let takes = self.random.tailed(2, 20);
        self.in_run(node, run, takes, move |world| {
            let answers = world.nodes[node]
                .server
                .as_ref()
                .filter(|server| server.ready && server.postmaster && server.stopping.is_none() && server.frozen_until <= world.now);
            let Some((id, shown)) = answers.map(|server| (server.id, server.names == names)) else {
                world.end(node, run, 0, Task::ShowNames, Err("PostgreSQL does not answer".to_owned()));
                return;
            };
            if !shown && world.now >= end {
                world.end(node, run, 0, Task::ShowNames, Err("new sessions show other names".to_owned()));
            } else if !shown {
                world.look_for_names(node, run, names, checkpoints, at, end);
            } else if checkpoints {
                // The second one begins when the checkpointer has come round: it has taken the names in.
                let takes = world.random.tailed(20, 400) + world.random.tailed(20, 400);
                world.in_run(node, run, takes, move |world| {
                    if world.options.mutation != Mutation::FlagBelieved {
                        world.heard_by_checkpointer(node, id);
                    }
                    world.mark(node, run, id, names, true, at);
                });
            } else {
                world.mark(node, run, id, names, false, at);
            }
        });
    }

    fn mark(&mut self, node: usize, run: u64, id: u64, names: String, checkpoints: bool, at: Moment) {
        let Some(server) = self.server_of(node, id).filter(|server| server.ready && server.postmaster && server.stopping.is_none()) else {
            self.end(node, run, 0, Task::ShowNames, Err("PostgreSQL does not answer".to_owned()));
            return;
        };
        let (of, primary) = (server.run, server.primary);
        let mut mark = None;
        if let Some(branch) = self.nodes[node].disk.as_ref().map(|data| data.branch).filter(|_| primary) {
            let end = self.wal.append(branch, 60);
            if let Some(data) = &mut self.nodes[node].disk {
                data.end = data.end.max(end);
            }
            mark = Some(lsn(end));
        }
        self.deliver(node, run, Event::Shown(Shown { run: of, names, checkpoints, mark, at, known: at }));
        self.end(node, run, 0, Task::ShowNames, Ok(()));
    }

    pub(super) fn end_walsenders(&mut self, node: usize, run: u64, replicas: Vec<Replica>) {
        let takes = self.random.tailed(2, 30);
        self.in_run(node, run, takes, move |world| {
            let names: Vec<String> = replicas.iter().map(Replica::application_name).collect();
            if let Some(server) = world.nodes[node].server.as_mut().filter(|server| server.ready && server.postmaster) {
                server.end_senders(&names);
            }
            world.end(node, run, 0, Task::EndWalsenders, Ok(()));
        });
    }

    /// A statement.
    pub(super) fn sql(&mut self, node: usize, run: u64, task: Task, effect: impl FnOnce(&mut Data, TimelineId, u64) + 'static) {
        let takes = self.random.tailed(5, 80);
        self.in_agent(node, run, takes, move |world| {
            // A slot can be dropped on a standby too.
            let server =
                world.nodes[node].server.as_ref().filter(|server| server.ready && server.postmaster && server.frozen_until <= world.now);
            let answers = server.is_some_and(|server| server.primary || task == Task::Slot);
            if !answers {
                world.end(node, run, 0, task, Err("PostgreSQL does not answer".to_owned()));
                return;
            }
            if let Some(data) = &mut world.nodes[node].disk {
                let tli = world.wal.branches[data.branch].tli;
                let end = world.wal.whole(data.branch, data.end);
                effect(data, tli, end);
            }
            if let Some(facts) = world.facts(node).filter(|_| task == Task::Slot) {
                let asked = world.nodes[node].clock.boot(world.now);
                world.deliver(node, run, Event::Server { facts, asked });
            }
            world.end(node, run, 0, task, Ok(()));
        });
    }
}
