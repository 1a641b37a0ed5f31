//! PURE. The words of the domain: plain data that every other room speaks.
//!
//! May use nothing of ours. No clock, no I/O, no randomness: values and what can be computed from them.
//!
//! In reading order:
//! - [`lsn`], [`wal_layout`], [`timeline`], [`term`], [`moment`]: quantities;
//! - [`node`]: names and identities; [`observed`]: what is known, and since when;
//! - [`record`], [`key`]: what stands in etcd, and transactions on it;
//! - [`records`]: all records of one cluster as one view; [`node_file`]: what a node remembers on its own disk;
//! - [`failsafe`]: what nodes ask of each other while etcd is silent;
//! - [`instance`]: PostgreSQL as seen from outside and inside;
//! - [`policy`], [`policy_check`], [`managed`], [`request`]: what operators decide, what they may not, and what they ask for; [`secret`]: what
//!   must not show.

pub mod failsafe;
pub mod instance;
pub mod key;
pub mod lsn;
pub mod managed;
pub mod moment;
pub mod node;
pub mod node_file;
pub mod observed;
pub mod policy;
pub mod policy_check;
pub mod quorum;
pub mod record;
pub mod records;
pub mod request;
pub mod secret;
pub mod term;
pub mod timeline;
pub mod wal_layout;
