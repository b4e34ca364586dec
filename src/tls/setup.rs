//! Makes rustls's configuration of a server.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, RootCertStore, ServerConfig, SupportedCipherSuite};

use super::acme::ACME_TLS;
use super::config::{Config, MinVersion};
use super::error::TlsError;
use super::resolver::Shelf;
use super::tickets::Tickets;

/// The protocols that a client may choose by ALPN (RFC 7301), the preferred one first.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// The cipher that comes first. Larder chooses among those that a client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preferred {
    /// AES with keys of 128 bits, the cheapest one with processors that have instructions for it.
    Aes,
    /// `ChaCha20`, for clients without such instructions.
    ChaCha20,
}

impl Preferred {
    /// Returns the cipher for a client: one without instructions for AES has `ChaCha20` before the others.
    pub(super) fn by(hello: &ClientHello<'_>) -> Self {
        // Others may come before it that nobody knows (RFC 8701).
        let first = hello.cipher_suites().iter().find_map(|suite| kind(*suite));
        first.unwrap_or(Self::Aes)
    }
}

/// Returns the kind of a cipher that Larder knows.
fn kind(suite: CipherSuite) -> Option<Preferred> {
    match suite {
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(Preferred::ChaCha20),
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(Preferred::Aes),
        _ => None,
    }
}

/// Returns the provider with its ciphers in Larder's order.
pub(super) fn provider(preferred: Preferred) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let is_short = |suite: CipherSuite| suite.as_str().is_some_and(|name| name.contains("AES_128"));
    provider
        .cipher_suites
        .sort_by_key(|suite: &SupportedCipherSuite| (kind(suite.suite()) != Some(preferred), !is_short(suite.suite())));
    Arc::new(provider)
}

/// The sessions of a server.
#[derive(Clone)]
pub(super) enum Sessions {
    /// Clients may resume theirs with tickets.
    Tickets(Arc<Tickets>),
    /// Clients must show a certificate of these authorities. None is resumed: a resumed session would not check anew
    /// whether the certificate still holds.
    Certificates(RootCertStore),
}

/// The configurations for clients, by the cipher that they prefer.
pub(super) type Servers = [Arc<ServerConfig>; 2];

/// Makes the configurations for clients.
pub(super) fn servers(config: &Config, certificates: &Arc<Shelf>, sessions: &Sessions) -> Result<Servers, TlsError> {
    let of = |preferred| {
        Ok(Arc::new(server(config, &provider(preferred), Arc::clone(certificates) as _, sessions.clone())?))
    };
    Ok([of(Preferred::Aes)?, of(Preferred::ChaCha20)?])
}

fn server(
    config: &Config,
    provider: &Arc<CryptoProvider>,
    certificates: Arc<dyn ResolvesServerCert>,
    sessions: Sessions,
) -> Result<ServerConfig, TlsError> {
    let versions = match config.min_version {
        MinVersion::Tls12 => &[&TLS13, &TLS12][..],
        MinVersion::Tls13 => &[&TLS13],
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(versions);
    let builder = builder.map_err(|error| failed(&error))?;
    let mut server = match sessions {
        Sessions::Tickets(tickets) => {
            let mut server = builder.with_no_client_auth().with_cert_resolver(certificates);
            server.ticketer = tickets;
            server
        }
        Sessions::Certificates(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
            let verifier = verifier
                .map_err(|error| TlsError(format!("{}: it can't be used: {error}", config.client_ca.display())))?;
            let mut server = builder.with_client_cert_verifier(verifier).with_cert_resolver(certificates);
            server.send_tls13_tickets = 0;
            server
        }
    };
    server.ignore_client_order = true;
    server.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    // Tickets hold the sessions. What a worker remembered would be of no use to the others.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    // A request in early data could be sent again by anybody (RFC 8470).
    server.max_early_data_size = 0;
    Ok(server)
}

/// Makes the configuration for an ACME server that checks who answers for a name.
pub(super) fn challenge_server(
    provider: &Arc<CryptoProvider>,
    certificates: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider)).with_safe_default_protocol_versions();
    let mut server = builder.map_err(|error| failed(&error))?.with_no_client_auth().with_cert_resolver(certificates);
    server.alpn_protocols = vec![ACME_TLS.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

fn failed(error: &rustls::Error) -> TlsError {
    TlsError(format!("tls: it can't be set up: {error}"))
}
