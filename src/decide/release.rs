//! Giving up the lease: after a crash, on a stop, or when a claim comes to nothing (protocol 1.9).
//!
//! PostgreSQL is verified dead before `leader` says so: kill → empty → fsync "demoted at e" → swap.

use super::{
    Flow, candidacy, cut,
    decision::{Action, Crash, Purpose},
    draft::Draft,
    durability, failsafe, flap,
    leadership::{Keeps, next, swap},
    ledger, operator, promotion, scan,
    snapshot::Snapshot,
    step_down, stop, went_back,
};
use crate::model::{
    instance::{DataDir, Process, ServerRole, StartAs, Whole},
    moment::Span,
    node_file::{Boundary, NodeFile},
    policy::CrashPolicy,
    record::{LeaderRecord, LeaderState, Stored},
};

/// A server whose process lives and that answers nobody for so long is taken for dead (scenario 124).
const MUTE_LIMIT: Span = Span::from_secs(20);

/// How long a release may wait for the verified death and the end of WAL.
const RELEASE_LIMIT: Span = Span::from_secs(15);

/// What a serving holder does about its PostgreSQL.
pub(super) fn rule(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    match s.process() {
        Some(Process::Running { .. }) => {
            running(s, d, leader);
            Keeps::Renewing
        }
        Some(Process::Dying { run }) => dying(s, d, *run),
        // A restart within the term was asked for: its process may come at any moment.
        Some(Process::Empty { .. }) if s.is_starting() => {
            d.waits("starting", "PostgreSQL is being started");
            Keeps::Renewing
        }
        Some(Process::Empty { last }) => {
            if let Some(last) = last {
                note_crash(s, d, last.run, &last.how);
            }
            let why = if s.stopping { "this node is being stopped" } else { "PostgreSQL is gone" };
            verified_dead(s, d, leader, why)
        }
        None => Keeps::Renewing,
    }
}

/// Until the guard has seen the last process gone nothing is released. A process that no kill ends (its disk hangs) must not hold
/// the cluster: after one hold the lease runs out by itself, and the fence and the takers' wait do the rest.
pub(super) fn dying(s: &Snapshot, d: &mut Draft, run: crate::model::instance::Run) -> Keeps {
    note_crash(s, d, run, "its processes are being killed");
    let began = d.memory.crash.as_ref().map_or(s.now.boot, |crash| crash.at);
    let ends = began.plus(s.policy.timers().hold);
    if s.now.boot >= ends {
        d.alarm("kill-unverified", "PostgreSQL was killed, and processes of it still live: the lease is neither released nor renewed");
        return Keeps::Not;
    }
    d.wake(ends);
    d.waits("dying", "waits until the guard has seen the last process of PostgreSQL gone");
    Keeps::Renewing
}

fn running(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    if s.stopping {
        stop::stop_postgres(s, d);
        return;
    }
    if operator::hands_to(s).is_some() {
        stop::stop_postgres(s, d);
        return;
    }
    match s.role() {
        Some(ServerRole::Primary { .. }) => {
            d.memory.mute_since = None;
            d.memory.crash = None;
            d.memory.failed_starts = 0;
            d.because("primary", format!("this node is the primary in term {}", leader.record.term));
            cut::lift(s, d);
            durability::rule(s, d);
        }
        Some(ServerRole::Standby { .. }) => {
            d.alarm("role", "`leader` says that this node serves, but PostgreSQL is in recovery: it is killed and the lease released");
            d.act(s, Action::Kill);
        }
        None => mute(s, d),
    }
}

fn mute(s: &Snapshot, d: &mut Draft) {
    let since = *d.memory.mute_since.get_or_insert(s.now.boot);
    // After a restart in place within the term it recovers first.
    let recovers = d.memory.crash.is_some() && matches!(s.process(), Some(Process::Running { start: StartAs::Primary, .. }));
    let limit = if recovers { s.policy.primary_start_timeout } else { MUTE_LIMIT };
    let ends = since.plus(limit);
    d.wake(ends);
    let silent = s.now.boot.since(since).rounded();
    d.waits("mute", format!("PostgreSQL has not answered for {silent}; after {limit} it counts as dead"));
    if s.now.boot >= ends {
        d.alarm("mute", "PostgreSQL has a process and answers nobody: it is killed");
        d.act(s, Action::Kill);
    }
}

