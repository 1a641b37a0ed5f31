//! The node file on disk: two preallocated slots with checksums, written in turn and fsynced.
//!
//! A crash during a write leaves the other slot whole; a full disk does not stop a write, because its space is there. A crash while the file
//! is made leaves none: it appears under its name once it is whole.

use crate::model::{
    node::{ClusterName, DataIncarnation, NodeName},
    node_file::NodeFile,
};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The size of one slot: magic, count, length, checksum, and the text.
const SLOT: usize = 32 * 1024;
const HEADER: usize = 32;
const MAGIC: &[u8; 8] = b"pgbaton1";

/// Why the node file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened, read or written.
    #[error("could not {doing} the node file {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Neither slot can be read.
    #[error(
        "the node file {} is damaged: neither of its two slots can be read. It holds what this node promised; if it is lost, remove it, and \
         the node begins a new life (its data directory is no voter until the primary admits it)",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// Another process has it open.
    #[error(
        "the node file {} is in use: another agent of this node runs. Stop that one first, or give this one a node name and a state_dir of its own",
        path.display()
    )]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It is of another node or cluster.
    #[error("the node file {} belongs to node {node} of cluster {cluster}: state_dir is that of another node", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        node: NodeName,
        /// Of which cluster.
        cluster: ClusterName,
    },
    /// It is larger than a slot.
    #[error("the node file would be {size} bytes, a slot holds {SLOT}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
}

/// The open node file. One writer: whoever has it open holds its lock until its process ends.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    /// Counts writes: the slot with the higher valid count is the newer one.
    count: u64,
}

impl Store {
    /// Opens the file, or makes it for a node that has never run, with `fresh` as the first life of its data.
    ///
    /// # Errors
    /// See [`Error`]; nothing that was promised is changed on any of them.
    pub fn open(path: &Path, cluster: &ClusterName, node: &NodeName, fresh: DataIncarnation) -> Result<(Self, NodeFile), Error> {
        let mut store = match Self::in_place_or_new(path)? {
            Place::Found(store) => store,
            Place::New(mut store) => {
                let first = NodeFile::fresh(cluster.clone(), node.clone(), fresh);
                store.make(&first)?;
                return Ok((store, first));
            }
        };
        let slots = [store.read(0).map_err(io("read", path))?, store.read(1).map_err(io("read", path))?];
        let newest = slots.into_iter().flatten().max_by_key(|(count, _)| *count);
        let (count, found) = newest.ok_or_else(|| Error::Damaged { path: path.to_owned() })?;
        if found.node != *node || found.cluster != *cluster {
            return Err(Error::Foreign { path: path.to_owned(), node: found.node, cluster: found.cluster });
        }
        store.count = count;
        Ok((store, found))
    }

