//! What others did, in one line of a script: `n3 claims term 4`, `n2 leads in term 4 since 0/3000080`, and the like.

use super::base::{self, END, HISTORY_2};
use pgbaton::{
    decide::{
        decision::{ClaimStory, Names},
        snapshot::Snapshot,
        transition::{InForce, Older},
    },
    model::{
        instance::{Cut, ServerRole},
        lsn::Lsn,
        moment::Span,
        node::Replica,
        node_file::Promoted,
        observed::Observed,
        policy::Durability,
        quorum::{NOBODY_CONFIRMS, Quorum},
        record::{
            LeaderRecord, LeaderState, NodeRecord, PromiseRecord, Stored, SyncMode, SyncRecord, TermRecord, TimelineRecord, TimelineState,
            Unknown, VERSION,
        },
        term::Term,
        timeline::TimelineId,
    },
};
use std::sync::Arc;

/// Applies the line, if it is one of these.
pub(crate) fn apply(s: &mut Snapshot, line: &str) -> Result<bool, String> {
    let words: Vec<&str> = line.split(' ').collect();
    let number = |node: &str| node.strip_prefix('n').and_then(|digit| digit.parse::<u32>().ok());
    let Some(node) = number(words[0]) else { return Ok(false) };
    match words[1..] {
        ["claims", "term", term] => leader(s, node, term_of(term)?, LeaderState::Claimed, base::tli(2), END),
        ["leads", "in", "term", term, "since", at] => leads(s, node, term_of(term)?, base::parsed(at)),
        ["has", "promised", "term", term, "with", tli, at] => {
            promise(s, node, term_of(term)?, base::tli(base::parsed(tli)), base::parsed(at))
        }
        ["waits", "for", k, "of", ..] => {
            let voters: Option<Vec<u32>> = words[5..].iter().map(|word| number(word)).collect();
            quorum(s, base::parsed(k), &voters.ok_or("voters are nodes")?);
        }
        ["is", "silent"] => drop(Arc::make_mut(&mut s.etcd.records).members.remove(&base::replica(node).node)),
        ["has", "prepared"] => prepared(s, node)?,
        ["has", "reserved", tli] => reserve(s, node, base::tli(base::parsed(tli)), Term::new(3)),
        _ => return Ok(false),
    }
    Ok(true)
}

fn term_of(text: &str) -> Result<Term, String> {
    text.parse().map(Term::new).map_err(|_| format!("{text:?} is no term"))
}

fn leader(s: &mut Snapshot, node: u32, term: Term, state: LeaderState, tli: TimelineId, lsn: Lsn) {
    let records = Arc::make_mut(&mut s.etcd.records);
    let before = records.leader.clone().unwrap().record;
    let record = LeaderRecord { term, holder: base::holder(node), nonce: base::parsed("L50"), seq: 50, state, tli, lsn, ..before };
    records.leader = Some(Stored::written(record, 150));
    records.term = Some(Stored::written(TermRecord { v: VERSION, term, holder: base::replica(node) }, 150));
}

/// The node was promoted to timeline 3 at that point of timeline 2, and serves.
fn leads(s: &mut Snapshot, node: u32, term: Term, at: Lsn) {
    leader(s, node, term, LeaderState::Serving, base::tli(3), Lsn::new(0x300_0300));
    sync(s, node, term);
    timeline(s, base::tli(3), node, term, TimelineState::Used, Some(at));
}

fn sync(s: &mut Snapshot, node: u32, term: Term) {
    let electable = [2, 3].into_iter().filter(|other| *other != node).map(base::replica).collect();
    let before = s.etcd.records.sync.clone().unwrap().record;
    let record =
        SyncRecord { term, primary: base::replica(node), address: base::address(node), nonce: base::parsed("S2"), electable, ..before };
    Arc::make_mut(&mut s.etcd.records).sync = Some(Stored::written(record, 151));
}

