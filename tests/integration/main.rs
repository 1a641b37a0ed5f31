//! Clusters of real agents, real PostgreSQL and real etcd on namespaces as hosts: what goes wrong, and how it ends.
//!
//! Every run ends with one primary from which all others stream, never two writers, losses within the recorded bound,
//! and no ERROR in a log that its fault does not explain.
//!
//! - `support`: a cluster, its clients, and what is true at the end of each fault;
//! - `faults`: the faults, a row each (`interrupts`: those by Ctrl-C; `voters`: where commits wait); `walks`: clusters that go through them; `soak`: each of them many times;
//! - `torture`: many clients and faults by a seed, judged by their history; `planted`: lies that the judge has to find;
//!   `strikes`: what was done in it; `campaign`: torture for hours;
//! - `tree`: which commit is under test, and what has passed on it;
//! - `operators`: a pause, its end, and a failover by hand; `joining`: data that were there before us; `bad_input`: nodes that were set up wrongly.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends")]

mod bad_input;
mod campaign;
mod faults;
mod interrupts;
mod joining;
mod operators;
mod planted;
mod soak;
mod strikes;
mod successions;
mod support;
mod torture;
mod tree;
mod voters;
mod walks;
