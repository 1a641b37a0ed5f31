//! What the loop measures of itself: facts and decisions as metrics.

use super::event::{Event, TxnOutcome};
use crate::{
    clock,
    decide::{
        decision::{Action, Completed, Decision, ReasonKind, Task},
        snapshot::Snapshot,
    },
    model::{
        instance::{Process, ServerRole},
        moment::{Moment, Span},
        node::Replica,
    },
    postgres::lag,
    telemetry::{Metrics, metrics},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Gauges are set at most so often.
const EVERY: Span = Span::from_secs(1);

/// Feeds the metrics.
pub(super) struct Measure {
    metrics: Arc<Metrics>,
    gauges_at: Moment,
    alarms: BTreeSet<String>,
    sent: BTreeMap<Task, Moment>,
    /// What was last begun on the data directory: its failure does not say it.
    data: Option<Completed>,
}

impl Measure {
    pub(super) const fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, gauges_at: Moment::ZERO, alarms: BTreeSet::new(), sent: BTreeMap::new(), data: None }
    }

    pub(super) fn decision(&mut self, started: Moment, s: &Snapshot, decision: &Decision) {
        let now = clock::boot();
        self.metrics.observe(metrics::DECISION, &[], now.since(started).as_secs_f64());
        if decision.reasons.iter().any(|reason| reason.id == "invariant") {
            self.metrics.add(metrics::DECISIONS_WITHHELD, &["any"], 1);
        }
        for action in &decision.actions {
            self.action(action, now);
        }
        self.alarms(decision);
        if now.since(self.gauges_at) >= EVERY {
            self.gauges_at = now;
            self.gauges(s, now);
        }
    }

    fn action(&mut self, action: &Action, now: Moment) {
        self.data = action.completes().or(self.data);
        match action {
            Action::Txn(..) => {
                self.sent.insert(action.task(), now);
            }
            Action::AppendHistory(record) => {
                let cause = if record.from.as_ref() == Some(&record.primary) { "restart-in-place" } else { "takeover" };
                self.metrics.add(metrics::FAILOVERS, &[cause], 1);
                self.metrics.set(metrics::LAST_FAILOVER, &[], clock::unix_seconds() as f64);
                for (phase, millis) in &record.phases {
                    self.metrics.observe(metrics::FAILOVER_PHASE, &[phase], Span::from_millis(*millis).as_secs_f64());
                }
            }
            _ => {}
        }
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::TxnDone { task, outcome, .. } => self.answered(*task, outcome),
            Event::Completed(Completed::Clone) => self.metrics.add(metrics::CLONES, &["done"], 1),
            Event::Completed(Completed::Rewind) => self.metrics.add(metrics::REWINDS, &["done"], 1),
            Event::Done { task: Task::Data, outcome: Err(_) } => match self.data {
                Some(Completed::Clone) => self.metrics.add(metrics::CLONES, &["failed"], 1),
                Some(Completed::Rewind) => self.metrics.add(metrics::REWINDS, &["failed"], 1),
                Some(Completed::InitDb | Completed::Discard) | None => {}
            },
            _ => {}
        }
    }

    fn answered(&mut self, task: Task, outcome: &TxnOutcome) {
        let Some(sent) = self.sent.remove(&task) else { return };
        let took = clock::boot().since(sent).as_secs_f64();
        let word = match outcome {
            TxnOutcome::Applied { .. } => "applied",
            TxnOutcome::Refused { .. } => "refused",
            TxnOutcome::NotDone { .. } | TxnOutcome::Unknown { .. } => "unknown",
        };
        if task == Task::LeaderTxn {
            self.metrics.observe(metrics::RENEWAL, &[word], took);
        }
        self.metrics.observe(metrics::ETCD_REQUEST, &["txn"], took);
        if word == "unknown" {
            self.metrics.add(metrics::ETCD_ERRORS, &["txn", "no-answer"], 1);
        }
    }

    fn alarms(&mut self, decision: &Decision) {
        let now: BTreeSet<String> =
            decision.reasons.iter().filter(|reason| reason.kind == ReasonKind::Alarm).map(|reason| reason.id.clone()).collect();
        if now == self.alarms {
            return;
        }
        for ended in self.alarms.difference(&now) {
            self.metrics.set(metrics::ALARM, &[ended], 0.0);
        }
        for raised in &now {
            self.metrics.set(metrics::ALARM, &[raised], 1.0);
        }
        self.alarms = now;
    }

    fn gauges(&self, s: &Snapshot, now: Moment) {
        let role = match s.role() {
            Some(ServerRole::Primary { .. }) => "primary",
            Some(ServerRole::Standby { .. }) => "replica",
            None => "down",
        };
        self.metrics.choose(metrics::ROLE, &["primary", "replica", "down"], role);
        let process = match s.process() {
            Some(Process::Running { stopping: None, .. }) => "running",
            Some(Process::Running { .. }) => "stopping",
            Some(Process::Dying { .. }) => "dying",
            Some(Process::Empty { .. }) | None => "empty",
        };
        self.metrics.choose(metrics::POSTGRES_STATE, &["empty", "running", "stopping", "dying"], process);
        if let Some(ServerRole::Primary { tli, .. } | ServerRole::Standby { tli, .. }) = s.role() {
            self.metrics.set(metrics::TIMELINE, &[], f64::from(tli.get()));
        }
        if let Some(leader) = s.leader() {
            self.metrics.set(metrics::TERM, &[], leader.record.term.get() as f64);
        }
        let left = s.authority().map_or(Span::ZERO, |until| until.since(now));
        self.metrics.set(metrics::LEASE_REMAINING, &[], left.as_secs_f64());
        if let Some(armed) = s.guard().and_then(|guard| guard.armed) {
            self.metrics.set(metrics::GUARD_DEADLINE_REMAINING, &[], armed.until.since(now).as_secs_f64());
        }
        for slot in s.server().into_iter().flat_map(|facts| &facts.slots) {
            self.metrics.set(metrics::SLOT_RETAINED, &[slot.name.as_str()], slot.retained as f64);
        }
        if role == "primary" {
            let voters = s.sync().filter(|sync| sync.record.primary == s.myself()).map_or(0, |sync| sync.record.voters.len());
            let waiting = s.server().and_then(|facts| facts.waiting).unwrap_or_default();
            self.metrics.set(metrics::SYNC_VOTERS, &[], voters as f64);
            self.metrics.set(metrics::COMMITS_WAITING, &[], f64::from(waiting.sessions));
            self.metrics.set(metrics::COMMITS_WAITING_SECONDS, &[], waiting.longest.as_secs_f64());
        }
        for row in s.server().into_iter().flat_map(|facts| &facts.walsenders) {
            let Some(replica) = Replica::from_application_name(&row.application_name) else { continue };
            let Some(lag) = s.server().and_then(|facts| lag::seen_by_primary(facts, &row.application_name)) else { continue };
            let stages = [("sent", lag.sent), ("write", lag.write), ("flush", lag.flush), ("replay", lag.replay)];
            for (stage, bytes) in stages {
                if let Some(bytes) = bytes {
                    self.metrics.set(metrics::LAG_BYTES, &[replica.node.as_str(), stage], bytes as f64);
                }
            }
            if let Some(millis) = lag.replay_ms {
                self.metrics.set(metrics::LAG_SECONDS, &[replica.node.as_str(), "replay"], Span::from_millis(millis).as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decide::decision::Source, model::node_file::ClonePlace};

    #[test]
    fn a_failed_clone_is_no_failed_rewind() {
        let metrics = Arc::new(Metrics::new(&"orders".parse().expect("cluster"), &"n1".parse().expect("node")));
        let mut measure = Measure::new(Arc::clone(&metrics));
        let source = Source {
            node: "n2".parse().expect("node"),
            address: "10.0.0.2:5432".parse().expect("address"),
            tli: crate::model::timeline::TimelineId::FIRST,
        };
        let failed = |measure: &mut Measure, action: Action| {
            measure.action(&action, Moment::ZERO);
            measure.event(&Event::Done { task: action.task(), outcome: Err("no route".to_owned()) });
            let text = metrics.render();
            let count = |name: &str| {
                text.lines()
                    .find(|line| line.starts_with(name) && line.contains("failed"))
                    .map_or("", |line| &line[line.len() - 1..])
                    .to_owned()
            };
            (count("pgbaton_clones_total"), count("pgbaton_rewinds_total"))
        };
        let clone = Action::Clone { source: source.clone(), place: ClonePlace::Beside, other: None, discards: None };
        assert_eq!(failed(&mut measure, clone), ("1".to_owned(), String::new()));
        assert_eq!(failed(&mut measure, Action::InitDb), ("1".to_owned(), String::new()));
        let nowhere = crate::model::lsn::Lsn::ZERO;
        let rewind = Action::Rewind { tli: source.tli, source, fork: nowhere, whole: nowhere };
        assert_eq!(failed(&mut measure, rewind), ("1".to_owned(), "1".to_owned()));
    }
}
