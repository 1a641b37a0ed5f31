//! Slow, large, many and foreign clients.

use super::{
    published::primary,
    seat::{Api, now, settings},
};
use pgbaton::{api::allow::Network, model::moment::Span};
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

fn api() -> Api {
    Api::showing(primary(Span::from_secs(60)).build())
}

/// Whether the other end has closed, within two seconds.
fn is_closed(mut stream: &TcpStream) -> bool {
    let until = now() + Duration::from_secs(2);
    let mut bytes = [0; 512];
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    while now() < until {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
    false
}

#[test]
fn a_client_that_sends_its_request_slowly_is_dropped_and_blocks_nobody() {
    let mut settings = settings();
    settings.patience = Span::from_millis(1_500);
    let api = Api::with(settings);
    api.seat.publish(primary(Span::from_secs(60)).build());
    let slow: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = api.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nHost:").expect("write");
            stream
        })
        .collect();
    let begun = now();
    assert_eq!(api.status("/primary"), 200);
    assert!(begun.elapsed() < Duration::from_millis(1_400), "it waited for the slow ones: {:?}", begun.elapsed());
    assert!(slow.iter().all(is_closed));
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let api = api();
    let silent = api.connect();
    let mut idle = api.connect();
    idle.write_all(b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    assert!(is_closed(&silent));
    assert!(is_closed(&idle));
}

#[test]
fn a_client_that_does_not_read_its_answer_is_dropped() {
    let mut settings = settings();
    settings.render = std::sync::Arc::new(|| "x".repeat(32 << 20));
    let api = Api::with(settings);
    let mut stream = api.connect();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("write");
    std::thread::sleep(Duration::from_millis(800));
    // What fitted into the buffers comes, and then the end instead of the rest.
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    assert!(bytes.len() < 32 << 20, "{}", bytes.len());
    assert_eq!(api.status("/health"), 503);
}

#[test]
fn a_request_that_is_too_large_is_refused() {
    let api = api();
    let body = "x".repeat((256 << 10) + 1);
    let answer = local(&api, &format!("PUT /v1/policy HTTP/1.0\r\nIf-Match: \"3\"\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert!(answer.starts_with("HTTP/1.0 413"), "{answer}");
    let long = format!("GET /{} HTTP/1.0\r\n\r\n", "x".repeat(20 << 10));
    let answer = api.raw(&long);
    assert!(answer.starts_with("HTTP/1.0 4") || answer.starts_with("HTTP/1.1 4"), "{answer}");
}

fn local(api: &Api, request: &str) -> String {
    let mut stream = std::os::unix::net::UnixStream::connect(api.socket()).expect("connect");
    // The answer may come, and the connection close, before everything is sent.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_body_that_is_no_json_is_refused() {
    let api = api();
    let answer = local(&api, "PUT /v1/policy HTTP/1.0\r\nIf-Match: \"3\"\r\nContent-Length: 3\r\n\r\nabc");
    assert!(answer.starts_with("HTTP/1.0 400") && answer.contains("not-json"), "{answer}");
}

#[test]
fn one_address_cannot_take_every_connection() {
    let mut settings = settings();
    settings.patience = Span::from_secs(5);
    let api = Api::with(settings);
    let held: Vec<TcpStream> = (0..70).map(|_| api.connect()).collect();
    let closed = || {
        held.iter().filter(|stream| matches!(stream.set_nonblocking(true).and_then(|()| (&mut &**stream).read(&mut [0])), Ok(0))).count()
    };
    let until = now() + Duration::from_secs(3);
    while closed() < 6 {
        assert!(now() < until, "{} were closed", closed());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn addresses_outside_of_the_list_are_not_answered() {
    let mut settings = settings();
    settings.allow = vec![Network::new("10.0.0.0".parse().expect("address"), 8)];
    let api = Api::with(settings);
    for path in ["/primary", "/v1/status", "/metrics"] {
        let (status, body) = api.ask("GET", path);
        assert_eq!(status, 403, "{path}");
        assert!(body.contains("[api] allow"), "{body}");
    }
    // The list is for the network.
    assert!(local(&api, "GET /primary HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 503"));
}

#[test]
fn a_socket_left_behind_is_taken_over_and_a_living_one_is_not() {
    use pgbaton::{agent::handle, api};
    let dir = tempfile::tempdir().expect("directory");
    let socket = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
    let mut settings = settings();
    settings.socket = Some(socket.clone());
    let start = || api::start(settings.clone(), api::Listeners::default(), handle::pair("a1").0);
    let first = start().expect("taken over");
    let second = start().expect_err("somebody answers there").to_string();
    assert!(second.contains("another agent answers there"), "{second}");
    drop(first);
    assert!(!socket.exists());
    let third = start().expect("free again");
    drop(third);
}

#[test]
fn an_address_in_use_is_told_with_its_name() {
    let api = api();
    let address = api.address().to_string().parse().expect("address");
    let fault = pgbaton::api::listen(&[address]).expect_err("in use");
    assert_eq!(fault.to_string(), format!("listen on {}", api.address()));
    assert_eq!(fault.remedy(), Some("another program uses it: stop it, or change [api] listen"));
}
