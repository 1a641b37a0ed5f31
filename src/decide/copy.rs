//! A fresh copy of another node's data: from whom, to where, and that it is never the last one that is overwritten (protocol 1.13 d).

use super::{
    decision::{Action, RewindPlan, Source, Task},
    draft::Draft,
    failsafe,
    snapshot::{CopyPlace, Snapshot},
};
use crate::model::{
    instance::DataDir,
    moment::Span,
    node::{NodeName, Replica},
    node_file::{ClonePlace, NodeFile, Operation},
    policy::Reclone,
    record::{LeaderRecord, LeaderState, MemberRecord, MemberRole},
    timeline::Fork,
};

/// So long what was measured for a copy holds: data grow, and operators make room.
const MEASURED_FOR: Span = Span::from_secs(60);

/// A fresh copy in place of data that cannot follow: only where the policy allows it. `plan`: how they went on by themselves.
///
/// `false`: no copy can be made, and an alarm says why.
pub(super) fn reclone(s: &Snapshot, d: &mut Draft, target: &LeaderRecord, why: &str, plan: Option<RewindPlan>) -> bool {
    if s.policy.reclone == Reclone::Never {
        d.alarm(
            "needs-copy",
            format!("this node cannot follow {}: {why}. Its data needs to be replaced by a copy: set the policy's reclone, or empty the directory", target.holder.node),
        );
        return false;
    }
    begin(s, d, target, why, plan)
}

/// As [`reclone`], whatever the policy says.
pub(super) fn begin(s: &Snapshot, d: &mut Draft, target: &LeaderRecord, why: &str, plan: Option<RewindPlan>) -> bool {
    if target.state != LeaderState::Serving {
        d.waits("clone", format!("a copy is needed ({why}); waits until {} serves", target.holder.node));
        return true;
    }
    if s.etcd.records.members.get(&target.holder.node).is_some_and(|stored| stored.record.roles_missing) {
        d.waits("clone", format!("a copy is needed ({why}); waits until {} has made the roles by which others log in", target.holder.node));
        return true;
    }
    let Some(disk) = s.disk() else {
        d.waits("inspect", format!("a copy is needed ({why}): the data directory is being inspected"));
        d.act(s, Action::InspectDisk);
        return true;
    };
    let holds_data = matches!(disk, DataDir::Present(_));
    let source = source(s, target);
    let (room, is_fresh) = measured(s, d, &source);
    let Some(room) = room else {
        d.waits("room", format!("a copy is needed ({why}): {} is asked for its size", source.node));
        return true;
    };
    if room.place == ClonePlace::InPlace && holds_data && !s.etcd_answers() {
        d.waits(
            "clone",
            format!("a copy in place is needed ({why}); waits for an answer of etcd: who else has the data may be otherwise by now"),
        );
        return true;
    }
    if room.place == ClonePlace::InPlace && holds_data && another(s, &source.node, target).is_none() {
        if is_fresh {
            d.wake(room.at.plus(MEASURED_FOR));
        }
        d.alarm(
            "needs-copy",
            format!(
                "a copy beside the old directory does not fit ({}), and no other healthy copy besides the source is known: nothing is overwritten",
                room.why
            ),
        );
        return false;
    }
    if !is_fresh {
        d.waits("room", format!("a copy is needed ({why}): {} is asked for its size again", source.node));
        return true;
    }
    let place_in_words = match room.place {
        _ if !holds_data => String::new(),
        ClonePlace::Beside => format!(", {} ({} are free for {})", room.place, room.free, room.size),
        ClonePlace::InPlace => format!(", {} ({})", room.place, room.why),
    };
    d.memory.rewind = plan;
    let what = format!("{why}: copies {}{place_in_words}", source.node);
    if note(s, d, Operation::Clone { source: source.node, place: room.place }) {
        d.because("clone", what);
    }
    true
}

/// Where a copy of this source fits, and whether that was measured lately: it is measured (again) else.
fn measured<'a>(s: &'a Snapshot, d: &mut Draft, source: &Source) -> (Option<&'a CopyPlace>, bool) {
    let room = s.place.as_ref().filter(|room| room.source == source.node);
    let is_fresh = room.is_some_and(|room| s.now.boot < room.at.plus(MEASURED_FOR));
    if !is_fresh {
        d.act(s, Action::MeasureCopy { source: source.clone() });
    }
    (room, is_fresh)
}

/// What is to be done to the data stands in the node file before it is begun. `false` where that has to wait.
pub(super) fn note(s: &Snapshot, d: &mut Draft, operation: Operation) -> bool {
    if failsafe::claim_is_open(s, d) {
        return false;
    }
    d.act(s, Action::WriteFile(Box::new(NodeFile { operation: Some(operation), ..s.file.clone() })));
    true
}

