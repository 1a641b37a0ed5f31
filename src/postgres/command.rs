//! How the guard is to start the postmaster: program, arguments, environment, user.

use super::{
    ConfigFiles, Configuration, Error, Settings, durable,
    parameters::{NO_TARGET, OWN_WAL, postgresql_conf},
};
use crate::model::{
    instance::{RecoveryTarget, StartAs},
    moment::Span,
};
use std::{ffi::OsString, path::PathBuf};

/// How long one of PostgreSQL's programs may take to read its configuration or `pg_control`.
const READ_LIMIT: Span = Span::from_secs(10);

/// The longest path of a Unix socket (`sun_path`, without its final zero).
const SOCKET_PATH_LIMIT: usize = 107;

/// A postmaster to start: plain data for the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartCommand {
    /// `postgres`.
    pub program: PathBuf,
    /// Its arguments; no secrets.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory at the start (PostgreSQL goes to PGDATA by itself).
    pub cwd: PathBuf,
    /// Whom it runs as.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Where its output goes until it opens its own log.
    pub log_file: PathBuf,
}

/// Parameters that size shared memory, with the values that a standby needs at least: those its primary had (scenario 72).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floors(pub(super) Vec<(&'static str, i32)>);

/// The parameters in question, with their names in `pg_controldata`'s output.
const SHARED: [(&str, &str); 5] = [
    ("max_connections", "max_connections setting:"),
    ("max_worker_processes", "max_worker_processes setting:"),
    ("max_wal_senders", "max_wal_senders setting:"),
    ("max_prepared_transactions", "max_prepared_xacts setting:"),
    ("max_locks_per_transaction", "max_locks_per_xact setting:"),
];

impl Floors {
    /// What `pg_control` of the data directory says.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Malformed`].
    pub async fn of_control_file(settings: &Settings) -> Result<Self, Error> {
        let ended = settings.program("pg_controldata").arg("-D").arg(&settings.data_dir).run(READ_LIMIT).await?;
        Self::parse(&ended.text())
    }

    /// From the output of `pg_controldata`.
    ///
    /// # Errors
    /// [`Error::Malformed`] where one of the five lines is missing.
    pub fn parse(output: &str) -> Result<Self, Error> {
        let value = |label: &str| output.lines().find_map(|line| line.strip_prefix(label)?.trim().parse().ok());
        let floors = SHARED.iter().map(|(name, label)| Some((*name, value(label)?)));
        let floors = floors.collect::<Option<Vec<_>>>();
        floors
            .map(Self)
            .ok_or_else(|| Error::Malformed { what: "the output of pg_controldata".to_owned(), text: output.chars().take(200).collect() })
    }
}

/// What is needed of these at the least, on any node: a walsender and a slot for every member and some to spare.
const LEAST: [(&str, i32); 2] = [("max_wal_senders", 10), ("max_replication_slots", 10)];

