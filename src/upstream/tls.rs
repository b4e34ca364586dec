//! TLS to the origin: whom Larder believes, and who it says that it is.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};
use tokio_rustls::TlsConnector;

use super::Config;
use super::believed::Believed;
use super::config::{Address, Listed};
use crate::base::Transport;

/// The files and the name by which TLS to the origin is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// The file of the authorities that are believed; empty: the system's.
    pub ca_file: PathBuf,
    /// The file of Larder's own certificate and its chain; empty: it has none.
    pub client_chain: PathBuf,
    /// The file of its key.
    pub client_key: PathBuf,
    /// The name that the origin's certificate has to be for; empty: that in the URL.
    pub server_name: String,
}

/// The reason why an upstream can't be set up: the key, why, and what to do. The section of the key is the caller's to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginTlsError {
    key: &'static str,
    why: String,
}

impl fmt::Display for OriginTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

impl std::error::Error for OriginTlsError {}

impl OriginTlsError {
    pub(super) fn new(key: &'static str, why: impl Into<String>) -> Self {
        Self { key, why: why.into() }
    }

    fn of_file(key: &'static str, path: &Path, why: impl fmt::Display) -> Self {
        Self::new(key, format!("{}: {why}", path.display()))
    }
}

/// Speaks TLS with the addresses of an upstream that are `https`.
pub(super) struct OriginTls {
    connector: TlsConnector,
    /// For each address of the configuration, the name that its certificate has to be for.
    names: Vec<Option<ServerName<'static>>>,
}

impl fmt::Debug for OriginTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginTls").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Config {
    /// Reads the files of TLS to the addresses, as a start does.
    pub fn examine_tls(&self) -> Result<(), OriginTlsError> {
        OriginTls::new(self).map(|_| ())
    }
}

impl OriginTls {
    /// Reads the files; `None`: no address is `https`.
    pub(super) fn new(config: &Config) -> Result<Option<Self>, OriginTlsError> {
        if !config.addresses.iter().any(Listed::is_tls) {
            return Ok(None);
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let failed = |error: Error| OriginTlsError::new("url", format!("TLS can't be set up: {error}"));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let (roots, own) = authorities(&config.tls.ca_file)?;
        let issued = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let issued = issued.map_err(|error| OriginTlsError::new("ca_file", error.to_string()))?;
        let believed = Arc::new(Believed { issued, own });
        let builder = builder.map_err(failed)?.dangerous().with_custom_certificate_verifier(believed);
        let mut client = match own_pair(&config.tls)? {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
                let why = format!("{error}; it has to be the key of client_chain's first certificate");
                OriginTlsError::of_file("client_key", &config.tls.client_key, why)
            })?,
        };
        client.alpn_protocols = vec![b"http/1.1".to_vec()];
        let names = config.addresses.iter().map(|listed| name(config, listed)).collect::<Result<_, _>>()?;
        Ok(Some(Self { connector: TlsConnector::from(Arc::new(client)), names }))
    }

    /// Does the handshake with the address that is number `listed` in the configuration.
    pub(super) async fn connect(&self, listed: usize, transport: Transport) -> io::Result<Transport> {
        let name = self.names.get(listed).cloned().flatten().ok_or_else(|| io::Error::other("it has no name"))?;
        let shown = name.to_str().into_owned();
        match self.connector.connect(name, transport).await {
            Ok(stream) => Ok(Transport::TlsClient(Box::new(stream))),
            Err(error) => Err(explained(&error, &shown)),
        }
    }
}

/// Returns the name that the certificate of an address has to be for.
fn name(config: &Config, listed: &Listed) -> Result<Option<ServerName<'static>>, OriginTlsError> {
    let host = match &listed.address {
        Address::Tcp { host, is_tls: true, .. } if config.tls.server_name.is_empty() => host,
        Address::Tcp { is_tls: true, .. } => &config.tls.server_name,
        Address::Tcp { .. } | Address::Unix(_) => return Ok(None),
    };
    let told = |_| OriginTlsError::new("server_name", format!("\"{host}\" is no name that a certificate can be for"));
    ServerName::try_from(host.clone()).map(Some).map_err(told)
}

/// Reads the authorities that are believed: those in `path`, which are returned as they are too, or the system's.
fn authorities(path: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), OriginTlsError> {
    let mut roots = RootCertStore::empty();
    if path.as_os_str().is_empty() {
        // Some systems have certificates that can't be read; the others count.
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        return if roots.is_empty() {
            let why = "it is empty, and the system has no authorities; install ca-certificates, or name a file";
            Err(OriginTlsError::new("ca_file", why))
        } else {
            Ok((roots, Vec::new()))
        };
    }
    let own = certificates(path, "ca_file")?;
    for certificate in own.iter().cloned() {
        let told = |error| OriginTlsError::of_file("ca_file", path, format!("a certificate can't be used: {error}"));
        roots.add(certificate).map_err(told)?;
    }
    Ok((roots, own))
}

/// Reads Larder's own certificate with its chain, and its key; `None`: it has none.
fn own_pair(tls: &TlsConfig) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, OriginTlsError> {
    let (chain, key) = (&tls.client_chain, &tls.client_key);
    match (chain.as_os_str().is_empty(), key.as_os_str().is_empty()) {
        (true, true) => return Ok(None),
        (true, false) => {
            return Err(OriginTlsError::new("client_chain", "it is empty, and client_key is set; set both"));
        }
        (false, true) => {
            return Err(OriginTlsError::new("client_key", "it is empty, and client_chain is set; set both"));
        }
        (false, false) => {}
    }
    let chain = certificates(chain, "client_chain")?;
    let told = |error| OriginTlsError::of_file("client_key", key, format!("{error}; name the PEM file of the key"));
    Ok(Some((chain, PrivateKeyDer::from_pem_file(key).map_err(told)?)))
}

/// Reads the certificates of a PEM file, of which there has to be one at least.
fn certificates(path: &Path, key: &'static str) -> Result<Vec<CertificateDer<'static>>, OriginTlsError> {
    let told = |why: &dyn fmt::Display| {
        OriginTlsError::of_file(key, path, format!("{why}; name a PEM file with certificates"))
    };
    let read = std::fs::read(path).map_err(|error| told(&error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    let found = found.map_err(|error| told(&error))?;
    if found.is_empty() { Err(told(&"it has no certificate")) } else { Ok(found) }
}

/// Says in a sentence why the origin's certificate is not believed.
fn explained(error: &io::Error, name: &str) -> io::Error {
    let Some(Error::InvalidCertificate(why)) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return io::Error::new(error.kind(), format!("the TLS handshake failed: {error}"));
    };
    let sentence = match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "is not valid yet".to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("is not for {name}; see server_name")
        }
        CertificateError::UnknownIssuer => "is of an authority that is not believed; see ca_file".to_owned(),
        CertificateError::BadSignature => {
            "is not signed by the authority that it names, or by an older key of it; see ca_file".to_owned()
        }
        CertificateError::Revoked => "was revoked".to_owned(),
        why => format!("can't be believed: {why}"),
    };
    io::Error::other(format!("its certificate {sentence}"))
}
