//! PURE. Every rule, as a function of a snapshot: `decide(&Snapshot) -> Decision`.
//!
//! May use [`model`](crate::model) only: no clock, no randomness, no I/O, no logging. The same snapshot gives the
//! same decision, in production, in the simulator, and when a recording is replayed.
//!
//! A decision's actions are independent of each other. Where an order matters, the later step waits until the
//! earlier one shows as a *fact* in a later snapshot: so a plan may be interrupted after any step, by a crash or by a
//! lost answer, and what follows is decided from what is there.
//!
//! Plain data: [`snapshot`] in, [`decision`] out (with `memory` for the next one). The rules, in the order in which they are asked (see [`decide`]):
//! `routing`, `failsafe` (a peer's question), `step_down`, `stop`, `diagnose`, `registration`, `bootstrap`, `leadership` (with `promotion`, `target`, `election`, `release`,
//! `durability` with `names`, `membership`), `pause`, `vote`, `candidacy` (with `depose`, `flap`), `follow` (with `rejoin`, `unheard`), `upkeep` (with
//! `operator`), and at the end `invariants`.

pub mod decision;
pub mod invariants;
pub mod snapshot;

mod bootstrap;
mod candidacy;
mod copy;
mod cut;
mod depose;
mod diagnose;
mod draft;
mod durability;
mod election;
mod failsafe;
mod failure;
mod flap;
mod follow;
mod leadership;
mod ledger;
mod membership;
mod memory;
mod names;
mod noted;
mod operator;
mod pause;
mod promotion;
mod registration;
mod rejoin;
mod release;
mod routing;
mod scan;
mod step_down;
mod stop;
mod target;
pub mod transition;
mod unheard;
mod upkeep;
mod vote;
mod voters;
mod went_back;
mod wording;

pub use depose::found_gone_after;
pub use failsafe::answer_to;
pub use ledger::texts as ledger_texts;
pub use upkeep::SILENT_AFTER;

use decision::{Action, Decision, Reason, ReasonKind};
use draft::Draft;
use snapshot::Snapshot;

/// Decides what this node does now.
///
/// Total: every snapshot has a decision. Where the invariants would be broken the actions are withheld, an alarm says
/// which, and the guard's deadline is left to expire.
pub fn decide(s: &Snapshot) -> Decision {
    let mut draft = Draft::new(s);
    rules(s, &mut draft);
    let mut decision = draft.finish();
    let violations = invariants::check(s, &decision);
    if !violations.is_empty() {
        decision.actions.retain(|action| matches!(action, Action::Kill));
        for text in violations {
            decision.reasons.push(Reason { id: "invariant".to_owned(), text, kind: ReasonKind::Alarm });
        }
    }
    decision
}

/// The rules on one screen. A rule that returns `Settled` leaves nothing for those after it.
fn rules(s: &Snapshot, d: &mut Draft) {
    routing::rule(s, d);
    failsafe::answer(s, d);
    // Fencing waits for nothing, so it comes before anything that could stop the walk.
    if step_down::rule(s, d) == Flow::Settled {
        return;
    }
    if stop::rule(s, d) == Flow::Settled {
        return;
    }
    if diagnose::rule(s, d) == Flow::Settled || registration::rule(s, d) == Flow::Settled {
        upkeep::member(s, d);
        return;
    }
    if s.etcd.records.leader.is_none() {
        bootstrap::rule(s, d);
    } else if leadership::rule(s, d) == Flow::Goes && pause::rule(s, d) == Flow::Goes {
        vote::rule(s, d);
        if candidacy::rule(s, d) == Flow::Goes {
            follow::rule(s, d);
        }
    }
    upkeep::rule(s, d);
}

/// Whether the rules after this one are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// They are.
    Goes,
    /// They are not: this rule has said all there is to do.
    Settled,
}
