//! INPUT. The node's configuration and the first cluster policy: from TOML files to checked plain data.
//!
//! May use `model`; reads the configuration, the files that it names and, in [`environment`], what the host offers.
//! Nothing is written, nothing is started. Whatever is wrong is a [`Faults`]: all of it at once, each fault with its
//! file, line, key and remedy. The agent's wiring turns [`Config`] into each room's `Settings`.
//!
//! In reading order:
//! - [`fault`]: what is wrong, where, and what to do; [`secret`]: what is never printed;
//! - [`file`]: the shape of a TOML file; [`node`]: what a node's file says once it is checked;
//! - [`check`]: file → [`Config`]; [`environment`]: whether this host can do what it says;
//! - [`policy_file`]: `policy.toml` → [`ClusterPolicy`](crate::model::policy::ClusterPolicy);
//! - [`reference`]: every key with its type, default, and what a change takes.

pub mod check;
pub mod environment;
pub mod fault;
mod file;
pub mod node;
pub mod policy_file;
pub mod reference;
pub mod secret;

pub use check::{check_shape, read};
pub use environment::{check_environment, check_host};
pub use fault::{Fault, Faults};
pub use node::Config;
pub use policy_file::{check_policy, read_policy};

#[cfg(test)]
mod tests;
