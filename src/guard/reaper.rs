//! Who lives: processes as `/proc` shows them, and killing a whole tree of them.

use super::kernel;
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    sys::stat::{FileStat, stat},
    unistd::Pid,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::AsFd,
    path::Path,
};

/// A process that is not a zombie.
struct Seen {
    pid: i32,
    parent: i32,
}

/// Every living process of this `/proc`. Zombies hold nothing and do nothing: they do not live.
fn living() -> io::Result<Vec<Seen>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(seen));
    }
    Ok(found)
}

fn seen(pid: i32) -> Option<Seen> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything: fields are counted behind the last one.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Seen { pid, parent })
}

/// The living descendants of `root`, without `root` itself.
pub(super) fn descendants(root: Pid) -> io::Result<BTreeSet<i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for process in living()? {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let (mut found, mut open) = (BTreeSet::new(), vec![root.as_raw()]);
    while let Some(parent) = open.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            if found.insert(child) {
                open.push(child);
            }
        }
    }
    Ok(found)
}

/// The children of `pid` as the kernel lists them: quick, however many processes the machine has, but one may be missed while others
/// die. `None` where this kernel does not list them.
fn children(pid: i32) -> Option<Vec<i32>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let lists: Option<Vec<_>> = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("children")).ok()).collect();
    Some(lists?.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect())
}

/// The first blow, before [`kill_descendants`]: SIGKILL to the descendants of `root` that the kernel lists. Says whether it does.
pub(super) fn strike(root: Pid) -> bool {
    let Some(mut open) = children(root.as_raw()) else { return false };
    while let Some(pid) = open.pop() {
        open.extend(children(pid).into_iter().flatten());
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    true
}

/// Sends SIGKILL to every living descendant of `root` but those under `spared` (and these themselves). Says how many there were; an
/// error where nobody can tell.
///
/// One pass is not the end: a process may have forked meanwhile. Call it until it finds none, twice.
pub(super) fn kill_descendants(root: Pid, spared: &[Pid]) -> io::Result<usize> {
    let mut condemned = descendants(root)?;
    for pid in spared {
        condemned.remove(&pid.as_raw());
        for pid in descendants(*pid)? {
            condemned.remove(&pid);
        }
    }
    for pid in &condemned {
        // An id cannot be reused here: its process is our descendant, and we or its ancestors have not reaped it. Gone is as good.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    Ok(condemned.len())
}

/// Processes of PostgreSQL that work in `data_dir`, wherever they came from: postmaster, backends, orphaned backends.
///
/// PostgreSQL's processes all have the data directory as their working directory. So may have a person's shell: only programs that are
/// called `postgres` count. An error where nobody can tell: that is no proof of their end.
pub(super) fn of_data_dir(data_dir: &Path) -> io::Result<Vec<Pid>> {
    let directory = match stat(data_dir) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
        directory => directory?,
    };
    let mut found = Vec::new();
    for process in living()? {
        if works_in(process.pid, &directory)? {
            found.push(Pid::from_raw(process.pid));
        }
    }
    Ok(found)
}

/// As far as they are seen.
pub(super) fn seen_of_data_dir(data_dir: &Path) -> Vec<Pid> {
    let Ok(directory) = stat(data_dir) else { return Vec::new() };
    let works = |process: &Seen| works_in(process.pid, &directory).is_ok_and(|works| works);
    living().unwrap_or_default().iter().filter(|process| works(process)).map(|process| Pid::from_raw(process.pid)).collect()
}

/// Whether it is sure that no process of PostgreSQL works in `data_dir`.
pub(super) fn is_free(data_dir: &Path) -> bool {
    of_data_dir(data_dir).is_ok_and(|found| found.is_empty())
}

/// An error where this guard may not look at a process of the directory's owner: without `CAP_SYS_PTRACE` root may not.
fn works_in(pid: i32, directory: &FileStat) -> io::Result<bool> {
    let exe = match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(exe) => exe,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && may_be_postgres(pid, directory) => return Err(error),
        // It has ended, or is a thread of the kernel, or another program.
        Err(_) => return Ok(false),
    };
    let is_postgres = exe.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        // "(deleted)" follows the name when a package upgrade has replaced the file.
        is_server(name.trim_end_matches(" (deleted)"))
    });
    Ok(is_postgres
        && stat(format!("/proc/{pid}/cwd").as_str()).is_ok_and(|cwd| (cwd.st_dev, cwd.st_ino) == (directory.st_dev, directory.st_ino)))
}

/// By what everybody may see: it runs as the owner of the data directory, and bears the name.
fn may_be_postgres(pid: i32, directory: &FileStat) -> bool {
    let owned = stat(format!("/proc/{pid}").as_str()).is_ok_and(|process| process.st_uid == directory.st_uid);
    owned && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| is_server(name.trim_end()))
}

fn is_server(program: &str) -> bool {
    matches!(program, "postgres" | "postmaster")
}

/// Kills the processes of PostgreSQL that work in `data_dir`, as far as they are seen.
pub(super) fn kill_of_data_dir(data_dir: &Path) {
    for pid in &seen_of_data_dir(data_dir) {
        // Its id may have been given away since: the descriptor holds the process, then it is looked at again.
        let Ok(pidfd) = kernel::pidfd_open(*pid) else { continue };
        if stat(data_dir).is_ok_and(|directory| works_in(pid.as_raw(), &directory).is_ok_and(|works| works)) {
            let _ = kernel::pidfd_signal(pidfd.as_fd(), Signal::SIGKILL);
        }
    }
}

/// Whether a process has this id and is no zombie.
pub(super) fn is_alive(pid: Pid) -> bool {
    seen(pid.as_raw()).is_some()
}

/// How many processes are attached to a System V shared memory segment; `None` where there is no such segment.
pub(super) fn attached(shmid: i32) -> Option<u32> {
    // proc(5): key shmid perms size cpid lpid nattch …, a heading first.
    let table = fs::read_to_string("/proc/sysvipc/shm").ok()?;
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1).and_then(|id| id.parse().ok()) == Some(shmid)).find_map(|row| row.get(6)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_a_living_descendant_of_its_parent() {
        let me = std::process::id() as i32;
        assert!(descendants(nix::unistd::getppid()).expect("/proc").contains(&me));
        assert!(!descendants(nix::unistd::getpid()).expect("/proc").contains(&me));
    }

    #[test]
    fn a_shell_in_the_data_directory_is_no_postgres() {
        let here = std::env::current_dir().expect("current directory");
        assert!(is_free(&here), "this very test works in {}", here.display());
    }

    /// A directory that cannot be looked at is not one that nobody works in; one that is not there is.
    #[test]
    fn what_cannot_be_seen_is_no_proof() {
        let too_long = Path::new("/").join("x".repeat(300));
        assert!(of_data_dir(&too_long).is_err() && !is_free(&too_long));
        assert!(is_free(Path::new("/no/such/directory")));
    }
}
