//! Programs, rights, clock, fencing, ports.

use super::{Known, Row};
use crate::{
    clock,
    config::Config,
    guard::cut_program,
    model::{instance::KillMode, moment::Span, policy::Durability},
    postgres::version::SUPPORTED,
};
use nix::unistd::{User, geteuid};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The oldest and the newest major version of PostgreSQL that are supported.
const OLDEST: u32 = *SUPPORTED.start();
const NEWEST: u32 = *SUPPORTED.end();

pub(super) fn version(config: &Config, version: Result<&String, &String>) -> Row {
    let subject = "PostgreSQL";
    let version = match version {
        Ok(version) => version,
        Err(why) => return Row::fail(subject, why.clone(), "correct [postgres] bin_dir, or install PostgreSQL's server package"),
    };
    let data = fs::read_to_string(config.postgres.data_dir.join("PG_VERSION")).ok();
    version_row(version, data.as_deref().map(str::trim))
}

fn version_row(version: &str, data: Option<&str>) -> Row {
    let subject = "PostgreSQL";
    let major: Option<u32> = version.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    if major.is_none_or(|major| major < OLDEST) {
        return Row::fail(subject, format!("version {version}"), format!("install version {OLDEST} or newer"));
    }
    match data {
        Some(data) if major.map(|major| major.to_string()).as_deref() != Some(data) => {
            let found = format!("the programs are version {version}, the data directory is of version {data}");
            Row::fail(subject, found, "correct [postgres] bin_dir or data_dir")
        }
        _ if major.is_some_and(|major| major > NEWEST) => {
            let found = format!("version {version}, which is newer than what this program knows");
            Row::warn(subject, found, format!("install a version from {OLDEST} to {NEWEST}, or a newer pgbaton"))
        }
        _ => Row::ok(subject, format!("version {version}")),
    }
}

/// Who runs PostgreSQL, and whether everything is his that has to be.
pub(super) fn rights(config: &Config) -> Vec<Row> {
    let subject = "rights";
    let data_dir = &config.postgres.data_dir;
    let owner = nearest(data_dir).and_then(|path| fs::metadata(path).ok()).map(|metadata| metadata.uid());
    let mut rows = Vec::new();
    match fs::metadata(data_dir) {
        Ok(metadata) if metadata.uid() == 0 => {
            rows.push(Row::fail(subject, format!("{} belongs to root", data_dir.display()), "chown it to the user that runs PostgreSQL"));
        }
        Ok(metadata) if metadata.mode() & 0o027 != 0 => {
            let found = format!("{} has mode {:04o}", data_dir.display(), metadata.mode() & 0o7777);
            rows.push(Row::fail(subject, found, "chmod 0700 (or 0750): PostgreSQL does not start with more"));
        }
        Ok(metadata) => rows.push(Row::ok(subject, format!("{} belongs to {}", data_dir.display(), name(metadata.uid())))),
        // Whether it can be is a matter of the configuration's rows.
        Err(_) => rows.push(Row::ok(subject, format!("{} is not there yet", data_dir.display()))),
    }
    let me = geteuid().as_raw();
    if me != 0 && owner.is_some_and(|owner| owner != me) {
        let found = format!("this is {}, and not the owner of the data directory", name(me));
        rows.push(Row::warn(subject, found, "run the doctor as root or as that owner to see everything"));
    }
    for (what, path) in [("state_dir", &config.state_dir), ("run_dir", &config.run_dir)] {
        if let Ok(metadata) = fs::metadata(path)
            && owner.is_some_and(|owner| owner != 0 && metadata.uid() != owner && metadata.mode() & 0o002 == 0)
        {
            let found = format!("{what} {} belongs to {}", path.display(), name(metadata.uid()));
            rows.push(Row::warn(subject, found, format!("chown it to {}", owner.map(name).unwrap_or_default())));
        }
    }
    rows
}

/// The path itself, or the nearest directory above it that exists.
pub(super) fn nearest(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|ancestor| ancestor.exists()).map(Path::to_owned)
}

fn name(uid: u32) -> String {
    let user = User::from_uid(uid.into()).ok().flatten();
    user.map_or_else(|| format!("user {uid}"), |user| user.name)
}

/// Deadlines need a clock that runs evenly; the wall clock is for display alone.
pub(super) fn clock() -> Row {
    let source = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    let source = source.trim();
    let suspended = clock::now().suspended();
    match source {
        "jiffies" | "refined-jiffies" => {
            Row::warn("clock", format!("the kernel counts time by {source}"), "boot with a better clock source (tsc, kvm-clock)")
        }
        _ if suspended > Span::from_secs(1) => {
            let found = format!("this host has slept for {suspended} since it booted");
            Row::warn("clock", found, "turn suspend off on a database host: a primary that sleeps is replaced")
        }
        "" => Row::ok("clock", "its source is not told here"),
        _ => Row::ok("clock", format!("source {source}")),
    }
}

