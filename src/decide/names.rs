//! Proving that newer `synchronous_standby_names` alone are in force (protocol 1.8, EXP-24).

use super::{
    decision::{Action, Names, Task},
    draft::Draft,
    durability::{text, wording},
    snapshot::{Shown, Snapshot},
    transition::{InForce, Older},
};
use crate::model::{
    instance::{ServerFacts, ServerRole, Walsender},
    lsn::Lsn,
    moment::Moment,
    node::{Incarnation, Replica},
    quorum::{NOBODY_CONFIRMS, Quorum},
    record::SyncMode,
};
use std::collections::BTreeSet;

/// What is known of the names in the server's present run. One that has just come up from a claim has those of `sync`, and may have others.
pub(super) fn known(s: &Snapshot, guard: &Incarnation, facts: &ServerFacts, record: &Quorum) -> Names {
    s.memory.names_of(Some(guard), Some(facts.run)).cloned().unwrap_or_else(|| Names {
        guard: guard.clone(),
        run: facts.run,
        in_force: InForce { newest: Some(record.clone()), older: Older::Unknown },
        written: None,
        heard: None,
    })
}

impl Names {
    pub(super) fn write(&mut self, next: Quorum) {
        let before = self.in_force.newest.replace(next);
        if let Older::These(older) = &mut self.in_force.older {
            older.extend(before);
        }
        (self.written, self.heard) = (None, None);
    }

    /// Whether somebody may believe that nobody has to confirm.
    fn may_be_empty(&self) -> bool {
        match &self.in_force.older {
            Older::These(older) => older.iter().any(Quorum::is_nobody),
            Older::Unknown => true,
        }
    }

    /// Whether a walsender that bears this name counts, or counted.
    fn count(&self, replica: &Replica) -> bool {
        let among = |quorum: &Quorum| quorum.members().contains(replica);
        match &self.in_force.older {
            Older::These(older) => self.in_force.newest.iter().chain(older).any(among),
            Older::Unknown => true,
        }
    }
}

/// One after the other: new connections show the newest names (and the checkpointer has them); every walsender that counts or counted has
/// confirmed something of later, or is gone; and then the new voters have confirmed something of later still. `true` once all that is so.
pub(super) fn prove(s: &Snapshot, d: &mut Draft, facts: &ServerFacts, names: &mut Names, mode: SyncMode) -> bool {
    let Some(newest) = names.in_force.newest.clone() else { return false };
    let text = text(s, &newest, mode);
    // One that is being written may put others in force after these were seen.
    if s.busy(Task::Configure) || s.configured.as_ref().is_none_or(|configured| configured.sync_names != text) {
        names.written = None;
        d.waits("sync-names", "synchronous_standby_names is being written");
        return false;
    }
    let written = *names.written.get_or_insert(s.now.boot);
    let Some(heard) = names.heard else {
        let checkpoints = names.may_be_empty();
        let Some(mark) = shown(s, facts, &text, written, checkpoints) else {
            d.waits("sync-names", "waits until new sessions show synchronous_standby_names as it was written");
            d.act(s, Action::ShowNames { names: text, checkpoints });
            return false;
        };
        if !is_looked_at(s, d) || !are_heard(s, d, facts, names, mark) {
            return false;
        }
        names.heard = Some(s.now.boot);
        d.act(s, Action::ShowNames { names: text, checkpoints: false });
        return false;
    };
    let Some(mark) = shown(s, facts, &text, heard, false) else {
        d.waits("sync-names", "waits until new sessions show synchronous_standby_names again");
        d.act(s, Action::ShowNames { names: text, checkpoints: false });
        return false;
    };
    let confirm =
        facts.walsenders.iter().filter(|row| has(row, mark)).filter_map(|row| Replica::from_application_name(&row.application_name));
    let confirm: BTreeSet<Replica> = confirm.filter(|replica| newest.members().contains(replica)).collect();
    if confirm.len() < newest.k() as usize {
        d.waits("voters", format!("{} have to confirm {mark}, {} did", wording(&newest, mode), confirm.len()));
        return false;
    }
    names.in_force.older = Older::These(Vec::new());
    true
}

fn shown(s: &Snapshot, facts: &ServerFacts, text: &str, since: Moment, checkpoints: bool) -> Option<Lsn> {
    let fits = |shown: &&Shown| shown.run == facts.run && shown.names == text && shown.at >= since && (shown.checkpoints || !checkpoints);
    s.shown.as_ref().filter(fits)?.mark
}

fn has(row: &Walsender, mark: Lsn) -> bool {
    row.streaming && row.flush.is_some_and(|flush| flush >= mark)
}

/// Whether the walsenders that are known are those of after the names were shown: one that is missing before may act on older ones.
fn is_looked_at(s: &Snapshot, d: &mut Draft) -> bool {
    let since = s.shown.as_ref().map_or(s.now.boot, |shown| shown.known);
    let looked = s.server.seen_at().is_some_and(|at| at >= since);
    if !looked {
        d.hurry = true;
        d.waits("walsenders", "waits for a look at the walsenders of after that");
    }
    looked
}

/// Whether every walsender of a voter, old or new, has confirmed `mark`: one that has not may act on older names. One that does not in time
/// is ended.
fn are_heard(s: &Snapshot, d: &mut Draft, facts: &ServerFacts, names: &Names, mark: Lsn) -> bool {
    let mut late = Vec::new();
    for row in facts.walsenders.iter().filter(|row| !has(row, mark)) {
        late.extend(Replica::from_application_name(&row.application_name).filter(|replica| names.count(replica)));
    }
    if late.is_empty() {
        return true;
    }
    let who: Vec<&str> = late.iter().map(|replica| replica.node.as_str()).collect();
    let since = s.shown.as_ref().map_or(s.now.boot, |shown| shown.at);
    let ends = since.plus(s.policy.timers().wait);
    d.waits("walsenders", format!("{} must confirm {mark} first, or is cut off in {}", who.join(", "), s.left(ends)));
    d.wake(ends);
    let again = s.memory.ended_at.is_none_or(|at| s.now.boot.since(at) >= s.policy.timers().wait);
    if s.now.boot >= ends && again && d.act(s, Action::EndWalsenders(late)) {
        d.memory.ended_at = Some(s.now.boot);
    }
    false
}

impl Snapshot {
    /// Whether commits of this primary are to wait, and are acknowledged by another rule than `sync` knows: somebody has set what they wait for.
    pub fn acknowledges_otherwise(&self) -> bool {
        let Some(sync) = self.sync().map(|sync| &sync.record).filter(|sync| sync.is_lossless()) else { return false };
        let Some(facts) = self.server().filter(|facts| matches!(facts.role, ServerRole::Primary { .. })) else { return false };
        let in_force = self.memory.names.as_ref().map(|names| &names.in_force);
        let older = in_force.map(|in_force| &in_force.older);
        let older: &[Quorum] = if let Some(Older::These(older)) = older { older } else { &[] };
        let newest = in_force.and_then(|in_force| in_force.newest.as_ref());
        let mut ours = older.iter().chain(newest).map(Quorum::names).chain([sync.quorum().names(), NOBODY_CONFIRMS.to_owned()]);
        let waits = sync.mode == SyncMode::StrictQuorum || !sync.quorum().is_nobody();
        let nobody = facts.sync_names.is_empty() && waits;
        facts.weak_commits.is_some() || nobody || ours.all(|names| names != facts.sync_names)
    }
}
