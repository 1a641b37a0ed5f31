//! An API that is running, and the seat of the agent behind it.

use pgbaton::{
    agent::handle::{self, Published, Seat},
    api::{self, Server, Settings, client::Client},
    model::{moment::Span, node::Address},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::{Duration, Instant},
};
use tempfile::TempDir;

pub(super) struct Api {
    pub(super) server: Server,
    pub(super) seat: Seat,
    dir: TempDir,
}

/// Now, for waits in tests.
#[expect(clippy::disallowed_methods, reason = "tests wait by the real clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// This process' user may change things.
pub(super) fn settings() -> Settings {
    let mut settings = Settings::new(nix::unistd::geteuid().as_raw());
    settings.patience = Span::from_millis(300);
    settings
}

/// A port that is free.
fn listeners() -> api::Listeners {
    api::listen(&[Address { host: "127.0.0.1".to_owned(), port: 0 }]).expect("listen")
}

impl Api {
    pub(super) fn start() -> Self {
        Self::with(settings())
    }

    pub(super) fn with(mut settings: Settings) -> Self {
        let dir = tempfile::Builder::new().prefix("pgbaton-api-").tempdir().expect("directory");
        settings.socket = Some(dir.path().join("agent.sock"));
        let (handle, seat) = handle::pair("a1");
        let server = api::start(settings, listeners(), handle).expect("start");
        Self { server, seat, dir }
    }

    pub(super) fn showing(published: Published) -> Self {
        let api = Self::start();
        api.seat.publish(published);
        api
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.server.addresses()[0]
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(super) fn local(&self) -> Client {
        Client::unix(&self.socket()).expect("client")
    }

    pub(super) fn remote(&self) -> Client {
        Client::http(&format!("http://{}", self.address())).expect("client")
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        stream
    }

    /// Sends `request` as it is and reads until the other end closes.
    pub(super) fn raw(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }

    /// One request of HTTP/1.0, as old load balancers send it: status and body.
    pub(super) fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let answer = self.raw(&format!("{method} {path} HTTP/1.0\r\n\r\n"));
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (status, body)
    }

    pub(super) fn status(&self, path: &str) -> u16 {
        self.ask("GET", path).0
    }
}
