//! Another member's server, asked over TCP with a role of members: what a rewind or a clone must know of its source.

use super::{
    Credential, Error, Role, Settings,
    session::{Rights, Session, column, options},
    tls::connector,
};
use crate::model::{
    lsn::Lsn,
    moment::Span,
    node::{Address, SystemId},
    secret::Secret,
    timeline::TimelineId,
};
use tokio_postgres::{Config, config::SslMode, types::PgLsn};

/// What another member's server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerFacts {
    /// Its system identifier.
    pub system_id: SystemId,
    /// `server_version_num`.
    pub version_num: u32,
    /// Its timeline, where it is a primary; `None`: it is in recovery, and no source for a rewind (scenario 144).
    pub primary_of: Option<TimelineId>,
    /// The timeline of its latest checkpoint. Before PG 16 pg_rewind trusts this alone: it must be that of the primary.
    pub checkpoint_tli: TimelineId,
    /// Where the latest checkpoint's redo begins.
    pub redo: Lsn,
}

/// Asks the server at `address`, in the database `postgres`, as `role`.
///
/// # Errors
/// As for any session. [`Error::Refused`], [`Error::File`]: our own TLS files.
pub async fn ask(settings: &Settings, address: &Address, role: &Role, limit: Span) -> Result<PeerFacts, Error> {
    let doing = "ask the server for its state";
    let session = connect(settings, address, role, limit).await?;
    let sql = "SELECT current_setting('server_version_num')::int AS version, \
                   (SELECT system_identifier FROM pg_control_system()) AS system_id, \
                   CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END AS walfile, \
                   timeline_id AS checkpoint_tli, redo_lsn FROM pg_control_checkpoint()";
    let rows = session.rows(doing, sql, &[], limit).await?;
    let malformed = || Error::Malformed { what: format!("the state of {address}"), text: String::new() };
    let row = rows.first().ok_or_else(malformed)?;
    let walfile: Option<&str> = column(row, "walfile")?;
    let tli = |name: &str| name.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(TimelineId::new);
    Ok(PeerFacts {
        system_id: SystemId::new(column::<i64>(row, "system_id")?.cast_unsigned()),
        version_num: u32::try_from(column::<i32>(row, "version")?).unwrap_or_default(),
        primary_of: walfile.map(|name| tli(name).ok_or_else(malformed)).transpose()?,
        checkpoint_tli: u32::try_from(column::<i32>(row, "checkpoint_tli")?).ok().and_then(TimelineId::new).ok_or_else(malformed)?,
        redo: Lsn::new(column::<PgLsn>(row, "redo_lsn")?.into()),
    })
}

/// Whether the server at `address` answers within `limit`, whatever it says: a refusal is an answer, a connection alone is none.
pub async fn answers(settings: &Settings, address: &Address, limit: Span) -> bool {
    // Without any password the client would break off by itself where it is asked for one.
    let mut role = settings.roles.monitor.clone();
    if matches!(role.credential, Credential::None) {
        role.credential = Credential::Password(Secret::new("none".to_owned()));
    }
    match connect(settings, address, &role, limit).await {
        Ok(_) => true,
        Err(Error::Timeout { .. } | Error::NotListening { .. } | Error::Gone { .. } | Error::File { .. }) => false,
        // It said something.
        Err(_) => true,
    }
}

/// Opens a session there, in the database `postgres`.
pub(super) async fn connect(settings: &Settings, address: &Address, role: &Role, limit: Span) -> Result<Session, Error> {
    let tls = settings.replication_tls.as_ref();
    let mut config = Config::new();
    config.host(&address.host).port(address.port).user(&role.name).dbname("postgres").application_name("pgbaton");
    config.options(options(Rights::Ordinary, limit)).tcp_user_timeout(limit.to_std());
    config.ssl_mode(if tls.is_some() { SslMode::Require } else { SslMode::Prefer });
    if let Some(secret) = role.credential.password() {
        config.password(secret.reveal());
    }
    Session::open(&config, connector(tls, &role.credential)?, &address.to_string(), limit).await
}
