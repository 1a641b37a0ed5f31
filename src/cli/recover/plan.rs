//! The records to be written, from what the nodes know; or everything that speaks against it. Reads nothing, asks nobody.

use super::{notes::notes, witness::Witness};
use crate::{
    agent::change::Stamp,
    api::status::Status,
    model::{
        key::Key,
        node::{Incarnation, NodeName, Replica},
        node_file::Boundary,
        record::{
            BaseTimelines, ClusterRecord, Holder, LeaderRecord, LeaderState, MemberRole, PolicyRecord, SyncMode, SyncRecord, TermRecord,
            TimelineRecord, TimelineState, Unknown, VERSION, to_text,
        },
        records::Records,
        term::Term,
        timeline::TimelineId,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// What the operator says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Who is to be primary.
    pub primary: Option<NodeName>,
    /// Whose PostgreSQL he has made sure is dead and stays dead.
    pub assert_dead: BTreeSet<NodeName>,
}

/// What will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The only node that may become primary.
    pub primary: Replica,
    /// Above every term that any node knows.
    pub term: Term,
    /// One more than any node knows.
    pub generation: u64,
    /// Key and text; `leader` comes last.
    pub records: Vec<(Key, String)>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A status that is older says nothing of what lives now.
const FRESH_SECONDS: f64 = 5.0;

/// Makes the records.
///
/// # Errors
/// Everything that speaks against it, a sentence each.
pub fn plan(witnesses: &[Witness], there: &Records, choice: &Choice, stamp: &Stamp) -> Result<Plan, Vec<String>> {
    let mut against = Vec::new();
    if witnesses.is_empty() {
        return Err(vec!["no agent of this cluster answers: start at least that of the node that is to be primary".to_owned()]);
    }
    if let Some(why) = nothing_to_recover(witnesses, there) {
        against.push(why);
    }
    let views: Vec<&Records> = witnesses.iter().map(|witness| &witness.records).chain([there]).collect();
    let uuids: BTreeSet<Incarnation> = witnesses.iter().filter_map(|witness| witness.status.file.floors.uuid.clone()).collect();
    if uuids.len() > 1 {
        against.push("the nodes belong to different clusters: their files name different uuids".to_owned());
    }
    let chosen = match choose(witnesses, &views, choice) {
        Ok(chosen) => Some(chosen),
        Err(why) => {
            against.push(why);
            None
        }
    };
    if let Some(chosen) = chosen {
        against.extend(unproven(witnesses, &views, chosen, choice));
        against.extend(bound(witnesses, chosen));
        if chosen.status.file.operation.is_some() {
            against.push(format!("the data directory of {} is not whole: an operation on it was interrupted", chosen.status.node));
        }
        if let Some(why) = &chosen.status.falls_short {
            against.push(format!("nobody can lead from the data of {}: {why}", chosen.status.node));
        }
        if chosen.status.position.is_none() {
            against.push(format!(
                "on which timeline {} is, is not known: its data directory is empty, or was not looked at yet",
                chosen.status.node
            ));
        }
    }
    match (chosen, chosen.and_then(|chosen| chosen.status.position)) {
        (Some(chosen), Some(position)) if against.is_empty() => written(witnesses, &views, chosen, position, stamp),
        _ => Err(against),
    }
}

/// Where every node that answers believes etcd, and etcd is whole, there is nothing to repair.
fn nothing_to_recover(witnesses: &[Witness], there: &Records) -> Option<String> {
    let whole = there.cluster.is_some() && there.leader.is_some() && there.sync.is_some() && there.term.is_some();
    let believed = witnesses.iter().all(|witness| witness.status.etcd.suspect.is_none());
    (whole && believed).then(|| "there is nothing to recover: the records are there, and every node that answers believes them".to_owned())
}

pub(super) fn is_running_primary(status: &Status) -> bool {
    status.role == MemberRole::Primary && status.age_seconds < FRESH_SECONDS
}

/// The node that is to be primary: the running one, the named one, or the last one by the newest record.
fn choose<'a>(witnesses: &'a [Witness], views: &[&Records], choice: &Choice) -> Result<&'a Witness, String> {
    let running: Vec<&Witness> = witnesses.iter().filter(|witness| is_running_primary(&witness.status)).collect();
    if let [one, other, ..] = running.as_slice() {
        return Err(format!("{} and {} both run as primary: stop one of them first", one.status.node, other.status.node));
    }
    let named = choice.primary.as_ref();
    if let Some(running) = running.first() {
        return match named.filter(|named| **named != running.status.node) {
            Some(named) => Err(format!("{} runs as primary: it has to be stopped before {named} may be primary", running.status.node)),
            None => Ok(running),
        };
    }
    let last = views.iter().filter_map(|view| view.sync.as_ref()).max_by_key(|sync| sync.record.term).map(|sync| &sync.record.primary.node);
    let Some(name) = named.or(last) else {
        return Err("no node knows who was the last primary: name one with --primary".to_owned());
    };
    witnesses
        .iter()
        .find(|witness| witness.status.node == *name)
        .ok_or_else(|| format!("{name} does not answer: start its agent, or name another node with --primary"))
}

