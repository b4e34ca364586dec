//! QUERY (RFC 10008): takes in the content, which is part of the key, and goes on as for a GET.
//!
//! From here on the request is one for the page of its URL and content: [`RequestTarget::content`] has the content, the
//! key has its digest, and preconditions, ranges, `Vary` and `Authorization` count as in a GET. Only the request to the
//! origin is a QUERY again (`fetch`).

use std::sync::Arc;

use http::header::{HeaderMap, UPGRADE};
use http::{Method, Request};

use super::Proxy;
use super::client::Client;
use super::reply::Step;
use super::target::RequestTarget;
use crate::rfc9111::cache_status::Fwd;
use crate::rfc9111::present::Present;
use crate::rfc9111::query::{ContentDigest, Metadata, metadata};
use crate::upstream::{ClientBody, Content};

/// The bytes of a content that are hashed before other requests get their turn.
const TURN: usize = 256 << 10;

impl Proxy {
    /// Answers a QUERY: by its content where that is known whole, else by the origin.
    #[cold]
    pub(super) fn query<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        mut target: RequestTarget<'a>,
        mut request: Request<ClientBody>,
        mut present: Present,
    ) -> Step<'a> {
        let limit = target.rule.transfer.buffer_request;
        let metadata = match keyed(request.headers(), present, limit) {
            Ok(metadata) => metadata,
            Err(fwd) => return self.pass(caller, target, request, fwd),
        };
        // It asks for no change of protocols, which a GET without content might do.
        if request.headers_mut().remove(UPGRADE).is_some() {
            present = Present::of(request.headers());
        }
        Step::Waits(Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match self.body_for_origin(body, target.rule).await {
                Ok(body) => body,
                Err(refusal) => return self.labelled(refusal.answer(), Some(&target)).taken().await,
            };
            let Some(content) = body.content(limit) else {
                return self.pass_body(caller, target, parts, body, Fwd::Request).taken().await;
            };
            drop(body);
            target.key = target.key.with_content(&digest(metadata, &content).await);
            target.content = Some(content);
            let mut request = Request::from_parts(parts, ClientBody::none());
            *request.method_mut() = Method::GET;
            self.answer(caller, target, request, present).taken().await
        }))
    }
}

/// Returns what the fields of a QUERY say of its content, to be part of the key; an error is the reason for passing it
/// on, whatever its content is. `limit` is the most bytes of a content that are taken in before the origin is asked.
pub(super) fn keyed(fields: &HeaderMap, present: Present, limit: u64) -> Result<Metadata, Fwd> {
    // RFC 9110 §13.1.1, §13.1.4: they are conditions on the origin's state.
    if present.has(Present::FOR_THE_ORIGIN) {
        return Err(Fwd::Request);
    }
    if limit == 0 {
        return Err(Fwd::Bypass);
    }
    metadata(fields).ok_or(Fwd::Request)
}

async fn digest(mut metadata: Metadata, content: &Content) -> ContentDigest {
    for piece in content.bytes().chunks(TURN) {
        metadata.add(piece);
        if piece.len() == TURN {
            tokio::task::yield_now().await;
        }
    }
    metadata.finish()
}
