//! A paused cluster (protocol 1.12): nobody claims, and PostgreSQL is neither started nor stopped, promoted or rewound, until somebody resumes.
//!
//! The holder pauses by a swap, and takes its deadline away only once that is committed. To resume it arms a deadline first, and swaps then;
//! where the swap has no clear answer it writes the paused value again, and only that success takes the deadline away.

use super::{
    Flow, cut,
    decision::{Action, Purpose, Task},
    draft::Draft,
    durability, follow, leadership,
    leadership::next,
    operator, release, scan,
    snapshot::Snapshot,
    stop, upkeep,
};
use crate::model::{
    instance::{Process, ServerFacts, ServerRole},
    moment::{Moment, Span},
    record::{IntentRecord, LeaderRecord, LeaderState, Pause, Stored},
    request::Request,
};

/// A resumption is sent only while the deadline leaves its answer so much time; a third of the hold, where that is less.
const ANSWER: Span = Span::from_secs(1);

/// A directory is looked at so often while nothing may be done to it.
const LOOK_EVERY: Span = Span::from_secs(5);

/// A pause that is over by so much has no holder that ends it.
const OVERDUE: Span = Span::from_secs(10);

impl Snapshot {
    /// The pause, where the cluster is paused.
    pub fn pause(&self) -> Option<&Pause> {
        match &self.leader()?.record.state {
            LeaderState::Paused(pause) => Some(pause),
            _ => None,
        }
    }

    /// Whether we are the holder of a paused record: nobody claims it, and no time of ours runs.
    pub fn holds_paused(&self) -> bool {
        self.holds() && self.pause().is_some()
    }

    /// The same, by a write of this agent's own whose successors are all settled: what stands in etcd is known.
    pub fn pause_is_settled(&self) -> bool {
        let ours = self.lease.confirmed.as_ref().zip(self.leader()).is_some_and(|(attempt, leader)| attempt.nonce == leader.record.nonce);
        ours && self.lease.unsettled.is_empty() && self.holds_paused()
    }
}

fn said(s: &Snapshot, pause: &Pause) -> String {
    let left = pause.ends.filter(|_| s.holds_paused()).map(|ends| format!(", for {} more", s.left(ends)));
    let until = left.or_else(|| pause.until.map(|until| format!(", for {until}"))).unwrap_or_default();
    let since = if pause.at.is_empty() { String::new() } else { format!(" since {}", pause.at) };
    format!("paused by {}{since}{until}: {}", pause.by, pause.reason)
}

/// Pauses, as the holder that serves; or, of a vacant record, as whoever comes first.
pub(super) fn begin(s: &Snapshot, d: &mut Draft, stored: &Stored<IntentRecord>) {
    let (Some(leader), Request::Pause { reason, until }) = (s.leader(), &stored.record.request) else { return };
    let vacant = match &leader.record.state {
        LeaderState::Vacant { reason } => Some(reason.clone()),
        _ => None,
    };
    let ends = until.filter(|_| vacant.is_none()).map(|until| s.now.boot.plus(until));
    let pause =
        Pause { by: stored.record.actor.clone(), reason: reason.clone(), at: stored.record.at.clone(), until: *until, ends, vacant };
    d.because("pause", format!("{} pauses the cluster: {reason}", pause.by));
    let record = LeaderRecord { state: LeaderState::Paused(Box::new(pause)), ..leadership::next_position(s, d, &leader.record) };
    d.act(s, Action::Txn(Purpose::Pause, operator::swap_for(leader, &record, Some(stored))));
}

/// What everybody but the holder does about a pause; and what is looked at anew after one.
pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    let Some(leader) = s.leader() else { return Flow::Goes };
    let LeaderState::Paused(pause) = &leader.record.state else {
        if let (LeaderState::Vacant { .. }, Some(stored)) = (&leader.record.state, operator::wish(s))
            && matches!(stored.record.request, Request::Pause { .. })
            && s.etcd_answers()
        {
            begin(s, d, stored);
            return Flow::Settled;
        }
        return looked_at(s, d);
    };
    d.memory.paused = Some(s.now.boot);
    d.waits("paused", format!("{}; nobody claims, and nothing is done to PostgreSQL", said(s, pause)));
    leadership::disarm(s, d);
    overdue(s, d, pause);
    if s.etcd_answers() {
        end(s, d, leader, pause);
    }
    stays(s, d, &leader.record);
    Flow::Settled
}

/// What an operator did in a pause is looked at before anything acts on what was known before.
fn looked_at(s: &Snapshot, d: &mut Draft) -> Flow {
    let Some(paused) = d.memory.paused else { return Flow::Goes };
    if s.is_empty() && s.disk.seen_at().is_none_or(|seen| seen <= paused) {
        d.waits("inspect", "the pause is over: the data directory is inspected before anything is done to it");
        d.act(s, Action::InspectDisk);
        return Flow::Settled;
    }
    if s.is_empty() && is_of_before(s, paused) {
        scan::start(s, d);
        return Flow::Settled;
    }
    d.memory.paused = None;
    Flow::Goes
}

