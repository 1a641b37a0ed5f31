//! Our own `nodes` key: one life of a data directory, one running agent (protocol 1.2, *node file*).

use super::{
    Flow,
    decision::{Action, Purpose},
    draft::Draft,
    durability, operator,
    snapshot::Snapshot,
    upkeep, went_back,
};
use crate::model::{
    key::{Compare, Key, Txn, Write},
    moment::Span,
    node::Replica,
    node_file::{NodeFile, Operation},
    observed::Observed,
    record::{LeaderRecord, LeaderState, MEMBER_LEASE, MemberRecord, NodeRecord, Stored, VERSION, to_text},
};

/// By then the record of an agent that has ended is gone with its etcd lease, an election of etcd included.
const LAPSES: Span = MEMBER_LEASE.times(2);

/// etcd elects a leader within this time.
const SILENCE: Span = Span::from_secs(5);

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    // Whose cluster a directory is of never changes: it needs no fresh answer.
    if foreign_cluster(s, d) {
        return Flow::Settled;
    }
    if !s.etcd_answers() {
        // What was seen before may still be acted on by rules that need no fresh answer. They start nothing on data that nobody has looked at.
        silent(s, d);
        return if s.memory.registered { Flow::Goes } else { went_back::data(s, d) };
    }
    let mine = s.etcd.records.nodes.get(&s.me.node);
    if s.memory.registered {
        return registered(s, d, mine);
    }
    // Whoever has won the key has won the name.
    let won = mine.is_some_and(|mine| says_the_same(s, &mine.record) && mine.record.agent.as_ref() == Some(&s.me.agent));
    if let Some(other) = named_alike(s).filter(|_| !won) {
        waits_for_its_end(s, d, other);
        return Flow::Settled;
    }
    if is_behind(s) && may_have_an_original(s, d) {
        return Flow::Settled;
    }
    if !is_behind(s) {
        d.memory.alike = None;
    }
    match mine {
        Some(stored) if went_back::file(s, &stored.record) => {
            let (file, theirs) = (&s.file, &stored.record);
            let behind = format!(
                "the node file ({} starts, data {}) is behind etcd's ({} starts, data {}): this is a copy, or the disk went back",
                file.starts, file.data, theirs.starts, theirs.data
            );
            if let Some(awaited) = is_counted_on(s, theirs) {
                d.alarm(
                    "data-went-back",
                    format!(
                        "{behind}; nobody leads, and {awaited}: nothing is started here, so that a machine that still has them can come back. \
                         If there is none, let one take over by `pgbaton failover --to` with --accept-loss and --assert-dead"
                    ),
                );
                return Flow::Settled;
            }
            d.alarm("data-went-back", format!("{behind}; its data gets a new incarnation"));
            // What was under way on the directory is, in whichever life.
            let operation = s.file.operation.clone();
            // After starts of which etcd never heard the file is ahead: a lower count would be taken for what an older agent wrote.
            let starts = stored.record.starts.saturating_add(1).max(s.file.starts);
            let told = s.file.told.max(Some(stored.record.starts));
            let file = NodeFile { starts, told, told_by: None, operation, ..new_life(s) };
            d.act(s, Action::WriteFile(Box::new(file)));
            Flow::Settled
        }
        _ if went_back::data(s, d) == Flow::Settled => Flow::Settled,
        Some(stored) if says_the_same(s, &stored.record) => {
            d.memory.registered = true;
            Flow::Goes
        }
        mine => {
            d.waits("registration", "this node's present life is being published");
            let by = Some(s.me.agent.clone());
            if s.file.told != Some(s.file.starts) || s.file.told_by != by {
                d.act(s, Action::WriteFile(Box::new(NodeFile { told: Some(s.file.starts), told_by: by, ..s.file.clone() })));
                return Flow::Settled;
            }
            // Another agent changes nothing of what was said of the server.
            let ready = mine.is_some_and(|mine| mine.record.data == s.file.data && mine.record.sync_ready);
            d.memory.registering |= put(s, d, mine, ready);
            Flow::Settled
        }
    }
}

/// An election of etcd is waited for; what lasts longer is told with its cause.
fn silent(s: &Snapshot, d: &mut Draft) {
    match &s.etcd.answered {
        Observed::Unknown { since, why } if s.etcd.answered != Observed::never() && s.now.boot.since(*since) >= SILENCE => {
            let remedy = if why.contains("be let in by etcd") {
                "check [etcd] username, password_file and client certificate, and that user's roles in etcd"
            } else {
                "look at its members and the network between; `pgbaton doctor` asks each of them"
            };
            d.refused(
                "etcd-unreachable",
                format!("etcd does not answer (could not {why}): what it holds is not known, and nothing is decided anew; {remedy}"),
            );
        }
        Observed::Unknown { since, .. } => {
            d.wake(since.plus(SILENCE));
            d.waits("etcd-silent", "etcd has not answered: what it holds is not known");
        }
        Observed::Known { .. } | Observed::Absent { .. } => {}
    }
}

