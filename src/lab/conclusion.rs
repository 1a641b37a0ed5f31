//! How a run ended: one primary, all streaming, never two writers, loss within what was recorded.

use super::{
    cluster::Lab,
    journal::Journal,
    procfs::{self, Cost},
    verdict::{self, Judgement, LostTail, TwoWriters},
};
use crate::model::{lsn::Bytes, moment::Span, policy::Durability};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where the logs of a node ended at some moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMark {
    /// The agent's.
    pub agent: u64,
    /// The guard's.
    pub guard: u64,
}

/// Where the logs of all nodes ended at some moment.
pub type LogMarks = BTreeMap<String, LogMark>;

/// Which losses are no wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Excused {
    /// None: commits wait for replicas, and nobody was told to take a loss.
    Nothing,
    /// What a change of primary recorded: in `async`, and where an operator has accepted a loss.
    Announced,
}

impl Excused {
    /// What a mode excuses as long as no operator accepts a loss.
    pub fn by(durability: Durability) -> Self {
        match durability {
            // `auto` begins as `async`.
            Durability::Async | Durability::Auto => Self::Announced,
            Durability::Quorum | Durability::StrictQuorum => Self::Nothing,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conclusion {
    /// The one primary from which all others stream; or what was found instead.
    pub streaming: Result<String, String>,
    /// Proof of two writers.
    pub two_writers: Vec<TwoWriters>,
    /// Acknowledged rows that the primary lacks.
    pub lost: Vec<LostTail>,
    /// Clients that panicked: what they were told is not all known.
    pub broken: Vec<String>,
    /// Lines of level ERROR, by node, since the marks.
    pub errors: BTreeMap<String, Vec<String>>,
}

impl Conclusion {
    /// What is wrong, and what was logged as an error, for people; empty when there is neither.
    pub fn complaints(&self, excused: Excused) -> Vec<String> {
        self.wrongs(excused).into_iter().chain(self.logged()).collect()
    }

    /// Lines of level ERROR, for people: each names something that a human must look at, not a harm that was done.
    pub fn logged(&self) -> Vec<String> {
        self.errors.iter().flat_map(|(node, lines)| lines.iter().map(move |line| format!("{node} logged: {line}"))).collect()
    }

    /// What must never be, for people; empty when all is well.
    pub fn wrongs(&self, excused: Excused) -> Vec<String> {
        let mut all: Vec<String> = self.streaming.as_ref().err().map(|what| format!("no healthy end: {what}")).into_iter().collect();
        all.extend(self.broken.iter().map(|who| broken(who)));
        all.extend(self.two_writers.iter().map(two_writers));
        all.extend(self.lost.iter().filter(|tail| excused == Excused::Nothing || !tail.is_announced()).map(lost));
        all
    }
}

/// A client that panicked, for people.
pub(super) fn broken(who: &str) -> String {
    format!("{who} panicked: what it was told is not all known, so the run proves nothing")
}

/// Proof of two writers, for people.
pub(super) fn two_writers(proof: &TwoWriters) -> String {
    let (older, newer) = (&proof.older, &proof.newer);
    format!(
        "two writers for {}: {} (timeline {}) acknowledged {} rows after {} (timeline {}) had begun, for one {:?}",
        proof.span,
        older.0,
        older.1,
        proof.acks,
        newer.0,
        newer.1,
        proof.examples.first()
    )
}

/// A loss, for people.
pub(super) fn lost(tail: &LostTail) -> String {
    let bytes = tail.bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
    format!(
        "{} acknowledged rows ({bytes} bytes) of timeline {} are lost (by the record: {:?}): {:?}",
        tail.rows, tail.tli, tail.judgement, tail.examples
    )
}

impl LostTail {
    /// Whether the promotion said that so much might be lost.
    pub fn is_announced(&self) -> bool {
        self.judgement == Judgement::Within
    }
}

impl Lab {
    /// Where the nodes' logs end now.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn log_marks(&self) -> Result<LogMarks> {
        let mark = |name: &String| Ok((name.clone(), self.errors_logged(name, LogMark::default())?.1));
        self.nodes().iter().map(|node| mark(&node.name)).collect()
    }

    /// Looks at how a run ended: waits up to `deadline` for one primary and all nodes streaming from it, and judges the
    /// journals, which have to be those of every client of the run, against what that primary has and what etcd records.
    ///
    /// # Errors
    /// When the evidence cannot be read. What it proves is in the conclusion.
    pub fn conclude(&self, journals: &[Journal], marks: &LogMarks, deadline: Span) -> Result<Conclusion> {
        let names: Vec<&str> = self.nodes().iter().map(|node| node.name.as_str()).collect();
        let streaming = self.wait_streaming(&names, deadline);
        let lost = match &streaming {
            Ok(primary) => verdict::lost(journals, &self.survivors(primary)?, &verdict::recorded(&self.history()?)),
            Err(_) => Vec::new(),
        };
        let errors = names.iter().map(|name| {
            let (lines, _) = self.errors_logged(name, marks.get(*name).copied().unwrap_or_default())?;
            Ok(((*name).to_owned(), lines))
        });
        let errors = errors.collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Conclusion {
            streaming: streaming.map_err(|error| format!("{error:#}; primaries: {:?}", self.primaries())),
            two_writers: verdict::two_writers(journals),
            lost,
            broken: journals.iter().flat_map(Journal::broken_parts).collect(),
            errors: errors.into_iter().filter(|(_, lines)| !lines.is_empty()).collect(),
        })
    }

    /// What agent and guard of a node cost together: every process on its host that runs the agent's binary.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn cost(&self, node: &str) -> Result<Cost> {
        let name = self.common.agent.file_name();
        let ours = |pid: &i32| procfs::program(*pid).is_some_and(|program| program.file_name() == name);
        let processes = self.node(node)?.host.processes();
        let costs = processes.iter().map(|process| process.pid).filter(ours).filter_map(procfs::cost);
        Ok(costs.fold(Cost::default(), |sum, cost| Cost {
            memory: Bytes::new(sum.memory.get() + cost.memory.get()),
            processor: sum.processor.plus(cost.processor),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(judgement: Judgement) -> Conclusion {
        let tail = LostTail { tli: 1, nodes: ["n1".to_owned()].into(), rows: 3, bytes: Some(300), judgement, examples: Vec::new() };
        Conclusion { streaming: Ok("n2".into()), two_writers: Vec::new(), lost: vec![tail], broken: Vec::new(), errors: BTreeMap::new() }
    }

    /// What it did beside what it wrote down nobody knows.
    #[test]
    fn a_client_that_panicked_is_a_wrong_whatever_else_was_found() {
        let journal = Journal { broken: vec!["its thread".into()], ..Journal::new("c1") };
        let broken = journal.broken_parts().collect();
        let conclusion = Conclusion { lost: Vec::new(), broken, ..lost(Judgement::Within) };
        let wrongs = conclusion.wrongs(Excused::Announced);
        assert!(wrongs.len() == 1 && wrongs[0].starts_with("c1, its thread, panicked"), "{wrongs:?}");
    }

    /// A record that announces a loss is no excuse where commits wait for replicas.
    #[test]
    fn an_announced_loss_is_a_wrong_in_the_quorum_modes() {
        let wrongs = |judgement, durability| lost(judgement).complaints(Excused::by(durability)).len();
        for durability in [Durability::Quorum, Durability::StrictQuorum] {
            assert_eq!(wrongs(Judgement::Within, durability), 1);
        }
        assert_eq!(wrongs(Judgement::Within, Durability::Async), 0);
        for judgement in [Judgement::Exceeds, Judgement::Unbounded, Judgement::Unrecorded, Judgement::Amid] {
            assert_eq!(wrongs(judgement, Durability::Async), 1, "{judgement:?}");
        }
    }
}
