//! PURE. Whether what an operator asks for can be carried out at all: what is missing, and what would make it possible.

use crate::model::{
    node::NodeName,
    record::{LeaderRecord, LeaderState, MemberRole},
    records::Records,
    request::Request,
};

/// Why nobody could carry this out now. What is possible may still be refused by the node that it falls to: it knows more.
pub(super) fn impossible(records: &Records, leader: &LeaderRecord, request: &Request) -> Option<String> {
    match request {
        Request::Remove { node } => cannot_remove(records, leader, node),
        Request::Pause { .. } => cannot_pause(records, leader),
        Request::Resume { assert_dead } => cannot_resume(records, leader, *assert_dead),
        Request::Failover { to, accept_loss, assert_dead } => cannot_fail_over(records, leader, to, *accept_loss, *assert_dead),
        Request::Acknowledge => {
            let stopped = leader.failovers.as_ref().is_some_and(|failovers| failovers.stopped);
            (!stopped).then(|| "nothing is to be acknowledged: failovers go on by themselves".to_owned())
        }
    }
}

fn cannot_remove(records: &Records, leader: &LeaderRecord, node: &NodeName) -> Option<String> {
    if !matches!(leader.state, LeaderState::Serving | LeaderState::Paused(_)) {
        return Some("no primary serves at the moment: nobody could carry it out".to_owned());
    }
    if *node == leader.holder.node {
        return Some(format!("{node} is the primary and cannot be removed"));
    }
    let known = records.nodes.contains_key(node) || records.members.contains_key(node);
    if !known {
        return Some(format!("no node {node} is known to this cluster"));
    }
    let needed = records.policy.as_ref()?.record.policy.quorum_standbys;
    records.cannot_spare(leader, node, needed).map(|why| format!("{node} cannot be removed: {why}"))
}

fn cannot_pause(records: &Records, leader: &LeaderRecord) -> Option<String> {
    match &leader.state {
        LeaderState::Serving if !records.acts(leader) => Some(format!(
            "the agent of {} is not there, or does not act in term {} yet, and nobody else pauses for it: start it, or ask again",
            leader.holder.node, leader.term
        )),
        LeaderState::Serving | LeaderState::Vacant { .. } => None,
        LeaderState::Paused(pause) => Some(format!("the cluster is paused already, by {} since {}: {}", pause.by, pause.at, pause.reason)),
        LeaderState::Claimed | LeaderState::Handoff { .. } => {
            Some(format!("{} is taking over in term {}: ask again once it serves, or has given up", leader.holder.node, leader.term))
        }
        LeaderState::Foreign { name } => Some(newer(name)),
    }
}

fn cannot_resume(records: &Records, leader: &LeaderRecord, assert_dead: bool) -> Option<String> {
    let LeaderState::Paused(pause) = &leader.state else { return Some("the cluster is not paused".to_owned()) };
    if pause.vacant.is_some() {
        return None;
    }
    unproven(records, leader, assert_dead)
}

/// A holder that is gone ends nothing itself; one that is there needs nobody's word.
fn unproven(records: &Records, leader: &LeaderRecord, assert_dead: bool) -> Option<String> {
    let holder = &leader.holder.node;
    let lives = records.acts(leader);
    match (lives, assert_dead) {
        (true, true) => {
            Some(format!("the agent of {holder} lives and does this itself: --assert-dead is for a node that is gone; ask without"))
        }
        (false, false) => Some(format!(
            "{holder} holds the paused cluster and its agent is not there: start it again, or make sure that PostgreSQL is dead there and ask \
             with --assert-dead"
        )),
        _ => None,
    }
}

fn cannot_fail_over(records: &Records, leader: &LeaderRecord, to: &NodeName, accept_loss: bool, assert_dead: bool) -> Option<String> {
    if let LeaderState::Foreign { name } = &leader.state {
        return Some(newer(name));
    }
    let Some(node) = records.nodes.get(to) else { return Some(format!("no node {to} is known to this cluster")) };
    let held = matches!(leader.state, LeaderState::Serving | LeaderState::Paused(_)) && records.acts(leader);
    let Some(member) = records.members.get(to) else {
        // One whose disk was set back says nothing, and waits for just these words (`data-went-back`).
        let waits = accept_loss && assert_dead && !held;
        return (!waits).then(|| {
            format!(
                "the agent of {to} says nothing: it has to run, and to reach etcd, to take over. One that waits there with `data-went-back` does, \
                 with --accept-loss and --assert-dead"
            )
        });
    };
    if *to == leader.holder.node && held {
        return Some(format!("{to} is the primary already"));
    }
    if member.record.tags.no_failover {
        return Some(format!("{to} is tagged no_failover: take the tag away first"));
    }
    // With both words it is started, to take over: it may have been stopped to be rewound to a primary that is gone since.
    let started = member.record.role == MemberRole::Down && accept_loss && assert_dead;
    if member.record.role != MemberRole::Replica && *to != leader.holder.node && !started {
        return Some(format!("PostgreSQL does not run as a standby on {to} ({})", member.record.state));
    }
    if let (LeaderState::Paused(pause), false) = (&leader.state, held)
        && pause.vacant.is_none()
        && !assert_dead
    {
        return unproven(records, leader, false);
    }
    if assert_dead && held {
        return unproven(records, leader, true);
    }
    let sync = records.sync.as_ref().map(|sync| &sync.record)?;
    let owner = sync.primary.node == *to;
    let listed = sync.electable.iter().any(|replica| replica.node == *to && replica.data == node.record.data);
    if listed || owner {
        return None;
    }
    let names: Vec<&str> = sync.electable.iter().map(|replica| replica.node.as_str()).collect();
    let may = if names.is_empty() { "nobody may".to_owned() } else { format!("{} may", names.join(", ")) };
    if held {
        return Some(format!("{to} may not take over ({may}): it may once it streams from {}", leader.holder.node));
    }
    let dead = leader.dead == Some(sync.term) || assert_dead;
    let lacks = match (accept_loss, dead) {
        (true, true) => return None,
        (false, true) => "--accept-loss",
        (true, false) => "--assert-dead",
        (false, false) => "--accept-loss and --assert-dead",
    };
    Some(format!(
        "{to} may not take over ({may}): it may lack what was acknowledged; it may with {lacks}, once you made sure of what they say"
    ))
}

fn newer(name: &str) -> String {
    format!("the leader record is in state {name:?}, which this version does not know: upgrade this node")
}
