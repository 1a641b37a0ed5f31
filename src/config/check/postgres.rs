//! `[postgres]`.

use super::{NOT_YET, address, named_files, optional};
use crate::config::{
    file::{Entry, Reader, Section},
    node::{PostgresConfig, ReplicationTls, Role, Superuser, TlsMode},
};
use std::{collections::BTreeMap, path::PathBuf};

pub(super) fn section(reader: &mut Reader, root: &mut Section<'_>) -> Option<PostgresConfig> {
    let mut section = root.section(reader, "postgres");
    let data_dir = section.require(reader, "data_dir", "name PostgreSQL's data directory: data_dir = \"/var/lib/postgresql/17/main\"");
    let data_dir = data_dir.and_then(|entry| reader.absolute(&entry));
    let bin_dir =
        section.require(reader, "bin_dir", "name the directory of PostgreSQL's programs: bin_dir = \"/usr/lib/postgresql/17/bin\"");
    let bin_dir = bin_dir.and_then(|entry| reader.absolute(&entry));
    let base_config = optional(section.get("base_config"), |entry| reader.absolute(entry));
    let addresses = address::listen_and_advertise(reader, &mut section, "0.0.0.0:5432");
    let superuser = superuser(reader, &mut section);
    let replication = role(reader, &mut section, "replication", "pgbaton_replication", true);
    let rewind = role(reader, &mut section, "rewind", "pgbaton_rewind", true);
    let monitor = role(reader, &mut section, "monitor", "pgbaton_monitor", false);
    let replication_tls = replication_tls(reader, &mut section);
    let wal_dir = optional(section.get("wal_dir"), |entry| {
        // Empty says "inside the data directory", as the reference file shows it.
        if entry.value.as_str() == Some("") { Some(None) } else { reader.absolute(entry).map(Some) }
    });
    let tablespace_map = optional(section.get("tablespace_map"), |entry| tablespaces(reader, entry));
    section.finish(reader);
    let (listen, advertise) = addresses?;
    let port = listen.first()?.port;
    if let Some(other) = listen.iter().find(|address| address.port != port) {
        let what = format!("ports {port} and {} differ, but PostgreSQL has one port", other.port);
        reader.fault("postgres.listen", what, "use one port for all its addresses");
    }
    let (superuser, replication, rewind, monitor) = (superuser?, replication?, rewind?, monitor?);
    let replication_tls = replication_tls?;
    names_differ(reader, [&superuser.user, &replication.user, &rewind.user, &monitor.user]);
    if replication.certificate.is_some() && replication_tls.mode == TlsMode::Prefer {
        let what = "proves nothing without TLS, and postgres.replication_tls.mode is \"prefer\"";
        reader.fault("postgres.replication.cert_file", what, "set that mode to \"verify-full\", \"verify-ca\" or \"require\"");
    }
    // pg_hba's method cert compares the certificate's name with the role's, and a node has one client certificate.
    for (key, role) in [("rewind", &rewind), ("monitor", &monitor)] {
        if role.certificate.is_some() {
            reader.fault(
                &format!("postgres.{key}.cert_file"),
                NOT_YET,
                "set password_file instead: the replication role alone has a certificate",
            );
        }
    }
    Some(PostgresConfig {
        data_dir: data_dir?,
        bin_dir: bin_dir?,
        base_config: base_config?,
        listen: listen.into_iter().map(|address| address.host).collect(),
        port,
        advertise,
        superuser,
        replication,
        rewind,
        monitor,
        replication_tls,
        wal_dir: wal_dir?.flatten(),
        tablespace_map: tablespace_map?.unwrap_or_default(),
    })
}

/// The agent's role: it logs in over the Unix socket, by `peer` and a user name map of ours.
fn superuser(reader: &mut Reader, postgres: &mut Section<'_>) -> Option<Superuser> {
    let mut section = postgres.section(reader, "superuser");
    let user = optional(section.get("user"), |entry| role_name(reader, entry));
    for key in ["password_file", "cert_file", "key_file"] {
        if let Some(entry) = section.get(key) {
            let what = "has no effect: the agent logs in by peer, as the owner of the data directory";
            reader.fault(&entry.path, what, "remove it");
        }
    }
    section.finish(reader);
    Some(Superuser { user: user?.unwrap_or_else(|| "postgres".to_owned()) })
}