/// The record of an agent that runs under our name, and is none of this machine: ours is a copy of that one, or the other way round (ADR 27). A
/// record that an agent of ours has left lapses with its etcd lease.
pub(super) fn named_alike(s: &Snapshot) -> Option<&MemberRecord> {
    // Whoever is in session with the guard that `leader` names is no copy, whatever was changed in its configuration.
    if s.memory.registered || s.holds() {
        return None;
    }
    let there = &s.etcd.records.members.get(&s.me.node)?.record;
    let elsewhere = there.postgres != s.me.postgres || there.boot.as_ref().is_some_and(|boot| *boot != s.me.boot);
    (!is_ours(s, there) && (elsewhere || is_behind(s))).then_some(there)
}

/// Whether this run has said that.
fn is_ours(s: &Snapshot, there: &MemberRecord) -> bool {
    there.agent.as_ref() == Some(&s.me.agent)
}

fn is_behind(s: &Snapshot) -> bool {
    s.etcd.records.nodes.get(&s.me.node).is_some_and(|stored| went_back::file(s, &stored.record))
}

/// What this run has said of itself before it knew better is taken back: its original would wait for the end of that. That one, if it lives, says
/// something itself soon.
fn may_have_an_original(s: &Snapshot, d: &mut Draft) -> bool {
    if let Some(said) = s.etcd.records.members.get(&s.me.node).filter(|said| is_ours(s, &said.record)) {
        let key = Key::Member(s.me.node.clone());
        let txn = Txn { nonce: s.nonce("unsay"), when: vec![Compare::Is(key.clone(), said.text.clone())], then: vec![Write::Delete(key)] };
        d.act(s, Action::Txn(Purpose::Register, txn));
    }
    if d.memory.alike.is_none() && (s.memory.published.is_some() || s.memory.registering) {
        // The race for the key was lost to somebody who lives.
        d.memory.alike = Some((s.now.boot, s.now.boot));
    }
    let until = d.memory.alike.map(|(_, last)| last.plus(LAPSES)).filter(|until| s.now.boot < *until);
    if let Some(until) = until {
        d.wake(until);
        d.waits("registration", format!("an agent known as {} was there a moment ago: waits whether it says something", s.me.node));
    }
    until.is_some()
}

/// A file that is behind is a copy's, or was set back. Only the first has an original, and while nobody leads that one may be needed: for what it
/// alone has, or for its vote. Ends with the word of an operator who names this node.
fn is_counted_on(s: &Snapshot, lost: &NodeRecord) -> Option<String> {
    let sync = &s.sync()?.record;
    let former = Replica::new(s.me.node.clone(), lost.data.clone());
    let counts = sync.primary == former || sync.electable.contains(&former) || sync.voters.contains(&former);
    // A claim may come to nothing, for want of the vote that the original has.
    let leads = |leader: &LeaderRecord| {
        let serves = match &leader.state {
            LeaderState::Serving => true,
            LeaderState::Paused(pause) => pause.vacant.is_none(),
            _ => false,
        };
        serves && leader.holder.node != s.me.node && s.etcd.records.acts(leader)
    };
    let led = s.leader().is_some_and(|leader| leads(&leader.record));
    let wanted = operator::order(s).is_some_and(|order| order.accept_loss && (order.assert_dead || s.former_primary_released()));
    (counts && !led && !wanted).then(|| format!("`sync` of term {} counts on data {} of {}", sync.term, lost.data, s.me.node))
}

/// Whether this run says who it is: not while it may be a copy.
pub(super) fn is_unsure(s: &Snapshot) -> bool {
    !s.memory.registered && (named_alike(s).is_some() || is_behind(s))
}

fn waits_for_its_end(s: &Snapshot, d: &mut Draft, other: &MemberRecord) {
    let since = d.memory.alike.map_or(s.now.boot, |(since, _)| since);
    d.memory.alike = Some((since, s.now.boot));
    let (node, at) = (&s.me.node, &other.postgres);
    if s.now.boot.since(since) < LAPSES {
        d.wake(since.plus(LAPSES));
        d.waits(
            "registration",
            format!("an agent of before, or another one, is still known as {node} at {at}: waits until that record lapses"),
        );
        return;
    }
    d.alarm(
        "name-taken",
        format!(
            "another agent runs as {node} at {at}: this machine is a copy of that one, its original as it was before, or has its name by mistake, \
             and starts nothing. Stop one of the two, or give it another name and an empty state directory"
        ),
    );
}

