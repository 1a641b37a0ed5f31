//! What is kept in order beside the decisions: file, configuration, slots, member record, history, old promises.

use super::{
    decision::{Action, Configuration, Follow, Published, Purpose, Task},
    draft::Draft,
    durability, flap, ledger, operator, registration, release,
    snapshot::Snapshot,
};
use crate::model::{
    instance::{RecoveryTarget, ServerRole},
    key::{Compare, Key, Txn, Write},
    lsn::Lsn,
    moment::Span,
    node::{NodeName, Replica},
    node_file::NodeFile,
    observed::Observed,
    policy::LONGEST_HOLD,
    record::{HistoryRecord, Lag, LeaderRecord, LeaderState, MemberRecord, MemberRole, PolicyRecord, Unknown, VERSION, to_text},
    term::Term,
    timeline::{TimelineHistory, TimelineId},
};
use std::collections::BTreeMap;

/// What a node says of itself may change so often in the long run.
const CHANGE_COSTS: Span = Span::from_millis(500);

/// So many changes in a row are told at once.
const CHANGES_AT_ONCE: u64 = 8;

/// How often positions are published when nothing else changes.
const POSITIONS_EVERY: Span = Span::from_secs(2);

/// A record that says nothing new is written again after this.
const SAID_AGAIN: Span = Span::from_secs(3);

/// A member whose record is older than this has not said what it should have.
pub const SILENT_AFTER: Span = SAID_AGAIN.plus(Span::from_secs(2));

/// How often the file's floors and boundary are written when nothing else asks for a write.
const FLOORS_EVERY: u64 = 10_000;

/// So long the boundary in the file may lag behind the disk where a set-back disk could cost what was acknowledged, or where nothing else
/// tells how far its primary has come (protocol 1.2, `nodes`).
const NOTED_EVERY: Span = Span::from_secs(10);

/// How far it may lag behind in bytes, in any mode.
pub(super) const NOTED_WITHIN: u64 = 16 << 20;

/// Promises of terms so far back are removed.
const PROMISES_KEPT: u64 = 16;

pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    file(s, d);
    member(s, d);
    flap::tell(s, d);
    if is_serving_primary(s) {
        primary(s, d);
    }
}

fn is_serving_primary(s: &Snapshot) -> bool {
    let serving = s.leader().is_some_and(|leader| leader.record.state == LeaderState::Serving);
    serving && s.authority().is_some() && matches!(s.role(), Some(ServerRole::Primary { .. }))
}

/// The highest term that we saw.
fn file(s: &Snapshot, d: &mut Draft) {
    let Some(leader) = s.leader() else { return };
    if leader.record.term > s.file.term {
        d.act(s, Action::WriteFile(Box::new(NodeFile { term: leader.record.term, ..s.file.clone() })));
        return;
    }
    // Floors and the boundary only help to notice that etcd or our disk went back; a little lag does no harm.
    let drift = s.etcd.records.revision.saturating_sub(s.file.floors.revision);
    let unknown_cluster = s.etcd.records.cluster.as_ref().is_some_and(|cluster| s.file.floors.uuid.as_ref() != Some(&cluster.record.uuid));
    if boundary_to_note(s, d) || (s.etcd_answers() && (unknown_cluster || drift > FLOORS_EVERY)) {
        d.act(s, Action::WriteFile(Box::new(s.file.clone())));
        d.memory.noted = Some(s.now.boot);
    }
}

/// Whether the boundary has moved on so far, or so long ago, that it is worth a write. The file needs no etcd.
fn boundary_to_note(s: &Snapshot, d: &mut Draft) -> bool {
    let (Some(now), noted) = (s.boundary, s.file.boundary) else { return false };
    let behind = noted.filter(|noted| noted.tli == now.tli).map(|noted| now.lsn.bytes_ahead_of(noted.lsn).get());
    if behind.is_none_or(|bytes| bytes > NOTED_WITHIN) {
        return true;
    }
    // An election has better to do than to wait for this write.
    let serving = s.leader().is_some_and(|leader| leader.record.state == LeaderState::Serving);
    // `leader` stands still while its holder goes on: it does not tell what that one's disk must have.
    let silent = matches!(s.etcd.answered, Observed::Unknown { since, .. } if s.now.boot.since(since) >= NOTED_EVERY);
    let untold = s.pause().is_some() || (serving && s.holds() && silent);
    if behind == Some(0) || !(untold || s.is_lossless() && serving) {
        return false;
    }
    let Some(due) = s.memory.noted.map(|at| at.plus(NOTED_EVERY)).filter(|due| *due > s.now.boot) else { return true };
    d.wake(due);
    false
}

