//! PostgreSQL's processes as the kernel shows them: found by their working directory, told apart by their titles.
//!
//! Where PostgreSQL lives in a PID namespace of its own (protocol 1.5), the ids that it knows itself by (`pg_stat_activity`,
//! `postmaster.pid`) are not ours; nobody may signal them here (scenario 214). The file itself is the guard's.

use super::Error;
use crate::model::lsn::Lsn;
use std::{fs, path::Path};

/// A process of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProcess {
    /// Its id here.
    pub pid: i32,
    /// Its id in its own PID namespace: the one PostgreSQL itself shows.
    pub inner: i32,
    /// Its title, as `postgres: orders: walreceiver streaming 0/5000148`.
    pub title: String,
}

/// The processes that work in `data_dir`. Zombies are none: they have no working directory any more.
///
/// # Errors
/// [`Error::File`] where /proc or the data directory cannot be read.
pub fn processes(data_dir: &Path) -> Result<Vec<ServerProcess>, Error> {
    let data_dir = fs::canonicalize(data_dir).map_err(Error::file("find", data_dir))?;
    let entries = fs::read_dir("/proc").map_err(Error::file("list", "/proc"))?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    Ok(pids.filter_map(|pid| in_directory(pid, &data_dir)).collect())
}

/// The walreceivers that work in `data_dir`: none or one, but for the instant between two.
///
/// # Errors
/// As [`processes`].
pub fn walreceivers(data_dir: &Path) -> Result<Vec<ServerProcess>, Error> {
    let mut found = processes(data_dir)?;
    found.retain(|process| is_walreceiver(&process.title));
    Ok(found)
}

/// Whether a title is a walreceiver's: `postgres: [cluster: ]walreceiver`, and what it does (PG source, walreceiver.c). A cluster, a
/// role or a database may bear that name too.
fn is_walreceiver(title: &str) -> bool {
    let Some(title) = title.strip_prefix("postgres: ") else { return false };
    let own = title.split_once(": ").map_or(title, |(_, after)| after);
    match own.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["walreceiver"] | ["walreceiver", "idle"] => true,
        ["walreceiver", "streaming", at] | ["walreceiver", "restarting", "at", at] => at.parse::<Lsn>().is_ok(),
        _ => false,
    }
}

fn in_directory(pid: i32, data_dir: &Path) -> Option<ServerProcess> {
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    if cwd != data_dir {
        return None;
    }
    let title = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let title = String::from_utf8_lossy(&title).replace('\0', " ").trim().to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(ServerProcess { pid, inner: inner_pid(&status)?, title })
}

/// The last number of the line `NSpid:`: the id in the innermost namespace.
fn inner_pid(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walreceiver_is_told_from_whatever_else_bears_the_name() {
        for title in ["postgres: walreceiver", "postgres: orders: walreceiver streaming 0/5000148", "postgres: orders: walreceiver idle"] {
            assert!(is_walreceiver(title), "{title}");
        }
        for title in [
            "postgres: walreceiver: startup recovering 000000010000000000000003",
            "postgres: walreceiver: checkpointer",
            "postgres: orders: app walreceiver [local] idle",
            "postgres: orders: walreceiver streaming [local] idle",
            "/usr/lib/postgresql/15/bin/postgres -D /walreceiver",
        ] {
            assert!(!is_walreceiver(title), "{title}");
        }
    }

    #[test]
    fn the_innermost_id_is_the_last_one() {
        assert_eq!(inner_pid("Name:\tpostgres\nPid:\t4711\nNSpid:\t4711\t12\nThreads:\t1\n"), Some(12));
        assert_eq!(inner_pid("Name:\tpostgres\nNSpid:\t4711\n"), Some(4711));
        assert_eq!(inner_pid("Name:\tpostgres\n"), None);
    }
}
