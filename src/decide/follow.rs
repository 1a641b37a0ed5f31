//! Being a standby: start, follow the holder, rewind, clone (protocol 1.13, 1.7 step 4a).

use super::{
    copy, cut,
    decision::{Action, Completed, Follow, RewindPlan, Source, StandbyEnds},
    draft::Draft,
    ledger, noted, operator,
    registration::new_life,
    rejoin::{self, Verdict},
    scan,
    snapshot::Snapshot,
    stop, target, unheard, upkeep, vote,
};
use crate::model::{
    instance::{ControlState, DataDir, DiskFacts, Process, RewindMark, Run, ServerRole, StartAs, Whole},
    lsn::Lsn,
    moment::Span,
    node_file::Operation,
    observed::Observed,
    policy::Reclone,
    record::{LeaderRecord, LeaderState, Stored},
};

/// How long a directory may take to reach the end of its own WAL before a rewind.
const RECOVERY_LIMIT: Span = Span::from_secs(600);

/// How long a standby that keeps ending rests at the most.
const LONGEST_PAUSE: Span = Span::from_secs(20);

/// A standby that lived for so long is not one that keeps ending.
const FORGOTTEN: Span = Span::from_secs(60);

/// What is said where a server runs that this guard did not start.
const FOREIGN: &str = "PostgreSQL runs on this node's data directory, and this guard did not start it: waits for its end. If it goes on, stop it, and \
     see to it that nothing else starts it (disable and mask the service of the distribution's package)";

pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    let target = target(s, d);
    if s.file.operation.is_some() {
        noted::operation(s, d, target);
        return;
    }
    match s.process() {
        Some(Process::Running { stopping: None, .. }) => running(s, d, target),
        Some(Process::Dying { run: Run(0) }) => d.waits("foreign-server", FOREIGN),
        Some(Process::Running { .. } | Process::Dying { .. }) => d.waits("stopping", "PostgreSQL is stopping"),
        Some(Process::Empty { .. }) if s.is_starting() => d.waits("starting", "PostgreSQL is being started"),
        Some(Process::Empty { .. }) => stopped(s, d, target),
        None => {}
    }
}

/// The holder to follow: serving (or paused, or handing over), of a term that our promise allows.
fn target<'a>(s: &'a Snapshot, d: &mut Draft) -> Option<&'a LeaderRecord> {
    let Stored { record, .. } = s.leader()?;
    let serves = matches!(record.state, LeaderState::Serving | LeaderState::Handoff { .. } | LeaderState::Paused { .. });
    if !serves || record.holder.node == s.me.node {
        d.waits("primary", format!("there is no primary to follow: `leader` of term {} is {}", record.term, state_name(&record.state)));
        return None;
    }
    if let Some(why) = operator::takes_from_the_dead(s, d, record) {
        d.waits("primary", format!("there is no primary to follow: {why}"));
        return None;
    }
    if record.term < s.file.promised {
        d.refused(
            "promise",
            format!(
                "{} leads in term {}, but this node promised term {}: it follows once a switchover, or a restart of the primary's PostgreSQL, \
                 has raised the term",
                record.holder.node, record.term, s.file.promised
            ),
        );
        return None;
    }
    if record.state == LeaderState::Serving {
        d.memory.handed.clear();
    }
    Some(record)
}

fn state_name(state: &LeaderState) -> String {
    match state {
        LeaderState::Claimed => "claimed".to_owned(),
        LeaderState::Serving => "serving".to_owned(),
        LeaderState::Handoff { to } => format!("handed to {to}"),
        LeaderState::Vacant { reason } => format!("vacant ({reason})"),
        LeaderState::Paused { .. } => "paused".to_owned(),
        LeaderState::Foreign { name } => name.clone(),
    }
}

pub(super) fn follow_of(s: &Snapshot, target: &LeaderRecord) -> Follow {
    Follow { node: target.holder.node.clone(), address: target.holder.postgres.clone(), slot: Some(s.me.node.slot()) }
}

