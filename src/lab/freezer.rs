//! A host's cgroup: what makes a freeze stop everything at the same time.

use super::command::wait_until;
use crate::model::moment::Span;
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A cgroup that can be frozen.
#[derive(Clone, Debug)]
pub struct Freezer {
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The mount point of cgroup v2 or, failing that, of v1's freezer.
///
/// v2 is preferred also where it lies empty beside v1: its frozen processes can be killed, v1's cannot until they thaw.
fn mount_point() -> Option<(PathBuf, Version)> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let fields = || mounts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let find = |wanted: &dyn Fn(&str, &str) -> bool| {
        fields().find(|field| field.len() > 3 && wanted(field[2], field[3])).map(|field| PathBuf::from(field[1]))
    };
    find(&|kind, _| kind == "cgroup2")
        .map(|path| (path, Version::Two))
        .or_else(|| find(&|kind, options| kind == "cgroup" && options.split(',').any(|o| o == "freezer")).map(|path| (path, Version::One)))
}

/// Where the cgroups of the lab `name` are.
fn lab_directory(name: &str) -> Option<(PathBuf, Version)> {
    mount_point().map(|(path, version)| (path.join(format!("pgbaton-lab-{name}")), version))
}

impl Freezer {
    /// Makes the cgroup of a host; `None` where cgroups cannot be written.
    pub fn create(lab: &str, host: &str) -> Option<Self> {
        let (directory, version) = lab_directory(lab)?;
        let directory = directory.join(host);
        fs::create_dir_all(&directory).ok()?;
        let control = if version == Version::Two { "cgroup.freeze" } else { "freezer.state" };
        directory.join(control).exists().then_some(Self { directory, version })
    }

    /// The directory whose `cgroup.procs` takes the host's processes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Stops everything in it at once; returns when all of it stands still.
    ///
    /// # Errors
    /// When the cgroup is gone, or a process did not stop within 2 s (a process in a disk wait does not).
    pub fn freeze(&self) -> Result<()> {
        self.set(true)?;
        wait_until("the cgroup to freeze", Span::from_secs(2), || self.frozen().then_some(()))
    }

    /// Lets everything go on.
    ///
    /// # Errors
    /// When the cgroup is gone.
    pub fn thaw(&self) -> Result<()> {
        self.set(false)
    }

    /// Whether what is killed while frozen dies only after the thaw.
    pub fn holds_the_dying(&self) -> bool {
        self.version == Version::One
    }

    /// Whether everything in it stands still.
    pub fn frozen(&self) -> bool {
        let (file, wanted) = match self.version {
            Version::Two => ("cgroup.events", "frozen 1"),
            Version::One => ("freezer.state", "FROZEN"),
        };
        fs::read_to_string(self.directory.join(file)).is_ok_and(|text| text.lines().any(|line| line == wanted))
    }

    fn set(&self, frozen: bool) -> Result<()> {
        let (file, value) = match (self.version, frozen) {
            (Version::Two, true) => ("cgroup.freeze", "1"),
            (Version::Two, false) => ("cgroup.freeze", "0"),
            (Version::One, true) => ("freezer.state", "FROZEN"),
            (Version::One, false) => ("freezer.state", "THAWED"),
        };
        let path = self.directory.join(file);
        fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
    }
}

/// Whether a lab of this name has cgroups.
pub fn exists(lab: &str) -> bool {
    lab_directory(lab).is_some_and(|(directory, _)| directory.exists())
}

/// Kills what is left in the cgroups of a lab and removes them. Cgroups of other names are not touched.
///
/// # Errors
/// When a cgroup stays populated for 2 s.
pub fn sweep(lab: &str) -> Result<()> {
    let Some((directory, version)) = lab_directory(lab) else { return Ok(()) };
    let Ok(hosts) = fs::read_dir(&directory) else { return Ok(()) };
    for host in hosts.flatten().filter(|host| host.path().is_dir()) {
        let freezer = Freezer { directory: host.path(), version };
        // v1 cannot kill what is frozen; v2 has a switch of its own.
        let _ = freezer.thaw();
        let _ = fs::write(freezer.directory.join("cgroup.kill"), "1");
        wait_until("the cgroup to empty", Span::from_secs(2), || fs::remove_dir(&freezer.directory).ok())
            .with_context(|| format!("remove {}", freezer.directory.display()))?;
    }
    fs::remove_dir(&directory).with_context(|| format!("remove {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::{super::command::command, *};

    /// Where both versions are mounted the older one is not used by itself; machines without the newer need it.
    #[test]
    fn both_versions_stop_a_process_and_let_it_go_on() {
        let lab = format!("{}-freezer", std::process::id());
        for (root, version) in
            [("/sys/fs/cgroup/freezer", Version::One), ("/sys/fs/cgroup/unified", Version::Two), ("/sys/fs/cgroup", Version::Two)]
        {
            let control = if version == Version::One { "tasks" } else { "cgroup.controllers" };
            let directory = Path::new(root).join(format!("pgbaton-lab-{lab}"));
            if !Path::new(root).join(control).exists() || fs::create_dir(&directory).is_err() {
                println!("skipped: {root} is no cgroup that we may write");
                continue;
            }
            let freezer = Freezer { directory: directory.clone(), version };
            let mut child = command("sleep").arg("606").spawn().expect("sleep");
            fs::write(directory.join("cgroup.procs"), child.id().to_string()).expect("join");
            let frozen = freezer.freeze().map(|()| freezer.frozen());
            let thawed = freezer.thaw().map(|()| freezer.frozen());
            child.kill().expect("kill");
            child.wait().expect("wait");
            wait_until("the cgroup to empty", Span::from_secs(2), || fs::remove_dir(&directory).ok()).expect("removed");
            assert_eq!((frozen.expect("freeze"), thawed.expect("thaw")), (true, false), "{root}");
        }
    }
}
