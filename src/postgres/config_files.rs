//! The managed configuration, outside PGDATA: written whole, atomically, and only where something changes.
//!
//! A rewind or a clone replaces everything inside PGDATA; ports, paths and addresses of this node must survive it
//! (scenario 147). The server is started with `-c config_file=… -c hba_file=… -c ident_file=…` (see `command`).

use super::{Error, Settings, durable, hba, parameters};
use crate::model::{
    instance::RecoveryTarget,
    lsn::Bytes,
    moment::Span,
    node::{Address, SlotName},
    policy::ClusterPolicy,
};
use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{task::spawn_blocking, time::timeout};

/// How long the disk may take to write the configuration.
const WRITE_LIMIT: Span = Span::from_secs(30);

/// What the managed configuration is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// From whom to stream; `None`: from nobody (`primary_conninfo = ''`).
    pub follow: Option<Follow>,
    /// `synchronous_standby_names`.
    pub sync_names: String,
    /// Whether only members and the agent are let in, and the policy's lines wait.
    pub members_only: bool,
    /// The policy's PostgreSQL parameters; managed ones among them are left out.
    pub parameters: BTreeMap<String, String>,
    /// The policy's lines of `pg_hba.conf`.
    pub hba: Vec<String>,
    /// From where members connect with the replication, rewind and monitor roles: addresses, networks, host names, `samenet`, `all`.
    pub peers: Vec<String>,
    /// How long a taker waits: a cut stream must not hang on a dead socket for longer.
    pub wait: Span,
    /// `max_slot_wal_keep_size`: how much WAL slots may hold back.
    pub slot_wal_keep: Bytes,
    /// `restore_command`; `None`: there is no archive.
    pub restore_command: Option<String>,
    /// What recovery is for. The latest timeline: to follow the primary, over every change of timeline. Else to replay what lies on this disk
    /// and nothing else (protocol 1.13 c, EXP-30; ADR 23): no stream, no archive, no delay, no target.
    pub recovery: RecoveryTarget,
}

impl Configuration {
    /// Whether commits have to wait for replicas: then no `synchronous_commit` outside the policy may let them go.
    pub const fn waits(&self) -> bool {
        !self.sync_names.is_empty()
    }
}

/// From whom a standby streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    /// The server.
    pub address: Address,
    /// The physical slot there.
    pub slot: Option<SlotName>,
    /// What its walsender is called: [`crate::model::node::Replica::application_name`].
    pub application_name: String,
}

impl Configuration {
    /// What a policy says, following nobody yet.
    pub fn of_policy(policy: &ClusterPolicy, peers: Vec<String>) -> Self {
        Self {
            follow: None,
            sync_names: String::new(),
            members_only: false,
            parameters: policy.parameters.clone(),
            hba: policy.hba.clone(),
            peers,
            wait: policy.timers().wait,
            slot_wal_keep: policy.member_slot_retention.bytes,
            restore_command: None,
            recovery: RecoveryTarget::Latest,
        }
    }
}

/// The managed files of one node.
#[derive(Clone, Debug)]
pub struct ConfigFiles {
    settings: Arc<Settings>,
}

impl ConfigFiles {
    /// Of the node that `settings` describe.
    pub const fn new(settings: Arc<Settings>) -> Self {
        Self { settings }
    }

    /// The managed `postgresql.conf`.
    pub fn main(settings: &Settings) -> PathBuf {
        settings.state_dir.join("postgresql.conf")
    }

    /// The managed `pg_hba.conf`.
    pub fn hba(settings: &Settings) -> PathBuf {
        settings.state_dir.join("pg_hba.conf")
    }

    /// The managed `pg_ident.conf`.
    pub fn ident(settings: &Settings) -> PathBuf {
        settings.state_dir.join("pg_ident.conf")
    }