/// Every node that may be a primary, and whose death is not proven.
///
/// The running primary needs no proof of others, unless one of them claimed after it.
fn unproven(witnesses: &[Witness], views: &[&Records], chosen: &Witness, choice: &Choice) -> Vec<String> {
    let me = &chosen.status.node;
    if is_running_primary(&chosen.status) {
        let own = chosen.status.file.claimed.unwrap_or(Term::ZERO);
        let later = holders(witnesses, views).into_iter().filter(|(node, term)| node != me && *term > own);
        let later = later.filter(|(node, _)| !choice.assert_dead.contains(node) && !is_proven(witnesses, node));
        return later
            .map(|(node, term)| {
                format!("{node} claimed term {term}, after {me}: its PostgreSQL has to be dead. Start its agent, or --assert-dead {node}")
            })
            .collect();
    }
    let held: BTreeSet<NodeName> = holders(witnesses, views).into_iter().map(|(node, _)| node).collect();
    let mut suspects = held.clone();
    suspects.extend(views.iter().flat_map(|view| view.nodes.keys().chain(view.members.keys()).cloned()));
    suspects.remove(me);
    let open = suspects.into_iter().filter(|node| !choice.assert_dead.contains(node) && !is_proven(witnesses, node));
    open.map(|node| {
        let what = if held.contains(&node) { "was primary or claimed to be" } else { "belongs to the cluster" };
        let asked = witnesses.iter().any(|witness| witness.status.node == node);
        let why = if asked { "its agent does not say that its PostgreSQL is stopped or in recovery" } else { "its agent does not answer" };
        format!("{node} {what}, and {why}: make sure that its PostgreSQL is dead and stays dead, then --assert-dead {node}")
    })
    .collect()
}

/// Whoever has agreed, a moment ago, not to follow another one than a primary that etcd does not answer: that one acts by this word.
fn bound(witnesses: &[Witness], chosen: &Witness) -> Vec<String> {
    let words = witnesses.iter().filter_map(|witness| Some((&witness.status.node, witness.status.bound.as_ref()?)));
    let others = words.filter(|(_, word)| word.node != chosen.status.node && word.seconds_left > 0.0);
    others
        .map(|(node, word)| {
            format!(
                "{} goes on as primary in term {} without etcd, by the word of {node}, which binds for {:.1}s more: choose it, or stop it and wait \
                 for so long",
                word.node, word.term, word.seconds_left
            )
        })
        .collect()
}

/// Every node that any reachable file or record knows as a holder, with the newest such term.
fn holders(witnesses: &[Witness], views: &[&Records]) -> BTreeSet<(NodeName, Term)> {
    let files = witnesses.iter().filter_map(|witness| Some((witness.status.node.clone(), witness.status.file.claimed?)));
    // Whom a node has agreed not to follow may serve without etcd, and show in no record that is left.
    let acked = witnesses.iter().filter_map(|witness| witness.status.file.ack.as_ref()).map(|ack| (ack.holder.node.clone(), ack.term));
    let records = views.iter().flat_map(|view| {
        let leader = view.leader.iter().map(|leader| (leader.record.holder.node.clone(), leader.record.term));
        let sync = view.sync.iter().map(|sync| (sync.record.primary.node.clone(), sync.record.term));
        let term = view.term.iter().map(|term| (term.record.holder.node.clone(), term.record.term));
        leader.chain(sync).chain(term)
    });
    files.chain(acked).chain(records).collect()
}

/// Whether the node itself says, lately, that its PostgreSQL is no primary, and that it may not start one: nothing lives, or it is in recovery, and
/// no deadline runs. One that crashed may be about to be started again, in etcd's silence too.
fn is_proven(witnesses: &[Witness], node: &NodeName) -> bool {
    let acts = |status: &Status| status.fencing.armed_seconds_left.is_some_and(|left| left > 0.0);
    let down = |status: &Status| status.verified_empty || status.role == MemberRole::Replica;
    let own_word = |status: &Status| status.age_seconds < FRESH_SECONDS && down(status) && !acts(status);
    witnesses.iter().any(|witness| witness.status.node == *node && own_word(&witness.status))
}

