//! Following a holder that is gone (protocol 1.4 *Taker*, 1.7 steps 0 and 2).

use super::{
    Flow, cut,
    decision::{Action, ClaimStory, Purpose, Vacancy},
    depose,
    draft::Draft,
    durability, failsafe, flap,
    leadership::{disarm, next},
    ledger, operator, promotion, scan,
    snapshot::Snapshot,
    went_back,
};
use crate::model::{
    instance::{DataDir, Pause, ServerRole, Whole},
    key::{Compare, Key, Txn, Write},
    lsn::Lsn,
    moment::{Moment, Span},
    node_file::{ClonePlace, NodeFile, Operation, Order},
    policy::CrashPolicy,
    record::{
        Holder, LeaderRecord, LeaderState, MemberRole, Stored, SyncRecord, TermRecord, TimelineRecord, TimelineState, VERSION, to_text,
    },
    request::Request,
    timeline::TimelineId,
};

/// How long an owner leaves a vacant record to its replicas before it restarts in place.
const OWNER_WAITS: Span = Span::from_millis(300);

/// What each place in the order of candidates costs.
const PLACE: Span = Span::from_millis(50);

/// WAL that came in so lately, after the lease was over, comes from somebody who should be dead.
const LIVE_STREAM: Span = Span::from_millis(500);

pub(super) const UNFENCED: &str =
    "nothing here would end PostgreSQL at its deadline once the agent is dead, and the policy does not set allow_unfenced";

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    let Some(leader) = s.leader() else { return Flow::Goes };
    note_vacant(s, d, leader);
    disarm(s, d);
    if !s.etcd_answers() || failsafe::holds_back(s, d, leader.record.term.next()) {
        return Flow::Goes;
    }
    let trigger = trigger(s, d, leader);
    if s.is_owner() && s.is_empty() {
        return as_owner(s, d, leader, trigger.as_ref());
    }
    let Some(trigger) = trigger else { return Flow::Goes };
    if flap::is_stopped(s) && !s.is_owner() && operator::order(s).is_none() {
        // What alarms then is told by every node.
        return Flow::Goes;
    }
    as_standby(s, d, leader, &trigger);
    Flow::Goes
}

/// Why, and from when on, the record may be taken over.
struct Trigger {
    from: Moment,
    why: String,
}

fn note_vacant(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    if !matches!(leader.record.state, LeaderState::Vacant { .. }) {
        d.memory.vacant = None;
        return;
    }
    let known = s.memory.vacant.as_ref().is_some_and(|vacancy| vacancy.nonce == leader.record.nonce);
    if !known {
        d.memory.vacant = Some(Vacancy { nonce: leader.record.nonce.clone(), since: s.now.boot });
    }
}

