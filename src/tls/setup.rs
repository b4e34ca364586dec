//! Makes rustls's configuration of a server.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use super::acme::ACME_TLS;
use super::config::{Config, MinVersion};
use super::error::TlsError;
use super::tickets::Tickets;

/// The protocols that a client may choose by ALPN (RFC 7301), the preferred one first.
const PROTOCOLS: [&[u8]; 3] = [b"h2", b"http/1.1", b"http/1.0"];

/// The sessions of a server.
pub(super) enum Sessions {
    /// Clients may resume theirs with tickets.
    Tickets(Arc<Tickets>),
    /// Clients must show a certificate of these authorities. None is resumed: a resumed session would not check anew
    /// whether the certificate still holds.
    Certificates(RootCertStore),
}

/// Makes the configuration for clients.
pub(super) fn server(
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
