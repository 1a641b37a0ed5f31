//! `[api]`.

use super::{address, optional};
use crate::config::{
    file::{Entry, Reader, Section},
    node::{ApiConfig, Network},
};

pub(super) fn section(reader: &mut Reader, root: &mut Section<'_>) -> Option<ApiConfig> {
    let mut section = root.section(reader, "api");
    let addresses = address::listen_and_advertise(reader, &mut section, "0.0.0.0:8008");
    unprotected(reader, &mut section);
    let allow = optional(section.get("allow"), |entry| networks(reader, entry));
    section.finish(reader);
    let (listen, advertise) = addresses?;
    Some(ApiConfig { listen, advertise, allow: allow?.unwrap_or_default() })
}

/// Keys of a protection that this version does not have: refused, because an operator would count on it.
fn unprotected(reader: &mut Reader, section: &mut Section<'_>) {
    const WHAT_TO_DO: &str = "remove it, and bind api.listen to loopback or a trusted network, or limit it with api.allow";
    let keys = [
        ("tls", "the API speaks plain HTTP"),
        ("tokens_file", "changes are accepted over the Unix socket alone, and reading over TCP needs no token"),
        ("peer_key_file", "nodes prove nothing to each other over HTTP"),
    ];
    for (key, instead) in keys {
        if let Some(entry) = section.get(key) {
            reader.fault(&entry.path, format!("is not supported by this version: {instead}"), WHAT_TO_DO);
        }
    }
}

fn networks(reader: &mut Reader, entry: &Entry<'_>) -> Option<Vec<Network>> {
    let items = reader.items(entry)?;
    let networks: Vec<Option<Network>> =
        items.iter().map(|item| reader.parsed(item, "write it as \"10.0.0.0/8\", \"fd00::/8\" or a single address")).collect();
    networks.into_iter().collect()
}
