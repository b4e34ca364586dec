//! Fixed responses from hyper on one thread: nothing at /0, 1 KiB at /1k and below /page/, 10 KiB, 100 KiB
//! and 1 MiB at /10k, /100k and /1m, and a 304 to whoever has them. Listens on a free port of 127.0.0.1 and prints the number.
//!
//! With the port of an origin as its argument it passes every request on to that instead, over connections
//! that are kept: no timeouts, no second try, nothing looked at.

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ETAG: &str = "\"one-of-a-kind\"";

/// The bytes of each page, made once; to send them clones a handle.
struct Pages {
    sizes: [Bytes; 5],
}

impl Pages {
    fn new() -> Self {
        let page = |length: usize| (b'a'..=b'z').cycle().take(length).collect::<Vec<u8>>().into();
        Self { sizes: [1 << 10, 0, 10 << 10, 100 << 10, 1 << 20].map(page) }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let body = match request.uri().path() {
            "/1k" => self.sizes[0].clone(),
            "/0" => self.sizes[1].clone(),
            "/10k" => self.sizes[2].clone(),
            "/100k" => self.sizes[3].clone(),
            "/1m" => self.sizes[4].clone(),
            path if path.starts_with("/page/") => self.sizes[0].clone(),
            _ => return with_status(StatusCode::NOT_FOUND, HeaderMap::new()),
        };
        let mut fields = HeaderMap::new();
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        fields.insert(header::ETAG, HeaderValue::from_static(ETAG));
        if request.headers().get(header::IF_NONE_MATCH).is_some_and(|etag| etag == ETAG) {
            return with_status(StatusCode::NOT_MODIFIED, fields);
        }
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let mut response = Response::new(Full::new(body));
        *response.headers_mut() = fields;
        response
    }
}

fn with_status(status: StatusCode, fields: HeaderMap) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

type Failure = Box<dyn Error + Send + Sync>;

thread_local! {
    /// The connections to the origin that wait for a request.
    static IDLE: RefCell<Vec<SendRequest<Incoming>>> = const { RefCell::new(Vec::new()) };
}

async fn pass(port: u16, request: Request<Incoming>) -> Result<Response<Passed>, Failure> {
    let idle = IDLE.with_borrow_mut(Vec::pop);
    let mut sender = match idle {
        Some(sender) => sender,
        None => {
            let stream = TcpStream::connect(("127.0.0.1", port)).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            sender
        }
    };
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| Passed { body, sender: Some(sender) }))
}

/// What comes from the origin; at its end the connection waits again.
struct Passed {
    body: Incoming,
    sender: Option<SendRequest<Incoming>>,
}

impl Body for Passed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if self.body.is_end_stream()
            && let Some(sender) = self.sender.take()
        {
            IDLE.with_borrow_mut(|idle| idle.push(sender));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn serve(origin: Option<u16>) -> Result<(), Failure> {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        // The load generator cuts its connections off; that is no one's mistake.
        match origin {
            Some(port) => {
                let service = service_fn(move |request| pass(port, request));
                tokio::spawn(async move {
                    let _ = http1::Builder::new().serve_connection(stream, service).await;
                });
            }
            None => {
                let service = service_fn(async |request| Ok::<_, Infallible>(pages.answer(&request)));
                tokio::spawn(async move {
                    let _ = http1::Builder::new().serve_connection(stream, service).await;
                });
            }
        }
    }
}

fn main() -> Result<(), Failure> {
    let origin = std::env::args().nth(1).map(|port| port.parse()).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve(origin))
}
