//! The access log: one line a request, written when its response has ended.

use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use tracing::info;

use crate::body::ResponseBody;
use crate::clock::Stopwatch;
use crate::forwarding::Peer;
use crate::rfc9111::cache_status::CacheStatus;

/// A line that is being put together.
#[derive(Debug)]
pub struct Line {
    client: String,
    method: Method,
    uri: Uri,
    host: String,
    watch: Stopwatch,
}

impl Line {
    /// Notes who asked for what.
    pub fn begin(peer: &Peer, request: &Request<Incoming>) -> Self {
        let host = request
            .headers()
            .get(http::header::HOST)
            .map_or_else(String::new, |host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        Self {
            client: peer.ip.map_or_else(|| "unix".to_owned(), |ip| ip.to_string()),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host,
            watch: Stopwatch::start(),
        }
    }

    /// Has the line written once the response has been sent, or given up.
    pub fn finish(self, response: Response<ResponseBody>, status: &CacheStatus) -> Response<ResponseBody> {
        let code = response.status().as_u16();
        let cache_status = status.to_value(None);
        response.map(|body| {
            body.on_end(move |bytes| {
                info!(
                    target: "larder::access",
                    client = self.client,
                    method = %self.method,
                    host = self.host,
                    uri = %self.uri,
                    status = code,
                    bytes,
                    duration_ms = u64::try_from(self.watch.elapsed().as_millis()).unwrap_or(u64::MAX),
                    cache_status = cache_status.to_str().unwrap_or_default(),
                    "request"
                );
            })
        })
    }
}
