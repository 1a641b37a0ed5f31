//! `[etcd]`.

use super::{named_files, optional};
use crate::config::{
    file::{Entry, Reader, Section},
    node::{EtcdConfig, EtcdUser},
};
use crate::model::node::Address;

pub(super) fn section(reader: &mut Reader, root: &mut Section<'_>) -> Option<EtcdConfig> {
    let mut section = root.section(reader, "etcd");
    let example = "name every member: endpoints = [\"http://10.0.0.21:2379\", \"http://10.0.0.22:2379\", \"http://10.0.0.23:2379\"]";
    let endpoints = section.require(reader, "endpoints", example).and_then(|entry| endpoints(reader, &entry));
    let prefix = optional(section.get("prefix"), |entry| prefix(reader, entry));
    let ca = optional(section.get("ca_file"), |entry| named_files::certificate(reader, entry));
    let client = named_files::key_pair(reader, &mut section);
    let name = optional(section.get("username"), |entry| super::label(reader, entry));
    let password = optional(section.get("password_file"), |entry| named_files::password(reader, entry));
    let user = match (name, password) {
        (Some(Some(name)), Some(Some(password))) => Some(Some(EtcdUser { name, password })),
        (Some(None), Some(None)) => Some(None),
        (Some(Some(_)), Some(None)) => {
            reader.fault("etcd.username", "password_file is missing beside it", "set password_file too, or remove username");
            None
        }
        (Some(None), Some(Some(_))) => {
            reader.fault("etcd.password_file", "username is missing beside it", "set username too, or remove password_file");
            None
        }
        _ => None,
    };
    section.finish(reader);
    let (endpoints, ca, client) = (endpoints?, ca?, client?);
    let tls = endpoints.first().is_some_and(|url| url.starts_with("https://"));
    if tls && ca.is_none() {
        reader.missing(
            "etcd.ca_file",
            "is missing, so etcd's certificates cannot be checked",
            "name the authority's certificate, or use http://",
        );
    }
    for (key, there) in [("etcd.ca_file", ca.is_some()), ("etcd.cert_file", client.is_some())] {
        if !tls && there {
            reader.fault(key, "has no effect with http:// endpoints", "use https:// endpoints, or remove it");
        }
    }
    Some(EtcdConfig { endpoints, prefix: prefix?.unwrap_or_else(|| "/pgbaton".to_owned()), ca, client, user: user? })
}

fn endpoints(reader: &mut Reader, entry: &Entry<'_>) -> Option<Vec<String>> {
    let items = reader.items(entry)?;
    if items.is_empty() {
        reader.fault(&entry.path, "is empty", "name at least one etcd member, better all of them");
        return None;
    }
    let mut urls: Vec<String> = Vec::new();
    let mut good = true;
    for item in &items {
        let Some(text) = reader.text(item) else {
            good = false;
            continue;
        };
        let fault = match url(text) {
            None => Some((format!("{text:?} is not the URL of an etcd member"), "write scheme, host and port: \"https://10.0.0.21:2379\"")),
            Some(url) if urls.contains(&url) => Some((format!("{url} is there twice"), "remove one")),
            Some(url) if urls.first().is_some_and(|first| scheme(first) != scheme(&url)) => {
                Some(("http and https are mixed".to_owned(), "use one scheme for all endpoints"))
            }
            Some(url) => {
                urls.push(url);
                None
            }
        };
        if let Some((what, remedy)) = fault {
            reader.fault(&item.path, what, remedy);
            good = false;
        }
    }
    good.then_some(urls)
}

fn scheme(url: &str) -> &str {
    url.split(':').next().unwrap_or_default()
}

/// `scheme://host:port` as the client wants it.
fn url(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let address: Address = rest.strip_suffix('/').unwrap_or(rest).parse().ok()?;
    let clean = address.host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b));
    (matches!(scheme, "http" | "https") && clean).then(|| format!("{scheme}://{address}"))
}

fn prefix(reader: &mut Reader, entry: &Entry<'_>) -> Option<String> {
    let text = reader.text(entry)?;
    let parts = text.strip_prefix('/').map(|rest| rest.split('/'));
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !parts.is_some_and(|mut parts| parts.all(plain)) {
        reader.fault(&entry.path, format!("{text:?} is no prefix"), "begin it with / and end it without: \"/pgbaton\"");
        return None;
    }
    Some(text.to_owned())
}
