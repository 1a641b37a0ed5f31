//! Replication seen and steered over SQL: the replication protocol's own answer, the cut of a stream, walsenders.

use super::{
    ConfigFiles, Configuration, Error, Server,
    overrides::overridden,
    process::terminate,
    processes::{ServerProcess, walreceivers},
    server::CONNECT_LIMIT,
    session::refused,
};
use crate::{
    clock,
    model::{
        instance::Run,
        moment::{Moment, Span},
        timeline::TimelineId,
    },
};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_postgres::error::SqlState;

/// How long a walreceiver may take to end by itself before it is signalled (EXP-16).
const BEFORE_SIGNAL: Span = Span::from_millis(100);
/// Between two looks at it.
const LOOK_EVERY: Span = Span::from_millis(20);
/// How often it must be seen gone in a row: one that is just being started comes into sight a moment later.
const LOOKS_GONE: u32 = 3;

/// What `cut_stream` saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The walreceiver ended by itself, or there was none.
    ByReload,
    /// It had to be signalled.
    BySignal,
}

/// What the looks at a walreceiver have shown so far.
struct Seen {
    cut: Cut,
    gone: u32,
    reloaded: bool,
}

impl Server {
    /// Ends the stream from the primary: writes `configuration` with nobody to follow, reloads, and sends SIGTERM to a walreceiver that
    /// lives on after 100 ms. Returns only when none was seen, by SQL where the server answers and among the processes in any case.
    ///
    /// An `ALTER SYSTEM SET primary_conninfo` is taken back: it would start the stream again. Where SQL cannot be had, the reload is
    /// tried until it can, or somebody else sends the postmaster SIGHUP; meanwhile each new walreceiver is ended.
    ///
    /// # Errors
    /// [`Error::Timeout`]: it may still receive and acknowledge. [`Error::File`]: the files cannot be written or the processes not seen.
    pub async fn cut_stream(&self, run: Run, configuration: &Configuration, limit: Span) -> Result<Cut, Error> {
        let begin = clock::boot();
        let end = begin.plus(limit);
        let nobody = Configuration { follow: None, ..configuration.clone() };
        ConfigFiles::new(Arc::clone(&self.settings)).configure(&nobody).await?;
        let mut seen = Seen { cut: Cut::ByReload, gone: 0, reloaded: false };
        loop {
            let since = clock::boot().since(begin);
            self.look(run, since > BEFORE_SIGNAL, left(end).min(Span::from_secs(1)), &mut seen).await?;
            if seen.gone >= LOOKS_GONE && (seen.reloaded || since > BEFORE_SIGNAL) {
                return Ok(seen.cut);
            }
            if clock::boot() >= end {
                return Err(Error::Timeout { doing: "see the walreceiver gone".to_owned(), limit });
            }
            sleep(LOOK_EVERY.to_std()).await;
        }
    }

    /// One look at the walreceiver, with the reload where it is still to be done.
    async fn look(&self, run: Run, signal: bool, limit: Span, seen: &mut Seen) -> Result<(), Error> {
        if !seen.reloaded {
            seen.reloaded = self.reload_nobody(run, limit).await.is_ok();
        }
        let alive = self.walreceivers(limit).await?;
        let none = alive.is_empty() && self.no_walreceiver(run, limit).await;
        seen.gone = if none { seen.gone + 1 } else { 0 };
        for process in alive.iter().filter(|_| signal) {
            seen.cut = Cut::BySignal;
            terminate(process.pid);
        }
        Ok(())
    }

    /// The walreceivers, looked for on a thread that may hang: reading the title of a process can wait for its memory to come from a
    /// dead disk.
    async fn walreceivers(&self, limit: Span) -> Result<Vec<ServerProcess>, Error> {
        let doing = "look for the walreceiver among the processes";
        let settings = Arc::clone(&self.settings);
        let looking = timeout(limit.to_std(), spawn_blocking(move || walreceivers(&settings.data_dir))).await;
        let looked = looking.map_err(|_| Error::Timeout { doing: doing.to_owned(), limit })?;
        looked.map_err(|panic| Error::Gone { doing: doing.to_owned(), why: panic.to_string() })?
    }

    async fn reload_nobody(&self, run: Run, limit: Span) -> Result<(), Error> {
        for found in overridden(&self.settings, false).await?.iter().filter(|found| found.name == "primary_conninfo") {
            self.reset_override(run, &found.name, limit).await?;
        }
        self.reload_sql(run, limit).await
    }

    /// Whether SQL shows no walreceiver. A server that does not answer shows none; the processes then decide.
    async fn no_walreceiver(&self, run: Run, limit: Span) -> bool {
        let sql = "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver) \
                   AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver')";
        let rows = self.rows(run, "look for a walreceiver", sql, &[], limit).await;
        rows.map_or(true, |rows| rows.first().and_then(|row| row.try_get(0).ok()) == Some(true))
    }
}

