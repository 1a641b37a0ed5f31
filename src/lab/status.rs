//! What an agent says of itself, asked over its Unix socket.

use crate::model::moment::Span;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
};

/// Asks an agent for a JSON document of its API, `/v1/status` for one.
///
/// # Errors
/// When nobody listens, the answer is not 200, or it takes longer than `deadline` at one stretch (a frozen agent).
pub fn get(socket: &Path, path: &str, deadline: Span) -> Result<Value> {
    let text = fetch(socket, path, deadline).with_context(|| format!("ask {} for {path}", socket.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {path} of {}", socket.display()))
}

fn fetch(socket: &Path, path: &str, deadline: Span) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(deadline.to_std()))?;
    stream.set_write_timeout(Some(deadline.to_std()))?;
    // HTTP/1.0: the server closes the connection after the answer and sends it in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let line = head.lines().next().unwrap_or_default();
    if line.split_whitespace().nth(1) != Some("200") {
        bail!("{line}: {body}");
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::net::UnixListener, thread};

    #[test]
    fn an_answer_is_read_and_a_refusal_is_told() {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).expect("listen");
        let server = thread::spawn(move || {
            for answer in ["HTTP/1.0 200 OK\r\ncontent-length: 13\r\n\r\n{\"node\":\"n1\"}", "HTTP/1.0 503 Service Unavailable\r\n\r\n{}"] {
                let (mut stream, _) = listener.accept().expect("accept");
                let mut buffer = [0; 1_024];
                let _ = stream.read(&mut buffer).expect("read");
                stream.write_all(answer.as_bytes()).expect("write");
            }
        });
        let ask = || get(&socket, "/v1/status", Span::from_secs(2));
        assert_eq!(ask().expect("answer")["node"], "n1");
        assert!(format!("{:#}", ask().expect_err("refused")).contains("503"));
        server.join().expect("server");
    }
}