/// Another agent took our name, or our key was removed: we are not this node any more. Else keeps the key fresh.
fn registered(s: &Snapshot, d: &mut Draft, mine: Option<&Stored<NodeRecord>>) -> Flow {
    let Some(stored) = mine else {
        d.waits("registration", "this node's key was removed from etcd; it is published again");
        put(s, d, None, false);
        return Flow::Goes;
    };
    let theirs = &stored.record;
    // Of the same count that one is newer which was written after ours.
    let another = theirs.agent.as_ref().is_some_and(|agent| *agent != s.me.agent);
    if theirs.starts > s.file.starts || (another && theirs.starts == s.file.starts) {
        d.alarm(
            "name-taken",
            format!(
                "another agent runs as {}: it wrote {} starts after this one wrote {}. This agent stops; one of the two must get another name",
                s.me.node, theirs.starts, s.file.starts
            ),
        );
        d.act(s, Action::Exit { why: "another agent runs under this node's name".to_owned() });
        return Flow::Settled;
    }
    let ready = durability::ready(s, d);
    if theirs.data != s.file.data || moved_far(s, theirs) || theirs.sync_ready != ready {
        put(s, d, Some(stored), ready);
    }
    Flow::Goes
}

/// Whether the file's boundary has moved on by so much, or to another timeline, that it is worth a write: the file itself is written
/// rarely enough where nothing acknowledged may be lost, and in a pause.
fn moved_far(s: &Snapshot, theirs: &NodeRecord) -> bool {
    let worth = if s.is_lossless() || s.pause().is_some() { 1 } else { upkeep::NOTED_WITHIN };
    s.file.boundary.is_some_and(|boundary| Some(boundary.tli) != theirs.tli || boundary.lsn.bytes_ahead_of(theirs.whole).get() >= worth)
}

/// The file that follows ours when the data directory begins a new life. It counts as a start: a file or a machine that goes back to before it, within
/// one run of the agent, is behind. An agent that has published nothing yet will publish this life with its start.
pub(super) fn new_life(s: &Snapshot) -> NodeFile {
    let counted = (s.memory.registered || s.memory.registering).then(|| s.file.starts.saturating_add(1));
    NodeFile {
        data: s.fresh.data.clone(),
        starts: counted.unwrap_or(s.file.starts),
        told: counted.or(s.file.told),
        told_by: counted.map_or_else(|| s.file.told_by.clone(), |_| Some(s.me.agent.clone())),
        claimed: None,
        promoted: None,
        barrier: None,
        demoted: None,
        boundary: None,
        operation: None,
        initialised: false,
        ..s.file.clone()
    }
}

fn says_the_same(s: &Snapshot, theirs: &NodeRecord) -> bool {
    theirs.data == s.file.data && theirs.starts == s.file.starts
}

fn put(s: &Snapshot, d: &mut Draft, mine: Option<&Stored<NodeRecord>>, sync_ready: bool) -> bool {
    let key = Key::Node(s.me.node.clone());
    let record = NodeRecord {
        v: VERSION,
        data: s.file.data.clone(),
        starts: s.file.starts,
        agent: Some(s.me.agent.clone()),
        // Only what the file has noted: a file that is behind this key went back.
        whole: s.file.boundary.map(|boundary| boundary.lsn).unwrap_or_default(),
        tli: s.file.boundary.map(|boundary| boundary.tli),
        sync_ready,
        unknown: mine.map(|stored| stored.record.unknown.clone()).unwrap_or_default(),
    };
    let condition = mine.map_or_else(|| Compare::Missing(key.clone()), |stored| Compare::Is(key.clone(), stored.text.clone()));
    let txn = Txn { nonce: s.nonce("register"), when: vec![condition], then: vec![Write::Put(key, to_text(&record))] };
    d.act(s, Action::Txn(Purpose::Register, txn))
}

/// A data directory of another cluster, or another uuid under the same name, is never joined.
fn foreign_cluster(s: &Snapshot, d: &mut Draft) -> bool {
    use crate::model::instance::DataDir;
    let Some(cluster) = &s.etcd.records.cluster else { return false };
    let Some(DataDir::Present(disk)) = s.disk() else { return false };
    // What our own initdb has made and nobody ever started is discarded.
    let made_here = s.file.initialised || s.file.operation == Some(Operation::InitDb);
    if disk.control.system_id == cluster.record.system_id || (made_here && !disk.started) {
        return false;
    }
    d.alarm(
        "other-cluster",
        format!(
            "the data directory has system identifier {}, the cluster {}: it belongs to another cluster. Move it away, or choose another \
             cluster name or etcd prefix",
            disk.control.system_id, cluster.record.system_id
        ),
    );
    true
}
