//! Torture: concurrent clients on a cluster that is broken again and again, and what their history proves.
//!
//! Three kinds of clients write at every server that says it is no standby, and read at all of them: rows with numbers of their own; lists,
//! to which transactions append and which they read; transfers between accounts whose total never changes. One seed chooses
//! the faults and what the clients do; the time between is the machine's own, so that an equal seed is an equal plan and not an equal run.
//!
//! What clients see is written down, and judged afterwards by code that knows nothing but that evidence. docs/src/torture.md says what is
//! judged, and what is outside.
//!
//! In reading order:
//! - [`schedule`]: which faults, when, for how long; [`lots`]: chance by a seed;
//! - [`history`]: what clients did and were told, and what is there at the end: the evidence;
//! - [`check`]: what it proves;
//! - [`crowd`]: the clients at work; `hand`: one of them at one server; `session`: its connection; [`ground`]: the tables, and what is left in them.

pub mod check;
pub mod crowd;
pub mod ground;
mod hand;
pub mod history;
pub mod lots;
pub mod schedule;
mod session;

pub use check::{Finding, Verdict, judge};
pub use crowd::{Crowd, Told};
pub use history::{Entry, Evidence, Limits, Outcome, Place, Remains, Step, Transfer, Work};
pub use schedule::{Blow, Harm, Round, Schedule, Whom};