fn written(witnesses: &[Witness], views: &[&Records], chosen: &Witness, position: Boundary, stamp: &Stamp) -> Result<Plan, Vec<String>> {
    let status = &chosen.status;
    let primary = Replica::new(status.node.clone(), status.file.data.clone());
    let term = highest_term(witnesses, views).next();
    let best = views.iter().copied().max_by_key(|view| {
        let generation = view.cluster.as_ref().map_or(0, |cluster| cluster.record.generation);
        (generation, view.leader.as_ref().map_or(Term::ZERO, |leader| leader.record.term), view.revision)
    });
    let best = best.cloned().unwrap_or_default();
    let cluster = cluster(witnesses, views, chosen, stamp).map_err(|why| vec![why])?;
    let generation = cluster.generation;
    let mut notes = notes(witnesses, views, chosen, position);
    let owner = if owns(views, chosen, &primary, position) { primary.clone() } else { nobody(&primary) };
    let mut records = ledger(&best, chosen, &owner, position, witnesses, &mut notes);
    let policy = policy(&best, chosen);
    let timers = policy.policy.timers();
    records.push((Key::Policy, best.policy.as_ref().map_or_else(|| to_text(&policy), |stored| stored.text.clone())));
    let leader = LeaderRecord {
        term,
        holder: Holder {
            node: primary.node.clone(),
            data: primary.data.clone(),
            // No guard's: whoever follows claims, as the owner or as the one electable node.
            guard: stamp.nonce.as_str().parse().map_err(|error| vec![format!("{error}")])?,
            postgres: chosen.postgres.clone(),
        },
        nonce: stamp.nonce.clone(),
        seq: highest_seq(witnesses, views).saturating_add(1),
        hold: timers.hold,
        wait: timers.wait,
        tli: position.tli,
        lsn: position.lsn,
        dead: None,
        wal_end: None,
        state: LeaderState::Vacant { reason: "etcd was recovered".to_owned() },
        failovers: None,
        unknown: Unknown::new(),
    };
    let sync = SyncRecord {
        v: VERSION,
        // Its own last claim makes the last primary the owner, who starts in place. Anybody else promotes to a timeline of its own.
        term: status.file.claimed.filter(|_| owns(views, chosen, &primary, position)).unwrap_or(term),
        nonce: stamp.nonce.clone(),
        primary: primary.clone(),
        address: chosen.postgres.clone(),
        mode: SyncMode::Async,
        k: 0,
        voters: Vec::new(),
        electable: vec![primary.clone()],
        unknown: Unknown::new(),
    };
    records.push((Key::Term, to_text(&TermRecord { v: VERSION, term, holder: primary.clone() })));
    records.push((Key::Sync, to_text(&sync)));
    records.push((Key::Cluster, to_text(&cluster)));
    // Without it nobody claims: by then nothing may be missing.
    records.push((Key::Leader, to_text(&leader)));
    Ok(Plan { primary, term, generation, records, notes })
}

/// Whether the timeline that the node is on is its own: it may go on with it without a promotion.
///
/// A standby that did so would write a second history under one id, which nothing could tell apart later (protocol I3).
fn owns(views: &[&Records], chosen: &Witness, primary: &Replica, position: Boundary) -> bool {
    let promoted = chosen.status.file.promoted.is_some_and(|promoted| promoted.tli == position.tli);
    let newest =
        views.iter().filter_map(|view| Some((view.sync.as_ref()?, view.leader.as_ref()?))).max_by_key(|(sync, _)| sync.record.term);
    let recorded = newest.is_some_and(|(sync, leader)| sync.record.primary == *primary && leader.record.tli == position.tli);
    promoted || recorded || is_running_primary(&chosen.status)
}

/// A life that no data directory has: a timeline of it is nobody's to go on with.
fn nobody(primary: &Replica) -> Replica {
    let data = "00000000".parse().unwrap_or_else(|_| primary.data.clone());
    Replica::new(primary.node.clone(), data)
}

fn highest_term(witnesses: &[Witness], views: &[&Records]) -> Term {
    let files = witnesses.iter().flat_map(|witness| {
        let file = &witness.status.file;
        [
            Some(file.term),
            Some(file.promised),
            file.claimed,
            file.demoted,
            file.promoted.map(|promoted| promoted.term),
            Some(witness.status.term),
        ]
    });
    let records = views.iter().flat_map(|view| {
        let leader = view.leader.as_ref().map(|leader| leader.record.term);
        let term = view.term.as_ref().map(|term| term.record.term);
        let sync = view.sync.as_ref().map(|sync| sync.record.term);
        [leader, term, sync, view.promises.keys().next_back().copied()]
    });
    files.chain(records).flatten().max().unwrap_or(Term::ZERO)
}

fn highest_seq(witnesses: &[Witness], views: &[&Records]) -> u64 {
    let files = witnesses.iter().map(|witness| witness.status.file.floors.seq);
    let records = views.iter().filter_map(|view| view.leader.as_ref()).map(|leader| leader.record.seq);
    files.chain(records).max().unwrap_or_default()
}

