//! TLS, client certificates, users and tokens on a real etcd.

#![expect(clippy::expect_used, clippy::panic, reason = "this is test code")]

mod support;

use pgbaton::{
    clock,
    dcs::{Error, Etcd, Hedge, Outcome, Settings, TxnOutcome, Update},
    model::{
        key::{Key, Txn, Write},
        moment::Span,
    },
};
use std::time::Duration;
use support::etcd::{Etcds, Options, certificates, now};
use tokio::sync::mpsc::channel;

const DEADLINE: Span = Span::from_secs(3);

async fn put(etcd: &Etcd, text: &str) -> Result<(), Error> {
    let then = vec![Write::Put(Key::Leader, text.to_owned())];
    let txn = Txn { nonce: clock::nonce(), when: Vec::new(), then };
    match etcd.txn(&txn, Hedge::Allowed, DEADLINE).await?.outcome {
        TxnOutcome::Applied { .. } => Ok(()),
        TxnOutcome::Refused { .. } => panic!("an unconditional put was refused"),
    }
}

/// Scenario 46: the certificates of both sides are replaced on disk, by another authority's even.
#[tokio::test]
async fn certificates_renewed_on_disk_are_used_from_the_next_connection_on() {
    let mut etcds = Etcds::start(Options { members: 1, tls: true, ..Options::default() });
    let etcd = Etcd::connect(etcds.settings()).await.expect("connect");
    put(&etcd, "first").await.expect("put");
    etcds.kill(0);
    certificates(etcds.path());
    etcds.run(0);
    let deadline = now() + Duration::from_secs(8);
    while let Err(error) = put(&etcd, "second").await {
        assert!(now() < deadline, "{error}");
    }
}

#[tokio::test]
async fn a_server_of_another_authority_and_a_client_without_certificate_are_not_let_in() {
    let etcds = Etcds::start(Options { members: 1, tls: true, ..Options::default() });
    let foreign = tempfile::tempdir().expect("directory");
    certificates(foreign.path());
    let mut settings = etcds.settings();
    settings.ca_file = Some(foreign.path().join("ca.pem"));
    let etcd = Etcd::connect(settings).await.expect("the files are well");
    let error = etcd.list(Span::from_millis(700)).await.expect_err("another authority");
    assert!(matches!(&error, Error::Unreachable(why) if why.contains("invalid peer certificate")), "{error}");
    let mut settings = etcds.settings();
    (settings.cert_file, settings.key_file) = (None, None);
    let etcd = Etcd::connect(settings).await.expect("the files are well");
    let error = etcd.list(Span::from_millis(700)).await.expect_err("no certificate");
    assert_eq!(error.outcome(), Outcome::NotDone, "{error}");
    let reason = error.to_string();
    assert!(reason.contains("no client certificate is configured"), "{reason}");
}

#[tokio::test]
async fn wrong_settings_are_one_clear_error_at_once() {
    let dir = tempfile::tempdir().expect("directory");
    certificates(dir.path());
    let file = |name: &str| Some(dir.path().join(name));
    std::fs::write(dir.path().join("junk.pem"), "junk").expect("write");
    std::fs::write(dir.path().join("empty"), "\n").expect("write");
    let good = || {
        let mut settings = Settings::new(vec!["https://127.0.0.1:1".to_owned()], "/pgbaton", "c1".parse().expect("name"));
        settings.ca_file = file("ca.pem");
        settings
    };
    assert!(Etcd::connect(good()).await.is_ok(), "an etcd that is not there is no wrong setting");
    let faulty: [(&str, Settings); 9] = [
        ("absent.pem", Settings { ca_file: file("absent.pem"), ..good() }),
        ("junk.pem: no PEM certificate", Settings { ca_file: file("junk.pem"), ..good() }),
        ("server.key", Settings { cert_file: file("client.pem"), key_file: file("server.key"), ..good() }),
        ("certificate needs its key", Settings { cert_file: file("client.pem"), ..good() }),
        ("password file", Settings { username: Some("agent".to_owned()), ..good() }),
        ("empty: empty", Settings { username: Some("agent".to_owned()), password_file: file("empty"), ..good() }),
        ("no endpoint", Settings { endpoints: Vec::new(), ..good() }),
        ("127.0.0.1:1", Settings { endpoints: vec!["127.0.0.1:1".to_owned()], ..good() }),
        ("must be https", Settings { endpoints: vec!["http://127.0.0.1:1".to_owned()], ..good() }),
    ];
    for (expected, settings) in faulty {
        match Etcd::connect(settings).await {
            Err(Error::Settings(why)) => assert!(why.contains(expected), "{why} does not name {expected}"),
            other => panic!("{expected}: {:?}", other.err()),
        }
    }
}

