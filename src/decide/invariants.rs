//! What must hold of every decision (protocol 1.3), checked in production too. Written apart from the rules, and simpler.

use super::{
    decision::{Action, Configuration, Decision, Purpose},
    failsafe, ledger,
    snapshot::Snapshot,
    target,
    transition::{InForce, Older},
};
use crate::model::{
    instance::{DataDir, StartAs},
    key::{Key, Txn, Write},
    moment::Moment,
    node::Replica,
    node_file::{ClonePlace, Operation},
    policy::PROMOTION_MARGIN,
    quorum::Quorum,
    record::{LeaderRecord, LeaderState, SyncMode, SyncRecord},
    request::Request,
};
use std::collections::BTreeSet;

/// The violations, one sentence each; empty when all is well.
pub fn check(s: &Snapshot, decision: &Decision) -> Vec<String> {
    let mut found: Vec<String> = decision.actions.iter().filter_map(|action| violation(s, action, decision)).collect();
    if let Some(writes) = decision.routing.writes {
        let valid = s.leader().is_some_and(|leader| leader.record.term == writes.term)
            && may_act_until(s).is_some_and(|until| writes.until <= until);
        if !valid {
            found.push(format!("I5: writes are routed here in term {} without a valid lease", writes.term));
        }
    }
    found
}

/// Until when this node may act as the holder; a pause has no end, but the look at it goes out of date.
fn may_act_until(s: &Snapshot) -> Option<Moment> {
    if s.holds_paused() { Some(s.now.boot.plus(s.policy.timers().hold)) } else { s.authority() }
}

fn violation(s: &Snapshot, action: &Action, decision: &Decision) -> Option<String> {
    match action {
        Action::Promote { .. } => no_promotion(s).map(|why| format!("I4: a promotion, but {why}")),
        Action::Start { start, .. } => {
            let unfinished = s.file.operation.as_ref().map(|operation| format!("I7: a start on a directory before {operation} has ended"));
            let half_done = s.disk().is_some_and(DataDir::is_half_rewound);
            let unfinished =
                unfinished.or_else(|| half_done.then(|| "I7: a start on a directory that a rewind has left half done".to_owned()));
            let primary = (*start == StartAs::Primary).then(|| no_start_as_primary(s)).flatten();
            unfinished.or(primary.map(|why| format!("I4: a start as primary, but {why}")))
        }
        Action::Txn(purpose, txn) => transaction(s, *purpose, txn, decision),
        Action::InitDb => (s.file.operation != Some(Operation::InitDb)).then(|| "I7: initdb without its marker".to_owned()),
        Action::DiscardInitialised => {
            let ours = s.file.initialised || s.file.operation == Some(Operation::InitDb);
            (!ours || !s.is_empty()).then(|| "a directory that this node did not make would be removed".to_owned())
        }
        Action::Clone { source, place, other, .. } => {
            let marked = matches!(s.file.operation, Some(Operation::Clone { .. }));
            // The copy itself is overwritten by nothing.
            let holds_data = matches!(s.disk(), Some(DataDir::Present(disk)) if !disk.is_copy(&s.file.data));
            let last = *place == ClonePlace::InPlace && holds_data && other.as_ref().is_none_or(|other| *other == source.node);
            destructive(s, marked, &source.node).or_else(|| {
                last.then(|| "a data directory would be overwritten without another healthy copy besides the source".to_owned())
            })
        }
        Action::Rewind { source, .. } => {
            let marked = matches!(s.file.operation, Some(Operation::Rewind { .. }));
            destructive(s, marked, &source.node)
        }
        Action::Configure(configuration) => names_write(s, configuration, decision).map(|why| format!("I2: {why}")).or_else(|| {
            let follow = configuration.follow.as_ref()?;
            let leader = s.leader().map(|leader| &leader.record);
            let leads = leader.is_some_and(|leader| {
                let serves = matches!(leader.state, LeaderState::Serving | LeaderState::Handoff { .. } | LeaderState::Paused { .. });
                serves && leader.holder.node == follow.node && leader.term >= s.file.promised
            });
            // A claimant fetches from a voter that has promised its claim, and from nobody else.
            let promised = leader.is_some_and(|leader| {
                let promises = s.etcd.records.promises.get(&leader.term);
                leader.state == LeaderState::Claimed && s.holds() && promises.is_some_and(|promises| promises.contains_key(&follow.node))
            });
            (!leads && !promised).then(|| format!("I2: this node would follow {}, which its promise does not allow", follow.node))
        }),
        Action::DisarmPaused { term } => {
            let settled = s.pause_is_settled() && s.leader().is_some_and(|leader| leader.record.term == *term);
            (!settled).then(|| "the deadline of a primary would be taken away before its pause is known to be committed".to_owned())
        }
        Action::Disarm { .. } => super::step_down::may_be_primary(s).then(|| "the deadline of a primary would be taken away".to_owned()),
        _ => None,
    }
}

