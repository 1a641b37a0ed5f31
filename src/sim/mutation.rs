//! Rules that are broken on purpose, around the decisions: proof that an oracle would see it (oracle O20).
//!
//! A decision is shown something else than what is, or the model does not do what the real part is bound to. The decisions themselves have
//! no switch.

use crate::{
    decide::{
        decision::{Decision, Purpose, Routing, Writable},
        snapshot::{Shown, Snapshot},
        transition::Older,
    },
    model::{
        instance::{Armed, RecoveryTarget, ServerRole},
        key::{Key, Txn, Write},
        lsn::Lsn,
        moment::{Moment, Span},
        node_file::NodeFile,
        observed::Observed,
        record::{
            HistoryRecord, LeaderRecord, LeaderState, MemberRole, PromiseRecord, Stored, TimelineRecord, TimelineState, VERSION, to_text,
        },
        term::Term,
        timeline::TimelineId,
    },
};
use std::sync::Arc;

/// A page of WAL.
const PAGE: u64 = 8192;

/// One rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Nothing is broken.
    None,
    /// The executor counts validity from the reply, not from the send.
    ValidityFromReply,
    /// The guard ignores its deadline.
    DeafGuard,
    /// The guard says that nothing lives while backends still commit.
    HastyRelease,
    /// A taker does not wait.
    Impatient,
    /// A taker waits for as long as its own policy says, not for as long as the holder's record does.
    OwnWait,
    /// A claim is sent before it is in the file.
    ForgottenClaim,
    /// A promise is published before it is in the file.
    ForgottenPromise,
    /// Names that are written count as in force at once.
    NamesBelieved,
    /// Voters that have promised nothing count.
    PromisesInvented,
    /// A promise rests on what the settings say: the kernel cuts nobody off.
    SettingsAlone,
    /// Clients are let in to see what nobody has confirmed.
    OpenDoors,
    /// What peers agree to counts from their answer, not from the question.
    AcksFromReceipt,
    /// Peers forget what they have agreed to.
    ForgottenAck,
    /// The only `sync` that counts for what peers agree to is the one that was last seen.
    AcksForOneSync,
    /// One peer's word is enough.
    OneAck,
    /// A standby's checkpointer takes no names in: once promoted it acknowledges too early (EXP-24).
    LateFlag,
    /// A paused record counts as vacant.
    PauseIgnored,
    /// To resume no deadline is armed.
    ResumeUnarmed,
    /// A request stays when it is done.
    RequestKept,
    /// A write of `leader` without an answer does not keep the deadline of a paused holder.
    PauseUnsettled,
    /// A shorter hold is sent, and the guard keeps the later deadline.
    LateArm,
    /// A claim does not compare `sync`.
    UncheckedMembers,
    /// A new agent leaves `sync` as it is: what its predecessor still has on its way may replace it.
    SilentAdoption,
    /// Whoever promises believes that its stream is cut, and it is not.
    CutBelieved,
    /// A promise counts for nothing the moment after.
    PromiseWithdrawn,
    /// The end of WAL is taken from the last page, not from the last record.
    EndsByPage,
    /// New names are shown, and what was written after that counts as confirmed.
    MarkBelieved,
    /// The checkpointer counts as having seen new names although it has not.
    FlagBelieved,
    /// A reserved timeline that somebody has come to is given up like any other.
    BurntThough,
    /// A vacant `leader` counts as a release: its primary is dead, and its WAL ends where the record says. (A death alone lets nobody lead
    /// without promises: who does so has to have the end of WAL of the dead as well.)
    VacantIsDead,
    /// Nobody compares the node file with what etcd knows of it.
    StartsUnchecked,
    /// A lease is taken over whatever guard it names.
    AnyGuard,
    /// Nobody hears who says that an etcd went back.
    DoubtUnheard,
    /// A claimant takes its recovery for one that aims at its own timeline alone.
    TargetBelieved,
    /// What may be lost beyond the last renewal is not told.
    LossHidden,
    /// Writes are sent here for as long as they ever were, whatever has become of the authority.
    RoutedOn,
    /// Nothing is explained.
    Silent,
    /// Whoever `sync` names has a healthy copy.
    MembersBelieved,
    /// What a node says of itself is said again at each decision.
    Chatty,
    /// Of several acknowledgements the latest counts.
    LatestAck,
    /// Older names count as gone once newer ones are written.
    OlderForgotten,
    /// A machine goes on whatever runs under its name (ADR 27).
    CopyGoesOn,
    /// A standby is configured without names.
    NamesDropped,
    /// A verb without an answer counts as not done, and the guard does it when it comes to it.
    QueuedVerbs,
}

