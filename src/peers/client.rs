//! Asking a peer.

use super::{
    LARGEST, PATH, SEAL,
    message::{Question, Reply, VERSION},
    seal::Key,
};
use crate::model::{
    failsafe::{Answer, Ask},
    moment::Span,
    node::{ClusterName, Incarnation, NodeName},
    record::to_text,
};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_millis(200);

/// Asks peers, for one run of an agent.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    key: Key,
    cluster: ClusterName,
    run: Incarnation,
    count: AtomicU64,
    /// Which run of each peer's API has replied last.
    runs: Mutex<BTreeMap<NodeName, Incarnation>>,
}

/// Why a peer's answer is not known, or does not count.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No HTTP client can be made.
    #[error("make the client of peers")]
    Client(#[source] reqwest::Error),
    /// What TLS would be made of cannot be named.
    #[error("make the client of peers")]
    Tls(#[source] rustls::Error),
    /// No reply, or none in time.
    #[error("{0}")]
    NoReply(String),
    /// It refuses to listen.
    #[error("it refuses the question: {0}")]
    Refused(String),
    /// The reply is not a member's, or not to this question.
    #[error("its reply is not sealed by this cluster's peer key")]
    Forged,
    /// The reply cannot be read.
    #[error("its reply cannot be read")]
    Unreadable,
}

/// How HTTP is spoken between nodes and to them: plain, straight, and where it was sent.
///
/// # Errors
/// rustls cannot do what the client asks of it.
pub fn plain_http() -> Result<reqwest::ClientBuilder, rustls::Error> {
    // No root is trusted, and the provider is named because there is no default one.
    let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().redirect(reqwest::redirect::Policy::none()))
}

impl Client {
    /// For the agent's run `run`.
    ///
    /// # Errors
    /// [`Error::Tls`], [`Error::Client`].
    pub fn new(key: Key, cluster: ClusterName, run: Incarnation) -> Result<Self, Error> {
        let http = plain_http().map_err(Error::Tls)?.connect_timeout(CONNECT).build().map_err(Error::Client)?;
        Ok(Self { http, key, cluster, run, count: AtomicU64::new(0), runs: Mutex::default() })
    }

    /// Asks `node`, whose API is at `url`, within `limit`.
    ///
    /// # Errors
    /// [`Error`]: it may be bound all the same, which costs nobody anything but time.
    pub async fn ask(&self, node: &NodeName, url: &str, ask: &Ask, limit: Span) -> Result<Answer, Error> {
        let asking = async {
            let reply = self.once(node, url, ask).await?;
            match reply.answer {
                Some(answer) => Ok(Some(answer)),
                // It is a new run, which could not know the question for a new one: it is now told so.
                None => self.once(node, url, ask).await.map(|reply| reply.answer),
            }
        };
        let answer =
            tokio::time::timeout(limit.to_std(), asking).await.map_err(|_| Error::NoReply(format!("no reply within {limit}")))??;
        let answer = answer.ok_or_else(|| Error::NoReply("it begins anew".to_owned()))?;
        if answer.by.node == *node && answer.nonce == ask.nonce { Ok(answer) } else { Err(Error::Forged) }
    }

    async fn once(&self, node: &NodeName, url: &str, ask: &Ask) -> Result<Reply, Error> {
        let to_run = self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned();
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let (cluster, from) = (self.cluster.clone(), self.run.clone());
        let question = Question { v: VERSION, cluster, from, count, to: node.clone(), to_run, ask: ask.clone() };
        let body = to_text(&question).into_bytes();
        let seal = self.key.of_question(&body);
        let request = self.http.post(format!("{}{PATH}", url.trim_end_matches('/'))).header(SEAL, seal).body(body);
        let response = request.send().await.map_err(|fault| Error::NoReply(deepest(&fault)))?;
        let status = response.status();
        let seal = response.headers().get(SEAL).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        if !status.is_success() {
            return Err(Error::Refused(status.to_string()));
        }
        if response.content_length().is_none_or(|length| length > LARGEST as u64) {
            return Err(Error::Unreadable);
        }
        let body = response.bytes().await.map_err(|fault| Error::NoReply(deepest(&fault)))?;
        if !self.key.seals_reply(&ask.nonce, &body, &seal) {
            return Err(Error::Forged);
        }
        let reply: Reply = serde_json::from_slice(&body).map_err(|_| Error::Unreadable)?;
        if reply.v != VERSION {
            return Err(Error::Unreadable);
        }
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), reply.run.clone());
        Ok(reply)
    }
}

/// What lies at the bottom of an HTTP error: what the system said.
fn deepest(fault: &reqwest::Error) -> String {
    let mut at: &dyn std::error::Error = fault;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
