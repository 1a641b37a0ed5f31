//! EFFECT. PostgreSQL: its programs, its files, and what it says over SQL.
//!
//! May use `model` and `clock` only. The postmaster itself belongs to the guard: this room says how it is to be started,
//! writes its configuration, asks it questions, and runs the programs that work on a stopped data directory.
//!
//! In reading order:
//! - [`settings`]: who and where; [`process`]: PostgreSQL's own programs as children with a deadline;
//! - [`control_data`], [`history`], [`segment`], [`scan`]: what a data directory says while PostgreSQL is stopped.

pub mod basebackup;
pub mod bootstrap;
pub mod control_data;
pub mod disk;
mod durable;
pub mod fetch;
pub mod history;
mod mount;
pub mod place;
pub mod process;
pub mod rewind;
pub mod scan;
pub mod segment;
pub mod settings;
mod shell;

pub use process::{Ended, Failure, Owner, Program, Stream};
pub use settings::{Credential, ReplicationTls, Role, Roles, Secret, Settings, SslMode};

use std::path::PathBuf;

/// What is known of an action that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not happen.
    NotDone,
    /// It may have happened: look before acting again.
    Unknown,
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
        after: crate::model::moment::Span,
        /// How much was copied.
        done: crate::model::lsn::Bytes,
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
    /// Something PostgreSQL wrote or said is not what this version understands.
    #[error("understand {what}: {text:?}")]
    Malformed {
        /// What was read.
        what: String,
        /// The text, shortened.
        text: String,
    },
    /// What was asked for is not allowed or makes no sense here. Nothing was done; asking again does not help.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// What is known of the action that failed.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Program(Failure::Start { .. }) | Self::Refused(_) => Outcome::NotDone,
            Self::ControlData { .. } | Self::Scan(_) | Self::Rewind { touched: false, .. } => Outcome::NotDone,
            Self::Program(_) | Self::File { .. } | Self::Malformed { .. } | Self::Standstill { .. } | Self::Rewind { .. } => {
                Outcome::Unknown
            }
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