    /// The file at `path`, or a temporary one to make it from; locked, and with nobody else to be found in its place.
    ///
    /// A lock is of a file and not of its name: the agent that makes the file moves it, and one that starts at the same time may have opened it
    /// under the other name, or another file before. So whoever has a lock looks whether its file still has the name, and else begins again.
    /// Only who holds the lock of the file with the temporary name moves it, and only where nothing is at `path`.
    fn in_place_or_new(path: &Path) -> Result<Place, Error> {
        let temporary = temporary(path);
        let store = |file| Self { path: path.to_owned(), file, count: 0 };
        for _ in 0..TRIES {
            match OpenOptions::new().read(true).write(true).open(path) {
                Ok(file) => {
                    lock(&file, path)?;
                    if !is_at(&file, path).map_err(io("read", path))? {
                        continue;
                    }
                    if file.metadata().map_err(io("read", path))?.len() > 0 {
                        return Ok(Place::Found(store(file)));
                    }
                    // Nothing was ever written to it.
                    fs::remove_file(path).map_err(io("remove the empty", path))?;
                }
                Err(fault) if fault.kind() == io::ErrorKind::NotFound => {}
                Err(fault) => return Err(io("open", path)(fault)),
            }
            let mut options = OpenOptions::new();
            let file =
                options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&temporary).map_err(io("make", path))?;
            lock(&file, path)?;
            let (mine, made) = (is_at(&file, &temporary).map_err(io("make", path))?, path.try_exists().map_err(io("make", path))?);
            match (mine, made) {
                (true, false) => return Ok(Place::New(store(file))),
                (true, true) => fs::remove_file(&temporary).map_err(io("make", path))?,
                (false, _) => {}
            }
        }
        Err(Error::InUse { path: path.to_owned() })
    }

    /// Fills the temporary file, whatever an interrupted attempt left in it, and puts it in its place.
    fn make(&mut self, first: &NodeFile) -> Result<(), Error> {
        let path = self.path.clone();
        self.file.set_len(0).and_then(|()| self.file.write_all_at(&vec![0; 2 * SLOT], 0)).map_err(io("make", &path))?;
        self.write(first)?;
        // Whole on disk before it has the name, and the name on disk before anything is promised in it.
        self.file.sync_all().map_err(io("make", &path))?;
        fs::rename(temporary(&path), &path).and_then(|()| sync_parent(&path)).map_err(io("make", &path))
    }

    /// Writes the older slot and fsyncs it.
    ///
    /// # Errors
    /// [`Error::Io`]: the newer slot still holds what it held; whether the new text is there is not known.
    pub fn write(&mut self, content: &NodeFile) -> Result<(), Error> {
        let text = crate::model::record::to_text(content);
        let size = HEADER + text.len();
        if size > SLOT {
            return Err(Error::TooLarge { size });
        }
        let count = self.count.saturating_add(1);
        let mut slot = vec![0; SLOT];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..16].copy_from_slice(&count.to_le_bytes());
        slot[16..24].copy_from_slice(&(text.len() as u64).to_le_bytes());
        slot[24..32].copy_from_slice(&checksum(count, text.as_bytes()).to_le_bytes());
        slot[HEADER..size].copy_from_slice(text.as_bytes());
        let io = |source| Error::Io { doing: "write", path: self.path.clone(), source };
        self.file.write_all_at(&slot, offset(count)).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        self.count = count;
        Ok(())
    }

    /// A slot's count and content; `None` where it is not whole.
    fn read(&self, slot: u64) -> io::Result<Option<(u64, NodeFile)>> {
        let mut bytes = vec![0; SLOT];
        match self.file.read_exact_at(&mut bytes, offset(slot)) {
            Ok(()) => {}
            Err(fault) if fault.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(fault) => return Err(fault),
        }
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let (count, length) = (number(8), usize::try_from(number(16)).unwrap_or(usize::MAX));
        let whole = bytes[..8] == *MAGIC && length <= SLOT - HEADER;
        let text = if whole { &bytes[HEADER..HEADER + length] } else { &[] };
        if !whole || checksum(count, text) != number(24) {
            return Ok(None);
        }
        Ok(serde_json::from_slice(text).ok().map(|file| (count, file)))
    }
}

/// An open and locked file.
enum Place {
    /// It was there.
    Found(Store),
    /// There is none yet; this one has another name.
    New(Store),
}

/// So often another agent may come in between before this one gives way to it.
const TRIES: u32 = 10;

fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}

fn lock(file: &File, path: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io("lock (state_dir has to be on a file system with locks)", path)(source)),
    }
}

/// Whether this open file is the one that has the name `path` now.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// Where the file is made, in the directory of its place.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".pgbaton-tmp");
    path.with_file_name(name)
}

const fn offset(count: u64) -> u64 {
    count % 2 * SLOT as u64
}

