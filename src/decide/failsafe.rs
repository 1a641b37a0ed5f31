//! Failsafe: etcd is silent, and the same peers who could elect somebody else promise not to (protocol 1.11).
//!
//! As the holder: ask, and count what is answered. As a peer: bind this node in its file, and keep to it. Either way the file decides: an
//! acknowledgement leaves this node only once it is on disk.

use super::{
    decision::{Action, Decision, Failsafe, Refused, Task},
    draft::Draft,
    snapshot::Snapshot,
    step_down,
};
use crate::model::{
    failsafe::{Ack, Acked, Answer, Ask, Asked, Verdict},
    key::Key,
    lsn::Lsn,
    moment::{Moment, Span},
    node::{NodeName, Nonce, Replica},
    node_file::NodeFile,
    record::{LeaderRecord, LeaderState, Stored, SyncRecord},
    term::Term,
};
use std::collections::{BTreeMap, BTreeSet};

/// A renewal that is so late is missing.
const LATE: Span = Span::from_millis(150);

/// Nobody waits for longer for an answer.
const WAITED_FOR: Span = Span::from_millis(1_300);

// ---- as the holder ----

/// Asks the peers, from the first missing renewal on, once in each renewal's time.
pub(super) fn rule(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>) {
    remember(s, d);
    let timers = s.policy.timers();
    let missing = s.lease.confirmed.as_ref().map(|attempt| attempt.sent.plus(timers.renew_every).plus(LATE));
    let Some(missing) = missing.filter(|_| may_ask(s, &leader.record)) else {
        d.memory.failsafe = None;
        return;
    };
    if s.now.boot < missing {
        d.memory.failsafe = None;
        if !s.lease.unsettled.is_empty() {
            d.wake(missing);
        }
        return;
    }
    let term = leader.record.term;
    let records = in_force(s);
    let blockers: BTreeSet<&Replica> = records.iter().flat_map(|sync| who_may_block(s, sync)).collect();
    let asked = s.memory.failsafe.as_ref().filter(|failsafe| failsafe.term == term).map(|failsafe| failsafe.asked);
    let due = asked.map_or(s.now.boot, |asked| asked.plus(timers.renew_every));
    if s.now.boot < due {
        d.wake(due);
    } else {
        let of: BTreeMap<NodeName, String> =
            blockers.iter().filter_map(|replica| Some((replica.node.clone(), api_of(d, replica)?))).collect();
        let nonce = s.nonce("ask");
        let (tli, lsn) = (leader.record.tli, position(s, &leader.record));
        let ask = Ask { holder: s.myself(), term, hold: timers.hold, wait: timers.wait, tli, lsn, nonce };
        if blockers.is_empty() || (!of.is_empty() && d.act(s, Action::AskPeers { ask, of })) {
            d.memory.failsafe = Some(Failsafe { term, asked: s.now.boot });
        }
    }
    tell(s, d, leader, &blockers);
}

/// What a renewal would tell now. Where voters confirm, nothing of it can be lost, and nobody asks.
fn position(s: &Snapshot, leader: &LeaderRecord) -> Lsn {
    let waits = s.is_lossless();
    let newest = s.boundary.filter(|boundary| !waits && boundary.tli == leader.tli).map(|boundary| boundary.lsn);
    newest.unwrap_or_default().max(leader.lsn)
}

fn tell(s: &Snapshot, d: &mut Draft, leader: &Stored<LeaderRecord>, blockers: &BTreeSet<&Replica>) {
    let silent = s.lease.confirmed.as_ref().map_or(Span::ZERO, |attempt| s.now.boot.since(attempt.sent)).rounded();
    let bound =
        |replica: &&&Replica| s.peers.acks.get(**replica).is_some_and(|ack| ack.term == leader.record.term && ack.until() > s.now.boot);
    let (yes, no): (Vec<&&Replica>, Vec<&&Replica>) = blockers.iter().partition(bound);
    let names = |of: &[&&Replica]| of.iter().map(|replica| replica.node.as_str()).collect::<Vec<_>>().join(", ");
    let Some(until) = until(s).filter(|until| *until > s.now.boot) else {
        if !blockers.is_empty() {
            let text = format!("etcd has confirmed nothing for {silent}: asks its peers not to take over; missing: {}", names(&no));
            d.waits("failsafe", text);
        }
        return;
    };
    let by = if blockers.is_empty() { "nobody else may take over".to_owned() } else { format!("by the word of {}", names(&yes)) };
    let text = format!("etcd has confirmed nothing for {silent}: this node goes on for {}, {by}", s.left(until));
    if s.is_leased() { d.because("failsafe", text) } else { d.alarm("failsafe", text) }
}

