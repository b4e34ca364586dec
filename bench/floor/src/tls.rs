//! Fixed responses (`pages`) from hyper and rustls on one thread, by HTTP/1.1 or HTTP/2 as ALPN has it. Listens on a free
//! port of 127.0.0.1 and prints the number. The arguments are the PEM files of the certificate and of its key.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

mod pages;

use pages::Pages;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn Error + Send + Sync>;

fn acceptor(chain: &str, key: &str) -> Result<TlsAcceptor, Failure> {
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut provider = aws_lc_rs::default_provider();
    // As all that it is beside.
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    let builder = ServerConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13])?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Sessions are in tickets, as Larder has them.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(pages: &'static Pages, acceptor: TlsAcceptor, stream: TcpStream) -> Result<(), Failure> {
    let stream = acceptor.accept(stream).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(async |request| Ok::<_, Infallible>(pages.answer(&request)));
    if is_http2 {
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await?;
    } else {
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    }
    Ok(())
}

async fn listen(acceptor: TlsAcceptor) -> Result<(), Failure> {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    // As Larder has it for the loopback: a congestion control that paces would be what is measured.
    let _ = socket2::SockRef::from(&listener).set_tcp_congestion(b"reno");
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // The load generator cuts its connections off; that is no one's mistake.
            let _ = serve(pages, acceptor, stream).await;
        });
    }
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(chain), Some(key)) = (arguments.next(), arguments.next()) else {
        return Err("the PEM files of a certificate and of its key are needed".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(listen(acceptor(&chain, &key)?))
}