fn running(s: &Snapshot, d: &mut Draft, target: Option<&LeaderRecord>) {
    if let Some(plan) = d.memory.rewind.clone() {
        recovering(s, d, &plan);
        return;
    }
    if target.is_some() && target::is_alone(s) {
        // A former agent prepared a rewind, a claim came to nothing, or there was nobody to follow: it begins anew, by what there is now.
        d.because("recovery-target", "PostgreSQL runs on its own timeline alone: it is stopped, to be judged anew");
        stop::stop_postgres(s, d);
        return;
    }
    if let Some(other) = ledger::conflict(s).filter(|_| target.is_some() || is_replaced_at_a_start(s)) {
        d.because(
            "history-conflict",
            format!("the history file of timeline {other} is not the ledger's: PostgreSQL is stopped to replace it"),
        );
        stop::stop_postgres(s, d);
        return;
    }
    if s.role().is_none()
        && let Observed::Unknown { why, .. } = &s.server
    {
        d.waits("mute", format!("PostgreSQL runs as a standby and does not answer: {why}"));
        unheard::misled(s, d, target);
    }
    let (Some(target), Some(ServerRole::Standby { tli, receive, replay, receiver, conninfo, .. })) = (target, s.role()) else { return };
    // A former run of the agent has configured it, to whatever end.
    let from = receiver.as_ref().and_then(|receiver| receiver.sender.as_ref());
    let untold = (!conninfo.is_empty() || receiver.is_some()) && from != Some(&target.holder.postgres);
    let follow = s.configured.as_ref().and_then(|configured| configured.follow.as_ref());
    let elsewhere = follow.map_or(untold, |follow| follow.node != target.holder.node);
    if elsewhere && *tli != target.tli {
        // What the former upstream may still send must not move while the histories are compared.
        d.waits("cut", "the stream from the former primary is being cut");
        d.memory.untold = None;
        if s.configured.is_none() {
            upkeep::configured(s, d, None);
        } else {
            d.act(s, Action::CutStream);
        }
        return;
    }
    match may_stream(s, d, target, Whole { tli: *tli, lsn: *replay }, *receive) {
        Some(Verdict::Streams) => {
            let missing = if *tli == target.tli { ledger::texts_missing(s) } else { ledger::texts_on_the_way(s, target.tli) };
            if !missing.is_empty() {
                ledger::put(s, d, missing);
                return;
            }
            if cut::opens(s, d, &target.holder.postgres) && upkeep::configured(s, d, Some(follow_of(s, target))) {
                d.because("follows", format!("follows {} in term {}", target.holder.node, target.term));
                if s.role().is_some_and(ServerRole::streams) {
                    unheard::streams(s, d);
                    cut::lift(s, d);
                } else {
                    unheard::cut_off(s, d, target, receive.unwrap_or_default().max(*replay));
                }
                drop_stale_slot(s, d);
            }
        }
        Some(Verdict::Diverged { fork }) => {
            let end = s.whole_now().map_or(*replay, |whole| whole.lsn.max(*replay));
            d.because(
                "diverged",
                format!("this node went on to {end} where {} left at {fork}: PostgreSQL is stopped for a rewind", target.holder.node),
            );
            stop::stop_postgres(s, d);
        }
        Some(Verdict::Unrelated(why)) => {
            d.because("diverged", format!("{why}: PostgreSQL is stopped"));
            stop::stop_postgres(s, d);
        }
        None => {}
    }
}

/// Whether a start without a primary puts another history file in place. Where the data themselves are on what was burnt it does not, and to be
/// stopped for that would be for nothing, again and again.
fn is_replaced_at_a_start(s: &Snapshot) -> bool {
    matches!(s.role(), Some(ServerRole::Standby { tli, .. }) if ledger::burnt_but_real(s, *tli).is_some())
}

