//! The admin listener: health, readiness, counters, and purges. Never on the public listeners.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::proxy::{Proxy, PurgeError, Question, What};
use crate::server::{self, Listen, Sockets};
use crate::store::index::Index;
use crate::telemetry::Gauge;
use crate::units::parse_duration;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the operator connects; `None`: nowhere.
    pub listen: Option<Listen>,
    /// Who has it is let in; empty: everyone who can connect.
    pub token: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: Some(Listen::Tcp("127.0.0.1:9090".into())), token: String::new() }
    }
}

/// The longest that a purge may have its answer delayed.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The largest request body that is read.
const MAX_BODY: usize = 64 << 10;

type Reply = Response<Full<Bytes>>;

/// The admin listener.
#[derive(Debug)]
pub struct Admin {
    /// What is administered.
    pub proxy: Arc<Proxy>,
    /// See [`Config::token`].
    pub token: String,
    /// Cancelled when Larder stops.
    pub stop: CancellationToken,
}

/// `POST /purge`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeRequest {
    url: Option<String>,
    prefix: Option<String>,
    tag: Option<String>,
    all: Option<bool>,
    soft: Option<bool>,
}

/// `POST /explain`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainRequest {
    url: Option<String>,
    method: Option<String>,
    #[serde(default)]
    fields: Vec<String>,
}

impl Admin {
    /// Binds the listener, and says where that is.
    pub fn bind(listen: &Listen) -> io::Result<(Sockets, Listen)> {
        let (mut sockets, mut bound) = server::bind(std::slice::from_ref(listen), 1)?;
        match (sockets.pop(), bound.pop()) {
            (Some(sockets), Some(bound)) => Ok((sockets, bound)),
            _ => Err(io::Error::other("no admin listener")),
        }
    }

    /// Serves on the current runtime until told to stop.
    pub async fn run(self, sockets: Sockets) -> io::Result<()> {
        let this = Arc::new(self);
        let (tcp, unix) = sockets.into_parts();
        for listener in tcp {
            tokio::spawn(Arc::clone(&this).accept_tcp(TcpListener::from_std(listener)?));
        }
        for listener in unix {
            tokio::spawn(Arc::clone(&this).accept_unix(UnixListener::from_std(listener)?));
        }
        this.stop.cancelled().await;
        Ok(())
    }