/// Whether the managed configuration is in place for this `follow`; writes it where it is not.
pub(super) fn configured(s: &Snapshot, d: &mut Draft, follow: Option<Follow>) -> bool {
    is_configured(s, d, configuration(s, d, follow, RecoveryTarget::Latest))
}

/// The same for a recovery that aims at something else than the latest timeline, and follows nobody.
pub(super) fn configured_for(s: &Snapshot, d: &mut Draft, recovery: RecoveryTarget) -> bool {
    is_configured(s, d, configuration(s, d, None, recovery))
}

fn is_configured(s: &Snapshot, d: &mut Draft, wanted: Configuration) -> bool {
    if s.configured.as_ref() == Some(&wanted) {
        return true;
    }
    d.act(s, Action::Configure(Box::new(wanted)));
    false
}

/// Writes the managed configuration of a primary again, although it was: the server does not show what it says.
pub(super) fn configure_again(s: &Snapshot, d: &mut Draft) {
    let wanted = configuration(s, d, None, RecoveryTarget::Latest);
    d.act(s, Action::Configure(Box::new(wanted)));
}

fn configuration(s: &Snapshot, d: &Draft, follow: Option<Follow>, recovery: RecoveryTarget) -> Configuration {
    Configuration {
        follow,
        recovery,
        application_name: s.myself().application_name(),
        sync_names: durability::sync_names(s, d),
        members_only: durability::members_only(s),
        parameters: s.policy.parameters.clone(),
        hba: s.policy.hba.clone(),
        members: member_hosts(s),
        slots: s.policy.member_slot_retention.clone(),
        wait: s.policy.timers().wait,
    }
}

/// The hosts of all members. One that is away for a while stays: it comes back from there.
fn member_hosts(s: &Snapshot) -> Vec<String> {
    let records = &s.etcd.records;
    let known = s.configured.as_ref().map(|configured| configured.members.as_slice()).unwrap_or_default();
    let mut hosts: Vec<String> = records.members.values().map(|member| member.record.postgres.host.clone()).collect();
    hosts.extend(known.iter().cloned());
    hosts.extend(records.leader.iter().map(|leader| leader.record.holder.postgres.host.clone()));
    hosts.push(s.me.postgres.host.clone());
    hosts.sort();
    hosts.dedup();
    hosts
}

/// What a serving primary keeps in order. None of it is on the way of a lease.
fn primary(s: &Snapshot, d: &mut Draft) {
    let Some(leader) = s.leader() else { return };
    let term = leader.record.term;
    configured(s, d, None);
    // What failed is done again, after a rest.
    let migrated = s.memory.migrated == Some(term) && !s.failures.contains_key(&Task::Migrate);
    if !migrated && d.act(s, Action::Migrate) {
        d.memory.migrated = Some(term);
    }
    slots(s, d);
    let checkpointed = s.memory.checkpointed == Some(term) && !s.failures.contains_key(&Task::Checkpoint);
    if !checkpointed && d.act(s, Action::Checkpoint) {
        d.memory.checkpointed = Some(term);
    }
    history(s, d, term);
    prune(s, d, term);
    operator::rule(s, d);
    policy(s, d);
    d.memory.failed_claims = 0;
    d.memory.handed.clear();
    d.memory.no_claim_before = None;
}

