//! Files beside the data: the node file, and history files.

use super::Outcome;
use crate::{
    agent::event::Event,
    decide::decision::Task,
    model::{
        node_file::{ClonePlace, NodeFile, Operation},
        timeline::TimelineId,
    },
    sim::{node::Data, peers::Word, world::World},
};
use std::collections::BTreeMap;

impl World {
    pub(super) fn write_file(&mut self, node: usize, run: u64, file: NodeFile) {
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
        if let Some(ack) = file.ack.as_ref().filter(|_| file.ack != self.nodes[node].file.ack) {
            let left = ack.at.plus(ack.wait).since(self.nodes[node].clock.boot(self.now)).as_nanos();
            let until = self.now + left - left / 1_000;
            let word = Word { term: ack.term, holder: ack.holder.node.clone(), at: self.now, until };
            self.oracle.words.insert(file.node.clone(), word);
        }
        if let Some(Operation::Clone { source, place: ClonePlace::InPlace }) = &file.operation {
            self.before_copy(node, source);
        }
        let mut kept = file.clone();
        self.options.mutation.forget(&self.nodes[node].file, &mut kept);
        self.nodes[node].file = kept;
    }

    pub(super) fn write_histories(&mut self, node: usize, run: u64, texts: BTreeMap<TimelineId, String>) {
        let takes = self.random.tailed(1, 20);
        self.in_run(node, run, takes, move |world| {
            let running = world.nodes[node].server.is_some();
            let sick = world.nodes[node].sick_disk > world.now;
            let disk = world.nodes[node].disk.as_mut().ok_or_else(|| "no data directory".to_owned());
            let outcome = match disk {
                Ok(_) if sick => Err("No space left on device".to_owned()),
                disk => disk.and_then(|data| put_histories(data, &texts, running)),
            };
            if let (Ok(()), Some(data)) = (&outcome, &world.nodes[node].disk) {
                let there = data.histories.clone();
                world.deliver(node, run, Event::HistoriesWritten(there));
            }
            world.end(node, run, 0, Task::WriteHistories, outcome);
        });
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
        let conflict = data.histories.get(tli).filter(|there| *there != text);
        if conflict.is_some_and(|there| running || is_real(there) && is_real(text)) {
            return Err(format!("{} is there with another text", tli.history_file()));
        }
        data.histories.insert(*tli, text.clone());
    }
    Ok(())
}

/// Whether a history's text is more than the mark of an id that was given up.
pub(super) fn is_real(text: &str) -> bool {
    text.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
}
