//! The cluster with its clients, what is done to it, and what that costs.

use super::{
    act::Act,
    report::{Report, reasons_since},
    watch::Watch,
};
use crate::{
    clock,
    lab::{
        Injected, Journal, Lab, Trial, Writer,
        fault::Error,
        verdict::{self, LostTail, TwoWriters},
        writer::next_ack,
    },
    model::moment::{Moment, Span},
};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// How long three nodes may take until they stream for the first time.
const BEGIN: Span = Span::from_secs(120);
/// How long the first writes may take.
const SOON: Span = Span::from_secs(20);

/// Starts the agents and waits until two nodes stream from a third, and until writes flow.
///
/// # Errors
/// When they do not, or the person interrupts.
pub(super) fn raise(lab: &Lab, watch: &Watch, progress: &dyn Fn(&str)) -> Result<Writer> {
    progress("agents: the first node makes the cluster, the others copy it");
    lab.start_agents()?;
    let mut shown = BTreeMap::new();
    lab.wait_all_stream(BEGIN, || {
        for (node, seen) in &watch.seen().nodes {
            let Some((_, status)) = seen else { continue };
            if shown.insert(node.clone(), status.state.clone()).as_ref() != Some(&status.state) {
                progress(&format!("{node} is {}", status.state));
            }
        }
        let primary = leader(watch)?;
        lab.primaries().contains(&primary).then_some(primary)
    })?;
    let primary = leader(watch).context("nobody leads")?;
    progress("a table, and a client that inserts a row every 10 ms");
    lab.make_table(&primary)?;
    let writer = lab.writer("client")?;
    next_ack(&writer, Moment::ZERO, SOON)?;
    Ok(writer)
}

fn leader(watch: &Watch) -> Option<String> {
    let seen = watch.seen();
    let statuses = seen.nodes.values().flatten();
    let leaders = statuses.filter_map(|(_, status)| status.leader.as_ref()).filter(|leader| leader.state == "serving");
    leaders.max_by_key(|leader| leader.term).map(|leader| leader.node.to_string())
}

/// The cluster with its clients.
pub(super) struct Stage<'a> {
    lab: &'a Lab,
    watch: &'a Watch,
    writer: &'a Writer,
    /// How long a holder may act on its own.
    hold: Span,
    /// Clients on the hosts that were harmed, which go on writing there as long as somebody answers.
    islands: Vec<Writer>,
    ended: Vec<Journal>,
    active: BTreeMap<Act, Injected>,
}

impl<'a> Stage<'a> {
    pub(super) const fn new(lab: &'a Lab, watch: &'a Watch, writer: &'a Writer, hold: Span) -> Self {
        Self { lab, watch, writer, hold, islands: Vec::new(), ended: Vec::new(), active: BTreeMap::new() }
    }

    /// Who acknowledged the newest write.
    pub(super) fn primary(&self) -> Option<String> {
        self.writer.look(|journal| journal.last().map(|ack| ack.node.clone()))
    }

    /// What is broken at the moment, with whom it was done to.
    pub(super) fn active(&self) -> BTreeMap<Act, String> {
        let name = |injected: &Injected| injected.fault.name().split_once(' ').map_or_else(String::new, |(_, node)| node.to_owned());
        self.active.iter().map(|(act, injected)| (*act, name(injected))).collect()
    }

