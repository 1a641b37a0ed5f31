//! What lies in the database itself: the migrations, and the roles of members with their means to log in.

use super::{
    Credential, Error, Role, Server,
    session::{Session, column, with_cause},
};
use crate::model::moment::Span;
use postgres_protocol::password::scram_sha_256;
use tokio_postgres::types::Type;

mod embedded {
    refinery::embed_migrations!("migrations");
}

/// The key of the advisory lock under which migrations run: "pgbaton" in ASCII.
const LOCK: i64 = 0x0070_6762_6174_6F6E;

/// The roles that the migrations make, and what each may do.
const REPLICATION: &str = "pgbaton_replication";
const REWIND: &str = "pgbaton_rewind";
const MONITOR: &str = "pgbaton_monitor";

impl Server {
    /// Applies the migrations that are missing, on the primary, in the database `postgres`; returns their names.
    ///
    /// One runner at a time (an advisory lock), each migration in a transaction of its own. Doing it again does nothing.
    ///
    /// # Errors
    /// [`Error::Sql`]: the named migration was rolled back, those before it stay. [`Error::Refused`]: an applied migration is not the
    /// one that this version knows. As for any session.
    pub async fn migrate(&self, limit: Span) -> Result<Vec<String>, Error> {
        let doing = "apply the migrations";
        let mut session = self.connect(limit, limit).await?;
        // The lock is the session's: it goes with it, however this ends. Waiting for another runner is no deadlock.
        session.script(doing, "SET lock_timeout = 0", limit).await?;
        session.rows(doing, "SELECT pg_advisory_lock($1)::text", &[(&LOCK, Type::INT8)], limit).await?;
        let set_up = "CREATE SCHEMA IF NOT EXISTS pgbaton; SET search_path = pgbaton, pg_catalog";
        session.script(doing, set_up, limit).await?;
        let mut runner = embedded::migrations::runner();
        runner.set_migration_table_name("schema_history");
        let running = runner.run_async(session.client_mut());
        let report = tokio::time::timeout(limit.to_std(), running).await;
        let report = report.map_err(|_| Error::Timeout { doing: doing.to_owned(), limit })?;
        let report = report.map_err(|error| migration_error(doing, &error))?;
        Ok(report.applied_migrations().iter().map(ToString::to_string).collect())
    }

    /// Lets the roles of members log in, each by what the settings say, or not at all. After [`Server::migrate`], on the primary.
    ///
    /// A role under a name of the operator's own is made where it is missing and gets what ours has. Passwords are sent as
    /// verifiers that are computed here, so that neither log nor `pg_stat_statements` ever holds one.
    ///
    /// # Errors
    /// [`Error::Sql`]: the named role is as it was; those before it are done. As for any session.
    pub async fn set_role_logins(&self, limit: Span) -> Result<(), Error> {
        let session = self.connect(limit, limit).await?;
        let roles = &self.settings.roles;
        for (role, ours) in [(&roles.replication, REPLICATION), (&roles.rewind, REWIND), (&roles.monitor, MONITOR)] {
            set_login(&session, role, ours, limit).await?;
        }
        Ok(())
    }
}

async fn set_login(session: &Session, role: &Role, ours: &str, limit: Span) -> Result<(), Error> {
    let doing = format!("set how the role {} logs in", role.name);
    let quoted = format!("\"{}\"", role.name.replace('"', "\"\""));
    let mut script = String::new();
    if role.name != ours {
        let sql = "SELECT count(*) AS known FROM pg_roles WHERE rolname = $1";
        let rows = session.rows(&doing, sql, &[(&role.name, Type::TEXT)], limit).await?;
        let known = rows.first().map_or(Ok(0), |row| column::<i64>(row, "known"))? > 0;
        if !known {
            script.push_str(&format!("CREATE ROLE {quoted} NOLOGIN;"));
        }
        script.push_str(&format!("GRANT {ours} TO {quoted};"));
    }
    // REPLICATION is an attribute: membership does not give it.
    let replication = if ours == REPLICATION { " REPLICATION" } else { "" };
    match &role.credential {
        Credential::None => script.push_str(&format!("ALTER ROLE {quoted} NOLOGIN{replication};")),
        Credential::Certificate { .. } => script.push_str(&format!("ALTER ROLE {quoted} LOGIN{replication};")),
        Credential::Password(secret) => {
            let verifier = scram_sha_256(secret.reveal().as_bytes());
            script.push_str(&format!("ALTER ROLE {quoted} LOGIN{replication} PASSWORD '{verifier}';"));
        }
    }
    session.script(&doing, &script, limit).await
}

fn migration_error(doing: &str, error: &refinery::Error) -> Error {
    let text = with_cause(error);
    match error.kind() {
        refinery::error::Kind::Connection(..) => Error::Sql { doing: doing.to_owned(), code: "?".to_owned(), message: text },
        _ => Error::Refused(format!("{doing}: {text}")),
    }
}
