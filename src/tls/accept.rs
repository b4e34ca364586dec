//! The handshake: from a connection to a stream of bytes that only its two ends can read.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use http::HeaderValue;
use rustls::server::{Accepted as Hello, Acceptor};
use rustls::{HandshakeKind, ServerConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::StartHandshake;
use tracing::{debug, info};

use super::certificate::Facts;
use super::challenge::is_challenge;
use super::config::UnknownSni;
use super::error::HandshakeError;
use super::server::Tls;
use super::setup;
use super::subject;
use crate::base::{Handshake, HandshakeFailure, Sni, Transport};
use crate::rfc9111::timestamp::Timestamp;

/// Fatal alerts in records of their own, before there are keys.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
const INTERNAL_ERROR: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];

/// The first byte of a TLS record with a handshake message.
const HANDSHAKE: u8 = 22;

/// The place of the version in a client's first message, behind the heads of record and message, and TLS 1.2 there. A
/// client of TLS 1.3 says so elsewhere, and 1.2 here (RFC 8446 §4.1.2).
const VERSION: std::ops::Range<usize> = 9..11;
const TLS12: &[u8] = &[3, 3];

/// The bytes that are read at once of a client's first message. Most clients send fewer, those with post-quantum keys a
/// little more.
const FIRST_READ: usize = 2048;

/// The longest time to tell a client of plain HTTP what is wrong.
const FAREWELL: Duration = Duration::from_secs(1);

const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nAge: 0\r\nCache-Status: larder; detail=plain-http\r\nContent-Length: 35\r\n\r\nthis port speaks TLS: use https://\n";

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
    /// The end of the client's certificate; `None`: it showed none.
    pub valid_until: Option<Timestamp>,
}

impl Tls {
    /// Does the handshake with a client at `peer`. One that is too slow, or can't be talked to, gets an alert or a
    /// sentence. The error is counted, and logged once a minute for each reason.
    pub(crate) async fn accept(&self, transport: Transport, peer: Option<IpAddr>) -> Result<Accepted, HandshakeError> {
        // It is in a box since it is large, and the task of the connection lives on.
        let handshake = Box::pin(self.shake_hands(transport, peer));
        let done = tokio::time::timeout(self.config.handshake_timeout, handshake).await;
        let done = done.unwrap_or_else(|_| {
            let sentence = "the handshake was not done within tls.handshake_timeout";
            Err(HandshakeError::new(HandshakeFailure::Timeout, sentence))
        });
        if let Err(error) = &done {
            self.note(error, peer);
        }
        done
    }

    /// Counts a handshake that failed, and logs one a minute for each reason.
    fn note(&self, HandshakeError { why, sentence }: &HandshakeError, peer: Option<IpAddr>) {
        self.metrics.tls.failed(*why);
        let peer = peer.map_or_else(|| "unix".to_owned(), |ip| ip.to_canonical().to_string());
        if !why.is_told() {
            debug!(peer, reason = why.as_str(), "{sentence}");
            return;
        }
        let Some(turn) = self.told.turn(*why, self.clock.now().as_millis()) else { return };
        info!(peer, reason = why.as_str(), "a TLS handshake failed: {sentence}{}", turn.in_words());
    }