/// A slot for every known node but ourselves; those of forgotten nodes, lost ones, and those away too long go. Foreign slots are never touched.
fn slots(s: &Snapshot, d: &mut Draft) {
    let Some(facts) = s.server() else { return };
    let nodes: Vec<&NodeName> = s.etcd.records.nodes.keys().filter(|node| **node != s.me.node).collect();
    // Whose agent lives is here, whatever its PostgreSQL does: it may be about to stream, and cannot without its slot.
    let alive = s.etcd.records.members.keys().map(|node| (node.clone(), s.now.boot));
    d.memory.seen.retain(|node, _| s.etcd.records.nodes.contains_key(node));
    d.memory.seen.extend(alive);
    let (watched, seen) = (d.memory.watching.map(|(_, since)| since), &d.memory.seen);
    let away = |node: &NodeName| {
        let last = s.confirmed.iter().filter(|(replica, _)| replica.node == *node).map(|(_, at)| *at).max();
        let since = last.max(watched).max(seen.get(node).copied());
        since.is_some_and(|since| s.now.boot.since(since) > s.policy.member_slot_retention.time)
    };
    let wanted: Vec<&NodeName> = nodes.into_iter().filter(|node| !away(node)).collect();
    let have = |node: &NodeName| facts.slots.iter().any(|slot| slot.name == node.slot());
    if let Some(node) = wanted.iter().find(|node| !have(node)) {
        d.act(s, Action::CreateSlot(node.slot()));
        return;
    }
    let ours = facts.slots.iter().filter(|slot| slot.name.is_ours() && !slot.active);
    let unwanted = ours.into_iter().find(|slot| slot.lost || !wanted.iter().any(|node| node.slot() == slot.name));
    if let Some(slot) = unwanted {
        d.because(
            "slot",
            format!(
                "the slot {} is dropped: its member is gone or was away too long, and it holds {} bytes back",
                slot.name, slot.retained
            ),
        );
        d.act(s, Action::DropSlot(slot.name.clone()));
    }
}

fn history(s: &Snapshot, d: &mut Draft, term: Term) {
    let Some(story) = s.memory.claim.as_ref().filter(|story| story.term == term) else { return };
    let recorded = s.memory.recorded == Some(term) && !s.failures.contains_key(&Task::AppendHistory);
    let Some(leader) = s.leader().filter(|_| !recorded) else { return };
    let entry = s.etcd.records.timelines.get(&leader.record.tli).map(|stored| &stored.record);
    let promoted_now = entry.is_some_and(|entry| entry.term == term);
    let switch =
        entry.filter(|_| promoted_now).and_then(|entry| entry.history.parse::<TimelineHistory>().ok()).and_then(|history| history.last());
    let former = story.wal_end.or(story.former_lsn);
    // Who accepts a loss is told of it. Else by what held before this claim: what commits wait for may have changed since.
    let accepted = story.order.as_ref().is_some_and(|order| order.accept_loss);
    let lossless = !accepted && story.lossless;
    let boundless = story.wal_end.is_none() && story.order.as_ref().is_some_and(|order| order.boundless);
    let lost = match (former, switch) {
        (_, Some(_)) if boundless => None,
        _ if lossless => Some(0),
        (Some(former), Some(fork)) => Some(former.bytes_ahead_of(s.layout.boundary(fork.at)).get()),
        (Some(_), None) => Some(0),
        (None, _) => None,
    };
    // What was given out before this timeline began was told of when it did.
    let since = entry.filter(|_| promoted_now).and_then(|entry| entry.parent).unwrap_or(leader.record.tli);
    // A former holder whose record this run of the agent never saw may have had any hold.
    let longest = story.former_hold.unwrap_or(LONGEST_HOLD).max(leader.record.hold).plus(s.policy.timers().renew_every);
    let unseen =
        if lossless || boundless || story.wal_end.is_some() || story.former_lsn.is_none() || !promoted_now { Span::ZERO } else { longest };
    let steps = [
        ("claim", story.claimed),
        ("vote", story.voted),
        ("prepare", story.asked),
        ("promote", story.promoted),
        ("serve", Some(s.now.boot)),
    ];
    let mut before = story.triggered;
    let mut phases = BTreeMap::new();
    for (name, at) in steps {
        if let Some(at) = at {
            phases.insert(name.to_owned(), at.since(before).as_millis());
            before = before.max(at);
        }
    }
    let record = HistoryRecord {
        v: VERSION,
        term,
        primary: s.me.node.clone(),
        from: story.from.clone(),
        why: story.why.clone(),
        by: story.order.as_ref().map(|order| order.by.clone()),
        tli: leader.record.tli,
        switch: switch.map(|fork| fork.at),
        former_lsn: former,
        loss_bound: lost,
        unseen_ms: unseen.as_millis(),
        given_up: ledger::given_up(s, since, leader.record.tli, longest),
        phases,
        at: s.fresh.wall.clone(),
    };
    if d.act(s, Action::AppendHistory(Box::new(record))) {
        d.memory.recorded = Some(term);
    }
}

/// Removes promises that nobody can ask for any more.
fn prune(s: &Snapshot, d: &mut Draft, term: Term) {
    let oldest = Term::new(term.get().saturating_sub(PROMISES_KEPT));
    let old = s.etcd.records.promises.range(..oldest);
    let keys: Vec<Key> = old.flat_map(|(term, nodes)| nodes.keys().map(|node| Key::Promise(*term, node.clone()))).take(64).collect();
    let Some(current) = s.etcd.records.term.as_ref().filter(|_| !keys.is_empty()) else { return };
    let when = vec![Compare::Is(Key::Term, current.text.clone())];
    let then = keys.into_iter().map(Write::Delete).collect();
    d.act(s, Action::Txn(Purpose::Prune, Txn { nonce: s.nonce("prune"), when, then }));
}

