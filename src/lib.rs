//! pgbaton: whoever holds the baton is the primary.
//!
//! The loop is the whole idea: **observe → decide → act**. Read in this order:
//! - [`model`]: the words;
//! - [`decide`]: every rule, as a pure function of a snapshot;
//! - [`agent`]: the loop around the rules; [`clock`]: the one reader of clocks;
//! - [`dcs`]: etcd, where the records stand;
//! - [`postgres`]: the server, its files and its programs;
//! - [`guard`]: the process that owns PostgreSQL and the deadline;
//! - [`peers`]: what agents ask each other while etcd is silent;
//! - [`telemetry`]: what a process tells of itself;
//! - [`api`], [`cli`]: what people and programs touch;
//! - [`config`]: what operators write, checked;
//! - [`sim`]: the rules under faults, on virtual time;
//! - [`lab`]: clusters of real processes, for demo, drills and tests.

pub mod agent;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod dcs;
pub mod decide;
pub mod guard;
pub mod lab;
pub mod model;
pub mod peers;
pub mod postgres;
pub mod sim;
pub mod telemetry;
