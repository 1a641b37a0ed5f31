//! One endpoint: its connection, its token, and how it has been doing.
//!
//! Each endpoint has a client of its own, so that an attempt goes where it is sent. A connection carries a request of the
//! caller only after it has been proven by one that changes nothing (authentication or status): until then every failure,
//! a timeout too, is known to have sent nothing.

use super::{
    super::{Error, Settings},
    address::Url,
    fault::{Fault, is_auth_disabled},
    security::{Certificates, password},
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
/// A connection on which so many attempts in a row had no answer is made anew.
const TIMEOUTS_BEFORE_RECONNECT: u32 = 2;

/// A client for one endpoint, proven or not.
pub(super) struct Connection {
    client: Client,
    proven: AtomicBool,
    /// Authentication was off when it was last asked for, so requests carry no token.
    tokenless: AtomicBool,
}

#[derive(Default)]
struct Link {
    connection: Option<Arc<Connection>>,
    certificates: Option<Certificates>,
    addresses: Vec<SocketAddr>,
    /// How many of them have failed: the next one is taken.
    refused: usize,
    silent: u32,
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
            match call(connection.client.clone()).await.map_err(|error| connection.fault(error)) {
                Err(Fault::Stale(why)) => {
                    // etcd refused before doing anything, so the request has not been sent in effect.
                    sent.store(false, Ordering::Relaxed);
                    self.authenticate(&connection, &why).await?;
                    sent.store(true, Ordering::Relaxed);
                    call(connection.client.clone()).await.map_err(Fault::from)
                }
                answer => answer,
            }
        };
        let answer = match tokio::time::timeout(deadline.to_std(), work).await {
            Ok(answer) => answer,
            Err(_) if sent.load(Ordering::Relaxed) => Err(Fault::Unclear(format!("no answer within {deadline}"))),
            Err(_) => Err(Fault::NotReached(format!("not connected within {deadline}"))),
        };
        self.note(answer.as_ref().err());
        answer.map_err(|fault| fault.at(&self.url.text))
    }

    /// Notes how an attempt went.
    fn note(&self, fault: Option<&Fault>) {
        let mut link = self.link();
        match fault {
            None => (link.silent, link.failing_since) = (0, None),
            Some(fault) if fault.is_final() => link.silent = 0,
            Some(fault) => {
                link.failing_since.get_or_insert_with(clock::boot);
                link.silent += 1;
                link.refused = link.refused.wrapping_add(usize::from(fault.breaks_connection()));
                if fault.breaks_connection() || link.silent >= TIMEOUTS_BEFORE_RECONNECT {
                    link.connection = None;
                    link.silent = 0;
                }
            }
        }
    }

    /// Another endpoint answered first, by far: prefer others until this one answers again.
    pub(super) fn outrun(&self) {
        self.link().failing_since.get_or_insert_with(clock::boot);
    }

    /// Makes the next attempt here connect anew, and others prefer another endpoint.
    pub(super) fn doubt(&self) {
        let mut link = self.link();
        link.connection = None;
        link.failing_since.get_or_insert_with(clock::boot);
    }

    /// A proven connection.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, Fault> {
        let present = self.link().connection.clone();
        let connection = match present {
            Some(connection) => connection,
            None => self.build().await?,
        };
        if !connection.proven.load(Ordering::Relaxed) {
            let proof = match &self.settings.username {
                Some(_) => self.authenticate(&connection, "no token yet").await,
                None => prove(&connection).await,
            };
            proof.map_err(|fault| self.explain(fault))?;
            connection.proven.store(true, Ordering::Relaxed);
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
        let attempt = self.settings.attempt.to_std();
        let mut options = ConnectOptions::new()
            .with_connect_timeout(attempt)
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(false);
        if let Some(certificates) = &certificates {
            options = options.with_tls(certificates.tls(&self.url.host).timeout(attempt));
        }
        // Without a user this connects nothing yet: the connection is made by the first request.
        let client = Client::connect([url], Some(options)).await.map_err(|error| Fault::NotReached(error.to_string()))?;
        let connection = Arc::new(Connection { client, proven: AtomicBool::new(false), tokenless: AtomicBool::new(false) });
        let mut link = self.link();
        link.certificates = certificates;
        link.connection = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Gets a token with the password that the file holds now.
    async fn authenticate(&self, connection: &Connection, why: &str) -> Result<(), Fault> {
        let (Some(user), Some(file)) = (&self.settings.username, &self.settings.password_file) else {
            return Err(Fault::Denied(format!("{why} (no user is configured)")));
        };
        let password = password(file).await.map_err(|fault| Fault::Denied(fault.to_string()))?;
        let mut client = connection.client.clone();
        match client.update_user(Some((user.clone(), password))).await {
            Ok(()) => {
                connection.tokenless.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if is_auth_disabled(&error) => {
                connection.tokenless.store(true, Ordering::Relaxed);
                client.update_user(None).await.map_err(|error| not_sent(Fault::from(error)))
            }
            Err(error) => Err(not_sent(Fault::from(error))),
        }
    }
}

impl Connection {
    /// Without a token etcd takes the certificate's common name for the user, and says that *that* is not permitted: when
    /// authentication has been switched on meanwhile, this is how it shows.
    fn fault(&self, error: etcd_client::Error) -> Fault {
        match Fault::from(error) {
            Fault::Denied(why) if self.tokenless.load(Ordering::Relaxed) => Fault::Stale(why),
            other => other,
        }
    }
}

/// Asks for the member's status: answered by the member alone, needs no leader, no token, and changes nothing.
async fn prove(connection: &Connection) -> Result<(), Fault> {
    match connection.client.clone().status().await {
        Ok(_) => Ok(()),
        Err(error) => Err(not_sent(Fault::from(error))),
    }
}

/// A fault met before the caller's request was sent.
fn not_sent(fault: Fault) -> Fault {
    match fault {
        Fault::Unclear(why) => Fault::NotReached(why),
        other => other,
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        fault.into_error()
    }
}
