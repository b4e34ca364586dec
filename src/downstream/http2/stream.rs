//! A stream of a connection: a request, and the response to it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Body as _;

use super::Http2Client;
use super::outgoing::{Data, Outgoing, Stall};
use super::request::{Received, Upgrade, fit, has_no_content, received, unfit};
use super::tunnel::Tunnel;
use crate::base::Unparsed;
use crate::downstream::refusals::{no_tunnel, too_many_requests};
use crate::downstream::server::{Config, UnderWay, Worker};
use crate::proxy::Reply;
use crate::respond::{Piece, ResponseBody};
use crate::rfc9111::date;
use crate::rfc9111::present::Present;

/// A stream, as a future that ends when its response is handed over to the connection, or when the client has reset it.
pub(super) struct OpenStream<'a> {
    worker: &'a Worker,
    client: &'a Http2Client,
    number: u64,
    is_head: bool,
    respond: SendResponse<Data>,
    upgrade: Option<Upgrade>,
    state: State<'a>,
    _under_way: Option<UnderWay<'a>>,
}

enum State<'a> {
    Refused(Option<Response<ResponseBody>>),
    Answers(Reply<'a>),
    Sends(Sending),
}

/// A response whose body goes out.
struct Sending {
    send: SendStream<Data>,
    body: ResponseBody,
    outgoing: Arc<Outgoing>,
    /// The rest of the piece that goes out.
    piece: Option<Piece>,
    /// Runs while nothing of it goes out.
    stall: Stall,
}

/// The most bytes that a stream asks for while others wait for room as well.
const TURN: usize = 16 << 10;

impl<'a> OpenStream<'a> {
    /// Begins to answer a request.
    pub(super) fn begin(
        worker: &'a Worker,
        client: &'a Http2Client,
        request: Request<RecvStream>,
        respond: SendResponse<Data>,
    ) -> Self {
        let number = u64::from(respond.stream_id().as_u32());
        client.current.store(number, Ordering::Relaxed);
        let is_head = *request.method() == Method::HEAD;
        let under_way = worker.under_way.begin(worker.config.max_requests);
        let (mut upgrade, state) = if let Some(unfit) = unfit(&request, worker.config.max_headers) {
            worker.refusals.note(unfit.reason(), client.peer.ip, &[]);
            (None, State::Refused(Some(unfit.answer())))
        } else if under_way.is_none() {
            worker.refusals.note(Unparsed::TooManyRequests, client.peer.ip, &[]);
            (None, State::Refused(Some(too_many_requests())))
        } else {
            let Received { request, upgrade } = received(request, &client.outlet, number);
            let present = Present::of(request.headers());
            (upgrade, State::Answers(worker.proxy.handle(&worker.metrics, client, request, present)))
        };
        let upgrade = upgrade.take();
        Self { worker, client, number, is_head, respond, upgrade, state, _under_way: under_way }
    }

    /// Sends the informational responses that have come.
    fn send_informational(&mut self) {
        for (status, fields) in self.client.outlet.take(self.number) {
            let mut response = Response::new(());
            *response.status_mut() = status;
            *response.headers_mut() = fields;
            // They are optional; one that can't be sent any more is dropped.
            let _ = self.respond.send_informational(response);
        }
    }

    /// Sends the head of the response. Returns the rest of it; `None`: there is none.
    fn send_head(&mut self, response: Response<ResponseBody>) -> Option<Sending> {
        let (mut head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            self.send_tunnel(head);
            return None;
        }
        if self.upgrade.is_some() && head.status.is_success() {
            // RFC 8441 §5: the client would take it for an open tunnel.
            return self.send_head(no_tunnel());
        }
        let has_no_content = has_no_content(head.status);
        let length = body.size_hint().exact().filter(|_| !has_no_content && !self.is_head);
        fit(&mut head.headers, length);
        if !head.headers.contains_key(http::header::DATE) {
            head.headers.insert(http::header::DATE, date::format(self.worker.proxy.fetcher.clock.now()));
        }
        let is_end = self.is_head || has_no_content || body.is_end_stream();
        // Fails if the client has reset the stream.
        let send = self.respond.send_response(Response::from_parts(head, ()), is_end).ok()?;
        self.client.meter.answered();
        let outgoing = Arc::clone(&self.client.outgoing);
        (!is_end).then(|| Sending { send, body, outgoing, piece: None, stall: Stall::default() })
    }

