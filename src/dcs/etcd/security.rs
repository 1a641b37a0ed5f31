//! Certificates and the password, read from their files whenever a connection is made: what is renewed on disk is used from
//! the next connection on, without a restart.

use super::super::{Error, Settings};
use etcd_client::{Certificate, Identity, TlsOptions};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{path::Path, sync::Arc};

/// The certificates as read at one time.
#[derive(Clone)]
pub(super) struct Certificates {
    ca: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Certificates {
    /// Reads and checks the files. `None`: no TLS is configured.
    pub(super) async fn read(settings: &Settings) -> Result<Option<Self>, Error> {
        let Some(ca_file) = &settings.ca_file else { return Ok(None) };
        let ca = read(ca_file).await?;
        let identity = match (&settings.cert_file, &settings.key_file) {
            (Some(cert), Some(key)) => Some((read(cert).await?, read(key).await?)),
            _ => None,
        };
        let certificates = Self { ca, identity };
        certificates.check(settings)?;
        Ok(Some(certificates))
    }

    /// Builds a TLS configuration of them once, so that a wrong file is named at once and not at the first handshake.
    fn check(&self, settings: &Settings) -> Result<(), Error> {
        let mut roots = RootCertStore::empty();
        for certificate in parse(&self.ca, settings.ca_file.as_deref())? {
            roots.add(certificate).map_err(|fault| wrong(settings.ca_file.as_deref(), &fault.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|fault| Error::Settings(fault.to_string()))?
            .with_root_certificates(roots);
        if let Some((certificate, key)) = &self.identity {
            let chain = parse(certificate, settings.cert_file.as_deref())?;
            let key_file = settings.key_file.as_deref();
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| wrong(key_file, "no PEM private key"))?;
            builder.with_client_auth_cert(chain, key).map_err(|fault| wrong(key_file, &fault.to_string()))?;
        }
        Ok(())
    }

    /// For a connection to `host`.
    pub(super) fn tls(&self, host: &str) -> TlsOptions {
        let options = TlsOptions::new().domain_name(host).ca_certificate(Certificate::from_pem(&self.ca));
        match &self.identity {
            Some((certificate, key)) => options.identity(Identity::from_pem(certificate, key)),
            None => options,
        }
    }
}

fn parse(pem: &[u8], file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match parsed {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(wrong(file, "no PEM certificate")),
    }
}

/// The password: the file's text without its final newline.
pub(super) async fn password(file: &Path) -> Result<String, Error> {
    let text = String::from_utf8(read(file).await?).map_err(|_| wrong(Some(file), "not UTF-8"))?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(wrong(Some(file), "empty")),
        password => Ok(password.to_owned()),
    }
}

async fn read(file: &Path) -> Result<Vec<u8>, Error> {
    tokio::fs::read(file).await.map_err(|fault| wrong(Some(file), &fault.to_string()))
}

fn wrong(file: Option<&Path>, why: &str) -> Error {
    Error::Settings(format!("{}: {why}", file.unwrap_or_else(|| Path::new("")).display()))
}
