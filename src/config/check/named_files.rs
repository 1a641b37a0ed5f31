//! Secrets and certificates, by the keys that name their files.

use super::{Optional, optional};
use crate::{
    config::{
        file::{Entry, Reader, Section},
        secret::{self, CertificateFile, KeyPair, SecretFile},
    },
    model::secret::Secret,
};

/// The secret in the file that `entry` names.
pub(super) fn secret(reader: &mut Reader, entry: &Entry<'_>) -> Option<SecretFile> {
    let path = reader.beside(entry)?;
    if !reader.follow {
        return Some(SecretFile { path, content: Secret::new("") });
    }
    match secret::read_secret(&path) {
        Ok(content) => Some(SecretFile { path, content }),
        Err((what, remedy)) => {
            reader.fault(&entry.path, what, remedy);
            None
        }
    }
}

/// A password: one line.
pub(super) fn password(reader: &mut Reader, entry: &Entry<'_>) -> Option<SecretFile> {
    let file = secret(reader, entry)?;
    if file.content.reveal().contains(['\n', '\r']) {
        reader.fault(&entry.path, format!("{} has more than one line", file.path.display()), "leave the password alone in it");
        return None;
    }
    Some(file)
}

/// The certificates in the file that `entry` names.
pub(super) fn certificate(reader: &mut Reader, entry: &Entry<'_>) -> Option<CertificateFile> {
    let path = reader.beside(entry)?;
    if !reader.follow {
        return Some(CertificateFile { path, pem: String::new() });
    }
    let pem = match secret::read_text(&path) {
        Ok(pem) => pem,
        Err((what, remedy)) => {
            reader.fault(&entry.path, what, remedy);
            return None;
        }
    };
    if !secret::is_pem(&pem, "CERTIFICATE") {
        reader.fault(
            &entry.path,
            format!("{} holds no certificate in PEM", path.display()),
            "name a file with -----BEGIN CERTIFICATE-----",
        );
        return None;
    }
    Some(CertificateFile { path, pem })
}

fn private_key(reader: &mut Reader, entry: &Entry<'_>) -> Option<SecretFile> {
    let key = secret(reader, entry)?;
    if reader.follow && !secret::is_pem(key.content.reveal(), "PRIVATE KEY") {
        reader.fault(
            &entry.path,
            format!("{} holds no private key in PEM", key.path.display()),
            "name a file with -----BEGIN PRIVATE KEY-----",
        );
        return None;
    }
    Some(key)
}

/// `cert_file` and `key_file` of one section: both or none.
pub(super) fn key_pair(reader: &mut Reader, section: &mut Section<'_>) -> Optional<KeyPair> {
    let certificate = optional(section.get("cert_file"), |entry| certificate(reader, entry));
    let key = optional(section.get("key_file"), |entry| private_key(reader, entry));
    match (certificate?, key?) {
        (Some(certificate), Some(key)) => Some(Some(KeyPair { certificate, key })),
        (None, None) => Some(None),
        (Some(_), None) => lacking(reader, section, "cert_file", "key_file"),
        (None, Some(_)) => lacking(reader, section, "key_file", "cert_file"),
    }
}

fn lacking(reader: &mut Reader, section: &Section<'_>, there: &str, lacking: &str) -> Optional<KeyPair> {
    reader.fault(&section.path(there), format!("{lacking} is missing beside it"), format!("set {lacking} too, or remove {there}"));
    None
}
