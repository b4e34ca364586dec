//! Sends requests in tasks of their own where an address has only so much room (`upstream.max_requests`): a request counts
//! for as long as the application works on it.

use std::pin::Pin;
use std::sync::Arc;

use http::{Response, StatusCode};
use tokio::sync::oneshot;

use super::body::UpstreamBody;
use super::message::OriginRequest;
use super::pool::{Choice, Seat};
use super::request_body::RequestBody;
use super::{Fault, Upstream, UpstreamError};
use crate::base::Probe;

/// The result of sending a request.
pub(super) type Sent = Result<Response<UpstreamBody>, UpstreamError>;

/// The place of a request that is sent in a task of its own, and the client that waits for what comes of it.
pub(super) struct Apart {
    pub choice: Choice,
    pub seat: Seat,
    pub probe: Option<Probe>,
    pub client: Option<oneshot::Sender<Sent>>,
}

/// Tells the client of a request in a task of its own what came of it; returns that where there is none.
#[inline]
pub(super) fn tell(client: &mut Option<oneshot::Sender<Sent>>, sent: Sent) -> Sent {
    match client.take() {
        None => sent,
        Some(client) => {
            // It may have left. What it would have got is dropped then, with its connection and its place.
            let _ = client.send(sent);
            Err(UpstreamError::RequestBody(Fault::Broken))
        }
    }
}

/// Keeps the request's place until its response has ended: with the body, or with the tunnel.
#[inline]
pub(super) fn hold(response: &mut Response<UpstreamBody>, seat: Seat) {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        response.extensions_mut().insert(TunnelSeat { _seat: Arc::new(seat) });
    } else {
        response.body_mut().hold(seat);
    }
}

/// An extension of a response that changes protocols: the place of the tunnel among the requests under way.
#[derive(Clone, Debug)]
pub(crate) struct TunnelSeat {
    _seat: Arc<Seat>,
}

impl Upstream {
    /// Sends a request in a task of its own: where an address has only so much room, a request counts for as long as the
    /// application works on it, also once its client has left, or was told that it took too long.
    pub(super) fn send_apart<'a>(
        self: &'a Arc<Self>,
        request: &'a OriginRequest<'_>,
        body: RequestBody,
    ) -> Pin<Box<dyn Future<Output = Sent> + Send + 'a>> {
        Box::pin(async move {
            let choice = self.choice(request);
            // A client that leaves while it waits leaves the queue.
            let (seat, probe) = self.seat(request, &choice).await?;
            let (sender, receiver) = oneshot::channel();
            let apart = Apart { choice, seat, probe, client: Some(sender) };
            let (this, method, uri) = (Arc::clone(self), request.method.clone(), request.uri.clone());
            let (fields, informational) = ((request.fields)(), request.informational.cloned());
            let (errand, since, transfer) = (request.errand, request.since, *request.transfer);
            tokio::spawn(async move {
                let request = OriginRequest {
                    method: &method,
                    uri: &uri,
                    fields: &|| fields.clone(),
                    informational: informational.as_ref(),
                    errand,
                    since,
                    sticky: None,
                    is_sent: None,
                    transfer: &transfer,
                };
                this.send_from(&request, body, Some(apart)).await
            });
            receiver.await.unwrap_or(Err(UpstreamError::RequestBody(Fault::Broken)))
        })
    }
}