fn timeline(s: &mut Snapshot, tli: TimelineId, node: u32, term: Term, state: TimelineState, switch: Option<Lsn>) {
    let history = switch.map(|at| format!("{HISTORY_2}2\t{at}\tno recovery target specified\n")).unwrap_or_default();
    let owner = base::replica(node);
    let record = TimelineRecord { v: VERSION, owner, term, parent: Some(base::tli(2)), switch, state, history, unknown: Unknown::new() };
    Arc::make_mut(&mut Arc::make_mut(&mut s.etcd.records).timelines).insert(tli, Stored::written(record, 151));
}

/// Commits wait for so many of these, and all say that they are ready for it; on a primary it is proven that nothing else is in force.
fn quorum(s: &mut Snapshot, k: u32, voters: &[u32]) {
    (s.policy.durability, s.policy.quorum_standbys) = (Durability::Quorum, k);
    let quorum = Quorum::new(k, voters.iter().map(|voter| base::replica(*voter)));
    let voters: Vec<Replica> = quorum.members().iter().cloned().collect();
    let before = s.etcd.records.sync.clone().unwrap().record;
    let record = SyncRecord { mode: SyncMode::Quorum, k, electable: voters.clone(), voters, ..before };
    let records = Arc::make_mut(&mut s.etcd.records);
    records.sync = Some(Stored::written(record, 102));
    for node in records.nodes.values_mut() {
        *node = Stored::written(NodeRecord { sync_ready: true, ..node.record.clone() }, node.revision);
    }
    if s.leader().is_some_and(|leader| leader.record.state == LeaderState::Claimed)
        && let Observed::Known { value, .. } = &mut s.guard
    {
        value.cut = Cut::From([base::address(1)].into());
    }
    let primary = matches!(s.role(), Some(ServerRole::Primary { .. }));
    let text = if primary { quorum.names() } else { NOBODY_CONFIRMS.to_owned() };
    if let Some(configured) = &mut s.configured {
        configured.sync_names.clone_from(&text);
    }
    if let Observed::Known { value, .. } = &mut s.server {
        value.sync_names = text;
    }
    let guard = s.guard().map(|guard| guard.incarnation.clone());
    if let (true, Some(guard), Some(run)) = (primary, guard, s.run()) {
        let in_force = InForce { newest: Some(quorum), older: Older::These(Vec::new()) };
        s.memory.names = Some(Names { guard, run, in_force, written: Some(s.now.boot), heard: Some(s.now.boot) });
    }
}

fn reserve(s: &mut Snapshot, node: u32, tli: TimelineId, term: Term) {
    timeline(s, tli, node, term, TimelineState::Reserved, None);
}

fn promise(s: &mut Snapshot, node: u32, term: Term, tli: TimelineId, whole: Lsn) {
    let history =
        if tli == base::tli(2) { HISTORY_2.to_owned() } else { format!("{HISTORY_2}2\t0/3000000\tno recovery target specified\n") };
    let data = base::replica(node).data;
    let record = PromiseRecord { v: VERSION, data, tli, history, whole, replay_lag: 0, postgres: base::address(node), unfit: None };
    Arc::make_mut(&mut s.etcd.records).promises.entry(term).or_default().insert(base::replica(node).node, Stored::written(record, 152));
}

/// Its claim has everything that a promotion to timeline 3 needs.
fn prepared(s: &mut Snapshot, node: u32) -> Result<(), String> {
    let term = s.leader().ok_or("no leader")?.record.term;
    sync(s, node, term);
    reserve(s, node, base::tli(3), term);
    s.file.promoted = Some(Promoted { tli: base::tli(3), term });
    let now = s.now.boot;
    s.memory.claim = Some(ClaimStory {
        lossless: false,
        term,
        why: "n1 fell silent".to_owned(),
        from: Some(base::parsed("n1")),
        former_lsn: Some(END),
        former_hold: None,
        wal_end: None,
        triggered: now.minus(Span::from_millis(100)),
        claimed: Some(now),
        voted: Some(now),
        asked: None,
        promoted: None,
        ran_out: false,
        alone: None,
        given_up: false,
        order: None,
    });
    Ok(())
}