fn destructive(s: &Snapshot, marked: bool, source: &crate::model::node::NodeName) -> Option<String> {
    if !marked {
        return Some("I7: the data directory would be replaced without its marker".to_owned());
    }
    if !s.is_empty() {
        return Some("the data directory would be replaced under a running PostgreSQL".to_owned());
    }
    let foreign = s.etcd.records.cluster.as_ref().zip(s.disk()).is_some_and(|(cluster, dir)| match dir {
        DataDir::Present(disk) => disk.control.system_id != cluster.record.system_id,
        _ => false,
    });
    if foreign {
        return Some("the data directory of another cluster would be replaced".to_owned());
    }
    if s.holds() || *source == s.me.node {
        return Some("the data directory of the holder would be replaced".to_owned());
    }
    None
}

/// What a promotion and a start as primary have in common.
fn no_authority(s: &Snapshot) -> Option<String> {
    let Some(leader) = s.leader().filter(|_| s.holds()) else { return Some("`leader` does not show our claim".to_owned()) };
    let term = leader.record.term;
    // A restart within a term that goes on by the peers' word: the death before it is verified and noted.
    let again = leader.record.state == LeaderState::Serving && s.file.demoted == Some(term) && failsafe::leads(s);
    if leader.record.state != LeaderState::Claimed && !again {
        return Some("`leader` does not show our claim".to_owned());
    }
    let least = s.now.boot.plus(PROMOTION_MARGIN);
    if s.authority().is_none_or(|until| until < least) {
        return Some("the claim is not valid for long enough".to_owned());
    }
    let armed = s.guard().and_then(|guard| guard.armed);
    if armed.is_none_or(|armed| armed.term != term || armed.until < least) {
        return Some("no deadline is armed for this term, far enough away".to_owned());
    }
    let written = s.sync().is_some_and(|sync| sync.record.term == term && sync.record.primary == s.myself());
    (!written).then(|| "`sync` is not written for this term".to_owned())
}

fn no_promotion(s: &Snapshot) -> Option<String> {
    if let Some(why) = no_authority(s) {
        return Some(why);
    }
    let leader = s.leader()?;
    let Some(tli) = ledger::reserved_by_us(s, leader) else { return Some("no timeline is reserved for it".to_owned()) };
    if s.file.promoted.is_none_or(|promoted| promoted.tli != tli || promoted.term != leader.record.term) {
        return Some("our file does not say so yet".to_owned());
    }
    if s.file.promised < leader.record.term {
        return Some("this node has not promised its own term".to_owned());
    }
    let parent = ledger::entry(s, tli).and_then(|entry| entry.parent);
    let whole = s.whole_now().map(|whole| whole.tli);
    if parent.is_none() || whole.is_some_and(|whole| parent != Some(whole)) {
        return Some("our WAL does not end on the parent of the timeline that is reserved".to_owned());
    }
    if let Some(why) = parent.and_then(|parent| target::astray(s, parent)) {
        return Some(why);
    }
    (!ledger::texts_missing(s).is_empty()).then(|| "history files are missing".to_owned())
}

fn no_start_as_primary(s: &Snapshot) -> Option<String> {
    if let Some(why) = no_authority(s) {
        return Some(why);
    }
    let owner = ledger::newest_used(s).is_some_and(|(_, owner)| owner == s.myself());
    (!owner).then(|| "the newest used timeline belongs to another node".to_owned())
}

