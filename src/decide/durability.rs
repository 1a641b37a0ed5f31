//! What commits wait for, and who may elect: the holder keeps `sync` and `synchronous_standby_names` in step (protocol 1.8).
//!
//! [`transition`] says the next single step, [`names`] how it is proven that older names are in force no more. Here: what is wanted, and how a
//! step is made.

use super::{
    decision::{Action, Configuration, Purpose, Task},
    draft::Draft,
    failsafe, membership, names,
    snapshot::{Shown, Snapshot},
    transition::{self, Step},
    upkeep, voters,
};
use crate::model::{
    instance::{Cut, Process, ServerFacts, ServerRole, StartAs},
    key::{Compare, Key, Txn, Write},
    lsn::Lsn,
    moment::{Moment, Span},
    node::Replica,
    node_file::NodeFile,
    policy::Durability,
    quorum::{NOBODY_CONFIRMS, Quorum},
    record::{LeaderRecord, LeaderState, Stored, SyncMode, SyncRecord, to_text},
    term::Term,
};
/// How many replicas that may take over end the `async` of a new cluster (`durability = "auto"`).
const ENOUGH: usize = 2;

/// How long a running server may take to show names that were written.
const TAKEN_IN: Span = Span::from_secs(2);

/// How long until what was taken back is looked at again, and until that is seen.
const REPAIRED: Span = Span::from_secs(60);

/// More steps than any change has: a walk over them that does not end is a fault of ours.
const STEPS: usize = 16;

/// Keeps voters, names and who may take over, as the holder whose PostgreSQL is the primary.
pub(super) fn rule(s: &Snapshot, d: &mut Draft) {
    let Some(sync) = s.sync() else { return };
    // Only in its own term may the holder write it, and only with authority.
    let ours = s.leader().is_some_and(|leader| leader.record.term == sync.record.term) && sync.record.primary == s.myself();
    let Some(facts) = s.server().filter(|_| ours && (s.authority().is_some() || s.holds_paused())) else { return };
    let since = membership::watching(s, d, sync.record.term);
    open_doors(s, d, &sync.record, facts);
    if !may_change(s) {
        // Neither side changes while only the peers' word counts: whoever were added now has not given his, and may have sat out the wait.
        return;
    }
    if s.busy(Task::Txn) {
        // Which `sync` it leaves is not known yet.
        return;
    }
    if s.sync_unsettled {
        d.because("sync-unsettled", "a write of `sync` has no answer: it is written again as it is, before anything rests on it");
        write(s, d, sync, sync.record.clone());
        return;
    }
    if is_set_by_hand(s, d, facts) {
        repair(s, d, sync);
        return;
    }
    commits_go(s, d, &sync.record, facts);
    let mode = wanted_mode(s, &sync.record);
    match (sync.record.mode, mode) {
        (SyncMode::Async, SyncMode::Async) => {
            d.memory.names = None;
            membership::rule(s, d, sync, since);
        }
        (_, SyncMode::Async) => {
            d.because(
                "durability",
                "commits wait for nobody from now on; each replica may take over once it has what was acknowledged before",
            );
            (d.memory.joins_from, d.memory.joins_at) = (None, None);
            write(s, d, sync, SyncRecord { mode, voters: Vec::new(), electable: Vec::new(), ..sync.record.clone() });
        }
        _ => keep(s, d, sync, facts, mode, since),
    }
}

/// Whether `sync` may be written: a confirmed renewal allows this node to act, or it has paused the cluster, which nobody claims.
pub(super) fn may_change(s: &Snapshot) -> bool {
    s.etcd_answers() && (s.is_leased() || s.pause_is_settled())
}

/// What a node that becomes primary in `term` notes: whether its voters have to confirm what it comes up with before clients may see it. A commit
/// that was never acknowledged becomes visible with a restart (EXP-17), and would be gone again with this host.
pub(super) fn barrier_of(s: &Snapshot, term: Term) -> Option<Term> {
    s.sync().is_some_and(|sync| sync.record.has_voters()).then_some(term)
}

