//! SHELL. The only room that knows both the decisions and the effects.
//!
//! Port: [`run`], one agent from its checked configuration to its end. In reading order:
//! - [`event`], [`state`]: PURE, run by the simulator too: the newest fact per source, frozen into snapshots;
//! - `run`: the loop; `observe`, `guard_link`: what publishes events; `act`: what executes actions; `measure`: metrics;
//! - [`file`]: the node file on disk; [`starter`]: guards where no service manager starts them;
//! - [`wiring`]: from the configuration to all of it.

mod act;
pub mod event;
pub mod file;
mod guard_link;
mod measure;
mod observe;
mod run;
pub mod starter;
pub mod state;
pub mod wiring;

pub use wiring::run;
