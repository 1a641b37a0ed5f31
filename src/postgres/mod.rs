//! EFFECT. PostgreSQL: its programs, its files, and what it says over SQL.
//!
//! May use `model` and `clock` only. The postmaster itself belongs to the guard: this room says how it is to be started,
//! writes its configuration, asks it questions, and runs the programs that work on a stopped data directory.
//!
//! In reading order:
//! - [`settings`]: who and where; [`process`]: PostgreSQL's own programs as children with a deadline; [`version`];
//! - [`config_files`], [`parameters`], [`hba`]: the managed configuration; [`command`]: how the postmaster is started;
//!   [`overrides`]: what `ALTER SYSTEM` puts above it;
//! - [`session`], [`server`], [`tls`], [`certificate`], [`peer`], [`conninfo`]: SQL, to the local server and to other members;
//! - [`probe`], [`lag`]: what the server says; [`processes`]: what the kernel says of it;
//! - [`replication`], [`slots`], [`schema`]: what is done over SQL;
//! - [`disk`], [`mount`], [`reach`], [`control_data`], [`history`], [`segment`], [`scan`]: what a data directory says while PostgreSQL is stopped;
//! - [`bootstrap`], [`place`], [`basebackup`], [`replace`], [`rewind`], [`rewind_mark`]: how a data directory comes to be; [`durable`]: files that outlive a power cut;
//! - [`fetch`], [`shell`]: what the managed `restore_command` does.

pub mod basebackup;
pub mod bootstrap;
pub mod certificate;
pub mod command;
pub mod config_files;
mod conninfo;

pub mod control_data;
pub mod disk;
mod durable;
pub mod fetch;
mod hba;
pub mod history;
pub mod lag;
mod mount;
pub mod overrides;
pub mod parameters;
pub mod peer;
pub mod place;
pub mod probe;
pub mod process;
pub mod processes;
pub mod reach;
pub mod replace;
pub mod replication;
pub mod rewind;
mod rewind_mark;
pub mod scan;
mod schema;
pub mod segment;
mod server;
mod session;
pub mod settings;
mod shell;
pub mod short;
pub mod slots;
mod sync_names;
mod tls;
pub mod version;

pub use command::{StartCommand, check_configuration, configured_value, start_command};
pub use config_files::{ConfigFiles, Configuration, Follow};
pub use probe::Via;
pub use process::{Ended, Failure, Owner, Program, Stream};
pub use server::Server;
pub use settings::{Credential, ReplicationTls, Role, Roles, Settings, SslMode};

use crate::model::{lsn::Bytes, moment::Span};
use std::path::PathBuf;

/// What is known of an action that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen.
    NotDone,
    /// It may have happened: look before acting again.
    Unknown,
}

/// Why a running PostgreSQL lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The startup process has only begun.
    #[error("the database system is starting up")]
    StartingUp,
    /// A standby that has not replayed far enough to be consistent.
    #[error("recovery has not reached a consistent state yet")]
    NotConsistent,
    /// Crash recovery after a backend's death.
    #[error("the database system is in recovery mode")]
    CrashRecovery,
    /// It is being stopped.
    #[error("the database system is shutting down")]
    ShuttingDown,
}

