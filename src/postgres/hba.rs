//! Who may connect: the text of the managed `pg_hba.conf`, `pg_ident.conf` and passfile.

use super::{Configuration, Credential, Error, Role, Roles, Settings};
use std::{fmt::Write as _, net::IpAddr, path::Path};

/// The user name map that lets the agent in as the superuser.
const MAP: &str = "pgbaton";

/// `pg_hba.conf`: the first line that fits decides.
pub(super) fn hba(settings: &Settings, configuration: &Configuration) -> Result<String, Error> {
    let mut text =
        "# Written by pgbaton. Lines of your own belong into the policy (hba).\n\n# The agent, over the Unix socket\n".to_owned();
    let superuser = name(&settings.roles.superuser)?;
    for database in ["all", "replication"] {
        let _ = writeln!(text, "local {database} {superuser} peer map={MAP}");
    }
    text.push_str("\n# Members\n");
    for (role, database) in members(&settings.roles) {
        member_lines(&mut text, settings, configuration, role, database)?;
    }
    // Without these, a later line for everybody would admit them to more, or unencrypted. The monitor role is any client's.
    for role in [&settings.roles.replication, &settings.roles.rewind] {
        reject_lines(&mut text, settings, role)?;
    }
    if configuration.members_only {
        text.push_str(
            "\n# Not yet: replicas have to confirm first what this server came up with\nlocal all all reject\nhost all all all reject\n",
        );
        return Ok(text);
    }
    text.push_str("\n# The cluster policy, or the default\n");
    if configuration.hba.is_empty() {
        text.push_str("host all all all scram-sha-256\n");
    }
    for line in &configuration.hba {
        let _ = writeln!(text, "{}", one_line("hba", line)?);
    }
    Ok(text)
}

/// The roles of members, and the database that each connects to. pg_rewind's functions are granted in `postgres` alone.
const fn members(roles: &Roles) -> [(&Role, &'static str); 3] {
    [(&roles.replication, "replication"), (&roles.rewind, "postgres"), (&roles.monitor, "postgres")]
}

fn member_lines(text: &mut String, settings: &Settings, configuration: &Configuration, role: &Role, database: &str) -> Result<(), Error> {
    let method = match role.credential {
        Credential::None => return Ok(()),
        Credential::Password(_) => "scram-sha-256",
        Credential::Certificate { .. } => "cert",
    };
    let kind = match (&settings.replication_tls, &role.credential) {
        (None, Credential::Password(_) | Credential::None) => "host",
        (Some(_), _) | (None, Credential::Certificate { .. }) => "hostssl",
    };
    let user = name(&role.name)?;
    if method == "scram-sha-256" {
        let _ = writeln!(text, "local {database} {user} {method}");
    }
    for peer in &configuration.peers {
        let _ = writeln!(text, "{kind} {database} {user} {} {method}", peer_address(peer)?);
    }
    Ok(())
}

/// What a role of members may not do besides its work. PG manual, "pg_hba.conf": the database `all` is none of `replication`.
fn reject_lines(text: &mut String, settings: &Settings, role: &Role) -> Result<(), Error> {
    if role.name == settings.roles.superuser {
        return Ok(());
    }
    let user = name(&role.name)?;
    let _ = writeln!(text, "local all {user} reject\nhost all {user} all reject");
    if settings.replication_tls.is_some() {
        let _ = writeln!(text, "hostnossl replication {user} all reject");
    }
    Ok(())
}

/// An address as pg_hba.conf wants it: a single one with its full mask.
fn peer_address(peer: &str) -> Result<String, Error> {
    if let Ok(address) = peer.parse::<IpAddr>() {
        return Ok(format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }));
    }
    let clean = !peer.is_empty() && peer.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_/".contains(&b));
    if clean { Ok(peer.to_owned()) } else { Err(Error::Refused(format!("admit {peer:?}: that is no address, network or host name"))) }
}

/// `pg_ident.conf`: the owner of the data directory is the superuser; so is root, who could become the owner anyway.
/// The operator's own maps are kept.
pub(super) fn ident(settings: &Settings) -> String {
    let superuser = &settings.roles.superuser;
    let mut text = "# Written by pgbaton: the agent's own access, then the maps of the operator's file.\n".to_owned();
    let mut users = vec![settings.owner_name.as_str(), "root"];
    users.dedup();
    for user in users {
        let _ = writeln!(text, "{MAP} {user} \"{}\"", superuser.replace('"', ""));
    }
    let beside = settings.base_config.as_deref().and_then(Path::parent).unwrap_or(&settings.data_dir);
    if let Ok(own) = std::fs::read_to_string(beside.join("pg_ident.conf")) {
        let maps = own.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        maps.filter(|line| line.split_whitespace().next() != Some(MAP)).for_each(|line| {
            let _ = writeln!(text, "{line}");
        });
    }
    text
}

/// libpq's passfile: `host:port:database:user:password`, with `\` before `:` and `\`.
pub(super) fn passfile(roles: &Roles) -> Result<String, Error> {
    let mut text = String::new();
    for (role, _) in members(roles) {
        if let Some(secret) = role.credential.password() {
            let password = one_line("a password", secret.reveal()).map_err(|_| {
                // The text itself must not be shown.
                Error::Refused(format!("use the password of {}: it has more than one line", role.name))
            })?;
            let _ = writeln!(text, "*:*:*:{}:{}", escaped(&role.name), escaped(password));
        }
    }
    Ok(text)
}

fn escaped(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

/// A role's name, quoted: unquoted, `all` and a leading `+` have meanings of their own.
fn name(role: &str) -> Result<String, Error> {
    let clean = !role.is_empty() && role.len() <= 63 && !role.contains(['"', '\n', '\r', '\0']);
    if clean { Ok(format!("\"{role}\"")) } else { Err(Error::Refused(format!("use the role {role:?}: that is no role's name"))) }
}

/// A text that stays within its line.
pub(super) fn one_line<'a>(what: &str, text: &'a str) -> Result<&'a str, Error> {
    match text.contains(['\n', '\r', '\0']) {
        true => Err(Error::Refused(format!("write {what}: {text:?} has more than one line"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_addresses_get_their_full_mask() {
        let address = |peer| peer_address(peer).ok();
        assert_eq!(address("10.0.0.1").as_deref(), Some("10.0.0.1/32"));
        assert_eq!(address("fd00::1").as_deref(), Some("fd00::1/128"));
        assert_eq!(address("10.0.0.0/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(address("db-1.example").as_deref(), Some("db-1.example"));
        assert_eq!(address("all trust\nhost all"), None);
    }

    #[test]
    fn names_and_passwords_stay_in_their_fields() {
        assert_eq!(escaped("a:b\\c"), "a\\:b\\\\c");
        assert!(name("x\" all all all trust").is_err());
        let refused = one_line("x", "a\nb").map(str::len);
        assert!(refused.is_err());
    }
}
