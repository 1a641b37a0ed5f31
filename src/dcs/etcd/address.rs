//! An endpoint's URL, and the addresses behind its name.

use super::super::{Error, Settings};
use crate::model::moment::Span;
use std::net::SocketAddr;

/// `http://host:port` or `https://host:port`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) text: String,
    pub(super) tls: bool,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Url {
    /// Checked against the rest of the settings.
    pub(super) fn parse(text: &str, settings: &Settings) -> Result<Self, Error> {
        let bad = |why: &str| Error::Settings(format!("endpoint {text:?}: {why}"));
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(bad("must begin with http:// or https://")),
        };
        let address: crate::model::node::Address =
            rest.trim_end_matches('/').parse().map_err(|_| bad("must be http://host:port or https://host:port"))?;
        match (tls, &settings.ca_file) {
            (true, None) => return Err(bad("https needs the file of the authority that signed etcd's certificate")),
            (false, Some(_)) => return Err(bad("certificates are configured, so it must be https://")),
            _ => {}
        }
        Ok(Self { text: text.to_owned(), tls, host: address.host, port: address.port })
    }

    /// The addresses behind the name; an empty list when the resolver does not answer in time.
    pub(super) async fn resolve(&self, deadline: Span) -> Vec<SocketAddr> {
        let lookup = tokio::net::lookup_host((self.host.as_str(), self.port));
        match tokio::time::timeout(deadline.to_std(), lookup).await {
            Ok(Ok(found)) => found.collect(),
            _ => Vec::new(),
        }
    }

    /// The URL that names one of them.
    pub(super) fn of(&self, address: SocketAddr) -> String {
        format!("{}://{address}", if self.tls { "https" } else { "http" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(Vec::new(), "/p", "c".parse().expect("name"))
    }

    #[test]
    fn urls_are_checked_at_once() {
        let url = Url::parse("http://[::1]:2379", &settings()).expect("url");
        assert_eq!((url.host.as_str(), url.port, url.tls), ("::1", 2379, false));
        for bad in ["", "127.0.0.1:2379", "http://", "http://host", "ftp://host:1", "http://host:0", "https://host:2379", "http://u@h:1"] {
            assert!(matches!(Url::parse(bad, &settings()), Err(Error::Settings(_))), "{bad}");
        }
    }
}