/// Why this room could not do what it was asked. Each message is a fragment after "could not".
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of PostgreSQL's programs failed.
    #[error(transparent)]
    Program(#[from] Failure),
    /// A file or directory could not be read or written.
    #[error("{doing} {}", path.display())]
    File {
        /// `read`, `write`, `rename`, …
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `pg_control` says nothing that can be believed.
    #[error("read the control file of {}", path.display())]
    ControlData {
        /// The data directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: control_data::NotControlData,
    },
    /// A copy stood still and was given up; the program was killed.
    #[error("go on with {command}: no byte more for {after} after {done}")]
    Standstill {
        /// The command line.
        command: String,
        /// For how long.
        after: Span,
        /// How much was copied.
        done: Bytes,
    },
    /// pg_rewind failed.
    #[error("rewind the data directory ({})", if *touched { "it was touched: only rewind it again or clone" } else { "it is as it was" })]
    Rewind {
        /// Whether it may have changed anything.
        touched: bool,
        /// Why.
        #[source]
        source: Failure,
    },
    /// The end of WAL cannot be told.
    #[error("find the end of WAL")]
    Scan(#[from] scan::BadScan),
    /// The WAL was not read to its end: the kernel could not open or read a file of it, or the program that reads it was ended.
    #[error("read the WAL: {said}")]
    Unreadable {
        /// How that program ended, and what it said.
        said: String,
    },
    /// Something PostgreSQL wrote or said is not what this version understands.
    #[error("understand {what}: {text:?}")]
    Malformed {
        /// What was read.
        what: String,
        /// The text, shortened.
        text: String,
    },
    /// Nobody listens there: no PostgreSQL runs, or it has not come that far. Nothing was done.
    #[error("reach PostgreSQL at {server}: nobody listens there")]
    NotListening {
        /// Where.
        server: String,
    },
    /// PostgreSQL runs and lets nobody in yet, or any more. Nothing was done.
    #[error("connect to {server}: {why}")]
    NotReady {
        /// Where.
        server: String,
        /// Why.
        why: NotReady,
    },
    /// Wrong password, no such role, or no line of `pg_hba.conf` lets us in. Nothing was done; an operator has to look.
    #[error("log in at {server}: {message} (check the role's password file, and pg_hba.conf there)")]
    Authentication {
        /// Where.
        server: String,
        /// What the server said.
        message: String,
    },
    /// Every session is taken, those reserved for superusers too. Nothing was done; PostgreSQL lives.
    #[error("connect to {server}: {message}")]
    TooManySessions {
        /// Where.
        server: String,
        /// What the server said.
        message: String,
    },
    /// The session broke: the server went away, or ended it.
    #[error("{doing}: {why}")]
    Gone {
        /// What was being done.
        doing: String,
        /// How it broke.
        why: String,
    },
    /// No answer in time.
    #[error("{doing}: no answer within {}", .limit.rounded())]
    Timeout {
        /// What was being done.
        doing: String,
        /// How long it was given.
        limit: Span,
    },
    /// The server refused the statement; its transaction is rolled back.
    #[error("{doing}: {message} (SQLSTATE {code})")]
    Sql {
        /// What was being done.
        doing: String,
        /// The SQLSTATE.
        code: String,
        /// What the server said.
        message: String,
    },
    /// What was asked for is not allowed or makes no sense here. Nothing was done; asking again does not help.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// What is known of the action that failed.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Program(Failure::Start { .. })
            | Self::Refused(_)
            | Self::NotListening { .. }
            | Self::NotReady { .. }
            | Self::Authentication { .. }
            | Self::TooManySessions { .. }
            | Self::Sql { .. }
            | Self::ControlData { .. }
            | Self::Scan(_)
            | Self::Unreadable { .. }
            | Self::Rewind { touched: false, .. } => Outcome::NotDone,
            Self::Program(_)
            | Self::File { .. }
            | Self::Malformed { .. }
            | Self::Gone { .. }
            | Self::Timeout { .. }
            | Self::Standstill { .. }
            | Self::Rewind { .. } => Outcome::Unknown,
        }
    }

    /// Something that is not understood, with the beginning of its text.
    pub(crate) fn malformed(what: String, text: &str) -> Self {
        Self::Malformed { what, text: text.chars().take(400).collect() }
    }

    /// A file error, from what was being done to which path.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_limit_is_told_in_milliseconds() {
        let limit = Span::from_nanos(4_699_912_345);
        assert_eq!(Error::Timeout { doing: "look".to_owned(), limit }.to_string(), "look: no answer within 4.699s");
        let killed = Failure::Deadline { command: "initdb".to_owned(), limit, stderr: String::new() };
        assert_eq!(killed.to_string(), "run initdb: killed after 4.699s: ");
    }
}
