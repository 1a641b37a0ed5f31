//! The data directory made, copied, rewound, discarded.

use crate::{
    agent::event::Event,
    decide::decision::{Completed, Source, Task},
    model::{instance::ControlState, key::Key, node::DataIncarnation, node_file::ClonePlace, record::MemberRecord, timeline::TimelineId},
    sim::{node::Data, wal::ORIGIN, world::World},
};
use std::collections::{BTreeMap, BTreeSet};

impl World {
    pub(super) fn init_db(&mut self, node: usize, run: u64) {
        let takes = self.random.millis(300, 1_500);
        self.in_run(node, run, takes, move |world| {
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
                backup_label: false,
                started: false,
                histories: BTreeMap::new(),
                slots: BTreeSet::new(),
                half_rewound: false,
                copied: None,
                rewound: None,
            });
            world.coverage.initdbs += 1;
            world.completed(node, run, Completed::InitDb);
        });
    }

    pub(super) fn discard(&mut self, node: usize, run: u64) {
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

    pub(super) fn clone_from(&mut self, node: usize, run: u64, source: &Source, place: ClonePlace, other: bool) {
        self.coverage.clones += 1;
        let takes = self.random.tailed(300, 2_500);
        if self.nodes[node].server.is_some() {
            let text = format!("{} copies over a running PostgreSQL", self.nodes[node].name);
            self.violation("O12", text);
        }
        if place == ClonePlace::InPlace && self.nodes[node].disk.is_some() {
            if !other {
                let why = "no other healthy copy of the data is known: nothing is overwritten".to_owned();
                self.end(node, run, 0, Task::Data, Err(why));
                return;
            }
            if self.source(node, source).is_some() {
                let mut spare = (0..self.machines()).filter(|other| *other != node && self.nodes[*other].name != source.node);
                if !spare.any(|other| self.is_there(other)) {
                    let text = format!("{} is copied over, and nobody but its source has a copy", self.nodes[node].name);
                    self.violation("O12", text);
                }
                // It goes as soon as the source has answered.
                (self.nodes[node].disk, self.nodes[node].half_copied) = (None, true);
            }
        }
        let source = source.clone();
        self.in_run(node, run, takes, move |world| {
            let unlucky = world.random.chance(80);
            let Some(from) = world.source(node, &source).filter(|_| !unlucky) else {
                world.coverage.half_done += 1;
                // It takes away what it has made; one that is killed does not.
                world.nodes[node].half_copied = false;
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
                copied: Some(world.nodes[node].file.data.clone()),
                ..theirs
            });
            world.nodes[node].half_copied = false;
            world.completed(node, run, Completed::Clone);
        });
    }

    /// Whether a node has data, as far as anybody can know: of one that was lost a moment ago etcd still says that it streams.
    fn is_there(&self, node: usize) -> bool {
        let of = &self.nodes[node];
        let Some(disk) = &of.disk else {
            let said = self.store.entries.get(&Key::Member(of.name.clone())).map(|entry| &entry.text);
            let streams =
                said.and_then(|text| serde_json::from_str::<MemberRecord>(text).ok()).is_some_and(|said| said.state == "streaming");
            return of.is_just_wiped(self.now) || (of.wiped > 0 && streams);
        };
        !disk.half_rewound
    }

    pub(super) fn rewind(&mut self, node: usize, run: u64, source: &Source) {
        self.coverage.rewinds += 1;
        let takes = self.random.tailed(100, 1_200);
        if self.nodes[node].server.is_some() {
            let text = format!("{} rewinds under a running PostgreSQL", self.nodes[node].name);
            self.violation("O12", text);
        }
        if self.nodes[node].disk.is_none() {
            self.end(node, run, 0, Task::Data, Err("no data directory".to_owned()));
            return;
        }
        if self.random.chance(150) {
            let why = "the source is not ready to be rewound to".to_owned();
            self.in_run(node, run, 5_000_000, move |world| world.deliver(node, run, Event::Held { task: Task::Data, why }));
            return;
        }
        let Some(mine) = &self.nodes[node].disk else { return };
        let clean = matches!(mine.control, ControlState::ShutDown | ControlState::ShutDownInRecovery) || mine.half_rewound;
        let Some(from) = self.source(node, source).filter(|_| clean) else {
            let why = if clean { "pg_rewind: could not connect" } else { "pg_rewind: target server must be shut down cleanly" };
            self.end(node, run, 50_000_000, Task::Data, Err(why.to_owned()));
            return;
        };
        if let Some(data) = &mut self.nodes[node].disk {
            data.half_rewound = true;
        }
        let life = self.nodes[node].file.data.clone();
        let source = source.clone();
        let copied = self.nodes[from].disk.as_ref().map_or(0, |data| data.end);
        self.in_run(node, run, takes, move |world| {
            let unlucky = world.random.chance(120);
            if world.source(node, &source) != Some(from) || unlucky {
                world.coverage.half_done += 1;
                world.end(node, run, 0, Task::Data, Err("pg_rewind: the source was lost half-way".to_owned()));
                return;
            }
            world.rewound(node, from, copied, life);
            world.completed(node, run, Completed::Rewind);
        });
    }

    /// The source goes on meanwhile: its log lies here as far as it was `copied`, and is needed to where it ends now.
    fn rewound(&mut self, node: usize, from: usize, copied: u64, life: DataIncarnation) {
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
        // A checkpoint of the source meanwhile: pg_control, which is copied last, may name a redo that has not come along.
        let redo = if self.random.chance(300) { redo.max(theirs.redo) } else { redo };
        self.nodes[node].disk = Some(Data {
            control: ControlState::InArchiveRecovery,
            checkpoint_tli: self.wal.branches[self.wal.branch_at(theirs.branch, redo)].tli,
            redo,
            min_recovery: (whole, Some(self.wal.branches[theirs.branch].tli)),
            branch: theirs.branch,
            end: copied.clamp(shared, whole),
            standby_signal: true,
            backup_label: true,
            started: false,
            histories: theirs.histories,
            slots: BTreeSet::new(),
            half_rewound: false,
            // It comes along with all files that hold no relation.
            copied: theirs.copied,
            rewound: Some(life),
            system: mine.system,
        });
    }

    pub(super) fn source(&self, node: usize, source: &Source) -> Option<usize> {
        let from = self.at_address(&source.address)?;
        let there = &self.nodes[from];
        let answers = there.server.as_ref().is_some_and(|server| server.serves(self.now));
        let open = self.network.talks(node, from, self.now) && !self.is_cut_off(node, from);
        (from != node && answers && there.asleep_until <= self.now && open).then_some(from)
    }

    fn completed(&mut self, node: usize, run: u64, what: Completed) {
        self.deliver(node, run, Event::Completed(what));
        self.end(node, run, 0, Task::Data, Ok(()));
    }
}
