//! The local server as SQL reaches it: one session that is kept open for one run of PostgreSQL, and short ones beside it.

use super::{
    Error, Settings,
    replication::Identity,
    session::{Rights, Session, options},
};
use crate::model::{
    instance::{Pause, Run},
    lsn::Lsn,
    moment::{Moment, Span},
};
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::timeout;
use tokio_postgres::{
    Config, NoTls, Row, Statement,
    types::{ToSql, Type},
};

/// How long connecting over the Unix socket may take: forking a backend on a busy machine.
pub(super) const CONNECT_LIMIT: Span = Span::from_secs(5);

/// How long a statement of the kept session may take on the server. Each caller has its own, shorter limit; this one ends what
/// nobody waits for any more.
pub(super) const KEPT_STATEMENT: Span = Span::from_secs(30);

/// The handle of this room to the local server. Cheap to share; every call names the run of PostgreSQL that it is meant for.
pub struct Server {
    pub(super) settings: Arc<Settings>,
    kept: Mutex<Kept>,
    /// Sessions for short statements while the kept one is in use. `None` where no pool can be built.
    beside: Option<Pool>,
}

/// What is kept between two calls, of one run. Sessions of an earlier run are dropped: a socket may outlive its server (scenario 127).
#[derive(Default)]
struct Kept {
    run: Run,
    watch: Option<Watch>,
}

/// The session that samples the server, with what it has prepared and what seldom changes.
///
/// It is opened early and kept, so that it has its place when clients have taken every other one (scenario 125).
pub(super) struct Watch {
    pub(super) session: Session,
    pub(super) sample: Statement,
    pub(super) version_num: u32,
    pub(super) system_id: u64,
    pub(super) seldom: Seldom,
    pub(super) parameters_pause: Option<(Moment, Pause)>,
    pub(super) identity: Option<Identity>,
    pub(super) silent_since: Option<Moment>,
}

/// What is asked seldom.
#[derive(Default)]
pub(super) struct Seldom {
    /// When it was; `None`: not yet.
    pub(super) at: Option<Moment>,
    pub(super) pending_restart: Vec<String>,
    /// The `synchronous_commit` of the files and where it stands, if commits with that wait for no replica, on a primary.
    pub(super) weak_commits: Option<String>,
    /// Where the oldest segment of WAL begins, on a primary.
    pub(super) oldest_wal: Option<Lsn>,
}

/// The superuser's way over our Unix socket; statements end on the server after `statement`.
fn local(settings: &Settings, database: &str, statement: Span) -> Config {
    let mut config = Config::new();
    config.host_path(settings.socket_dir()).port(settings.port).user(&settings.roles.superuser).dbname(database);
    config.application_name("pgbaton").options(options(Rights::Superuser, statement));
    config
}

/// Two sessions are enough beside the kept one: what takes longer opens its own.
fn pool(settings: &Settings) -> Option<Pool> {
    const SHORT: Span = Span::from_secs(10);
    let manager =
        Manager::from_config(local(settings, "postgres", SHORT), NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    Pool::builder(manager).max_size(2).build().ok()
}

impl Server {
    /// For the instance that `settings` describe; connects when first asked.
    pub fn new(settings: Arc<Settings>) -> Self {
        let beside = pool(&settings);
        Self { settings, kept: Mutex::default(), beside }
    }

    /// The settings it was made with.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Drops the kept session. Before a smart stop: it would wait for us.
    pub fn disconnect(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.watch = None;
        if let Some(pool) = &self.beside {
            pool.retain(|_, _| false);
        }
    }

    /// The kept session of `run`, if there is one. A run that is not the last one seen drops everything kept.
    pub(super) fn take(&self, run: Run) -> Option<Watch> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.run != run {
            *kept = Kept { run, watch: None };
        }
        kept.watch.take().filter(|watch| !watch.session.is_closed())
    }

    /// Keeps the session for the next call, unless another run has begun meanwhile.
    pub(super) fn keep(&self, run: Run, watch: Watch) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.run == run && !watch.session.is_closed() {
            kept.watch = Some(watch);
        }
    }

    /// A new session of the superuser over our Unix socket, opened within `limit`; its statements end on the server after `statement`.
    pub(super) async fn connect(&self, limit: Span, statement: Span) -> Result<Session, Error> {
        self.connect_to("postgres", limit.min(CONNECT_LIMIT), statement).await
    }

    async fn connect_to(&self, database: &str, limit: Span, statement: Span) -> Result<Session, Error> {
        let config = local(&self.settings, database, statement);
        let server = format!("{} port {}", self.settings.socket_dir().display(), self.settings.port);
        let opened = Session::open(&config, NoTls, &server, limit).await;
        match opened {
            // The operator may have dropped the database `postgres`; template1 cannot be dropped.
            Err(Error::Sql { code, .. }) if code == "3D000" && database == "postgres" => {
                Box::pin(self.connect_to("template1", limit, statement)).await
            }
            opened => opened,
        }
    }

    /// Rows of one short statement, over the kept session where there is one. The statement must bear being sent twice:
    /// a kept session that turns out to be dead is replaced once.
    pub(super) async fn rows(
        &self,
        run: Run,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
        limit: Span,
    ) -> Result<Vec<Row>, Error> {
        if let Some(watch) = self.take(run) {
            let result = watch.session.rows(doing, sql, params, limit).await;
            match result {
                Err(Error::Gone { .. }) => {}
                result => {
                    self.keep(run, watch);
                    return result;
                }
            }
        }
        // Forking a backend costs tens of milliseconds: one that is open already serves first.
        if let Some(client) = self.pooled(limit).await
            && let Ok(Ok(rows)) = timeout(limit.to_std(), client.query_typed(sql, params)).await
        {
            return Ok(rows);
        }
        self.connect(limit, limit).await?.rows(doing, sql, params, limit).await
    }

    /// A pooled session; `None` where none can be had, and the reason is found by connecting.
    async fn pooled(&self, limit: Span) -> Option<Object> {
        timeout(limit.min(CONNECT_LIMIT).to_std(), self.beside.as_ref()?.get()).await.ok()?.ok()
    }

    /// Has every process of the server read its configuration again (`pg_reload_conf()`). The postmaster acts on it
    /// soon after, each process at its next turn.
    ///
    /// # Errors
    /// As for any session; [`Error::Sql`] where the postmaster could not be signalled.
    pub async fn reload_sql(&self, run: Run, limit: Span) -> Result<(), Error> {
        let doing = "reload the configuration";
        let rows = self.rows(run, doing, "SELECT pg_reload_conf()", &[], limit).await?;
        match rows.first().and_then(|row| row.try_get::<_, bool>(0).ok()) {
            Some(true) => Ok(()),
            _ => Err(Error::Refused(format!("{doing}: the postmaster could not be signalled"))),
        }
    }

    /// Writes a checkpoint (on a standby: a restartpoint) and returns once it is done.
    ///
    /// # Errors
    /// [`Error::Timeout`]: it goes on without us.
    pub async fn checkpoint(&self, limit: Span) -> Result<(), Error> {
        self.connect(limit, limit).await?.script("write a checkpoint", "CHECKPOINT", limit).await
    }
}
