//! The program as people run it: help, exit codes, what is printed, and what is changed.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod changes;
mod check;
mod doctor;
#[path = "../support/etcd.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with other tests")]
mod etcd;
mod fallback;
mod guard;
mod help;
mod host;
mod printed;
#[path = "../api/published.rs"]
mod published;
mod recover;
mod requests;
