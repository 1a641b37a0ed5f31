//! SURFACE. What a node answers over HTTP: to load balancers, to monitoring, to operators and their tools.
//!
//! May use `model`, `clock`, the types of `decide`, `agent::handle`, `peers` and `telemetry`. The crates `axum`, `hyper` and `reqwest` have
//! their home here.
//!
//! Everything that is read comes from memory, on a runtime of its own: it is answered while PostgreSQL, etcd or the agent's loop
//! hang. `/primary` compares the deadline of the permission to take writes with the clock at that very moment.
//! Over TCP nothing can be changed (tokens do not exist yet); over `agent.sock` root and the service user may.
//!
//! Port: [`listen`] and [`start`] on the agent's side, [`client::Client`] for everybody else.
//! In reading order:
//! - [`routes`]: every path on one screen; [`caller`]: who asks, and what he may;
//! - [`health`] with [`query`]: the paths of load balancers, compatible with Patroni; [`status`] with [`durability`]: `/v1/status`, also for those who read it;
//! - [`operations`]: policy, intent, history, audit; `peer`: what other nodes ask; [`events`]: what changes, live; [`problem`]: errors (RFC 9457);
//! - [`server`] ([`listen`], then [`start`]), [`allow`], [`patience`]: sockets, who may connect, and for how long a slow client is waited for;
//! - [`client`]: the other end.

pub mod allow;
pub mod caller;
pub mod client;
pub mod durability;
mod events;
pub mod health;
mod operations;
mod patience;
mod peer;
mod problem;
mod query;
mod routes;
mod server;
pub mod status;

pub use server::{Listeners, Server, listen, start};

use crate::{model::moment::Span, peers::Door, telemetry::Metrics};
use allow::Network;
use std::{path::PathBuf, sync::Arc};

/// Renders all metrics in Prometheus' text format. Must not wait for anything.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// What this room needs to know.
#[derive(Clone)]
pub struct Settings {
    /// Where the Unix socket is made, with mode 0660; `None`: none. Its directory is there. At most 107 bytes.
    pub socket: Option<PathBuf>,
    /// From where TCP requests are answered; empty: from everywhere.
    pub allow: Vec<Network>,
    /// The user who may change things over the Unix socket, beside root.
    pub service_uid: u32,
    /// What `/metrics` answers.
    pub render: Render,
    /// Which questions of other nodes are let in; `None`: none, there is no peer key.
    pub door: Option<Arc<Door>>,
    /// Where the durations of requests are counted.
    pub metrics: Option<Arc<Metrics>>,
    /// How long a client may take to send a request, to read a part of an answer, or to be silent on an open connection.
    pub patience: Span,
}

impl Settings {
    /// No sockets yet, no metrics, 5 s of patience.
    pub fn new(service_uid: u32) -> Self {
        let render: Render = Arc::new(String::new);
        Self { socket: None, allow: Vec::new(), service_uid, render, door: None, metrics: None, patience: Span::from_secs(5) }
    }
}

/// Why the API could not be started. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody answers on the socket: another agent runs for this node.
    #[error("listen on {}: another agent answers there", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// An address or socket cannot be listened on.
    #[error("listen on {place}")]
    Listen {
        /// Address or path.
        place: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("start the runtime of the API")]
    Runtime(#[source] std::io::Error),
}

impl Error {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        use std::io::ErrorKind;
        match self {
            Self::Taken { .. } => Some("stop it first"),
            Self::Listen { source, .. } => match source.kind() {
                ErrorKind::AddrInUse => Some("another program uses it: stop it, or change [api] listen"),
                ErrorKind::AddrNotAvailable => Some("no interface of this host has it: change [api] listen"),
                _ => None,
            },
            Self::Runtime(_) => None,
        }
    }
}
