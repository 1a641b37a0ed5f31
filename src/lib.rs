//! pgbaton: whoever holds the baton is the primary.
//!
//! The loop is the whole idea: **observe → decide → act**. Read in this order:
//! - [`model`]: the words;
//! - [`decide`]: every rule, as a pure function of a snapshot;
//! - [`config`]: what operators write, checked;
//! - [`telemetry`]: what a process tells of itself.

pub mod agent;
pub mod clock;
pub mod config;
pub mod decide;
pub mod model;
pub mod telemetry;