/// A running standby may be asked to follow only if nothing on its disk lies beyond the switch point.
///
/// `received`: up to where its walreceiver has written, in this run. Where none has run yet, the position replayed says nothing: a
/// standby that crashed answers as soon as it is consistent, and may have much of its own WAL still before it.
fn may_stream(s: &Snapshot, d: &mut Draft, target: &LeaderRecord, replayed: Whole, received: Option<Lsn>) -> Option<Verdict> {
    let own = scan::disk_history(&s.histories, replayed.tli);
    let history = ledger::history(s, target.tli)?;
    let surely = rejoin::compare(s.layout, &own, &history, replayed, target.tli);
    if surely != Verdict::Streams || replayed.tli == target.tli {
        return Some(surely);
    }
    let fork = s.layout.boundary(history.leaves(replayed.tli)?);
    if received.is_some_and(|received| received <= fork) && s.whole_now().is_none_or(|whole| whole.lsn <= fork) {
        return Some(Verdict::Streams);
    }
    // The received position is no boundary: a scan tells whether a whole record lies beyond the fork.
    let whole = scan::whole(s, d)?;
    Some(rejoin::compare(s.layout, &scan::disk_history(&s.histories, whole.tli), &history, whole, target.tli))
}

fn stopped(s: &Snapshot, d: &mut Draft, target: Option<&LeaderRecord>) {
    if target.is_some() {
        // No walreceiver lives, and the next one starts with what is configured then.
        cut::lift(s, d);
    }
    match s.disk() {
        None => {
            d.waits("inspect", "the data directory is being inspected");
            d.act(s, Action::InspectDisk);
        }
        // What we initialised is gone, so the file must not say any longer that whatever lies here may be thrown away.
        Some(DataDir::Missing | DataDir::Empty) if s.file.initialised => {
            d.act(s, Action::WriteFile(Box::new(new_life(s))));
        }
        Some(DataDir::Missing | DataDir::Empty) => match target {
            Some(target) => {
                copy::begin(s, d, target, "there is no data yet", None);
            }
            None => d.waits("no-data", "there is no data here; it is copied once there is a primary"),
        },
        Some(DataDir::Present(disk)) => with_data(s, d, disk, target),
        Some(DataDir::Unusable { .. }) => {}
    }
}

fn with_data(s: &Snapshot, d: &mut Draft, disk: &DiskFacts, target: Option<&LeaderRecord>) {
    if disk.rewind == Some(RewindMark::Unfinished) {
        // The file that noted it was lost, or went back in time.
        d.waits("operation", "a rewind was begun here and has not ended: it has to be made again before PostgreSQL may start");
        if let Some(target) = target {
            copy::note(s, d, Operation::Rewind { source: target.holder.node.clone() });
        }
        return;
    }
    let ours = s.etcd.records.cluster.as_ref().is_some_and(|cluster| cluster.record.system_id == disk.control.system_id);
    if s.file.initialised && !disk.started && !ours && s.etcd.records.cluster.is_some() {
        if s.completed == Some(Completed::Discard) {
            d.act(s, Action::WriteFile(Box::new(new_life(s))));
        } else {
            d.because("discard", "another node initialised the cluster first: the directory that this node made and never started goes");
            d.act(s, Action::DiscardInitialised);
        }
        return;
    }
    let Some(target) = target else {
        // Nobody is there to be rewound to: it is judged anew once there is.
        d.memory.rewind = None;
        if let Some(texts) = ledger::burnt_but_real(s, disk.control.tli()) {
            ledger::put(s, d, texts);
            return;
        }
        // In recovery and following nobody: ready to be elected, or to be told whom to follow. New histories wait: a directory
        // that went its own way must not be lured by them.
        let lured = if ledger::newest_real(&s.histories) > Some(disk.control.tli()) {
            let Some(whole) = scan::whole(s, d) else { return };
            target::is_lured(s, whole).then(|| target::alone(s, whole.tli))
        } else {
            None
        };
        if let Some(trailing) = ledger::trailing_placeholders(s) {
            ledger::put(s, d, trailing);
        } else if upkeep::configured_for(s, d, lured.unwrap_or_default()) {
            start(s, d);
        }
        return;
    };
    let Some(history) = ledger::history(s, target.tli) else {
        // The answer that shows a new leader may come before the event that shows its timeline. Nothing is given up for that.
        d.waits("records", format!("the ledger does not show the history of timeline {} yet: nothing is compared before", target.tli));
        return;
    };
    let Some(whole) = scan::end_by_label(s, disk).or_else(|| scan::whole(s, d)) else { return };
    if leaves_what_was_burnt(s, d, disk, whole) {
        return;
    }
    match rejoin::stopped(s, disk, whole, &history, target.tli) {
        Verdict::Streams if !rejoin::becomes_consistent(disk, &history, target.tli) => {
            copy::reclone(s, d, target, &rejoin::falls_short(disk, whole), None);
        }
        Verdict::Streams => {
            let missing = unheard::missing_wal(s, target, whole.lsn).filter(|_| s.policy.reclone != Reclone::Never);
            if let Some(why) = missing {
                copy::reclone(s, d, target, &why, None);
                return;
            }
            d.memory.rewind = None;
            if let Some(texts) = ledger::wrong_before_start(s) {
                ledger::put(s, d, texts);
            } else if upkeep::configured(s, d, Some(follow_of(s, target))) {
                start(s, d);
            }
        }
        Verdict::Diverged { fork } => diverged(s, d, disk, target, whole, fork),
        Verdict::Unrelated(why) => {
            copy::reclone(s, d, target, &why, None);
        }
    }
}

