//! EFFECT. The guard: a small process that owns PostgreSQL and the deadline, and the agent's way to speak with it (protocol 1.5).
//!
//! The guard is PostgreSQL's ancestor. At each `arm` it sets an absolute kernel timer that kills the guard itself, and what it
//! starts is built so that it dies with it: whoever sleeps, PostgreSQL ends at the deadline. It decides nothing else; it refuses
//! verbs of an older term, and promotions without enough time left.
//!
//! *What may hang.* A process that waits for a disk cannot be killed until the disk answers, and what dies with it waits too. So the
//! guard and the keeper never touch a disk: files are the errands of short-lived children ([`errand`]).
//!
//! May use `model` and `clock` only. No async, no threads in the guard (an errand may have some, and takes them with it); the client is async
//! and runs in the agent.
//!
//! Port: [`server::run`] for the guard's process; [`client::Guard`], [`client::query_status`] and [`client::spawn`] for everybody else.
//! In reading order:
//! - [`protocol`]: what travels between the two; [`client`]: the agent's side;
//! - [`server`]: the guard's main loop; [`session`]: who may speak; [`law`]: which verbs are accepted; [`deadline`]: the kernel timer;
//! - [`instance`]: one PostgreSQL, start after start; [`life`]: one run of it, to the verified end; [`keeper`]: the postmaster's parent, per kill mode; [`launch`]: from fork to
//!   exec; [`reaper`]: who lives, and killing a tree; [`errand`], [`data_dir`]: work on files; [`cut`]: no TCP
//!   between this host and others; [`resolve`]: who they are;
//! - [`selftest`]: whether the kill works here; [`log`]: lines that never hold it up; [`kernel`]: system calls.

pub mod client;
mod cut;
mod data_dir;
mod deadline;
mod errand;
mod instance;
mod keeper;
mod kernel;
mod launch;
mod law;
mod life;
pub mod log;
pub mod protocol;
mod reaper;
mod resolve;
mod selftest;
pub mod server;
mod session;

pub use cut::program as cut_program;

use crate::model::{
    moment::Span,
    node::{ClusterName, NodeName},
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a guard needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardSettings {
    /// Where `guard.sock` and `guard.lock` are; made if its parent exists. One guard a directory.
    pub run_dir: PathBuf,
    /// PostgreSQL's data directory, absolute. It need not exist yet.
    pub data_dir: PathBuf,
    /// What dies with the guard.
    pub kill: KillChoice,
    /// The user (beside root and the guard's own) who may connect; a guard that is root starts PostgreSQL as nobody else.
    pub service_uid: Option<u32>,
    /// The group that owns the socket, and the only one as which a guard that is root starts PostgreSQL.
    pub service_gid: Option<u32>,
    /// For logs.
    pub cluster: ClusterName,
    /// For logs.
    pub node: NodeName,
    /// Where the guard's own stderr goes; unchanged where `None`.
    pub log_file: Option<PathBuf>,
    /// How long PostgreSQL's fast stop may take when the guard gets SIGTERM; then it is killed.
    #[serde(default = "default_stop_timeout")]
    pub stop_timeout: Span,
    /// Leave the caller's session and return to it once running in the background.
    #[serde(default)]
    pub detach: bool,
}

fn default_stop_timeout() -> Span {
    Span::from_secs(60)
}

impl GuardSettings {
    /// Where the guard listens.
    pub fn socket(&self) -> PathBuf {
        socket_in(&self.run_dir)
    }
}

/// Where the guard of `run_dir` listens.
pub fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("guard.sock")
}

/// What dies with the guard, as configured (`[guard] kill`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillChoice {
    /// `namespace` where the self-test shows that it works, else `descendants`.
    Auto,
    /// The guard's control group.
    Cgroup,
    /// A PID namespace.
    Namespace,
    /// Guard and sub-reaper watch each other.
    Descendants,
}

/// How the postmaster is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartCommand {
    /// The `postgres` binary, absolute.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<String>,
    /// Its whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Where it starts; it must be allowed to enter.
    pub working_dir: PathBuf,
    /// The owner of the data directory; never 0.
    pub uid: u32,
    /// The owner's group.
    pub gid: u32,
    /// The data directory; the guard's own.
    pub data_dir: PathBuf,
    /// Where stdout and stderr go, appended; made by the owner.
    pub log_file: PathBuf,
}

/// Why a guard could not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings ask for what is not there.
    #[error("{0}")]
    Settings(String),
    /// Another guard holds the lock, or what it started still lives.
    #[error("another guard, or what it started, still runs for {}", run_dir.display())]
    Taken {
        /// Whose lock is held.
        run_dir: PathBuf,
    },
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What could not be done.
        what: String,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    fn errno(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |source| Self::System { what, source: source.into() }
    }
}
