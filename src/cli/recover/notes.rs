//! What the operator should know before the records are written: above all, what may be lost.

use super::{plan::is_running_primary, witness::Witness};
use crate::model::{
    lsn::Lsn,
    node::{NodeName, Replica},
    node_file::Boundary,
    records::Records,
    timeline::TimelineId,
};
use std::collections::BTreeMap;

/// What would be lost with this choice.
pub(super) fn notes(witnesses: &[Witness], views: &[&Records], chosen: &Witness, position: Boundary) -> Vec<String> {
    let mut notes = witnesses_ahead(witnesses, chosen, position);
    notes.extend(records_ahead(witnesses, views, chosen, position));
    notes.extend(missing_voters(witnesses, views, chosen));
    if views.iter().all(|view| view.nodes.is_empty()) {
        notes.push(
            "Warning: no record names the nodes of this cluster: make sure yourself that no other of them runs as primary".to_owned(),
        );
    }
    if views.iter().filter_map(|view| view.members.get(&chosen.status.node)).any(|member| member.record.tags.no_failover) {
        notes.push(format!("Warning: {} is tagged no_failover, and leads all the same: nobody else may at first", chosen.status.node));
    }
    if !is_running_primary(&chosen.status) {
        notes.push(format!("{} starts as primary once it has claimed", chosen.status.node));
    }
    notes
}

/// Those who answer, and have more.
fn witnesses_ahead(witnesses: &[Witness], chosen: &Witness, position: Boundary) -> Vec<String> {
    let others = witnesses.iter().filter(|witness| witness.status.node != chosen.status.node);
    let known = others.filter_map(|witness| Some((&witness.status.node, witness.status.position?)));
    let ahead = known.filter(|(_, theirs)| order(*theirs) > order(position));
    ahead.map(|(node, theirs)| may_be_lost(&format!("{node} is at"), theirs, chosen, position)).collect()
}

/// What the records say that was there, and that the chosen node does not have.
fn records_ahead(witnesses: &[Witness], views: &[&Records], chosen: &Witness, position: Boundary) -> Vec<String> {
    let ahead = recorded(witnesses, views).into_iter().filter(|(_, (tli, lsn, _))| (*tli, *lsn) > order(position));
    ahead
        .map(|(node, (tli, lsn, source))| {
            let what = match source {
                Source::Noted => format!("{node} had noted"),
                Source::Acknowledged => format!("`leader` says that the last primary {node} had acknowledged up to"),
            };
            may_be_lost(&what, Boundary { tli, lsn }, chosen, position)
        })
        .collect()
}

/// From where a record has a position. At one position `leader` says more: clients were told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// The node's own record: on its disk.
    Noted,
    /// `leader`.
    Acknowledged,
}

/// The newest position that the records have of each node, as far as its own word does not say as much.
fn recorded<'a>(witnesses: &[Witness], views: &[&'a Records]) -> BTreeMap<&'a NodeName, (TimelineId, Lsn, Source)> {
    let own_word =
        |node: &NodeName| witnesses.iter().find(|witness| witness.status.node == *node).and_then(|witness| witness.status.position);
    let leaders = views.iter().copied().filter_map(|view| {
        let leader = &view.leader.as_ref()?.record;
        // A claimant takes over the position of the primary before it, whom `sync` names until it serves itself.
        let last = view.sync.as_ref().map_or(&leader.holder.node, |sync| &sync.record.primary.node);
        Some((last, (leader.tli, leader.lsn, Source::Acknowledged)))
    });
    // Of the last primary also where it answers, and were it the chosen one: what it had acknowledged is gone if it has less now.
    let leader = leaders.max_by_key(|(_, known)| *known);
    let leader = leader.filter(|(node, (tli, lsn, _))| own_word(node).is_none_or(|own| order(own) < (*tli, *lsn)));
    let noted = views.iter().copied().flat_map(|view| &view.nodes).filter(|(node, _)| own_word(node).is_none());
    let noted = noted.filter_map(|(node, stored)| Some((node, (stored.record.tli?, stored.record.whole, Source::Noted))));
    let mut newest = BTreeMap::new();
    for (node, known) in noted.chain(leader) {
        let entry = newest.entry(node).or_insert(known);
        *entry = known.max(*entry);
    }
    newest
}

/// Voters without whom it cannot be known what was acknowledged: only the last primary, and any R of the voters together, have all of it.
fn missing_voters(witnesses: &[Witness], views: &[&Records], chosen: &Witness) -> Option<String> {
    // Within a term `sync` is written again and again.
    let newest = views.iter().filter_map(|view| view.sync.as_ref()).max_by_key(|sync| (sync.record.term, sync.revision))?;
    let sync = &newest.record;
    if !sync.has_voters() || is_life_of(chosen, &sync.primary) {
        return None;
    }
    let quorum = sync.quorum();
    let (there, missing): (Vec<&Replica>, Vec<&Replica>) =
        quorum.members().iter().partition(|voter| witnesses.iter().any(|witness| is_life_of(witness, voter)));
    if there.len() >= quorum.electors() as usize {
        return None;
    }
    let wait = format!("Warning: commits wait for {} of {}", quorum.k(), names(quorum.members()));
    let silent: Vec<&Replica> =
        missing.iter().copied().filter(|voter| witnesses.iter().all(|witness| witness.status.node != voter.node)).collect();
    if silent.is_empty() {
        return Some(format!("{wait}, and the data of {} were replaced: what was acknowledged may be lost", names(missing)));
    }
    let silent = names(silent);
    Some(format!("{wait}, and {silent} did not answer: what was acknowledged may be on them alone; start their agents first"))
}

fn is_life_of(witness: &Witness, replica: &Replica) -> bool {
    witness.status.node == replica.node && witness.status.file.data == replica.data
}

fn names<'a>(replicas: impl IntoIterator<Item = &'a Replica>) -> String {
    let names: Vec<&str> = replicas.into_iter().map(|replica| replica.node.as_str()).collect();
    names.join(", ")
}

fn may_be_lost(what: &str, theirs: Boundary, chosen: &Witness, position: Boundary) -> String {
    let measured = theirs.tli == position.tli && !position.lsn.is_zero();
    let bytes = if measured { theirs.lsn.bytes_ahead_of(position.lsn).to_string() } else { "an unknown amount".to_owned() };
    format!(
        "Warning: {what} {} on timeline {}, {} is at {} on timeline {}: {bytes} may be lost",
        lsn(theirs.lsn),
        theirs.tli,
        chosen.status.node,
        lsn(position.lsn),
        position.tli
    )
}

const fn order(boundary: Boundary) -> (TimelineId, Lsn) {
    (boundary.tli, boundary.lsn)
}

fn lsn(lsn: Lsn) -> String {
    if lsn.is_zero() { "an unknown position".to_owned() } else { lsn.to_string() }
}
