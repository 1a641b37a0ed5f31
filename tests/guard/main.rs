//! The guard as a process: real PostgreSQL, real signals, real deadlines.

mod deadline;
mod host;
mod lifecycle;
mod session;
