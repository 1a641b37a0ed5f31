//! EFFECT. PostgreSQL: its programs, its files, and what it says over SQL.
//!
//! May use `model` and `clock` only. The postmaster itself belongs to the guard: this room says how it is to be started,
//! writes its configuration, asks it questions, and runs the programs that work on a stopped data directory.
//!
//! In reading order:
//! - [`settings`]: who and where; [`process`]: PostgreSQL's own programs as children with a deadline; [`version`];
//! - [`config_files`], [`parameters`], [`hba`], [`conninfo`]: the managed configuration; [`command`]: how the postmaster is started;
//!   [`overrides`]: what `ALTER SYSTEM` puts above it;
//! - [`session`], [`server`], [`tls`], [`peer`]: SQL, to the local server and to other members;
//! - [`probe`], [`lag`]: what the server says; [`processes`]: what the kernel says of it;
//! - [`replication`], [`slots`], [`schema`]: what is done over SQL.

pub mod command;
pub mod config_files;
pub mod conninfo;
mod hba;
pub mod lag;
pub mod overrides;
pub mod parameters;
pub mod peer;
pub mod probe;
pub mod process;
pub mod processes;
pub mod replication;
mod schema;
mod server;
mod session;
pub mod settings;
pub mod slots;
mod tls;
pub mod version;

pub use command::{StartCommand, check_configuration, start_command};
pub use config_files::{ConfigFiles, Configuration, Follow, Recovery};
pub use probe::Via;
pub use process::{Failure, Owner, Program};
pub use server::Server;
pub use settings::{Credential, ReplicationTls, Role, Roles, Secret, Settings, SslMode};

use crate::model::moment::Span;
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
    #[error("{doing}: no answer within {limit}")]
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
            | Self::Sql { .. } => Outcome::NotDone,
            Self::Program(_) | Self::File { .. } | Self::Malformed { .. } | Self::Gone { .. } | Self::Timeout { .. } => Outcome::Unknown,
        }
    }

    /// A file error, from what was being done to which path.
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { doing, path, source }
    }
}
