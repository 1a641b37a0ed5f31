//! pgbaton: whoever holds the baton is the primary.
//!
//! The loop is the whole idea: **observe → decide → act**. Read in this order:
//! - [`model`]: the words;
//! - [`decide`]: every rule, as a pure function of a snapshot.

pub mod clock;
pub mod lab;
pub mod model;
