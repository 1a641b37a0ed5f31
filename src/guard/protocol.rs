//! What travels over `guard.sock`: one JSON value a line, in both directions.
//!
//! A guard lives as long as its PostgreSQL, so a newer agent has to speak with an older guard: fields are only added, a verb that
//! a guard does not know is refused (nothing was done), and [`VERSION`] is raised when neither is enough: then both refuse each other.

use super::StartCommand;
use crate::model::{
    instance::{GuardStatus, StartAs, StopMode},
    moment::Moment,
    node::{Address, Incarnation},
    term::Term,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The version of this protocol.
pub const VERSION: u32 = 1;

/// The version that a first line names, whatever else it says: another version may say more, or say it in another way.
pub(super) fn version_of(line: &[u8]) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    let version = value.as_object()?.values().find_map(|greeting| greeting.get("protocol")?.as_u64())?;
    u32::try_from(version).ok()
}

/// Why a guard and a program of these versions do not speak with each other; `None`: they do.
pub(super) fn mismatch(guard: u32, program: u32) -> Option<String> {
    (guard != program).then(|| {
        format!(
            "this guard speaks version {guard} of its protocol, this pgbaton version {program}: start the former pgbaton again and stop this \
             node in order (SIGINT to its agent), which ends the guard and lets another node go on; then start this pgbaton"
        )
    })
}

/// The longest line that is read: a start command with a rich environment fits.
pub(super) const LONGEST_LINE: usize = 256 * 1024;

/// The first line of a connection. Which process asks, the kernel says (`SO_PEERCRED`), not the message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Hello {
    /// An agent takes the session; the agent that had it dies first.
    Session {
        /// [`VERSION`] of the agent.
        protocol: u32,
        /// This run of the agent.
        agent: Incarnation,
    },
    /// Somebody only wants the status.
    Query {
        /// [`VERSION`] of the asker.
        protocol: u32,
    },
}

/// A line of the agent in session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request<V = Verb> {
    /// Repeated in the answer. Counted by the agent.
    pub(super) id: u64,
    /// This run of the agent.
    pub(super) agent: Incarnation,
    /// The term that the agent acts for; at least the highest that the guard has seen.
    pub(super) term: Term,
    /// What to do.
    pub(super) verb: V,
}

/// What an agent may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verb {
    /// Start PostgreSQL. Answered once the processes exist; whether it serves, SQL tells.
    Start {
        /// As what.
        start: StartAs,
        /// How.
        command: StartCommand,
    },
    /// Begin to stop PostgreSQL. Answered at once; the end comes as a status.
    Stop {
        /// How.
        mode: StopMode,
        /// When the kill follows, on this machine's `CLOCK_BOOTTIME`.
        deadline: Moment,
    },
    /// Kill everything. Answered at once; the verified end comes as a status.
    Kill,
    /// Move the deadline.
    Arm {
        /// To when.
        until: Moment,
        /// Whether this session renewed or adopted the lease by its own swap; needed for a later deadline.
        by_own_swap: bool,
    },
    /// Promote the standby. Answered once PostgreSQL has been told.
    Promote,
    /// Take the deadline away.
    Disarm {
        /// The cluster's pause is committed: allowed while a primary lives.
        paused: bool,
    },
    /// Nothing passes between this host and these servers from now on, and everything else does again. Answered once it is so.
    Cut {
        /// PostgreSQL's addresses of other hosts; with none, nothing is cut any more.
        from: BTreeSet<Address>,
    },
    /// End the guard; refused while PostgreSQL is not verified empty.
    Quit,
    /// Only the status.
    Status,
}

/// Whether a verb does nothing but end PostgreSQL: done late, and for somebody who has gone, it harms nobody.
pub(super) fn only_ends(verb: &serde_json::Value) -> bool {
    verb == "kill" || verb.get("stop").is_some()
}

/// A line of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    /// To a hello that was accepted.
    Welcome {
        /// [`VERSION`] of the guard.
        protocol: u32,
        /// As it is now.
        status: GuardStatus,
    },
    /// To a hello that was not.
    Rejected {
        /// Why, for people.
        why: String,
    },
    /// The verb was done, or begun where its description says so.
    Done {
        /// Of the request.
        id: u64,
        /// Afterwards.
        status: GuardStatus,
    },
    /// Nothing was done.
    Refused {
        /// Of the request.
        id: u64,
        /// Why, for people.
        why: String,
        /// As it is.
        status: GuardStatus,
    },
    /// Something changed.
    Status(GuardStatus),
}