/// Whether the end of our WAL that is known was found before that moment: somebody may have put another directory in its place since, and the same
/// `pg_control` may lie over less WAL.
fn is_of_before(s: &Snapshot, moment: Moment) -> bool {
    s.whole_now().is_some() && s.whole.as_ref().is_some_and(|scanned| scanned.at < moment)
}

fn overdue(s: &Snapshot, d: &mut Draft, pause: &Pause) {
    let Some(ends) = pause.until.map(|until| until.plus(OVERDUE)) else { return };
    let stood = s.stood_still();
    if stood >= ends {
        d.alarm("pause-overdue", format!("the pause of {} is over, and no holder ends it: resume by hand", pause.by));
    } else {
        d.wake(s.now.boot.plus(ends.minus(stood)));
    }
}

/// A running standby goes on following, where that is plain; nothing else is done.
fn stays(s: &Snapshot, d: &mut Draft, leader: &LeaderRecord) {
    if s.is_empty() {
        let again = s.disk.seen_at().map(|at| at.plus(LOOK_EVERY));
        match again.filter(|again| s.now.boot < *again) {
            Some(again) => d.wake(again),
            None => {
                d.act(s, Action::InspectDisk);
            }
        }
        return;
    }
    let follows =
        s.memory.rewind.is_none() && s.file.operation.is_none() && leader.term >= s.file.promised && leader.holder.node != s.me.node;
    let Some(ServerRole::Standby { tli, .. }) = s.role().filter(|_| follows && s.holder_is_there()) else { return };
    let cut_off = !cut::opens(s, d, &leader.holder.postgres);
    if *tli == leader.tli && !cut_off && upkeep::configured(s, d, Some(follow::follow_of(s, leader))) {
        d.because("follows", format!("follows {} in term {}", leader.holder.node, leader.term));
    }
}

impl Snapshot {
    fn holder_is_there(&self) -> bool {
        self.pause().is_some_and(|pause| pause.vacant.is_none())
    }
}

/// A pause that has no holder is ended by anybody; one whose holder is gone, by proof of its death alone, or by its own agent.
fn end(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, pause: &Pause) {
    let record = &leader.record;
    // Only while the record is being given up.
    d.memory.resuming = None;
    let ours = pause.vacant.is_none() && release::died_here(s, record);
    if ours {
        d.alarm(
            "paused-down",
            format!("PostgreSQL of the primary is down, and the pause of {} keeps others from taking over: resume", pause.by),
        );
    }
    let to_me = operator::order(s).is_some();
    let resumes = matches!(operator::wish(s), Some(stored) if matches!(stored.record.request, Request::Resume { .. }));
    let Some(stored) = operator::wish(s).filter(|_| resumes || to_me) else {
        if ours {
            goes_on_without_a_guard(s, d, leader, pause);
        }
        return;
    };
    let actor = &stored.record.actor;
    let released = s.former_primary_released();
    let asserted = operator::asserted(s, d, record);
    let proof = match (&pause.vacant, asserted) {
        (Some(reason), _) => reason.clone(),
        (None, _) if released => format!("{} was released", record.holder.node),
        (None, Some(word)) => word,
        (None, None) if ours => return end_ours(s, d, leader, stored),
        (None, None) if s.etcd.records.acts(record) => {
            d.waits("resume", format!("{} ends the pause itself, as {actor} asks", record.holder.node));
            return;
        }
        (None, None) => {
            d.refused(
                "resume",
                format!(
                    "{actor} asks for the pause's end, but its holder {} is not there to end it and not proven dead: start its agent again, or \
                     make sure that its PostgreSQL is dead and ask with --assert-dead",
                    record.holder.node
                ),
            );
            return;
        }
    };
    d.because("resume", format!("{actor} ends the pause: {proof}"));
    // How long its holder may have gone on unseen, for the history record.
    let hold = if pause.vacant.is_none() && !released { record.hold.plus(s.stood_still()) } else { record.hold };
    let state = if to_me { LeaderState::Handoff { to: s.me.node.clone() } } else { LeaderState::Vacant { reason: proof } };
    let next = LeaderRecord { state, hold, ..next(s, record) };
    d.act(s, Action::Txn(Purpose::Resume, operator::swap_for(leader, &next, resumes.then_some(stored))));
}

