//! The message of a request to the origin.

use std::sync::atomic::AtomicBool;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Uri, Version};
use hyper::body::Body;

use super::Transfer;
use super::informational::{Informational, relay};
use super::request_body::RequestBody;
use super::sticky::StickyCookies;
use crate::base::Stopwatch;

/// A request to the origin without its body: target in origin form, fields complete.
pub(crate) struct OriginRequest<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path and the query, or `*`.
    pub uri: &'a Uri,
    /// Makes the fields: with `Host`, without those of the client's connection. Called again for a second attempt.
    pub fields: &'a (dyn Fn() -> HeaderMap + Sync),
    /// Receives the informational responses.
    pub informational: Option<&'a Informational>,
    /// The purpose of the request.
    pub errand: Errand,
    /// The time since which its client has waited; `None`: it came just now.
    pub since: Option<Stopwatch>,
    /// The sticky cookies that its client sent.
    pub sticky: Option<&'a StickyCookies>,
    /// Set once the request has its place at an address: from then on it may be sent.
    pub is_sent: Option<&'a AtomicBool>,
    /// Limits for the bytes of the request and of its response.
    pub transfer: &'a Transfer,
}

impl OriginRequest<'_> {
    /// Returns the message with `body`.
    pub(super) fn message(&self, body: RequestBody) -> Request<RequestBody> {
        let mut message = Request::new(body);
        let framed = matches!(message.body(), RequestBody::Sending(_)).then(|| message.body().size_hint().exact());
        *message.method_mut() = self.method.clone();
        *message.uri_mut() = self.uri.clone();
        *message.headers_mut() = (self.fields)();
        *message.version_mut() = Version::HTTP_11;
        if let Some(len) = framed {
            self.frame(message.headers_mut(), len);
        }
        if let Some(sender) = self.informational.cloned() {
            hyper::ext::on_informational(&mut message, move |response| {
                relay(&sender, response.status(), response.headers());
            });
        }
        message
    }

    /// Sets the fields that frame the body. hyper sends no body with a GET whose length it does not know.
    fn frame(&self, fields: &mut HeaderMap, len: Option<u64>) {
        if let Some(len) = len {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
            // Trailers only follow chunks.
            fields.remove(header::TRAILER);
        } else {
            fields.remove(header::CONTENT_LENGTH);
            fields.insert(header::TRANSFER_ENCODING, const { HeaderValue::from_static("chunked") });
        }
        if !expects_content(self.method) && len != Some(0) {
            // Closes the connection: an application that expects no content would take it for the next request.
            let options = if fields.contains_key(header::TE) { "te, close" } else { "close" };
            fields.insert(header::CONNECTION, HeaderValue::from_static(options));
        }
    }
}

/// Returns whether applications read the content of a request with such a method. Content with another method has no
/// defined meaning (RFC 9110 §9.3.1, §9.3.5, §9.3.7), and many applications leave it unread. An application that does
/// not know QUERY (RFC 10008) may do so too, but answers with an error: that ends the connection as well.
pub(super) fn expects_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH | Method::QUERY)
}

/// The purpose of a request. Decides whether it is sent to an origin that is known to be down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Answers a client for which there is no stored response.
    #[default]
    Client,
    /// Answers a client that can be given a stale response instead.
    StandIn,
    /// Refreshes a stored response; no client waits.
    Background,
}
