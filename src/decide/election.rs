//! Being elected: the promises of those who hold the data, and what one of them holds beyond us (protocol 1.7 step 3).

use super::{
    cut,
    decision::{Action, Fetching, Follow, Purpose},
    draft::Draft,
    leadership::{Keeps, next, swap},
    ledger,
    promotion::prepare,
    release,
    snapshot::Snapshot,
    stop, target, upkeep, vote,
};
use crate::model::{
    instance::{ServerRole, Whole},
    moment::{Moment, Span},
    node::Replica,
    node_file::Order,
    record::{LeaderRecord, LeaderState, PromiseRecord, Stored, SyncRecord, TimelineState},
    term::Term,
    timeline::{TimelineHistory, TimelineId},
};

/// How long a claimant waits for the promises of the electable.
const VOTE_WINDOW: Span = Span::from_millis(300);

/// How long a claimant waits for enough promises of voters.
const QUORUM_WINDOW: Span = Span::from_secs(1);

/// How long a claimant takes to fetch what a voter holds beyond it.
const FETCH_LIMIT: Span = Span::from_secs(10);

/// Where nothing has come in by then, and recovery here may aim at another timeline, nothing will.
const FETCH_BEGINS: Span = Span::from_secs(2);

/// Collects promises: everybody electable, or whoever answers in time. Somebody ahead of us gets the claim.
pub(super) fn rule(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Keeps {
    d.hurry = true;
    let fetching = d.memory.fetching.take().filter(|fetching| fetching.term == leader.record.term && !is_fetched(s, fetching));
    if let Some(fetching) = fetching {
        return fetch(s, d, leader, fetching);
    }
    // Our own promise comes first: fsync, cut, seen gone, whole.
    let Some(whole) = vote::promised(s, d, leader) else { return Keeps::Renewing };
    let term = leader.record.term;
    let Some(sync) = s.sync() else { return Keeps::Renewing };
    let promises = s.etcd.records.promises.get(&term);
    let electors = if sync.record.is_lossless() { &sync.record.voters } else { &sync.record.electable };
    let others: Vec<&Replica> = electors.iter().filter(|replica| **replica != s.myself()).collect();
    let promise_of =
        |replica: &Replica| promises?.get(&replica.node).map(|stored| &stored.record).filter(|promise| promise.data == replica.data);
    // The owner has everything: it was the only one to acknowledge. So has whoever has what the former primary, verified dead, had.
    let complete = sync.record.is_lossless() && (s.is_owner() || has_all(s, leader, whole));
    let order = ordered(s, term);
    let is_astray = |promise: &PromiseRecord| ledger::is_burnt(s, promise.tli);
    // What one of them has that went astray another one may have, too, and can give.
    let (astray, on_the_way): (Vec<&Replica>, Vec<&Replica>) = others.iter().partition(|of| promise_of(of).is_some_and(is_astray));
    for replica in on_the_way.iter().chain(&astray).filter(|_| !complete) {
        let Some(promise) = promise_of(replica).filter(|promise| is_ahead(s, promise, whole)) else { continue };
        // What it could not do with a claim once it cannot do at the next either: somebody has to lead.
        let astray = is_astray(promise);
        let why = match &promise.unfit {
            _ if astray => format!("its log goes on with timeline {}, which was given up", promise.tli),
            Some(why) => why.clone(),
            None if s.memory.handed.contains(&replica.node) => "a claim that went to it came to nothing".to_owned(),
            None if !sync.record.electable.contains(replica) => "`sync` does not name it as electable".to_owned(),
            // This node was chosen by an operator.
            None if order.is_some() => "another node was asked for".to_owned(),
            None => return hand_over(s, d, leader, replica),
        };
        let what = format!("{} holds more, up to {}, and cannot take over: {why}", replica.node, promise.whole);
        if sync.record.is_lossless() && !astray {
            return begin_to_fetch(s, d, leader, replica, promise, whole, &what);
        }
        // What lies before a timeline that was given up could not be fetched alone: the last primary comes back with it, or an operator decides.
        let counts = sync.record.is_lossless() || order.is_some();
        if counts && !order.is_some_and(|order| order.accept_loss) {
            return release::abandon(s, d, leader, &format!("{what}; with --accept-loss this node leads without that"));
        }
        d.because("behind", what);
    }
    if !sync.record.voters.is_empty() && !complete {
        return elected(s, d, leader, &sync.record, whole);
    }
    let silent: Vec<&&Replica> = others.iter().filter(|replica| promise_of(replica).is_none()).collect();
    let ends = claimed_at(s, d).plus(VOTE_WINDOW);
    if !complete && !silent.is_empty() && s.now.boot < ends {
        let names: Vec<String> = silent.iter().map(|replica| replica.node.to_string()).collect();
        d.waits("promises", format!("waits {} more for the promise of {}", s.left(ends), names.join(", ")));
        d.wake(ends);
        return Keeps::Renewing;
    }
    prepare(s, d, leader, Some(whole))
}

/// Whether the former primary is dead, and we have all that it had: then nobody's promise is needed (protocol I4).
pub(super) fn has_all(s: &Snapshot, leader: &Stored<LeaderRecord>, whole: Whole) -> bool {
    let end = leader.record.wal_end.filter(|_| s.former_primary_released());
    end.is_some_and(|end| whole.tli == leader.record.tli && whole.lsn >= end)
}

/// Those who have promised, of the voters.
pub(super) fn promised<'a>(s: &'a Snapshot, term: Term, voters: &'a [Replica]) -> impl Iterator<Item = &'a Replica> {
    let promises = s.etcd.records.promises.get(&term);
    let me = s.myself();
    voters.iter().filter(move |voter| {
        **voter == me || promises.is_some_and(|promises| promises.get(&voter.node).is_some_and(|stored| stored.record.data == voter.data))
    })
}

/// Counts the voters' promises: with R of them one is from each set that may have acknowledged anything, and we have what that one has.
fn elected(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, sync: &SyncRecord, whole: Whole) -> Keeps {
    let term = leader.record.term;
    let (needed, count) = (sync.quorum().electors(), promised(s, term, &sync.voters).count());
    if count >= needed as usize {
        // Whoever has not promised is not asked to confirm at first: they get a moment, as in `async`.
        let ends = claimed_at(s, d).plus(VOTE_WINDOW);
        if count < sync.voters.len() && s.now.boot < ends {
            d.waits(
                "promises",
                format!(
                    "{count} of {} voters have promised, and that is enough; waits {} more for the others",
                    sync.voters.len(),
                    s.left(ends)
                ),
            );
            d.wake(ends);
            return Keeps::Renewing;
        }
        return prepare(s, d, leader, Some(whole));
    }
    if ordered(s, term).is_some_and(|order| order.accept_loss && order.assert_dead) && s.now.boot >= claimed_at(s, d).plus(VOTE_WINDOW) {
        d.alarm(
            "loss-accepted",
            format!(
                "{count} of {} voters have promised, {needed} should have: an operator accepts the loss of what the others hold",
                sync.voters.len()
            ),
        );
        return prepare(s, d, leader, Some(whole));
    }
    // Each claim asks every voter anew: where disks are slow the next one has more time.
    let ends = claimed_at(s, d).plus(QUORUM_WINDOW.times(u64::from(s.memory.failed_claims.min(7)) + 1));
    let there: Vec<&Replica> = promised(s, term, &sync.voters).collect();
    let lives = |voter: &Replica| s.etcd.records.nodes.get(&voter.node).is_none_or(|node| node.record.data == voter.data);
    let name = |voter: &Replica| format!("{}{}", voter.node, if lives(voter) { "" } else { "'s data of then, which are gone," });
    let missing: Vec<String> = sync.voters.iter().filter(|voter| !there.contains(voter)).map(name).collect();
    let text = format!(
        "{count} of {} voters have promised, {needed} have to: a commit that was acknowledged may be on {} alone",
        sync.voters.len(),
        missing.join(" or ")
    );
    if s.now.boot >= ends {
        return release::abandon(s, d, leader, &text);
    }
    d.waits("promises", text);
    d.wake(ends);
    Keeps::Renewing
}

/// The operator's request by which this claim was made.
fn ordered(s: &Snapshot, term: Term) -> Option<&Order> {
    s.memory.claim.as_ref().filter(|story| story.term == term)?.order.as_ref()
}

fn is_ahead(s: &Snapshot, promise: &PromiseRecord, mine: Whole) -> bool {
    let theirs = ledger::counted(s, &promise.history, Whole { tli: promise.tli, lsn: promise.whole });
    let own = s.histories.get(&mine.tli).map_or(mine, |text| ledger::counted(s, text, mine));
    if theirs.tli == own.tli {
        return theirs.lsn > own.lsn;
    }
    // A newer timeline that was used was elected: what was acknowledged before is on it, also where ours is a sibling that it knows nothing of.
    // One that is given out counts only if it grew out of ours: whoever carries data of that one completes it (step 4b).
    let used = ledger::history(s, theirs.tli).is_some();
    let descends = TimelineHistory::left(&promise.history, own.tli).is_some();
    let given_out = ledger::entry(s, theirs.tli).is_some_and(|entry| entry.state == TimelineState::Reserved);
    theirs.tli > own.tli && (used || descends && given_out)
}

fn hand_over(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, ahead: &Replica) -> Keeps {
    d.because("handoff", format!("{} holds more than this node: the claim goes to it", ahead.node));
    let record = LeaderRecord { state: LeaderState::Handoff { to: ahead.node.clone() }, ..next(s, &leader.record) };
    let txn = swap(leader, &record);
    d.act(s, Action::Txn(Purpose::Handoff, txn));
    Keeps::Not
}

fn claimed_at(s: &Snapshot, d: &Draft) -> Moment {
    d.memory.claim.as_ref().and_then(|story| story.claimed).unwrap_or(s.now.boot)
}

/// A commit may have been acknowledged that this voter alone holds: it is streamed from it before anything is promoted.
fn begin_to_fetch(
    s: &Snapshot,
    d: &mut Draft,
    leader: &Stored<LeaderRecord>,
    from: &Replica,
    promise: &PromiseRecord,
    mine: Whole,
    what: &str,
) -> Keeps {
    if promise.tli != mine.tli && ledger::goes_another_way(s, &promise.history, mine.tli, mine.lsn) {
        return release::abandon(s, d, leader, &format!("{what}; and what this node holds goes another way"));
    }
    if target::is_alone(s) {
        // It was about to be rewound, or a newer history here goes another way: then it would be started so again.
        if !target::is_lured(s, mine) {
            stop::stop_postgres(s, d);
        }
        return release::abandon(
            s,
            d,
            leader,
            &format!("{what}; and PostgreSQL has to be started anew to stream: it replays its own WAL alone"),
        );
    }
    d.because("fetch", format!("{what}: what is missing here is fetched from it first"));
    let fetching =
        Fetching { term: leader.record.term, node: from.node.clone(), tli: promise.tli, up_to: promise.whole, since: s.now.boot };
    fetch(s, d, leader, fetching)
}

/// Attached to a voter that has promised this claim: nobody below its term can have anything confirmed by what it sends.
fn fetch(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, fetching: Fetching) -> Keeps {
    let ends = fetching.since.plus(FETCH_LIMIT);
    let promise = s.etcd.records.promises.get(&fetching.term).and_then(|promises| promises.get(&fetching.node));
    let Some(promise) = promise.filter(|_| s.now.boot < ends) else {
        let why = format!("{} holds more, up to {}, and it could not be fetched within {FETCH_LIMIT}", fetching.node, fetching.up_to);
        return release::abandon(s, d, leader, &why);
    };
    if let Some(other) = stalls(s, d, &fetching, &promise.record) {
        // It aims at that one for good: started anew it aims at the newest.
        stop::stop_postgres(s, d);
        let why = format!("{} sends nothing, as PostgreSQL may aim at timeline {other} here: it is started anew", fetching.node);
        return release::abandon(s, d, leader, &why);
    }
    d.wake(ends);
    d.waits("fetch", format!("fetches up to {} from {}, which has promised this claim", fetching.up_to, fetching.node));
    let (node, address, fetched) = (fetching.node.clone(), promise.record.postgres.clone(), fetching.tli);
    d.memory.fetching = Some(fetching);
    let missing = ledger::texts_on_the_way(s, fetched);
    if !missing.is_empty() {
        ledger::put(s, d, missing);
    } else if cut::opens(s, d, &address) {
        upkeep::configured(s, d, Some(Follow { node, address, slot: None }));
    }
    Keeps::Renewing
}

/// Whether nothing comes in, and a history file lies here that may have led PostgreSQL to another timeline.
fn stalls(s: &Snapshot, d: &mut Draft, fetching: &Fetching, promise: &PromiseRecord) -> Option<TimelineId> {
    let Some(ServerRole::Standby { tli, .. }) = s.role().filter(|role| !role.streams()) else { return None };
    let history: TimelineHistory = promise.history.parse().ok()?;
    let other = target::sibling(s, *tli, fetching.tli, &history).filter(|_| *tli != fetching.tli)?;
    let ends = fetching.since.plus(FETCH_BEGINS);
    d.wake(ends);
    (s.now.boot >= ends).then_some(other)
}

/// Whether as much has come in. What follows cuts the stream, and looks for the end of what is whole.
fn is_fetched(s: &Snapshot, fetching: &Fetching) -> bool {
    match s.role() {
        Some(ServerRole::Standby { tli, receive, replay, .. }) => {
            *tli >= fetching.tli && receive.unwrap_or_default().max(*replay) >= fetching.up_to
        }
        _ => false,
    }
}