/// Whether this holder may go on by its peers' word: it serves, `sync` is its own, and no release of this term was ever sent.
fn may_ask(s: &Snapshot, leader: &LeaderRecord) -> bool {
    let ours = s.sync().is_some_and(|sync| sync.record.term == leader.term && sync.record.primary == s.myself());
    let confirmed = s.lease.confirmed.as_ref().is_some_and(|attempt| attempt.term == leader.term && attempt.holds);
    // A claim of ours over our own term says as a release does that our PostgreSQL is dead, and where its WAL ends.
    let released = s.lease.unsettled.iter().any(|attempt| !attempt.holds || attempt.term > leader.term);
    s.policy.failsafe && s.me.peer_key && leader.state == LeaderState::Serving && ours && confirmed && !released
}

/// Every `sync` that may be in force: the one that is seen, and each later write of ours whose outcome is not known.
fn in_force(s: &Snapshot) -> Vec<&SyncRecord> {
    s.sync().map(|sync| &sync.record).into_iter().chain(&s.sync_written).collect()
}

/// Who may take over, or vote for whoever does.
fn who_may_block<'a>(s: &Snapshot, sync: &'a SyncRecord) -> Vec<&'a Replica> {
    let all = if sync.is_lossless() { &sync.voters } else { &sync.electable };
    let me = s.myself();
    all.iter().filter(|replica| **replica != me).collect()
}

/// Where each peer is asked, while its member key is there: that goes with its etcd lease, and the peer may go on streaming.
fn remember(s: &Snapshot, d: &mut Draft) {
    let apis = &mut d.memory.apis;
    apis.retain(|node, _| s.etcd.records.nodes.contains_key(node));
    for (node, member) in s.etcd.records.members.iter().filter(|(node, _)| **node != s.me.node) {
        if let Some(api) = member.record.api.as_ref().filter(|api| apis.get(node) != Some(api)) {
            apis.insert(node.clone(), api.clone());
        }
    }
}

fn api_of(d: &Draft, replica: &Replica) -> Option<String> {
    d.memory.apis.get(&replica.node).cloned()
}

/// Until when the word of peers lets this node act in the term that it holds: their acks leave nobody who could be elected, by whichever
/// `sync` may be in force. Counted from the earliest send among them.
pub(super) fn until(s: &Snapshot) -> Option<Moment> {
    // Nearly always: etcd answers, and nobody was asked.
    if s.peers.acks.is_empty() && s.memory.failsafe.is_none() {
        return None;
    }
    let leader = s.leader().filter(|leader| s.holds() && superseded(s).is_none() && may_ask(s, &leader.record))?;
    let term = leader.record.term;
    in_force(s).into_iter().map(|sync| until_by(s, term, sync)).min()?
}

/// Whether `sync` may be replaced by `next`: nothing lasts longer here than etcd's own word, or than that of the peers whom `next` names. Whoever
/// is added has not given his, and may have sat out the wait by the time when the write is done.
pub(super) fn allows(s: &Snapshot, next: &SyncRecord) -> bool {
    let lasts = s.lease.until(next.term).max(until_by(s, next.term, next));
    let armed = s.guard().and_then(|guard| guard.armed).map(|armed| armed.until);
    !s.busy(Task::Arm) && s.authority().max(armed) <= lasts
}

/// Whether it does so now.
pub(super) fn leads(s: &Snapshot) -> bool {
    until(s).is_some_and(|until| until > s.now.boot)
}

fn until_by(s: &Snapshot, term: Term, sync: &SyncRecord) -> Option<Moment> {
    let blockers = who_may_block(s, sync);
    if blockers.is_empty() {
        let asked = s.memory.failsafe.as_ref().filter(|failsafe| failsafe.term == term)?;
        return Some(asked.asked.plus(s.policy.timers().hold));
    }
    // k of the voters leave R − 1; where commits wait for nobody, whoever may take over may do so alone.
    let needed = if sync.is_lossless() { sync.quorum().k() as usize } else { blockers.len() };
    let acks = blockers.into_iter().filter_map(|replica| s.peers.acks.get(replica)).filter(|ack| ack.term == term);
    let mut ends: Vec<Moment> = acks.map(Acked::until).collect();
    ends.sort_unstable_by(|one, other| other.cmp(one));
    needed.checked_sub(1).and_then(|last| ends.get(last)).copied()
}

