//! From a claim to serving (protocol 1.7 steps 3 to 6, 1.9 restart in place).

use super::{
    candidacy,
    decision::{Action, ClaimStory, Purpose, Task},
    draft::Draft,
    durability,
    election::{self, has_all, promised},
    flap,
    leadership::{Keeps, next},
    ledger, release, scan,
    snapshot::Snapshot,
    target,
};
use crate::model::{
    instance::{DataDir, DiskFacts, Process, ServerRole, StartAs, Whole},
    key::{Compare, Key, Txn, Write},
    moment::{Moment, Span},
    node::Replica,
    node_file::{NodeFile, Promoted},
    policy::PROMOTION_MARGIN,
    record::{LeaderRecord, LeaderState, Stored, SyncMode, SyncRecord, TimelineRecord, TimelineState, Unknown, VERSION, to_text},
    timeline::TimelineId,
};

/// A claim has to come to a promotion, or to a start, within so many times its hold: what a claimant cannot do another one may.
const CLAIM_LIMIT: u64 = 10;

/// How long a promotion may take of which it is not known whether it was begun.
const DOUBTFUL_LIMIT: Span = Span::from_secs(10);

pub(super) fn rule(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    note_claim(s, d, &leader.record);
    if let Some(Process::Dying { run }) = s.process() {
        return release::dying(s, d, *run);
    }
    if s.is_starting() {
        if let Some(why) = stuck(s, d, &leader.record) {
            return release::abandon(s, d, leader, &why);
        }
        d.waits("starting", "PostgreSQL is being started");
        return Keeps::Renewing;
    }
    if matches!(s.process(), Some(Process::Running { .. })) {
        // What an earlier run came to is over: a new guard counts its runs anew.
        d.memory.crash = None;
    }
    if ended_in_this_term(s, &leader.record) {
        return release::failed_start(s, d, leader);
    }
    if s.stopping && s.guard().is_some_and(|guard| guard.primary_of != Some(leader.record.term)) {
        return release::abandon(s, d, leader, "this node is being stopped");
    }
    if let Some(why) = stuck(s, d, &leader.record) {
        return release::abandon(s, d, leader, &why);
    }
    let prepared = s.sync().is_some_and(|sync| sync.record.term == leader.record.term && sync.record.primary == s.myself());
    match path(s, leader) {
        Path::Restart if prepared => start_in_place(s, d, leader),
        Path::Restart => prepare(s, d, leader, None),
        Path::Promotion if prepared => promote(s, d, leader),
        Path::Promotion => election::rule(s, d, leader),
        Path::Serving(tli) => serve(s, d, leader, tli),
        Path::Alone => target::start_alone(s, d, leader),
        Path::Unknown => {
            d.waits("inspect", "the data directory is being inspected");
            d.act(s, Action::InspectDisk);
            Keeps::Renewing
        }
        Path::None(why) => release::abandon(s, d, leader, &why),
    }
}

/// Why a claim that has asked for nothing yet has had its time: a disk that fails, a server that hangs.
fn stuck(s: &Snapshot, d: &mut Draft, leader: &LeaderRecord) -> Option<String> {
    let story = d.memory.claim.as_ref().filter(|story| story.asked.is_none())?;
    let claimed = story.claimed?;
    let ends = claimed.plus(leader.hold.times(CLAIM_LIMIT));
    // PostgreSQL that is started once more replays from its last restart point.
    let ends = story.alone.map_or(ends, |(since, _)| ends.max(since.plus(s.policy.primary_start_timeout)));
    if matches!(s.role(), Some(ServerRole::Primary { .. })) {
        return None;
    }
    d.wake(ends);
    let failed =
        || s.failures.iter().max_by_key(|(_, failure)| failure.at).map(|(task, failure)| format!(": could not {task}: {}", failure.why));
    (s.now.boot >= ends).then(|| format!("it has not come to a promotion in {}{}", ends.since(claimed), failed().unwrap_or_default()))
}

