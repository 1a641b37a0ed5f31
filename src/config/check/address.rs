//! Where something listens, and how others reach it.

use super::{Optional, optional};
use crate::config::file::{Reader, Section};
use crate::model::node::Address;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether a host stands for every address of this machine.
pub(super) fn is_wildcard(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

/// Why `text` is no address to listen on or to be reached at.
fn parse(text: &str) -> Result<Address, (String, &'static str)> {
    let remedy = "write host:port, for example \"10.0.0.11:5432\" or \"[fd00::11]:5432\"";
    if text.starts_with('*') {
        return Err((format!("{text:?} is not an address"), "write 0.0.0.0:port, or [::]:port for IPv6 too"));
    }
    let address: Address = text.parse().map_err(|error| (format!("{error}"), remedy))?;
    let host = address.host.as_str();
    let numbers = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let valid = match () {
        () if numbers => host.parse::<Ipv4Addr>().is_ok(),
        () if name => !host.starts_with(['-', '.']),
        () => host.parse::<Ipv6Addr>().is_ok(),
    };
    if valid { Ok(address) } else { Err((format!("{host:?} is neither an IP address nor a host name"), remedy)) }
}

/// `listen` (one address or several with commas between) and `advertise` of one section.
pub(super) fn listen_and_advertise(reader: &mut Reader, section: &mut Section<'_>, default: &str) -> Option<(Vec<Address>, Address)> {
    let listen = optional(section.get("listen"), |entry| {
        let text = reader.text(entry)?;
        let mut addresses = Vec::new();
        for part in text.split(',') {
            match parse(part.trim()) {
                Ok(address) if addresses.contains(&address) => reader.fault(&entry.path, format!("{address} is there twice"), "remove one"),
                Ok(address) => addresses.push(address),
                Err((what, remedy)) => {
                    reader.fault(&entry.path, what, remedy);
                    return None;
                }
            }
        }
        Some(addresses)
    });
    let advertise: Optional<Address> = optional(section.get("advertise"), |entry| {
        let text = reader.text(entry)?;
        match parse(text) {
            Ok(address) if is_wildcard(&address.host) => {
                reader.fault(
                    &entry.path,
                    format!("{} is no address that others can reach", address.host),
                    "write the address of this host",
                );
                None
            }
            Ok(address) => Some(address),
            Err((what, remedy)) => {
                reader.fault(&entry.path, what, remedy);
                None
            }
        }
    });
    let listen = match listen? {
        Some(addresses) => addresses,
        None => vec![default.parse().ok()?],
    };
    if let Some(advertise) = advertise? {
        return Some((listen, advertise));
    }
    let first = listen.first()?.clone();
    if listen.iter().any(|address| is_wildcard(&address.host)) {
        let what = format!("is missing, and {first} does not say how others reach this node");
        let remedy = format!("set it to this host's address, for example advertise = \"10.0.0.11:{}\"", first.port);
        reader.missing(&section.path("advertise"), what, remedy);
        return None;
    }
    Some((listen, first))
}
