//! Disk, data directory, and whether a diverged one could be rewound or replaced.

use super::{Known, Row, host::nearest, program};
use crate::{
    agent::wiring,
    config::Config,
    model::{lsn::Bytes, node_file::ClonePlace, policy::Reclone},
    postgres::{
        Settings,
        parameters::DEFAULTS,
        place::{self, Place},
    },
};
use nix::sys::statvfs::statvfs;
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The agent's own files need little, but PostgreSQL cannot be fenced in order without them.
const STATE_NEEDS: u64 = 64 << 20;
/// So many files are counted; a larger data directory is at least as large as they are.
const MOST_FILES: usize = 2_000_000;

pub(super) async fn rows(config: &Config, known: &Known, version: Option<String>) -> Vec<Row> {
    let mut rows = disk(config);
    let postgres = &config.postgres;
    let settings = wiring::owner(config).map(|owner| wiring::postgres_settings(config, &owner));
    if let Ok(settings) = &settings {
        rows.extend(leftovers(settings).await);
    }
    if !postgres.data_dir.join("PG_VERSION").exists() {
        return rows;
    }
    if version.is_some() {
        match control(config).await {
            Ok(text) => {
                rows.push(identity(config, known, &text));
                rows.push(rewind(known, &text));
            }
            Err(why) => rows.push(Row::warn("data directory", why, "run the doctor as root or as its owner")),
        }
    }
    match &settings {
        Ok(settings) => rows.push(copy(settings, known).await),
        Err(fault) => rows.push(Row::warn("copy", fault.to_string(), "the agent does not start before that")),
    }
    rows
}

fn disk(config: &Config) -> Vec<Row> {
    let postgres = &config.postgres;
    let places = [("data_dir", Some(&postgres.data_dir)), ("wal_dir", postgres.wal_dir.as_ref()), ("state_dir", Some(&config.state_dir))];
    let named = places.into_iter().filter_map(|(name, path)| path.map(|path| (name, path)));
    named.map(|(name, path)| free_row(name, path)).collect()
}

fn free_row(name: &str, path: &Path) -> Row {
    let subject = "disk";
    let Some((free, total)) = nearest(path).and_then(|path| space(&path)) else {
        return Row::warn(subject, format!("the space of {name} {} is not known", path.display()), "look at the mount");
    };
    let percent = free * 100 / total.max(1);
    let found = format!("{name}: {} of {} free ({percent} %)", Bytes::new(free), Bytes::new(total));
    match () {
        () if name == "state_dir" && free < STATE_NEEDS => Row::fail(subject, found, "make room: the node's own file must be written"),
        () if name != "state_dir" && percent < 2 => Row::fail(subject, found, "make room: PostgreSQL stops when it cannot write WAL"),
        () if name != "state_dir" && percent < 10 => Row::warn(subject, found, "make room before WAL that is kept for a replica fills it"),
        () => Row::ok(subject, found),
    }
}

/// Free for ordinary users, and all of it.
fn space(path: &Path) -> Option<(u64, u64)> {
    let found = statvfs(path).ok()?;
    let block = found.fragment_size();
    Some((found.blocks_available().saturating_mul(block), found.blocks().saturating_mul(block)))
}

async fn control(config: &Config) -> Result<String, String> {
    let postgres = &config.postgres;
    program::output(&postgres.bin_dir.join("pg_controldata"), &["-D".as_ref(), postgres.data_dir.as_os_str()]).await
}

/// The value behind a label of `pg_controldata`.
fn value<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':')).map(str::trim)
}

fn identity(config: &Config, known: &Known, control: &str) -> Row {
    let subject = "data directory";
    let here = value(control, "Database system identifier").unwrap_or_default();
    let state = value(control, "Database cluster state").unwrap_or_default();
    match &known.cluster {
        Some(cluster) if cluster.system_id.to_string() != here => {
            let found = format!("it has system identifier {here}, cluster {} has {}", config.cluster, cluster.system_id);
            Row::fail(subject, found, "move it away, or choose another cluster name or etcd prefix")
        }
        _ => Row::ok(subject, format!("system identifier {here}, {state}")),
    }
}

/// What pg_rewind needs: checksums or hint bits in the WAL, full page writes, and WAL back to where histories parted.
fn rewind(known: &Known, control: &str) -> Row {
    let subject = "pg_rewind";
    if known.policy.as_ref().is_some_and(|policy| !policy.rewind) {
        return Row::warn(subject, "the policy forbids it", "a former primary that diverged has to be copied anew");
    }
    let checksums = value(control, "Data page checksum version").is_some_and(|version| version != "0");
    let hints = value(control, "wal_log_hints setting") == Some("on");
    if !checksums && !hints {
        let found = "neither checksums nor wal_log_hints were on when the data was written";
        return Row::warn(subject, found, "wal_log_hints is on from the next start under pgbaton on; pg_checksums --enable helps for good");
    }
    let Some(policy) = &known.policy else {
        return Row::ok(subject, "checksums or wal_log_hints are on; the policy is not known yet");
    };
    let parameter = |name: &str| policy.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    // What pgbaton sets where the policy says nothing; a base_config may say otherwise, and is the operator's own.
    let default = DEFAULTS.iter().find(|(name, _)| *name == "wal_keep_size").map(|(_, value)| *value);
    let keeps = parameter("wal_keep_size")
        .or(default)
        .is_some_and(|size| size.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u64>().is_ok_and(|size| size > 0));
    let restores = parameter("restore_command").is_some_and(|command| !command.trim().is_empty());
    if keeps || restores {
        Row::ok(subject, "checksums or wal_log_hints are on, and WAL is kept")
    } else {
        let found = "WAL is kept for the members' slots alone";
        Row::warn(
            subject,
            found,
            "set wal_keep_size or restore_command in the policy: a rewind needs the WAL back to the last common checkpoint",
        )
    }
}