fn transaction(s: &Snapshot, purpose: Purpose, txn: &Txn, decision: &Decision) -> Option<String> {
    let compares = |key: &Key| txn.when.iter().any(|compare| compare.key() == key);
    let claims = |key: &Key| *key != Key::Leader || purpose == Purpose::Claim;
    let term_of = |key: &Key, text: &str| match key {
        Key::Promise(term, _) => Some(*term),
        _ => serde_json::from_str::<LeaderRecord>(text).ok().map(|record| record.term),
    };
    for write in &txn.then {
        if let Write::Put(key @ (Key::Leader | Key::Promise(..)), text) = write
            && claims(key)
            && term_of(key, text).is_some_and(|term| failsafe::breaks_word(s, key, term))
        {
            return Some(format!("`{key}` would be written against the word that this node has given to a peer"));
        }
    }
    let put = |key: &Key| {
        txn.then.iter().find_map(|write| match write {
            Write::Put(written, text) if written == key => Some(text),
            _ => None,
        })
    };
    if let Some(text) = put(&Key::Leader) {
        if !compares(&Key::Leader) {
            return Some("`leader` would be written without a comparison".to_owned());
        }
        if s.etcd.suspect.is_some() {
            return Some("`leader` would be written in an etcd that is not believed".to_owned());
        }
        let record: LeaderRecord = serde_json::from_str(text).ok()?;
        if let Some(why) = leader_write(s, purpose, &record, &compares, decision) {
            return Some(why);
        }
    }
    if let Some(text) = put(&Key::Sync) {
        let adopts = purpose == Purpose::Adopt || purpose == Purpose::FirstClaim;
        let bound = compares(&Key::Sync) && (compares(&Key::Term) || compares(&Key::Leader));
        if !bound && !adopts {
            return Some("`sync` would be written without comparing it and the term".to_owned());
        }
        let record: SyncRecord = serde_json::from_str(text).ok()?;
        if let Some(why) = sync_write(s, purpose, &record, decision) {
            return Some(format!("I2: {why}"));
        }
    }
    None
}

/// Every set that may acknowledge meets every set that may elect, counted here node by node.
fn sync_write(s: &Snapshot, purpose: Purpose, next: &SyncRecord, decision: &Decision) -> Option<String> {
    let before = &s.sync()?.record;
    if purpose == Purpose::Membership && !s.is_leased() && !s.pause_is_settled() {
        return Some("`sync` would change while no confirmed renewal allows it".to_owned());
    }
    if purpose == Purpose::Membership && !failsafe::allows(s, next) {
        return Some("`sync` would change while this node may act for longer than those whom it names allow".to_owned());
    }
    if before.voters.is_empty() && purpose != Purpose::Membership {
        return None;
    }
    if next.mode != SyncMode::Async && next.electable.iter().any(|replica| !next.voters.contains(replica)) {
        return Some("a node may take over that is no voter".to_owned());
    }
    match purpose {
        Purpose::Prepare => {
            let leader = s.leader()?;
            let promises = s.etcd.records.promises.get(&leader.record.term);
            let has =
                |voter: &&Replica| promises.is_some_and(|all| all.get(&voter.node).is_some_and(|stored| stored.record.data == voter.data));
            let count = before.voters.iter().filter(|voter| **voter == s.myself() || has(voter)).count();
            let complete = s.former_primary_released() && leader.record.wal_end.is_some();
            let misses = count + (before.k as usize) <= before.voters.len();
            // A loss that an operator has accepted, of a primary that is dead.
            let story = decision.memory.claim.as_ref().filter(|story| story.term == leader.record.term);
            let accepted = story.and_then(|story| story.order.as_ref()).is_some_and(|order| order.accept_loss && order.assert_dead);
            (misses && !complete && !accepted && !s.is_owner()).then(|| format!("{count} voters of {} have promised", before.voters.len()))
        }
        Purpose::Membership if next.mode != SyncMode::Async && !next.voters.is_empty() => {
            if (next.mode, next.quorum()) == (before.mode, before.quorum()) {
                return None;
            }
            // What an earlier server of ours was told says nothing of this one.
            let names = decision.memory.names_of(s.guard().map(|guard| &guard.incarnation), s.run());
            let Some(InForce { newest, older: Older::These(older) }) = names.map(|names| &names.in_force) else {
                let fewer =
                    before.voters.iter().all(|voter| next.voters.contains(voter)) && next.k <= before.k && !before.voters.is_empty();
                return (!fewer).then(|| "`sync` would ask for more than names that are not known".to_owned());
            };
            missed(newest.iter().chain(older), next)
        }
        _ => None,
    }
}