fn trigger(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> Option<Trigger> {
    let record = &leader.record;
    let holder = &record.holder.node;
    if let LeaderState::Handoff { to } = &record.state
        && *holder == s.me.node
    {
        d.memory.handed.insert(to.clone());
    }
    match &record.state {
        // Nobody claims a paused record; `pause` says so.
        LeaderState::Paused(_) | LeaderState::Foreign { .. } => None,
        LeaderState::Vacant { reason } => {
            let from = d.memory.vacant.as_ref().map_or(s.now.boot, |vacancy| vacancy.since);
            Some(Trigger { from, why: format!("{holder} released the lease of term {}: {reason}", record.term) })
        }
        LeaderState::Handoff { to } if *to == s.me.node => {
            // Another request, for another node, holds this one up no longer than its time from then on.
            let from = s.now.boot.minus(s.stood_still());
            Some(Trigger { from, why: format!("{holder} handed term {} over to this node", record.term) })
        }
        LeaderState::Claimed | LeaderState::Serving | LeaderState::Handoff { .. } => {
            if let Some(why) = operator::asserted(s, d, record) {
                return Some(Trigger { from: s.now.boot, why });
            }
            let stood = s.stood_still();
            let left = record.wait.minus(stood);
            depose::look(s, d, leader);
            if let Some((from, why)) = depose::may_follow(s, d, leader) {
                return Some(Trigger { from, why });
            }
            let sees = s.standing.as_ref().is_some_and(|standing| standing.nonce == record.nonce);
            let observed = s.now.boot.minus(stood).plus(record.wait);
            if !sees || left > Span::ZERO {
                d.wake(s.now.boot.plus(left.max(Span::from_millis(1))));
                if stood > s.policy.timers().renew_every.times(2) {
                    d.waits("wait", format!("{holder} has not renewed for {stood}; after {} its lease is over", record.wait));
                }
                return None;
            }
            Some(Trigger {
                from: observed,
                why: format!("{holder} has not renewed term {} for {stood} (wait {})", record.term, record.wait),
            })
        }
    }
}

/// The last primary itself, with PostgreSQL down: it holds everything, and starts on its own timeline.
fn as_owner(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, trigger: Option<&Trigger>) -> Flow {
    let record = &leader.record;
    if s.file.operation.is_some() || s.disk().is_some_and(DataDir::is_half_rewound) || !matches!(s.disk(), Some(DataDir::Present(_)) | None)
    {
        return Flow::Goes;
    }
    let Some(whole) = scan::whole(s, d) else { return Flow::Settled };
    if owner_went_back(s, d, whole) {
        return Flow::Goes;
    }
    let Some(DataDir::Present(disk)) = s.disk() else { return Flow::Goes };
    if !promotion::may_start_in_place(s, disk) {
        d.refused("owner", "this node was the last primary, but its data is not on the newest timeline: it starts as a standby");
        return Flow::Goes;
    }
    if !s.may_lead_unfenced() {
        d.refused("unfenced", format!("was the last primary, but {UNFENCED}"));
        return Flow::Goes;
    }
    let Some(trigger) = trigger else {
        d.waits("owner", format!("was the last primary and holds everything: waits until the lease of term {} is over", record.term));
        return Flow::Settled;
    };
    let from = owner_may_claim_at(s, leader, trigger).max(flap::rests_until(s, d).unwrap_or_default());
    if s.now.boot < from {
        d.waits("owner", format!("holds everything, and restarts in place in {} unless a replica takes over", s.left(from)));
        d.wake(from);
        return Flow::Settled;
    }
    let end = (s.former_primary_released() && record.wal_end.is_some()).then_some(whole);
    claim(s, d, leader, end, &trigger.why);
    Flow::Settled
}

/// Replicas first: they are quicker, and a host that crashed once is the worse place.
fn owner_may_claim_at(s: &Snapshot, leader: &Stored<LeaderRecord>, trigger: &Trigger) -> Moment {
    let alone = s.sync().is_none_or(|sync| sync.record.electable.is_empty());
    let vacant = matches!(leader.record.state, LeaderState::Vacant { .. });
    let patience = match s.policy.crash_policy {
        _ if alone => Span::ZERO,
        CrashPolicy::Restart if vacant => Span::ZERO,
        CrashPolicy::Failover if vacant => leader.record.wait,
        _ => OWNER_WAITS,
    };
    let polite = trigger.from.plus(patience);
    let polite = if operator::order(s).is_some() { trigger.from } else { polite.max(left_to_another(s, leader, trigger)) };
    s.memory.no_claim_before.map_or(polite, |not_before| polite.max(not_before))
}

/// An operator wants another node to take over: it gets its chance first, for one wait.
fn left_to_another(s: &Snapshot, leader: &Stored<LeaderRecord>, trigger: &Trigger) -> Moment {
    let other = operator::wanted(s).is_some_and(|wanted| *wanted != s.me.node);
    if other { trigger.from.plus(leader.record.wait) } else { trigger.from }
}

/// Whether we, the last primary, have lost what we once had; an alarm says what.
fn owner_went_back(s: &Snapshot, d: &mut Draft, whole: Whole) -> bool {
    let Some(lost) = went_back::lost(s, whole) else { return false };
    d.alarm("owner-went-back", format!("this node was the last primary, but its WAL ends at {} and {lost}: it does not claim", whole.lsn));
    true
}

/// Who takes over from the dead, whatever is lost, may have been stopped to be rewound, or copied, by a primary that is gone: it is started first.
fn is_being_started(s: &Snapshot, order: Option<&Order>) -> bool {
    let whole = s.disk().is_none_or(|dir| matches!(dir, DataDir::Present(_)) && !dir.is_half_rewound());
    let replaced = matches!(s.file.operation, Some(Operation::Clone { place: ClonePlace::InPlace, .. }));
    whole && !replaced && s.role().is_none() && order.is_some_and(|order| order.accept_loss && order.assert_dead)
}

/// A standby that `sync` names as electable, or the owner whose PostgreSQL runs as a standby.
fn as_standby(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, trigger: &Trigger) {
    let order = operator::order(s);
    if let Some(why) = unfit(s, d, leader, order.as_ref()) {
        d.refused("unfit", format!("{}, but this node cannot take over: {why}", trigger.why));
        let goes_on = matches!(leader.record.state, LeaderState::Handoff { .. }) || is_being_started(s, order.as_ref());
        if let (Some(stored), true) = (operator::wish(s), order.is_some() && !goes_on) {
            operator::drop(s, d, stored, format!("{} cannot take over: {why}", s.me.node));
        }
        return;
    }
    // It was about to be rewound to somebody who is gone: who may lead has nothing to be rewound to (`etcd recover` may have chosen it).
    d.memory.rewind = None;
    let live = s.received_at.filter(|at| *at > trigger.from && s.now.boot.since(*at) < LIVE_STREAM);
    if live.is_some() && !leader.record.state.is_given_up() {
        d.alarm("live-stream", format!("{}, and yet WAL still comes in: this node does not claim", trigger.why));
        d.wake(s.now.boot.plus(LIVE_STREAM));
        return;
    }
    let place = if order.is_some() { 0 } else { place(s) };
    let mut from = trigger.from.plus(PLACE.times(place)).max(left_to_another(s, leader, trigger));
    if !s.is_electable() && s.is_owner() {
        // The owner: what it once had, it must still have.
        let Some(whole) = scan::whole(s, d) else { return };
        if owner_went_back(s, d, whole) {
            return;
        }
        from = owner_may_claim_at(s, leader, trigger);
    }
    let from = s.memory.no_claim_before.map_or(from, |not_before| from.max(not_before));
    let mut end = None;
    if let Some(needed) = binding_end(s, leader).filter(|_| order.as_ref().is_none_or(|order| !order.accept_loss)) {
        let found = s.whole.as_ref().filter(|scanned| scanned.run == s.run());
        match found {
            Some(scanned) if scanned.whole.tli == leader.record.tli && scanned.whole.lsn >= needed => end = Some(scanned.whole),
            found => {
                let again = found.map(|scanned| scanned.at.plus(Span::from_millis(100)));
                let known = found.map_or("not known yet".to_owned(), |scanned| scanned.whole.lsn.to_string());
                d.waits(
                    "wal-end",
                    format!("the former primary's WAL ends at {needed}, ours at {known}: only a node that has everything takes over now"),
                );
                match again {
                    Some(again) if again > s.now.boot => d.wake(again),
                    _ => scan::start(s, d),
                }
                return;
            }
        }
    }
    if s.now.boot < from {
        d.waits("place", format!("is number {} in the order of candidates: claims in {}", place + 1, s.left(from)));
        d.wake(from);
        return;
    }
    claim(s, d, leader, end, &trigger.why);
}

/// The end of WAL that a taker must have, while it binds: `lossless`, and one wait after the release at the longest.
fn binding_end(s: &Snapshot, leader: &Stored<LeaderRecord>) -> Option<Lsn> {
    let wait = leader.record.wait;
    let lossless = s.policy.crash_policy == CrashPolicy::Lossless;
    let binds = match leader.record.state {
        LeaderState::Vacant { .. } => lossless && s.stood_still() < wait,
        // By an operator's word: where its choice cannot, its former primary has everything, and gets its turn before who has less.
        LeaderState::Handoff { .. } => operator::wanted(s).is_some() && s.stood_still() < wait.times(2),
        _ => false,
    };
    leader.record.wal_end.filter(|_| binds && s.former_primary_released())
}

/// Why an electable node cannot take over now, with numbers.
fn unfit(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, order: Option<&Order>) -> Option<String> {
    let Some(sync) = s.sync() else { return Some("`sync` is missing from etcd".to_owned()) };
    let accepts = order.is_some_and(|order| order.accept_loss);
    if !s.is_electable() && !s.is_owner() {
        let why = not_electable(s, &sync.record);
        match order {
            None => return Some(why),
            Some(_) if !accepts => return Some(format!("{why}; with --accept-loss it may, and lose what it lacks")),
            Some(_) if !is_dead(s, d, leader) => {
                let of = &sync.record.primary.node;
                return Some(format!("{why}, and {of} is not proven dead: with --assert-dead it may, once you made sure of that"));
            }
            Some(_) => {}
        }
    }
    if let Some(why) = unable(s) {
        return Some(why);
    }
    match s.role() {
        None => Some("PostgreSQL does not answer here".to_owned()),
        Some(ServerRole::Primary { .. }) => Some("PostgreSQL is not in recovery here".to_owned()),
        // The voters' promises tell whether anything is missing.
        Some(ServerRole::Standby { .. }) if sync.record.is_lossless() || accepts => None,
        // It was chosen, by whatever it had then, and its claim came to nothing. Nobody else may lead.
        Some(ServerRole::Standby { .. }) if s.is_owner() && !served(s) && sync.record.electable.is_empty() => None,
        Some(ServerRole::Standby { tli, receive, replay, .. }) => {
            behind(s, leader, scan::server_timeline(s, *tli, *replay), receive.unwrap_or_default().max(*replay))
        }
    }
}

/// Why this node could not be promoted, whatever it has, and will not be able to for a while.
pub(super) fn unable(s: &Snapshot) -> Option<String> {
    if s.me.tags.no_failover && !s.is_owner() && !is_named_alone(s) {
        return Some("it is tagged no_failover".to_owned());
    }
    if let Some(operation) = &s.file.operation {
        return Some(format!("{operation} has not ended"));
    }
    if let Some(tli) = ledger::conflict(s) {
        return Some(format!("its history file of timeline {tli} is not the ledger's"));
    }
    if !s.may_lead_unfenced() {
        return Some(UNFENCED.to_owned());
    }
    if let Some(why) = cut::impossible(s).filter(|_| !s.is_owner()) {
        return Some(format!("it cannot be cut off from its former primary in the kernel ({why})"));
    }
    if let Some(why) = durability::unready(s).filter(|_| !s.is_owner()) {
        return Some(why.to_owned());
    }
    let paused = matches!(s.role(), Some(ServerRole::Standby { pause: Some(Pause::Parameters), .. }));
    paused.then(|| "replay stands still for a parameter that is lower than the primary's; a promotion would shut it down".to_owned())
}

/// Whether nobody else may ever lead: an operator has chosen this node as he had the records made anew.
fn is_named_alone(s: &Snapshot) -> bool {
    let ours = s.leader().filter(|leader| leader.record.state.is_given_up() && leader.record.holder.replica() == s.myself());
    // A claim of ours that came to nothing in a cluster of two leaves another one as the last primary.
    ours.is_some() && s.sync().is_some_and(|sync| sync.record.electable == [s.myself()] && sync.record.primary == s.myself())
}

fn not_electable(s: &Snapshot, sync: &SyncRecord) -> String {
    if sync.electable.iter().chain([&sync.primary]).any(|replica| replica.node == s.me.node && replica.data != s.file.data) {
        return format!("`sync` lists it with another life of its data than {}", s.file.data);
    }
    if sync.primary.node == s.me.node {
        return "it was the primary, and its PostgreSQL runs as a standby now".to_owned();
    }
    let names: Vec<String> = sync.electable.iter().map(|replica| replica.node.to_string()).collect();
    format!("`sync` of term {} names as electable: {}", sync.term, if names.is_empty() { "nobody".to_owned() } else { names.join(", ") })
}

fn behind(s: &Snapshot, leader: &Stored<LeaderRecord>, tli: TimelineId, have: Lsn) -> Option<String> {
    let record = &leader.record;
    // Where records were made anew by what this node said, the timeline may be one that it began and never led on: it has left that again.
    if tli < record.tli && !is_named_alone(s) {
        return Some(format!("it is on timeline {tli}, the last primary was on {}", record.tli));
    }
    let (_, newest) = s.primary_position()?;
    let lag = newest.bytes_ahead_of(have);
    (lag > s.policy.max_lag).then(|| format!("it is {lag} behind {newest}, max_lag is {}", s.policy.max_lag))
}

/// Whether the former primary is proven dead: by its releaser, or by an operator's word.
fn is_dead(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) -> bool {
    s.former_primary_released() || operator::asserted(s, d, &leader.record).is_some()
}

/// How many electable nodes come before us: further ahead, or preferred among equals. By what they say of themselves: a hint.
fn place(s: &Snapshot) -> u64 {
    let Some(sync) = s.sync() else { return 0 };
    let mine = match s.role() {
        Some(ServerRole::Standby { tli, receive, replay, .. }) => (*tli, receive.unwrap_or_default().max(*replay)),
        _ => (TimelineId::FIRST, Lsn::ZERO),
    };
    let me = (mine.0, mine.1, s.me.tags.priority, std::cmp::Reverse(&s.me.node));
    let before = sync.record.electable.iter().filter(|replica| replica.node != s.me.node).filter(|replica| {
        let Some(member) = s.etcd.records.members.get(&replica.node).map(|stored| &stored.record) else { return false };
        let there = member.data == replica.data && member.role == MemberRole::Replica;
        let theirs = (member.tli.unwrap_or(TimelineId::FIRST), member.lsn, member.tags.priority, std::cmp::Reverse(&replica.node));
        there && theirs > me
    });
    before.count() as u64
}

/// The claim goes into the file, fsynced, and then to etcd: the swap is the ballot.
pub(super) fn claim(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, end: Option<Whole>, why: &str) {
    d.hurry = true;
    let term = leader.record.term.max(s.file.term).max(s.file.promised).next();
    let boundless = |order: &Order| order.accept_loss && s.policy.failsafe && !binds(s);
    let order = operator::order(s).map(|order| Order { assert_dead: is_dead(s, d, leader), boundless: boundless(&order), ..order });
    let noted = s.file.claimed.is_some_and(|claimed| claimed >= term) && s.file.claimed_over == Some(leader.record.seq);
    if !noted || s.file.claimed_by != order {
        d.because("claim", format!("claims term {term}: {why}"));
        // The file's own term stays below until the record shows the claim: the next decision computes the same term.
        let claimed = s.file.claimed.max(Some(term));
        let file = NodeFile { claimed, claimed_over: Some(leader.record.seq), claimed_by: order, ..s.file.clone() };
        d.act(s, Action::WriteFile(Box::new(file)));
        return;
    }
    d.because("claim", format!("claims term {term}: {why}"));
    let Some(txn) = claim_txn(s, leader, term, end) else { return };
    let triggered = s.memory.claim.as_ref().filter(|story| story.term == term).map_or(s.now.boot, |story| story.triggered);
    d.memory.claim = Some(ClaimStory {
        from: s.sync().map(|sync| sync.record.primary.node.clone()),
        lossless: s.is_lossless(),
        former_lsn: s.primary_position().map(|(_, lsn)| lsn),
        former_hold: Some(leader.record.hold.max(word(s, &leader.record))),
        wal_end: verified_end(s, &leader.record).or(end.map(|whole| whole.lsn).filter(|_| served(s))),
        order: order.clone(),
        ..ClaimStory::begun(term, order.map_or_else(|| why.to_owned(), |order| format!("{} asked for it: {why}", order.by)), triggered)
    });
    d.act(s, Action::Txn(Purpose::Claim, txn));
}

/// Whether a holder that etcd does not answer does not go on without this node's word, or is this node.
fn binds(s: &Snapshot) -> bool {
    s.is_owner() || !s.is_lossless() && s.sync().is_some_and(|sync| sync.record.electable.contains(&s.myself()))
}

/// For how long the holder may have gone on by the word that this node gave it last: its policy, and with it `leader`, may have changed since.
fn word(s: &Snapshot, record: &LeaderRecord) -> Span {
    let given = s.file.ack.as_ref().filter(|ack| ack.term == record.term && ack.holder.node == record.holder.node);
    given.map_or(Span::ZERO, |ack| ack.wait)
}

/// The end of WAL of the last primary that served, where its release has verified it.
pub(super) fn verified_end(s: &Snapshot, record: &LeaderRecord) -> Option<Lsn> {
    record.wal_end.filter(|_| s.former_primary_released() && served(s))
}

/// Whether the primary that `sync` names has served, in the term that `sync` was written in. The end of one that never did bounds nothing: its
/// predecessor went on, or clients found it before anybody knew of its timeline.
fn served(s: &Snapshot) -> bool {
    let Some(sync) = s.sync() else { return false };
    let owner = ledger::newest_used(s).map(|(_, owner)| owner);
    let came_up = |entry: &TimelineRecord| entry.term == sync.record.term && entry.state != TimelineState::Used;
    owner.as_ref() == Some(&sync.record.primary) && !s.etcd.records.timelines.values().any(|stored| came_up(&stored.record))
}

fn claim_txn(s: &Snapshot, leader: &Stored<LeaderRecord>, term: crate::model::term::Term, end: Option<Whole>) -> Option<Txn> {
    let guard = s.guard()?;
    let (sync, term_record) = (s.sync()?, s.etcd.records.term.as_ref()?);
    let me = s.myself();
    let timers = s.policy.timers();
    let mut record = LeaderRecord {
        term,
        holder: Holder { node: me.node.clone(), data: me.data.clone(), guard: guard.incarnation.clone(), postgres: s.me.postgres.clone() },
        hold: timers.hold,
        wait: timers.wait,
        state: LeaderState::Claimed,
        lsn: s.primary_position().map_or(leader.record.lsn, |(_, lsn)| lsn),
        ..next(s, &leader.record)
    };
    // Our own PostgreSQL was the primary and is verified dead: what a release would say.
    let own_release = s.holds() && sync.record.primary == me && s.is_empty();
    if own_release {
        (record.dead, record.wal_end) = (Some(sync.record.term), end.map(|whole| whole.lsn));
    }
    // What it was asked for by is taken with it: in the new term it would be dropped.
    let asked = operator::wish(s).filter(|intent| match &intent.record.request {
        Request::Acknowledge => true,
        Request::Failover { to, .. } => *to == me.node,
        Request::Remove { .. } | Request::Pause { .. } | Request::Resume { .. } => false,
    });
    if asked.is_some_and(|intent| intent.record.request == Request::Acknowledge) {
        record.failovers = None;
    }
    let mut txn = Txn {
        nonce: record.nonce.clone(),
        when: vec![
            Compare::Is(Key::Leader, leader.text.clone()),
            Compare::Is(Key::Sync, sync.text.clone()),
            Compare::Is(Key::Term, term_record.text.clone()),
            s.doubt_as_known(),
        ],
        then: vec![Write::Put(Key::Leader, to_text(&record)), Write::Put(Key::Term, to_text(&TermRecord { v: VERSION, term, holder: me }))],
    };
    if let Some(stored) = asked {
        operator::take(&mut txn, stored);
    }
    Some(txn)
}
