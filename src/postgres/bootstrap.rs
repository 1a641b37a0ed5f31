//! `initdb`: the data directory of a new cluster.

use super::{Error, Settings, disk, durable};
use crate::model::{
    instance::{ControlState, DataDir},
    moment::Span,
    node_file::{NodeFile, Operation},
    secret::Secret,
    timeline::TimelineId,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// How long removing what a failed `initdb` left may take.
const CLEAN_LIMIT: Span = Span::from_secs(60);

/// Options of `initdb` that are ours to give, in their long and short forms.
const OURS: [&str; 8] = ["--pgdata", "--waldir", "--username", "--pwfile", "--pwprompt", "--no-clean", "--show", "--sync-only"];
const OURS_SHORT: [char; 7] = ['D', 'X', 'U', 'W', 'n', 's', 'S'];

/// What the operator decides about a new cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `[bootstrap] initdb`, as `--encoding=UTF8`. Directories, superuser and password are ours to give.
    pub args: Vec<String>,
    /// The superuser's password; without one it can only log in over the Unix socket, by `peer`.
    pub password: Option<Secret>,
}

/// Makes the data directory, with data checksums, `peer` for local and `scram-sha-256` for other connections.
///
/// The directory (and `wal_dir`, where one is set) must be missing or empty. It ends with `standby.signal`, as every data
/// directory at rest does (protocol I6), and is durable when this returns.
///
/// # Errors
/// [`Error::Refused`]: nothing was touched. Any other: what `initdb` made was removed again, and what was there before is
/// still there; where even that failed, the message says what is left. A dropped future may leave a half-made directory.
pub async fn initdb(settings: &Settings, options: &Options, limit: Span) -> Result<(), Error> {
    check(settings, options).await?;
    let password = match &options.password {
        Some(secret) => Some(PasswordFile::write(settings, secret)?),
        None => None,
    };
    let made = Made::before(settings);
    let done = run(settings, options, password.as_ref(), limit).await;
    drop(password);
    let Err(error) = done else { return Ok(()) };
    durable::within(CLEAN_LIMIT, settings.data_dir.clone(), move || made.remove()).await?;
    Err(error)
}

async fn run(settings: &Settings, options: &Options, password: Option<&PasswordFile>, limit: Span) -> Result<(), Error> {
    let mut program = settings.program("initdb").arg("--pgdata").arg(&settings.data_dir);
    program = program.args(["--username", &settings.roles.superuser, "--auth-local=peer", "--auth-host=scram-sha-256"]);
    if !options.args.iter().any(|arg| decides_checksums(arg)) {
        program = program.arg("--data-checksums");
    }
    if let Some(wal_dir) = &settings.wal_dir {
        program = program.arg("--waldir").arg(wal_dir);
    }
    if let Some(file) = password {
        program = program.arg("--pwfile").arg(&file.0);
    }
    program.args(&options.args).run(limit).await?;
    let signal = settings.data_dir.join("standby.signal");
    durable::write(&signal, b"", 0o600).map_err(Error::file("write", &signal))
}

async fn check(settings: &Settings, options: &Options) -> Result<(), Error> {
    if let Some(arg) = options.args.iter().find(|arg| is_ours(arg)) {
        return Err(Error::Refused(format!(
            "[bootstrap] initdb: {arg:?} is given by pgbaton itself (data_dir, wal_dir, the superuser role)"
        )));
    }
    let data_dir = settings.data_dir.display();
    match disk::inspect(settings).await {
        DataDir::Missing | DataDir::Empty => {}
        DataDir::Present(_) => return Err(Error::Refused(format!("{data_dir} already holds a data directory"))),
        DataDir::Unusable { why } => return Err(Error::Refused(why)),
    }
    // initdb refuses the root of a file system itself, with advice that is hard to follow from a log.
    if settings.data_dir.join("lost+found").exists() {
        return Err(Error::Refused(format!("{data_dir} is the root of a file system (lost+found): set data_dir to a directory in it")));
    }
    if let Some(wal_dir) = settings.wal_dir.as_deref().filter(|path| !is_empty(path)) {
        let wal_dir = wal_dir.display();
        return Err(Error::Refused(format!("wal_dir {wal_dir} is not empty: initdb needs an empty or missing directory")));
    }
    Ok(())
}

/// Whether a directory has no entry, or is not there. One that cannot be read is left to `initdb` to complain of.
fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
}

fn is_ours(arg: &str) -> bool {
    let long = arg.split('=').next().unwrap_or(arg);
    // getopt takes any unambiguous beginning of a long option.
    let ours = long.len() > 3 && long.starts_with("--") && OURS.iter().any(|option| option.starts_with(long));
    let short = arg.strip_prefix('-').and_then(|rest| rest.chars().next()).is_some_and(|first| OURS_SHORT.contains(&first));
    // Anything that is no option would be taken for the data directory, unless it is the value of the option before it.
    ours || short || arg == "--"
}

