//! Makes rustls's configuration of a server.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, RootCertStore, ServerConfig};

use super::config::{Config, MinVersion};
use super::error::TlsError;
use super::tickets::Tickets;

/// The protocols that a client may choose by ALPN (RFC 7301), the preferred one first.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// The protocol of a check by an ACME server (RFC 8737).
pub(super) const CHALLENGE: &[u8] = b"acme-tls/1";

/// The sessions of a server.
#[derive(Clone)]
pub(super) enum Sessions {
    /// Clients may resume theirs with tickets.
    Tickets(Arc<Tickets>),
    /// Clients must show a certificate of these authorities. None is resumed: a resumed session would not check anew
    /// whether the certificate still holds.
    Certificates(RootCertStore),
}

/// The configurations for clients, which differ in the cipher that is preferred.
#[derive(Debug)]
pub(super) struct Servers {
    /// AES-128-GCM, whose handshake costs a server a sixth less than that of AES-256-GCM, with its SHA-384.
    aes: Arc<ServerConfig>,
    /// ChaCha20-Poly1305
    chacha: Arc<ServerConfig>,
}

impl Servers {
    pub(super) fn new(
        config: &Config,
        certificates: &Arc<dyn ResolvesServerCert>,
        sessions: &Sessions,
    ) -> Result<Self, TlsError> {
        let server = |preferred| {
            let provider = Arc::new(provider(preferred));
            server(config, &provider, Arc::clone(certificates), sessions.clone()).map(Arc::new)
        };
        Ok(Self { aes: server(Cipher::Aes128)?, chacha: server(Cipher::ChaCha20)? })
    }

    /// Returns the configuration for a client that offers these ciphers. One that puts `ChaCha20` first has no
    /// instructions for AES.
    pub(super) fn fit(&self, offered: &[CipherSuite]) -> Arc<ServerConfig> {
        let first = offered.iter().find_map(|suite| cipher(*suite));
        Arc::clone(if first == Some(Cipher::ChaCha20) { &self.chacha } else { &self.aes })
    }
}

/// A cipher, in the order of what each costs with instructions for AES.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cipher {
    Aes128,
    Aes256,
    ChaCha20,
}

/// Returns the cipher of a suite; `None`: none that Larder knows.
fn cipher(suite: CipherSuite) -> Option<Cipher> {
    Some(match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Cipher::Aes128,
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Cipher::Aes256,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Cipher::ChaCha20,
        _ => return None,
    })
}

/// Makes a provider that prefers one cipher.
fn provider(preferred: Cipher) -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let cipher = cipher(suite.suite());
        (cipher != Some(preferred), cipher.is_none(), cipher)
    });
    provider
}

/// Makes the configuration for clients.
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
    // The client's is heeded where it matters to it.
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
    server.alpn_protocols = vec![CHALLENGE.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

fn failed(error: &rustls::Error) -> TlsError {
    TlsError(format!("tls: it can't be set up: {error}"))
}
