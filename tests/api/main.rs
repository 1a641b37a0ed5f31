//! The API over real sockets, in front of a hand-made agent.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "this is test code")]

mod changes;
mod contract;
mod defence;
mod live;
mod peer;
mod published;
mod read;
mod seat;
