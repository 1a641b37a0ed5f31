//! `[api]`.

use super::{Optional, address, named_files, optional};
use crate::config::{
    file::{Entry, Reader, Section},
    node::{ApiConfig, ApiTls, Network},
};

pub(super) fn section(reader: &mut Reader, root: &mut Section<'_>) -> Option<ApiConfig> {
    let mut section = root.section(reader, "api");
    let addresses = address::listen_and_advertise(reader, &mut section, "0.0.0.0:8008");
    let tls = tls(reader, &mut section);
    let tokens = optional(section.get("tokens_file"), |entry| named_files::secret(reader, entry));
    let peer_key = optional(section.get("peer_key_file"), |entry| named_files::password(reader, entry));
    let allow = optional(section.get("allow"), |entry| networks(reader, entry));
    section.finish(reader);
    let (listen, advertise) = addresses?;
    Some(ApiConfig { listen, advertise, tls: tls?, tokens: tokens?, peer_key: peer_key?, allow: allow?.unwrap_or_default() })
}

fn tls(reader: &mut Reader, api: &mut Section<'_>) -> Optional<ApiTls> {
    let mut section = api.section(reader, "tls");
    let server = named_files::key_pair(reader, &mut section);
    let client_ca = optional(section.get("client_ca_file"), |entry| named_files::certificate(reader, entry));
    let (written, path) = (section.is_written(), section.path("cert_file"));
    section.finish(reader);
    let client_ca = client_ca?;
    match server? {
        Some(server) => Some(Some(ApiTls { server, client_ca })),
        None if written => {
            reader.missing(&path, "is missing", "set cert_file and key_file of this node, or remove api.tls");
            None
        }
        None => Some(None),
    }
}

fn networks(reader: &mut Reader, entry: &Entry<'_>) -> Option<Vec<Network>> {
    let items = reader.items(entry)?;
    let networks: Vec<Option<Network>> =
        items.iter().map(|item| reader.parsed(item, "write it as \"10.0.0.0/8\", \"fd00::/8\" or a single address")).collect();
    networks.into_iter().collect()
}
