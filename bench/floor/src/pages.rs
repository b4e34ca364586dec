//! The responses of the floors: nothing at /0, 1 KiB at /1k and below /page/, 10 KiB, 100 KiB and 1 MiB at /10k, /100k
//! and /1m, and a 304 to whoever has them.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};

const ETAG: &str = "\"one-of-a-kind\"";

/// The bytes of each page, made once; to send them clones a handle.
pub struct Pages {
    sizes: [Bytes; 5],
}

impl Pages {
    pub fn new() -> Self {
        let page = |length: usize| (b'a'..=b'z').cycle().take(length).collect::<Vec<u8>>().into();
        Self { sizes: [1 << 10, 0, 10 << 10, 100 << 10, 1 << 20].map(page) }
    }

    pub fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
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