/// Whether our server may still show what its voters lack. A later claim of ours, while it runs, ends that no more than the one it started by.
pub(super) fn shows_more(s: &Snapshot, term: Term) -> bool {
    s.file.barrier.is_some_and(|of| of <= term)
}

/// Whether `pg_hba.conf` has to keep clients out. A server that was promoted let them in before, to read; they are kept from it by what routes
/// writes.
pub(super) fn members_only(s: &Snapshot) -> bool {
    let ours = s.leader().filter(|leader| leader.record.holder.node == s.me.node);
    let promoted = matches!(s.process(), Some(Process::Running { start: StartAs::Standby, .. }));
    !promoted && ours.is_some_and(|leader| shows_more(s, leader.record.term))
}

/// The voters confirm what this server came up with: then clients may see it.
fn open_doors(s: &Snapshot, d: &mut Draft, sync: &SyncRecord, facts: &ServerFacts) {
    let ServerRole::Primary { insert, .. } = &facts.role else { return };
    if !shows_more(s, sync.term) {
        d.memory.came_up_with = None;
        return;
    }
    let Some(guard) = s.guard().map(|guard| &guard.incarnation) else { return };
    let known = s.memory.came_up_with.as_ref().filter(|(of, run, _)| of == guard && *run == facts.run);
    let all = known.map_or(*insert, |(_, _, all)| *all);
    d.memory.came_up_with = Some((guard.clone(), facts.run, all));
    let degraded = sync.voters.is_empty() && sync.mode != SyncMode::StrictQuorum;
    // What a former life of a replica has confirmed may be nowhere by now: its walsender can outlive it.
    let present = |replica: &Replica| !membership::is_gone(s, replica);
    if degraded || confirmed_by(facts, sync, present).is_some_and(|confirmed| confirmed >= all) {
        d.act(s, Action::WriteFile(Box::new(NodeFile { barrier: None, ..s.file.clone() })));
        return;
    }
    d.waits(
        "barrier",
        format!("{} must confirm {all}, with which this server came up, before clients see it", wording(&sync.quorum(), sync.mode)),
    );
}

/// Whether the server goes on to show other names than the managed configuration says.
fn is_set_by_hand(s: &Snapshot, d: &mut Draft, facts: &ServerFacts) -> bool {
    let Some(configured) = s.configured.as_ref().filter(|configured| configured.sync_names != facts.sync_names) else {
        d.memory.foreign_names = None;
        return false;
    };
    let ends = d.memory.foreign_names.get_or_insert(s.now.boot).plus(TAKEN_IN);
    if s.now.boot < ends {
        d.wake(ends);
    }
    let shown = s.server.seen_at().is_some_and(|at| at >= ends) && !s.busy(Task::Configure);
    if shown {
        d.alarm(
            "names-by-hand",
            format!(
                "synchronous_standby_names is {:?} and has to be {:?}: somebody else has set it",
                facts.sync_names, configured.sync_names
            ),
        );
    }
    shown
}

/// Commits that do not wait are lost with this host, whoever is listed to confirm them: a `synchronous_commit` outside the policy is taken back.
fn commits_go(s: &Snapshot, d: &mut Draft, sync: &SyncRecord, facts: &ServerFacts) {
    let Some(weak) = facts.weak_commits.as_ref().filter(|_| sync.is_lossless()) else { return };
    d.alarm(
        "weak-commits",
        format!("synchronous_commit is {weak}: commits are acknowledged before a replica has them, and durability promises that one does"),
    );
    let again = s.memory.commits_repaired.map_or(s.now.boot, |at| at.plus(REPAIRED));
    if s.now.boot < again {
        d.wake(again);
    } else if !s.busy(Task::Configure) {
        d.memory.commits_repaired = Some(s.now.boot);
        upkeep::configure_again(s, d);
    }
}