/// A policy that somebody has deleted is put back as this agent has read it: else each would go by its own first one from its next start on.
fn policy(s: &Snapshot, d: &mut Draft) {
    let records = &s.etcd.records;
    // One that only a newer version can read is there.
    if records.policy.is_some() || records.unreadable.contains_key(&Key::Policy) || !s.etcd_answers() {
        return;
    }
    let Some(version) = s.memory.policy else {
        d.alarm(
            "policy-missing",
            "the cluster's policy is missing from etcd, and this agent has not read it: each node goes by what it knows; set it by `pgbaton config apply`",
        );
        return;
    };
    d.because("policy", "the cluster's policy is missing from etcd: it is put back as this node has read it");
    let record = PolicyRecord { v: VERSION, version: version.saturating_add(1), policy: s.policy.clone() };
    let then = vec![Write::Put(Key::Policy, to_text(&record))];
    d.act(s, Action::Txn(Purpose::Policy, Txn { nonce: s.nonce("policy"), when: vec![Compare::Missing(Key::Policy)], then }));
}

/// What this node says of itself: at once when something others act on changes, but not again and again; else every two seconds as long as
/// anything does; and now and then when nothing does, so that its silence means something.
pub(super) fn member(s: &Snapshot, d: &mut Draft) {
    if let Some(policy) = &s.etcd.records.policy {
        d.memory.policy = Some(policy.record.version);
    }
    // The record of another one stays that one's.
    if !s.etcd_answers() || registration::is_unsure(s) {
        return;
    }
    let record = MemberRecord { finds_gone: d.memory.finds_gone.clone(), answer: d.memory.answer.clone(), ..member_record(s) };
    let essence = essence(&record);
    let last = s.memory.published.as_ref();
    let paid = last.map_or(s.now.boot, |last| last.paid).max(s.now.boot);
    let soonest = paid.minus(CHANGE_COSTS.times(CHANGES_AT_ONCE));
    let changed = last.is_none_or(|last| last.essence != essence);
    // Whether the primary is gone others wait for.
    let said = s.etcd.records.members.get(&s.me.node).map(|stored| &stored.record);
    let awaited = said.is_none_or(|said| said.finds_gone != record.finds_gone);
    if changed && !awaited && s.now.boot < soonest {
        d.wake(soonest);
        return;
    }
    let due = last.map_or(s.now.boot, |last| last.at.plus(POSITIONS_EVERY));
    let shown = said.is_some_and(|said| *said == record);
    let again = last.map_or(s.now.boot, |last| last.at.plus(SAID_AGAIN));
    if changed || s.now.boot >= again || (s.now.boot >= due && !shown) {
        if d.act(s, Action::PutMember(Box::new(record))) {
            d.memory.published = Some(Published {
                essence,
                at: s.now.boot,
                paid: paid.plus(CHANGE_COSTS).min(s.now.boot.plus(CHANGE_COSTS.times(CHANGES_AT_ONCE + 1))),
            });
        }
    } else {
        d.wake(if shown { again } else { due });
    }
}

fn essence(record: &MemberRecord) -> String {
    format!(
        "{} {} {:?} {} {:?} {:?} {} {} {} {:?} {:?} {:?} {:?}",
        record.data,
        record.postgres,
        record.role,
        record.state,
        record.tli,
        record.tags,
        record.pending_restart,
        record.roles_missing,
        record.acknowledges_otherwise,
        record.oldest_wal,
        record.finds_gone,
        record.acts_in,
        record.answer
    )
}

