//! SQL from a chosen host: as a client there would speak it.

use super::{host::Network, verdict::Row};
use crate::model::moment::Span;
use anyhow::{Context, Result, anyhow};
use std::{
    collections::BTreeSet,
    future::Future,
    net::SocketAddr,
    sync::mpsc::sync_channel,
    thread::{self, JoinHandle},
};
use tokio::{
    runtime::{Builder, Runtime},
    task::LocalSet,
};
use tokio_postgres::{Config, NoTls, SimpleQueryMessage};

/// How a client introduces itself.
#[derive(Clone, Debug)]
pub struct Login {
    /// Role.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<String>,
    /// Database.
    pub database: String,
}

/// A PostgreSQL server as clients know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The node's name.
    pub node: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Login {
    /// What `tokio_postgres` needs to connect to a server.
    pub(super) fn config(&self, address: SocketAddr, deadline: Span) -> Config {
        let mut config = Config::new();
        config.host(address.ip().to_string()).port(address.port()).user(&self.user).dbname(&self.database);
        config.application_name("pgbaton-lab").connect_timeout(deadline.to_std());
        if let Some(password) = &self.password {
            config.password(password);
        }
        config
    }
}

/// A runtime on the calling thread alone, so that every socket belongs to that thread's network.
pub(super) fn runtime() -> Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("make a runtime")
}

/// A thread that works within a network until its work ends: for clients. Returns once it is in there.
///
/// # Errors
/// When the network cannot be entered.
pub(super) fn thread<F: Future<Output = ()>>(
    name: &str,
    network: &Network,
    work: impl FnOnce() -> F + Send + 'static,
) -> Result<JoinHandle<()>> {
    let network = network.clone();
    let (ready, started) = sync_channel(1);
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let (runtime, answer) = match network.enter().and_then(|()| runtime()) {
            Ok(runtime) => (Some(runtime), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // Its receiver waits for it.
        let _ = ready.send(answer);
        if let Some(runtime) = runtime {
            LocalSet::new().block_on(&runtime, work());
        }
    })?;
    started.recv().map_err(|_| anyhow!("the client's thread ended")).flatten()?;
    Ok(thread)
}

/// Runs a future on a thread of its own within a network.
fn within<T: Send + 'static, F: Future<Output = Result<T>>>(network: &Network, work: impl FnOnce() -> F + Send + 'static) -> Result<T> {
    let network = network.clone();
    let thread = thread::spawn(move || {
        network.enter()?;
        runtime()?.block_on(work())
    });
    thread.join().map_err(|_| anyhow!("the thread that spoke SQL panicked"))?
}

/// Runs statements on a server from a network, and returns the rows of all of them, as texts.
///
/// # Errors
/// When the server cannot be reached, refuses, or is not done within `deadline`: it may go on then.
pub fn query(network: &Network, server: &Server, login: &Login, text: &str, deadline: Span) -> Result<Vec<Vec<Option<String>>>> {
    let (config, statement) = (login.config(server.address, deadline), text.to_owned());
    let work = move || async move {
        tokio::time::timeout(deadline.to_std(), ask(&config, &statement)).await.map_err(|_| anyhow!("no answer within {deadline}"))?
    };
    within(network, work).with_context(|| format!("ask {} at {}: {text}", server.node, server.address))
}

async fn ask(config: &Config, statement: &str) -> Result<Vec<Vec<Option<String>>>> {
    let (client, connection) = config.connect(NoTls).await?;
    let asked = async {
        let messages = client.simple_query(statement).await?;
        drop(client);
        Ok(messages)
    };
    let (messages, ()) = tokio::join!(asked, async {
        // Its error reaches the query too.
        let _ = connection.await;
    });
    let messages: Vec<SimpleQueryMessage> = messages.map_err(|error: tokio_postgres::Error| database_error(&error))?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()),
        _ => None,
    });
    Ok(rows.collect())
}

/// The server's own words: the crate's text is "db error" alone.
pub(super) fn database_error(error: &tokio_postgres::Error) -> anyhow::Error {
    error.as_db_error().map_or_else(|| anyhow!("{error}"), |db| anyhow!("{}: {} ({})", db.severity(), db.message(), db.code().code()))
}

/// The table that all clients of the lab write to.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS lab_writes \
    (client text NOT NULL, seq bigint NOT NULL, node text NOT NULL, PRIMARY KEY (client, seq))";

/// All rows that a server has.
///
/// # Errors
/// As [`query`].
pub fn survivors(network: &Network, server: &Server, login: &Login) -> Result<BTreeSet<Row>> {
    let rows = query(network, server, login, "SELECT client, seq FROM lab_writes", Span::from_secs(30))?;
    let row = |columns: Vec<Option<String>>| {
        let mut columns = columns.into_iter().flatten();
        Some(Row { client: columns.next()?, seq: columns.next()?.parse().ok()? })
    };
    Ok(rows.into_iter().filter_map(row).collect())
}