/// How this claimant becomes primary.
enum Path {
    /// Starts on the timeline that it owns.
    Restart,
    /// Is promoted to a new timeline.
    Promotion,
    /// Is out of recovery.
    Serving(TimelineId),
    /// Is started once more as a standby, to be promoted then.
    Alone,
    /// Not known yet.
    Unknown,
    /// Not at all.
    None(String),
}

fn path(s: &Snapshot, leader: &Stored<LeaderRecord>) -> Path {
    // It would come up on the timeline that it has, and was given another one.
    let in_place = || ledger::reserved_by_us(s, leader).is_none() && owns_what_lies_here(s);
    match s.process() {
        Some(Process::Running { start, .. }) => match s.role() {
            Some(ServerRole::Primary { tli, .. }) => Path::Serving(*tli),
            _ if *start == StartAs::Primary => Path::Restart,
            _ => Path::Promotion,
        },
        Some(Process::Empty { .. }) => match (s.disk(), &s.file.operation) {
            // This claim was on its way when that began.
            (_, Some(operation)) => Path::None(format!("{operation} has not ended")),
            (Some(DataDir::Present(_)), _) if in_place() => Path::Restart,
            (Some(DataDir::Present(_)), _) if target::is_to_start_alone(s) => Path::Alone,
            (Some(DataDir::Present(_)), _) => Path::None("PostgreSQL does not run here, and this node may not start as primary".to_owned()),
            (Some(_), _) => Path::None("the data directory is gone".to_owned()),
            (None, _) => Path::Unknown,
        },
        Some(Process::Dying { .. }) | None => Path::Unknown,
    }
}

/// Only on the newest used id of the ledger, being its owner and on it; or on a reserved id of ours that is newer, which is
/// completed first (protocol 1.2, *owner*; 1.7 step 4b).
///
/// `pg_control` has to say so too: a promotion that was killed after its history file leaves it on the parent, and a start as
/// primary would go on with the parent's id beside its owner (EXP-7). As a standby it finds its way, and is promoted to a new id.
pub(super) fn may_start_in_place(s: &Snapshot, disk: &DiskFacts) -> bool {
    let (me, tli) = (s.myself(), scan::disk_timeline(s, disk));
    if disk.control.tli() != tli {
        return false;
    }
    if own_unfinished(s).is_some_and(|(reserved, _)| reserved == tli) {
        return true;
    }
    ledger::newest_used(s).is_some_and(|(newest, owner)| newest == tli && owner == me)
}

/// The same of the directory that was last looked at.
pub(super) fn owns_what_lies_here(s: &Snapshot) -> bool {
    matches!(s.disk(), Some(DataDir::Present(disk)) if may_start_in_place(s, disk))
}

/// The reserved id that we promoted to before we died: our own file and our own history file say so.
fn own_unfinished(s: &Snapshot) -> Option<(TimelineId, &TimelineRecord)> {
    noted_unfinished(s).filter(|(tli, _)| s.histories.get(tli).is_some_and(|text| is_child(s, text, *tli)))
}

/// The reserved id that our file says we were about to promote to.
fn noted_unfinished(s: &Snapshot) -> Option<(TimelineId, &TimelineRecord)> {
    let promoted = s.file.promoted?;
    let entry = ledger::entry(s, promoted.tli)?;
    let ours = entry.state == TimelineState::Reserved && entry.owner == s.myself() && entry.term == promoted.term;
    (ours && ledger::newest(s) == Some(promoted.tli)).then_some((promoted.tli, entry))
}

/// Whether a promotion or a start as primary was accepted in this term, and nothing of it is left.
fn ended_in_this_term(s: &Snapshot, leader: &LeaderRecord) -> bool {
    s.is_empty() && s.guard().is_some_and(|guard| guard.primary_of == Some(leader.term))
}

fn note_claim(s: &Snapshot, d: &mut Draft, leader: &LeaderRecord) {
    let known = d.memory.claim.take().filter(|story| story.term == leader.term);
    let begun = || ClaimStory {
        lossless: s.is_lossless(),
        former_lsn: Some(leader.lsn),
        wal_end: candidacy::verified_end(s, leader),
        order: s.file.claimed_by.clone().filter(|_| s.file.claimed == Some(leader.term)),
        ..ClaimStory::begun(leader.term, "claimed by a former run of this agent".to_owned(), s.now.boot)
    };
    d.memory.claim.insert(known.unwrap_or_else(begun)).claimed.get_or_insert(s.now.boot);
}

