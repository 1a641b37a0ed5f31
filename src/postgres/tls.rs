//! TLS for our own sessions to other members, as libpq's `sslmode` means it.

use super::{Credential, Error, ReplicationTls, SslMode};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{path::Path, sync::Arc};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The connector that `tls` describes, with the certificate where `credential` is one. Without `tls`: encrypted where the server
/// can, to whomever (libpq's `prefer`).
///
/// # Errors
/// [`Error::File`] and [`Error::Refused`] for files that cannot be read or hold no PEM.
pub(super) fn connector(tls: Option<&ReplicationTls>, credential: &Credential) -> Result<MakeRustlsConnect, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = verifier(tls, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Error::Refused(format!("set up TLS: {error}")))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let config = match credential {
        Credential::None | Credential::Password(_) => builder.with_no_client_auth(),
        Credential::Certificate { cert_file, key_file } => {
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| pem_error(key_file, error))?;
            let with_key = builder.with_client_auth_cert(certificates(cert_file)?, key);
            with_key.map_err(|error| Error::Refused(format!("use {} with {}: {error}", cert_file.display(), key_file.display())))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn verifier(tls: Option<&ReplicationTls>, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let algorithms = provider.signature_verification_algorithms;
    let mode = tls.map_or(SslMode::Require, |tls| tls.mode);
    let Some(ca_file) = tls.and_then(|tls| tls.ca_file.as_deref()) else {
        return match mode {
            SslMode::Require => Ok(Arc::new(Lenient { chain: None, algorithms })),
            SslMode::VerifyCa | SslMode::VerifyFull => {
                Err(Error::Refused(format!("verify servers (sslmode {}): replication_tls has no ca_file", mode.as_str())))
            }
        };
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_file)? {
        roots.add(certificate).map_err(|error| Error::Refused(format!("trust {}: {error}", ca_file.display())))?;
    }
    let strict = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let strict = strict.map_err(|error| Error::Refused(format!("trust {}: {error}", ca_file.display())))?;
    Ok(match mode {
        SslMode::VerifyFull => strict,
        // PG manual, "sslmode": with a root file, `require` behaves like `verify-ca`.
        SslMode::Require | SslMode::VerifyCa => Arc::new(Lenient { chain: Some(strict), algorithms }),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| pem_error(path, error))?;
    if found.is_empty() { Err(Error::Refused(format!("use {}: it holds no certificate", path.display()))) } else { Ok(found) }
}

fn pem_error(path: &Path, error: rustls::pki_types::pem::Error) -> Error {
    match error {
        rustls::pki_types::pem::Error::Io(source) => Error::file("read", path)(source),
        error => Error::Refused(format!("use {}: {error}", path.display())),
    }
}

/// Checks the chain where there is one to check, and never the host name.
#[derive(Debug)]
struct Lenient {
    chain: Option<Arc<WebPkiServerVerifier>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last, after the chain.
            Err(rustls::Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })) => {
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
