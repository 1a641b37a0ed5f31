//! How the program ends: one table, for scripts.

use crate::{api::client, config::Faults, dcs};
use std::{fmt, process::ExitCode};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// What was asked for was done.
    Done = 0,
    /// It failed, for a reason that has no number of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Nobody answers: neither the agent nor, where that would do, etcd.
    Unreachable = 3,
    /// The cluster refuses it in its present state, or the person may not ask for it.
    Refused = 4,
    /// What is named does not exist.
    NotFound = 5,
    /// It was begun and is not known to have ended: look before repeating it.
    Timeout = 6,
    /// A configuration or policy is wrong.
    Config = 7,
    /// It was looked at, and something is not as it should be.
    Unhealthy = 8,
    /// The person said no.
    Aborted = 9,
}

/// Every exit code with its meaning, as `pgbaton --help` and `docs/src/exit-codes.md` show it.
pub const TABLE: [(Exit, &str); 10] = [
    (Exit::Done, "done"),
    (Exit::Failed, "failed, for another reason than those below"),
    (Exit::Usage, "the command line is wrong"),
    (Exit::Unreachable, "neither the agent nor etcd answers"),
    (Exit::Refused, "refused: not in this state of the cluster, or not by this user"),
    (Exit::NotFound, "what is named does not exist"),
    (Exit::Timeout, "begun and not known to have ended: look before repeating it"),
    (Exit::Config, "a configuration or policy is wrong"),
    (Exit::Unhealthy, "looked at, and something is not as it should be"),
    (Exit::Aborted, "not confirmed"),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure that knows its exit code.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    /// A failure as an error.
    pub fn of(exit: Exit, text: impl Into<String>) -> anyhow::Error {
        Self { exit, text: text.into() }.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The exit code of an error: that of the first cause that has one.
pub fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Failed)
}

/// An error as a person reads it: with everything that caused it, and single faults a line each.
pub fn message(error: &anyhow::Error) -> String {
    error.chain().map(words).collect::<Vec<_>>().join(": ")
}

/// One cause. The rooms' errors are fragments after "could not"; a refusal is a sentence of the node.
fn words(cause: &(dyn std::error::Error + 'static)) -> String {
    match cause.downcast_ref::<client::Error>() {
        Some(client::Error::Refused(refused)) => {
            let faults: String = refused.faults.iter().map(|fault| format!("\n  {fault}")).collect();
            format!("{}{faults}", refused.detail)
        }
        Some(error) => format!("could not {error}"),
        None if cause.is::<dcs::Error>() => format!("could not {cause}"),
        None => cause.to_string(),
    }
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if cause.is::<Faults>() {
        return Some(Exit::Config);
    }
    if let Some(error) = cause.downcast_ref::<client::Error>() {
        return Some(match error {
            client::Error::Address { .. } => Exit::Usage,
            client::Error::Unreachable { .. } => Exit::Unreachable,
            client::Error::NoAnswer { .. } => Exit::Timeout,
            client::Error::Refused(refused) => of_refusal(refused),
            client::Error::Foreign { .. } => Exit::Failed,
        });
    }
    cause.downcast_ref::<dcs::Error>().map(|error| match error {
        dcs::Error::Settings(_) => Exit::Config,
        dcs::Error::Unreachable(_) => Exit::Unreachable,
        dcs::Error::Denied(_) | dcs::Error::Rejected(_) => Exit::Refused,
        dcs::Error::NoSpace(_) | dcs::Error::NoAnswer(_) => Exit::Timeout,
    })
}

fn of_refusal(refused: &client::Refused) -> Exit {
    match (refused.status, refused.kind.as_str()) {
        (_, "invalid") => Exit::Config,
        (_, "outcome-unknown" | "timeout") => Exit::Timeout,
        (_, "starting" | "busy" | "etcd-unreachable") => Exit::Unreachable,
        (404, _) => Exit::NotFound,
        (401 | 403 | 409, _) => Exit::Refused,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn only_a_rooms_own_error_reads_could_not() {
        let silent = || dcs::Error::Unreachable("no endpoint answers".to_owned());
        assert_eq!(message(&silent().into()), "could not reach etcd: no endpoint answers");
        let told = Err::<(), _>(silent()).context("etcd has to answer").expect_err("an error");
        assert_eq!(message(&told), "etcd has to answer: could not reach etcd: no endpoint answers");
        assert_eq!(of(&told), Exit::Unreachable);
    }
}