/// `sync` for the new primary, and for a promotion a new timeline id, in one transaction.
pub(super) fn prepare(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, whole: Option<Whole>) -> Keeps {
    if let Some(story) = d.memory.claim.as_mut() {
        story.voted.get_or_insert(s.now.boot);
    }
    d.hurry = true;
    let noted = noted_unfinished(s).is_some_and(|(_, entry)| entry.term < leader.record.term) && own_unfinished(s).is_none();
    let followed = whole.is_some_and(|whole| whole.tli != TimelineId::FIRST && !s.histories.contains_key(&whole.tli));
    if (noted || followed) && s.disk().is_none() {
        // An agent that has not looked does not know what its own data are on: nothing is burnt before.
        d.waits("inspect", "the data directory is being inspected: its WAL may be on a timeline that the ledger has only reserved");
        d.act(s, Action::InspectDisk);
        return Keeps::Renewing;
    }
    // It could not be promoted to what follows; and who `sync` names is the one that all others wait for.
    if let Some(tli) = ledger::conflict(s).filter(|_| whole.is_some()) {
        return release::abandon(s, d, leader, &format!("the history file of timeline {tli} here is not the ledger's"));
    }
    let Some(txn) = prepare_txn(s, leader, whole) else {
        d.waits("records", "the records of this cluster are incomplete");
        return Keeps::Renewing;
    };
    d.because("prepare", "the sync record and the timeline ledger are written for this term");
    d.act(s, Action::Txn(Purpose::Prepare, txn));
    Keeps::Renewing
}

fn prepare_txn(s: &Snapshot, leader: &Stored<LeaderRecord>, whole: Option<Whole>) -> Option<Txn> {
    let (sync, term_record) = (s.sync()?, s.etcd.records.term.as_ref()?);
    let term = leader.record.term;
    let me = s.myself();
    // After a handoff between servers the former primary would join; in `async` it joins when it streams.
    let electable = sync.record.electable.iter().filter(|replica| **replica != me).cloned().collect();
    let nonce = s.nonce("sync");
    let (k, voters) = next_voters(s, leader, &sync.record, whole);
    let next_sync = SyncRecord {
        term,
        nonce: nonce.clone(),
        primary: me.clone(),
        address: s.me.postgres.clone(),
        k,
        electable: if voters.is_empty() && sync.record.is_lossless() { Vec::new() } else { electable },
        voters,
        ..sync.record.clone()
    };
    let mut when = vec![
        Compare::Is(Key::Leader, leader.text.clone()),
        Compare::Is(Key::Term, term_record.text.clone()),
        Compare::Is(Key::Sync, sync.text.clone()),
    ];
    let mut then = vec![Write::Put(Key::Sync, to_text(&next_sync))];
    settle_reserved(s, leader, whole, &mut when, &mut then);
    if let Some(whole) = whole {
        let tli = ledger::newest(s)?.next();
        let record = TimelineRecord {
            v: VERSION,
            owner: me,
            term,
            parent: Some(whole.tli),
            switch: None,
            state: TimelineState::Reserved,
            history: String::new(),
            unknown: Unknown::new(),
        };
        when.push(Compare::Missing(Key::Timeline(tli)));
        then.push(Write::Put(Key::Timeline(tli), to_text(&record)));
    }
    Some(Txn { nonce, when, then })
}

