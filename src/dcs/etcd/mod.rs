//! The real store: one client an endpoint, hedged requests, a watch that notices when it has gone silent.
//!
//! In reading order: `address`, `security`, `connection` and `endpoint` (one member), `fault` (what an error means), `race` (several
//! endpoints), then what is asked: `txn`, `list`, `watch`, `lease`, `journal`, `status`.

mod address;
mod connection;
mod endpoint;
mod fault;
mod journal;
mod lease;
mod list;
mod race;
mod security;
mod status;
mod txn;
mod watch;

pub(super) use txn::touched;

use super::{Error, Settings, keys::Space};
use crate::model::moment::{Moment, Span};
use address::Url;
use endpoint::Endpoint;
use lease::{Leading, Leases};
use security::{Certificates, password};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// No answer of etcd is larger than this; tonic's own limit of 4 MiB is less than what many timelines can fill.
const LARGEST_MESSAGE: usize = 64 << 20;

/// The store. Cheap to clone; all clones share connections, tokens and etcd leases.
#[derive(Clone)]
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Arc<Settings>,
    space: Space,
    endpoints: Vec<Endpoint>,
    /// Index of the endpoint that answered last.
    preferred: AtomicUsize,
    leases: Mutex<Leases>,
    /// Which endpoint leads, as far as anybody asked.
    leading: Mutex<Option<Leading>>,
    /// The highest raft term that a list has shown.
    raft_term: AtomicU64,
}

impl Etcd {
    /// Checks the settings and their files. Does not need etcd: connections are made when they are used, and again whenever
    /// they break.
    ///
    /// # Errors
    /// [`Error::Settings`] alone: an endpoint, certificate, key or password file is wrong.
    pub async fn connect(settings: Settings) -> Result<Self, Error> {
        check(&settings)?;
        let certificates = Certificates::read(&settings).await?;
        if let Some(file) = &settings.password_file {
            password(file).await?;
        }
        let urls: Vec<Url> = settings.endpoints.iter().map(|text| Url::parse(text, &settings)).collect::<Result<_, _>>()?;
        let settings = Arc::new(settings);
        let endpoints = urls.into_iter().map(|url| Endpoint::new(url, Arc::clone(&settings), certificates.clone())).collect();
        let space = Space::new(&settings.prefix, &settings.cluster);
        let shared = Shared {
            settings,
            space,
            endpoints,
            preferred: AtomicUsize::new(0),
            leases: Mutex::default(),
            leading: Mutex::default(),
            raft_term: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where this cluster's keys stand.
    pub fn space(&self) -> &Space {
        &self.shared.space
    }
}

fn check(settings: &Settings) -> Result<(), Error> {
    let wrong = |why: &str| Err(Error::Settings(why.to_owned()));
    if settings.endpoints.is_empty() {
        return wrong("no endpoint is configured");
    }
    if settings.cert_file.is_some() != settings.key_file.is_some() {
        return wrong("a certificate needs its key, and a key its certificate");
    }
    if settings.cert_file.is_some() && settings.ca_file.is_none() {
        return wrong("a client certificate needs the authority's file too");
    }
    if settings.username.is_some() != settings.password_file.is_some() {
        return wrong("a user name needs a password file, and a password file a user name");
    }
    if !settings.prefix.starts_with('/') {
        return wrong("the prefix must begin with /");
    }
    if settings.attempt < Span::from_millis(50) || settings.poll < Span::from_millis(50) {
        return wrong("attempt and poll must be 50 ms at the least");
    }
    if settings.member_ttl < Span::from_secs(2) {
        return wrong("the members' time to live must be 2 s at the least");
    }
    Ok(())
}

impl Shared {
    /// All endpoints: the one that answered last, then those that do not fail, then those that have failed, longest ago first.
    fn order(&self) -> Vec<usize> {
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut order: Vec<usize> = (0..self.endpoints.len()).collect();
        order.sort_by_key(|index| {
            let failing = self.endpoints[*index].failing_since();
            (failing.is_some(), *index != preferred, failing.unwrap_or(Moment::ZERO), *index)
        });
        order
    }

    fn prefer(&self, index: usize) {
        self.preferred.store(index, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dcs::Hedge,
        model::key::{Key, Txn},
    };

    fn is_send<T: Send>(_: T) {}

    /// The agent runs them as tasks.
    #[tokio::test]
    async fn every_future_can_be_a_task() {
        let settings = Settings::new(vec!["http://127.0.0.1:1".to_owned()], "/p", "c".parse().expect("name"));
        let etcd = Etcd::connect(settings).await.expect("connect");
        let txn = Txn { nonce: crate::clock::nonce(), when: Vec::new(), then: Vec::new() };
        is_send(etcd.txn(&txn, Hedge::Never, Span::ZERO));
        is_send(etcd.list(Span::ZERO));
        is_send(etcd.clone().watch(tokio::sync::mpsc::channel(1).0));
        is_send(etcd.clone().keep_up());
        is_send(etcd.put_member(&"n".parse().expect("name"), String::new(), Span::ZERO));
        is_send(etcd.append_history(crate::model::term::Term::ZERO, String::new(), Span::ZERO));
        is_send(etcd.write_all(&[(Key::Leader, String::new())], &etcd_listing(), Span::ZERO));
        is_send(etcd.status(Span::ZERO));
    }

    fn etcd_listing() -> crate::dcs::Listing {
        let sent_at = Moment::ZERO;
        crate::dcs::Listing { entries: Vec::new(), unknown: 0, revision: 0, sent_at, cluster_id: 0, raft_term: 0 }
    }
}
