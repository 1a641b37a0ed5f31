//! SHELL. The only room that knows both the decisions and the effects.
//!
//! [`event`] and [`state`] are pure, and are run by the simulator too: `state` keeps the newest fact per source and
//! freezes snapshots. [`handle`] is what the API may ask, with [`change`] (pure: operator changes as transactions) and
//! [`news`] (what changed from one decision to the next). The rest is the loop around them: observe → decide → act.

pub mod change;
pub mod event;
pub mod handle;
pub mod news;
pub mod state;