/// A PostgreSQL that somebody serves with in a higher term, as a peer has seen: ours stops at once.
pub(super) fn superseded(s: &Snapshot) -> Option<Term> {
    let term = s.leader().filter(|_| s.holds())?.record.term;
    s.peers.serving.filter(|serving| *serving > term)
}

// ---- as a peer ----

/// Answers what was asked: binds this node in its file, or says why not.
pub(super) fn answer(s: &Snapshot, d: &mut Draft) {
    let Some(Asked { ask, at }) = &s.peers.asked else { return };
    let given = s.file.ack.as_ref().is_some_and(|ack| ack.nonce == ask.nonce);
    let refused = s.memory.refused.as_ref().is_some_and(|refused| refused.nonce == ask.nonce);
    if given || refused || s.now.boot.since(*at) > WAITED_FOR {
        return;
    }
    if let Some((why, serving)) = refusal(s, ask) {
        d.refused("failsafe-ack", format!("{} asks not to be followed in term {}: {why}", ask.holder.node, ask.term));
        d.memory.refused = Some(Refused { nonce: ask.nonce.clone(), why, serving });
        return;
    }
    // A shorter wait than one that was given before does not end that one.
    let before = s.file.ack.as_ref().map_or(Moment::ZERO, |ack| ack.ends(&s.me.boot));
    let wait = ask.wait.max(before.since(s.now.boot));
    let (boot, at) = (s.me.boot.clone(), s.now.boot);
    let (tli, lsn) = (ask.tli, ask.lsn);
    let ack = Ack { holder: ask.holder.clone(), term: ask.term, wait, tli, lsn, nonce: ask.nonce.clone(), boot, at };
    d.act(s, Action::WriteFile(Box::new(NodeFile { ack: Some(ack), ..s.file.clone() })));
}

/// Why this node does not bind itself, and the higher term in which it has seen somebody serve.
fn refusal(s: &Snapshot, ask: &Ask) -> Option<(String, Option<Term>)> {
    let no = |why: String| Some((why, None));
    if !s.me.peer_key {
        return no("it has no peer key, or the kernel does not name this boot".to_owned());
    }
    if let Some(leader) = s.leader().map(|leader| &leader.record) {
        let holder = &leader.holder.node;
        if leader.term > ask.term {
            let serving = (leader.state == LeaderState::Serving).then_some(leader.term);
            return Some((format!("{holder} holds term {}", leader.term), serving));
        }
        if leader.term == ask.term && leader.holder.replica() != ask.holder {
            return no(format!("{holder} holds that term"));
        }
        if leader.term == ask.term && leader.state.is_given_up() {
            return no("it has given that term up".to_owned());
        }
    }
    if s.file.promised > ask.term {
        return no(format!("this node has promised term {}", s.file.promised));
    }
    if s.file.term > ask.term {
        return no(format!("this node has seen term {}", s.file.term));
    }
    if let Some(claimed) = open_claim(s).filter(|claimed| *claimed > ask.term) {
        return no(format!("a claim of this node for term {claimed} may still be done"));
    }
    if step_down::may_be_primary(s) {
        return no("PostgreSQL may be a primary here".to_owned());
    }
    bound(s)
        .filter(|(ack, _)| ack.holder != ask.holder || ack.term > ask.term)
        .and_then(|(ack, _)| no(format!("this node is bound to {} in term {}", ack.holder.node, ack.term)))
}

/// Whether a claim of ours, above what `leader` shows, may yet be done: it would have to lead with the data that are here.
pub(super) fn claim_is_open(s: &Snapshot, d: &mut Draft) -> bool {
    let Some(claimed) = open_claim(s).filter(|claimed| s.leader().is_none_or(|leader| leader.record.term < *claimed)) else { return false };
    d.waits("claim", format!("our claim of term {claimed} may yet be done: until that is known nothing here is replaced"));
    true
}