    async fn shake_hands(&self, mut transport: Transport, peer: Option<IpAddr>) -> Result<Accepted, HandshakeError> {
        let hello = self.hello(&mut transport).await?;
        if let Some(challenges) = self.challenges.get()
            && is_challenge(&hello.client_hello())
        {
            return Err(self.answer_challenge(challenges, peer, hello, transport).await);
        }
        self.check_name(&hello, &mut transport).await?;
        let server = self.server(setup::Preferred::by(&hello.client_hello()));
        let start = StartHandshake::from_parts(hello, transport);
        let stream = start.into_stream(server).await.map_err(|error| HandshakeError::of_io(&error))?;
        let (_, connection) = stream.get_ref();
        self.metrics.tls.done(Handshake {
            is_tls13: connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3),
            is_resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        });
        let protocol = match connection.alpn_protocol() {
            Some(b"h2") => Protocol::Http2,
            Some(_) | None => Protocol::Http1,
        };
        let subject = self.config.client_subject_field.as_ref().map(|_| subject_of(connection)).transpose()?;
        // One that can't be read is over at once.
        let until = |der: &_| Facts::of(der).map_or(Timestamp::default(), |facts| facts.not_after);
        let valid_until = connection.peer_certificates().and_then(<[_]>::first).map(|certificate| until(certificate));
        Ok(Accepted { transport: Transport::Tls(Box::new(stream)), protocol, subject, valid_until })
    }

    /// Reads the client's first message.
    async fn hello(&self, transport: &mut Transport) -> Result<Hello, HandshakeError> {
        let mut acceptor = Acceptor::default();
        let mut buffer = [0; FIRST_READ];
        let mut is_first = true;
        let mut is_old = false;
        loop {
            let read = match transport.read(&mut buffer).await {
                Ok(read) => read,
                // A check whether the port is open may close by a reset.
                Err(error) if is_first && error.kind() == io::ErrorKind::ConnectionReset => 0,
                Err(error) => return Err(HandshakeError::of_io(&error)),
            };
            let mut rest = &buffer[..read];
            if std::mem::take(&mut is_first) {
                match rest.first() {
                    None => return Err(HandshakeError::new(HandshakeFailure::Unused, "the client sent nothing")),
                    Some(&HANDSHAKE) => is_old = rest.get(VERSION).is_some_and(|version| version < TLS12),
                    Some(_) => return Err(Self::refuse_other(transport, rest).await),
                }
            }
            if rest.is_empty() {
                return Err(HandshakeError::of_io(&io::ErrorKind::UnexpectedEof.into()));
            }
            while !rest.is_empty() {
                acceptor.read_tls(&mut rest).map_err(|error| HandshakeError::of_io(&error))?;
            }
            match acceptor.accept() {
                Ok(Some(hello)) => return Ok(hello),
                Ok(None) => {}
                Err(_) if is_old => {
                    let _ = transport.write_all(&PROTOCOL_VERSION).await;
                    return Err(HandshakeError::too_old());
                }
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    let _ = alert.write_all(&mut bytes);
                    let _ = transport.write_all(&bytes).await;
                    return Err(HandshakeError::of_tls(&error));
                }
            }
        }
    }

    /// Answers a client whose first bytes are not those of TLS.
    async fn refuse_other(transport: &mut Transport, begin: &[u8]) -> HandshakeError {
        // A method is a word of capitals in practice, with a space behind it (RFC 9112 §3).
        let method = begin.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        let is_http = method >= 3 && begin.get(method).is_none_or(|byte| *byte == b' ');
        if !is_http {
            return HandshakeError::new(HandshakeFailure::NotTls, "what the client sent is not TLS");
        }
        let farewell = async {
            transport.write_all(PLAIN_HTTP).await?;
            transport.shutdown().await?;
            // Closing with unread bytes would reset the connection before the client has read the answer.
            let mut sink = [0; FIRST_READ];
            for _ in 0..64 {
                if transport.read(&mut sink).await? == 0 {
                    break;
                }
            }
            Ok::<(), io::Error>(())
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        HandshakeError::new(HandshakeFailure::PlainHttp, "the client speaks HTTP without TLS to a port for https")
    }

    /// Counts the name that a client asks for, and refuses the client if there is no certificate for it.
    async fn check_name(&self, hello: &Hello, transport: &mut Transport) -> Result<(), HandshakeError> {
        let certificates = self.shelf.current();
        let hello = hello.client_hello();
        let name = hello.server_name();
        let sni = match name {
            None => Sni::None,
            Some(name) if certificates.has(name) => Sni::Known,
            Some(_) => Sni::Unknown,
        };
        self.metrics.tls.asked_for(sni);
        let refusal = if certificates.all().is_empty() {
            let sentence = "there is no certificate yet: none has been issued";
            Some((INTERNAL_ERROR, HandshakeError::new(HandshakeFailure::NoCertificate, sentence)))
        } else if sni == Sni::Unknown && self.config.unknown_sni == UnknownSni::Refuse {
            let name = name.unwrap_or_default();
            let sentence = format!("there is no certificate for {name}, which the client asks for (tls.unknown_sni)");
            Some((UNRECOGNIZED_NAME, HandshakeError::new(HandshakeFailure::UnknownSni, sentence)))
        } else {
            None
        };
        let Some((alert, error)) = refusal else { return Ok(()) };
        let _ = transport.write_all(&alert).await;
        Err(error)
    }
}

/// Returns the subject of the client's certificate.
fn subject_of(connection: &ServerConnection) -> Result<HeaderValue, HandshakeError> {
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    certificate.and_then(|certificate| subject::of(certificate)).ok_or_else(|| {
        let sentence = "the client's certificate has no subject, or one that is too long for a field";
        HandshakeError::new(HandshakeFailure::ClientCertificate, sentence)
    })
}
