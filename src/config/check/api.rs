//! `[api]`.

use super::{address, named_files, optional};
use crate::config::{
    file::{Entry, Reader, Section},
    node::{ApiConfig, Network},
    secret::SecretFile,
};

pub(super) fn section(reader: &mut Reader, root: &mut Section<'_>) -> Option<ApiConfig> {
    let mut section = root.section(reader, "api");
    let addresses = address::listen_and_advertise(reader, &mut section, "0.0.0.0:8008");
    unprotected(reader, &mut section);
    let allow = optional(section.get("allow"), |entry| networks(reader, entry));
    let peer_key = optional(section.get("peer_key_file"), |entry| peer_key(reader, entry));
    section.finish(reader);
    let (listen, advertise) = addresses?;
    Some(ApiConfig { listen, advertise, allow: allow?.unwrap_or_default(), peer_key: peer_key? })
}

/// Keys of a protection that this version does not have: refused, because an operator would count on it.
fn unprotected(reader: &mut Reader, section: &mut Section<'_>) {
    const WHAT_TO_DO: &str = "remove it, and bind api.listen to loopback or a trusted network, or limit it with api.allow";
    let keys = [
        ("tls", "the API speaks plain HTTP"),
        ("tokens_file", "changes are accepted over the Unix socket alone, and reading over TCP needs no token"),
    ];
    for (key, instead) in keys {
        if let Some(entry) = section.get(key) {
            reader.fault(&entry.path, format!("is not supported by this version: {instead}"), WHAT_TO_DO);
        }
    }
}

/// A key that can be guessed proves nothing.
fn peer_key(reader: &mut Reader, entry: &Entry<'_>) -> Option<SecretFile> {
    const LEAST: usize = 32;
    let file = named_files::secret(reader, entry)?;
    let length = file.content.reveal().trim().len();
    if reader.follow && length < LEAST {
        let what = format!("{} holds {length} characters", file.path.display());
        reader.fault(&entry.path, what, "make one of 32 or more and give every node the same: openssl rand -hex 32");
        return None;
    }
    Some(file)
}

fn networks(reader: &mut Reader, entry: &Entry<'_>) -> Option<Vec<Network>> {
    let items = reader.items(entry)?;
    let networks: Vec<Option<Network>> =
        items.iter().map(|item| reader.parsed(item, "write it as \"10.0.0.0/8\", \"fd00::/8\" or a single address")).collect();
    networks.into_iter().collect()
}