/// Who votes under the new primary: those who did, it itself replaced by the former one. Never simply without that one: a voter that lacks what
/// it held could then elect. As many have to confirm as before, or as have answered; with nobody the owner goes on alone.
fn next_voters(s: &Snapshot, leader: &Stored<LeaderRecord>, sync: &SyncRecord, whole: Option<Whole>) -> (u32, Vec<Replica>) {
    let me = s.myself();
    // An owner that comes back asks for what it asked for before.
    let changes = !sync.voters.is_empty() && sync.primary != me;
    let Some(whole) = whole.filter(|_| changes) else { return (sync.k, sync.voters.clone()) };
    let others: Vec<Replica> = sync.voters.iter().filter(|voter| **voter != me).cloned().collect();
    let answered = match has_all(s, leader, whole) {
        true => others.len(),
        false => promised(s, leader.record.term, &others).count(),
    };
    let answered = u32::try_from(answered).unwrap_or(u32::MAX);
    if sync.mode != SyncMode::StrictQuorum && answered == 0 {
        return (sync.k, Vec::new());
    }
    let k = if sync.mode == SyncMode::StrictQuorum { sync.k } else { sync.k.min(answered) };
    let mut voters = others;
    if !voters.contains(&sync.primary) {
        voters.push(sync.primary.clone());
    }
    voters.sort();
    (k, voters)
}

/// Every id that is still reserved is settled: completed where a promiser's or our own data is on it, else burnt.
fn settle_reserved(s: &Snapshot, leader: &Stored<LeaderRecord>, whole: Option<Whole>, when: &mut Vec<Compare>, then: &mut Vec<Write>) {
    for (tli, stored) in s.etcd.records.timelines.iter() {
        if stored.record.state != TimelineState::Reserved {
            continue;
        }
        let settled = match carried_history(s, leader, whole, *tli) {
            Some(text) => {
                let switch = text.parse::<crate::model::timeline::TimelineHistory>().ok().and_then(|history| history.last());
                TimelineRecord { state: TimelineState::Used, switch: switch.map(|fork| fork.at), history: text, ..stored.record.clone() }
            }
            None => TimelineRecord {
                state: TimelineState::Burnt,
                history: ledger::burnt_text(*tli, leader.record.term),
                ..stored.record.clone()
            },
        };
        when.push(Compare::Is(Key::Timeline(*tli), stored.text.clone()));
        then.push(Write::Put(Key::Timeline(*tli), to_text(&settled)));
    }
}

/// The history file of `tli`, where a promiser of this term, or we, carry data of it.
fn carried_history(s: &Snapshot, leader: &Stored<LeaderRecord>, whole: Option<Whole>, tli: TimelineId) -> Option<String> {
    if whole.is_some_and(|whole| whole.tli == tli) || own_unfinished(s).is_some_and(|(reserved, _)| reserved == tli) {
        return s.histories.get(&tli).cloned();
    }
    let promises = s.etcd.records.promises.get(&leader.record.term)?;
    let mut carried = promises.values().map(|stored| &stored.record).filter(|promise| promise.tli == tli);
    carried.find(|promise| is_child(s, &promise.history, tli)).map(|promise| promise.history.clone())
}

/// Everything that must be a fact before PostgreSQL is promoted (protocol I4), one after the other.
fn promote(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    d.hurry = true;
    let term = leader.record.term;
    let asked = s.busy(Task::Promote) || s.guard().is_some_and(|guard| guard.primary_of == Some(term));
    if let Some(tli) = ledger::conflict(s) {
        return release::abandon(s, d, leader, &format!("the history file of timeline {tli} here is not the ledger's"));
    }
    let Some(tli) = ledger::reserved_by_us(s, leader) else {
        return release::abandon(s, d, leader, "the timeline that was reserved for this claim is not in the ledger");
    };
    if !asked && let Err(keeps) = target::leads_from_our_end(s, d, leader, tli) {
        return keeps;
    }
    let missing = ledger::texts_missing(s);
    if !missing.is_empty() {
        d.waits("histories", format!("{} history files are put in place before the promotion", missing.len()));
        ledger::put(s, d, missing);
        return Keeps::Renewing;
    }
    let promoted = Promoted { tli, term };
    let barrier = durability::barrier_of(s, term);
    if s.file.promoted != Some(promoted) || s.file.barrier != barrier {
        d.act(s, Action::WriteFile(Box::new(NodeFile { promoted: Some(promoted), barrier, ..s.file.clone() })));
        return Keeps::Renewing;
    }
    // What commits will wait for stands in the configuration before there are any.
    let recovery = s.configured.as_ref().map(|configured| configured.recovery).unwrap_or_default();
    if !super::upkeep::configured_for(s, d, recovery) {
        d.waits("sync-names", "synchronous_standby_names is written before the promotion");
        return Keeps::Renewing;
    }
    if !has_margin(s, d, leader) {
        return Keeps::Renewing;
    }
    if s.guard().is_some_and(|guard| guard.primary_of == Some(term)) {
        return still_promoting(s, d, leader);
    }
    d.because("promotion", format!("all conditions hold: PostgreSQL is promoted to timeline {tli} in term {term}"));
    if let Some(story) = d.memory.claim.as_mut() {
        story.asked.get_or_insert(s.now.boot);
    }
    d.act(s, Action::Promote { term });
    Keeps::Renewing
}

