//! The guard as a process: real PostgreSQL, real signals, real deadlines.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod cut;
mod deadline;
#[cfg(test)]
mod host;
mod lifecycle;
#[cfg(test)]
mod session;
#[cfg(test)]
mod unanswered;
