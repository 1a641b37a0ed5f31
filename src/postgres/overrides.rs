//! What `ALTER SYSTEM` has put above the managed configuration, how it is taken back, and what PostgreSQL cannot use of it all.
//!
//! PostgreSQL reads `postgresql.auto.conf` after `config_file`, so a value there wins over ours for everything that does not stand
//! on the command line. It also travels with clones, and tools write `primary_conninfo` there.

use super::{
    Error, Server, Settings, durable,
    parameters::{NO_TARGET, is_reloaded},
    session::column,
};
use crate::model::{instance::Run, moment::Span, policy_check::is_weak_commit};
use std::{fs, io::ErrorKind};

/// The operators' own, as long as commits wait for nobody.
const COMMIT: &str = "synchronous_commit";

/// How long rewriting one small file may take.
const DISK_LIMIT: Span = Span::from_secs(10);

/// A managed parameter that `postgresql.auto.conf` sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overridden {
    /// The parameter, in lower case.
    pub name: String,
    /// Its value there, as written; a password in it is not shown.
    pub value: String,
}

/// A line of a configuration file that PostgreSQL cannot use: it goes on with what it had, and would not start again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file.
    pub file: String,
    /// The line, 1 being the first; 0 where none is to blame.
    pub line: u32,
    /// What is wrong with it.
    pub what: String,
}

/// The managed parameters that `postgresql.auto.conf` in the data directory sets above the managed file, in its order. `waits`: commits wait for
/// replicas, and a `synchronous_commit` there that lets them go counts, too.
///
/// # Errors
/// [`Error::File`] where it cannot be read, or the disk does not answer; one that does not exist sets nothing.
pub async fn overridden(settings: &Settings, waits: bool) -> Result<Vec<Overridden>, Error> {
    set_there(settings, move |found| is_ours(&found.name) || waits && lets_go(found)).await
}

/// Whether it lets commits go that have to wait.
fn lets_go(found: &Overridden) -> bool {
    found.name == COMMIT && is_weak_commit(found.value.trim_matches('\''))
}

/// Whether the managed file has the last word on a parameter.
fn is_ours(name: &str) -> bool {
    is_reloaded(name) || name == "restore_command"
}

async fn set_there(settings: &Settings, ours: impl Fn(&Overridden) -> bool + Send + 'static) -> Result<Vec<Overridden>, Error> {
    let path = settings.data_dir.join("postgresql.auto.conf");
    durable::within(DISK_LIMIT, path.clone(), move || match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(assignment).filter(ours).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::file("read", path)(error)),
    })
    .await
}

/// Takes the managed parameters, and what would end a recovery, out of `postgresql.auto.conf` while PostgreSQL is stopped; returns those that it held.
/// Standbys that other tools made bear their `primary_conninfo` there. Lines of the operator's own stay.
///
/// # Errors
/// [`Error::File`]: the file is as it was.
pub async fn strip(settings: &Settings, waits: bool) -> Result<Vec<Overridden>, Error> {
    // A target stands on the command line, and what differs from that here would wait for a restart for ever.
    let target = |name: &str| NO_TARGET.iter().any(|(target, _)| *target == name);
    let found = set_there(settings, move |found| is_ours(&found.name) || target(&found.name) || waits && lets_go(found)).await?;
    if found.is_empty() {
        return Ok(found);
    }
    let (path, names) = (settings.data_dir.join("postgresql.auto.conf"), found.clone());
    let ours = move |line: &str| assignment(line).is_some_and(|here| names.iter().any(|other| other.name == here.name));
    durable::within(DISK_LIMIT, path.clone(), move || {
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let kept: String = text.lines().filter(|line| !ours(line)).flat_map(|line| [line, "\n"]).collect();
        durable::write(&path, kept.as_bytes(), 0o600).map_err(Error::file("write", &path))
    })
    .await?;
    Ok(found)
}

/// `name = 'value'`, as `ALTER SYSTEM` writes it, one a line.
fn assignment(line: &str) -> Option<Overridden> {
    let line = line.trim();
    let end = line.find(|letter: char| letter == '=' || letter.is_whitespace())?;
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let value = rest.trim().trim_start_matches('=').trim();
    let secret = value.to_ascii_lowercase().contains("password") || value.contains("://");
    let shown = if secret { "(not shown: it may hold a password)" } else { value };
    Some(Overridden { name: name.to_ascii_lowercase(), value: shown.to_owned() })
}

impl Server {
    /// The lines of all configuration files, the operator's too, that the running server cannot use. For after a reload.
    ///
    /// # Errors
    /// As for any session.
    pub async fn configuration_faults(&self, run: Run, limit: Span) -> Result<Vec<Fault>, Error> {
        // A value that waits for a restart counts as an error there; it is `pending_restart`, and no fault.
        let sql = "SELECT coalesce(sourcefile, '') AS file, coalesce(sourceline, 0) AS line, coalesce(name || ': ', '') || error AS what \
                   FROM pg_file_settings WHERE error IS NOT NULL AND error <> 'setting could not be applied' OR \
                   error = 'setting could not be applied' AND name NOT IN (SELECT name FROM pg_settings WHERE context IN ('postmaster', 'internal')) \
                   UNION ALL SELECT current_setting('hba_file'), line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL";
        let rows = self.rows(run, "look for faults in the configuration files", sql, &[], limit).await?;
        let fault = |row| {
            let line = u32::try_from(column::<i32>(row, "line")?).unwrap_or_default();
            Ok(Fault { file: column(row, "file")?, line, what: column(row, "what")? })
        };
        rows.iter().map(fault).collect()
    }

    /// Takes one managed parameter back (`ALTER SYSTEM RESET`) on the running server; a reload makes it count.
    ///
    /// # Errors
    /// [`Error::Refused`] for a parameter that is not managed: that one is the operator's. As for any session.
    pub async fn reset_override(&self, run: Run, name: &str, limit: Span) -> Result<(), Error> {
        if !is_ours(name) && name != COMMIT {
            return Err(Error::Refused(format!("reset {name}: it is not managed")));
        }
        // The name is one of our own list: nothing to quote.
        let sql = format!("ALTER SYSTEM RESET {}", name.to_ascii_lowercase());
        self.rows(run, &format!("reset {name} in postgresql.auto.conf"), &sql, &[], limit).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_as_alter_system_writes_them() {
        let found = assignment("primary_conninfo = 'host=a user=b'").expect("assignment");
        assert_eq!((found.name.as_str(), found.value.as_str()), ("primary_conninfo", "'host=a user=b'"));
        assert_eq!(assignment("# Do not edit this file manually!"), None);
        let hidden = assignment("primary_conninfo = 'password=geheim'").expect("assignment");
        assert!(!hidden.value.contains("geheim"));
    }
}