impl Mutation {
    /// What a decision is shown instead of what is.
    pub(super) fn blind(self, s: &mut Snapshot) {
        match self {
            Self::Impatient => {
                if let Some(standing) = &mut s.standing {
                    standing.since = Moment::ZERO;
                }
            }
            Self::OwnWait => {
                let wait = s.policy.timers().wait;
                if let Some(leader) = &mut Arc::make_mut(&mut s.etcd.records).leader {
                    leader.record.wait = wait;
                }
            }
            Self::OpenDoors if matches!(s.role(), Some(ServerRole::Primary { .. })) => s.file.barrier = None,
            Self::ForgottenAck => forget_ack(s),
            Self::AcksForOneSync => s.sync_written.clear(),
            Self::DoubtUnheard => hear_no_doubt(s),
            Self::TargetBelieved if claims(s) => {
                let whole = s.whole_now().map(|whole| whole.tli);
                if let (Some(tli), Observed::Known { value: facts, .. }) = (whole, &mut s.server)
                    && let ServerRole::Standby { target, .. } = &mut facts.role
                {
                    *target = RecoveryTarget::Timeline(tli);
                }
            }
            Self::OneAck => spread_acks(s),
            Self::LatestAck => take_the_latest(s),
            Self::MembersBelieved => believe_members(s),
            Self::Chatty => s.memory.published = None,
            Self::OlderForgotten => s.memory.names.iter_mut().for_each(|names| names.in_force.older = Older::These(Vec::new())),
            Self::CopyGoesOn => go_on_as(s),
            Self::PauseIgnored => ignore_pause(s),
            Self::ResumeUnarmed if s.pause_is_settled() => arm_in_mind(s),
            Self::PauseUnsettled if s.holds_paused() => settle_in_mind(s),
            Self::NamesBelieved => believe_names(s),
            Self::PromisesInvented => invent_promises(s),
            Self::PromiseWithdrawn => s.file.promised = Term::ZERO,
            Self::MarkBelieved => {
                if let Some(mark) = s.shown.as_mut().and_then(|shown| shown.mark.as_mut()) {
                    *mark = Lsn::ZERO;
                }
            }
            Self::CutBelieved => believe_cut(s),
            Self::VacantIsDead => take_for_dead(s),
            Self::StartsUnchecked => forget_starts(s),
            Self::AnyGuard => {
                let Some(own) = s.guard().map(|guard| guard.incarnation.clone()) else { return };
                let me = s.myself();
                if let Some(leader) = &mut Arc::make_mut(&mut s.etcd.records).leader
                    && leader.record.holder.replica() == me
                {
                    leader.record.holder.guard = own;
                }
            }
            _ => {}
        }
    }

    /// What is sent instead of what was decided.
    pub(super) fn twist(self, purpose: Purpose, txn: &mut Txn) {
        match self {
            Self::DoubtUnheard if purpose == Purpose::Claim => txn.when.retain(|compare| *compare.key() != Key::Doubt),
            Self::UncheckedMembers if purpose == Purpose::Claim => txn.when.retain(|compare| *compare.key() != Key::Sync),
            Self::SilentAdoption if purpose == Purpose::Adopt => {
                txn.then.retain(|write| !matches!(write, Write::Put(Key::Sync, _)));
                txn.when.retain(|compare| *compare.key() != Key::Sync);
            }
            Self::BurntThough if purpose == Purpose::Prepare => txn.then.iter_mut().for_each(give_up),
            _ => {}
        }
    }

    /// What a decision says beside what is done. `last`: what it let clients do the last time.
    pub(super) fn bend(self, decision: &mut Decision, last: Option<Routing>, now: Moment) {
        match self {
            Self::Silent => decision.reasons.clear(),
            Self::RoutedOn if decision.routing.writes.is_none() => {
                let writes = last.and_then(|last| last.writes);
                decision.routing.writes = writes.map(|writes| Writable { until: now.plus(Span::from_secs(1)), ..writes });
            }
            _ => {}
        }
    }

