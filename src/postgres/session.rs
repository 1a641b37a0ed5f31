//! One SQL session: opened and used within a time limit, its search path pinned, its commits local.

use super::{Error, NotReady};
use crate::model::moment::Span;
use std::error::Error as _;
use tokio::{task::AbortHandle, time::timeout};
use tokio_postgres::{
    Client, Config, Row, Statement,
    error::SqlState,
    tls::{MakeTlsConnect, TlsConnect},
    types::{ToSql, Type},
};

/// What every session of ours sets, whatever the role's or the database's own settings are.
///
/// `synchronous_commit = local`: our own writes must not wait for standbys (they run while there are none, and to repair that).
/// The logging settings keep role verifiers and a sample every half second out of the server's log.
const OPTIONS: &str = "-c search_path=pg_catalog -c synchronous_commit=local -c lock_timeout=2s \
     -c idle_in_transaction_session_timeout=60s -c client_min_messages=error -c DateStyle=ISO -c jit=off";
const SUPERUSER_OPTIONS: &str = " -c log_statement=none -c log_duration=off -c log_min_duration_statement=-1";

/// Whether a session's role is a superuser, who alone may set what is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    Superuser,
    Ordinary,
}

/// The options of a start-up packet: what is pinned, and how long a statement may take on the server.
pub(super) fn options(rights: Rights, statement: Span) -> String {
    let more = match rights {
        Rights::Superuser => SUPERUSER_OPTIONS,
        Rights::Ordinary => "",
    };
    format!("{OPTIONS}{more} -c statement_timeout={}", statement.as_millis().max(1))
}

/// An open session. Dropping it closes the connection; the server then ends the session when it next looks.
pub(super) struct Session {
    client: Client,
    driver: AbortHandle,
    server: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Opens a session to `server` (for messages) within `limit`.
    #[expect(clippy::disallowed_methods, reason = "the driver of a connection lives and dies with its session")]
    pub(super) async fn open<T>(config: &Config, tls: T, server: &str, limit: Span) -> Result<Self, Error>
    where
        T: MakeTlsConnect<tokio_postgres::Socket> + Send,
        T::Stream: Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<tokio_postgres::Socket>>::Future: Send,
    {
        let doing = format!("connect to {server} as {}", config.get_user().unwrap_or_default());
        match timeout(limit.to_std(), config.connect(tls)).await {
            Err(_) => Err(Error::Timeout { doing, limit }),
            Ok(Err(error)) => Err(connect_error(doing, server, error)),
            Ok(Ok((client, connection))) => {
                let driver = tokio::spawn(async move {
                    // Its end is seen by whoever uses the session next.
                    let _ = connection.await;
                })
                .abort_handle();
                Ok(Self { client, driver, server: server.to_owned() })
            }
        }
    }

    /// Rows of one statement, with typed parameters, in one round trip.
    pub(super) async fn rows(
        &self,
        doing: &str,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
        limit: Span,
    ) -> Result<Vec<Row>, Error> {
        self.within(doing, limit, self.client.query_typed(sql, params)).await
    }

    /// The one row of a prepared statement without parameters, in one round trip.
    pub(super) async fn prepared_row(&self, doing: &str, statement: &Statement, limit: Span) -> Result<Row, Error> {
        self.within(doing, limit, self.client.query_one(statement, &[])).await
    }

    /// Prepares a statement for the life of the session.
    pub(super) async fn prepare(&self, doing: &str, sql: &str, limit: Span) -> Result<Statement, Error> {
        self.within(doing, limit, self.client.prepare(sql)).await
    }

    /// Runs a script of statements; `sql` is never shown in an error, it may hold a role's verifier.
    pub(super) async fn script(&self, doing: &str, sql: &str, limit: Span) -> Result<(), Error> {
        self.within(doing, limit, self.client.batch_execute(sql)).await
    }

    /// The client itself, for the migration runner.
    pub(super) fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    async fn within<T>(&self, doing: &str, limit: Span, work: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Error> {
        match timeout(limit.to_std(), work).await {
            Ok(result) => result.map_err(|error| statement_error(doing, &self.server, error)),
            Err(_) => Err(Error::Timeout { doing: doing.to_owned(), limit }),
        }
    }
}

/// The value of a column; what it is called goes into the error.
pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, name: &str) -> Result<T, Error> {
    row.try_get(name).map_err(|error| Error::Malformed { what: format!("column {name}"), text: with_cause(&error) })
}

/// An error while connecting.
fn connect_error(doing: String, server: &str, error: tokio_postgres::Error) -> Error {
    let Some(refusal) = error.as_db_error() else {
        return match io_kind(&error) {
            Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => Error::NotListening { server: server.to_owned() },
            _ => Error::Gone { doing, why: with_cause(&error) },
        };
    };
    refused(doing, server, refusal.code(), refusal.message())
}

/// An error of a statement.
pub(super) fn statement_error(doing: &str, server: &str, error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(refusal) => refused(doing.to_owned(), server, refusal.code(), refusal.message()),
        None => Error::Gone { doing: doing.to_owned(), why: with_cause(&error) },
    }
}

/// What the server's refusal means for the caller.
pub(super) fn refused(doing: String, server: &str, code: &SqlState, message: &str) -> Error {
    match code.code() {
        // 57P03 cannot_connect_now; the messages are those of the postmaster (PG source, `canAcceptConnections`), lc_messages = C or not.
        "57P03" => Error::NotReady { server: server.to_owned(), why: not_ready(message) },
        "28000" | "28P01" => Error::Authentication { server: server.to_owned(), message: message.to_owned() },
        "53300" => Error::TooManySessions { server: server.to_owned(), message: message.to_owned() },
        // Terminated, crash of another backend, shutdown, broken protocol.
        "57P01" | "57P02" | "08006" | "08P01" => Error::Gone { doing, why: message.to_owned() },
        code => Error::Sql { doing, code: code.to_owned(), message: message.to_owned() },
    }
}

fn not_ready(message: &str) -> NotReady {
    match message {
        text if text.contains("shutting down") => NotReady::ShuttingDown,
        text if text.contains("recovery mode") => NotReady::CrashRecovery,
        text if text.contains("not accepting") || text.contains("not yet accepting") => NotReady::NotConsistent,
        _ => NotReady::StartingUp,
    }
}

fn io_kind(error: &tokio_postgres::Error) -> Option<std::io::ErrorKind> {
    error.source()?.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
}

/// The error and its causes, in one line.
pub(super) fn with_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}
