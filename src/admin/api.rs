//! The admin listener: its connections, its paths, and their answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Collected, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::gate::Gate;
use crate::base::{Transport, Unparsed};
use crate::downstream::{
    ClientIo, Connection, Listen, ListenError, Patience, Refusals, ServerConfig, Sockets, Witness, bind,
    conflicting_framing, pause_after,
};
use crate::proxy::{Proxy, Question};
use crate::respond::ResponseBody;
use crate::rfc9111::present::Present;

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address that the operator connects to; `None`: no admin listener.
    pub listen: Option<Listen>,
    /// The token that lets requests in; empty: none is needed.
    pub token: String,
    /// The host names that it answers to besides `localhost`, in lower case.
    pub hosts: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: Some(Listen::Tcp("127.0.0.1:9090".into())), token: String::new(), hosts: Vec::new() }
    }
}

/// The mode of its unix socket's file: only the owner may connect.
const SOCKET_MODE: u32 = 0o600;

/// The most bytes of a request body that are read.
const MAX_BODY: usize = 64 << 10;

/// The most connections at once. Past it [`MAX_TURNED_AWAY`] more are served for a moment: health is told, and other
/// requests are answered that there are too many. Further ones are closed unanswered.
const MAX_CONNECTIONS: usize = 256;

/// The time limit of those further connections.
const MOMENT: Duration = Duration::from_millis(500);

/// Says which limit a connection counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crowd {
    Within,
    Past,
}

/// The most connections past [`MAX_CONNECTIONS`] that are answered.
const MAX_TURNED_AWAY: usize = 32;

pub(super) type AdminReply = Response<Full<Bytes>>;

/// The admin listener.
#[derive(Debug)]
pub(crate) struct Admin {
    /// The proxy that is administered.
    pub(super) proxy: Arc<Proxy>,
    gate: Gate,
    /// The limits of the public listeners, which hold for operators too.
    limits: Arc<ServerConfig>,
    refusals: Arc<Refusals>,
    /// Cancelled when Larder stops.
    stop: CancellationToken,
    connections: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
}

/// `POST /explain`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExplainRequest {
    url: Option<String>,
    method: Option<String>,
    #[serde(default)]
    fields: Vec<String>,
    /// The content of a QUERY.
    content: Option<String>,
}

impl Admin {
    /// Binds the listener. Returns its sockets, and its address with the port filled in.
    pub(crate) fn bind(listen: &Listen) -> Result<Option<(Sockets, Listen)>, ListenError> {
        let (mut sockets, mut bound) = bind("admin.listen", std::slice::from_ref(listen), 1, SOCKET_MODE)?;
        Ok(sockets.pop().zip(bound.pop()))
    }

