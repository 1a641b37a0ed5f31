//! What is told to a running PostgreSQL: its configuration, the end of its stream, statements.

use crate::{
    agent::event::Event,
    decide::decision::{Configuration, Task},
    model::timeline::TimelineId,
    sim::{node::Data, world::World},
};

impl World {
    pub(super) fn configure(&mut self, node: usize, run: u64, configuration: Configuration) {
        let takes = self.random.tailed(5, 60);
        self.in_run(node, run, takes, move |world| {
            world.nodes[node].conf = Some(configuration.clone());
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
            if let Some(server) = world.nodes[node].server.as_mut().filter(|server| !server.primary) {
                let moved = server.conninfo != configuration.follow;
                server.conninfo.clone_from(&configuration.follow);
                if moved {
                    server.drop_upstream();
                }
            }
            world.deliver(node, run, Event::Configured(Box::new(configuration)));
            world.end(node, run, 0, Task::Configure, Ok(()));
        });
    }

    pub(super) fn cut_stream(&mut self, node: usize, run: u64) {
        let takes = self.random.tailed(10, 120);
        self.in_run(node, run, takes, move |world| {
            let rendered = world.nodes[node].agent_of(run).is_some_and(|agent| agent.rendered);
            let answers = world.nodes[node]
                .server
                .as_ref()
                .is_some_and(|server| server.ready && server.postmaster && server.frozen_until <= world.now);
            if !rendered || !answers {
                let why = if rendered { "PostgreSQL does not answer" } else { "the managed configuration has not been written yet" };
                world.end(node, run, 0, Task::CutStream, Err(why.to_owned()));
                return;
            }
            if let Some(conf) = &mut world.nodes[node].conf {
                conf.follow = None;
            }
            if let Some(server) = &mut world.nodes[node].server {
                server.conninfo = None;
                server.drop_upstream();
            }
            world.deliver(node, run, Event::StreamCut);
            if let Some(facts) = world.facts(node) {
                world.deliver(node, run, Event::Server(facts));
            }
            world.end(node, run, 0, Task::CutStream, Ok(()));
        });
    }

    /// A statement on the primary.
    pub(super) fn sql(&mut self, node: usize, run: u64, task: Task, effect: impl FnOnce(&mut Data, TimelineId, u64) + 'static) {
        let takes = self.random.tailed(5, 80);
        self.in_agent(node, run, takes, move |world| {
            let answers = world.nodes[node].server.as_ref().is_some_and(|server| server.serves(world.now));
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
                world.deliver(node, run, Event::Server(facts));
            }
            world.end(node, run, 0, task, Ok(()));
        });
    }
}