/// What keeps a voter from its former primary, in the quorum modes.
pub(super) fn cut(known: &Known, config: &Config) -> Row {
    // Before the first start of all the cluster's policy is the one that its first node brings along.
    let asked = known.status.as_ref().and_then(|status| Some(status.durability.as_ref()?.wanted));
    let wanted = asked.or(known.policy.as_ref().map(|policy| policy.durability)).unwrap_or(config.bootstrap.policy.durability);
    cut_row(cut_program(), wanted)
}

fn cut_row(program: Option<&str>, wanted: Durability) -> Row {
    let subject = "cut";
    match program {
        Some(program) if may_administer() => Row::ok(subject, format!("{program} can cut this host off from a former primary")),
        Some(program) => Row::ok(subject, format!("{program} is here; whether the guard may use it shows once it runs as root")),
        None if wanted == Durability::Async => Row::ok(subject, "there is no program nft; it is needed where durability is not async"),
        None => Row::warn(
            subject,
            "there is no program nft: this node cannot vote where durability is quorum, strict-quorum or auto",
            "install the package nftables; a guard that runs looks for it at its next start",
        ),
    }
}

/// What ends PostgreSQL at the deadline. The guard's own self-test is the proof; without it only what it needs can be looked for.
pub(super) fn fencing(known: &Known, config: &Config) -> Row {
    let subject = "fencing";
    let unfenced = "run the guard as root, or allow user namespaces; else this node becomes primary only with allow_unfenced";
    if let Some(fencing) = known.status.as_ref().map(|status| &status.fencing) {
        return match (&fencing.kill, fencing.works) {
            (Some(kill @ KillMode::Descendants), true) => {
                Row::warn(subject, format!("reduced: {kill} needs a process that is scheduled"), unfenced)
            }
            (Some(kill), true) => Row::ok(subject, format!("the guard's self-test passed ({kill})")),
            (Some(kill), false) => Row::fail(subject, format!("the guard's self-test of {kill} failed"), unfenced),
            (None, _) => Row::warn(subject, "there is no guard at the moment", "look at the agent's log"),
        };
    }
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let namespaces = Path::new("/proc/self/ns/pid").exists();
    // Debian's and Ubuntu's switches; where there is none, the number of them decides.
    let refused = number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0)
        || number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_some_and(|restricted| restricted != 0);
    let users = number("/proc/sys/user/max_user_namespaces").is_some_and(|users| users > 0) && !refused;
    let wanted = config.guard.kill.map_or_else(|| "auto".to_owned(), |kill| kill.to_string());
    if namespaces && (may_administer() || (users && !geteuid().is_root())) {
        Row::ok(subject, format!("process namespaces can be made (kill = {wanted}); the guard tests it when it starts"))
    } else {
        Row::warn(subject, format!("process namespaces cannot be made by this user (kill = {wanted})"), unfenced)
    }
}

/// Whether this process has `CAP_SYS_ADMIN`: in a container root has not, by default.
fn may_administer() -> bool {
    const SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> SYS_ADMIN & 1 == 1)
}

/// Whether the ports are free, unless the node itself uses them.
pub(super) fn ports(config: &Config, runs: bool) -> Vec<Row> {
    if runs {
        return vec![Row::ok("ports", "in use by the node itself")];
    }
    let api = config.api.listen.iter().map(|address| ("[api] listen", address.host.clone(), address.port));
    let postgres = config.postgres.listen.iter().map(|host| ("[postgres] listen", host.clone(), config.postgres.port));
    postgres.chain(api).map(|(key, host, port)| one_port(key, &host, port)).collect()
}

fn one_port(key: &str, host: &str, port: u16) -> Row {
    match TcpListener::bind((host, port)) {
        Ok(_) => Row::ok("ports", format!("{host} port {port} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let found = format!("{host} port {port} is in use");
            Row::fail("ports", found, format!("stop what listens there (a PostgreSQL of the distribution?), or change {key}"))
        }
        Err(error) => Row::fail("ports", format!("{host} port {port} cannot be listened on: {error}"), format!("correct {key}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    #[test]
    fn only_the_versions_that_this_program_knows_are_well() {
        let verdict = |version: &str, data| version_row(version, data).verdict;
        assert_eq!(verdict("13.20", None), Verdict::Fail);
        assert_eq!(verdict("14.2", None), Verdict::Ok);
        assert_eq!(verdict("18.0", Some("18")), Verdict::Ok);
        assert_eq!(verdict("19beta1", Some("19")), Verdict::Warn);
        assert_eq!(verdict("19.1", Some("18")), Verdict::Fail);
        let row = version_row("19.1", None);
        assert_eq!(row.found, "version 19.1, which is newer than what this program knows");
        assert_eq!(row.remedy, "install a version from 14 to 18, or a newer pgbaton");
    }

    #[test]
    fn a_host_that_cannot_be_cut_off_is_well_in_async_alone() {
        assert_eq!(cut_row(None, Durability::Async).verdict, Verdict::Ok);
        assert_eq!(cut_row(None, Durability::Auto).verdict, Verdict::Warn);
        assert_eq!(cut_row(Some("nft"), Durability::Quorum).verdict, Verdict::Ok);
    }
}