    /// Makes a listener for `proxy` that ends when `stop` is cancelled.
    pub(crate) fn new(
        proxy: Arc<Proxy>,
        config: &Config,
        limits: Arc<ServerConfig>,
        refusals: Arc<Refusals>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            proxy,
            gate: Gate::new(config),
            limits,
            refusals,
            stop,
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            turned_away: Arc::new(Semaphore::new(MAX_TURNED_AWAY)),
        }
    }

    /// Serves on the current runtime until `stop` is cancelled.
    pub(crate) async fn run(self, sockets: Sockets) -> io::Result<()> {
        let this = Arc::new(self);
        let Sockets { tcp, unix, .. } = sockets;
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
                Ok((stream, from)) => self.serve(Transport::Tcp(stream), Some(from.ip())),
                Err(error) => pause_after(&error).await,
            }
        }
    }

    async fn accept_unix(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.serve(Transport::Unix(stream), None),
                Err(error) => pause_after(&error).await,
            }
        }
    }

    /// Serves a connection from `peer`; `None`: a unix socket.
    fn serve(self: &Arc<Self>, transport: Transport, peer: Option<IpAddr>) {
        let Ok(open) = Arc::clone(&self.connections).try_acquire_owned() else {
            self.refusals.note(Unparsed::TooManyConnections, peer, &[]);
            if let Ok(turned_away) = Arc::clone(&self.turned_away).try_acquire_owned() {
                self.spawn(transport, peer, Crowd::Past, turned_away);
            }
            return;
        };
        self.spawn(transport, peer, Crowd::Within, open);
    }

    fn spawn(self: &Arc<Self>, transport: Transport, peer: Option<IpAddr>, crowd: Crowd, permit: OwnedSemaphorePermit) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = this.serve_connection(transport, peer, crowd).await {
                debug!("an admin connection ended: {error}");
            }
            drop(permit);
        });
    }

    /// Serves a connection like a client's: with the same limits of time and size, and sentences for what can't be
    /// parsed.
    async fn serve_connection(&self, transport: Transport, peer: Option<IpAddr>, crowd: Crowd) -> hyper::Result<()> {
        let connection = Connection::new();
        let patience = match crowd {
            Crowd::Within => Patience {
                header: self.limits.header_timeout,
                idle: self.limits.idle_timeout,
                body: self.limits.body_timeout,
            },
            Crowd::Past => Patience { header: MOMENT, idle: MOMENT, body: MOMENT },
        };
        let witness = Witness { refusals: Arc::clone(&self.refusals), peer };
        let io = TokioIo::new(ClientIo::new(transport, Bytes::new(), Arc::clone(&connection), patience, witness));
        let service = service_fn(|request| {
            let is_framed_twice = connection.begin(&request, Present::of(request.headers()));
            let connection = &connection;
            async move {
                let mut response = if is_framed_twice {
                    self.refusals.note(Unparsed::Framing, peer, &[]);
                    conflicting_framing()
                } else {
                    let (head, body) = self.answer(request, peer.is_none(), crowd).await.into_parts();
                    let body = body.collect().await.map_or_else(|never| match never {}, Collected::to_bytes);
                    Response::from_parts(head, ResponseBody::whole(body))
                };
                connection.track(&mut response);
                Ok::<_, Infallible>(response)
            }
        });
        http1::Builder::new()
            .keep_alive(crowd == Crowd::Within)
            .max_header_size(self.limits.max_header_size)
            .max_headers(self.limits.max_headers)
            .serve_connection(io, service)
            .await
    }

    async fn answer(&self, request: Request<Incoming>, is_unix: bool, crowd: Crowd) -> AdminReply {
        let path = request.uri().path().to_owned();
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path.as_str() {
            // Orchestrators ask these without a token, and learn nothing else.
            "/healthz" if is_get => return json_reply(StatusCode::OK, &json!({"status": "up"})),
            "/readyz" if is_get => return self.ready().await,
            _ if crowd == Crowd::Past => {
                let mut reply = error(StatusCode::SERVICE_UNAVAILABLE, "too many connections are open here");
                reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                return reply;
            }
            _ => {}
        }
        if let Err(denied) = self.gate.admit(&request, is_unix) {
            let mut reply = error(denied.status, &denied.sentence);
            if denied.status == StatusCode::UNAUTHORIZED {
                reply.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            return reply;
        }
        match path.as_str() {
            _ if request.method().as_str() == "PURGE" => self.purge_by_method(&request).await,
            "/metrics" if is_get => self.metrics(),
            "/purge" if *request.method() == Method::POST => self.purge(request).await,
            "/explain" if is_get || *request.method() == Method::POST => self.explain(request).await,
            "/healthz" | "/readyz" | "/metrics" => not_allowed("GET, HEAD"),
            "/purge" => not_allowed("POST"),
            "/explain" => not_allowed("GET, HEAD, POST"),
            _ => error(
                StatusCode::NOT_FOUND,
                "the admin listener has /healthz, /readyz, /metrics, /explain?url=… and POST /purge",
            ),
        }
    }

    async fn ready(&self) -> AdminReply {
        let store = self.proxy.store();
        let upstreams = self.reachable().await;
        let reachable = upstreams.values().filter(|is_reachable| **is_reachable).count();
        let word = |is_reachable| if is_reachable { "reachable" } else { "unreachable" };
        let origin = if (1..upstreams.len()).contains(&reachable) { "partly" } else { word(reachable > 0) };
        let (objects, _) = store.memory().usage();
        if self.stop.is_cancelled() {
            return json_reply(StatusCode::SERVICE_UNAVAILABLE, &json!({"ready": false, "stopping": true}));
        }
        let can_serve = reachable > 0 || objects > 0 || store.durable().is_some();
        let status = if can_serve { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let durable = match store.durable() {
            None => "off",
            Some(durable) if durable.is_down() => "down",
            Some(_) => "up",
        };
        let mut told = json!({"ready": can_serve, "origin": origin, "durable": durable, "objects_in_memory": objects});
        if upstreams.len() > 1 {
            let upstreams = upstreams.into_iter().map(|(name, is_reachable)| (name, json!(word(is_reachable))));
            told["upstreams"] = upstreams.collect();
        }
        // Nobody but the CA may be needed for a certificate, and it comes only to where requests are sent: no reason not to
        // be ready.
        if let Some(acme) = &self.proxy.acme {
            let missing: Vec<String> = acme.missing().into_keys().collect();
            told["certificates"] = if missing.is_empty() { json!("issued") } else { json!({"waiting_for": missing}) };
        }
        json_reply(status, &told)
    }

    /// Returns which upstreams can be reached.
    async fn reachable(&self) -> BTreeMap<String, bool> {
        let mut asked = JoinSet::new();
        for (name, upstream) in self.proxy.upstreams() {
            let (name, upstream) = (name.to_owned(), Arc::clone(upstream));
            asked.spawn(async move { (name, upstream.is_reachable().await) });
        }
        asked.join_all().await.into_iter().collect()
    }

    /// Reads a request's body; an error is the answer to send. A body that states a length past the limit is not read
    /// at all.
    pub(super) async fn body(&self, request: Request<Incoming>) -> Result<Bytes, AdminReply> {
        let too_large = || error(StatusCode::PAYLOAD_TOO_LARGE, "this takes at most 64 KiB of JSON");
        if request.body().size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        let read = Limited::new(request.into_body(), MAX_BODY).collect();
        match tokio::time::timeout(self.limits.body_timeout, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(why)) if why.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(error(StatusCode::BAD_REQUEST, "the request's body broke off")),
            Err(_) => Err(ending(error(StatusCode::REQUEST_TIMEOUT, "the request's body did not arrive in time"))),
        }
    }

    /// `GET /explain?url=…&header=Name:%20value`, or the same as JSON in a POST.
    async fn explain(&self, request: Request<Incoming>) -> AdminReply {
        let mut asked = ExplainRequest::default();
        for (name, value) in form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
            match &*name {
                "url" => asked.url = Some(value.into_owned()),
                "method" => asked.method = Some(value.into_owned()),
                "content" => asked.content = Some(value.into_owned()),
                "header" | "field" => asked.fields.push(value.into_owned()),
                _ => {
                    return error(
                        StatusCode::BAD_REQUEST,
                        "/explain takes url, method, content, and header (Name: value), the last repeatedly",
                    );
                }
            }
        }
        if *request.method() == Method::POST {
            let body = match self.body(request).await {
                Ok(body) => body,
                Err(reply) => return reply,
            };
            asked = match serde_json::from_slice(&body) {
                Ok(asked) => asked,
                Err(why) => {
                    let text = format!(
                        "a question is JSON such as {{\"url\": \"http://host/path\", \"fields\": [\"Accept: text/html\"]}}: {why}"
                    );
                    return error(StatusCode::BAD_REQUEST, &text);
                }
            };
        }
        let Some(url) = &asked.url else {
            return error(StatusCode::BAD_REQUEST, "which URL? /explain?url=http://host/path");
        };
        let default = if asked.content.is_some() { "QUERY" } else { "GET" };
        let method = asked.method.as_deref().unwrap_or(default).to_ascii_uppercase();
        let content = asked.content.as_deref().unwrap_or_default().as_bytes();
        let fields = match Question::fields(&asked.fields) {
            Ok(fields) => fields,
            Err(sentence) => return error(StatusCode::BAD_REQUEST, &sentence),
        };
        match self.proxy.explain(Question { url, method: &method, fields, content }).await {
            Ok(told) => json_reply(StatusCode::OK, &told),
            Err(sentence) => error(StatusCode::BAD_REQUEST, &sentence),
        }
    }
}

pub(super) fn json_reply(status: StatusCode, value: &serde_json::Value) -> AdminReply {
    let mut reply = Response::new(Full::from(format!("{value}\n")));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

pub(super) fn error(status: StatusCode, sentence: &str) -> AdminReply {
    json_reply(status, &json!({"error": sentence}))
}

fn not_allowed(methods: &'static str) -> AdminReply {
    let mut reply = error(StatusCode::METHOD_NOT_ALLOWED, &format!("this path takes {methods}"));
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
    reply
}

/// Ends the connection with this answer.
fn ending(mut reply: AdminReply) -> AdminReply {
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}
