//! The query keys of the health paths: `lag=`, `replication_state=`, `tag_<key>=`.

use crate::model::{lsn::Bytes, record::Tags};

/// What a load balancer asks of a node, beside its role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// So many bytes may be unreplayed.
    pub(super) lag: Option<Bytes>,
    /// `streaming` or `in archive recovery`.
    pub(super) replication_state: Option<String>,
    /// Tags and their values.
    pub(super) tags: Vec<(String, String)>,
}

impl Wanted {
    /// Reads a query. Unknown keys and a limit that is no amount of bytes are ignored, as clients are used to.
    pub(super) fn parse(query: &str) -> Self {
        let mut wanted = Self::default();
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decoded(key), decoded(value));
            match key.as_str() {
                "lag" => wanted.lag = value.parse().ok(),
                "replication_state" => wanted.replication_state = Some(value),
                key => wanted.tags.extend(key.strip_prefix("tag_").map(|tag| (tag.to_owned(), value))),
            }
        }
        wanted
    }

    /// Whether every tag that is asked for is there with that value.
    pub(super) fn tags_match(&self, tags: &Tags, zone: &str) -> bool {
        self.tags.iter().all(|(key, value)| tag(tags, zone, key).as_ref() == Some(value))
    }
}

/// A tag's value as text, under our name or Patroni's.
fn tag(tags: &Tags, zone: &str, key: &str) -> Option<String> {
    match key {
        "no_failover" | "nofailover" => Some(tags.no_failover.to_string()),
        "no_load_balance" | "noloadbalance" => Some(tags.no_load_balance.to_string()),
        "no_sync" | "nosync" => Some(tags.no_sync.to_string()),
        "priority" | "failover_priority" => Some(tags.priority.to_string()),
        "zone" => Some(zone.to_owned()),
        _ => None,
    }
}

/// Undoes percent encoding, and `+` for a space. A broken escape stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => match hex(tail) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &tail[2..];
                }
                None => bytes.push(b'%'),
            },
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(tail: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_keys_that_load_balancers_send_are_understood() {
        let wanted = Wanted::parse("lag=10MB&replication_state=in%20archive+recovery&tag_zone=a&x=1");
        assert_eq!(wanted.lag, Some(Bytes::new(10 << 20)));
        assert_eq!(wanted.replication_state.as_deref(), Some("in archive recovery"));
        assert_eq!(wanted.tags, [("zone".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn a_limit_that_is_no_amount_is_ignored() {
        for bad in ["lag=abc", "lag=", "lag", "lag=-1", "lag=10XB"] {
            assert_eq!(Wanted::parse(bad).lag, None, "{bad}");
        }
        assert_eq!(Wanted::parse("lag=4096").lag, Some(Bytes::new(4096)));
    }

    proptest! {
        #[test]
        fn any_query_is_read(query in ".{0,60}") {
            Wanted::parse(&query);
        }
    }
}