    /// The history record that is written.
    pub(super) const fn hide(self, record: &mut HistoryRecord) {
        if matches!(self, Self::LossHidden) {
            record.unseen_ms = 0;
        }
    }

    /// The end of WAL that a scan reports.
    pub(super) const fn end(self, end: u64) -> u64 {
        match self {
            Self::EndsByPage => end.next_multiple_of(PAGE),
            _ => end,
        }
    }

    /// What reaches the disk of the node file.
    pub(super) fn forget(self, before: &NodeFile, file: &mut NodeFile) {
        match self {
            Self::ForgottenClaim => file.claimed = before.claimed,
            Self::ForgottenPromise => file.promised = before.promised,
            _ => {}
        }
    }
}

fn take_the_latest(s: &mut Snapshot) {
    let latest = s.peers.acks.values().map(|ack| ack.sent).max();
    latest.into_iter().for_each(|latest| s.peers.acks.values_mut().for_each(|ack| ack.sent = latest));
}

fn forget_ack(s: &mut Snapshot) {
    let (asked, now) = (s.peers.asked.as_ref(), s.now.boot);
    let fresh = |nonce| asked.is_some_and(|asked| asked.ask.nonce == nonce && now.since(asked.at) < Span::from_millis(200));
    s.file.ack = s.file.ack.take().filter(|ack| fresh(ack.nonce.clone()));
}

fn take_for_dead(s: &mut Snapshot) {
    let dead = s.sync().map(|sync| sync.record.term);
    let Some(leader) = &mut Arc::make_mut(&mut s.etcd.records).leader else { return };
    if matches!(leader.record.state, LeaderState::Vacant { .. }) {
        if leader.record.dead != dead {
            leader.record.wal_end = Some(leader.record.lsn);
        }
        leader.record.dead = dead;
    }
}

/// Each peer is taken to have said what one of them said.
fn spread_acks(s: &mut Snapshot) {
    let Some(ack) = s.peers.acks.values().max_by_key(|ack| ack.sent).cloned() else { return };
    let Some(sync) = s.sync().map(|sync| sync.record.clone()) else { return };
    for replica in sync.electable.into_iter().chain(sync.voters) {
        s.peers.acks.insert(replica, ack.clone());
    }
}

/// Each of those who may be elected says that it streams.
fn believe_members(s: &mut Snapshot) {
    let (Some(sync), Some(leader)) = (s.sync().map(|sync| sync.record.clone()), s.leader().map(|leader| leader.record.clone())) else {
        return;
    };
    let records = Arc::make_mut(&mut s.etcd.records);
    let Some(any) = records.members.values().next().cloned() else { return };
    for replica in sync.electable.into_iter().filter(|replica| replica.node != leader.holder.node) {
        let stored = records.members.entry(replica.node).or_insert_with(|| any.clone());
        let member = &mut stored.record;
        (member.data, member.role, member.tli) = (replica.data, MemberRole::Replica, Some(leader.tli));
        member.state = "streaming".to_owned();
    }
}

/// The record that stands under our name is nobody's.
fn go_on_as(s: &mut Snapshot) {
    let (node, agent) = (s.me.node.clone(), s.me.agent.clone());
    let records = Arc::make_mut(&mut s.etcd.records);
    if !s.memory.registered && records.members.get(&node).is_some_and(|said| said.record.agent.as_ref() != Some(&agent)) {
        records.members.remove(&node);
    }
    s.memory.alike = None;
}

fn hear_no_doubt(s: &mut Snapshot) {
    let Some(doubt) = Arc::make_mut(&mut s.etcd.records).doubt.take() else { return };
    let said = |why: &String| doubt.record.node != s.me.node && why.starts_with(&format!("{} says", doubt.record.node));
    s.etcd.suspect = s.etcd.suspect.take().filter(|why| !said(why));
}

fn ignore_pause(s: &mut Snapshot) {
    if s.pause().is_some()
        && let Some(leader) = &mut Arc::make_mut(&mut s.etcd.records).leader
    {
        leader.record.state = LeaderState::Vacant { reason: String::new() };
    }
}