/// A replication connection over the Unix socket that says which timeline is being replayed.
///
/// SQL does not: `received_tli` runs ahead of replay and `pg_control` lags behind it (scenario 151). `IDENTIFY_SYSTEM` on a
/// standby answers with the timeline of the last replayed record (PG source, `IdentifySystem`).
pub(super) struct Identity {
    stream: UnixStream,
}

impl Identity {
    /// Opens the connection.
    pub(super) async fn open(server: &Server) -> Result<Self, Error> {
        let settings = &server.settings;
        let path = settings.socket_dir().join(format!(".s.PGSQL.{}", settings.port));
        let doing = || format!("open a replication connection at {}", path.display());
        let opening = async {
            let stream = UnixStream::connect(&path).await.map_err(|error| Error::Gone { doing: doing(), why: error.to_string() })?;
            let mut identity = Self { stream };
            let mut packet = Vec::from(196_608_i32.to_be_bytes());
            for text in ["user", &settings.roles.superuser, "replication", "true", "application_name", "pgbaton", ""] {
                packet.extend_from_slice(text.as_bytes());
                packet.push(0);
            }
            identity.send(&doing(), None, &packet).await?;
            identity.until_ready(&doing()).await.map(|_| identity)
        };
        timeout(CONNECT_LIMIT.to_std(), opening).await.map_err(|_| Error::Timeout { doing: doing(), limit: CONNECT_LIMIT })?
    }

    /// The timeline that is being replayed (on a primary: its own).
    pub(super) async fn timeline(&mut self, limit: Span) -> Result<TimelineId, Error> {
        let doing = "ask for the timeline (IDENTIFY_SYSTEM)";
        let asking = async {
            self.send(doing, Some(b'Q'), b"IDENTIFY_SYSTEM\0").await?;
            self.until_ready(doing).await
        };
        let row = timeout(limit.to_std(), asking).await.map_err(|_| Error::Timeout { doing: doing.to_owned(), limit })??;
        let number = row.get(1).and_then(|text| text.parse().ok()).and_then(TimelineId::new);
        number.ok_or_else(|| Error::Malformed { what: "the answer to IDENTIFY_SYSTEM".to_owned(), text: row.join("|") })
    }

    async fn send(&mut self, doing: &str, kind: Option<u8>, body: &[u8]) -> Result<(), Error> {
        let length = i32::try_from(body.len() + 4).unwrap_or(i32::MAX);
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        self.stream.write_all(&message).await.map_err(|error| Error::Gone { doing: doing.to_owned(), why: error.to_string() })
    }

    /// Reads messages until the server is ready for the next query; returns the columns of the last row.
    async fn until_ready(&mut self, doing: &str) -> Result<Vec<String>, Error> {
        let mut row = Vec::new();
        loop {
            let (kind, body) = self.message(doing).await?;
            match kind {
                b'Z' => return Ok(row),
                b'D' => row = columns(&body),
                b'E' => return Err(self.refusal(doing, &body)),
                b'R' if body.get(..4) != Some(&[0; 4]) => {
                    let message = "a password is asked for where peer authentication was expected".to_owned();
                    return Err(Error::Authentication { server: "the Unix socket".to_owned(), message });
                }
                _ => {}
            }
        }
    }

    async fn message(&mut self, doing: &str) -> Result<(u8, Vec<u8>), Error> {
        let gone = |error: std::io::Error| Error::Gone { doing: doing.to_owned(), why: error.to_string() };
        let kind = self.stream.read_u8().await.map_err(gone)?;
        let length = self.stream.read_i32().await.map_err(gone)?;
        let malformed = || Error::Malformed { what: "a message's length".to_owned(), text: length.to_string() };
        let size = usize::try_from(length).ok().filter(|size| (4..=65_536).contains(size)).ok_or_else(malformed)?;
        let mut body = vec![0; size - 4];
        self.stream.read_exact(&mut body).await.map_err(gone)?;
        Ok((kind, body))
    }

    fn refusal(&self, doing: &str, body: &[u8]) -> Error {
        let field = |kind: u8| {
            let found = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&kind));
            found.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).unwrap_or_default()
        };
        refused(doing.to_owned(), "the Unix socket", &SqlState::from_code(&field(b'C')), &field(b'M'))
    }
}

/// The columns of a DataRow message; NULL is an empty text.
fn columns(body: &[u8]) -> Vec<String> {
    let mut columns = Vec::new();
    let mut rest = body.get(2..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let size = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0).min(after.len());
        columns.push(String::from_utf8_lossy(&after[..size]).into_owned());
        rest = &after[size..];
    }
    columns
}

/// Time left until `end`, at least a millisecond.
pub(super) fn left(end: Moment) -> Span {
    end.since(clock::boot()).max(Span::from_millis(1))
}
