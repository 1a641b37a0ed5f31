//! libpq's connection strings to other members, for walreceivers and for PostgreSQL's programs. Passwords stand in the passfile.

use super::{Credential, Error, Role, Settings, hba::one_line};
use crate::model::{moment::Span, node::Address};

/// How long a program that copies waits for a source that says nothing.
const PATIENCE: Span = Span::from_secs(30);

/// A connection string to the server at `address` as `role` for a program that copies from it; `more` comes last, and wins.
///
/// # Errors
/// As [`conninfo_within`].
pub(super) fn conninfo(settings: &Settings, address: &Address, role: &Role, more: &[(&str, &str)]) -> Result<String, Error> {
    conninfo_within(settings, address, role, PATIENCE, more)
}

/// A connection string to the server at `address` as `role`; `more` comes last, and wins.
///
/// A peer that says nothing for `patience` counts as gone: connecting, and data that nobody acknowledges. Read by the owner of the
/// data directory only, whom the passfile belongs to.
///
/// # Errors
/// [`Error::Refused`] for a value with more than one line.
pub(super) fn conninfo_within(
    settings: &Settings,
    address: &Address,
    role: &Role,
    patience: Span,
    more: &[(&str, &str)],
) -> Result<String, Error> {
    let millis = patience.as_millis().max(1);
    // PG manual, "connect_timeout": whole seconds, and 1 is taken as 2.
    let seconds = millis.div_ceil(1_000).max(2).to_string();
    let mut words = vec![
        ("host", address.host.clone()),
        ("port", address.port.to_string()),
        ("user", role.name.clone()),
        ("passfile", settings.passfile().display().to_string()),
        ("connect_timeout", seconds.clone()),
        ("keepalives_idle", "1".to_owned()),
        ("keepalives_interval", "1".to_owned()),
        ("keepalives_count", seconds),
        ("tcp_user_timeout", millis.to_string()),
        // Else libpq tries Kerberos first, where it was built with it.
        ("gssencmode", "disable".to_owned()),
    ];
    words.extend(tls_words(settings, role));
    words.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let words = words.iter().map(|(name, value)| Ok(format!("{name}={}", word(one_line(name, value)?))));
    Ok(words.collect::<Result<Vec<_>, Error>>()?.join(" "))
}

/// The words that say how members encrypt, and the role's certificate.
fn tls_words(settings: &Settings, role: &Role) -> Vec<(&'static str, String)> {
    let tls = settings.replication_tls.as_ref();
    let mut words = vec![("sslmode", tls.map_or("prefer", |tls| tls.mode.as_str()).to_owned())];
    words.extend(tls.and_then(|tls| tls.ca_file.as_ref()).map(|ca| ("sslrootcert", ca.display().to_string())));
    if let Credential::Certificate { cert_file, key_file } = &role.credential {
        words.extend([("sslcert", cert_file.display().to_string()), ("sslkey", key_file.display().to_string())]);
    }
    words
}

/// A value in a connection string. PG manual, "Keyword/Value Connection Strings": quoted, `\` before `'` and `\`.
fn word(value: &str) -> String {
    let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:*,".contains(&b));
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")) }
}

/// A connection string as it may be shown: without passwords. A URI, which may hold one in more than one place, is not shown at all.
pub(super) fn without_password(conninfo: &str) -> String {
    if conninfo.contains("://") {
        return "(a URI: not shown)".to_owned();
    }
    let mut shown = Vec::new();
    let mut rest = conninfo.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let (value, next) = after.split_at(value_length(after));
        if !name.to_ascii_lowercase().contains("password") {
            shown.push(format!("{}={value}", name.trim()));
        }
        rest = next.trim_start();
    }
    shown.join(" ")
}

/// How many bytes of `text` are the value that it begins with: up to white space, or quoted; `\` takes the next letter as it is.
fn value_length(text: &str) -> usize {
    let quoted = text.starts_with('\'');
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(usize::from(quoted)) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return at + 1,
            letter if !quoted && letter.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown_however_it_is_written() {
        let shown = without_password(r"host=a password = 'x y\' z' port=5432 sslpassword=q user='a b'");
        assert_eq!(shown, "host=a port=5432 user='a b'");
        assert!(!without_password("postgresql://u:geheim@h/").contains("geheim"));
        assert_eq!(without_password("password"), "");
        assert_eq!(without_password(""), "");
    }

    #[test]
    fn values_cannot_leave_their_quotes() {
        assert_eq!(word("a b'c\\"), r"'a b\'c\\'");
        assert_eq!(word("10.0.0.1"), "10.0.0.1");
        assert_eq!(word(""), "''");
    }
}