fn note_crash(s: &Snapshot, d: &mut Draft, run: crate::model::instance::Run, how: &str) {
    if d.memory.crash.as_ref().is_none_or(|crash| crash.run != run) {
        d.memory.mute_since = None;
        d.memory.crash = Some(Crash { run, at: s.now.boot, how: how.to_owned(), policy: s.policy.crash_policy });
    }
}

/// Not one process lives. What is on the disk is measured and noted; then the lease is given up, or taken again by its owner.
fn verified_dead(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, why: &str) -> Keeps {
    let Some(end) = evidence(s, d) else { return within_limit(s, d) };
    let term = leader.record.term;
    if !is_noted(s, d, leader, end) {
        return Keeps::Renewing;
    }
    // A `sync` that may be in force and is not seen says by which names a new server must not acknowledge.
    let settled = s.sync_written.is_empty();
    // A disk that went back, or whose WAL nobody can read: what a replica or an operator has may be more than what would go on here.
    let intact = end.is_some_and(|whole| went_back::lost(s, whole).is_none());
    if intact && is_kept(s) && settled && promotion::owns_what_lies_here(s) {
        d.because("restart-in-place", "etcd is silent and this node's peers keep its term for it: it restarts in place");
        return promotion::start_in_place(s, d, leader);
    }
    let alone = s.sync().is_none_or(|sync| sync.record.electable.is_empty());
    let restart = intact && (s.policy.crash_policy == CrashPolicy::Restart || alone);
    let hands_to = operator::hands_to(s);
    if restart && !s.stopping && hands_to.is_none() {
        if let Some(until) = flap::rests_until(s, d).filter(|until| s.now.boot < *until) {
            d.waits(
                "restart-rests",
                format!("PostgreSQL is started again in {}: failovers are stopped, and it ended before", s.left(until)),
            );
            d.wake(until);
            return Keeps::Renewing;
        }
        d.because(
            "restart-in-place",
            if alone { "no replica may take over: this node restarts in place" } else { "crash_policy is restart" },
        );
        candidacy::claim(s, d, leader, end, why);
        return Keeps::Not;
    }
    if let Some(to) = hands_to {
        d.because("handoff", format!("{why}, and not one process of it lives: the lease of term {term} goes to {to}, as was asked for"));
        if let Some(record) = given_up(s, leader, end, LeaderState::Handoff { to }) {
            d.act(s, Action::Txn(Purpose::Handoff, swap(leader, &record)));
        }
        return Keeps::Not;
    }
    d.because("release", format!("{why}, and not one process of it lives: the lease of term {term} is released"));
    vacate(s, d, leader, end, why);
    Keeps::Not
}

/// Whether our file knows that PostgreSQL of this term is dead, and where its WAL ends; notes it where it does not.
fn is_noted(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, end: Option<Whole>) -> bool {
    let term = leader.record.term;
    // The file may know more than the disk still has: a boundary never goes back, and what is released is what is there.
    let in_file = |end: Whole| s.file.boundary.is_some_and(|noted| (noted.tli, noted.lsn) >= (end.tli, end.lsn));
    let noted = s.file.demoted == Some(term) && end.is_none_or(in_file);
    if !noted {
        let file = NodeFile { demoted: Some(term), boundary: end.map(boundary).or(s.file.boundary), ..s.file.clone() };
        d.act(s, Action::WriteFile(Box::new(file)));
    }
    noted
}

