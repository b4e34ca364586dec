//! A client's connection of HTTP/1.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tracing::debug;

use super::client_io::{ClientIo, Patience};
use super::connection::Connection;
use super::outlet::{Open, Outlet};
use super::refusals::{Witness, conflicting_framing};
use super::server::{Audience, Connections, Worker};
use crate::base::{Transport, Unparsed};
use crate::proxy::{Client, Reply, Stream, Upgraded};
use crate::respond::ResponseBody;
use crate::rfc9111::present::Present;
use crate::upstream::forwarding::Peer;
use crate::upstream::{ClientBody, Informational};

/// Serves the requests of `peer` until its connection ends. `first` was read of it before.
pub(super) async fn serve(worker: &Worker, transport: Transport, first: Bytes, peer: Peer, connections: &Connections) {
    let connection = Connection::new();
    let patience = Patience {
        header: worker.config.header_timeout,
        idle: worker.config.idle_timeout,
        body: worker.config.body_timeout,
    };
    let witness = Witness { refusals: Arc::clone(&worker.refusals), peer: peer.ip };
    let io = ClientIo::new(transport, first, Arc::clone(&connection), patience, witness);
    let io = TokioIo::new(io);
    let client = Http1Client { peer, outlet: Arc::clone(connection.outlet()) };
    let service = service_fn(|request: Request<Incoming>| {
        let present = Present::of(request.headers());
        let conflict = connection.begin(&request, present);
        let open = client.outlet.open();
        let reply = if conflict {
            worker.refusals.note(Unparsed::Framing, client.peer.ip, &[]);
            None
        } else {
            let request = request.map(ClientBody::new);
            Some(match worker.audience {
                Audience::Clients => worker.proxy.handle(&worker.metrics, &client, request, present),
                Audience::Peers => worker.proxy.handle_peer(&worker.metrics, &client, request),
            })
        };
        Answering { connection: &connection, reply, _open: open }
    });
    let mut http = http1::Builder::new();
    http.max_header_size(worker.config.max_header_size)
        .max_headers(worker.config.max_headers)
        .max_buf_size((2 * worker.config.max_header_size).max(128 << 10));
    let mut serving = std::pin::pin!(http.serve_connection(io, service).with_upgrades());
    let mut ended = std::pin::pin!(connections.ended());
    let mut is_told = false;
    // Registers this task with `ended`, so that the end wakes it.
    let _ = std::future::poll_fn(|cx| Poll::Ready(ended.as_mut().poll(cx))).await;
    let outcome = std::future::poll_fn(|cx| {
        if !is_told && connections.are_ending() {
            is_told = true;
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    })
    .await;
    if let Err(error) = outcome {
        debug!("a client's connection ended: {error}");
    }
}

/// The client of a connection of HTTP/1.
struct Http1Client {
    peer: Peer,
    outlet: Arc<Outlet>,
}

impl Client for Http1Client {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn informational(&self) -> Informational {
        self.outlet.sender()
    }

    fn wake_on_informational(&self, waker: &Waker) {
        self.outlet.wake_on_informational(waker);
    }

    fn upgraded(&self, request: &mut Request<ClientBody>) -> Upgraded {
        let upgraded = hyper::upgrade::on(request);
        Box::pin(async move {
            let stream: Box<dyn Stream> = Box::new(TokioIo::new(upgraded.await.map_err(io::Error::other)?));
            Ok(stream)
        })
    }
}

/// The answer to a request, as a future. `reply` is `None` if the request's framing contradicts itself.
struct Answering<'a> {
    connection: &'a Arc<Connection>,
    reply: Option<Reply<'a>>,
    /// Lets informational responses out until the answer is there.
    _open: Open<'a>,
}

impl Future for Answering<'_> {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut response = match &mut this.reply {
            Some(reply) => ready!(Pin::new(reply).poll(cx)),
            None => conflicting_framing(),
        };
        this.connection.track(&mut response);
        Poll::Ready(Ok(response))
    }
}
