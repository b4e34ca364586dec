//! The attempts to send one request: what is sent next, and whether a failed attempt is repeated.

use http::{Method, Request};

use super::UpstreamError;
use super::buffered::BufferedBody;
use super::message::OriginRequest;
use super::request_body::RequestBody;

/// Holds what the next attempt to send a request needs.
#[derive(Debug)]
pub(super) struct Attempts {
    /// True if the origin may get the request twice.
    pub is_repeatable: bool,
    /// True if the next attempt may use a connection that was used before.
    pub may_reuse: bool,
    /// The attempts that broke off when the origin may have got the request.
    broken: u8,
    /// The body, until the first attempt.
    body: Option<RequestBody>,
    /// A copy of the body for further attempts, if all of it is buffered.
    buffered: Option<Box<BufferedBody>>,
    /// The message of the last attempt, if none of it was sent.
    unsent: Option<Box<Request<RequestBody>>>,
}

/// The most attempts that break off so. A request that breaks whatever works on it must not go through all addresses.
const MOST_BROKEN: u8 = 3;

impl Attempts {
    /// Prepares the first attempt.
    pub(super) fn new(method: &Method, body: RequestBody) -> Self {
        // RFC 9110 §9.2.2: only an idempotent request may be repeated, and only when its body can be.
        let is_idempotent = method.is_idempotent();
        let buffered = if is_idempotent { body.buffered_whole().map(Box::new) } else { None };
        let is_repeatable = buffered.is_some() || (is_idempotent && matches!(body, RequestBody::Empty));
        Self { is_repeatable, may_reuse: true, broken: 0, body: Some(body), buffered, unsent: None }
    }

    /// Returns the message of the next attempt.
    pub(super) fn message(&mut self, request: &OriginRequest<'_>) -> Request<RequestBody> {
        match (self.unsent.take(), self.body.take()) {
            (Some(unsent), _) => *unsent,
            (None, Some(body)) => request.message(body),
            (None, None) => {
                request.message(self.buffered.clone().map_or(RequestBody::Empty, |buffered| (*buffered).into()))
            }
        }
    }

    /// Returns whether a request that failed with `error` may be sent to another address, and prepares it.
    pub(super) fn may_go_elsewhere(&mut self, error: &UpstreamError) -> bool {
        self.may_reuse = self.broken == 0;
        match error {
            // Nothing was sent.
            UpstreamError::Connect(_) | UpstreamError::ConnectTimeout => true,
            UpstreamError::Broken(_) | UpstreamError::Malformed(_) if self.unsent.is_some() => true,
            UpstreamError::Broken(_) | UpstreamError::Malformed(_) => self.is_repeatable && self.broken < MOST_BROKEN,
            // The address may still be at work on it, and what was too slow for one is for another.
            _ => false,
        }
    }

    /// Returns whether another attempt follows one that failed with `error`, and prepares it. `unsent` is the message,
    /// if none of it was sent. `is_reused` says that the connection had been used before.
    pub(super) fn may_retry(
        &mut self,
        unsent: Option<Request<RequestBody>>,
        is_reused: bool,
        error: &UpstreamError,
    ) -> bool {
        self.unsent = unsent.map(Box::new);
        self.broken += u8::from(self.unsent.is_none());
        if !is_reused {
            return false;
        }
        if self.unsent.is_some() {
            // The origin had closed the idle connection, and did not get the request.
            return true;
        }
        // The origin may have got the request. It is sent once more, on a new connection: a request that itself breaks
        // connections must not go through all the idle ones.
        self.may_reuse = false;
        self.is_repeatable && matches!(error, UpstreamError::Broken(_) | UpstreamError::Malformed(_))
    }
}
