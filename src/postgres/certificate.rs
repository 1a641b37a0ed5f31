//! Until when certificates hold.

use rustls::pki_types::{CertificateDer, pem::PemObject};
use x509_cert::{Certificate, der::Decode};

/// When one certificate begins and ceases to hold, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not before.
    pub from: u64,
    /// Not after.
    pub until: u64,
}

/// The validity of every certificate in a text in PEM, in its order; at least one.
///
/// # Errors
/// What is wrong with the text.
pub fn validities(pem: &str) -> Result<Vec<Validity>, String> {
    let found: Result<Vec<CertificateDer<'_>>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|error| format!("is no PEM: {error}"))?;
    if found.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    found.iter().map(|der| validity(der)).collect()
}

fn validity(der: &[u8]) -> Result<Validity, String> {
    let certificate = Certificate::from_der(der).map_err(|error| format!("holds a certificate that cannot be read: {error}"))?;
    let validity = certificate.tbs_certificate.validity;
    let seconds = |time: x509_cert::time::Time| time.to_unix_duration().as_secs();
    Ok(Validity { from: seconds(validity.not_before), until: seconds(validity.not_after) })
}
