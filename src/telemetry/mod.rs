//! EFFECT. What this process tells of itself: log lines on stderr, metrics as text.
//!
//! May use `model` and `clock`; writes to stderr and reads `PGBATON_LOG`. The crates `tracing_subscriber` and
//! `metrics_exporter_prometheus` have their home here; any room but the pure ones logs by `tracing`.
//!
//! Port: [`log::init`] once a process (an agent: [`log::init_apart`]), and one [`Metrics`] for each node. Only the agent, the API and the CLI record
//! metrics: the effects publish facts.
//!
//! In reading order: [`log`]; [`sink`], which keeps stderr from holding an agent; [`metrics`], the one table of what is measured; [`recorder`], which keeps it.

pub mod log;
pub mod metrics;
pub mod recorder;
mod sink;

pub use recorder::Metrics;
pub use sink::Last;

use crate::model::node::{ClusterName, NodeName};

/// What this room needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// On every metric.
    pub cluster: ClusterName,
    /// On every metric.
    pub node: NodeName,
    /// How log lines look.
    pub format: log::Format,
}

/// Why this room could not begin. Nothing was done; the operator corrects it and starts again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `PGBATON_LOG` is not understood.
    #[error("understand {variable}={value:?}: {why} (write a level, as \"debug\", or \"warn,pgbaton::dcs=debug\")")]
    Filter {
        /// The environment variable.
        variable: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// Log lines already go somewhere in this process.
    #[error("begin to log: this process logs already")]
    Twice,
    /// The thread that writes log lines did not start.
    #[error("start the thread that writes the log")]
    Thread(#[source] std::io::Error),
}