fn cluster(witnesses: &[Witness], views: &[&Records], chosen: &Witness, stamp: &Stamp) -> Result<ClusterRecord, String> {
    let uuid = witnesses.iter().find_map(|witness| witness.status.file.floors.uuid.clone());
    let fits = |record: &ClusterRecord| uuid.as_ref().is_none_or(|uuid| record.uuid == *uuid);
    let records = views.iter().filter_map(|view| view.cluster.as_ref()).map(|cluster| &cluster.record);
    let known = records.filter(|record| fits(record)).max_by_key(|record| record.generation).cloned();
    let highest = witnesses.iter().map(|witness| witness.status.file.floors.generation.max(witness.status.etcd.generation)).max();
    let generation = known.as_ref().map_or(0, |known| known.generation).max(highest.unwrap_or_default()).saturating_add(1);
    if let Some(known) = known {
        return Ok(ClusterRecord { generation, ..known });
    }
    let Some(uuid) = uuid else { return Err("no node has ever been a member of this cluster: there is nothing to recover".to_owned()) };
    let Some(system_id) = chosen.status.system_id else {
        return Err(format!(
            "the system identifier of the data is not known: start PostgreSQL or the agent of {} once",
            chosen.status.node
        ));
    };
    let initialised_by = chosen.status.node.clone();
    Ok(ClusterRecord {
        v: VERSION,
        system_id,
        uuid,
        generation,
        initialised_by,
        initialised_at: stamp.wall.clone(),
        unknown: Unknown::new(),
    })
}

fn policy(best: &Records, chosen: &Witness) -> PolicyRecord {
    best.policy.as_ref().map_or_else(
        || PolicyRecord { v: VERSION, version: 1, policy: chosen.policy.clone().unwrap_or_default() },
        |stored| stored.record.clone(),
    )
}

/// The ledger that a node knows; where it does not reach the timeline of the new primary, what that node's own history files say.
fn ledger(
    best: &Records,
    chosen: &Witness,
    owner: &Replica,
    position: Boundary,
    witnesses: &[Witness],
    notes: &mut Vec<String>,
) -> Vec<(Key, String)> {
    let based = best.base.as_ref().is_some_and(|base| base.record.newest >= position.tli);
    let entry_of = |tli: &TimelineId, entry: &TimelineRecord| entry.chosen(*tli, position, owner, &chosen.histories);
    let entries: BTreeMap<TimelineId, TimelineRecord> =
        best.timelines.iter().map(|(tli, stored)| (*tli, entry_of(tli, &stored.record))).collect();
    let used = entries.get(&position.tli).is_some_and(|entry| entry.state != TimelineState::Burnt);
    let mut records: Vec<(Key, String)> = Vec::new();
    for (tli, stored) in best.timelines.iter() {
        let entry = entries.get(tli).filter(|entry| **entry != stored.record);
        if let Some(entry) = entry {
            let becomes = if entry.state == TimelineState::Burnt { "is given up" } else { "had been given up, and counts again" };
            notes.push(format!("timeline {tli} of {} {becomes}: {} has another history", stored.record.owner.node, chosen.status.node));
        }
        records.push((Key::Timeline(*tli), entry.map_or_else(|| stored.text.clone(), to_text)));
    }
    if based || used {
        records.extend(best.base.as_ref().map(|base| (Key::TimelineBase, base.text.clone())));
    } else {
        notes.push(format!("the ledger of timelines is made from the history files of {}", chosen.status.node));
        let histories = chosen.histories.iter().filter(|(tli, _)| **tli <= position.tli).map(|(tli, text)| (*tli, text.clone())).collect();
        let base = BaseTimelines { v: VERSION, newest: position.tli, owner: owner.clone(), histories, unknown: Unknown::new() };
        records.push((Key::TimelineBase, to_text(&base)));
    }
    // Ids that somebody promoted to, and that the ledger does not have, must never be given out again.
    let known = |tli: TimelineId| tli <= position.tli || best.timelines.contains_key(&tli);
    let promoted: BTreeSet<(TimelineId, Term, Replica)> = witnesses
        .iter()
        .filter_map(|witness| {
            let promoted = witness.status.file.promoted?;
            let owner = Replica::new(witness.status.node.clone(), witness.status.file.data.clone());
            (!known(promoted.tli)).then_some((promoted.tli, promoted.term, owner))
        })
        .collect();
    for (tli, term, owner) in promoted {
        notes.push(format!("timeline {tli}, to which {} promoted itself in term {term}, is given up", owner.node));
        let record = TimelineRecord {
            v: VERSION,
            owner,
            term,
            parent: None,
            switch: None,
            state: TimelineState::Burnt,
            history: format!("# timeline {tli} was given up in term {term}\n"),
            unknown: Unknown::new(),
        };
        records.push((Key::Timeline(tli), to_text(&record)));
    }
    records
}
