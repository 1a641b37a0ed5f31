//! The node file on disk: two preallocated slots with checksums, written in turn and fsynced.
//!
//! A crash during a write leaves the other slot whole; a full disk does not stop a write, because its space is there.

use crate::model::{
    node::{ClusterName, DataIncarnation, NodeName},
    node_file::NodeFile,
};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
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
    /// See [`Error`]; nothing is changed on any of them.
    pub fn open(path: &Path, cluster: &ClusterName, node: &NodeName, fresh: DataIncarnation) -> Result<(Self, NodeFile), Error> {
        let io = |doing| {
            let path = path.to_owned();
            move |source| Error::Io { doing, path, source }
        };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io("lock (state_dir has to be on a file system with locks)")(source)),
        }
        let length = file.metadata().map_err(io("read"))?.len();
        let mut store = Self { path: path.to_owned(), file, count: 0 };
        if length == 0 {
            let first = NodeFile::fresh(cluster.clone(), node.clone(), fresh);
            store.file.write_all_at(&vec![0; 2 * SLOT], 0).map_err(io("make"))?;
            store.write(&first)?;
            sync_parent(path).map_err(io("make"))?;
            return Ok((store, first));
        }
        let slots = [store.read(0).map_err(io("read"))?, store.read(1).map_err(io("read"))?];
        let newest = slots.into_iter().flatten().max_by_key(|(count, _)| *count);
        let (count, found) = newest.ok_or_else(|| Error::Damaged { path: path.to_owned() })?;
        if found.node != *node || found.cluster != *cluster {
            return Err(Error::Foreign { path: path.to_owned(), node: found.node, cluster: found.cluster });
        }
        store.count = count;
        Ok((store, found))
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
}
