//! Answers a CA's challenge in the handshake (tls-alpn-01, RFC 8737): shows the certificate for that, and nothing else.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{Accepted, ClientHello};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::StartHandshake;

use super::acme::{ACME_TLS, Challenges};
use super::error::HandshakeError;
use crate::base::{HandshakeFailure, Metrics, Transport};

/// Returns whether a handshake is that of a CA: it offers this protocol and no other.
pub(super) fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_TLS) && offered.next().is_none())
}

/// Does the handshake and closes the connection. Returns why it goes on with nothing.
pub(super) async fn answer(
    challenges: &Challenges,
    hello: Accepted,
    transport: Transport,
    metrics: &Metrics,
) -> HandshakeError {
    let name = hello.client_hello().server_name().unwrap_or_default().to_owned();
    let Some(key) = challenges.certificate(&name).await else {
        let sentence =
            format!("a CA's challenge for {name}, which no Larder with this state has ordered a certificate for");
        return HandshakeError::new(HandshakeFailure::NoCertificate, sentence);
    };
    let config = match config(key) {
        Ok(config) => config,
        Err(error) => return HandshakeError::of_tls(&error),
    };
    match StartHandshake::from_parts(hello, transport).into_stream(Arc::new(config)).await {
        Ok(mut stream) => {
            let _ = stream.shutdown().await;
            metrics.acme.challenges.add_one();
            HandshakeError::new(HandshakeFailure::Challenge, format!("answered a CA's challenge for {name}"))
        }
        Err(error) => HandshakeError::of_io(&error),
    }
}

fn config(key: Arc<CertifiedKey>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}