    /// Hands the stream over to a tunnel (RFC 8441 §5: the response is 200 where HTTP/1.1 has 101).
    fn send_tunnel(&mut self, mut head: http::response::Parts) {
        let Some(Upgrade { receive, tunnel }) = self.upgrade.take() else {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
            return;
        };
        head.status = StatusCode::OK;
        fit(&mut head.headers, None);
        head.headers.remove(http::header::SEC_WEBSOCKET_ACCEPT);
        if let Ok(send) = self.respond.send_response(Response::from_parts(head, ()), false) {
            let _ = tunnel.send(Tunnel::new(receive, send, Arc::clone(&self.client.outgoing)));
        }
    }
}

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.client.outlet.close(self.number);
    }
}

impl Future for OpenStream<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.client.current.store(this.number, Ordering::Relaxed);
        loop {
            let response = match &mut this.state {
                State::Refused(response) => response.take(),
                State::Answers(reply) => match Pin::new(reply).poll(cx) {
                    Poll::Ready(response) => Some(response),
                    Poll::Pending => {
                        this.send_informational();
                        // A client that has reset the stream waits no more.
                        ready!(this.respond.poll_reset(cx)).ok();
                        return Poll::Ready(());
                    }
                },
                State::Sends(sending) => return sending.poll(cx, &this.worker.config),
            };
            let Some(response) = response else { return Poll::Ready(()) };
            match this.send_head(response) {
                Some(sending) => this.state = State::Sends(sending),
                None => return Poll::Ready(()),
            }
        }
    }
}

impl Sending {
    /// Sends what there is, as far as the client has room for it.
    fn poll(&mut self, cx: &mut Context<'_>, config: &Config) -> Poll<()> {
        loop {
            let Some(piece) = &mut self.piece else {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(piece) => self.piece = Some(piece).filter(Buf::has_remaining),
                        Err(frame) => {
                            let mut trailers = frame.into_trailers().unwrap_or_default();
                            fit(&mut trailers, None);
                            let _ = self.send.send_trailers(trailers);
                            return Poll::Ready(());
                        }
                    },
                    Poll::Ready(None) => {
                        let _ = self.send.send_data(Data::empty(), true);
                        return Poll::Ready(());
                    }
                    // A body that broke off must not look like one that ended.
                    Poll::Ready(Some(Err(_))) => {
                        self.send.send_reset(Reason::INTERNAL_ERROR);
                        return Poll::Ready(());
                    }
                    Poll::Pending => {
                        ready!(self.send.poll_reset(cx)).ok();
                        return Poll::Ready(());
                    }
                }
                continue;
            };
            if self.outgoing.poll_room(cx).is_pending() {
                if self.send.poll_reset(cx).is_pending() {
                    ready!(self.stall.poll(cx, &self.outgoing, config.body_timeout, u64::MAX));
                    self.send.send_reset(Reason::CANCEL);
                }
                return Poll::Ready(());
            }
            self.send.reserve_capacity(piece.remaining());
            let capacity = match self.send.capacity() {
                0 => {
                    self.send.reserve_capacity(piece.remaining().min(TURN));
                    match self.send.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(capacity))) => capacity,
                        Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                        Poll::Pending => {
                            let fair = 2 * TURN as u64 * u64::from(config.max_streams);
                            ready!(self.stall.poll(cx, &self.outgoing, config.body_timeout, fair));
                            self.send.send_reset(Reason::CANCEL);
                            return Poll::Ready(());
                        }
                    }
                }
                capacity => capacity,
            };
            self.stall.end();
            let taken = piece.remaining().min(capacity);
            let is_whole = taken == piece.remaining();
            let data = if is_whole {
                self.piece.take().map_or_else(Data::empty, |piece| self.outgoing.data(piece, taken))
            } else {
                let data = self.outgoing.data(piece.clone(), taken);
                piece.advance(taken);
                data
            };
            let is_end = is_whole && self.body.is_end_stream();
            if self.send.send_data(data, is_end).is_err() || is_end {
                return Poll::Ready(());
            }
        }
    }
}