    async fn accept_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.serve(TokioIo::new(stream)),
                Err(error) => server::rest_after(&error).await,
            }
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.serve(TokioIo::new(stream)),
                Err(error) => server::rest_after(&error).await,
            }
        }
    }

    fn serve<S>(self: &Arc<Self>, io: TokioIo<S>)
    where
        S: Unpin + Send + 'static,
        TokioIo<S>: hyper::rt::Read + hyper::rt::Write,
    {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let service = service_fn(|request| async { Ok::<_, Infallible>(this.answer(request).await) });
            if let Err(error) = http1::Builder::new().serve_connection(io, service).await {
                debug!("an admin connection ended: {error}");
            }
        });
    }

    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path.as_str() {
            // Orchestrators ask these without a token, and learn nothing else.
            "/healthz" if is_get => json_reply(StatusCode::OK, &json!({"status": "up"})),
            "/readyz" if is_get => self.ready().await,
            _ if !self.is_allowed(&request) => {
                let mut reply =
                    error(StatusCode::UNAUTHORIZED, "this needs the admin token: Authorization: Bearer <admin.token>");
                reply.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                reply
            }
            _ if request.method().as_str() == "PURGE" => self.purge_by_method(&request).await,
            "/metrics" if is_get => self.metrics(),
            "/purge" if *request.method() == Method::POST => self.purge(request).await,
            "/explain" if is_get || *request.method() == Method::POST => self.explain(request).await,
            "/healthz" | "/readyz" | "/metrics" | "/purge" | "/explain" => {
                error(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method")
            }
            _ => error(
                StatusCode::NOT_FOUND,
                "the admin listener has /healthz, /readyz, /metrics, /explain?url=… and POST /purge",
            ),
        }
    }

    fn is_allowed(&self, request: &Request<Incoming>) -> bool {
        if self.token.is_empty() {
            // Without a token a web page could ask through its visitor's browser, which says so.
            return !request.headers().contains_key(header::ORIGIN);
        }
        let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let (scheme, given) = given.split_at_checked(7).unwrap_or_default();
        let given = if scheme.eq_ignore_ascii_case(b"bearer ") { given } else { b"" };
        // In constant time, so that a token can't be guessed a byte at a time.
        let differing = given.iter().zip(self.token.as_bytes()).fold(0, |acc, (a, b)| acc | (a ^ b));
        given.len() == self.token.len() && differing == 0
    }

    async fn ready(&self) -> Reply {
        let fetcher = &self.proxy.fetcher;
        let origin = if fetcher.upstream.is_reachable().await { "reachable" } else { "unreachable" };
        let (objects, _) = fetcher.store.memory().usage();
        let can_serve = origin == "reachable" || objects > 0 || fetcher.store.durable().is_some();
        let status = if can_serve { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json_reply(status, &json!({"ready": can_serve, "origin": origin, "objects_in_memory": objects}))
    }

    fn metrics(&self) -> Reply {
        let fetcher = &self.proxy.fetcher;
        let (objects, bytes) = fetcher.store.memory().usage();
        let (queued, queued_bytes) =
            fetcher.store.durable().map_or((0, 0), crate::store::durable::Durable::queue_depth);
        let gauge = |name, help, value| Gauge { name, help, value };
        let index = |of: fn(&Index) -> u64| fetcher.store.durable().map_or(0, |durable| of(durable.index()));
        let text = self.proxy.metrics.render(&[
            gauge("larder_memory_objects", "Objects in the memory tier.", objects),
            gauge("larder_memory_bytes", "Bytes in the memory tier: bodies, fields, keys and bookkeeping.", bytes),
            gauge("larder_fill_bytes", "Bytes held by fetches under way.", fetcher.budget.used() as u64),
            gauge(
                "larder_held_bytes",
                "Those, and what clients of fetches that are done still read: what server.max_buffered is about.",
                fetcher.budget.held() as u64,
            ),
            gauge(
                "larder_buffered_bytes",
                "Bytes of uploads and of what is read ahead of clients, in memory.",
                fetcher.upstream.buffers().used() as u64,
            ),
            gauge("larder_spooled_bytes", "The same in temporary files.", fetcher.upstream.buffers().spools.used()),
            gauge(
                "larder_flights",
                "Fetches under way that can be shared.",
                self.proxy.fetcher.flights.under_way() as u64,
            ),
            gauge(
                "larder_origin_down",
                "Whether the origin is known to be down.",
                u64::from(fetcher.upstream.breaker().is_open()),
            ),
            gauge(
                "larder_durable_queue_objects",
                "Writes and deletions that the durable tier has yet to carry out.",
                queued,
            ),
            gauge(
                "larder_durable_uploads",
                "Bodies too large for memory that are written as they come in, now.",
                fetcher.store.durable().map_or(0, crate::store::durable::Durable::uploads),
            ),
            gauge("larder_durable_queue_bytes", "Bytes that those hold.", queued_bytes),
            gauge(
                "larder_durable_down",
                "Whether the durable tier is known to be down.",
                u64::from(fetcher.store.durable().is_some_and(crate::store::durable::Durable::is_down)),
            ),
            gauge("larder_index_keys", "Keys that the durable tier is known to hold something for.", index(Index::len)),
            gauge("larder_index_bytes", "Bytes of memory that the index of those takes.", index(Index::bytes)),
            gauge(
                "larder_index_loaded",
                "Whether the index is complete, so that a miss asks the bucket for nothing.",
                index(|index| u64::from(index.is_loaded())),
            ),
            gauge(
                "larder_index_listed",
                "Objects that the listing that fills the index has seen.",
                index(Index::listed),
            ),
            gauge(
                "larder_purge_position",
                "The number of the last purge that this process knows of, its own and others'.",
                fetcher.store.purges().position(),
            ),
            gauge("larder_connections", "Client connections open now.", self.proxy.metrics.open_connections()),
        ]);
        let mut reply = Response::new(Full::from(text));
        reply
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        reply
    }

    async fn purge(&self, request: Request<Incoming>) -> Reply {
        let wait = match wait_of(request.uri().query()) {
            Ok(wait) => wait,
            Err(sentence) => return error(StatusCode::BAD_REQUEST, &sentence),
        };
        let body = match Limited::new(request.into_body(), MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(_) => return error(StatusCode::PAYLOAD_TOO_LARGE, "a purge is at most 64 KiB of JSON"),
        };
        let asked: PurgeRequest = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(why) => {
                return error(
                    StatusCode::BAD_REQUEST,
                    &format!("a purge is JSON such as {{\"url\": \"http://host/path\"}}: {why}"),
                );
            }
        };
        let what = match &asked {
            PurgeRequest { url: Some(url), prefix: None, tag: None, all: None | Some(false), .. } => What::Url(url),
            PurgeRequest { url: None, prefix: Some(prefix), tag: None, all: None | Some(false), .. } => {
                What::Prefix(prefix)
            }
            PurgeRequest { url: None, prefix: None, tag: Some(tag), all: None | Some(false), .. } => What::Tag(tag),
            PurgeRequest { url: None, prefix: None, tag: None, all: Some(true), .. } => What::All,
            _ => {
                return error(
                    StatusCode::BAD_REQUEST,
                    "a purge has one of \"url\", \"prefix\", \"tag\" and \"all\": true",
                );
            }
        };
        self.carry_out(what, asked.soft.unwrap_or(false), wait).await
    }

    /// `GET /explain?url=…&header=Name:%20value`, or the same as JSON in a POST.
    async fn explain(&self, request: Request<Incoming>) -> Reply {
        let mut asked = ExplainRequest::default();
        for (name, value) in form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
            match &*name {
                "url" => asked.url = Some(value.into_owned()),
                "method" => asked.method = Some(value.into_owned()),
                "header" | "field" => asked.fields.push(value.into_owned()),
                _ => {
                    return error(
                        StatusCode::BAD_REQUEST,
                        "/explain takes url, method, and header (Name: value), the last repeatedly",
                    );
                }
            }
        }
        if *request.method() == Method::POST {
            asked = match Limited::new(request.into_body(), MAX_BODY).collect().await {
                Ok(body) => match serde_json::from_slice(&body.to_bytes()) {
                    Ok(asked) => asked,
                    Err(why) => {
                        let text = format!(
                            "a question is JSON such as {{\"url\": \"http://host/path\", \"fields\": [\"Accept: text/html\"]}}: {why}"
                        );
                        return error(StatusCode::BAD_REQUEST, &text);
                    }
                },
                Err(_) => return error(StatusCode::PAYLOAD_TOO_LARGE, "a question is at most 64 KiB of JSON"),
            };
        }
        let Some(url) = &asked.url else {
            return error(StatusCode::BAD_REQUEST, "which URL? /explain?url=http://host/path");
        };
        let method = asked.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
        let fields = match Question::fields(&asked.fields) {
            Ok(fields) => fields,
            Err(sentence) => return error(StatusCode::BAD_REQUEST, &sentence),
        };
        match self.proxy.explain(Question { url, method: &method, fields }).await {
            Ok(told) => json_reply(StatusCode::OK, &told),
            Err(sentence) => error(StatusCode::BAD_REQUEST, &sentence),
        }
    }

    /// `PURGE URL`, as other caches take it: the URL as the target, or a path and `Host`; with a star at its end,
    /// what begins so. A path is of both schemes.
    async fn purge_by_method(&self, request: &Request<Incoming>) -> Reply {
        let mut is_soft = false;
        for value in ["soft-purge", "fastly-soft-purge"].iter().flat_map(|name| request.headers().get_all(*name)) {
            match value.to_str().unwrap_or_default().to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" => is_soft = true,
                "0" | "false" | "no" => {}
                _ => return error(StatusCode::BAD_REQUEST, "Soft-Purge is 1 or 0"),
            }
        }
        let uri = request.uri();
        if uri.scheme().is_none() && !uri.path().starts_with('/') {
            return error(StatusCode::BAD_REQUEST, "PURGE takes a URL, or a path and Host; /* is everything of a host");
        }
        let urls = if uri.scheme().is_some() {
            vec![uri.to_string()]
        } else {
            let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            ["http", "https"].map(|scheme| format!("{scheme}://{host}{uri}")).to_vec()
        };
        let mut reply = error(StatusCode::BAD_REQUEST, "nothing to purge");
        for url in &urls {
            let what = match url.strip_suffix('*') {
                Some(prefix) => What::Prefix(prefix),
                None => What::Url(url),
            };
            reply = self.carry_out(what, is_soft, Duration::ZERO).await;
            if !reply.status().is_success() {
                return reply;
            }
        }
        if reply.status().is_success() && urls.len() > 1 {
            reply = json_reply(StatusCode::OK, &json!({"purged": {"urls": urls}, "soft": is_soft}));
        }
        reply
    }

    async fn carry_out(&self, what: What<'_>, is_soft: bool, wait: Duration) -> Reply {
        match self.proxy.purge(what, is_soft).await {
            Ok(()) => {
                tokio::time::sleep(wait).await;
                // Other processes look that often.
                let durable = self.proxy.fetcher.store.durable();
                let elsewhere = durable.map_or(0, |durable| durable.poll_interval().as_millis());
                json_reply(
                    StatusCode::OK,
                    &json!({"purged": what.to_json(), "soft": is_soft, "elsewhere_within_ms": u64::try_from(elsewhere).unwrap_or(0) }),
                )
            }
            Err(PurgeError::Unclear(sentence)) => error(StatusCode::BAD_REQUEST, &sentence),
            Err(PurgeError::NotRecorded(why)) => {
                warn!("a purge is not in the journal yet: {why}");
                let text = format!(
                    "purged here, and not yet where other processes see it: {why}; that is tried again until it succeeds, or this process ends"
                );
                error(StatusCode::BAD_GATEWAY, &text)
            }
        }
    }
}

/// `?wait=`: how long after it is recorded a purge is answered.
fn wait_of(query: Option<&str>) -> Result<Duration, String> {
    let Some(query) = query.filter(|query| !query.is_empty()) else { return Ok(Duration::ZERO) };
    let text = query.strip_prefix("wait=").ok_or_else(|| format!("\"{query}\": /purge takes ?wait=, and no more"))?;
    match parse_duration(text) {
        Some(wait) if wait <= MAX_WAIT => Ok(wait),
        Some(_) | None => Err(format!("wait={text}: write a duration of at most 60s, such as 3s or 500ms")),
    }
}

fn json_reply(status: StatusCode, value: &serde_json::Value) -> Reply {
    let mut reply = Response::new(Full::from(format!("{value}\n")));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

fn error(status: StatusCode, sentence: &str) -> Reply {
    json_reply(status, &json!({"error": sentence}))
}
