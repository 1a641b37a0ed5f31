//! Who this PostgreSQL is and where its parts lie: what the node's configuration says to this room.

use super::process::Owner;
use crate::model::{
    node::{Address, ClusterName, NodeName},
    secret::Secret,
};
use std::{collections::BTreeMap, path::PathBuf};

/// Everything this room is told about its node. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cluster: also PostgreSQL's `cluster_name`.
    pub cluster: ClusterName,
    /// This node.
    pub node: NodeName,
    /// PGDATA.
    pub data_dir: PathBuf,
    /// Where `postgres`, `initdb`, `pg_rewind`, … lie.
    pub bin_dir: PathBuf,
    /// The operator's `postgresql.conf`, included before what we manage; none: PostgreSQL's defaults.
    pub base_config: Option<PathBuf>,
    /// `listen_addresses`; empty: the Unix socket only.
    pub listen: Vec<String>,
    /// `port`.
    pub port: u16,
    /// Where other nodes and clients reach this server.
    pub advertise: Address,
    /// A separate directory for WAL.
    pub wal_dir: Option<PathBuf>,
    /// Where a clone puts the source's tablespaces: their directories, source to here.
    pub tablespace_map: BTreeMap<PathBuf, PathBuf>,
    /// Run-time directory; the Unix socket lies in `postgres` below it.
    pub run_dir: PathBuf,
    /// State directory; the managed configuration and the passfile lie here, outside PGDATA.
    pub state_dir: PathBuf,
    /// Other directories for Unix sockets, besides our own (as `/var/run/postgresql`).
    pub socket_dirs: Vec<PathBuf>,
    /// The database roles that members use.
    pub roles: Roles,
    /// How members encrypt replication, clone and rewind between them; none: PostgreSQL's `prefer`.
    pub replication_tls: Option<ReplicationTls>,
    /// The operating system's user that owns the data directory.
    pub owner: Owner,
    /// That user's name, as `peer` authentication sees it.
    pub owner_name: String,
}

impl Settings {
    /// One of PostgreSQL's programs, run as the owner of the data directory.
    pub fn program(&self, name: &str) -> super::Program {
        super::Program::new(self.bin_dir.join(name)).owner(self.owner)
    }

    /// The directory of our Unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.run_dir.join("postgres")
    }

    /// The file that holds the passwords for libpq: owner only, and the only file that does.
    pub fn passfile(&self) -> PathBuf {
        self.state_dir.join("passfile")
    }
}

/// The database roles that members use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roles {
    /// The local agent's, over the Unix socket only, by `peer`: the agent runs as the owner of the data directory.
    pub superuser: String,
    /// Streams and clones.
    pub replication: Role,
    /// What pg_rewind connects as.
    pub rewind: Role,
    /// Reads statistics.
    pub monitor: Role,
}

/// A database role and how it proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Its proof.
    pub credential: Credential,
}

/// How a role proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// It may not log in.
    None,
    /// By password (scram-sha-256).
    Password(Secret),
    /// By a client certificate, whose common name is the role's name.
    Certificate {
        /// The certificate (PEM); readable by the owner of the data directory.
        cert_file: PathBuf,
        /// Its key (PEM); mode 0600, the owner's.
        key_file: PathBuf,
    },
}

impl Credential {
    /// The password, where it is one.
    pub const fn password(&self) -> Option<&Secret> {
        match self {
            Self::Password(secret) => Some(secret),
            Self::None | Self::Certificate { .. } => None,
        }
    }
}

/// How members encrypt what they send to each other. The servers' own certificates are PostgreSQL's `ssl_cert_file` and so on: they
/// stand in `base_config` or in the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicationTls {
    /// How far the server must prove who it is.
    pub mode: SslMode,
    /// The authorities that sign the servers' certificates (PEM). Needed to verify.
    pub ca_file: Option<PathBuf>,
}

/// libpq's `sslmode`, without those that may end up in clear text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    /// Encrypted, to whomever.
    Require,
    /// Signed by our authority.
    VerifyCa,
    /// Signed by our authority, and for the host that we meant.
    VerifyFull,
}

impl SslMode {
    /// As libpq writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}
