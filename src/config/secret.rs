//! Passwords, keys and certificates, read from the files that the configuration names.

use crate::model::secret::Secret;
use serde::Serialize;
use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// A secret with the file that holds it, for those who want the path (libpq) and those who want the text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Its content, without the newline at the end.
    pub content: Secret,
}

/// A certificate, or several, in PEM, with the file that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Its content.
    #[serde(skip)]
    pub pem: String,
}

/// A certificate with its private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyPair {
    /// The certificate, then those that link it to its authority.
    pub certificate: CertificateFile,
    /// Its private key, in PEM.
    pub key: SecretFile,
}

/// Why a file cannot be used: what is wrong and what to do.
pub(super) type Refusal = (String, String);

/// No file that a configuration names is longer than this.
const LONGEST: u64 = 1 << 20;

/// Reads a file that others may read too.
pub(super) fn read_text(path: &Path) -> Result<String, Refusal> {
    let file = |what: String, remedy: &str| Err((format!("{} {what}", path.display()), remedy.to_owned()));
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return file("does not exist".into(), "create the file or correct the path");
        }
        Err(error) => return file(format!("cannot be read: {error}"), "make it readable for the user who runs the agent"),
    };
    if metadata.is_dir() {
        return file("is a directory".into(), "name a file");
    }
    // A pipe or device could block the start for ever.
    if !metadata.is_file() {
        return file("is no regular file".into(), "name a file");
    }
    if metadata.len() > LONGEST {
        return file(format!("has {} bytes", metadata.len()), "name the right file: at most 1 MB is read");
    }
    match fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) if text.contains('\0') => file("holds a NUL byte".into(), "write it as plain text"),
            Ok(text) => Ok(text),
            Err(_) => file("is not UTF-8 text".into(), "write it as plain text in UTF-8"),
        },
        Err(error) => file(format!("cannot be read: {error}"), "make it readable for the user who runs the agent"),
    }
}

/// Reads a file that only its owner and group may read.
pub(super) fn read_secret(path: &Path) -> Result<Secret, Refusal> {
    let text = read_text(path)?;
    let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777).unwrap_or_default();
    if mode & 0o007 != 0 {
        return Err((format!("{} is open to every user (mode {mode:04o})", path.display()), format!("chmod 0600 {}", path.display())));
    }
    // An editor's newline at the end is no part of a password.
    let stripped = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if stripped.is_empty() {
        return Err((format!("{} is empty", path.display()), "write the secret into it".to_owned()));
    }
    Ok(Secret::new(stripped))
}

/// What makes a text PEM.
pub(super) fn is_pem(text: &str, label: &str) -> bool {
    text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_secret_shows_its_path_alone() {
        let file = SecretFile { path: "/x".into(), content: Secret::new("hunter2") };
        assert_eq!(serde_json::to_string(&file).expect("json"), r#"{"path":"/x","content":"***"}"#);
    }
}
