//! etcd itself, for what has to work without an agent.

use crate::{
    config::Config,
    dcs::{Error, Etcd, Settings},
    model::moment::Span,
};

/// How long etcd is waited for.
pub(super) const DEADLINE: Span = Span::from_secs(5);

/// What the etcd room needs, from a node's configuration.
pub(super) fn settings(config: &Config) -> Settings {
    let etcd = &config.etcd;
    Settings {
        ca_file: etcd.ca.as_ref().map(|ca| ca.path.clone()),
        cert_file: etcd.client.as_ref().map(|client| client.certificate.path.clone()),
        key_file: etcd.client.as_ref().map(|client| client.key.path.clone()),
        username: etcd.user.as_ref().map(|user| user.name.clone()),
        password_file: etcd.user.as_ref().map(|user| user.password.path.clone()),
        ..Settings::new(etcd.endpoints.clone(), etcd.prefix.clone(), config.cluster.clone())
    }
}

pub(super) async fn open(config: &Config) -> Result<Etcd, Error> {
    Etcd::connect(settings(config)).await
}
