//! Where a key stands: `<prefix>/<cluster>/<key>`.

use crate::model::{key::Key, node::ClusterName};

/// The part of etcd's key space that belongs to one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    root: String,
}

/// What a path in this space is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A record of the view.
    Record(Key),
    /// `history/` or `audit/`: read on demand.
    Journal(Key),
    /// No key of this version, or not of this cluster.
    Unknown,
}

/// The byte after `/`: the end of the range of all paths that begin with `…/`.
const AFTER_SLASH: char = '0';

impl Space {
    /// `<prefix>/<cluster>/`; slashes at the end of `prefix` do not matter.
    pub fn new(prefix: &str, cluster: &ClusterName) -> Self {
        Self { root: format!("{}/{cluster}/", prefix.trim_end_matches('/')) }
    }

    /// `<prefix>/<cluster>/`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The key's full path.
    pub fn path(&self, key: &Key) -> String {
        format!("{}{key}", self.root)
    }

    /// What stands at this path.
    pub fn place(&self, path: &[u8]) -> Place {
        let below = std::str::from_utf8(path).ok().and_then(|path| path.strip_prefix(&self.root));
        match below.and_then(|below| below.parse().ok()) {
            Some(key @ (Key::History(_) | Key::Audit(_))) => Place::Journal(key),
            Some(key) => Place::Record(key),
            None => Place::Unknown,
        }
    }

    /// `[from, to)` of everything below `folder` (`""`: the whole cluster).
    pub fn folder(&self, folder: Folder) -> (String, String) {
        let from = format!("{}{}", self.root, folder.name());
        let to = format!("{}{AFTER_SLASH}", from.trim_end_matches('/'));
        (from, to)
    }

    /// The ranges that together hold every record but those of `history/` and `audit/`.
    pub fn records(&self) -> [(String, String); 3] {
        let (all, end) = self.folder(Folder::All);
        let (audit, after_audit) = self.folder(Folder::Audit);
        let (history, after_history) = self.folder(Folder::History);
        [(all, audit), (after_audit, history), (after_history, end)]
    }
}

/// A part of the space that is read as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// The whole cluster.
    All,
    /// `history/`.
    History,
    /// `audit/`.
    Audit,
}

impl Folder {
    const fn name(self) -> &'static str {
        match self {
            Self::All => "",
            Self::History => "history/",
            Self::Audit => "audit/",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(prefix: &str) -> Space {
        Space::new(prefix, &"c1".parse().expect("name"))
    }

    #[test]
    fn a_path_tells_its_key() {
        let space = space("/pgbaton/");
        assert_eq!(space.path(&Key::Leader), "/pgbaton/c1/leader");
        assert_eq!(space.place(b"/pgbaton/c1/leader"), Place::Record(Key::Leader));
        assert_eq!(space.place(b"/pgbaton/c1/audit/a1"), Place::Journal(Key::Audit("a1".parse().expect("nonce"))));
        for foreign in [&b"/pgbaton/c1/zebra"[..], b"/pgbaton/c10/leader", b"/pgbaton/c1", b"\xff"] {
            assert_eq!(space.place(foreign), Place::Unknown, "{foreign:?}");
        }
    }

    #[test]
    fn the_ranges_of_a_list_hold_every_record_and_no_journal() {
        let space = space("/pgbaton");
        let listed = |below: &str| {
            let path = format!("/pgbaton/c1/{below}");
            space.records().iter().filter(|(from, to)| *from <= path && path < *to).count()
        };
        for key in ["bootstrap", "cluster", "intent", "leader", "members/a", "nodes/a", "policy", "promises/1/a", "sync", "term"] {
            assert_eq!(listed(key), 1, "{key}");
        }
        for key in ["timeline/1", "timeline/base", "zebra", "a", "audits", "historic"] {
            assert_eq!(listed(key), 1, "{key}");
        }
        assert_eq!(listed("audit/x") + listed("history/1"), 0);
        assert!(!space.records().iter().any(|(from, to)| from.as_str() <= "/pgbaton/c10/leader" && "/pgbaton/c10/leader" < to.as_str()));
    }
}
