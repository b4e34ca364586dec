//! `[tls]` and `[[tls.certificate]]`

use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;

use super::acme;

/// `[tls]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[[tls.certificate]]`: the certificates. The first is the default.
    pub certificates: Vec<CertificateFiles>,
    /// The oldest version that is spoken.
    pub min_version: MinVersion,
    /// The file of the authorities whose certificates clients must show; empty: clients need none.
    pub client_ca: PathBuf,
    /// The request field in which the application is told the subject of the client's certificate.
    pub client_subject_field: Option<HeaderName>,
    /// The longest time from the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// The answer to a client that asks for a name without a certificate.
    pub unknown_sni: UnknownSni,
    /// The file of the secret of session tickets; empty: each start has a new one.
    pub ticket_key: PathBuf,
    /// `[tls.acme]`
    pub acme: acme::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            min_version: MinVersion::Tls12,
            client_ca: PathBuf::new(),
            client_subject_field: None,
            handshake_timeout: Duration::from_secs(10),
            unknown_sni: UnknownSni::Default,
            ticket_key: PathBuf::new(),
            acme: acme::Config::default(),
        }
    }
}

/// `[[tls.certificate]]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The file of the certificate and those of its issuers, as PEM.
    pub chain: PathBuf,
    /// The file of its private key, as PEM.
    pub key: PathBuf,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2 (RFC 5246)
    Tls12,
    /// TLS 1.3 (RFC 8446)
    Tls13,
}

/// The answer to a client that asks for a name without a certificate (RFC 6066 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownSni {
    /// The alert `unrecognized_name`.
    Refuse,
    /// The default certificate.
    Default,
}
