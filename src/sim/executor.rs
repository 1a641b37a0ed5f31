//! Carries out actions, as the real executors are bound to: facts first, then the end of the task.

use super::{
    Mutation,
    node::Data,
    store::Reply,
    wal::{ORIGIN, lsn},
    world::World,
};
use crate::{
    agent::event::{Event, TxnOutcome},
    decide::decision::{Action, Completed, Configuration, Purpose, Source, Task},
    model::{
        instance::{ControlData, ControlState, DataDir, DiskFacts, RewindMark, Whole},
        key::{Key, Txn, Write},
        lsn::Lsn,
        node::{DataIncarnation, Nonce, SystemId},
        node_file::{ClonePlace, NodeFile},
        record::to_text,
        timeline::TimelineId,
    },
};
use std::collections::{BTreeMap, BTreeSet};

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
            Action::AppendHistory(record) => {
                self.judge_history(&record);
                self.put(node, run, task, Key::History(record.term), to_text(&*record));
            }
            Action::WriteFile(file) => self.write_file(node, run, *file),
            Action::StartGuard => {
                let takes = self.random.tailed(20, 150);
                self.start_guard_when_empty(node, run, takes);
            }
            Action::Arm { term, until } => self.verb(node, run, task, move |world| world.arm(node, term, until)),
            Action::Disarm { term } => self.verb(node, run, task, move |world| world.disarm(node, term)),
            Action::Start { start, term } => self.verb(node, run, task, move |world| {
                if world.nodes[node].agent_of(run).is_none_or(|agent| !agent.rendered) {
                    return Err("the managed configuration has not been written yet".to_owned());
                }
                world.start_postgres(node, start, term)
            }),
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
            Action::CutStream => self.cut_stream(node, run),
            Action::InspectDisk => self.inspect(node, run),
            Action::Scan { from, tli } => self.scan(node, run, from, tli),
            Action::WriteHistories(texts) => self.write_histories(node, run, texts),
            Action::InitDb => self.init_db(node, run),
            Action::DiscardInitialised => self.discard(node, run),
            Action::Clone { source, place } => self.clone_from(node, run, &source, place),
            Action::Rewind { source, .. } => self.rewind(node, run, &source),
            Action::Checkpoint => self.sql(node, run, task, |data, tli, end| {
                (data.redo, data.checkpoint_tli, data.min_recovery) = (end, tli, (0, None));
            }),
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
            Action::Exit { why } => {
                self.kill_agent(node, &format!("exit: {why}"));
                if !self.nodes[node].stopped {
                    self.later_at(node, 2_000_000_000, move |world| world.start_agent(node));
                }
            }
        }
    }

    fn end(&mut self, node: usize, run: u64, after: u64, task: Task, outcome: Outcome) {
        if let Err(why) = &outcome {
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, &format!("{task:?} fails: {why}"));
        }
        self.deliver_after(node, run, after, Event::Done { task, outcome });
    }

    // ---- etcd ----

    fn txn(&mut self, node: usize, run: u64, purpose: Purpose, task: Task, txn: Txn) {
        let clocks = self.nodes[node].clock.both(self.now);
        if purpose.writes_leader() {
            self.oracle.sends.insert(txn.nonce.clone(), (node, clocks.boot));
            self.oracle.last_send.insert(node, clocks.boot);
        }
        self.note_purpose(purpose);
        let Some(agent) = self.nodes[node].agent_of(run) else { return };
        if self.options.mutation != Mutation::ValidityFromReply {
            agent.state.apply(Event::TxnSent { nonce: txn.nonce.clone(), at: clocks.boot }, clocks);
        }
        let nonce = txn.nonce.clone();
        let before_send = self.random.between(50_000, 2_000_000);
        self.in_agent(node, run, before_send, move |world| {
            if world.nodes[node].agent_run() == Some(run) {
                world.send_txn(node, run, Some(purpose), txn, Reply::Txn(nonce, task));
            }
        });
    }

    pub(super) fn txn_done(&mut self, node: usize, run: u64, nonce: &Nonce, task: Task, outcome: TxnOutcome) {
        if self.options.trace && !matches!(outcome, TxnOutcome::Applied { .. }) {
            let what = match &outcome {
                TxnOutcome::Applied { .. } => "applied",
                TxnOutcome::Refused { .. } => "refused",
                TxnOutcome::NotDone { .. } => "not done",
                TxnOutcome::Unknown { .. } => "unknown",
            };
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, &format!("txn {nonce}: {what}"));
        }
        if self.options.mutation == Mutation::ValidityFromReply {
            let at = self.nodes[node].clock.boot(self.now);
            self.deliver(node, run, Event::TxnSent { nonce: nonce.clone(), at });
        }
        self.deliver(node, run, Event::TxnDone { nonce: nonce.clone(), task, outcome });
    }

    fn put(&mut self, node: usize, run: u64, task: Task, key: Key, text: String) {
        let nonce: Nonce = self.name("p");
        let txn = Txn { nonce, when: Vec::new(), then: vec![Write::Put(key, text)] };
        self.send_txn(node, run, None, txn, Reply::Put(task));
    }

    // ---- the guard ----

    /// A verb goes to the guard, its answer comes back, after what it changed.
    fn verb(&mut self, node: usize, run: u64, task: Task, verb: impl FnOnce(&mut Self) -> Outcome + 'static) {
        let there = self.random.tailed(1, 2);
        self.in_agent(node, run, there, move |world| {
            // A guard that is gone answers nothing: the agent hears that it is gone.
            let session = world.nodes[node].guard.as_ref().and_then(|guard| guard.session);
            if session != Some(run) {
                return;
            }
            let outcome = verb(world);
            world.tell_guard(node);
            world.end(node, run, 300_000, task, outcome);
        });
    }

    fn start_guard_when_empty(&mut self, node: usize, run: u64, after: u64) {
        self.later_at(node, after, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
            if world.nodes[node].guard.is_none() && world.nodes[node].server.is_some() {
                // What a former guard left is still dying: the new one starts when it is gone.
                world.start_guard_when_empty(node, run, 20_000_000);
                return;
            }
            world.start_guard(node, run);
            world.end(node, run, 300_000, Task::StartGuard, Ok(()));
        });
    }

    // ---- files ----

    fn write_file(&mut self, node: usize, run: u64, file: NodeFile) {
        let slow = self.nodes[node].slow_disk > self.now;
        let takes = if slow { self.random.millis(100, 3_000) } else { self.random.tailed(1, 12) };
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                // Its writer died on the way: it is there, or it is not.
                if world.random.chance(500) {
                    world.keep_file(node, &file);
                }
                return;
            }
            world.keep_file(node, &file);
            world.deliver(node, run, Event::FileWritten(Box::new(file)));
            world.deliver(node, run, Event::Done { task: Task::WriteFile, outcome: Ok(()) });
        });
    }

    fn keep_file(&mut self, node: usize, file: &NodeFile) {
        let before = &self.nodes[node].file;
        if before.starts > file.starts {
            return;
        }
        if file.term < before.term || file.promised < before.promised {
            let text = format!(
                "the file of {} goes back: term {} → {}, promised {} → {}",
                self.nodes[node].name, before.term, file.term, before.promised, file.promised
            );
            self.violation("O8", text);
        }
        self.nodes[node].file = file.clone();
    }

    fn configure(&mut self, node: usize, run: u64, configuration: Configuration) {
        let takes = self.random.tailed(5, 60);
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
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

    fn cut_stream(&mut self, node: usize, run: u64) {
        let takes = self.random.tailed(10, 120);
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
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

    fn write_histories(&mut self, node: usize, run: u64, texts: BTreeMap<TimelineId, String>) {
        let takes = self.random.tailed(1, 20);
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
            let running = world.nodes[node].server.is_some();
            let outcome = world.nodes[node]
                .disk
                .as_mut()
                .ok_or_else(|| "no data directory".to_owned())
                .and_then(|data| put_histories(data, &texts, running));
            if let (Ok(()), Some(data)) = (&outcome, &world.nodes[node].disk) {
                let there = data.histories.clone();
                world.deliver(node, run, Event::HistoriesWritten(there));
            }
            world.end(node, run, 0, Task::WriteHistories, outcome);
        });
    }

    // ---- looking ----

    fn inspect(&mut self, node: usize, run: u64) {
        let at = self.nodes[node].clock.boot(self.now);
        let takes = self.random.tailed(3, 40);
        self.in_agent(node, run, takes, move |world| {
            let dir = world.data_dir(node);
            world.deliver(node, run, Event::Disk { dir, place: Some(ClonePlace::Beside), at });
            world.end(node, run, 0, Task::InspectDisk, Ok(()));
        });
    }

    fn data_dir(&self, node: usize) -> DataDir {
        let Some(data) = &self.nodes[node].disk else { return DataDir::Missing };
        let control = ControlData {
            system_id: SystemId::new(data.system),
            state: data.control,
            checkpoint_tli: data.checkpoint_tli,
            checkpoint: lsn(data.redo),
            redo: lsn(data.redo),
            min_recovery: lsn(data.min_recovery.0),
            min_recovery_tli: data.min_recovery.1,
            can_rewind: true,
        };
        DataDir::Present(DiskFacts {
            major: 15,
            control,
            standby_signal: data.standby_signal,
            backup_label: false,
            rewind: if data.broken == Some("a rewind") {
                Some(RewindMark::Unfinished)
            } else {
                data.rewound.clone().map(|life| RewindMark::Done { life })
            },
            histories: data.histories.clone(),
        })
    }

    /// The end of the last whole record on one timeline, from a boundary that must be there.
    fn scan(&mut self, node: usize, run: u64, from: Lsn, tli: TimelineId) {
        let at = self.nodes[node].clock.boot(self.now);
        // Whoever believes the tree to be empty scans as if it were.
        let began_in = self.nodes[node].server.as_ref().filter(|server| !server.hidden).map(|server| server.run);
        let takes = self.random.tailed(5, 120);
        self.in_agent(node, run, takes, move |world| {
            let found = world.nodes[node].disk.as_ref().and_then(|data| {
                let branch = world.wal.ancestor_of(data.branch, tli)?;
                let shared = world.wal.shared(data.branch, branch)?;
                Some(world.wal.whole(data.branch, data.end.min(shared)))
            });
            let outcome = match found {
                Some(end) if end >= from.get() => {
                    world.deliver(node, run, Event::Scanned { whole: Whole { tli, lsn: lsn(end) }, run: began_in, at });
                    Ok(())
                }
                Some(end) => Err(format!("no valid record at {from}: WAL of timeline {tli} ends at {}", lsn(end))),
                None => Err(format!("no WAL of timeline {tli}")),
            };
            world.end(node, run, 0, Task::Scan, outcome);
        });
    }

    /// A statement on the primary.
    fn sql(&mut self, node: usize, run: u64, task: Task, effect: impl FnOnce(&mut Data, TimelineId, u64) + 'static) {
        let takes = self.random.tailed(5, 80);
        self.in_agent(node, run, takes, move |world| {
            let answers = world.nodes[node]
                .server
                .as_ref()
                .is_some_and(|server| server.primary && server.postmaster && server.frozen_until <= world.now);
            if !answers {
                world.end(node, run, 0, task, Err("PostgreSQL does not answer".to_owned()));
                return;
            }
            if let Some(data) = &mut world.nodes[node].disk {
                let tli = world.wal.branches[data.branch].tli;
                let end = world.wal.whole(data.branch, data.end);
                effect(data, tli, end);
            }
            world.end(node, run, 0, task, Ok(()));
        });
    }

    // ---- making and replacing the data directory ----

    fn completed(&mut self, node: usize, run: u64, what: Completed) {
        self.deliver(node, run, Event::Completed(what));
        self.end(node, run, 0, Task::Data, Ok(()));
    }

    fn init_db(&mut self, node: usize, run: u64) {
        let takes = self.random.millis(300, 1_500);
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
            let branch = world.wal.root();
            let system = world.random.next();
            world.nodes[node].disk = Some(Data {
                system,
                control: ControlState::ShutDown,
                checkpoint_tli: TimelineId::FIRST,
                redo: ORIGIN,
                min_recovery: (0, None),
                branch,
                end: ORIGIN,
                standby_signal: false,
                histories: BTreeMap::new(),
                slots: BTreeSet::new(),
                broken: None,
                rewound: None,
            });
            world.coverage.initdbs += 1;
            world.completed(node, run, Completed::InitDb);
        });
    }

    fn discard(&mut self, node: usize, run: u64) {
        self.later_at(node, 20_000_000, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
            let acked = world.nodes[node].disk.as_ref().is_some_and(|data| world.oracle.acks.iter().any(|ack| ack.row.0 == data.branch));
            if acked {
                let text = format!("{} discards a directory that clients have written to", world.nodes[node].name);
                world.violation("O12", text);
            }
            world.nodes[node].disk = None;
            world.completed(node, run, Completed::Discard);
        });
    }

    fn source(&self, node: usize, source: &Source) -> Option<usize> {
        let from = self.nodes.iter().position(|other| other.name == source.node)?;
        let there = &self.nodes[from];
        let answers = there.server.as_ref().is_some_and(|server| server.primary && server.postmaster && server.frozen_until <= self.now);
        (from != node && answers && there.asleep_until <= self.now && self.network.talks(node, from, self.now)).then_some(from)
    }

    fn clone_from(&mut self, node: usize, run: u64, source: &Source, place: ClonePlace) {
        self.coverage.clones += 1;
        let takes = self.random.tailed(300, 2_500);
        if place == ClonePlace::InPlace
            && let Some(data) = &mut self.nodes[node].disk
        {
            data.broken = Some("a copy");
        }
        if self.nodes[node].server.is_some() {
            let text = format!("{} copies over a running PostgreSQL", self.nodes[node].name);
            self.violation("O12", text);
        }
        let source = source.clone();
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
            let unlucky = world.random.chance(80);
            let Some(from) = world.source(node, &source).filter(|_| !unlucky) else {
                world.end(node, run, 0, Task::Data, Err("pg_basebackup: the connection was lost".to_owned()));
                return;
            };
            let Some(theirs) = world.nodes[from].disk.clone() else { return };
            let whole = world.wal.whole(theirs.branch, theirs.end);
            let tli = world.wal.branches[theirs.branch].tli;
            let back = world.wal.boundary_before(theirs.branch, whole, 2_000);
            world.nodes[node].disk = Some(Data {
                control: ControlState::InProduction,
                checkpoint_tli: world.wal.branches[world.wal.branch_at(theirs.branch, back)].tli,
                redo: back,
                min_recovery: (whole, Some(tli)),
                end: whole,
                standby_signal: true,
                slots: BTreeSet::new(),
                ..theirs
            });
            world.completed(node, run, Completed::Clone);
        });
    }

    fn rewind(&mut self, node: usize, run: u64, source: &Source) {
        self.coverage.rewinds += 1;
        let takes = self.random.tailed(100, 1_200);
        if self.nodes[node].server.is_some() {
            let text = format!("{} rewinds under a running PostgreSQL", self.nodes[node].name);
            self.violation("O12", text);
        }
        let Some(mine) = &self.nodes[node].disk else {
            self.end(node, run, 0, Task::Data, Err("no data directory".to_owned()));
            return;
        };
        let clean = matches!(mine.control, ControlState::ShutDown | ControlState::ShutDownInRecovery) || mine.broken.is_some();
        let Some(from) = self.source(node, source).filter(|_| clean) else {
            let why = if clean { "pg_rewind: could not connect" } else { "pg_rewind: target server must be shut down cleanly" };
            self.end(node, run, 50_000_000, Task::Data, Err(why.to_owned()));
            return;
        };
        if let Some(data) = &mut self.nodes[node].disk {
            data.broken = Some("a rewind");
        }
        let life = self.nodes[node].file.data.clone();
        let source = source.clone();
        self.in_agent(node, run, takes, move |world| {
            if world.nodes[node].agent_run() != Some(run) {
                return;
            }
            let unlucky = world.random.chance(120);
            if world.source(node, &source) != Some(from) || unlucky {
                world.end(node, run, 0, Task::Data, Err("pg_rewind: the source was lost half-way".to_owned()));
                return;
            }
            world.rewound(node, from, life);
            world.completed(node, run, Completed::Rewind);
        });
    }

    fn rewound(&mut self, node: usize, from: usize, life: DataIncarnation) {
        let (Some(mine), Some(theirs)) = (self.nodes[node].disk.clone(), self.nodes[from].disk.clone()) else { return };
        let same_id = self.wal.branches[mine.branch].tli == self.wal.branches[theirs.branch].tli && mine.branch != theirs.branch;
        if same_id {
            let text = format!(
                "{} rewinds onto another history of the same timeline id: no rewind required, says PostgreSQL",
                self.nodes[node].name
            );
            self.violation("O5", text);
        }
        let whole = self.wal.whole(theirs.branch, theirs.end);
        let shared = self.wal.shared(theirs.branch, mine.branch).unwrap_or(whole).min(whole).min(mine.end);
        let redo = self.wal.boundary_before(theirs.branch, shared, 2_000);
        self.nodes[node].disk = Some(Data {
            control: ControlState::InArchiveRecovery,
            checkpoint_tli: self.wal.branches[self.wal.branch_at(theirs.branch, redo)].tli,
            redo,
            min_recovery: (whole, Some(self.wal.branches[theirs.branch].tli)),
            branch: theirs.branch,
            end: whole,
            standby_signal: true,
            histories: theirs.histories,
            slots: BTreeSet::new(),
            broken: None,
            rewound: Some(life),
            system: mine.system,
        });
    }

    fn note_purpose(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Claim => self.coverage.claims += 1,
            Purpose::Adopt => self.coverage.adoptions += 1,
            Purpose::Release => self.coverage.releases += 1,
            Purpose::Handoff => self.coverage.handoffs += 1,
            _ => {}
        }
    }
}

/// A comment that no real history follows is not there at a start, and comes back once the server runs.
fn put_histories(data: &mut Data, texts: &BTreeMap<TimelineId, String>, running: bool) -> Outcome {
    let real = |texts: &BTreeMap<TimelineId, String>| {
        texts.iter().rev().find(|(_, text)| is_real(text)).map_or(TimelineId::FIRST, |(tli, _)| *tli)
    };
    let newest = if running { None } else { Some(real(&data.histories).max(real(texts))) };
    if let Some(newest) = newest {
        data.histories.retain(|tli, _| *tli <= newest);
    }
    for (tli, text) in texts.iter().filter(|(tli, _)| newest.is_none_or(|newest| **tli <= newest)) {
        let conflict = data.histories.get(tli).is_some_and(|there| there != text);
        if conflict && (running || is_real(text)) {
            return Err(format!("{} is there with another text", tli.history_file()));
        }
        data.histories.insert(*tli, text.clone());
    }
    Ok(())
}

fn is_real(text: &str) -> bool {
    text.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
}
