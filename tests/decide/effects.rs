//! What a decision's actions come to when all goes well: the facts that the next snapshot shows.

use super::{base, edit};
use pgbaton::{
    decide::{
        decision::{Action, Configuration, Decision},
        snapshot::{Attempt, Shown, Snapshot, Standing},
    },
    model::{
        failsafe::{Acked, Ask},
        instance::{Armed, Cut, GuardStatus, Process, Run, ServerRole, StartAs},
        key::{Key, Txn, Write},
        moment::Span,
        node::NodeName,
        observed::Observed,
        timeline::{TimelineHistory, TimelineId},
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// Ten milliseconds later everything is done. Scans and looks at the directory find what the script says next.
pub(crate) fn carry_out(s: &mut Snapshot, decision: &Decision) {
    let sent = s.now.boot;
    let passed = Span::from_millis(10);
    (s.now.boot, s.now.mono) = (s.now.boot.plus(passed), s.now.mono.plus(passed));
    for action in &decision.actions {
        one(s, action, sent);
    }
}

fn one(s: &mut Snapshot, action: &Action, sent: pgbaton::model::moment::Moment) {
    match action {
        Action::Txn(_, txn) => commit(s, txn, sent),
        Action::WriteFile(file) => {
            if file.data != s.file.data {
                (s.boundary, s.whole) = (file.boundary, None);
            }
            if file.operation.is_none() {
                s.completed = None;
            }
            s.file = (**file).clone();
        }
        Action::Configure(configuration) => follows(s, configuration),
        Action::Cut(from) => with_guard(s, |guard| guard.cut = Cut::From(from.clone())),
        Action::CutStream => {
            if let Some(configured) = &mut s.configured {
                configured.follow = None;
            }
            s.whole = None;
            unfollow(s);
        }
        Action::ShowNames { names, checkpoints } => {
            let mark = match s.role() {
                Some(ServerRole::Primary { insert, .. }) => Some(*insert),
                _ => None,
            };
            if let Observed::Known { at, .. } = &mut s.server {
                *at = s.now.boot;
            }
            s.shown = s.run().map(|run| Shown { run, names: names.clone(), checkpoints: *checkpoints, mark, at: sent, known: sent });
        }
        Action::WriteHistories(texts) => histories(s, texts),
        Action::Arm { term, until } => with_guard(s, |guard| guard.armed = Some(Armed { term: *term, until: *until })),
        Action::Disarm { .. } | Action::DisarmPaused { .. } => with_guard(s, |guard| guard.armed = None),
        Action::AskPeers { ask, of } => agree(s, ask, of, sent),
        Action::Promote { term } => with_guard(s, |guard| guard.primary_of = Some(*term)),
        Action::Start { start, term } => {
            let run = Run(last_run(s) + 1);
            with_guard(s, |guard| {
                guard.process = Process::Running { run, start: *start, stopping: None };
                guard.primary_of = (*start == StartAs::Primary).then_some(*term);
            });
            edit::forget_the_run(s);
        }
        Action::Stop { mode, .. } => with_guard(s, |guard| {
            if let Process::Running { stopping, .. } = &mut guard.process {
                *stopping = Some(*mode);
            }
        }),
        Action::Kill => {
            let run = Run(last_run(s));
            with_guard(s, |guard| {
                let last = pgbaton::model::instance::Ended { wanted: true, ..base::ended(run, StartAs::Standby, "signal 9") };
                guard.process = Process::Empty { last: Some(last) };
            });
            edit::forget_the_run(s);
        }
        other => {
            if let Some(completed) = other.completes() {
                s.completed = Some(completed);
                s.disk = Observed::never();
                s.histories = Arc::default();
                (s.whole, s.boundary) = (None, None);
            }
        }
    }
}

/// Every peer that is asked says yes.
fn agree(s: &mut Snapshot, ask: &Ask, of: &BTreeMap<NodeName, String>, sent: pgbaton::model::moment::Moment) {
    let sync = s.sync().map(|sync| sync.record.clone());
    let all = sync.into_iter().flat_map(|sync| sync.voters.into_iter().chain(sync.electable));
    for replica in all.filter(|replica| of.contains_key(&replica.node)) {
        s.peers.acks.insert(replica, Acked { term: ask.term, sent, hold: ask.hold });
    }
}

fn last_run(s: &Snapshot) -> u64 {
    match s.process() {
        Some(Process::Running { run, .. } | Process::Dying { run }) => run.0,
        Some(Process::Empty { last: Some(last) }) => last.run.0,
        _ => 0,
    }
}

fn with_guard(s: &mut Snapshot, change: impl FnOnce(&mut GuardStatus)) {
    if let Observed::Known { value, .. } = &mut s.guard {
        change(value);
    }
}

fn commit(s: &mut Snapshot, txn: &Txn, sent: pgbaton::model::moment::Moment) {
    let revision = s.etcd.records.revision + 1;
    let records = Arc::make_mut(&mut s.etcd.records);
    for write in &txn.then {
        match write {
            Write::Put(key, text) => records.apply(key, Some(text), revision),
            Write::Delete(key) => records.apply(key, None, revision),
        }
    }
    records.revision = revision;
    let Some(leader) = s.leader().filter(|leader| leader.record.nonce == txn.nonce).cloned() else { return };
    let holds = pgbaton::decide::snapshot::is_held(&leader.record);
    let attempt = Attempt { nonce: txn.nonce.clone(), term: leader.record.term, sent, hold: leader.record.hold, holds };
    (s.lease.confirmed, s.lease.unsettled) = (Some(attempt), Vec::new());
    s.standing = Some(Standing { nonce: txn.nonce.clone(), since: s.now.mono, suspended: s.now.suspended() });
    debug_assert!(txn.then.iter().any(|write| matches!(write, Write::Put(Key::Leader, _))));
}

fn follows(s: &mut Snapshot, configuration: &Configuration) {
    s.configured = Some(configuration.clone());
    if let Observed::Known { value, .. } = &mut s.server {
        value.sync_names.clone_from(&configuration.sync_names);
    }
    match &configuration.follow {
        None => unfollow(s),
        Some(follow) => {
            s.whole = None;
            let address = follow.address.clone();
            if let Observed::Known { value, .. } = &mut s.server
                && let ServerRole::Standby { conninfo, .. } = &mut value.role
            {
                *conninfo = format!("host={} port={}", address.host, address.port);
            }
        }
    }
}

fn unfollow(s: &mut Snapshot) {
    if let Observed::Known { value, .. } = &mut s.server
        && let ServerRole::Standby { conninfo, receiver, .. } = &mut value.role
    {
        conninfo.clear();
        *receiver = None;
    }
}

/// Before a start, comments that no real history follows are taken away.
fn histories(s: &mut Snapshot, texts: &BTreeMap<TimelineId, String>) {
    Arc::make_mut(&mut s.histories).extend(texts.clone());
    if s.is_empty() {
        let real = |text: &String| text.parse::<TimelineHistory>().is_ok_and(|history| history.last().is_some());
        let newest = s.histories.iter().filter(|(_, text)| real(text)).map(|(tli, _)| *tli).max();
        Arc::make_mut(&mut s.histories).retain(|tli, _| newest.is_some_and(|newest| *tli <= newest));
    }
}