/// Scenario 44: authentication is switched on, the password changes, the tokens are lost, authentication is switched off,
/// all under a connected client.
#[tokio::test]
async fn tokens_are_renewed_within_the_attempt() {
    let mut etcds = Etcds::start(Options { members: 1, tls: true, ..Options::default() });
    let etcd = Etcd::connect(etcds.agent_settings("secret")).await.expect("connect");
    put(&etcd, "no authentication yet").await.expect("put");
    etcds.enable_auth();
    timed("authentication was switched on", put(&etcd, "on")).await;
    std::fs::write(etcds.path().join("password"), "other").expect("write");
    etcds.change_password("agent", "other");
    timed("the password was changed", put(&etcd, "other password")).await;
    etcd.put_member(&"n1".parse().expect("name"), "m".to_owned(), DEADLINE).await.expect("leases work with authentication");
    etcds.change_password("agent", "third");
    let error = put(&etcd, "old password").await.expect_err("the file holds the old password");
    assert!(matches!(&error, Error::Denied(why) if why.contains("invalid user ID or password") && why.contains("127.0.0.1")), "{error}");
    assert!(!error.to_string().contains("other"), "a secret is shown: {error}");
    std::fs::write(etcds.path().join("password"), "third").expect("write");
    // Simple tokens live in the member's memory alone.
    etcds.kill(0);
    etcds.run(0);
    let deadline = now() + Duration::from_secs(8);
    while let Err(error) = put(&etcd, "restarted").await {
        assert!(now() < deadline, "{error}");
    }
    etcds.must(&["auth", "disable"]);
    put(&etcd, "off").await.expect("put");
}

async fn timed(what: &str, work: impl Future<Output = Result<(), Error>>) {
    let start = now();
    work.await.expect(what);
    let took = start.elapsed();
    println!("{what}: the next write took {took:?}");
    assert!(took < Duration::from_secs(1), "{what}: {took:?}");
}

/// Scenario 44, for the watch: a stream outlives a change of the password, and a new one can be opened.
#[tokio::test]
async fn a_watch_goes_on_across_a_change_of_the_password() {
    let mut etcds = Etcds::one();
    etcds.enable_auth();
    let etcd = Etcd::connect(etcds.agent_settings("secret")).await.expect("connect");
    let (sender, mut updates) = channel(64);
    let script = async {
        put(&etcd, "v1").await.expect("put");
        std::fs::write(etcds.path().join("password"), "other").expect("write");
        etcds.change_password("agent", "other");
        etcds.kill(0);
        etcds.run(0);
        let deadline = now() + Duration::from_secs(8);
        while let Err(error) = put(&etcd, "v2").await {
            assert!(now() < deadline, "{error}");
        }
        put(&etcd, "v3").await.expect("put");
        loop {
            let left = (deadline + Duration::from_secs(5)).saturating_duration_since(now());
            let update = tokio::time::timeout(left, updates.recv()).await.expect("in time").expect("update");
            let text = match update {
                Update::Changed { changes, .. } => changes.into_iter().filter_map(|(_, text, _)| text).next_back(),
                Update::Listed { listing, .. } => listing.entries.into_iter().map(|(_, text, _)| text).next_back(),
                Update::Silent { .. } => None,
            };
            if text.as_deref() == Some("v3") {
                break;
            }
        }
        drop(updates);
    };
    tokio::join!(etcd.clone().watch(sender), script);
}

/// Scenario 45.
#[tokio::test]
async fn an_endpoint_that_refuses_the_user_does_not_hide_one_that_does_not() {
    let mut strange = Etcds::one();
    strange.must(&["user", "add", "agent:another"]);
    strange.must(&["user", "add", "root:secret"]);
    strange.must(&["user", "grant-role", "root", "root"]);
    strange.must(&["auth", "enable"]);
    let mut etcds = Etcds::one();
    etcds.enable_auth();
    let mut settings = etcds.agent_settings("secret");
    settings.endpoints.insert(0, strange.url(0));
    let etcd = Etcd::connect(settings.clone()).await.expect("connect");
    put(&etcd, "v").await.expect("the second endpoint is well");
    settings.endpoints.truncate(1);
    let etcd = Etcd::connect(settings.clone()).await.expect("connect");
    let error = put(&etcd, "v").await.expect_err("nobody else to ask");
    assert!(matches!(error, Error::Denied(_)), "{error}");
    // Another cluster's keys are not this user's.
    settings.endpoints = vec![etcds.url(0)];
    settings.cluster = "c2".parse().expect("name");
    let error = put(&Etcd::connect(settings).await.expect("connect"), "v").await.expect_err("not permitted");
    assert!(matches!(&error, Error::Denied(why) if why.contains("permission denied")), "{error}");
    strange.login("root:secret");
}