/// Who may acknowledge past all that `sync` lets elect, by lists of which each may have been read by some process: a walsender asks for as many
/// as its own list does, and counts whoever is in the list that his own walsender has read.
fn missed<'a>(mut lists: impl Iterator<Item = &'a Quorum> + Clone, sync: &SyncRecord) -> Option<String> {
    let listed: BTreeSet<&Replica> = lists.clone().flat_map(Quorum::members).collect();
    let strangers = listed.iter().filter(|name| !sync.voters.contains(name)).count();
    let few = lists.find(|names| (names.k() as usize) < strangers + sync.k as usize)?;
    Some(format!("{} of {listed:?} may acknowledge what {} of {} voters cannot miss", few.k(), sync.k, sync.voters.len()))
}

/// What a walsender of ours may read meets what `sync` says by now.
fn names_write(s: &Snapshot, next: &Configuration, decision: &Decision) -> Option<String> {
    if s.configured.as_ref().is_some_and(|configured| configured.sync_names == next.sync_names) {
        return None;
    }
    let sync = &s.sync()?.record;
    let ours = s.leader().is_some_and(|leader| leader.record.term == sync.term) && sync.primary == s.myself();
    let names = decision.memory.names_of(s.guard().map(|guard| &guard.incarnation), s.run()).filter(|_| ours)?;
    if sync.mode == SyncMode::Async || sync.voters.is_empty() {
        return None;
    }
    let older: &[Quorum] = if let Older::These(older) = &names.in_force.older { older } else { &[] };
    // What is in force already is not made worse by what puts it right.
    if missed(older.iter(), sync).is_some() {
        return None;
    }
    missed(older.iter().chain(&names.in_force.newest), sync)
}

/// Whether nobody else can act on this record any more: given up, or unchanged for as long as it says.
fn is_over(s: &Snapshot, record: &LeaderRecord) -> bool {
    match &record.state {
        LeaderState::Vacant { .. } => true,
        LeaderState::Handoff { to } if *to == s.me.node => true,
        LeaderState::Claimed | LeaderState::Serving | LeaderState::Handoff { .. } => {
            let seen = s.standing.as_ref().filter(|standing| standing.nonce == record.nonce && !s.now.slept_since(standing.suspended));
            seen.is_some_and(|standing| s.now.mono.since(standing.since).rounded() >= record.wait)
        }
        LeaderState::Paused { .. } | LeaderState::Foreign { .. } => false,
    }
}

/// Whether as many voters of a quorum as elect say that they find this record's holder gone.
fn is_deposed(s: &Snapshot, record: &LeaderRecord, decision: &Decision) -> bool {
    let Some(sync) = s.sync().map(|sync| &sync.record).filter(|sync| sync.mode != SyncMode::Async && !sync.voters.is_empty()) else {
        return false;
    };
    let says = |voter: &&Replica| {
        let said = s.etcd.records.members.get(&voter.node).and_then(|stored| stored.record.finds_gone.as_ref());
        let found = if **voter == s.myself() { decision.memory.finds_gone.as_ref() } else { said };
        found == Some(&record.nonce)
    };
    sync.voters.iter().filter(says).count() + sync.k as usize > sync.voters.len()
}