    /// Does it, to whoever is primary.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub(super) fn act(&mut self, act: Act) -> Result<Trial> {
        let primary = self.primary().context("nobody takes writes at the moment")?;
        let fault = act.fault(&primary);
        self.lab.can(&fault)?;
        if act.leaves_a_writer() {
            let name = format!("{primary}-{}", self.islands.len() + self.ended.len() + 1);
            let island = self.lab.island_as(&name, &primary)?;
            // It has to have a session before the fault; a node that takes no writes has none to give.
            let _ = next_ack(&island, Moment::ZERO, Span::from_secs(1));
            self.islands.push(island);
        }
        let trial = Trial::begin(self.lab, &fault).map_err(|error| match error {
            Error::NotHere(why) => why.into(),
            other => anyhow::Error::from(other),
        })?;
        if act.undo_words().is_some() {
            self.active.insert(act, trial.injected.clone());
        }
        Ok(trial)
    }

    /// Takes it back.
    ///
    /// # Errors
    /// As [`Lab::heal`].
    pub(super) fn undo(&mut self, act: Act) -> Result<()> {
        self.active.remove(&act).map_or(Ok(()), |injected| self.lab.heal(&injected))
    }

    /// Whether it was watched for long enough and writes flow again.
    pub(super) fn is_over(&self, act: Act, trial: &Trial) -> bool {
        self.writer.look(|journal| trial.is_over(journal, clock::boot(), act.watched(self.hold)))
    }

    /// Whether all nodes stream from whoever takes writes.
    pub(super) fn all_stream(&self) -> bool {
        let primary = self.primary().filter(|_| self.active.is_empty());
        primary.is_some_and(|primary| self.lab.streaming_from(&primary).is_ok_and(|count| count + 1 >= self.lab.nodes().len()))
    }

    /// Waits until all nodes stream; returns how long that took since `since`.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted.
    pub(super) fn wait_all_stream(&self, since: Moment, deadline: Span) -> Result<Span> {
        self.lab.wait_all_stream(deadline, || self.primary())?;
        Ok(clock::boot().since(since))
    }

    /// What a fault cost so far.
    ///
    /// # Errors
    /// When the evidence cannot be read.
    pub(super) fn report(&self, act: Act, trial: &Trial) -> Result<Report> {
        let now = clock::boot();
        let journal = self.writer.look(Clone::clone);
        let flows = self.is_over(act, trial);
        let (outage, record) = trial.outage(self.lab, &journal, now)?;
        let told: Vec<_> = self.watch.seen().told.iter().cloned().collect();
        let mut report = Report {
            act,
            fault: trial.injected.fault.name(),
            outage,
            record,
            flows,
            acked: 0,
            lost: Vec::new(),
            two_writers: Vec::new(),
            back: None,
            reasons: reasons_since(&told, trial.at(), now),
        };
        self.judge(&mut report, trial)?;
        Ok(report)
    }

    /// Looks up every acknowledged row on the primary, and compares who acknowledged when.
    ///
    /// # Errors
    /// When the evidence cannot be read.
    pub(super) fn judge(&self, report: &mut Report, trial: &Trial) -> Result<()> {
        // Before the rows are read: what is acknowledged meanwhile is not missing.
        let journals = self.journals();
        let primary = self.primary().context("nobody takes writes")?;
        let (lost, two_writers) = self.evidence(&journals, &primary)?;
        // What an earlier fault lost was reported then.
        let since: std::collections::BTreeSet<u32> =
            journals.iter().flat_map(|journal| &journal.acks).filter(|ack| ack.at >= trial.at()).map(|ack| ack.tli).collect();
        let earlier = journals.iter().flat_map(|journal| &journal.acks).filter(|ack| ack.at < trial.at()).map(|ack| ack.tli).max();
        report.acked = journals.iter().map(|journal| journal.acks.len()).sum();
        report.lost = lost.into_iter().filter(|tail| since.contains(&tail.tli) || Some(tail.tli) == earlier).collect();
        report.two_writers = two_writers;
        Ok(())
    }

    fn evidence(&self, journals: &[Journal], primary: &str) -> Result<(Vec<LostTail>, Vec<TwoWriters>)> {
        let lost = verdict::lost(journals, &self.lab.survivors(primary)?, &verdict::recorded(&self.lab.history()?));
        Ok((lost, verdict::two_writers(journals)))
    }

    fn journals(&self) -> Vec<Journal> {
        let running = self.islands.iter().map(|island| island.look(Clone::clone));
        std::iter::once(self.writer.look(Clone::clone)).chain(self.ended.iter().cloned()).chain(running).collect()
    }

    /// Sends the clients on harmed hosts home.
    pub(super) fn end_islands(&mut self) {
        self.ended.extend(self.islands.drain(..).map(Writer::stop));
    }

    /// The journals of all clients but the writer's.
    pub(super) fn into_journals(mut self) -> Vec<Journal> {
        self.end_islands();
        self.ended
    }
}