/// How the data directory would be replaced, by the rule that the agent goes by. Its own size stands for the source's.
async fn copy(settings: &Settings, known: &Known) -> Row {
    let subject = "copy";
    let never = known.policy.as_ref().is_some_and(|policy| policy.reclone == Reclone::Never);
    let who = if never { " (by an operator: the policy says reclone = never)" } else { "" };
    let Some(size) = size(&settings.data_dir) else {
        return Row::warn(subject, "the size of the data directory is not known", "run the doctor as root or as its owner");
    };
    let size = Bytes::new(size);
    match place::place_for(settings, size).await {
        Ok(Place { place: ClonePlace::Beside, free, .. }) => {
            Row::ok(subject, format!("a fresh copy of {size} would be made beside the old directory{who}: {free} are free"))
        }
        Ok(Place { place: ClonePlace::InPlace, why, .. }) => Row::warn(
            subject,
            format!("a fresh copy of {size} would be made in place of the old directory{who}: {why}"),
            "then the old data is gone before the new is there; give it room, or a directory below the mount point",
        ),
        Err(fault) => {
            Row::warn(subject, format!("where a copy would be made is not known: {fault}"), "run the doctor as root or as its owner")
        }
    }
}

/// What former copies left beside the data directory.
async fn leftovers(settings: &Settings) -> Vec<Row> {
    let subject = "leftovers";
    match place::leftovers(settings).await {
        // A clone that goes on uses them, or removes them.
        Ok(left) => left
            .iter()
            .map(|leftover| {
                let advice = format!("unless a clone goes on now: {}", leftover.advice(&settings.data_dir));
                Row::warn(subject, leftover.path.display().to_string(), advice)
            })
            .collect(),
        Err(fault) => vec![Row::warn(subject, format!("whether copies left anything is not known: {fault}"), "run the doctor as root")],
    }
}

/// What the files below use, tablespaces and a linked WAL directory not counted.
fn size(directory: &Path) -> Option<u64> {
    let mut total = 0_u64;
    let mut count = 0;
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).ok()? {
            let Ok(metadata) = entry.as_ref().map_err(|_| ()).and_then(|entry| entry.metadata().map_err(|_| ())) else { continue };
            count += 1;
            if metadata.is_dir() {
                open.extend(entry.ok().map(|entry| entry.path()));
            } else {
                total = total.saturating_add(metadata.blocks() * 512);
            }
            if count > MOST_FILES {
                return Some(total);
            }
        }
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};
    use crate::model::policy::ClusterPolicy;

    const CONTROL: &str = "\
Database system identifier:           7000000000000000001
Database cluster state:               in production
wal_log_hints setting:                off
Data page checksum version:           1
";

    fn known(parameters: &[(&str, &str)]) -> Known {
        let mut policy = ClusterPolicy::default();
        policy.parameters.extend(parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Known { policy: Some(policy), ..Known::default() }
    }

    #[test]
    fn a_rewind_needs_checksums_and_wal() {
        let verdict = |parameters: &[(&str, &str)], control: &str| rewind(&known(parameters), control).verdict;
        assert_eq!(verdict(&[("wal_keep_size", "1GB")], CONTROL), Verdict::Ok);
        assert_eq!(verdict(&[("restore_command", "cp /a/%f %p")], CONTROL), Verdict::Ok);
        assert_eq!(verdict(&[], CONTROL), Verdict::Ok, "the managed default keeps 512MB");
        assert_eq!(verdict(&[("wal_keep_size", "0")], CONTROL), Verdict::Warn);
        assert_eq!(verdict(&[("wal_keep_size", "1GB")], &CONTROL.replace("version:           1", "version:           0")), Verdict::Warn);
    }

    #[test]
    fn sizes_are_counted_over_the_whole_tree() {
        let directory = tempfile::tempdir().expect("directory");
        fs::create_dir(directory.path().join("base")).expect("directory");
        fs::write(directory.path().join("base/1"), vec![1; 100_000]).expect("write");
        assert!(size(directory.path()).is_some_and(|size| (100_000..1_000_000).contains(&size)));
        assert_eq!(size(Path::new("/nonexistent")), None);
    }
}