/// Whatever may acknowledge now, nobody may elect by that: the record is narrowed to this node first, then the names are written again.
fn repair(s: &Snapshot, d: &mut Draft, sync: &Stored<SyncRecord>) {
    d.memory.names = None;
    if sync.record.has_voters() {
        write(s, d, sync, with(s, &sync.record, sync.record.mode, &Quorum::nobody()));
        return;
    }
    // It has to show them anew, and gets time for that.
    d.memory.foreign_names = None;
    d.hurry = true;
    upkeep::configure_again(s, d);
}

fn wanted_mode(s: &Snapshot, sync: &SyncRecord) -> SyncMode {
    match s.policy.durability {
        Durability::Async => SyncMode::Async,
        Durability::Quorum => SyncMode::Quorum,
        Durability::StrictQuorum => SyncMode::StrictQuorum,
        // For good: it never goes back by itself.
        Durability::Auto if sync.mode != SyncMode::Async || sync.electable.len() >= ENOUGH => SyncMode::Quorum,
        Durability::Auto => SyncMode::Async,
    }
}

fn keep(s: &Snapshot, d: &mut Draft, sync: &Stored<SyncRecord>, facts: &ServerFacts, mode: SyncMode, since: Moment) {
    let record = sync.record.quorum();
    let wanted = voters::wanted(s, d, &sync.record, facts, mode, since);
    let may_wait = sync.record.mode == SyncMode::Async && mode != SyncMode::StrictQuorum;
    if may_wait && wanted.is_nobody() && !sync.record.electable.is_empty() {
        // Names that were written for one that is gone since: nobody elects by them, and every commit would wait for it.
        d.memory.names = None;
        d.waits("voters", "no replica is ready yet to be waited for: commits wait for nobody until one is");
        membership::rule(s, d, sync, since);
        return;
    }
    let Some(guard) = s.guard().map(|guard| &guard.incarnation) else { return };
    let mut names = names::known(s, guard, facts, &record);
    for _ in 0..STEPS {
        match transition::next(&record, &names.in_force, &wanted) {
            Step::Record(next) => {
                tell(d, &sync.record, mode, &next);
                write(s, d, sync, with(s, &sync.record, mode, &next));
                break;
            }
            Step::Names(next) => {
                d.because("sync-names", format!("commits are to wait for {}", wording(&next, mode)));
                names.write(next);
            }
            Step::Prove if names::prove(s, d, facts, &mut names, mode) => {}
            Step::Prove => break,
            Step::Done => {
                let right = with(s, &sync.record, mode, &record);
                if (right.mode, &right.electable) != (sync.record.mode, &sync.record.electable) {
                    tell(d, &sync.record, mode, &record);
                    write(s, d, sync, right);
                }
                break;
            }
        }
    }
    if record.is_nobody() && sync.record.mode != SyncMode::Async {
        degraded(d, mode);
    }
    d.memory.names = Some(names);
}

fn degraded(d: &mut Draft, mode: SyncMode) {
    if mode == SyncMode::StrictQuorum {
        d.waits("voters", "no replica has voted yet: with strict-quorum commits wait until one does");
    } else {
        d.alarm("degraded", "no replica can confirm commits: they wait for nobody, and only this node may be primary until one can");
    }
}

fn tell(d: &mut Draft, before: &SyncRecord, mode: SyncMode, next: &Quorum) {
    let from = before.quorum();
    d.because("voters", format!("what elects was {}, and becomes {}", wording(&from, before.mode), wording(next, mode)));
}

pub(super) fn wording(quorum: &Quorum, mode: SyncMode) -> String {
    if quorum.is_nobody() {
        return if mode == SyncMode::StrictQuorum { "a voter, and there is none".to_owned() } else { "nobody".to_owned() };
    }
    let nodes: Vec<&str> = quorum.members().iter().map(|replica| replica.node.as_str()).collect();
    format!("{} of {}", quorum.k(), nodes.join(", "))
}

