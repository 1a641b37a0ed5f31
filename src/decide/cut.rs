//! Whom the kernel keeps this node from (protocol 1.7 step 3 b): its former primary, once it has promised to follow that one no more.
//!
//! In the quorum modes alone: there a confirmation that arrives after the promise is the loss of a commit. A cleared `primary_conninfo` and a
//! walreceiver that is gone prove too little, as the startup process may be about to start one with the former setting (EXP-16).

use super::{
    decision::{Action, Task},
    draft::Draft,
    snapshot::Snapshot,
};
use crate::model::{
    instance::{Cut, Receiver, ServerRole},
    node::Address,
};
use std::collections::BTreeSet;

/// Whether the kernel lets nothing pass any more between this node and whoever it may have been following; sees to that.
pub(super) fn off(s: &Snapshot, d: &mut Draft) -> bool {
    let lossless = s.is_lossless();
    if !lossless || s.is_empty() {
        return true;
    }
    let wanted = upstreams(s);
    if wanted.is_empty() {
        return true;
    }
    if s.busy(Task::Cut) {
        // What is about to be let through again still shows as cut off.
        return false;
    }
    match s.guard().map(|guard| &guard.cut) {
        Some(Cut::From(from)) if from.is_superset(&wanted) => return true,
        Some(Cut::From(from)) => change(s, d, from.union(&wanted).cloned().collect()),
        // By now the records may name others than those whom a change without a certain end was about.
        Some(Cut::Unknown) => change(s, d, wanted.union(&s.memory.cut_off).cloned().collect()),
        Some(Cut::Unable { why }) => {
            // Tried again all the same, after a rest: what was missing may be here by now.
            put(s, d, wanted.union(&s.memory.cut_off).cloned().collect());
            d.refused("cut", format!("this node promises nothing: it cannot be cut off from its former primary in the kernel ({why})"));
        }
        None => {}
    }
    false
}

fn change(s: &Snapshot, d: &mut Draft, from: BTreeSet<Address>) {
    let names: Vec<String> = from.iter().map(ToString::to_string).collect();
    d.waits("cut", format!("the kernel is to let nothing pass between this node and {}", names.join(", ")));
    put(s, d, from);
}

/// Whatever becomes of the change, the next one begins from this.
fn put(s: &Snapshot, d: &mut Draft, from: BTreeSet<Address>) {
    d.memory.cut_off.clone_from(&from);
    d.act(s, Action::Cut(from));
}

/// Why this node cannot be cut off where it would have to be: in the quorum modes.
pub(super) fn impossible(s: &Snapshot) -> Option<&str> {
    let lossless = s.is_lossless();
    match s.guard().map(|guard| &guard.cut) {
        Some(Cut::Unable { why }) if lossless => Some(why),
        _ => None,
    }
}

/// Whoever this node may be receiving from, or may begin to.
fn upstreams(s: &Snapshot) -> BTreeSet<Address> {
    let mut all = BTreeSet::new();
    all.extend(s.sync().map(|sync| sync.record.address.clone()));
    all.extend(s.configured.iter().filter_map(|configured| configured.follow.as_ref()).map(|follow| follow.address.clone()));
    if let Some(ServerRole::Standby { receiver: Some(Receiver { sender: Some(sender), .. }), .. }) = s.role() {
        all.insert(sender.clone());
    }
    all.remove(&s.me.postgres);
    all
}

/// Whether nothing is in the way of receiving from `to`; sees to that. Others stay cut off until that one streams.
pub(super) fn opens(s: &Snapshot, d: &mut Draft, to: &Address) -> bool {
    match s.guard().map(|guard| &guard.cut) {
        Some(Cut::From(from)) if from.contains(to) => {
            d.waits("cut", format!("{to} is let through again"));
            put(s, d, from.iter().filter(|address| *address != to).cloned().collect());
            false
        }
        // What is there may be in the way. In `async` that is left of another mode at the most: it is taken away, and not waited for.
        Some(Cut::Unknown) => {
            put(s, d, s.memory.cut_off.iter().filter(|address| *address != to).cloned().collect());
            s.sync().is_none_or(|sync| !sync.record.is_lossless())
        }
        _ => true,
    }
}

/// Lets everybody through: this node has found its new primary, or is it.
pub(super) fn lift(s: &Snapshot, d: &mut Draft) {
    d.memory.cut_off.clear();
    let nothing = match s.guard().map(|guard| &guard.cut) {
        Some(Cut::From(from)) => from.is_empty(),
        Some(Cut::Unknown) => false,
        Some(Cut::Unable { .. }) | None => true,
    };
    if !nothing {
        put(s, d, BTreeSet::new());
    }
}
