//! Whether this host can do what the configuration says. Reads, and changes nothing.

use super::{fault::Faults, node::Config};
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

/// PostgreSQL's programs that are used, each with what for.
pub const PROGRAMS: [(&str, &str); 6] = [
    ("postgres", "the server"),
    ("initdb", "new clusters"),
    ("pg_basebackup", "copies of the primary"),
    ("pg_rewind", "the return of a former primary"),
    ("pg_waldump", "the end of the WAL"),
    ("pg_controldata", "the state of a data directory"),
];

/// Checks that PostgreSQL's programs and the directories are there.
///
/// # Errors
/// Everything that is wrong. Nothing was touched.
pub fn check_environment(config: &Config) -> Result<(), Faults> {
    check_host(config, |_| Ok(()))
}

/// As [`check_environment`], and whether PostgreSQL's directories can be made where they are missing: `may_make` asks the
/// kernel that for one path, and says what is in the way and what to do.
///
/// # Errors
/// Everything that is wrong. Nothing was touched.
pub fn check_host(config: &Config, may_make: impl Fn(&Path) -> Result<(), (String, String)>) -> Result<(), Faults> {
    let mut faults = Faults::default();
    let mut fault = |key: &str, what: String, remedy: String| faults.push(config.places.fault(key, what, remedy));
    let postgres = &config.postgres;
    programs(&mut fault, &postgres.bin_dir);
    let directories = [
        ("postgres.data_dir", Some(&postgres.data_dir)),
        ("postgres.wal_dir", postgres.wal_dir.as_ref()),
        ("state_dir", Some(&config.state_dir)),
        ("run_dir", Some(&config.run_dir)),
    ];
    for (key, path) in directories {
        if let Some(path) = path {
            let well = directory(&mut fault, key, path);
            if well && key.starts_with("postgres.") {
                makeable(&mut fault, &may_make, key, path);
            }
        }
    }
    for (source, target) in &postgres.tablespace_map {
        let key = format!("postgres.tablespace_map.{:?}", source.display().to_string());
        if directory(&mut fault, &key, target) {
            makeable(&mut fault, &may_make, &key, target);
        }
    }
    if let Some(path) = &postgres.base_config
        && let Err(error) = fs::File::open(path)
    {
        let what = format!("{} cannot be read: {}", path.display(), in_words(&error));
        fault("postgres.base_config", what, "correct the path, or remove the key".to_owned());
    }
    faults.or(Some(()))
}

fn programs(fault: &mut impl FnMut(&str, String, String), bin_dir: &Path) {
    let key = "postgres.bin_dir";
    if let Err(error) = fs::read_dir(bin_dir) {
        let what = format!("{} cannot be read: {}", bin_dir.display(), in_words(&error));
        return fault(key, what, "install PostgreSQL, or correct the path (Debian: /usr/lib/postgresql/<version>/bin)".to_owned());
    }
    for (program, purpose) in PROGRAMS {
        let path = bin_dir.join(program);
        let executable = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if !executable {
            let what = format!("{} is not there or not executable; it is needed for {purpose}", path.display());
            fault(key, what, "install PostgreSQL's server package, or correct the path".to_owned());
        }
    }
}

fn makeable(
    fault: &mut impl FnMut(&str, String, String),
    may_make: &impl Fn(&Path) -> Result<(), (String, String)>,
    key: &str,
    path: &Path,
) {
    if let Err((what, remedy)) = may_make(path) {
        fault(key, what, remedy);
    }
}

/// A directory that is there, or whose nearest parent that exists is one. Returns whether it is.
fn directory(fault: &mut impl FnMut(&str, String, String), key: &str, path: &Path) -> bool {
    for ancestor in path.ancestors() {
        match fs::metadata(ancestor) {
            Ok(metadata) if metadata.is_dir() => return true,
            Ok(_) => {
                fault(key, format!("{} is not a directory", ancestor.display()), "move the file away, or choose another path".to_owned());
                return false;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let what = format!("{} cannot be looked at: {}", ancestor.display(), in_words(&error));
                fault(key, what, "give the user who runs the agent access".to_owned());
                return false;
            }
        }
    }
    true
}

/// The operating system's words without its error number.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
        _ => error.to_string(),
    }
}
