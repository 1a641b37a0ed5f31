//! SHELL. The only room that knows both the decisions and the effects.
//!
//! [`event`] and [`state`] are pure, and are run by the simulator too: `state` keeps the newest fact per source and
//! freezes snapshots. The rest is the loop around them: observe → decide → act.

pub mod event;
pub mod state;