/// A promotion that ended behind its history file has left an id that was burnt since, and nothing on it: that file is replaced, and what the id
/// grew out of is searched for its end.
///
/// Where `pg_control` is on it records of it were replayed, or written here: then it went its own way.
fn leaves_what_was_burnt(s: &Snapshot, d: &mut Draft, disk: &DiskFacts, whole: Whole) -> bool {
    if !ledger::is_burnt(s, whole.tli) || disk.control.tli() >= whole.tli {
        return false;
    }
    let is_real = |text: Option<&String>| text.is_some_and(|text| ledger::is_real(text));
    match (is_real(disk.histories.get(&whole.tli)), is_real(s.histories.get(&whole.tli))) {
        (true, true) => {
            let fork = scan::disk_history(&disk.histories, whole.tli).last();
            if fork.is_none_or(|fork| whole.lsn > s.layout.boundary(fork.at)) {
                return false;
            }
            let Some(texts) = ledger::burnt_but_real(s, disk.control.tli()) else { return false };
            d.because(
                "history-conflict",
                format!("nothing lies on timeline {}, which was given up: its history file is replaced", whole.tli),
            );
            ledger::put(s, d, texts);
        }
        (false, false) => scan::start(s, d),
        // It was replaced, or brought, since the last look.
        _ => {
            d.waits("inspect", "the data directory is being inspected: its history files have changed");
            d.act(s, Action::InspectDisk);
        }
    }
    true
}

/// Slots of members that it made as a primary hold WAL back here, and nobody will come for it.
fn drop_stale_slot(s: &Snapshot, d: &mut Draft) {
    let mut slots = s.server().into_iter().flat_map(|facts| &facts.slots);
    if let Some(slot) = slots.find(|slot| slot.name.is_ours() && !slot.active) {
        d.because("slot", format!("the slot {} is dropped: this node is not the primary any more", slot.name));
        d.act(s, Action::DropSlot(slot.name.clone()));
    }
}

fn start(s: &Snapshot, d: &mut Draft) {
    if vote::is_due(s) || rests(s, d) {
        return;
    }
    d.hurry = true;
    d.act(s, Action::Start { start: StartAs::Standby, term: s.leader().map_or(s.file.term, |leader| leader.record.term.max(s.file.term)) });
}

/// A standby that ends again and again (a port in use, a full disk) is started more and more rarely; the first time at once.
fn rests(s: &Snapshot, d: &mut Draft) -> bool {
    let Some(Process::Empty { last: Some(last) }) = s.process() else { return false };
    if last.wanted || last.start != StartAs::Standby {
        return false;
    }
    let before = s.memory.standby_ends.as_ref();
    let ends = match before.filter(|ends| ends.run == last.run) {
        Some(ends) => ends.clone(),
        None => {
            let soon = before.filter(|ends| s.now.boot.since(ends.until) < FORGOTTEN);
            let count = soon.map_or(0, |ends| ends.count).saturating_add(1);
            let pause = Span::from_millis(250).times((1 << count.min(8)) - 2).min(LONGEST_PAUSE);
            StandbyEnds { run: last.run, count, until: s.now.boot.plus(pause) }
        }
    };
    let (count, until) = (ends.count, ends.until);
    d.memory.standby_ends = Some(ends);
    if s.now.boot >= until {
        return false;
    }
    d.wake(until);
    let left = s.left(until);
    d.refused(
        "standby-ends",
        format!("PostgreSQL ended {count} times in a row as a standby ({}): it is started again in {left}", last.how),
    );
    true
}