/// FNV-1a over the count and the text: against torn and stale slots, not against malice.
fn checksum(count: u64, text: &[u8]) -> u64 {
    let bytes = count.to_le_bytes();
    bytes.iter().chain(text).fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::term::Term;

    fn open(path: &Path) -> Result<(Store, NodeFile), Error> {
        let (cluster, node) = ("orders".parse().expect("name"), "n1".parse().expect("name"));
        Store::open(path, &cluster, &node, "0123abcd".parse().expect("id"))
    }

    #[test]
    fn what_was_written_last_is_read_again() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node");
        let (mut store, mut file) = open(&path).expect("new file");
        for term in 1..=5 {
            file.term = Term::new(term);
            store.write(&file).expect("write");
        }
        drop(store);
        assert_eq!(open(&path).expect("again").1, file);
    }

    #[test]
    fn a_torn_write_leaves_the_one_before_it() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node");
        let (mut store, first) = open(&path).expect("new file");
        let second = NodeFile { term: Term::new(9), ..first.clone() };
        store.write(&second).expect("write");
        let torn = offset(store.count) + HEADER as u64 + 3;
        let other = offset(store.count + 1) + HEADER as u64;
        store.file.write_all_at(b"damage", torn).expect("damage");
        drop(store);
        assert_eq!(open(&path).expect("again").1, first);
        OpenOptions::new().write(true).open(&path).expect("open").write_all_at(b"damage", other).expect("damage");
        assert!(matches!(open(&path), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_second_agent_of_the_node_does_not_get_it() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node");
        let first = open(&path).expect("new file");
        let second = open(&path).expect_err("it is in use").to_string();
        assert!(second.contains("another agent of this node runs") && second.contains(&path.display().to_string()), "{second}");
        drop(first);
        open(&path).expect("once the first has ended");
    }

    #[test]
    fn the_file_of_another_node_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node");
        open(&path).expect("new file");
        let other = Store::open(&path, &"orders".parse().expect("name"), &"n2".parse().expect("name"), "0123abcd".parse().expect("id"));
        assert!(matches!(other, Err(Error::Foreign { .. })));
    }

    /// The path of a node file that cannot be made whole here, in a process of its own: the disk is full before it is.
    const INTERRUPTED: &str = "PGBATON_TEST_NODE_FILE";

    /// Not a test by itself: the process that ends while it makes the file.
    #[test]
    fn an_agent_that_is_interrupted() {
        let Ok(path) = std::env::var(INTERRUPTED) else { return };
        let (limit, resource) = (SLOT as u64, nix::sys::resource::Resource::RLIMIT_FSIZE);
        nix::sys::resource::setrlimit(resource, limit, limit).expect("limit");
        drop(open(Path::new(&path)));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the program is this test's own")]
    fn a_creation_that_was_interrupted_is_begun_again() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node");
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "agent::file::tests::an_agent_that_is_interrupted", "--test-threads=1"]).env(INTERRUPTED, &path);
        command.output().expect("run");
        let left = |dir: &Path| fs::read_dir(dir).expect("list").count();
        assert_eq!((left(dir.path()), path.exists()), (1, false), "what is left has another name");
        let (store, first) = open(&path).expect("nothing was promised yet");
        assert_eq!(left(dir.path()), 1, "nothing else is left");
        drop(store);
        assert_eq!(open(&path).expect("again").1, first);
    }

    #[test]
    fn what_an_interrupted_creation_left_is_replaced_and_an_empty_file_too() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node");
        fs::write(&path, "").expect("empty");
        fs::write(temporary(&path), vec![b'x'; 3 * SLOT]).expect("leftover");
        drop(open(&path).expect("nothing was promised yet"));
        assert!(!temporary(&path).exists());
        assert_eq!(fs::metadata(&path).expect("made").len(), 2 * SLOT as u64);
    }

    #[test]
    fn zeros_in_its_place_are_damage() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node");
        fs::write(&path, vec![0; 2 * SLOT]).expect("zeros");
        assert!(matches!(open(&path), Err(Error::Damaged { .. })));
        assert!(path.exists());
    }

    #[test]
    fn of_agents_that_start_at_once_one_gets_it() {
        for round in 0..50 {
            let dir = tempfile::tempdir().expect("directory");
            let path = dir.path().join("node");
            let start = std::sync::Barrier::new(4);
            let opened: Vec<_> = std::thread::scope(|scope| {
                let one = || {
                    start.wait();
                    open(&path)
                };
                let agents: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
                agents.into_iter().map(|agent| agent.join().expect("join")).collect()
            });
            let refused = opened.iter().filter(|opened| matches!(opened, Err(Error::InUse { .. }))).count();
            assert_eq!((opened.iter().filter(|opened| opened.is_ok()).count(), refused), (1, 3), "round {round}");
            assert!(matches!(open(&path), Err(Error::InUse { .. })), "the lock is on the file in place, round {round}");
        }
    }
}