/// As the agent of the holder, whose guard has died: what is asked for in the pause, and its end, nobody else does.
fn goes_on_without_a_guard(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, pause: &Pause) {
    match operator::wish(s).map(|stored| &stored.record.request) {
        Some(Request::Failover { to, .. }) if operator::unfit(s, to).is_none() => {
            return give_up(s, d, leader, None, Purpose::Handoff, LeaderState::Handoff { to: to.clone() });
        }
        Some(Request::Failover { .. } | Request::Pause { .. } | Request::Acknowledge) => return operator::rule(s, d),
        // A removal waits for the next primary.
        Some(Request::Remove { .. } | Request::Resume { .. }) | None => {}
    }
    let Some(ends) = pause.ends else { return };
    // On this boot's clock: this agent has seen that guard.
    if s.now.boot >= ends {
        let why = format!("the pause of {} is over, and the guard had died", pause.by);
        give_up(s, d, leader, None, Purpose::Resume, LeaderState::Vacant { reason: why });
    } else {
        d.wake(ends);
    }
}

/// The same by an operator's word.
fn end_ours(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, stored: &Stored<IntentRecord>) {
    let why = format!("{} ended the pause, and the guard had died", stored.record.actor);
    give_up(s, d, leader, Some(stored), Purpose::Resume, LeaderState::Vacant { reason: why });
}

/// As the holder of a paused record.
pub(super) fn holder(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, pause: &Pause) {
    d.memory.paused = Some(s.now.boot);
    d.waits("paused", said(s, pause));
    if s.lease.confirmed.as_ref().is_none_or(|attempt| attempt.term != leader.record.term) {
        leadership::adopt(s, d, leader);
        return;
    }
    if matches!(s.role(), Some(ServerRole::Primary { .. })) {
        // Commits go on, and what they wait for is kept in order.
        upkeep::configured(s, d, None);
        durability::rule(s, d);
    }
    if !s.pause_is_settled() {
        d.waits("pause-unsettled", "a write of `leader` has no answer: the pause is written again before anything rests on it");
        d.act(s, Action::Txn(Purpose::Pause, leadership::swap(leader, &next(s, &leader.record))));
        d.wake(s.now.boot.plus(leadership::ASK_AGAIN));
        return;
    }
    let stored = operator::wish(s);
    if let Some(to) = operator::hands_to(s) {
        return hand_over(s, d, leader, &to);
    }
    // Its end needs etcd's answer: until then a deadline would end PostgreSQL for nothing.
    let over = pause.ends.is_some_and(|ends| s.now.boot >= ends) && s.etcd_answers();
    match stored {
        Some(stored) if matches!(stored.record.request, Request::Resume { .. }) => return resume(s, d, leader, Some(stored)),
        // A removal may wait for long; it goes on after the pause.
        None if over => return resume(s, d, leader, None),
        Some(stored) if over && matches!(stored.record.request, Request::Remove { .. }) => return resume(s, d, leader, None),
        Some(_) => operator::rule(s, d),
        None => {}
    }
    d.memory.resuming = None;
    // What is over already waits for etcd, and that answer is an event.
    pause.ends.into_iter().filter(|ends| *ends > s.now.boot).for_each(|ends| d.wake(ends));
    disarm(s, d, leader);
}

fn disarm(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    if s.guard().is_some_and(|guard| guard.armed.is_some()) {
        d.act(s, Action::DisarmPaused { term: leader.record.term });
    }
}

/// The former primary hands over by an operator's word: PostgreSQL is stopped, verified dead, and then the lease goes to that node.
fn hand_over(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, to: &crate::model::node::NodeName) {
    d.because("failover", format!("{to} is to take over: PostgreSQL is stopped here, and the lease handed to it"));
    match s.process() {
        Some(Process::Running { .. }) => stop::stop_postgres(s, d),
        Some(Process::Empty { .. }) => give_up(s, d, leader, None, Purpose::Handoff, LeaderState::Handoff { to: to.clone() }),
        Some(Process::Dying { .. }) | None => {}
    }
}

/// The node ends, and leaves a paused record of which it is known that nobody holds it: still paused.
pub(super) fn leaves(s: &Snapshot, d: &mut Draft) -> Flow {
    let (Some(leader), Some(pause)) = (s.leader().filter(|_| s.pause_is_settled() && s.is_empty() && s.etcd_answers()), s.pause()) else {
        return Flow::Goes;
    };
    let vacant = Some(format!("{} was stopped", s.me.node));
    let state = LeaderState::Paused(Box::new(Pause { vacant, ends: None, ..pause.clone() }));
    give_up(s, d, leader, None, Purpose::Pause, state);
    if d.actions.is_empty() && s.tasks.is_empty() { Flow::Goes } else { Flow::Settled }
}