/// The copy that the file speaks of is made, or goes on.
pub(super) fn goes_on(s: &Snapshot, d: &mut Draft, target: &LeaderRecord, noted: &NodeName, place: ClonePlace) {
    let source = candidates(s, target).find(|source| source.node == *noted).filter(|_| !has_failed(s));
    let source = source.unwrap_or_else(|| holder(target));
    let other = another(s, &source.node, target).filter(|_| s.etcd_answers());
    let Some(disk) = s.disk() else {
        d.waits("inspect", "the data directory is being inspected before the copy goes on");
        d.act(s, Action::InspectDisk);
        return;
    };
    // The copy itself is overwritten by nothing: what is left to do is done.
    let overwrites = matches!(disk, DataDir::Present(disk) if !disk.is_copy(&s.file.data));
    if place == ClonePlace::InPlace && overwrites && other.is_none() {
        // Who leads has changed since, or a replica is gone: unless somebody has made room.
        let (room, is_fresh) = measured(s, d, &source);
        if room.is_some_and(|room| is_fresh && room.place == ClonePlace::Beside) {
            d.because("clone", format!("a copy of {} beside the old directory fits by now", source.node));
            note(s, d, Operation::Clone { source: source.node, place: ClonePlace::Beside });
            return;
        }
        if let Some(room) = room.filter(|_| is_fresh) {
            d.wake(room.at.plus(MEASURED_FOR));
        }
        d.alarm(
            "needs-copy",
            format!(
                "the copy of {} in place waits until another healthy copy besides the source is known, or there is room beside the old directory: nothing is overwritten",
                source.node
            ),
        );
        return;
    }
    d.because("clone", format!("copies {}", source.node));
    let discards = s.memory.rewind.as_ref().map(|plan| Fork { parent: plan.tli, at: plan.fork });
    d.act(s, Action::Clone { source, place, other, discards });
}

/// Whose data are copied: those of a replica that streams, so that the primary is spared; after a failure the primary's.
///
/// Replicas of our zone come first, then the order of names.
fn source(s: &Snapshot, target: &LeaderRecord) -> Source {
    // Once the primary was asked for its size, after a failure, it stays with it.
    let primary_asked = s.place.as_ref().is_some_and(|room| room.source == target.holder.node && s.now.boot < room.at.plus(MEASURED_FOR));
    if has_failed(s) || primary_asked {
        return holder(target);
    }
    let elsewhere = |source: &Source| s.etcd.records.members.get(&source.node).is_none_or(|member| member.record.zone != s.me.zone);
    candidates(s, target).min_by_key(|source| (elsewhere(source), source.node.clone())).unwrap_or_else(|| holder(target))
}

fn has_failed(s: &Snapshot) -> bool {
    [Task::Data, Task::MeasureCopy].iter().any(|task| s.failures.contains_key(task))
}

fn holder(target: &LeaderRecord) -> Source {
    Source { node: target.holder.node.clone(), address: target.holder.postgres.clone(), tli: target.tli }
}

/// Replicas that may be copied.
fn candidates(s: &Snapshot, target: &LeaderRecord) -> impl Iterator<Item = Source> {
    healthy_replicas(s, target).filter(|(_, member)| !member.tags.no_load_balance).map(|(replica, member)| Source {
        node: replica.node.clone(),
        address: member.postgres.clone(),
        tli: target.tli,
    })
}

/// Who may be elected besides us and the holder, and says itself that it streams, with the data that are recorded: `sync` may go on naming one
/// that is gone.
fn healthy_replicas<'a>(s: &'a Snapshot, target: &LeaderRecord) -> impl Iterator<Item = (&'a Replica, &'a MemberRecord)> {
    let electable = s.sync().map(|sync| sync.record.electable.as_slice()).unwrap_or_default();
    let others = electable.iter().filter(|replica| replica.node != s.me.node && replica.node != target.holder.node);
    let said = others.filter_map(|replica| Some((replica, &s.etcd.records.members.get(&replica.node)?.record)));
    said.filter(|(replica, member)| {
        member.data == replica.data && member.role == MemberRole::Replica && member.state == "streaming" && member.tli == Some(target.tli)
    })
}

/// A healthy copy that is known besides the source and ourselves.
fn another(s: &Snapshot, source: &NodeName, target: &LeaderRecord) -> Option<NodeName> {
    let serves = target.state == LeaderState::Serving && target.holder.node != s.me.node && s.etcd.records.acts(target);
    let holder = serves.then_some(&target.holder.node);
    healthy_replicas(s, target).map(|(replica, _)| &replica.node).chain(holder).find(|node| *node != source).cloned()
}