/// A deadline for this term, far enough away.
pub(super) fn has_margin(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> bool {
    let armed = s.guard().and_then(|guard| guard.armed).filter(|armed| armed.term == leader.record.term);
    let least = s.now.boot.plus(PROMOTION_MARGIN);
    let fits = armed.is_some_and(|armed| armed.until > least) && s.authority().is_some_and(|until| until > least);
    if !fits {
        d.waits("margin", format!("the armed deadline must be at least {PROMOTION_MARGIN} away before PostgreSQL may leave recovery"));
    }
    fits
}

fn still_promoting(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    let asked = asked(s, d);
    let limit = s.policy.primary_start_timeout;
    // The guard could not say that it was begun: it may have been, but nobody waits for that as long as for one that was.
    let doubtful = s.failures.get(&Task::Promote).is_some_and(|failure| failure.at >= asked);
    let limit = if doubtful { limit.min(DOUBTFUL_LIMIT) } else { limit };
    patience(s, d, leader, asked.plus(limit), "the promotion")
}

/// Since when the server is waited for. An agent that finds it under way counts from then.
fn asked(s: &Snapshot, d: &mut Draft) -> Moment {
    d.memory.claim.as_mut().map_or(s.now.boot, |story| *story.asked.get_or_insert(s.now.boot))
}

/// Waits for the server up to `ends`, then kills it: the claim is given up once it is verified dead.
fn patience(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, ends: Moment, what: &str) -> Keeps {
    d.wake(ends);
    if s.now.boot >= ends {
        d.alarm(
            "start-timeout",
            format!("{what} in term {} took too long (primary_start_timeout): PostgreSQL is killed", leader.record.term),
        );
        d.act(s, Action::Kill);
        return Keeps::Renewing;
    }
    d.waits("server", format!("waits up to {} more for {what}", s.left(ends)));
    Keeps::Renewing
}

/// The owner starts as primary on its own timeline: same id, nothing lost.
pub(super) fn start_in_place(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    d.hurry = true;
    if matches!(s.process(), Some(Process::Running { .. })) {
        let asked = asked(s, d);
        return patience(s, d, leader, asked.plus(s.policy.primary_start_timeout), "the start as primary");
    }
    if let Some(texts) = ledger::wrong_before_start(s) {
        ledger::put(s, d, texts);
        return Keeps::Renewing;
    }
    let barrier = durability::barrier_of(s, leader.record.term);
    if s.file.initialised || s.file.barrier != barrier {
        // From now on it is no directory that may be thrown away.
        d.act(s, Action::WriteFile(Box::new(NodeFile { initialised: false, barrier, ..s.file.clone() })));
        return Keeps::Renewing;
    }
    if !super::upkeep::configured(s, d, None) || !has_margin(s, d, leader) {
        return Keeps::Renewing;
    }
    d.because("restart-in-place", "this node holds everything that was acknowledged: PostgreSQL starts as primary on its own timeline");
    if let Some(story) = d.memory.claim.as_mut() {
        story.asked = Some(s.now.boot);
    }
    d.act(s, Action::Start { start: StartAs::Primary, term: leader.record.term });
    Keeps::Renewing
}

/// Out of recovery: the timeline must be the one that was given to us, with the ledger's parent; then `leader` says so.
fn serve(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, tli: TimelineId) -> Keeps {
    d.hurry = true;
    d.memory.mute_since = None;
    let seen = s.now.boot;
    let promoted_at = d.memory.claim.as_mut().map_or(seen, |story| *story.promoted.get_or_insert(seen));
    let reserved = ledger::reserved_by_us(s, leader);
    let in_place = ledger::newest_used(s).is_some_and(|(newest, owner)| newest == tli && owner == s.myself());
    if reserved != Some(tli) && !(reserved.is_none() && in_place) {
        d.alarm(
            "wrong-timeline",
            format!("PostgreSQL came up on timeline {tli}, which the ledger did not give to this claim: it is killed"),
        );
        d.act(s, Action::Kill);
        return Keeps::Renewing;
    }
    let mut history = None;
    if reserved == Some(tli) {
        let looked = s.disk.seen_at().is_some_and(|at| at >= promoted_at);
        let Some(text) = s.histories.get(&tli).filter(|_| looked) else {
            d.waits("history", format!("the history file of timeline {tli} is read"));
            d.act(s, Action::InspectDisk);
            return Keeps::Renewing;
        };
        if !is_child(s, text, tli) {
            d.alarm(
                "wrong-parent",
                format!("timeline {tli} does not descend from the timeline that the ledger names: PostgreSQL is killed"),
            );
            d.act(s, Action::Kill);
            return Keeps::Renewing;
        }
        history = Some(text.clone());
    }
    if let Some(txn) = serve_txn(s, leader, tli, history) {
        d.because("serving", format!("PostgreSQL accepts writes on timeline {tli} in term {}", leader.record.term));
        d.act(s, Action::Txn(Purpose::Serve, txn));
    }
    Keeps::Renewing
}

fn is_child(s: &Snapshot, text: &str, tli: TimelineId) -> bool {
    let Ok(history) = text.parse::<crate::model::timeline::TimelineHistory>() else { return false };
    let parent = ledger::entry(s, tli).and_then(|entry| entry.parent);
    let (Some(last), Some(parent)) = (history.last(), parent) else { return false };
    let before = ledger::history(s, parent).unwrap_or_default();
    let chain = history.forks().split_last().map(|(_, chain)| chain).unwrap_or_default();
    last.parent == parent && chain == before.forks()
}

fn serve_txn(s: &Snapshot, leader: &Stored<LeaderRecord>, tli: TimelineId, history: Option<String>) -> Option<Txn> {
    let term_record = s.etcd.records.term.as_ref()?;
    if matches!(s.role()?, ServerRole::Standby { .. }) {
        return None;
    }
    let switch = match &history {
        Some(text) => Some(text.parse::<crate::model::timeline::TimelineHistory>().ok()?.last()?.at),
        None => ledger::entry(s, tli).and_then(|entry| entry.switch),
    };
    // A position of another timeline says nothing of this one: it may lie beyond all that this one ever had.
    let known = s.boundary.filter(|boundary| boundary.tli == tli).map(|boundary| boundary.lsn);
    let before = (leader.record.tli == tli).then_some(leader.record.lsn);
    let lsn = known.max(before).or(switch).unwrap_or_default();
    let mut record = LeaderRecord { state: LeaderState::Serving, tli, lsn, dead: None, wal_end: None, ..next(s, &leader.record) };
    if history.is_some() {
        record.failovers = flap::counted(s, &leader.record);
    }
    let mut when = vec![Compare::Is(Key::Leader, leader.text.clone()), Compare::Is(Key::Term, term_record.text.clone())];
    let mut then = vec![Write::Put(Key::Leader, to_text(&record))];
    if let Some(text) = history {
        let stored = s.etcd.records.timelines.get(&tli)?;
        let used = TimelineRecord { state: TimelineState::Used, switch, history: text, ..stored.record.clone() };
        when.push(Compare::Is(Key::Timeline(tli), stored.text.clone()));
        then.push(Write::Put(Key::Timeline(tli), to_text(&used)));
    }
    Some(Txn { nonce: record.nonce.clone(), when, then })
}
