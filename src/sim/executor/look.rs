//! Looks at the data directory: what lies there, and how far its WAL is whole.

use crate::{
    agent::event::Event,
    decide::{
        decision::{Source, Task},
        snapshot::CopyPlace,
    },
    model::{
        instance::{ControlData, DataDir, DiskFacts, RewindMark, Whole},
        lsn::{Bytes, Lsn},
        node::SystemId,
        node_file::ClonePlace,
        timeline::TimelineId,
        wal_layout::Layout,
    },
    sim::{executor::files::is_real, wal::lsn, world::World},
};

impl World {
    pub(super) fn inspect(&mut self, node: usize, run: u64) {
        let at = self.nodes[node].clock.boot(self.now);
        let takes = self.random.tailed(3, 40);
        self.in_agent(node, run, takes, move |world| {
            let dir = world.data_dir(node);
            world.deliver(node, run, Event::Disk { dir, at });
            world.end(node, run, 0, Task::InspectDisk, Ok(()));
        });
    }

    /// There is room for a second copy on most hosts, and the source may not answer.
    pub(super) fn measure_copy(&mut self, node: usize, run: u64, source: &Source) {
        let at = self.nodes[node].clock.boot(self.now);
        let takes = self.random.tailed(3, 40);
        let source = source.clone();
        self.in_agent(node, run, takes, move |world| {
            let outcome = match world.source(node, &source) {
                Some(_) => {
                    let size = Bytes::new(1 << 30);
                    let (place, why, free) = match world.nodes[node].cramped {
                        true => (ClonePlace::InPlace, "there is no room for a second copy".to_owned(), Bytes::new(1 << 20)),
                        false => (ClonePlace::Beside, String::new(), Bytes::new(1 << 40)),
                    };
                    let place = CopyPlace { source: source.node, size, place, why, free, at };
                    world.deliver(node, run, Event::Measured(place));
                    Ok(())
                }
                None => Err("no answer".to_owned()),
            };
            world.end(node, run, 0, Task::MeasureCopy, outcome);
        });
    }

    fn data_dir(&self, node: usize) -> DataDir {
        let Some(data) = &self.nodes[node].disk else {
            let why = "it holds no PG_VERSION that can be read".to_owned();
            return if self.nodes[node].half_copied { DataDir::Unusable { why } } else { DataDir::Missing };
        };
        let control = ControlData {
            system_id: SystemId::new(data.system),
            state: data.control,
            checkpoint_tli: data.checkpoint_tli,
            checkpoint: lsn(data.redo),
            redo: lsn(data.redo),
            min_recovery: lsn(data.min_recovery.0),
            min_recovery_tli: data.min_recovery.1,
            can_rewind: true,
            wal_segment: Layout::DEFAULT.segment,
        };
        DataDir::Present(DiskFacts {
            copied: data.copied.clone(),
            major: 15,
            control,
            standby_signal: data.standby_signal,
            backup_label: data.backup_label,
            started: data.started,
            rewind: if data.half_rewound {
                Some(RewindMark::Unfinished)
            } else {
                data.rewound.clone().map(|life| RewindMark::Done { life })
            },
            histories: data.histories.clone(),
        })
    }

    /// The end of the last whole record, from a boundary that must be there: on a timeline, and on those that the log goes on upon.
    pub(super) fn scan(&mut self, node: usize, run: u64, from: Lsn, tli: TimelineId) {
        let at = self.nodes[node].clock.boot(self.now);
        // Whoever believes the tree to be empty scans as if it were.
        let began_in = self.nodes[node].server.as_ref().filter(|server| !server.hidden).map(|server| server.run);
        let takes = self.random.tailed(5, 120);
        self.in_agent(node, run, takes, move |world| {
            let found = world.nodes[node].disk.as_ref().and_then(|data| {
                world.wal.ancestor_of(data.branch, tli)?;
                let end = |of: usize| Some((of, world.wal.whole(data.branch, data.end.min(world.wal.shared(data.branch, of)?))));
                let tli_of = |of: usize| world.wal.branches[of].tli;
                let path = world.wal.path(data.branch).into_iter().skip_while(|of| tli_of(*of) != tli);
                let ends: Vec<(usize, u64)> = path.filter_map(end).collect();
                // It goes on where a newer timeline has records here, and its history.
                let named = |of: usize| data.histories.get(&tli_of(of)).is_some_and(|text| is_real(text));
                let goes_on = |pair: &&[(usize, u64)]| pair[1].1 > pair[0].1 && named(pair[1].0);
                let further = ends.windows(2).take_while(goes_on).count();
                ends.get(further).map(|(of, end)| (tli_of(*of), *end))
            });
            let sick = world.nodes[node].sick_disk > world.now;
            let found = found.map(|(tli, end)| (tli, world.options.mutation.end(end)));
            if sick {
                let why = "read of WAL: Input/output error".to_owned();
                world.trace.line(world.now, &world.nodes[node].who(), &format!("Scan is held: {why}"));
                world.deliver(node, run, Event::Held { task: Task::Scan, why });
                return;
            }
            let outcome = match found {
                Some((tli, end)) if end >= from.get() => {
                    world.deliver(node, run, Event::Scanned { whole: Whole { tli, lsn: lsn(end) }, run: began_in, at });
                    Ok(())
                }
                Some((tli, end)) => Err(format!("no valid record at {from}: WAL of timeline {tli} ends at {}", lsn(end))),
                None => Err(format!("no WAL of timeline {tli}")),
            };
            world.end(node, run, 0, Task::Scan, outcome);
        });
    }
}
