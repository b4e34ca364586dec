//! The handshake: from a connection to a stream of bytes that only its two ends can read.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::StartHandshake;

use super::acme::Challenges;
use super::challenge::{self, is_challenge};
use super::config::{Config, MinVersion, UnknownSni};
use super::error::{HandshakeError, TlsError};
use super::resolver::Shelf;
use super::{files, subject};
use crate::base::{HandshakeFailure, Metrics, Transport};

/// The protocols that a client may choose by ALPN (RFC 7301), the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The alert `unrecognized_name`, fatal, in a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The bytes that are read at once of a client's first message.
const FIRST_READ: usize = 2048;

/// Speaks TLS with clients. All workers share one.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(super) shelf: Arc<Shelf>,
    /// What answers the challenges of CAs, if certificates are got by ACME.
    pub(super) challenges: OnceLock<Arc<Challenges>>,
    server: Arc<ServerConfig>,
    unknown_sni: UnknownSni,
    timeout: Duration,
    metrics: Arc<Metrics>,
    /// True if the application is told the subject of the client's certificate.
    tells_subject: bool,
}

/// The protocol that a client has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1 or HTTP/1.0
    Http1,
    /// HTTP/2
    Http2,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The stream of what TLS carries.
    pub transport: Transport,
    /// The protocol that the client has chosen.
    pub protocol: Protocol,
    /// The subject of its certificate, if the application is told.
    pub subject: Option<HeaderValue>,
}

impl Tls {
    /// Reads all files, and checks them.
    pub(crate) fn open(config: &Config, metrics: Arc<Metrics>) -> Result<Arc<Self>, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificates = config.certificates.iter().map(|files| files.load(&provider)).collect::<Result<_, _>>()?;
        let shelf = Arc::new(Shelf::default());
        shelf.replace(certificates);
        let server = Arc::new(server_config(config, &provider, &shelf)?);
        Ok(Arc::new(Self {
            shelf,
            challenges: OnceLock::new(),
            server,
            unknown_sni: config.unknown_sni,
            timeout: config.handshake_timeout,
            metrics,
            tells_subject: config.client_subject_field.is_some(),
        }))
    }

    /// Does the handshake. A client that is too slow, or can't be talked to, gets an alert or a sentence, and an error is
    /// returned, which is counted already.
    pub(crate) async fn accept(&self, transport: Transport) -> Result<Accepted, HandshakeError> {
        let accepted = tokio::time::timeout(self.timeout, self.shake_hands(transport)).await;
        let accepted = accepted.unwrap_or_else(|_| {
            let sentence = "the handshake was not done within tls.handshake_timeout";
            Err(HandshakeError::new(HandshakeFailure::Timeout, sentence))
        });
        if let Err(error) = &accepted {
            self.metrics.tls.failed(error.why);
        }
        accepted
    }

    async fn shake_hands(&self, mut transport: Transport) -> Result<Accepted, HandshakeError> {
        let hello = self.hello(&mut transport).await?;
        if let Some(challenges) = self.challenges.get()
            && is_challenge(&hello.client_hello())
        {
            return Err(challenge::answer(challenges, hello, transport, &self.metrics).await);
        }
        let is_unknown = self.is_unknown(&hello.client_hello());
        if is_unknown && self.unknown_sni == UnknownSni::Refuse {
            let name = hello.client_hello().server_name().unwrap_or_default().to_owned();
            let _ = transport.write_all(&UNRECOGNIZED_NAME).await;
            let sentence =
                format!("there is no certificate for {name}, which the client asks for; see tls.unknown_sni");
            return Err(HandshakeError::new(HandshakeFailure::UnknownSni, sentence));
        }
        let start = StartHandshake::from_parts(hello, transport);
        let stream =
            start.into_stream(Arc::clone(&self.server)).await.map_err(|error| HandshakeError::of_io(&error))?;
        let (_, connection) = stream.get_ref();
        let protocol = match connection.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            Some(_) | None => Protocol::Http1,
        };
        let subject = if self.tells_subject {
            let certificate = connection.peer_certificates().and_then(|chain| chain.first());
            let subject = certificate.and_then(|certificate| subject::of(certificate));
            Some(subject.ok_or_else(|| {
                let sentence = "the client's certificate has no subject, or one that is too long for a field";
                HandshakeError::new(HandshakeFailure::ClientCertificate, sentence)
            })?)
        } else {
            None
        };
        Ok(Accepted { transport: Transport::Tls(Box::new(stream)), protocol, subject })
    }

    /// Reads the client's first message.
    async fn hello(&self, transport: &mut Transport) -> Result<rustls::server::Accepted, HandshakeError> {
        let mut acceptor = Acceptor::default();
        let mut buffer = [0; FIRST_READ];
        loop {
            let read = transport.read(&mut buffer).await.map_err(|error| HandshakeError::of_io(&error))?;
            if read == 0 {
                return Err(HandshakeError::of_io(&io::ErrorKind::UnexpectedEof.into()));
            }
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                acceptor.read_tls(&mut rest).map_err(|error| HandshakeError::of_io(&error))?;
            }
            match acceptor.accept() {
                Ok(Some(hello)) => return Ok(hello),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    let _ = alert.write_all(&mut bytes);
                    let _ = transport.write_all(&bytes).await;
                    return Err(HandshakeError::of_tls(&error));
                }
            }
        }
    }

    /// Returns whether the client asks for a name of which there is no certificate.
    fn is_unknown(&self, hello: &ClientHello<'_>) -> bool {
        hello.server_name().is_some_and(|name| !self.shelf.current().has(name))
    }
}

fn server_config(
    config: &Config,
    provider: &Arc<CryptoProvider>,
    shelf: &Arc<Shelf>,
) -> Result<ServerConfig, TlsError> {
    let versions = match config.min_version {
        MinVersion::Tls12 => &[&TLS13, &TLS12][..],
        MinVersion::Tls13 => &[&TLS13],
    };
    let failed = |error: rustls::Error| TlsError(format!("tls: it can't be set up: {error}"));
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider)).with_protocol_versions(versions);
    let builder = builder.map_err(failed)?;
    let mut server = if config.client_ca.as_os_str().is_empty() {
        let mut server = builder.with_no_client_auth().with_cert_resolver(Arc::clone(shelf) as _);
        server.ticketer = aws_lc_rs::Ticketer::new().map_err(failed)?;
        server
    } else {
        let roots = Arc::new(authorities(config)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
        let verifier =
            verifier.map_err(|error| TlsError(format!("{}: it can't be used: {error}", config.client_ca.display())))?;
        let mut server = builder.with_client_cert_verifier(verifier).with_cert_resolver(Arc::clone(shelf) as _);
        // A resumed session would not show its certificate again, which may have been revoked or have expired.
        server.send_tls13_tickets = 0;
        server
    };
    server.alpn_protocols = PROTOCOLS.iter().map(|protocol| protocol.to_vec()).collect();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.max_early_data_size = 0;
    Ok(server)
}

/// Reads the authorities that issue clients' certificates.
fn authorities(config: &Config) -> Result<RootCertStore, TlsError> {
    let path = &config.client_ca;
    let bytes = files::read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate =
            certificate.map_err(|error| TlsError(format!("{}: it is no sound PEM: {error}", path.display())))?;
        roots.add(certificate).map_err(|error| {
            TlsError(format!("{}: it has a certificate that can't be used: {error}", path.display()))
        })?;
    }
    if roots.is_empty() {
        return Err(TlsError(format!("{}: it has no certificate", path.display())));
    }
    Ok(roots)
}
