//! PROVING. Local clusters of real processes, faults with their undo, and a writer that proves loss and double writers.
//!
//! Used by `pgbaton demo`, by `tests/integration`, by `make bench-failover` and `make soak`. May use `model`, `clock`,
//! and what a person could use: the node's configuration file, `agent.sock`, SQL, and signals. It knows nothing of how
//! the agent decides.
//!
//! A host is a set of namespaces behind one init of ours where the lab is root, else a group of processes on loopback
//! ports; what cannot be done there answers [`NotHere`]. Nothing outlives the lab's owner, however it ends: every host
//! hangs on a line to it.
//!
//! In reading order:
//! - [`host_init`]: the first process of a host; [`host`]: its other end; [`freezer`]: its cgroup; [`procfs`]: who runs in it;
//! - [`switch`]: the network between hosts;
//! - [`disk`]: disks that can be full;
//! - [`command`]: programs that are called and waited for.

pub mod command;
pub mod disk;
pub mod freezer;
pub mod host;
pub mod host_init;
pub mod procfs;
pub mod switch;

pub use host::{Host, Network, NotHere, Walls};
pub use switch::{Carrier, Cut, Lost, Switch};
