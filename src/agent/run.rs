//! The loop: observe → decide → act.

use super::{
    act::{Context, Tools, execute},
    event::Event,
    handle::{Published, Publisher},
    measure::Measure,
    observe::Pace,
    state::State,
};
use crate::{
    clock,
    decide::{
        decide,
        decision::{Action, Decision, Reason, ReasonKind, Task},
        ledger_texts,
        snapshot::{Fresh, Snapshot},
    },
    model::{moment::Span, term::Term},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

/// So many events are taken in before one decision.
const BATCH: usize = 64;
/// Looks at the server while a fact is awaited.
const HURRY: Span = Span::from_millis(25);

/// One agent's loop.
pub(super) struct Loop {
    pub(super) state: State,
    pub(super) tools: Arc<Tools>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) pace: watch::Sender<Pace>,
    pub(super) measure: Measure,
    /// Shows what was decided to everybody who asks.
    pub(super) publisher: Publisher,
    /// The actions that are under way.
    pub(super) running: JoinSet<()>,
    /// What goes on, in words: one of each kind.
    pub(super) doing: BTreeMap<Task, String>,
    /// What went wrong last, of each kind that has not gone well since.
    pub(super) failed: BTreeMap<Task, (String, String)>,
}

impl Loop {
    /// Runs until a decision ends this agent; returns why it did.
    pub(super) async fn run(mut self) -> String {
        let mut told: BTreeSet<(ReasonKind, String)> = BTreeSet::new();
        loop {
            let started = clock::boot();
            let snapshot = self.state.snapshot(clock::now(), fresh());
            let mut decision = decide(&snapshot);
            self.measure.decision(started, &snapshot, &decision);
            tell(&decision.reasons, &snapshot, &mut told);
            self.set_pace(&snapshot, &decision);
            self.state.decided(&mut decision, clock::boot());
            if let Some(why) = self.act(&snapshot, &decision) {
                return why;
            }
            self.publisher.publish(Published { snapshot, decision, heard: BTreeMap::new() });
            self.observe().await;
        }
    }

    /// Hands out the actions. The send of a transaction is noted before anything leaves: a lease counts from there.
    fn act(&mut self, snapshot: &Snapshot, decision: &Decision) -> Option<String> {
        for action in &decision.actions {
            if let Action::Exit { why } = action {
                return Some(why.clone());
            }
            if let Action::Txn(_, txn) = action {
                let now = clock::now();
                self.state.apply(Event::TxnSent { nonce: txn.nonce.clone(), at: now.boot }, now);
            }
            self.doing.insert(action.task(), action.to_string());
            let context = context(snapshot);
            // One short task an action; `Task` allows one of a kind at a time.
            self.running.spawn(execute(Arc::clone(&self.tools), action.clone(), context));
        }
        None
    }

    /// Takes in what comes, until the next decision is due.
    async fn observe(&mut self) {
        loop {
            let left = self.state.decide_at().since(clock::boot());
            if left == Span::ZERO {
                return;
            }
            let first = tokio::select! {
                biased;
                event = self.events.recv() => event,
                Some(ended) = self.running.join_next() => {
                    // It panicked, and so does the agent: nobody would ever tell of its end. The guard's deadline stands.
                    if let Err(fault) = ended {
                        std::panic::resume_unwind(fault.into_panic());
                    }
                    continue;
                }
                () = tokio::time::sleep(left.to_std()) => None,
            };
            let Some(first) = first else { return };
            self.take(first);
            for _ in 1..BATCH {
                let Ok(event) = self.events.try_recv() else { break };
                self.take(event);
            }
        }
    }

    fn take(&mut self, event: Event) {
        note(&event, &self.doing, &mut self.failed);
        self.measure.event(&event);
        self.state.apply(event, clock::now());
    }

    fn set_pace(&self, snapshot: &Snapshot, decision: &Decision) {
        let calm = snapshot.policy.timers().look_every();
        let every = if decision.hurry { HURRY } else { calm };
        let guard = snapshot.guard().map(|guard| guard.incarnation.clone());
        let wanted = Pace { run: guard.zip(snapshot.run()), every, calm: !decision.hurry };
        self.pace.send_if_modified(|pace| {
            let changed = *pace != wanted;
            *pace = wanted;
            changed
        });
    }
}

fn fresh() -> Fresh {
    Fresh { nonce: clock::nonce(), data: clock::data_incarnation(), uuid: clock::incarnation(), wall: clock::wall() }
}

fn context(snapshot: &Snapshot) -> Context {
    let leader = snapshot.leader().map(|leader| &leader.record);
    Context {
        run: snapshot.run(),
        file: snapshot.file.clone(),
        // The guard refuses a term below the highest that it has heard.
        term: snapshot
            .file
            .term
            .max(leader.map_or(Term::ZERO, |leader| leader.term))
            .max(snapshot.guard().map_or(Term::ZERO, |guard| guard.term)),
        swapped: snapshot.lease.confirmed.as_ref().map(|attempt| attempt.term),
        whole: snapshot.whole_now(),
        ledger: snapshot.policy.parameters.contains_key("restore_command").then(|| ledger_texts(snapshot)),
    }
}

/// Logs the reasons that are new. A changed id is news; changed numbers are not.
fn tell(reasons: &[Reason], snapshot: &Snapshot, told: &mut BTreeSet<(ReasonKind, String)>) {
    let term = snapshot.leader().map_or(Term::ZERO, |leader| leader.record.term);
    let now: BTreeSet<(ReasonKind, String)> = reasons.iter().map(|reason| (reason.kind, reason.id.clone())).collect();
    for reason in reasons.iter().filter(|reason| !told.contains(&(reason.kind, reason.id.clone()))) {
        // What PostgreSQL said last comes in several lines; a log's message is one.
        let text = reason.text.replace('\n', " | ");
        match reason.kind {
            ReasonKind::Alarm => tracing::error!(%term, reason = reason.id, "{text}"),
            ReasonKind::Refused => tracing::warn!(%term, reason = reason.id, "{text}"),
            ReasonKind::Because | ReasonKind::Waits => tracing::info!(%term, reason = reason.id, "{text}"),
        }
    }
    *told = now;
}

/// Logs what went wrong in an action, where it is handled: once, until it goes well or wrong in another way.
fn note(event: &Event, doing: &BTreeMap<Task, String>, failed: &mut BTreeMap<Task, (String, String)>) {
    let action = |task: &Task| doing.get(task).cloned().unwrap_or_else(|| task.to_string());
    match event {
        Event::Done { task, outcome: Ok(()) } => drop(failed.remove(task)),
        Event::Held { task, why } | Event::Done { task, outcome: Err(why) } if *task != Task::PutMember => {
            let now = (action(task), why.clone());
            if failed.get(task) == Some(&now) {
                tracing::debug!(why, "again could not {}", now.0);
                return;
            }
            tracing::warn!(why, "could not {}", now.0);
            failed.insert(*task, now);
        }
        Event::TxnDone { task, outcome: super::event::TxnOutcome::NotDone { why } | super::event::TxnOutcome::Unknown { why }, .. } => {
            tracing::warn!(why, "etcd gave no clear answer when asked to {}", action(task));
        }
        Event::GuardGone { why } => tracing::debug!(why, "no guard in session"),
        Event::ServerSilent { why, .. } => tracing::debug!(why, "PostgreSQL did not answer"),
        Event::EtcdSilent { why } => tracing::debug!(why, "etcd is silent"),
        _ => {}
    }
}
