//! One endpoint: its connection, its token, and how it has been doing.
//!
//! Each endpoint has a client of its own, so that an attempt goes where it is sent. A connection carries a request of the
//! caller only after it has been proven by one that changes nothing (authentication or status): until then every failure,
//! a timeout too, is known to have sent nothing.

use super::{
    super::{Error, Settings},
    address::Url,
    connection::{Connection, PATIENCE},
    fault::Fault,
    security::Certificates,
};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use etcd_client::{Client, ConnectOptions};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// etcd closes connections whose client pings more often than every 5 s without being sent anything in between
/// (`--grpc-keepalive-min-time`), so pings cannot be the fast detector: attempts, progress requests and polls are.
const PING_INTERVAL: Duration = Duration::from_secs(6);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Link {
    connection: Option<Arc<Connection>>,
    certificates: Option<Certificates>,
    addresses: Vec<SocketAddr>,
    /// How many of them have failed: the next one is taken.
    refused: usize,
    failing_since: Option<Moment>,
}

/// One etcd member as we reach it.
pub(super) struct Endpoint {
    pub(super) url: Url,
    settings: Arc<Settings>,
    link: Mutex<Link>,
}

impl Endpoint {
    pub(super) fn new(url: Url, settings: Arc<Settings>, certificates: Option<Certificates>) -> Self {
        Self { url, settings, link: Mutex::new(Link { certificates, ..Link::default() }) }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when it has been failing; `None`: its last answer was good, or nobody has asked.
    pub(super) fn failing_since(&self) -> Option<Moment> {
        self.link().failing_since
    }

    /// As [`Endpoint::attempt_noting`], for calls that need not know.
    pub(super) async fn attempt<T, C, F>(&self, deadline: Span, call: &C) -> Result<T, Fault>
    where
        C: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.attempt_noting(deadline, call, &AtomicBool::new(false)).await
    }

    /// Runs `call` here, once, within `deadline`; a stale token is renewed and the call made again.
    ///
    /// `sent` says at any time whether the request may have left; where it does not, dropping this future means that it
    /// never will.
    pub(super) async fn attempt_noting<T, C, F>(&self, deadline: Span, call: &C, sent: &AtomicBool) -> Result<T, Fault>
    where
        C: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let work = async {
            let connection = self.connection().await?;
            sent.store(true, Ordering::Relaxed);
            match call(connection.client()).await.map_err(|error| connection.fault(error)) {
                Err(Fault::Stale(why)) => {
                    // etcd refused before doing anything, so the request has not been sent in effect.
                    sent.store(false, Ordering::Relaxed);
                    connection.prove(&why).await?;
                    sent.store(true, Ordering::Relaxed);
                    call(connection.client()).await.map_err(Fault::from)
                }
                answer => answer,
            }
        };
        let answer = match tokio::time::timeout(deadline.to_std(), work).await {
            Ok(answer) => answer,
            Err(_) if sent.load(Ordering::Relaxed) => Err(Fault::Unclear(format!("no answer within {}", deadline.rounded()))),
            Err(_) => Err(Fault::NotYet(format!("not connected within {}", deadline.rounded()))),
        };
        self.note(answer.as_ref().err());
        answer.map_err(|fault| fault.at(&self.url.text))
    }

    /// Notes how an attempt went.
    fn note(&self, fault: Option<&Fault>) {
        match fault {
            None => self.link().failing_since = None,
            Some(fault) if fault.is_final() => self.link().failing_since = None,
            Some(fault) if fault.breaks_connection() => {
                self.forget();
                let mut link = self.link();
                link.refused += 1;
            }
            Some(fault) if fault.is_unclear() => self.doubt(),
            Some(_) => {
                self.link().failing_since.get_or_insert_with(clock::boot);
            }
        }
    }

    /// It should have answered by now: others are preferred until it does, and the next attempt here asks for a sign of life.
    pub(super) fn doubt(&self) {
        let mut link = self.link();
        link.failing_since.get_or_insert_with(clock::boot);
        if let Some(connection) = &link.connection {
            connection.doubt();
        }
    }

    /// The next attempt here connects and authenticates anew; others are preferred.
    pub(super) fn forget(&self) {
        let mut link = self.link();
        link.failing_since.get_or_insert_with(clock::boot);
        link.connection = None;
    }

    /// A proven connection.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, Fault> {
        let present = self.link().connection.clone();
        if present.as_ref().is_some_and(|connection| connection.is_given_up()) {
            self.link().refused += 1;
        }
        let connection = match present {
            Some(connection) if !connection.is_given_up() && connection.answers().await => connection,
            _ => self.build().await?,
        };
        if !connection.is_proven() {
            connection.prove("").await.map_err(|fault| self.explain(fault))?;
        }
        Ok(connection)
    }

    /// A missing client certificate shows as a connection that closes after its handshake (TLS 1.3 says so too late).
    fn explain(&self, fault: Fault) -> Fault {
        match fault {
            Fault::NotReached(why) if self.url.tls && self.settings.cert_file.is_none() => {
                Fault::NotReached(format!("{why} (no client certificate is configured; etcd may demand one)"))
            }
            other => other,
        }
    }

    async fn build(&self) -> Result<Arc<Connection>, Fault> {
        // A file that is missing half-way through its renewal must not cost the connection: the former text still counts.
        let certificates = match Certificates::read(&self.settings).await {
            Ok(read) => read,
            Err(fault) => Some(self.link().certificates.clone().ok_or_else(|| Fault::NotReached(fault.to_string()))?),
        };
        // A resolver that is down or slow must not cost the connection either: the former addresses still count.
        let resolved = self.url.resolve(self.settings.attempt).await;
        let url = {
            let mut link = self.link();
            if !resolved.is_empty() {
                link.addresses = resolved;
            }
            let address = link.addresses.get(link.refused % link.addresses.len().max(1)).copied();
            self.url.of(address.ok_or_else(|| Fault::NotReached(format!("the name {} has no address", self.url.host)))?)
        };
        let patience = PATIENCE.to_std();
        let mut options = ConnectOptions::new()
            .with_connect_timeout(patience)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false);
        if let Some(certificates) = &certificates {
            options = options.with_tls(certificates.tls(&self.url.host).timeout(patience));
        }
        // Without a user this connects nothing yet: the connection is made by the first request.
        let client = Client::connect([url], Some(options)).await.map_err(|error| Fault::NotReached(error.to_string()))?;
        let connection = Arc::new(Connection::new(client, Arc::clone(&self.settings)));
        let mut link = self.link();
        link.certificates = certificates;
        link.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        fault.into_error()
    }
}
