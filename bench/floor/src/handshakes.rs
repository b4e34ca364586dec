//! One TLS 1.3 handshake after the other, each on a connection of its own, from a few threads. The arguments are the port
//! on 127.0.0.1, `full` or `resumed`, and for how many milliseconds. Prints how many were done, and how many of them
//! were resumed.
//!
//! The certificate and the signature are not checked: what is measured is the server. The key exchange is X25519, which
//! every server has, unless a fourth argument says `hybrid`: X25519MLKEM768.

#![allow(clippy::disallowed_methods, reason = "it measures time itself")]

use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, HandshakeKind, SignatureScheme, Stream};

type Failure = Box<dyn Error + Send + Sync>;

/// Enough that the server is never without one.
const THREADS: usize = 16;

const NAME: &str = "bench.example";

#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn config(is_resumed: bool, is_hybrid: bool) -> Result<ClientConfig, Failure> {
    let mut provider = aws_lc_rs::default_provider();
    let group = if is_hybrid { aws_lc_rs::kx_group::X25519MLKEM768 } else { aws_lc_rs::kx_group::X25519 };
    provider.kx_groups = vec![group];
    let provider = Arc::new(provider);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = if is_resumed { Resumption::in_memory_sessions(16) } else { Resumption::disabled() };
    Ok(config)
}

/// One handshake, and the end of the connection, up to which the tickets are read. Returns whether it was resumed.
fn shake_hands(config: &Arc<ClientConfig>, port: u16) -> Result<bool, Failure> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME)?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    tls.send_close_notify();
    let mut stream = Stream::new(&mut tls, &mut socket);
    stream.flush()?;
    let mut sink = [0; 1024];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => break,
            Ok(_) => {}
            // Not everybody says goodbye.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(tls.handshake_kind() == Some(HandshakeKind::Resumed))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, kind, millis, rest @ ..] = &*arguments else {
        return Err("needed: PORT full|resumed MILLISECONDS [hybrid]".into());
    };
    let port: u16 = port.parse()?;
    let is_resumed = kind == "resumed";
    let is_hybrid = rest.iter().any(|word| word == "hybrid");
    let (done, resumed) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + Duration::from_millis(millis.parse()?);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| -> Result<(), Failure> {
                    // A cache for each thread, so that each has tickets of its own.
                    let config = Arc::new(config(is_resumed, is_hybrid)?);
                    while Instant::now() < end {
                        let is_resumed = shake_hands(&config, port)?;
                        done.fetch_add(1, Ordering::Relaxed);
                        resumed.fetch_add(u64::from(is_resumed), Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    println!("{} {}", done.into_inner(), resumed.into_inner());
    Ok(())
}
