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
//! - [`spec`]: what a lab is made of; [`cluster`]: a whole lab, with `view` (what is seen of it) and `inject` (what is done to it);
//! - [`fault`]: what can go wrong; [`measure`]: what that cost; [`trial`]: both together; [`conclusion`]: how a run ended;
//! - [`node`]: a database node's files and agent; [`status`]: what an agent says of itself;
//! - [`host_init`]: the first process of a host; [`host`]: its other end; [`freezer`]: its cgroup; [`procfs`]: who runs in it;
//! - [`switch`]: the network between hosts;
//! - [`disk`]: disks that can be full;
//! - [`etcd`]: where the nodes agree;
//! - [`writer`]: the measuring client, by its `link`; [`libpq`]: a second one; [`sql`]: single questions; [`journal`]: what clients were told; [`verdict`]: what that proves;
//! - [`torture`]: many clients, faults by a seed, and what their history proves;
//! - [`command`]: programs that are called and waited for; [`janitor`]: what clears up after a lab that was killed.

pub mod cluster;
pub mod command;
pub mod conclusion;
pub mod disk;
pub mod etcd;
pub mod fault;
pub mod freezer;
pub mod host;
pub mod host_init;
mod inject;
pub mod janitor;
pub mod journal;
pub mod libpq;
mod link;
pub mod measure;
pub mod node;
pub mod procfs;
pub mod spec;
pub mod sql;
pub mod status;
pub mod switch;
pub mod torture;
pub mod trial;
pub mod verdict;
mod view;
pub mod writer;

pub use cluster::{Lab, sweep_own};
pub use conclusion::{Conclusion, Excused, LogMark, LogMarks};
pub use etcd::{Etcd, EtcdMember, EtcdTiming, MemberLook};
pub use fault::{Direction, Fault, Injected, Return};
pub use host::{Host, Network, NotHere, Walls};
pub use janitor::Janitor;
pub use journal::Journal;
pub use libpq::LibpqWriter;
pub use measure::Outage;
pub use node::Node;
pub use spec::{Files, LabSpec, Placement};
pub use sql::{Login, Server};
pub use switch::{Carrier, Cut, Lost, Switch};
pub use trial::Trial;
pub use writer::Writer;