/// The request for this node to take over that a claim takes with it: whether it accepts a loss, and asserts that the former primary is dead.
fn ordered(s: &Snapshot, before: Option<&LeaderRecord>, compares: &dyn Fn(&Key) -> bool) -> Option<(bool, bool)> {
    let intent = s.etcd.records.intent.as_ref().filter(|intent| before.is_some_and(|before| before.term == intent.record.term))?;
    match &intent.record.request {
        Request::Failover { to, accept_loss, assert_dead } if *to == s.me.node && compares(&Key::Intent) => {
            Some((*accept_loss, *assert_dead))
        }
        _ => None,
    }
}

/// What follows a paused record: nobody's claim; its holder serving, its deadline armed first; or nobody, with a proof that it is dead.
fn ends_a_pause(s: &Snapshot, purpose: Purpose, before: &LeaderRecord, next: &LeaderRecord) -> Option<String> {
    let LeaderState::Paused(pause) = &before.state else { return None };
    if purpose == Purpose::Claim || next.term != before.term || next.holder != before.holder {
        return Some("a paused record would be claimed".to_owned());
    }
    match &next.state {
        LeaderState::Paused(_) => None,
        LeaderState::Serving => {
            let armed = s.guard().and_then(|guard| guard.armed).filter(|armed| armed.term == next.term);
            let safe =
                s.pause_is_settled() && armed.is_some_and(|armed| s.now.boot < armed.until && armed.until <= s.now.boot.plus(next.hold));
            (!safe).then(|| "a pause would be ended before the deadline is armed".to_owned())
        }
        LeaderState::Vacant { .. } | LeaderState::Handoff { .. } => {
            let word =
                s.etcd.records.intent.as_ref().filter(|intent| intent.record.term == before.term).map(|intent| &intent.record.request);
            let asserted = matches!(word, Some(Request::Resume { assert_dead: true } | Request::Failover { assert_dead: true, .. }));
            let own = s.is_empty() && s.file.demoted == Some(before.term) && next.dead.is_some();
            let proven = pause.vacant.is_some() || s.former_primary_released() || own || (asserted && !s.holds());
            (!proven).then(|| "a paused record would be given up, and its holder is not proven dead".to_owned())
        }
        LeaderState::Claimed | LeaderState::Foreign { .. } => Some("a paused record would be claimed".to_owned()),
    }
}

fn leader_write(
    s: &Snapshot,
    purpose: Purpose,
    record: &LeaderRecord,
    compares: &dyn Fn(&Key) -> bool,
    decision: &Decision,
) -> Option<String> {
    let before = s.leader().map(|leader| &leader.record);
    if let Some(why) = before.and_then(|before| ends_a_pause(s, purpose, before, record)) {
        return Some(why);
    }
    let order = ordered(s, before, compares);
    if purpose == Purpose::Claim {
        let larger = before.is_none_or(|before| record.term > before.term) && record.term > s.file.promised;
        let noted = s.file.claimed.is_some_and(|claimed| claimed >= record.term);
        if !larger || !noted || !compares(&Key::Sync) {
            return Some(format!(
                "the claim of term {} is not above every term seen, not in the file, or does not compare `sync`",
                record.term
            ));
        }
        let chosen = order.is_some_and(|(accepts, asserts)| accepts && (asserts || s.former_primary_released()));
        if !s.is_electable() && !s.is_owner() && !chosen {
            return Some("a node would claim that is neither electable nor the last primary".to_owned());
        }
        let asserted = order.is_some_and(|(_, asserts)| asserts);
        if let Some(before) = before.filter(|before| !s.holds() && !is_over(s, before) && !is_deposed(s, before, decision) && !asserted) {
            return Some(format!("term {} would be claimed over before its lease is over for whoever holds it", before.term));
        }
    }
    let given_up = record.state.is_given_up();
    if given_up && super::step_down::may_be_primary(s) {
        return Some("the lease would be given up while PostgreSQL may be a primary".to_owned());
    }
    // `dead` is carried along; set anew it is our own word, and needs a verified death that our file has noted.
    let own_word = record.dead.is_some() && before.is_none_or(|before| before.dead != record.dead);
    if own_word && (!s.is_empty() || s.file.demoted.is_none()) {
        return Some("our PostgreSQL would be declared dead while a process of it may live".to_owned());
    }
    None
}
