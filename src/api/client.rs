//! The other end: how the CLI, and the lab, ask a node.

use super::caller::ON_BEHALF_OF;
use crate::{agent::handle::EventNews, model::moment::Span, peers::client::plain_http};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{path::Path, time::Duration};

/// Asks one node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    place: String,
    actor: Option<String>,
    deadline: Duration,
}

/// Why there is no answer, or not the wanted one; split by what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used: correct it.
    #[error("use {place}: {why}")]
    Address {
        /// As it was given.
        place: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers there. Nothing was sent.
    #[error("reach the agent at {place}: {why}")]
    Unreachable {
        /// Socket or URL.
        place: String,
        /// Why not.
        why: String,
    },
    /// Sent, and no answer came: what was asked for may have been done.
    #[error("get an answer of the agent at {place}: {why}")]
    NoAnswer {
        /// Socket or URL.
        place: String,
        /// Why not.
        why: String,
    },
    /// The node refuses, and says why.
    #[error("{}", .0.detail)]
    Refused(Refused),
    /// The answer is not one of ours.
    #[error("understand the answer of {place}: {why}")]
    Foreign {
        /// Socket or URL.
        place: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A problem that the node reports (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// Which kind of problem: the last part of its `type`.
    pub kind: String,
    /// What is wrong.
    pub detail: String,
    /// Single faults, as `key: what; remedy`.
    pub faults: Vec<String>,
}

impl Client {
    /// Asks the local node over its Unix socket.
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn unix(socket: &Path) -> Result<Self, Error> {
        let place = socket.display().to_string();
        Self::build("http://agent".to_owned(), place, |builder| builder.unix_socket(socket))
    }

    /// Asks the node at `url` (`http://host:port`).
    ///
    /// # Errors
    /// [`Error::Address`].
    pub fn http(url: &str) -> Result<Self, Error> {
        let base = url.trim_end_matches('/').to_owned();
        if !base.starts_with("http://") {
            let why = "write it as http://host:port".to_owned();
            return Err(Error::Address { place: url.to_owned(), why });
        }
        Self::build(base.clone(), base, |builder| builder)
    }

    fn build(base: String, place: String, with: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> Result<Self, Error> {
        let fault = |why: String| Error::Address { place: place.clone(), why };
        let builder = plain_http().map_err(|error| fault(error.to_string()))?.connect_timeout(Duration::from_secs(2));
        let http = with(builder).build().map_err(|error| fault(chain(&error)))?;
        Ok(Self { http, base, place, actor: None, deadline: Duration::from_secs(11) })
    }

    /// The same, waiting for `deadline` at the most.
    #[must_use]
    pub const fn within(mut self, deadline: Span) -> Self {
        self.deadline = deadline.to_std();
        self
    }

    /// The same, on behalf of this person: for the audit trail.
    #[must_use]
    pub fn on_behalf_of(mut self, actor: impl Into<String>) -> Self {
        self.actor = Some(actor.into());
        self
    }

    /// Socket or URL.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.json(self.request(Method::GET, path)).await
    }

    /// Puts JSON. `version`: what is replaced (`If-Match`).
    ///
    /// # Errors
    /// [`Error`]; after [`Error::NoAnswer`] it may have been done.
    pub async fn put_json<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, version: Option<u64>, body: &B) -> Result<T, Error> {
        let mut request = self.request(Method::PUT, path).json(body);
        if let Some(version) = version {
            request = request.header("if-match", format!("\"{version}\""));
        }
        self.json(request).await
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// [`Error`]; after [`Error::NoAnswer`] it may have been done.
    pub async fn post_json<B: Serialize + Sync, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Error> {
        self.json(self.request(Method::POST, path).json(body)).await
    }

    /// Listens to what changes. `after`: the id of the last event that was heard before.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn events(&self, after: Option<&str>) -> Result<Events, Error> {
        let mut request = self.http.get(format!("{}/v1/events", self.base));
        if let Some(id) = after {
            request = request.header("last-event-id", id);
        }
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(response).await);
        }
        Ok(Events { response, place: self.place.clone(), text: Vec::new() })
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base)).timeout(self.deadline);
        match &self.actor {
            Some(actor) => request.header(ON_BEHALF_OF, actor),
            None => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        request.send().await.map_err(|error| {
            if error.is_connect() || error.is_builder() {
                Error::Unreachable { place: self.place.clone(), why: chain(&error) }
            } else {
                self.no_answer(&error)
            }
        })
    }

    fn no_answer(&self, error: &reqwest::Error) -> Error {
        Error::NoAnswer { place: self.place.clone(), why: chain(error) }
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Error> {
        let response = self.send(request).await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        let text = response.text().await.map_err(|error| self.no_answer(&error))?;
        serde_json::from_str(&text).map_err(|error| Error::Foreign { place: self.place.clone(), why: error.to_string() })
    }

    async fn refused(&self, response: Response) -> Error {
        let status = response.status().as_u16();
        let text = response.text().await.unwrap_or_default();
        let Ok(problem) = serde_json::from_str::<Value>(&text) else {
            return Error::Foreign { place: self.place.clone(), why: format!("HTTP status {status}") };
        };
        let word = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let faults = problem["faults"].as_array().map(Vec::as_slice).unwrap_or_default();
        Error::Refused(Refused {
            status,
            kind: word(&problem, "type").rsplit(':').next().unwrap_or_default().to_owned(),
            detail: word(&problem, "detail"),
            faults: faults.iter().map(|f| format!("{}: {}; {}", word(f, "key"), word(f, "what"), word(f, "remedy"))).collect(),
        })
    }
}

/// An error with everything that caused it: the outermost one of `reqwest` says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Events as they come.
#[derive(Debug)]
pub struct Events {
    response: Response,
    place: String,
    /// What was received and not handed out yet.
    text: Vec<u8>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A change, with its id.
    News(String, EventNews),
    /// Something was missed.
    Missed,
}

impl Events {
    /// The next event; waits for it. `None` once the node has ended the stream.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] and [`Error::Foreign`].
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        /// No event of ours is larger.
        const LARGEST: usize = 1 << 20;
        loop {
            while let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.text.drain(..end + 2).collect();
                if let Some(event) = self.event(&String::from_utf8_lossy(&block))? {
                    return Ok(Some(event));
                }
            }
            if self.text.len() > LARGEST {
                return Err(Error::Foreign { place: self.place.clone(), why: "an event without an end".to_owned() });
            }
            let chunk = self.response.chunk().await;
            match chunk.map_err(|error| Error::NoAnswer { place: self.place.clone(), why: chain(&error) })? {
                Some(bytes) => self.text.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// One block of lines; `None` for comments.
    fn event(&self, block: &str) -> Result<Option<Event>, Error> {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim_start));
        let Some(data) = field("data") else { return Ok(None) };
        if field("event") == Some("missed") {
            return Ok(Some(Event::Missed));
        }
        let news = serde_json::from_str(data).map_err(|error| Error::Foreign { place: self.place.clone(), why: error.to_string() })?;
        Ok(Some(Event::News(field("id").unwrap_or_default().to_owned(), news)))
    }
}