/// Whether an argument of the operator's says how it is with data checksums: ours would be there twice, or against it.
fn decides_checksums(arg: &str) -> bool {
    // Since PostgreSQL 18 there is --no-data-checksums; getopt takes an unambiguous beginning.
    arg == "-k" || ["--data-checksums", "--no-data-checksums"].iter().any(|option| arg.len() > 6 && option.starts_with(arg))
}

/// The password in a file that only the owner can read, gone when dropped.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn write(settings: &Settings, secret: &Secret) -> Result<Self, Error> {
        if secret.reveal().contains(['\n', '\r']) || secret.reveal().is_empty() {
            return Err(Error::Refused("the superuser's password is empty or has more than one line".to_owned()));
        }
        let file = Self(settings.state_dir.join("initdb-password"));
        let failed = |source| Error::File { doing: "write", path: file.0.clone(), source };
        durable::write(&file.0, format!("{}\n", secret.reveal()).as_bytes(), 0o600).map_err(failed)?;
        std::os::unix::fs::chown(&file.0, Some(settings.owner.uid), Some(settings.owner.gid)).map_err(failed)?;
        Ok(file)
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        // A file that cannot be removed stays readable by the owner alone, and is written over by the next attempt.
        drop(fs::remove_file(&self.0));
    }
}

/// What was there before `initdb`: what it made is the rest.
struct Made {
    directories: Vec<(PathBuf, bool)>,
}

impl Made {
    fn before(settings: &Settings) -> Self {
        let directories = [Some(&settings.data_dir), settings.wal_dir.as_ref()];
        Self { directories: directories.into_iter().flatten().map(|path| (path.clone(), path.exists())).collect() }
    }

    /// Removes the directories that were missing before and the contents of those that were empty.
    fn remove(self) -> Result<(), Error> {
        self.directories.into_iter().try_for_each(|(path, was_there)| {
            let removed = if was_there { durable::empty(&path) } else { durable::remove_tree(&path) };
            removed.map_err(Error::file("remove what initdb left in", path))
        })
    }
}

/// Proof that a data directory is this node's own `initdb` and never served: what the node file says.
#[derive(Clone, Copy, Debug)]
pub struct InitialisedHere(());

impl InitialisedHere {
    /// By the node file: an `initdb` that has not ended, or one whose directory was never started as primary.
    pub fn by(file: &NodeFile) -> Option<Self> {
        (file.initialised || matches!(file.operation, Some(Operation::InitDb))).then_some(Self(()))
    }
}

/// Removes a data directory that this node's own `initdb` made and that never served: another node bootstrapped first.
///
/// # Errors
/// [`Error::Refused`] when `pg_control` shows that it was started: nothing was touched.
pub async fn discard(settings: &Settings, _: InitialisedHere) -> Result<(), Error> {
    let has = |name: &str| settings.data_dir.join(name).exists();
    match disk::inspect(settings).await {
        DataDir::Missing | DataDir::Empty => return Ok(()),
        DataDir::Present(facts)
            if facts.control.state == ControlState::ShutDown && !facts.started && facts.control.tli() == TimelineId::FIRST => {}
        DataDir::Present(facts) => {
            let state = facts.control.state;
            return Err(Error::Refused(format!(
                "{} was started since it was initialised, or is not what initdb has made here (pg_control says \"{state}\")",
                settings.data_dir.display()
            )));
        }
        // An initdb that was killed before it came to the control file.
        DataDir::Unusable { .. } if has("PG_VERSION") && !has("global/pg_control") => {}
        DataDir::Unusable { why } => return Err(Error::Refused(why)),
    }
    let directories = [Some(settings.data_dir.clone()), settings.wal_dir.clone()];
    durable::within(CLEAN_LIMIT, settings.data_dir.clone(), move || {
        directories.into_iter().flatten().try_for_each(|path| durable::empty(&path).map_err(Error::file("empty", &path)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_checksums_are_asked_for_once() {
        for arg in ["-k", "--data-checksums", "--data-check", "--no-data-checksums"] {
            assert!(decides_checksums(arg), "{arg}");
        }
        for arg in ["--locale=C", "--no-sync", "--encoding=UTF8", "--wal-segsize=64"] {
            assert!(!decides_checksums(arg), "{arg}");
        }
    }

    #[test]
    fn options_that_name_directories_or_the_superuser_are_ours() {
        for arg in ["-D", "-D/x", "--pgdata=/x", "--pgd", "-X", "--waldir", "-Upostgres", "--pwfile=/x", "--"] {
            assert!(is_ours(arg), "{arg}");
        }
        for arg in ["--data-checksums", "-k", "--encoding=UTF8", "-E", "UTF8", "--wal-segsize=64", "--locale=C", "-A", "--auth=peer", "-g"]
        {
            assert!(!is_ours(arg), "{arg}");
        }
    }
}