/// `Some(end)` once our PostgreSQL is verified dead, the end of its WAL known (or known to be unknowable), and both in our file.
#[expect(clippy::option_option, reason = "not known yet, known to be unknowable, known")]
pub(super) fn noted_dead(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Option<Option<Whole>> {
    let end = evidence(s, d)?;
    is_noted(s, d, leader, end).then_some(end)
}

/// A release waits for what it needs to know, but not for ever: a kill that cannot be verified, or a disk that does not answer,
/// must not hold the cluster. Then nothing is renewed, and the deadlines act.
fn within_limit(s: &Snapshot, d: &mut Draft) -> Keeps {
    let Some(ends) = d.memory.crash.as_ref().map(|crash| crash.at.plus(RELEASE_LIMIT)) else { return Keeps::Renewing };
    d.wake(ends);
    if s.now.boot < ends {
        return Keeps::Renewing;
    }
    d.alarm(
        "release-stuck",
        format!("PostgreSQL ended {RELEASE_LIMIT} ago or longer, and its death or the end of its WAL is not verified: the lease runs out"),
    );
    Keeps::Not
}

const fn boundary(whole: Whole) -> Boundary {
    Boundary { tli: whole.tli, lsn: whole.lsn }
}

/// `Some(end)` once everything that a release needs is a fact; `end` is `None` where no scan succeeds.
#[expect(clippy::option_option, reason = "not known yet, known to be unknowable, known")]
fn evidence(s: &Snapshot, d: &mut Draft) -> Option<Option<Whole>> {
    d.hurry = true;
    match s.disk() {
        None => {
            d.waits("inspect", "the data directory is being inspected");
            d.act(s, Action::InspectDisk);
            None
        }
        // The guard that saw it end puts it back. One that never ran it does so at the next start: nobody else would.
        Some(DataDir::Present(disk)) if !disk.standby_signal && matches!(s.process(), Some(Process::Empty { last: Some(_) })) => {
            d.waits("signal", "standby.signal is being put back before the lease is released");
            d.act(s, Action::InspectDisk);
            None
        }
        Some(DataDir::Present(_)) => {
            let failed = s.failures.get(&super::decision::Task::Scan).is_some_and(|failure| failure.count >= 2);
            match s.whole_now() {
                Some(whole) => Some(Some(whole)),
                // A disk that may be read the next time is no reason to give up what nobody gives back.
                None if failed && !is_kept(s) => Some(None),
                None => {
                    scan::start(s, d);
                    None
                }
            }
        }
        // A directory that is gone holds nothing that could be promoted again.
        Some(_) => Some(None),
    }
}

/// Whether this node has its term by its peers' word alone: they keep it for nobody else, and an etcd that is silent takes no release.
fn is_kept(s: &Snapshot) -> bool {
    failsafe::leads(s) && !s.is_leased() && !s.stopping
}

/// Releases: PostgreSQL of this holder is verified dead.
fn vacate(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, end: Option<Whole>, why: &str) {
    if let Some(record) = given_up(s, leader, end, LeaderState::Vacant { reason: why.to_owned() }) {
        d.act(s, Action::Txn(Purpose::Release, swap(leader, &record)));
    }
}

/// The record that gives the lease up: what it says of the dead primary, and in which state it is left.
pub(super) fn given_up(s: &Snapshot, leader: &Stored<LeaderRecord>, end: Option<Whole>, state: LeaderState) -> Option<LeaderRecord> {
    let sync = s.sync()?;
    let mine = sync.record.primary == s.myself();
    let mut record = LeaderRecord { state, ..next(s, &leader.record) };
    // An end that falls short of what this disk once had spares nobody a promise: others may have more.
    let end = end.filter(|whole| went_back::lost(s, *whole).is_none());
    if mine {
        record.dead = Some(sync.record.term);
        // A claimant that dies in its promotion leaves an id that nobody but itself need be on: that binds no taker. What it carried along,
        // the end of its predecessor, still does; but voters may have confirmed commits of the new id, so that it spares nobody their promises.
        let given_out = end.is_some_and(|whole| whole.tli != record.tli && ledger::history(s, whole.tli).is_none());
        if !given_out {
            record.wal_end = end.map(|whole| whole.lsn);
            if let Some(whole) = end.filter(|whole| whole.lsn > record.lsn || whole.tli > record.tli) {
                (record.tli, record.lsn) = (whole.tli, whole.lsn);
            }
        } else if sync.record.is_lossless() {
            record.wal_end = None;
        }
    }
    Some(record)
}

/// The start or promotion of this term ended: released without an end of WAL, so that a bad configuration or a dying host
/// does not hold the cluster.
pub(super) fn failed_start(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    let how = match s.process() {
        Some(Process::Empty { last: Some(last) }) => last.how.clone(),
        _ => "unknown".to_owned(),
    };
    if let Some(Process::Empty { last: Some(last) }) = s.process() {
        note_crash(s, d, last.run, &last.how);
    }
    let Some(end) = evidence(s, d) else { return within_limit(s, d) };
    let term = leader.record.term;
    if s.file.demoted != Some(term) {
        let file = NodeFile { demoted: Some(term), boundary: end.map(boundary).or(s.file.boundary), ..s.file.clone() };
        d.act(s, Action::WriteFile(Box::new(file)));
        return Keeps::Renewing;
    }
    let story = s.memory.claim.as_ref().filter(|story| story.term == term);
    if story.is_some_and(|story| story.ran_out) {
        d.because("release", format!("the lease ran out before PostgreSQL was announced as primary in term {term}: the claim is released"));
        vacate(s, d, leader, None, "the lease ran out before PostgreSQL was announced");
        return Keeps::Not;
    }
    d.alarm("start-failed", format!("PostgreSQL did not come up as primary in term {term} ({how}): the claim is released"));
    // One failure counts once, however often the release has to be sent.
    d.memory.claim = None;
    if story.is_some() {
        d.memory.failed_starts = s.memory.failed_starts.saturating_add(1);
        let pause = Span::from_millis(500).times(1 << d.memory.failed_starts.min(7)).min(Span::from_secs(60));
        d.memory.no_claim_before = Some(s.now.boot.plus(jittered(s, pause)));
    }
    vacate(s, d, leader, None, "PostgreSQL did not start as primary");
    Keeps::Not
}

/// From half of a pause to all of it, by this snapshot's random text: claimants that failed together do not meet again (protocol 1.7
/// step 4).
fn jittered(s: &Snapshot, pause: Span) -> Span {
    let drawn = s.fresh.nonce.as_str().bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte))) % 256;
    let half = pause.as_nanos() / 2;
    Span::from_nanos(half + half / 256 * drawn)
}

