//! The keys under `<prefix>/<cluster>/`, and transactions on them.

use super::{node::NodeName, node::Nonce, term::Term, timeline::TimelineId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// One key of a cluster, below its prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Key {
    /// Who runs `initdb`; on an etcd lease.
    Bootstrap,
    /// Which cluster this is.
    Cluster,
    /// A node's word that this etcd went back.
    Doubt,
    /// The newest claim.
    Term,
    /// Who may write.
    Leader,
    /// Who holds the data.
    Sync,
    /// One timeline id of the ledger.
    Timeline(TimelineId),
    /// The timelines that were there before us.
    TimelineBase,
    /// A node's present life.
    Node(NodeName),
    /// One voter's promise.
    Promise(Term, NodeName),
    /// One operator request.
    Intent,
    /// Cluster policy.
    Policy,
    /// What a node says of itself; on an etcd lease.
    Member(NodeName),
    /// One change of leadership.
    History(Term),
    /// One accepted operator change: named by a nonce that sorts by time.
    Audit(Nonce),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootstrap => f.write_str("bootstrap"),
            Self::Cluster => f.write_str("cluster"),
            Self::Doubt => f.write_str("doubt"),
            Self::Term => f.write_str("term"),
            Self::Leader => f.write_str("leader"),
            Self::Sync => f.write_str("sync"),
            Self::Timeline(tli) => write!(f, "timeline/{tli}"),
            Self::TimelineBase => f.write_str("timeline/base"),
            Self::Node(node) => write!(f, "nodes/{node}"),
            Self::Promise(term, node) => write!(f, "promises/{term}/{node}"),
            Self::Intent => f.write_str("intent"),
            Self::Policy => f.write_str("policy"),
            Self::Member(node) => write!(f, "members/{node}"),
            Self::History(term) => write!(f, "history/{term}"),
            Self::Audit(id) => write!(f, "audit/{id}"),
        }
    }
}

/// Why a path is no key of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no key of this version")]
pub struct NotAKey(String);

impl FromStr for Key {
    type Err = NotAKey;

    fn from_str(path: &str) -> Result<Self, NotAKey> {
        let parts: Vec<&str> = path.split('/').collect();
        let key = match parts.as_slice() {
            ["bootstrap"] => Some(Self::Bootstrap),
            ["cluster"] => Some(Self::Cluster),
            ["doubt"] => Some(Self::Doubt),
            ["term"] => Some(Self::Term),
            ["leader"] => Some(Self::Leader),
            ["sync"] => Some(Self::Sync),
            ["timeline", "base"] => Some(Self::TimelineBase),
            ["timeline", tli] => tli.parse().ok().and_then(TimelineId::new).map(Self::Timeline),
            ["nodes", node] => node.parse().ok().map(Self::Node),
            ["promises", term, node] => term.parse().ok().zip(node.parse().ok()).map(|(t, n)| Self::Promise(Term::new(t), n)),
            ["intent"] => Some(Self::Intent),
            ["policy"] => Some(Self::Policy),
            ["members", node] => node.parse().ok().map(Self::Member),
            ["history", term] => term.parse().ok().map(|t| Self::History(Term::new(t))),
            ["audit", id] => id.parse().ok().map(Self::Audit),
            _ => None,
        };
        key.ok_or_else(|| NotAKey(path.to_owned()))
    }
}

impl TryFrom<String> for Key {
    type Error = NotAKey;

    fn try_from(path: String) -> Result<Self, NotAKey> {
        path.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

/// One condition of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// The key holds exactly this text.
    Is(Key, String),
    /// The key is not there (its create revision is 0).
    Missing(Key),
}

impl Compare {
    /// The key that is compared.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Is(key, _) | Self::Missing(key) => key,
        }
    }
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Write {
    /// Put this text. `Bootstrap` and `Member` keys are attached to the writer's etcd lease by the adapter.
    Put(Key, String),
    /// Delete the key.
    Delete(Key),
}

/// A transaction: all writes, if all conditions hold. When they do not, the answer carries the compared keys' present values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Identifies this attempt; equal to the nonce in the records that it writes, where they have one.
    pub nonce: Nonce,
    /// All must hold.
    pub when: Vec<Compare>,
    /// Done together, in one revision.
    pub then: Vec<Write>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_by_its_path() {
        let node: NodeName = "n1".parse().expect("name");
        let tli = TimelineId::FIRST.next();
        let keys = [
            Key::Bootstrap,
            Key::Cluster,
            Key::Doubt,
            Key::Term,
            Key::Leader,
            Key::Sync,
            Key::Timeline(tli),
            Key::TimelineBase,
            Key::Node(node.clone()),
            Key::Promise(Term::new(7), node.clone()),
            Key::Intent,
            Key::Policy,
            Key::Member(node),
            Key::History(Term::new(7)),
            Key::Audit("a-1".parse().expect("nonce")),
        ];
        for key in keys {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
    }

    #[test]
    fn other_paths_are_no_keys() {
        for path in ["", "leader/", "timeline/0", "timeline/x", "promises/1", "nodes/N1", "zebra"] {
            assert!(path.parse::<Key>().is_err(), "{path}");
        }
    }
}