/// `synchronous_standby_names` for `quorum`. With strict-quorum fewer than the policy asks for confirm nothing.
pub(super) fn text(s: &Snapshot, quorum: &Quorum, mode: SyncMode) -> String {
    let few = quorum.k() < s.policy.quorum_standbys;
    if few && mode == SyncMode::StrictQuorum { NOBODY_CONFIRMS.to_owned() } else { quorum.names() }
}

/// What the managed configuration has to say, by the newest decision: on the holder's server the names that were last written; elsewhere a name
/// that nobody bears, where the mode is or may become another than `async`.
pub(super) fn sync_names(s: &Snapshot, d: &Draft) -> String {
    let Some(sync) = s.sync() else { return standby_names(s) };
    let ours = sync.record.primary == s.myself() && s.holds() && s.leader().is_some_and(|leader| leader.record.term == sync.record.term);
    if !ours {
        return standby_names(s);
    }
    let mode = wanted_mode(s, &sync.record);
    let written = d.memory.names_of(s.guard().map(|guard| &guard.incarnation), s.run()).and_then(|names| names.in_force.newest.as_ref());
    match written {
        Some(newest) => text(s, newest, mode),
        None => text(s, &sync.record.quorum(), sync.record.mode),
    }
}

fn standby_names(s: &Snapshot) -> String {
    let said = said_to_be_ready(s);
    // What was said of this node has to be taken back first.
    if is_needless(s) && !said { String::new() } else { NOBODY_CONFIRMS.to_owned() }
}

/// Whether our `nodes` key says that this node may be promoted into a quorum. What it said of an earlier life says nothing of this one: a
/// directory that was rewound or copied is of no use to anybody before it is consistent, and then its server answers.
fn said_to_be_ready(s: &Snapshot) -> bool {
    s.etcd.records.nodes.get(&s.me.node).is_some_and(|node| node.record.sync_ready && node.record.data == s.file.data)
}

/// Whether nobody is to be promoted into a quorum: neither the policy wants one, nor is one in force still.
fn is_needless(s: &Snapshot) -> bool {
    s.policy.durability == Durability::Async && s.sync().is_none_or(|sync| !sync.record.is_lossless())
}

/// Why this node's PostgreSQL, once promoted, might acknowledge commits that nobody else has: it was not seen to wait by itself.
pub(super) fn unready(s: &Snapshot) -> Option<&'static str> {
    let waits = s.sync().is_some_and(|sync| sync.record.has_voters());
    let ready = s.etcd.records.nodes.get(&s.me.node).is_some_and(|node| node.record.sync_ready && node.record.data == s.file.data);
    (waits && !ready).then_some("it was not seen to wait for replicas by itself once it is promoted")
}

/// `sync` with these voters. Whoever votes may take over, unless a tag forbids it.
fn with(s: &Snapshot, sync: &SyncRecord, mode: SyncMode, quorum: &Quorum) -> SyncRecord {
    let voters: Vec<Replica> = quorum.members().iter().cloned().collect();
    let electable = voters.iter().filter(|replica| !membership::barred(s, replica)).cloned().collect();
    SyncRecord { mode, k: quorum.k().max(1), voters, electable, ..sync.clone() }
}

/// Writes `sync` in our term.
pub(super) fn write(s: &Snapshot, d: &mut Draft, sync: &Stored<SyncRecord>, record: SyncRecord) {
    let Some(term) = s.etcd.records.term.as_ref() else { return };
    if !failsafe::allows(s, &record) {
        d.waits("frozen", "`sync` stays as it is until a renewal in etcd allows what the peers' word allows now");
        return;
    }
    let nonce = s.nonce("sync");
    let record = SyncRecord { nonce: nonce.clone(), ..record };
    let txn = Txn {
        nonce,
        when: vec![Compare::Is(Key::Sync, sync.text.clone()), Compare::Is(Key::Term, term.text.clone())],
        then: vec![Write::Put(Key::Sync, to_text(&record))],
    };
    d.act(s, Action::Txn(Purpose::Membership, txn));
}

