//! EFFECT. From agent to agent: the questions that nodes ask each other while etcd is silent (protocol 1.16).
//!
//! May use [`model`](crate::model) and [`clock`](crate::clock). Whoever holds the cluster's peer key is a member; nobody else is answered, and
//! nobody else's answer counts. Nothing here is secret but the key: messages are sealed, not hidden.
//!
//! - [`seal`]: the key, and what a seal covers; [`message`]: what is sent;
//! - [`door`]: which questions are let in: of this cluster, for this node, sealed, and each once;
//! - [`client`] asks.

pub mod client;
pub mod door;
pub mod message;
pub mod seal;

pub use client::Client;
pub use door::Door;
pub use seal::Key;

/// Where questions are taken.
pub const PATH: &str = "/v1/peer/failsafe";

/// The header that holds a message's seal.
pub const SEAL: &str = "pgbaton-seal";

/// No message is longer, in bytes.
pub const LARGEST: usize = 4 << 10;
