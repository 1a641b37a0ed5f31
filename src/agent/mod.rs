//! SHELL. The only room that knows both the decisions and the effects.
//!
//! Port: [`run`], one agent from its checked configuration to its end; [`handle`], what the API may ask. In reading order:
//! - [`event`], [`state`]: PURE, run by the simulator too: the newest fact per source, frozen into snapshots;
//! - `run`: the loop; `observe`, `guard_link`: what publishes events; `act`, `verb`, `copy`, `rewind`: what executes actions; `measure`: metrics;
//! - [`handle`], [`news`], [`change`] (PURE): the last decision, what changed, operator changes as transactions; `serve`: served;
//! - [`file`]: the node file on disk; [`starter`]: guards where no service manager starts them;
//! - [`wiring`]: from the configuration to all of it.

mod act;
pub mod change;
mod copy;
pub mod event;
pub mod file;
mod guard_link;
pub mod handle;
mod measure;
pub mod news;
mod observe;
mod rewind;
mod run;
mod serve;
pub mod starter;
pub mod state;
mod verb;
pub mod wiring;
mod wish;

pub(crate) use observe::chain;
pub use wiring::run;
