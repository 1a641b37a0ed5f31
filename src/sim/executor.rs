//! Carries out actions, as the real executors are bound to: facts first, then the end of the task.
//!
//! By what an action works on, in reading order: `etcd`, `guard`, `server` (a running PostgreSQL), `files`, `look` and `data` (the data
//! directory).

mod data;
mod etcd;
mod files;
mod guard;
mod look;
mod server;

use super::world::World;
use crate::{
    agent::event::Event,
    decide::decision::{Action, Task},
    model::{
        key::Key,
        record::{HistoryRecord, to_text},
    },
};

type Outcome = Result<(), String>;

impl World {
    pub(super) fn act(&mut self, node: usize, run: u64, action: Action) {
        self.note_action(node, &action);
        let task = action.task();
        match action {
            Action::Txn(purpose, txn) => self.txn(node, run, purpose, task, txn),
            Action::PutMember(record) => {
                let key = Key::Member(self.nodes[node].name.clone());
                self.put(node, run, task, key, to_text(&*record));
            }
            Action::AppendHistory(record) => self.append_history(node, run, task, *record),
            Action::WriteFile(file) => self.write_file(node, run, *file),
            Action::StartGuard => {
                let takes = self.random.tailed(20, 150);
                self.start_guard_when_empty(node, run, takes);
            }
            Action::Arm { term, until } => self.verb(node, run, task, move |world| world.arm(node, term, until)),
            Action::Disarm { term } => self.verb(node, run, task, move |world| world.disarm(node, term, false)),
            Action::DisarmPaused { term } => self.verb(node, run, task, move |world| world.disarm(node, term, true)),
            Action::Start { start, term } => self.prepare_start(node, run, start, term),
            Action::Promote { term } => self.verb(node, run, task, move |world| world.promote(node, term)),
            Action::Stop { mode, deadline } => self.verb(node, run, task, move |world| {
                let at = world.nodes[node].clock.real(deadline);
                world.stop_server(node, mode, at);
                Ok(())
            }),
            Action::Kill => self.verb(node, run, task, move |world| {
                world.kill_postmaster(node);
                Ok(())
            }),
            Action::Configure(configuration) => self.configure(node, run, *configuration),
            Action::Cut(from) => self.verb(node, run, task, move |world| world.cut_off(node, from)),
            Action::Probe(address) => self.ask_primary(node, run, address),
            Action::AskPeers { ask, of } => self.ask_peers(node, run, &ask, &of),
            Action::CutStream => self.cut_stream(node, run),
            Action::InspectDisk => self.inspect(node, run),
            Action::MeasureCopy { source } => self.measure_copy(node, run, &source),
            Action::Scan { from, tli } => self.scan(node, run, from, tli),
            Action::WriteHistories(texts) => self.write_histories(node, run, texts),
            Action::InitDb => self.init_db(node, run),
            Action::DiscardInitialised => self.discard(node, run),
            Action::Clone { source, place, other, .. } => self.clone_from(node, run, &source, place, other.is_some()),
            Action::Rewind { source, .. } => self.rewind(node, run, &source),
            Action::Checkpoint => self.sql(node, run, task, |data, tli, end| {
                (data.redo, data.checkpoint_tli, data.min_recovery) = (end, tli, (0, None));
            }),
            Action::ShowNames { names, checkpoints } => self.show_names(node, run, names, checkpoints),
            Action::EndWalsenders(replicas) => self.end_walsenders(node, run, replicas),
            Action::CreateSlot(name) => self.sql(node, run, task, |data, _, _| {
                data.slots.insert(name);
            }),
            Action::DropSlot(name) => self.sql(node, run, task, move |data, _, _| {
                data.slots.remove(&name);
            }),
            Action::Migrate => self.sql(node, run, task, |_, _, _| {}),
            Action::StopGuard => self.verb(node, run, task, move |world| {
                if world.nodes[node].server.is_some() {
                    return Err("PostgreSQL runs".to_owned());
                }
                world.kill_guard(node, "it was told to end");
                Ok(())
            }),
            Action::Exit { why } => self.exit(node, &why),
        }
    }

    fn append_history(&mut self, node: usize, run: u64, task: Task, mut record: HistoryRecord) {
        self.options.mutation.hide(&mut record);
        self.judge_history(&record);
        self.put(node, run, task, Key::History(record.term), to_text(&record));
    }

    /// The service manager starts it again, unless it was told to stop.
    fn exit(&mut self, node: usize, why: &str) {
        self.kill_agent(node, &format!("exit: {why}"));
        if !self.nodes[node].stopped {
            self.later_at(node, 2_000_000_000, move |world| world.start_agent(node));
        }
    }

    /// As [`World::in_agent`], unless that run of the agent is over by then.
    fn in_run(&mut self, node: usize, run: u64, after: u64, job: impl FnOnce(&mut Self) + 'static) {
        self.in_agent(node, run, after, move |world| {
            if world.nodes[node].agent_run() == Some(run) {
                job(world);
            }
        });
    }

    fn end(&mut self, node: usize, run: u64, after: u64, task: Task, outcome: Outcome) {
        if let Err(why) = &outcome {
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, &format!("{task:?} fails: {why}"));
        }
        self.deliver_after(node, run, after, Event::Done { task, outcome });
    }
}
