//! Answers a CA's challenge in the handshake (tls-alpn-01, RFC 8737): shows the certificate for that, and nothing else.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::server::{Accepted, ClientHello};
use rustls::sign::SingleCertAndKey;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::StartHandshake;

use super::acme::{ACME_TLS, Challenges};
use super::error::HandshakeError;
use super::server::Tls;
use super::setup;
use crate::base::{HandshakeFailure, Transport};

/// Returns whether a handshake is that of a CA: it offers this protocol and no other.
pub(super) fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_TLS) && offered.next().is_none())
}

impl Tls {
    /// Does the handshake and closes the connection. Returns why nothing goes on.
    pub(super) async fn answer_challenge(
        &self,
        challenges: &Challenges,
        peer: Option<IpAddr>,
        hello: Accepted,
        transport: Transport,
    ) -> HandshakeError {
        let name = hello.client_hello().server_name().unwrap_or_default().to_owned();
        let Some(key) = challenges.certificate(peer, &name).await else {
            let sentence = format!("a CA checks who answers for {name}, and no Larder with this state has asked it to");
            return HandshakeError::new(HandshakeFailure::NoCertificate, sentence);
        };
        let server = match setup::challenge_server(&self.provider, Arc::new(SingleCertAndKey::from(key))) {
            Ok(server) => server,
            Err(error) => return HandshakeError::new(HandshakeFailure::NoCertificate, error.to_string()),
        };
        match StartHandshake::from_parts(hello, transport).into_stream(Arc::new(server)).await {
            Ok(mut stream) => {
                let _ = stream.shutdown().await;
                self.metrics.acme.challenges.add_one();
                HandshakeError::new(HandshakeFailure::Challenge, "a CA has checked who answers for a name")
            }
            Err(error) => HandshakeError::of_io(&error),
        }
    }
}