fn member_record(s: &Snapshot) -> MemberRecord {
    let (role, tli, lsn, replay, lag) = positions(s);
    MemberRecord {
        v: VERSION,
        data: s.file.data.clone(),
        postgres: s.me.postgres.clone(),
        agent: Some(s.me.agent.clone()),
        boot: s.me.boot_is_named.then(|| s.me.boot.clone()),
        api: s.me.api.clone(),
        role,
        state: s.doing().to_owned(),
        tli,
        lsn,
        replay,
        lag,
        replicas: replicas(s),
        term: s.file.term,
        zone: s.me.zone.clone(),
        tags: s.me.tags.clone(),
        version: s.me.version.clone(),
        postgres_version: s.server().map_or_else(|| s.me.major.to_string(), |facts| version(facts.version_num)),
        fencing: fencing(s),
        pending_restart: s.server().is_some_and(|facts| !facts.pending_restart.is_empty()),
        roles_missing: roles_missing(s),
        finds_gone: None,
        acts_in: s.leader().filter(|leader| s.holds() || ends_pause(s, &leader.record)).map(|leader| leader.record.term),
        answer: None,
        oldest_wal: s.server().and_then(|facts| facts.oldest_wal),
        acknowledges_otherwise: s.acknowledges_otherwise(),
        unknown: Unknown::new(),
    }
}

/// Whether this agent alone can end the pause: it has seen the guard of before die in it, and PostgreSQL with that.
fn ends_pause(s: &Snapshot, leader: &LeaderRecord) -> bool {
    matches!(leader.state, LeaderState::Paused(_)) && release::died_here(s, leader)
}

/// Only the first term can lack them: later primaries have them from their predecessor. Told from the claim on, so that whoever
/// sees this node serve knows it.
fn roles_missing(s: &Snapshot) -> bool {
    let Some(leader) = s.leader().map(|leader| &leader.record) else { return false };
    let first = leader.term == Term::new(1) && leader.holder.node == s.me.node;
    let made = s.memory.migrated == Some(leader.term) && !s.busy(Task::Migrate) && !s.failures.contains_key(&Task::Migrate);
    first && !made
}

fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

fn positions(s: &Snapshot) -> (MemberRole, Option<TimelineId>, Lsn, Lsn, Lag) {
    match s.role() {
        Some(ServerRole::Primary { tli, insert, .. }) => (MemberRole::Primary, Some(*tli), *insert, *insert, Lag::default()),
        Some(ServerRole::Standby { tli, receive, replay, receiver, replay_ms, .. }) => {
            // After a restart the receive position is unset or a segment's start (EXP-25): what was replayed was received.
            let received = receive.unwrap_or_default().max(*replay);
            let ahead = receiver.as_ref().and_then(|receiver| receiver.latest_end);
            let known = s.primary_position().map(|(_, lsn)| lsn);
            let end = ahead.max(known).unwrap_or(received);
            (MemberRole::Replica, Some(*tli), received, *replay, lag(end, received, *replay, *replay_ms))
        }
        None => (MemberRole::Down, None, Default::default(), Default::default(), Lag::default()),
    }
}

/// The lag of those who stream from this primary.
fn replicas(s: &Snapshot) -> BTreeMap<NodeName, Lag> {
    let Some(facts) = s.server() else { return BTreeMap::new() };
    let ServerRole::Primary { insert, .. } = &facts.role else { return BTreeMap::new() };
    let rows = facts.walsenders.iter().filter(|row| row.streaming).filter_map(|row| {
        let replica = Replica::from_application_name(&row.application_name)?;
        Some((replica.node, row.lag(*insert)))
    });
    rows.collect()
}

/// The lag of a replica as it sees itself, against the newest position of its primary. What was received is what was flushed: a
/// walreceiver advances its receive position only after a flush.
fn lag(newest: Lsn, received: Lsn, replay: Lsn, replay_ms: u64) -> Lag {
    let behind = |lsn: Lsn| Some(newest.bytes_ahead_of(lsn).get());
    Lag { sent: None, write: behind(received), flush: behind(received), replay: behind(replay), replay_ms: Some(replay_ms) }
}

fn fencing(s: &Snapshot) -> String {
    let Some(guard) = s.guard() else { return "none: no guard".to_owned() };
    let kill = guard.kill;
    match (guard.fenced, s.is_fenced()) {
        (true, true) => format!("kernel deadline ({kill})"),
        (true, false) => format!("reduced: {kill} needs a process that is scheduled"),
        (false, _) => format!("none: the self-test of {kill} failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_counts_each_stage_from_the_newest_position_of_its_primary() {
        let counted = lag(Lsn::new(1_000), Lsn::new(850), Lsn::new(800), 40);
        assert_eq!(counted, Lag { sent: None, write: Some(150), flush: Some(150), replay: Some(200), replay_ms: Some(40) });
        assert_eq!(lag(Lsn::new(700), Lsn::new(850), Lsn::new(800), 0).replay, Some(0), "ahead of what is known is not behind");
    }
}
