//! pgbaton: whoever holds the baton is the primary.
//!
//! The loop is the whole idea: **observe → decide → act**. Read in this order:
//! - [`model`]: the words;
//! - [`decide`]: every rule, as a pure function of a snapshot;
//! - [`config`]: what operators write, checked;
//! - [`dcs`]: etcd, where the records stand;
//! - [`telemetry`]: what a process tells of itself;
//! - [`api`]: what a node answers over HTTP;
//! - [`cli`]: what a person types.

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dcs;
pub mod decide;
pub mod model;
pub mod telemetry;