/// A role; one that connects to other nodes has to prove itself there.
fn role(reader: &mut Reader, postgres: &mut Section<'_>, key: &'static str, default: &str, remote: bool) -> Option<Role> {
    let mut section = postgres.section(reader, key);
    let user = optional(section.get("user"), |entry| role_name(reader, entry));
    let password = optional(section.get("password_file"), |entry| named_files::password(reader, entry));
    let certificate = named_files::key_pair(reader, &mut section);
    let path = section.path("password_file");
    section.finish(reader);
    let (password, certificate) = (password?, certificate?);
    if remote && password.is_none() && certificate.is_none() {
        let what = format!("is missing, so the {key} role cannot connect to other nodes");
        reader.missing(&path, what, "set password_file, or cert_file and key_file");
        return None;
    }
    Some(Role { user: user?.unwrap_or_else(|| default.to_owned()), password, certificate })
}

fn role_name(reader: &mut Reader, entry: &Entry<'_>) -> Option<String> {
    let text = reader.text(entry)?;
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b));
    // PG 15 manual, "CREATE ROLE": names that begin with pg_ are reserved.
    if !plain || !(1..=63).contains(&text.len()) || text.starts_with("pg_") {
        reader.fault(
            &entry.path,
            format!("{text:?} is no role name"),
            "use 1 to 63 letters, digits, _, -, . and @, not beginning with pg_",
        );
        return None;
    }
    Some(text.to_owned())
}

/// Each role has a name of its own, because each has rights of its own.
fn names_differ(reader: &mut Reader, names: [&String; 4]) {
    let keys = ["superuser", "replication", "rewind", "monitor"];
    for (index, (key, name)) in keys.iter().zip(names).enumerate() {
        if let Some(other) = (0..index).find(|other| names[*other] == name) {
            let what = format!("{name:?} is also the {} role", keys[other]);
            reader.fault(&format!("postgres.{key}.user"), what, "give each role a name of its own");
        }
    }
}

fn replication_tls(reader: &mut Reader, postgres: &mut Section<'_>) -> Option<ReplicationTls> {
    let mut section = postgres.section(reader, "replication_tls");
    let modes = [TlsMode::Prefer, TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull];
    let modes = modes.map(|mode| (mode.as_str(), mode));
    let mode = optional(section.get("mode"), |entry| reader.word(entry, &modes));
    let ca = optional(section.get("ca_file"), |entry| named_files::certificate(reader, entry));
    let path = section.path("ca_file");
    section.finish(reader);
    let (mode, ca) = (mode?, ca?);
    let mode = mode.unwrap_or(if ca.is_some() { TlsMode::VerifyFull } else { TlsMode::Prefer });
    match (mode, &ca) {
        (TlsMode::VerifyCa | TlsMode::VerifyFull, None) => {
            reader.missing(&path, format!("is missing, and mode {:?} needs it", mode.as_str()), "name the authority's certificate");
        }
        // libpq checks the certificate with `require` too when a root is given; with `prefer` the file would say nothing.
        (TlsMode::Prefer, Some(_)) => {
            let what = format!("has no effect with mode {:?}", mode.as_str());
            reader.fault(&path, what, "set mode = \"verify-full\" or \"verify-ca\", or remove it");
        }
        _ => {}
    }
    Some(ReplicationTls { mode, ca })
}

fn tablespaces(reader: &mut Reader, entry: &Entry<'_>) -> Option<BTreeMap<PathBuf, PathBuf>> {
    let mut map = BTreeMap::new();
    let mut good = true;
    for (source, target) in reader.pairs(entry)? {
        let source_path: PathBuf = PathBuf::from(source).components().collect();
        if !source_path.is_absolute() {
            reader.fault(&target.path, format!("{source:?} is a relative path"), "write the whole path of the tablespace on the source");
            good = false;
        }
        match reader.absolute(&target) {
            Some(target) => {
                map.insert(source_path, target);
            }
            None => good = false,
        }
    }
    good.then_some(map)
}
