//! libpq's connection string to another member, for the programs that copy from it.

use super::{Error, Role, Settings, hba::one_line, parameters};
use crate::model::node::Address;

/// Keywords and values, without a password: that stands in the passfile. `more` comes last, and wins.
pub(super) fn conninfo(settings: &Settings, address: &Address, role: &Role, more: &[(&'static str, &str)]) -> Result<String, Error> {
    let mut words = vec![
        ("host", address.host.clone()),
        ("port", address.port.to_string()),
        ("user", role.name.clone()),
        ("passfile", settings.passfile().display().to_string()),
        ("connect_timeout", "10".to_owned()),
        // A source that is gone without a word is noticed after half a minute; a slow one is waited for.
        ("keepalives_idle", "10".to_owned()),
        ("keepalives_interval", "5".to_owned()),
        ("keepalives_count", "4".to_owned()),
        ("tcp_user_timeout", "30000".to_owned()),
        // Without it libpq tries Kerberos first, where it was built with it.
        ("gssencmode", "disable".to_owned()),
    ];
    words.extend(parameters::tls_words(settings));
    words.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let text = words.iter().map(|(name, value)| Ok(format!("{name}={}", parameters::word(one_line(name, value)?))));
    Ok(text.collect::<Result<Vec<_>, Error>>()?.join(" "))
}