/// How to start the postmaster, after [`ConfigFiles::configure`] has written `configuration`. PostgreSQL is not running.
///
/// What must not be overridden stands on the command line, the only place that wins over `ALTER SYSTEM`. Values that only have to
/// be large enough are compared with what PostgreSQL itself reads from its files (`postgres -C`), and raised where they are not.
///
/// # Errors
/// [`Error::Program`] where PostgreSQL refuses its configuration: its message names file and line.
/// [`Error::Refused`] where the socket's path is too long.
pub async fn start_command(settings: &Settings, configuration: &Configuration, start: StartAs) -> Result<StartCommand, Error> {
    let socket = settings.socket_dir().join(format!(".s.PGSQL.{}", settings.port));
    if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
        let socket = socket.display();
        return Err(Error::Refused(format!("use the Unix socket {socket}: longer than {SOCKET_PATH_LIMIT} bytes (shorten run_dir)")));
    }
    let mut args = fixed_args(settings, configuration);
    for (name, value) in raised(settings, &args, start).await? {
        push(&mut args, name, &value);
    }
    Ok(StartCommand {
        program: settings.bin_dir.join("postgres"),
        args,
        env: vec![("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()), ("LC_ALL".into(), "C".into())],
        cwd: PathBuf::from("/"),
        uid: settings.owner.uid,
        gid: settings.owner.gid,
        log_file: settings.state_dir.join("postgresql.log"),
    })
}

/// Makes the data directory say how the next start is to be: with `standby.signal` or without it, and never with `recovery.signal`.
/// Durable. Also right after a start as primary, to put `standby.signal` back (protocol I6, EXP-6).
///
/// # Errors
/// [`Error::File`]: it may say either.
pub async fn mark(settings: &Settings, start: StartAs) -> Result<(), Error> {
    let data_dir = settings.data_dir.clone();
    let (standby, recovery) = (data_dir.join("standby.signal"), data_dir.join("recovery.signal"));
    durable::within(READ_LIMIT, data_dir, move || {
        durable::remove(&recovery).map_err(Error::file("remove", &recovery))?;
        match start {
            StartAs::Standby if standby.exists() => Ok(()),
            StartAs::Standby => durable::write(&standby, b"", 0o600).map_err(Error::file("write", &standby)),
            StartAs::Primary => durable::remove(&standby).map_err(Error::file("remove", &standby)),
        }
    })
    .await
}

/// Whether PostgreSQL could start on `configuration`, before it is written: a policy that it cannot read must not take a node down at
/// its next restart. Lines of `pg_hba.conf` are not checked (see [`super::Server::configuration_faults`]).
///
/// # Errors
/// [`Error::Program`] with PostgreSQL's message: file, line, parameter. [`Error::File`], [`Error::Refused`].
pub async fn check_configuration(settings: &Settings, configuration: &Configuration) -> Result<(), Error> {
    let candidate = settings.state_dir.join(format!("postgresql.conf.candidate-{}", crate::clock::nonce()));
    let text = postgresql_conf(settings, configuration)?;
    std::fs::write(&candidate, text).map_err(Error::file("write", &candidate))?;
    let mut args = fixed_args(settings, configuration);
    push(&mut args, "config_file", &candidate.display().to_string());
    let checked = configured(settings, &args, "port").await;
    let _ = std::fs::remove_file(&candidate);
    checked.map(|_| ())
}

fn fixed_args(settings: &Settings, configuration: &Configuration) -> Vec<OsString> {
    let sockets = std::iter::once(settings.socket_dir()).chain(settings.socket_dirs.iter().cloned());
    let sockets: Vec<String> = sockets.map(|dir| format!("\"{}\"", dir.display())).collect();
    let mut args = vec!["-D".into(), settings.data_dir.clone().into_os_string()];
    for (name, value) in [
        // A `data_directory` in the operator's file would win over -D.
        ("data_directory", settings.data_dir.display().to_string()),
        ("config_file", ConfigFiles::main(settings).display().to_string()),
        ("hba_file", ConfigFiles::hba(settings).display().to_string()),
        ("ident_file", ConfigFiles::ident(settings).display().to_string()),
        ("external_pid_file", String::new()),
        ("listen_addresses", settings.listen.join(",")),
        ("port", settings.port.to_string()),
        ("unix_socket_directories", sockets.join(",")),
        ("cluster_name", settings.cluster.to_string()),
        ("hot_standby", "on".to_owned()),
        // pg_rewind needs both (its manual page), where there are no checksums.
        ("wal_log_hints", "on".to_owned()),
        ("full_page_writes", "on".to_owned()),
        ("restart_after_crash", "off".to_owned()),
        ("recovery_target_timeline", configuration.recovery.to_string()),
    ] {
        push(&mut args, name, &value);
    }
    NO_TARGET.iter().for_each(|(name, value)| push(&mut args, name, value));
    if configuration.recovery != RecoveryTarget::Latest {
        OWN_WAL.iter().for_each(|(name, value)| push(&mut args, name, value));
    }
    args
}

fn push(args: &mut Vec<OsString>, name: &str, value: &str) {
    args.push("-c".into());
    args.push(format!("{name}={value}").into());
}

/// Parameters whose configured value is too low, with the value that is needed.
async fn raised(settings: &Settings, args: &[OsString], start: StartAs) -> Result<Vec<(&'static str, String)>, Error> {
    let floors = match start {
        StartAs::Standby => Floors::of_control_file(settings).await?.0,
        StartAs::Primary => Vec::new(),
    };
    let mut needed: Vec<(&'static str, i32)> = LEAST.to_vec();
    for (name, floor) in floors {
        match needed.iter_mut().find(|(known, _)| *known == name) {
            Some((_, least)) => *least = floor.max(*least),
            None => needed.push((name, floor)),
        }
    }
    let configured = needed.iter().map(|(name, _)| configured(settings, args, name));
    let (configured, wal_level) =
        tokio::try_join!(futures_util::future::try_join_all(configured), self::configured(settings, args, "wal_level"))?;
    let too_low = needed.iter().zip(configured).filter(|((_, least), value)| value.parse::<i32>().is_ok_and(|value| value < *least));
    let mut raised: Vec<(&'static str, String)> = too_low.map(|((name, least), _)| (*name, least.to_string())).collect();
    // `logical` is more than we need and stays.
    if wal_level == "minimal" {
        raised.push(("wal_level", "replica".to_owned()));
    }
    Ok(raised)
}

/// The value that a parameter would have after a start, as PostgreSQL reads it from the files that [`ConfigFiles::configure`] wrote,
/// the operator's and `ALTER SYSTEM`'s; whether it runs or not. For `archive_command`, say.
///
/// # Errors
/// [`Error::Program`] where PostgreSQL refuses its configuration or does not know the parameter.
pub async fn configured_value(settings: &Settings, configuration: &Configuration, name: &str) -> Result<String, Error> {
    configured(settings, &fixed_args(settings, configuration), name).await
}

/// The value of a parameter as PostgreSQL reads it from its files and this command line.
async fn configured(settings: &Settings, args: &[OsString], name: &str) -> Result<String, Error> {
    let ended = settings.program("postgres").args(args).arg("-C").arg(name).run(READ_LIMIT).await?;
    Ok(ended.text().trim().to_owned())
}
