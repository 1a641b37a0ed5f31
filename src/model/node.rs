//! Names and identities of the parts of a cluster.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Why a text is no name or identity of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct NotAName {
    text: String,
    what: &'static str,
}

fn is_label(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $what:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NotAName;

            fn from_str(text: &str) -> Result<Self, NotAName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.to_owned())) } else { Err(NotAName { text: text.to_owned(), what: $what }) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAName;

            fn try_from(text: String) -> Result<Self, NotAName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text_newtype!(
    /// A node: one PostgreSQL instance with its agent and guard.
    NodeName,
    "a node name (1 to 40 of a-z, 0-9 and -)",
    |text| is_label(text, 40)
);
text_newtype!(
    /// A cluster: one primary and its standbys.
    ClusterName,
    "a cluster name (1 to 63 of a-z, 0-9 and -)",
    |text| is_label(text, 63)
);
text_newtype!(
    /// One life of a data directory: changes when it is initialised, cloned, rewound, restored, or found to have gone back.
    DataIncarnation,
    "a data incarnation (8 hexadecimal digits)",
    |text| text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
);
text_newtype!(
    /// One run of an agent or a guard (a uuid).
    Incarnation,
    "an incarnation (a uuid)",
    |text| (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
);
text_newtype!(
    /// What makes one write of a record differ from every other.
    Nonce,
    "a nonce (1 to 40 letters, digits and -)",
    |text| (1..=40).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
);
text_newtype!(
    /// A replication slot's name, as PostgreSQL allows it.
    SlotName,
    "a slot name (1 to 63 of a-z, 0-9 and _)",
    |text| (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
);

impl SlotName {
    /// What the names of our slots begin with. Any other slot is somebody else's and is never touched.
    pub const PREFIX: &str = "pgbaton_";

    /// Whether it is a member's slot, which we make and drop.
    pub fn is_ours(&self) -> bool {
        self.0.starts_with(Self::PREFIX)
    }
}

/// PostgreSQL's system identifier: which `initdb` a data directory descends from.
///
/// Written as a text: JSON numbers do not hold 64 bits everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemId(u64);

impl SystemId {
    /// From `pg_controldata`'s number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        text.parse().map(Self).map_err(|_| NotAName { text: text.to_owned(), what: "a system identifier (a 64-bit number)" })
    }
}

impl TryFrom<String> for SystemId {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<SystemId> for String {
    fn from(id: SystemId) -> Self {
        id.to_string()
    }
}

/// A node in one life of its data directory: what `sync` lists and what walsender names carry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Replica {
    /// Which node.
    pub node: NodeName,
    /// In which life of its data directory.
    pub data: DataIncarnation,
}

impl Replica {
    /// Both together.
    pub const fn new(node: NodeName, data: DataIncarnation) -> Self {
        Self { node, data }
    }

    /// `<node>_<data incarnation>`, at most 49 bytes: the `application_name` of this replica's walreceiver.
    pub fn application_name(&self) -> String {
        format!("{}_{}", self.node, self.data)
    }

    /// The replica that an `application_name` names, where it is one of ours.
    pub fn from_application_name(name: &str) -> Option<Self> {
        let (node, data) = name.rsplit_once('_')?;
        Some(Self { node: node.parse().ok()?, data: data.parse().ok()? })
    }
}

/// Replicas as keys of a map, for `#[serde(with)]`: JSON has only texts for them.
pub mod by_application_name {
    use super::Replica;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use std::collections::BTreeMap;

    /// Writes each key as its `application_name`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer, T: Serialize>(map: &BTreeMap<Replica, T>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(replica, value)| (replica.application_name(), value)))
    }

    /// Reads them back.
    ///
    /// # Errors
    /// A key is no `application_name` of a replica.
    pub fn deserialize<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<BTreeMap<Replica, T>, D::Error> {
        let named = BTreeMap::<String, T>::deserialize(deserializer)?;
        let replica = |name: &str| Replica::from_application_name(name).ok_or_else(|| Error::custom(format!("{name:?} names no replica")));
        named.into_iter().map(|(name, value)| Ok((replica(&name)?, value))).collect()
    }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.node, self.data)
    }
}

impl NodeName {
    /// The physical slot that the primary keeps for this member: [`SlotName::PREFIX`] and the name with `_` for `-`.
    ///
    /// Node names hold no `_`, so two names never meet in one slot name.
    pub fn slot(&self) -> SlotName {
        SlotName(format!("{}{}", SlotName::PREFIX, self.0.replace('-', "_")))
    }
}

/// Where a server can be reached: a host name or address, and a TCP port. Written `host:port`, IPv6 in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

impl FromStr for Address {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let bad = || NotAName { text: text.to_owned(), what: "an address (host:port, IPv6 in brackets)" };
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let clean = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"'\"\\/@,".contains(&b));
        if !clean || (bare.is_none() && host.contains(':')) {
            return Err(bad());
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for Address {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_hurt_elsewhere_are_refused() {
        for bad in ["", "N1", "n_1", "n.1", "ä", &"x".repeat(41)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
        assert!("0123abcd".parse::<DataIncarnation>().is_ok());
        assert!("0123ABCD".parse::<DataIncarnation>().is_err());
    }

    #[test]
    fn an_application_name_tells_its_replica() {
        let replica = Replica::new("n-1".parse().expect("name"), "0123abcd".parse().expect("id"));
        assert_eq!(Replica::from_application_name(&replica.application_name()), Some(replica));
        assert_eq!(Replica::from_application_name("walreceiver"), None);
    }

    #[test]
    fn addresses_keep_ipv6_in_brackets() {
        for text in ["10.0.0.1:5432", "[fd00::1]:5432", "db-1.example:5432"] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()), Ok(text.to_owned()));
        }
        for bad in ["", "host", "host:", "host:0", "host:70000", "fd00::1:5432", "ho st:1", "h'x:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