/// Whether a standby here has to show that it may be promoted into a quorum, and how far that is.
pub(super) fn ready(s: &Snapshot, d: &mut Draft) -> bool {
    let said = said_to_be_ready(s);
    if is_needless(s) {
        return false;
    }
    match s.guard().map(|guard| &guard.cut) {
        Some(Cut::From(_)) => {}
        // Its promise would be worth nothing.
        Some(Cut::Unable { .. }) => return false,
        Some(Cut::Unknown) | None => return said,
    }
    let Some(facts) = s.server().filter(|facts| matches!(facts.role, ServerRole::Standby { .. })) else { return said };
    let Some(configured) = &s.configured else { return said };
    if configured.sync_names != NOBODY_CONFIRMS {
        return false;
    }
    if facts.sync_names != configured.sync_names {
        d.memory.foreign_at = Some(s.now.boot);
    }
    if is_set_by_hand(s, d, facts) {
        // Promoted like that it would wait for others, or for nobody.
        if may_repeat(s, configured) {
            // It has to show its own anew, and gets time for that.
            d.memory.foreign_names = None;
            d.act(s, Action::Configure(Box::new(configured.clone())));
        } else if nobody_leads(s) {
            // Nothing is missed by that, and with nobody to follow it may be repeated.
            d.act(s, Action::CutStream);
        }
        return false;
    }
    if said {
        return true;
    }
    let since = s.memory.foreign_at.unwrap_or_default();
    let fits = |shown: &Shown| shown.run == facts.run && shown.names == NOBODY_CONFIRMS && shown.checkpoints && shown.at > since;
    let proven = s.shown.as_ref().is_some_and(fits);
    if !proven {
        d.act(s, Action::ShowNames { names: NOBODY_CONFIRMS.to_owned(), checkpoints: true });
    }
    proven
}

/// Nobody is there to be followed. A claimant of our own may fetch from a voter.
fn nobody_leads(s: &Snapshot) -> bool {
    let gone = |leader: &LeaderRecord| matches!(leader.state, LeaderState::Vacant { .. } | LeaderState::Claimed);
    !s.holds() && s.leader().is_none_or(|leader| gone(&leader.record))
}

/// Whether what a standby's configuration says may be written again as it is: it follows nobody, or who leads and whom no promise forbids.
fn may_repeat(s: &Snapshot, configured: &Configuration) -> bool {
    let Some(follow) = &configured.follow else { return true };
    let leads = |record: &LeaderRecord| {
        matches!(record.state, LeaderState::Serving | LeaderState::Handoff { .. })
            && record.holder.node == follow.node
            && record.term >= s.file.promised
    };
    s.leader().is_some_and(|leader| leads(&leader.record))
}

/// The position up to which as many voters have flushed as a commit waits for; `None` where commits wait for nobody.
pub(super) fn confirmed(facts: &ServerFacts, sync: &SyncRecord) -> Option<Lsn> {
    confirmed_by(facts, sync, |_| true)
}

/// The same, by those of the voters that count.
fn confirmed_by(facts: &ServerFacts, sync: &SyncRecord, counts: impl Fn(&Replica) -> bool) -> Option<Lsn> {
    let quorum = sync.quorum();
    if quorum.is_nobody() {
        return None;
    }
    let mut flushed: Vec<Lsn> = facts
        .walsenders
        .iter()
        .filter(|row| {
            Replica::from_application_name(&row.application_name)
                .is_some_and(|replica| quorum.members().contains(&replica) && counts(&replica))
        })
        .filter_map(|row| row.flush)
        .collect();
    flushed.sort_unstable_by(|a, b| b.cmp(a));
    Some(flushed.get(quorum.k() as usize - 1).copied().unwrap_or_default())
}
