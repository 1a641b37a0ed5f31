//! Processes as `/proc` shows them, through PID namespaces.

use crate::model::{lsn::Bytes, moment::Span};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// One living process; ids are those of the lab's own PID namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// Its name, at most 15 bytes.
    pub name: String,
}

/// All processes that are not zombies.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

fn process(pid: i32) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold any byte, also parentheses.
    let (start, end) = (text.find('(')?, text.rfind(')')?);
    let mut rest = text.get(end + 1..)?.split_whitespace();
    let (state, parent) = (rest.next()?, rest.next()?.parse().ok()?);
    let alive = !matches!(state, "Z" | "X");
    alive.then(|| Process { pid, parent, name: text.get(start + 1..end).unwrap_or_default().to_owned() })
}

/// Whether this process exists and is no zombie.
pub fn lives(pid: i32) -> bool {
    process(pid).is_some()
}

/// Everything below `root`, parents before children, `root` not included.
pub fn descendants(root: i32) -> Vec<Process> {
    let processes = all();
    let mut known = BTreeSet::from([root]);
    let mut found: Vec<Process> = Vec::new();
    loop {
        let next: Vec<Process> =
            processes.iter().filter(|process| known.contains(&process.parent) && !known.contains(&process.pid)).cloned().collect();
        if next.is_empty() {
            return found;
        }
        known.extend(next.iter().map(|process| process.pid));
        found.extend(next);
    }
}

/// Its id in each PID namespace from the lab's to its own.
pub fn namespace_pids(pid: i32) -> Vec<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

/// The arguments it was started with.
pub fn arguments(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).filter(|part| !part.is_empty()).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// A path as the process sees it.
pub fn seen_by(pid: i32, path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    PathBuf::from(format!("/proc/{pid}/root")).join(relative)
}

/// The postmaster of a data directory among these processes: a `postgres` that stands in the directory, bears the
/// command line that it was started with, and whose parent does not stand there. `postmaster.pid` is not asked, because
/// it holds ids of a foreign namespace.
pub fn postmaster(among: &[Process], data_dir: &Path) -> Option<i32> {
    let standing: Vec<&Process> = among
        .iter()
        .filter(|process| process.name.starts_with("postgres"))
        // A backend writes its title over its arguments: without this an orphaned one would pass for its dead parent.
        .filter(|process| arguments(process.pid).first().is_some_and(|program| !program.starts_with("postgres:")))
        .filter(|process| {
            let directory = fs::metadata(format!("/proc/{}/cwd", process.pid));
            let wanted = fs::metadata(seen_by(process.pid, data_dir));
            directory.is_ok_and(|here| wanted.is_ok_and(|there| (here.dev(), here.ino()) == (there.dev(), there.ino())))
        })
        .collect();
    standing.iter().find(|process| !standing.iter().any(|other| other.pid == process.parent)).map(|process| process.pid)
}

/// The uppermost of these processes that run `verb` of a `pgbaton` binary.
pub fn running_verb(among: &[Process], verb: &str) -> Option<i32> {
    let runs = |pid: i32| arguments(pid).get(1).is_some_and(|argument| argument == verb);
    let found: Vec<&Process> = among.iter().filter(|process| runs(process.pid)).collect();
    found.iter().find(|process| !found.iter().any(|other| other.pid == process.parent)).map(|process| process.pid)
}

/// What a process costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Its proportional share of memory.
    pub memory: Bytes,
    /// The processor time that it has used.
    pub processor: Span,
}

/// What a process costs, children not included; `None` when it is gone.
pub fn cost(pid: i32) -> Option<Cost> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = pss.split_whitespace().next()?.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): utime and stime are the 14th and 15th fields, the name being the 2nd.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let rate = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().and_then(|rate| u64::try_from(rate).ok())?;
    Some(Cost { memory: Bytes::new(kilobytes << 10), processor: Span::from_millis(ticks * 1_000 / rate.max(1)) })
}

/// The file that a process runs.
pub fn program(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Sends a signal to everything below `root`, again until no new process appears.
pub fn signal_descendants(root: i32, signal: Signal) {
    let mut done = BTreeSet::new();
    for _ in 0..20 {
        let fresh: Vec<i32> = descendants(root).iter().map(|process| process.pid).filter(|pid| done.insert(*pid)).collect();
        if fresh.is_empty() {
            return;
        }
        for pid in fresh {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_has_its_own_number() {
        let own = std::process::id().cast_signed();
        assert!(lives(own));
        assert_eq!(namespace_pids(own).first(), Some(&own));
        let own_cost = cost(own).expect("cost");
        assert!(own_cost.memory.get() > 100_000);
        assert!(all().iter().any(|process| process.pid == own));
    }
}