fn arm_in_mind(s: &mut Snapshot) {
    let (term, until) = (s.leader().map_or(Term::ZERO, |leader| leader.record.term), s.now.boot.plus(s.policy.timers().hold));
    let asked = s.etcd.records.intent.is_some();
    if let Observed::Known { value: guard, .. } = &mut s.guard {
        guard.armed = asked.then_some(Armed { term, until });
    }
}

fn settle_in_mind(s: &mut Snapshot) {
    let nonce = s.leader().map(|leader| leader.record.nonce.clone());
    s.lease.unsettled.clear();
    if let (Some(attempt), Some(nonce)) = (&mut s.lease.confirmed, nonce) {
        attempt.nonce = nonce;
    }
}

/// Whether this node has claimed, and nothing but the promotion is left to do.
fn claims(s: &Snapshot) -> bool {
    let mine = |record: &LeaderRecord| record.state == LeaderState::Claimed && record.holder.replica() == s.myself();
    let leader = s.leader().filter(|leader| mine(&leader.record));
    let prepared = leader.zip(s.sync()).is_some_and(|(leader, sync)| sync.record.term == leader.record.term);
    prepared && matches!(s.role(), Some(ServerRole::Standby { .. }))
}

/// A timeline that a promotion has left in use goes as if nobody had it.
fn give_up(write: &mut Write) {
    let Write::Put(Key::Timeline(tli), text) = write else { return };
    let Ok(mut record) = serde_json::from_str::<TimelineRecord>(text) else { return };
    if record.state == TimelineState::Used {
        (record.state, record.history) = (TimelineState::Burnt, format!("# timeline {tli} was given up\n"));
        *text = to_text(&record);
    }
}

/// The settings that were written count, whatever streams.
fn believe_cut(s: &mut Snapshot) {
    let unconfigured = s.configured.as_ref().is_some_and(|configured| configured.follow.is_none());
    if let Observed::Known { value: facts, .. } = &mut s.server
        && let ServerRole::Standby { receiver, conninfo, .. } = &mut facts.role
        && unconfigured
    {
        (*receiver, *conninfo) = (None, String::new());
    }
}

/// The key says of this life only what the file says.
fn forget_starts(s: &mut Snapshot) {
    let (me, file) = (s.me.node.clone(), s.file.clone());
    let Some(mine) = Arc::make_mut(&mut s.etcd.records).nodes.get_mut(&me) else { return };
    let noted = file.boundary.map(|boundary| (boundary.tli, boundary.lsn));
    let ahead = mine.record.tli.is_some_and(|tli| noted.is_none_or(|noted| noted < (tli, mine.record.whole)));
    if mine.record.starts >= file.starts && !s.memory.registered {
        mine.record.starts = file.starts;
        s.memory.registering = true;
    }
    mine.record.starts = mine.record.starts.min(file.starts);
    s.file.told = s.file.told.max(Some(mine.record.starts));
    if mine.record.data == file.data && ahead {
        (mine.record.tli, mine.record.whole) = (noted.map(|(tli, _)| tli), noted.map(|(_, lsn)| lsn).unwrap_or_default());
    }
}

fn believe_names(s: &mut Snapshot) {
    let (Some(run), Some(configured)) = (s.run(), &s.configured) else { return };
    let names = configured.sync_names.clone();
    s.shown = Some(Shown { run, names, checkpoints: true, mark: Some(Lsn::ZERO), at: s.now.boot, known: Moment::ZERO });
}

fn invent_promises(s: &mut Snapshot) {
    let (Some(leader), Some(sync)) = (s.leader(), s.sync()) else { return };
    let (term, voters, postgres) = (leader.record.term, sync.record.voters.clone(), s.me.postgres.clone());
    let promises = Arc::make_mut(&mut s.etcd.records).promises.entry(term).or_default();
    for voter in voters {
        promises.entry(voter.node).or_insert_with(|| Stored {
            record: PromiseRecord {
                v: VERSION,
                data: voter.data,
                tli: TimelineId::FIRST,
                history: String::new(),
                whole: Lsn::ZERO,
                replay_lag: 0,
                postgres: postgres.clone(),
                unfit: None,
            },
            text: String::new(),
            revision: 0,
        });
    }
}