/// A claim that comes to nothing before anything was promoted.
pub(super) fn abandon(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, why: &str) -> Keeps {
    if step_down::may_be_primary(s) {
        d.alarm(
            "abandon",
            format!("the claim of term {} cannot go on ({why}), and PostgreSQL may be a primary: it is killed first", leader.record.term),
        );
        d.act(s, Action::Kill);
        return Keeps::Renewing;
    }
    d.because("abandon", format!("the claim of term {} is given up: {why}", leader.record.term));
    // One failure counts once, however often the release has to be sent.
    let counted = d.memory.claim.as_mut().map(|story| std::mem::replace(&mut story.given_up, true));
    if counted == Some(false) {
        d.memory.failed_claims = s.memory.failed_claims.saturating_add(1);
        let pause = Span::from_millis(250).times(1 << d.memory.failed_claims.min(7)).min(Span::from_secs(30));
        d.memory.no_claim_before = Some(s.now.boot.plus(jittered(s, pause)));
    }
    let reason = format!("claim given up: {why}");
    // `dead` and the end of WAL are carried along: they speak of the former primary, not of this claim.
    let record = LeaderRecord { state: LeaderState::Vacant { reason }, ..next(s, &leader.record) };
    d.act(s, Action::Txn(Purpose::Release, swap(leader, &record)));
    Keeps::Not
}

/// Whether the guard that the record names died before this agent's eyes, and its successor has seen the tree empty: nobody but this node's agent
/// knows.
pub(super) fn died_here(s: &Snapshot, record: &LeaderRecord) -> bool {
    let guard = &record.holder.guard;
    // A session that ended is no proof: the guard may be in session again.
    let died = s.former_guard.as_ref() == Some(guard) && s.guard().is_some_and(|now| now.incarnation != *guard);
    record.holder.replica() == s.myself() && died && s.is_empty()
}

/// Then this agent may release.
pub(super) fn after_the_guard_died(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Flow {
    let record = &leader.record;
    let held = matches!(record.state, LeaderState::Claimed | LeaderState::Serving);
    if !held || !died_here(s, record) {
        return Flow::Goes;
    }
    d.because("guard-died", format!("the guard died and PostgreSQL with it: the lease of term {} is released", record.term));
    if let Some(end) = evidence(s, d).filter(|end| is_noted(s, d, leader, *end)) {
        vacate(s, d, leader, end, "the guard died");
    }
    Flow::Settled
}