    /// Makes the files say `configuration`; returns whether one of them changed, that is, whether a reload is needed.
    ///
    /// The directory of the Unix socket is made where it is missing. Each file is replaced at once (written beside it, fsynced, renamed, directory fsynced), the passfile first: the
    /// connection string in `postgresql.conf` needs it.
    ///
    /// # Errors
    /// [`Error::Refused`]: the configuration cannot be written as it is; nothing was changed. [`Error::File`]: files before the
    /// named one may have changed. [`Error::Timeout`]: the disk hangs.
    pub async fn configure(&self, configuration: &Configuration) -> Result<bool, Error> {
        let (files, settings, configuration) = (self.clone(), Arc::clone(&self.settings), configuration.clone());
        // fsync may take seconds, and so may a read: not on a thread that others wait for.
        let writing = spawn_blocking(move || {
            let files = files.contents(&configuration)?;
            let mut changed = false;
            make_socket_dir(&settings)?;
            for file in &files {
                changed |= file.write(&settings)?;
            }
            Ok(changed)
        });
        let doing = "write the managed configuration";
        match timeout(WRITE_LIMIT.to_std(), writing).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(Error::Gone { doing: doing.to_owned(), why: panic.to_string() }),
            Err(_) => Err(Error::Timeout { doing: doing.to_owned(), limit: WRITE_LIMIT }),
        }
    }

    fn contents(&self, configuration: &Configuration) -> Result<[Managed; 4], Error> {
        let settings = &self.settings;
        let file = |path: PathBuf, mode: u32, text: String| Managed { path, mode, text };
        Ok([
            file(settings.passfile(), 0o600, hba::passfile(&settings.roles)?),
            file(Self::ident(settings), 0o640, hba::ident(settings)),
            file(Self::hba(settings), 0o640, hba::hba(settings, configuration)?),
            file(Self::main(settings), 0o640, parameters::postgresql_conf(settings, configuration)?),
        ])
    }
}

/// One managed file as it is to be.
struct Managed {
    path: PathBuf,
    mode: u32,
    text: String,
}

impl Managed {
    /// Writes it where it says something else; returns whether it did.
    fn write(&self, settings: &Settings) -> Result<bool, Error> {
        let same_mode = fs::metadata(&self.path).is_ok_and(|meta| meta.permissions().mode() & 0o777 == self.mode);
        if same_mode && fs::read(&self.path).is_ok_and(|old| old == self.text.as_bytes()) {
            return Ok(false);
        }
        let beside = self.path.with_extension("new");
        let _ = fs::remove_file(&beside);
        // The mode is right from the first byte on: the passfile is never readable by others.
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(self.mode).open(&beside).map_err(Error::file("create", &beside))?;
        file.set_permissions(Permissions::from_mode(self.mode)).map_err(Error::file("set the mode of", &beside))?;
        give(&beside, settings)?;
        file.write_all(self.text.as_bytes()).map_err(Error::file("write", &beside))?;
        file.sync_all().map_err(Error::file("fsync", &beside))?;
        fs::rename(&beside, &self.path).map_err(Error::file("replace", &self.path))?;
        durable::parent(&self.path).and_then(durable::sync_directory).map_err(Error::file("fsync the directory of", &self.path))?;
        Ok(true)
    }
}

/// The directory of our Unix socket, for the owner alone: local clients of others have `socket_dirs`. Made anew after a reboot.
fn make_socket_dir(settings: &Settings) -> Result<(), Error> {
    let dir = settings.socket_dir();
    if !dir.exists() {
        DirBuilder::new().mode(0o700).create(&dir).map_err(Error::file("create", &dir))?;
        give(&dir, settings)?;
    }
    Ok(())
}

/// Makes the owner of the data directory the owner of `path`.
fn give(path: &Path, settings: &Settings) -> Result<(), Error> {
    let present = fs::metadata(path).map_err(Error::file("look at", path))?;
    if (present.uid(), present.gid()) == (settings.owner.uid, settings.owner.gid) {
        return Ok(());
    }
    chown(path, Some(settings.owner.uid), Some(settings.owner.gid)).map_err(Error::file("give away", path))
}