/// Not one process of the holder's PostgreSQL lives: once its end of WAL is known and its death noted, the record says so.
fn give_up(
    s: &Snapshot,
    d: &mut Draft,
    leader: &Stored<LeaderRecord>,
    stored: Option<&Stored<IntentRecord>>,
    purpose: Purpose,
    state: LeaderState,
) {
    let since = *d.memory.resuming.insert(s.memory.resuming.unwrap_or(s.now.boot));
    if s.disk.seen_at().is_none_or(|seen| seen < since) {
        d.waits("inspect", "the data directory is inspected: what was done to it in the pause is not known");
        d.act(s, Action::InspectDisk);
        return;
    }
    if is_of_before(s, since) {
        scan::start(s, d);
        return;
    }
    let Some(end) = release::noted_dead(s, d, leader) else { return };
    let Some(record) = release::given_up(s, leader, end, state) else { return };
    d.act(s, Action::Txn(purpose, operator::swap_for(leader, &record, stored)));
}

/// Ends the pause on the holder's own node.
fn resume(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, stored: Option<&Stored<IntentRecord>>) {
    let who = stored.map_or_else(|| "the pause's time is over".to_owned(), |stored| format!("{} resumes", stored.record.actor));
    match s.process() {
        Some(Process::Empty { .. }) if !s.is_starting() => {
            d.because("resume", format!("{who}, and PostgreSQL is down here: the lease is released"));
            give_up(s, d, leader, stored, Purpose::Resume, LeaderState::Vacant { reason: format!("{who}, and PostgreSQL was down") });
        }
        Some(Process::Running { stopping: None, .. }) => match s.server().map(|facts| (facts, differs(s, leader, facts))) {
            Some((_, None)) => handshake(s, d, leader, stored, &who),
            Some((_, Some(why))) => {
                d.alarm("resume-refused", format!("{who}, but {why}: it stays paused"));
                stored.into_iter().for_each(|stored| operator::drop(s, d, stored, format!("{why}: it stays paused")));
                disarm(s, d, leader);
            }
            None => d.waits("mute", format!("{who}: PostgreSQL has to answer first")),
        },
        _ => d.waits("stopping", format!("{who}: PostgreSQL is being started or stopped")),
    }
}

/// What makes this server another one than the record tells of.
fn differs(s: &Snapshot, leader: &Stored<LeaderRecord>, facts: &ServerFacts) -> Option<String> {
    let cluster = s.etcd.records.cluster.as_ref().map(|cluster| cluster.record.system_id);
    if cluster.is_some_and(|ours| ours != facts.system_id) {
        return Some(format!("PostgreSQL here has system identifier {}, which is another cluster's", facts.system_id));
    }
    match &facts.role {
        ServerRole::Standby { .. } => Some("PostgreSQL is in recovery here, and `leader` names it as the primary".to_owned()),
        ServerRole::Primary { tli, .. } if *tli != leader.record.tli => {
            Some(format!("PostgreSQL is on timeline {tli} here, and `leader` names {}", leader.record.tli))
        }
        ServerRole::Primary { .. } => None,
    }
}

/// Arms first; what is sent then gives no more time than that.
fn handshake(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, stored: Option<&Stored<IntentRecord>>, who: &str) {
    let (term, timers) = (leader.record.term, s.policy.timers());
    d.hurry = true;
    let armed = s.guard().and_then(|guard| guard.armed).filter(|armed| armed.term == term && !s.busy(Task::Arm));
    let answer = ANSWER.min(Span::from_nanos(timers.hold.as_nanos() / 3));
    let least = s.now.boot.plus(answer);
    let Some(armed) = armed.filter(|armed| armed.until > least && armed.until <= s.now.boot.plus(timers.hold)) else {
        d.waits("resume", format!("{who}: the deadline is armed first"));
        d.act(s, Action::Arm { term, until: s.now.boot.plus(timers.hold) });
        return;
    };
    d.because("resume", format!("{who}: this node serves in term {term}"));
    d.wake(armed.until.minus(answer).max(s.now.boot.plus(leadership::ASK_AGAIN)));
    let next = leadership::next_position(s, d, &leader.record);
    let record = LeaderRecord { state: LeaderState::Serving, hold: timers.hold, wait: timers.wait, ..next };
    d.act(s, Action::Txn(Purpose::Resume, operator::swap_for(leader, &record, stored)));
}

/// Until when clients may be sent to the holder of a paused record: as long as a look at it counts, for nobody takes its place.
pub(super) fn routes_until(s: &Snapshot) -> Option<Moment> {
    let timers = s.policy.timers();
    let look = s.now.boot.plus(timers.hold);
    // To resume a deadline is armed: until that is taken away or made later, doors close before it.
    let armed = s.guard().and_then(|guard| guard.armed).map(|armed| armed.until.minus(timers.soft_stop));
    let until = armed.map_or(look, |armed| armed.min(look));
    (s.holds_paused() && s.now.boot < until).then_some(until)
}
