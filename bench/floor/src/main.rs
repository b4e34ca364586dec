//! Fixed responses from hyper on one thread: nothing at /0, 1 KiB at /1k and below /page/, 10 KiB, 100 KiB
//! and 1 MiB at /10k, /100k and /1m, and a 304 to whoever has them. Listens on a free port of 127.0.0.1 and prints the number.

use std::convert::Infallible;
use std::error::Error;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

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

async fn serve() -> Result<(), Box<dyn Error>> {
    let pages: &'static Pages = Box::leak(Box::new(Pages::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(async |request| Ok::<_, Infallible>(pages.answer(&request)));
            // The load generator cuts its connections off; that is no one's mistake.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(serve())
}