/// Recover to the end of our own WAL first, then rewind.
fn diverged(s: &Snapshot, d: &mut Draft, disk: &DiskFacts, target: &LeaderRecord, whole: Whole, fork: Lsn) {
    let bytes = whole.lsn.bytes_ahead_of(fork);
    d.because(
        "diverged",
        format!("timeline {} goes on from {fork} to {} here ({bytes}), which {} does not have", whole.tli, whole.lsn, target.holder.node),
    );
    let same = |plan: &&RewindPlan| (plan.fork, plan.whole, plan.tli, plan.target) == (fork, whole.lsn, whole.tli, target.tli);
    let since = s.memory.rewind.as_ref().filter(same).map_or(s.now.boot, |plan| plan.since);
    let plan = |recovered| RewindPlan { fork, whole: whole.lsn, tli: whole.tli, target: target.tli, recovered, since };
    if let Some(why) = rejoin::cannot_rewind(s, disk, whole, target.tli) {
        copy::reclone(s, d, target, &why, Some(plan(None)));
        return;
    }
    let recovered = s.memory.rewind.as_ref().and_then(|plan| plan.recovered);
    let last_run = match s.process() {
        Some(Process::Empty { last }) => last.as_ref().map(|last| last.run),
        _ => None,
    };
    let clean = disk.control.state == ControlState::ShutDown || (recovered.is_some() && recovered == last_run);
    if !clean && s.now.boot >= since.plus(RECOVERY_LIMIT) {
        // It ends by itself, again and again.
        not_recovered(s, d);
        return;
    }
    if !clean {
        d.waits("recovery", "crash recovery to the end of our own WAL, before the rewind");
        d.memory.rewind = Some(plan(None));
        // Not the timeline that `pg_control` names: it may be an older one, and nothing of ours would be read.
        if upkeep::configured_for(s, d, target::alone(s, whole.tli)) {
            start(s, d);
        }
        return;
    }
    // pg_rewind 15 takes the timeline of the last checkpoint for the target's; since 16 it looks at minRecoveryPoint too.
    if disk.major < 16 && disk.control.checkpoint_tli != whole.tli {
        let why =
            format!("it was promoted to timeline {} and has no checkpoint there, which pg_rewind {} cannot rewind", whole.tli, disk.major);
        copy::reclone(s, d, target, &why, Some(plan(recovered)));
        return;
    }
    d.memory.rewind = Some(plan(recovered));
    copy::note(s, d, Operation::Rewind { source: target.holder.node.clone() });
}

/// Crash recovery before a rewind goes on: no stream, no archive, the own timeline.
fn recovering(s: &Snapshot, d: &mut Draft, plan: &RewindPlan) {
    d.hurry = true;
    let replayed = match s.role() {
        Some(ServerRole::Standby { replay, .. }) => Some(*replay),
        _ => None,
    };
    if replayed.is_some_and(|replayed| replayed >= plan.whole) {
        d.memory.rewind = Some(RewindPlan { recovered: s.run(), ..plan.clone() });
        d.because("recovery", format!("replayed to {}, the end of our own WAL: PostgreSQL is stopped for the rewind", plan.whole));
        stop::stop_postgres(s, d);
        return;
    }
    let ends = plan.since.plus(RECOVERY_LIMIT);
    d.wake(ends);
    d.waits("recovery", format!("replays its own WAL up to {} before the rewind", plan.whole));
    if s.now.boot >= ends {
        not_recovered(s, d);
        stop::stop_postgres(s, d);
    }
}

fn not_recovered(s: &Snapshot, d: &mut Draft) {
    d.memory.rewinds_failed = s.leader().map(|leader| leader.record.term);
    d.memory.rewind = None;
    d.alarm("recovery", "the end of our own WAL was not reached: this directory cannot be rewound");
}

pub(super) fn source(target: &LeaderRecord) -> Source {
    Source { node: target.holder.node.clone(), address: target.holder.postgres.clone(), tli: target.tli }
}
