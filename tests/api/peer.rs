//! What other nodes ask: by the key alone, once, and answered when it stands in the node file.

use super::{
    published::primary,
    seat::{Api, settings},
};
use pgbaton::{
    model::{
        failsafe::{Ack, Ask, Verdict},
        lsn::Lsn,
        moment::{Moment, Span},
        node::Replica,
        secret::Secret,
        term::Term,
        timeline::TimelineId,
    },
    peers::{Client, Door, Key, PATH, SEAL, client::Error},
};
use std::sync::Arc;

const LIMIT: Span = Span::from_secs(5);

fn parsed<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("valid")
}

fn key(letter: &str) -> Key {
    Key::new(&Secret::new(letter.repeat(32)))
}

fn api() -> Api {
    let mut settings = settings();
    // Peers are no operators: the list of those who may ask does not hold for them.
    settings.allow = vec![pgbaton::api::allow::Network::new(parsed("203.0.113.1"), 32)];
    settings.door = Some(Arc::new(Door::new(key("a"), parsed("orders"), parsed("n1"))));
    Api::with(settings)
}

fn client(key: Key) -> Client {
    Client::new(key, parsed("orders"), parsed("a7")).expect("client")
}

fn ask(nonce: &str) -> Ask {
    let holder = Replica::new(parsed("n2"), parsed("000000a2"));
    let (hold, wait) = (Span::from_millis(2_800), Span::from_millis(3_300));
    Ask { holder, term: Term::new(5), hold, wait, tli: TimelineId::FIRST, lsn: Lsn::ZERO, nonce: parsed(nonce) }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

#[test]
fn a_peer_is_answered_once_its_question_stands_in_the_node_file() {
    let mut api = api();
    let url = format!("http://{}", api.address());
    let (client, node) = (client(key("a")), parsed("n1"));
    let question = ask("q1");
    let answer = runtime().block_on(async {
        let decides = async {
            let asked = api.seat.asks.recv().await.expect("a question");
            // Known, and not on disk yet: nothing is said.
            api.seat.publish(primary(Span::from_secs(60)).build());
            tokio::task::yield_now().await;
            let mut published = primary(Span::from_secs(60)).build();
            let ask = asked.ask;
            let (boot, at) = (parsed("b1"), Moment::ZERO);
            let ack = Ack { holder: ask.holder, term: ask.term, wait: ask.wait, tli: ask.tli, lsn: ask.lsn, nonce: ask.nonce, boot, at };
            published.snapshot.file.ack = Some(ack);
            api.seat.publish(published);
        };
        tokio::join!(client.ask(&node, &url, &question, LIMIT), decides).0
    });
    let answer = answer.expect("an answer");
    assert_eq!((answer.by.node, answer.verdict), (node, Verdict::Acked));
}

#[test]
fn without_the_key_nobody_is_heard_and_nobody_believed() {
    let mut api = api();
    let url = format!("http://{}", api.address());
    let node = parsed("n1");
    let refused = runtime().block_on(client(key("b")).ask(&node, &url, &ask("q1"), LIMIT));
    assert!(matches!(&refused, Err(Error::Refused(status)) if status.starts_with("401")), "{refused:?}");
    assert!(api.seat.asks.try_recv().is_err(), "it reached the agent");
    // Another cluster's node answers there, with a key of its own.
    let mut foreign = settings();
    foreign.door = Some(Arc::new(Door::new(key("a"), parsed("other"), node.clone())));
    let foreign = Api::with(foreign);
    let url = format!("http://{}", foreign.address());
    let refused = runtime().block_on(client(key("a")).ask(&node, &url, &ask("q1"), LIMIT));
    assert!(matches!(&refused, Err(Error::Refused(status)) if status.starts_with("421")), "{refused:?}");
}

/// As it would be sent by hand: status and body.
fn post(api: &Api, seal: &str, body: &str) -> String {
    let request =
        format!("POST {PATH} HTTP/1.1\r\nHost: x\r\n{SEAL}: {seal}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    api.raw(&request)
}

#[test]
fn what_is_too_large_forged_or_no_question_is_refused_with_its_reason() {
    let api = api();
    let large = "x".repeat(5_000);
    let seal = |body: &str| key("a").of_question(body.as_bytes());
    for (seal, body, status, kind) in [
        (seal(&large), large.as_str(), "413", "too-large"),
        (seal("other"), "{}", "401", "forged"),
        (String::new(), "{}", "401", "forged"),
        (seal("{}"), "{}", "400", "not-json"),
    ] {
        let answer = post(&api, &seal, body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(kind), "{answer}");
    }
}

#[test]
fn a_node_without_a_key_says_so() {
    let api = Api::with(settings());
    let answer = post(&api, "", "{}");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no-peer-key"), "{answer}");
}
