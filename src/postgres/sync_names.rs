//! `synchronous_standby_names`: seen in force, and behind which place in the log (EXP-24).

use super::{
    Error, Server,
    replication::left,
    server::CONNECT_LIMIT,
    session::{Session, column},
};
use crate::{
    clock,
    model::{
        lsn::Lsn,
        moment::{Moment, Span},
    },
};
use tokio_postgres::types::{PgLsn, Type};

/// Between two new connections that look for the setting.
const LOOK_EVERY: Span = Span::from_millis(10);

impl Server {
    /// Waits until a new session shows `names`, then makes two checkpoints where `checkpoints` says so, and then, on a primary, commits a
    /// message to the log (`pg_logical_emit_message`); returns where that ended. Whatever confirms this place has been sent it after the
    /// postmaster had passed the reload on.
    ///
    /// A checkpoint returns once the checkpointer has made one that was begun after it was asked for. Before the second one begins it has
    /// come round, and has read its configuration.
    ///
    /// # Errors
    /// As for any session; [`Error::Refused`] where new sessions go on to show other names within `limit`.
    pub async fn show_names(&self, names: &str, checkpoints: bool, limit: Span, checkpoint_limit: Span) -> Result<Option<Lsn>, Error> {
        let doing = "see synchronous_standby_names in a new session";
        let end = clock::boot().plus(limit);
        let refused = |shown: &str| Error::Refused(format!("{doing}: it shows {shown:?}, not {names:?}"));
        let mut before: Option<String> = None;
        loop {
            let (session, shown) = match (self.new_session_shows(end, checkpoint_limit).await, &before) {
                (Ok(seen), _) => seen,
                // What it says is worth more than that there was no time left to ask again.
                (Err(Error::Timeout { .. }), Some(shown)) => return Err(refused(shown)),
                (Err(fault), _) => return Err(fault),
            };
            if shown == names {
                if checkpoints {
                    session.script("make a checkpoint", "CHECKPOINT", checkpoint_limit).await?;
                    session.script("make a second checkpoint", "CHECKPOINT", checkpoint_limit).await?;
                }
                let marks =
                    "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_logical_emit_message(true, 'pgbaton', 'sync_names') END AS mark";
                let rows = session.rows("mark a place in the log", marks, &[], limit).await?;
                let mark = rows.first().map(|row| column::<Option<PgLsn>>(row, "mark")).transpose()?.flatten();
                return Ok(mark.map(|mark| Lsn::new(mark.into())));
            }
            if left(end) == Span::ZERO {
                return Err(refused(&shown));
            }
            before = Some(shown);
            tokio::time::sleep(LOOK_EVERY.to_std()).await;
        }
    }

    /// A session that is older than a reload shows what it has heard itself: this one is not.
    async fn new_session_shows(&self, end: Moment, statement_limit: Span) -> Result<(Session, String), Error> {
        let session = self.connect(left(end).min(CONNECT_LIMIT), statement_limit).await?;
        let doing = "see synchronous_standby_names in a new session";
        let rows = session.rows(doing, "SELECT current_setting('synchronous_standby_names') AS names", &[], left(end)).await?;
        let shown = rows.first().map(|row| column::<String>(row, "names")).transpose()?.unwrap_or_default();
        Ok((session, shown))
    }

    /// Ends the walsenders of these replicas, by their `application_name`.
    ///
    /// # Errors
    /// As for any session.
    pub async fn end_walsenders(&self, names: &[String], limit: Span) -> Result<(), Error> {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = ANY ($1)";
        let session = self.connect(limit, limit).await?;
        session.rows("end walsenders", sql, &[(&names, Type::TEXT_ARRAY)], limit).await.map(drop)
    }
}
