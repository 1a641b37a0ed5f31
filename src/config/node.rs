//! What a node's configuration says once it is checked: plain structs, one a component.

use super::{
    file::Places,
    secret::{CertificateFile, KeyPair, SecretFile},
};
use crate::model::{
    instance::KillMode,
    node::{Address, ClusterName, NodeName},
    policy::{ClusterPolicy, Durability},
    record::Tags,
};
use serde::Serialize;
use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, str::FromStr};

/// A node's configuration. Every default is filled in, every path is absolute, every named file was read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// Which cluster this node belongs to.
    pub cluster: ClusterName,
    /// Which node this is.
    pub node: NodeName,
    /// Its failure domain; empty when not told.
    pub zone: String,
    /// What this node may be used for.
    pub tags: Tags,
    /// Where the node file, the journal and the managed PostgreSQL files live.
    pub state_dir: PathBuf,
    /// Where the sockets live.
    pub run_dir: PathBuf,
    /// How etcd is reached.
    pub etcd: EtcdConfig,
    /// Where this node's API listens and who may use it.
    pub api: ApiConfig,
    /// The PostgreSQL instance.
    pub postgres: PostgresConfig,
    /// Used once, by the first node of a new cluster.
    pub bootstrap: BootstrapConfig,
    /// How PostgreSQL is ended when the deadline passes.
    pub guard: GuardConfig,
    /// What this node tells of itself.
    pub telemetry: TelemetryConfig,
    /// Where each key stands, for later faults.
    #[serde(skip)]
    pub places: Places,
}

/// How etcd is reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EtcdConfig {
    /// `http://host:port` or `https://host:port`, all of one kind, each once, without a slash at the end.
    pub endpoints: Vec<String>,
    /// Begins with a slash, ends without one. The cluster's keys stand under `<prefix>/<cluster>/`.
    pub prefix: String,
    /// The authorities that etcd's certificates are checked against. There with `https`, and only then.
    pub ca: Option<CertificateFile>,
    /// This node's certificate, for mutual TLS.
    pub client: Option<KeyPair>,
    /// Where etcd's authentication is on.
    pub user: Option<EtcdUser>,
}

/// An etcd user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EtcdUser {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: SecretFile,
}

/// Where this node's API listens and who may use it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApiConfig {
    /// At least one address.
    pub listen: Vec<Address>,
    /// What others use.
    pub advertise: Address,
    /// From where requests are accepted; empty for everywhere.
    pub allow: Vec<Network>,
    /// By what the nodes of the cluster prove to each other who they are; all have the same.
    pub peer_key: Option<SecretFile>,
}

/// The PostgreSQL instance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PostgresConfig {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where `postgres`, `initdb`, `pg_basebackup`, `pg_rewind`, `pg_waldump` and `pg_controldata` are.
    pub bin_dir: PathBuf,
    /// Included first by the managed `postgresql.conf`.
    pub base_config: Option<PathBuf>,
    /// `listen_addresses`: IP addresses and host names without brackets; at least one.
    pub listen: Vec<String>,
    /// `port`.
    pub port: u16,
    /// What other nodes and clients connect to.
    pub advertise: Address,
    /// For the agent's own sessions.
    pub superuser: Superuser,
    /// For streaming and `pg_basebackup`.
    pub replication: Role,
    /// For `pg_rewind`.
    pub rewind: Role,
    /// For probes.
    pub monitor: Role,
    /// TLS of streaming, cloning and rewinding.
    pub replication_tls: ReplicationTls,
    /// A separate directory for the WAL.
    pub wal_dir: Option<PathBuf>,
    /// Where tablespaces of the source lie here: source path → local path.
    pub tablespace_map: BTreeMap<PathBuf, PathBuf>,
}

/// The agent's role: it logs in over the Unix socket, by `peer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Superuser {
    /// Its name.
    pub user: String,
}

/// A database role and how it proves itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Role {
    /// Its name.
    pub user: String,
    /// Its password.
    pub password: Option<SecretFile>,
    /// Its client certificate.
    pub certificate: Option<KeyPair>,
}

/// TLS between PostgreSQL servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplicationTls {
    /// libpq's `sslmode`.
    pub mode: TlsMode,
    /// libpq's `sslrootcert`; there with `verify-ca` and `verify-full`.
    pub ca: Option<CertificateFile>,
}

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Where the server offers it; proves nothing.
    Prefer,
    /// Always; proves nothing about the server.
    Require,
    /// Always, and the certificate is of our authority.
    VerifyCa,
    /// Always, and the certificate is this host's.
    VerifyFull,
}

impl TlsMode {
    /// As libpq spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Used once, by the first node of a new cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BootstrapConfig {
    /// More arguments of `initdb`.
    pub initdb: Vec<String>,
    /// The first policy: that of the named file, or the defaults.
    pub policy: ClusterPolicy,
    /// What commits wait for in a cluster that was there before: what the named file says, else for nobody, as they did.
    pub adopted_durability: Durability,
}

/// How PostgreSQL is ended when the deadline passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuardConfig {
    /// By which means; `None` for the best that works here.
    pub kill: Option<KillMode>,
}

/// What this node tells of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TelemetryConfig {
    /// How log lines look.
    pub log: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A network as `10.0.0.0/8` or `fd00::/8`; a single address without a slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Its first address and the number of bits that all its addresses share.
    pub const fn parts(self) -> (IpAddr, u8) {
        (self.address, self.prefix)
    }

    /// Whether `address` lies in it. An IPv4 address that came over an IPv6 socket counts as the IPv4 address it is.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let masked = masked(address, self.prefix);
        self.address.is_ipv4() == address.is_ipv4() && masked == self.address
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0)).into()),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotANetwork {
    /// Not an address with a prefix length.
    #[error("{0:?} is not a network")]
    Text(String),
    /// Bits are set beyond the prefix.
    #[error("{0:?} has bits beyond its prefix: the network is {1}")]
    HostBits(String, Network),
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let bad = || NotANetwork::Text(text.to_owned());
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let plain = |digits: &&str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let prefix = match prefix {
            None => longest,
            Some(digits) => Some(digits).filter(plain).and_then(|d| d.parse().ok()).filter(|p| *p <= longest).ok_or_else(bad)?,
        };
        let network = Self { address: masked(address, prefix), prefix };
        if network.address == address { Ok(network) } else { Err(NotANetwork::HostBits(text.to_owned(), network)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_own_addresses_and_no_others() {
        let ten: Network = "10.0.0.0/8".parse().expect("network");
        assert!(ten.contains("10.200.3.4".parse().expect("address")));
        assert!(ten.contains("::ffff:10.1.1.1".parse().expect("address")));
        assert!(!ten.contains("11.0.0.1".parse().expect("address")));
        assert!(!ten.contains("fd00::1".parse().expect("address")));
        let everything: Network = "0.0.0.0/0".parse().expect("network");
        assert!(everything.contains("192.0.2.1".parse().expect("address")));
        let one: Network = "fd00::1".parse().expect("network");
        assert_eq!(one.to_string(), "fd00::1/128");
        assert!(one.contains("fd00::1".parse().expect("address")) && !one.contains("fd00::2".parse().expect("address")));
    }

    #[test]
    fn texts_that_are_no_network_are_refused() {
        for text in ["", "10", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "fd00::/129", "host/8"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        let message = "10.0.0.5/8".parse::<Network>().expect_err("host bits").to_string();
        assert_eq!(message, "\"10.0.0.5/8\" has bits beyond its prefix: the network is 10.0.0.0/8");
    }
}