/// A claim of ours that may be done, or may yet be: not one that compares a value which was seen replaced. What was seen the file knows, too: where
/// etcd is silent since this agent's start, nothing else does.
fn open_claim(s: &Snapshot) -> Option<Term> {
    let (term, seq) = s.leader().map_or((Term::ZERO, 0), |leader| (leader.record.term, leader.record.seq));
    let (term, seq) = (term.max(s.file.term), seq.max(s.file.floors.seq));
    let replaced = |claimed: Term| s.file.claimed_over.is_some_and(|over| seq > over) && term < claimed;
    s.file.claimed.filter(|claimed| !replaced(*claimed))
}

/// To whom this node is bound, and until when: it claims and promises nothing above that term. Whoever gives its term up needs no such word; and
/// where `sync` was written in a higher one, too few had given it.
pub(super) fn bound(s: &Snapshot) -> Option<(&Ack, Moment)> {
    let ack = s.file.ack.as_ref()?;
    let given_up = |leader: &LeaderRecord| leader.term == ack.term && leader.holder.replica() == ack.holder && leader.state.is_given_up();
    let ends = ack.ends(&s.me.boot);
    let followed = s.sync().is_some_and(|sync| sync.record.term > ack.term);
    let binds = s.now.boot < ends && !followed && !s.leader().is_some_and(|leader| given_up(&leader.record));
    binds.then_some((ack, ends))
}

impl Snapshot {
    /// To whom this node has given its word not to follow anybody else, and until when that binds.
    pub fn bound(&self) -> Option<(&Ack, Moment)> {
        bound(self)
    }
}

/// Says so where this node is bound below `term`; decides again when it no longer is.
pub(super) fn holds_back(s: &Snapshot, d: &mut Draft, term: Term) -> bool {
    let Some((ack, ends)) = bound(s).filter(|(ack, _)| ack.term < term) else { return false };
    let (holder, left) = (&ack.holder.node, s.left(ends));
    if !d.reasons.iter().any(|reason| reason.id == "bound") {
        d.waits(
            "bound",
            format!("{holder} serves in term {} without etcd, and this node has agreed not to follow it for {left} more", ack.term),
        );
    }
    d.wake(ends);
    true
}

/// What is to be told to who asked `nonce`, once it is a fact.
pub fn answer_to(s: &Snapshot, decision: &Decision, nonce: &Nonce) -> Option<Answer> {
    let refused = decision.memory.refused.as_ref().filter(|refused| refused.nonce == *nonce);
    let acked = s.file.ack.as_ref().is_some_and(|ack| ack.nonce == *nonce);
    let verdict = match refused {
        _ if acked => Verdict::Acked,
        Some(refused) => Verdict::Refused { why: refused.why.clone(), serving: refused.serving },
        None => return None,
    };
    Some(Answer { by: s.myself(), nonce: nonce.clone(), verdict })
}

/// Until when a word of this node may bind it of which its file knows nothing: a disk that went back while the machine was off has lost it, and
/// where nothing else was written since, nothing shows that. As one that the file knows it counts as given at the boot. Whoever was the last
/// primary has given none to itself, and a primary that is dead needs none. Claims sit out as long a time anyway; where commits wait for
/// nobody no promise is needed for one.
pub(super) fn forgotten(s: &Snapshot) -> Option<Moment> {
    let (leader, sync) = (&s.leader()?.record, &s.sync()?.record);
    let ends = Moment::ZERO.plus(s.policy.timers().wait.max(leader.wait));
    let moot = leader.state.is_given_up() || s.former_primary_released() || sync.primary.node == s.me.node;
    (s.me.peer_key && sync.is_lossless() && !moot && s.now.boot < ends).then_some(ends)
}

/// Says so where a promise is due; decides again when it is over.
pub(super) fn may_have_forgotten(s: &Snapshot, d: &mut Draft) -> bool {
    let Some(ends) = forgotten(s) else { return false };
    let left = s.left(ends);
    d.waits(
        "bound",
        format!("this machine has booted, and its disk may have lost a word that was given before: promises nobody for {left} more"),
    );
    d.wake(ends);
    true
}

/// The invariant: whether a write of `key` for `term` would break a word that this node has given.
pub(super) fn breaks_word(s: &Snapshot, key: &Key, term: Term) -> bool {
    matches!(key, Key::Leader | Key::Promise(..)) && bound(s).is_some_and(|(ack, _)| ack.term < term)
}
