//! Requests that no stored response may answer: passed on, and what they changed is forgotten.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tracing::debug;

use super::client::{Client, informational};
use super::request::asked;
use super::{Proxy, tunnel};
use crate::fetch::{Fetch, Holdings, Order, clean_response};
use crate::proxy::target::{Target, origin_form};
use crate::respond::{Answer, ClientRequest, Refusal, ResponseBody, add_age, passed, unanswered};
use crate::rfc9111::cache_status::{CacheStatus, Fwd};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::{Exchange, NotStorable};
use crate::rfc9111::targeted::governing;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::{groups, invalidation};
use crate::upstream::{
    ClientBody, Errand, Fault, Informational, OriginRequest, RequestBody, UpstreamBody, UpstreamError,
};

/// How long an unsafe request is waited for after its client has left. It holds a connection to the
/// origin, and no one counts those.
const ABANDONED: Duration = Duration::from_secs(5);

/// Holds the reason for passing a request on: its like could not be stored.
#[derive(Clone, Copy)]
pub(super) struct Passed {
    pub(super) fwd: Fwd,
    /// Time at which it began.
    pub(super) now: Timestamp,
    /// True if the memory that its like is not stored lasts for a while yet.
    pub(super) is_noted: bool,
}

/// What an unsafe request was sent to.
struct Changed {
    scheme: &'static str,
    authority: String,
    key: CacheKey,
    path: String,
}

impl Proxy {
    /// Asks the origin for one client, on a key whose responses lately were not to be stored: nothing is
    /// made ready for keeping what most likely is not kept. What may be kept after all is. The request's
    /// target is in origin form.
    pub(super) async fn pass_on(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &Target<'_>,
        key: Option<&CacheKey>,
        request: &http::request::Parts,
        Passed { fwd, now, is_noted }: Passed,
    ) -> Answer {
        let fetcher = &self.fetcher;
        let position = fetcher.store.position();
        let version_vector = fetcher.store.purges().version_vector();
        let fields =
            || fetcher.origin.onward(caller.peer(), target.scheme, target.authority()).fields(&request.headers);
        let (method, uri) = (&request.method, &request.uri);
        let informational = informational(caller, request.version);
        let informational = informational.as_ref();
        let transfer = &target.rule.transfer;
        let sent = OriginRequest { method, uri, fields: &fields, informational, errand: Errand::Client, transfer };
        // Not by `Fetcher::send`: what most requests that pass here wait in is no deeper than need be.
        let mut response = match fetcher.origin.upstream.send(&sent, RequestBody::Empty).await {
            Ok(response) => response,
            Err(error) => return unanswered(&error, fwd),
        };
        clean_response(response.headers_mut(), &fetcher.clock);
        let exchange = Exchange {
            method,
            request: &request.headers,
            status: response.status(),
            response: response.headers(),
            request_time: now,
            // Seldom decides, and never for storing alone: `keep_or_pass` reads the clock.
            response_time: now,
        };
        // A part although the whole was asked for is the origin's word to this client, and no more.
        let why = match response.status() {
            StatusCode::PARTIAL_CONTENT => Some(NotStorable::Part),
            _ => fetcher.still_not_storable(key.unwrap_or(&target.key), &exchange, &target.rule.policy, is_noted),
        };
        if let Some(why) = why {
            let (status, response) = passed(response, fwd);
            return (status.not_stored(why), response);
        }
        let request = Arc::new(Request::from_parts(request.clone(), ()));
        let asked = asked(caller, target, &request, target.rule.directives(request.headers()), key.cloned());
        let order = Order::new(Arc::new(asked), Holdings::nothing(fwd), None);
        let fetched = Fetch::begun(fetcher, order, position, version_vector).keep_or_pass(response, now);
        self.answer_fetched(ClientRequest::of(&*request), fetched)
    }

    /// Sends a request on that no stored response may answer, and invalidates what it changed.
    pub(super) async fn forward(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &Target<'_>,
        parts: &http::request::Parts,
        body: ClientBody,
        fwd: Fwd,
    ) -> Answer {
        let (transfer, buffers) = (&target.rule.transfer, self.fetcher.origin.upstream.buffers());
        let mut body = match RequestBody::client(body, self.upload_limits, transfer) {
            Ok(body) => body,
            Err(fault) => return Refusal::Body(fault).answer(),
        };
        if matches!(body, RequestBody::Sending(_)) && transfer.buffer_request > 0 {
            if buffers.are_full() {
                return Refusal::Overloaded.answer();
            }
            // On the heap, and gone before the origin is asked.
            body = match Box::pin(body.take_in(transfer, buffers)).await {
                Ok(body) => body,
                Err(fault) => return Refusal::Body(fault).answer(),
            };
        }
        let (position, request_time) = (self.fetcher.store.position(), self.fetcher.clock.now());
        let onward = self.fetcher.origin.onward(caller.peer(), target.scheme, target.authority());
        let (uri, informational) = (origin_form(&parts.uri), informational(caller, parts.version));
        if invalidation::is_safe(&parts.method) {
            let fields = || onward.fields(&parts.headers);
            let (method, informational) = (&parts.method, informational.as_ref());
            let sent =
                OriginRequest { method, uri: &uri, fields: &fields, informational, errand: Errand::Client, transfer };
            return match self.fetcher.send(&sent, body).await {
                Ok(response) => passed(response, fwd),
                Err(error) => unanswered(&error, fwd),
            };
        }
        // On the heap: few requests are.
        let fields = onward.fields(&parts.headers);
        let (response, own) =
            match Box::pin(self.send_unsafe(target, parts, fields, body, informational, position)).await {
                Ok(sent) => sent,
                Err(error) => return unanswered(&error, fwd),
            };
        if let Some(own) = own
            && fwd == Fwd::Method
            && self.is_for_get(target, parts, &response)
        {
            let request = Arc::new(Request::from_parts(parts.clone(), ()));
            let asked = asked(caller, target, &request, target.rule.directives(request.headers()), None);
            let order = Order::new(Arc::new(asked), Holdings::nothing(fwd), None);
            // Its own invalidation among them.
            let version_vector = self.fetcher.store.purges().version_vector();
            if let Ok(tags) = order.tags_of(response.headers())
                && !self.fetcher.store.are_purged(&tags, position)
            {
                let fetched =
                    Fetch::begun(&self.fetcher, order, own, version_vector).keep_or_pass(response, request_time);
                return self.answer_fetched(ClientRequest::of(&*request), fetched);
            }
        }
        passed(response, fwd)
    }

    /// Sends an unsafe request on in a task of its own: what it changed is invalidated even if its
    /// client does not wait for the answer.
    async fn send_unsafe(
        self: &Arc<Self>,
        target: &Target<'_>,
        parts: &http::request::Parts,
        fields: HeaderMap,
        body: RequestBody,
        informational: Option<Informational>,
        position: u64,
    ) -> Result<(Response<UpstreamBody>, Option<u64>), UpstreamError> {
        let this = Arc::clone(self);
        let changed = Changed {
            scheme: target.scheme,
            authority: target.authority().to_owned(),
            key: target.key.clone(),
            path: parts.uri.path().to_owned(),
        };
        let (mut sender, receiver) = oneshot::channel();
        let (method, uri) = (parts.method.clone(), origin_form(&parts.uri).into_owned());
        let transfer = Arc::clone(&target.rule.transfer);
        self.fetcher.tasks.spawn(async move {
            let (fields, informational) = (|| fields.clone(), informational.as_ref());
            let (method, uri) = (&method, &uri);
            let (errand, transfer) = (Errand::Client, &*transfer);
            let request = OriginRequest { method, uri, fields: &fields, informational, errand, transfer };
            let is_abandoned = async {
                sender.closed().await;
                tokio::time::sleep(ABANDONED).await;
            };
            let answered = tokio::select! {
                answered = this.fetcher.send(&request, body) => answered,
                () = is_abandoned => {
                    // Nobody knows what came of it: the URL is not what it was, perhaps.
                    let (_, written) = this.invalidate(&changed, &HeaderMap::new(), position);
                    return written.await;
                }
            };
            let sent = match answered {
                Ok(response) if invalidation::is_non_error(response.status()) => {
                    let (own, written) = this.invalidate(&changed, response.headers(), position);
                    written.await;
                    Ok((response, own))
                }
                Ok(response) => Ok((response, None)),
                Err(error) => Err(error),
            };
            // A client that has left takes its own response with it.
            let _ = sender.send(sent);
        });
        receiver.await.unwrap_or(Err(UpstreamError::RequestBody(Fault::Broken)))
    }

    /// Whether the response to a POST may answer a later GET (RFC 9110 §9.3.3): it says for how long,
    /// and that it is what a GET would have got.
    fn is_for_get<B>(&self, target: &Target<'_>, request: &http::request::Parts, response: &Response<B>) -> bool {
        let (uri, fields) = (&request.uri, response.headers());
        request.method == Method::POST
            && response.status() == StatusCode::OK
            && governing(fields, &self.cache.targets, self.fetcher.clock.now()).states_lifetime(fields)
            && invalidation::answers_get(fields, target.scheme, target.authority(), uri.path(), uri.query())
    }

    /// RFC 9111 §4.4, RFC 9875 §3: what a successful unsafe request, sent at `position`, changed is no
    /// longer to be served. The position from which on a response for its own URI may be stored
    /// again, unless somebody else purged it meanwhile; and what is still to be written down.
    fn invalidate<'a>(
        &'a self,
        changed: &Changed,
        response: &HeaderMap,
        position: u64,
    ) -> (Option<u64>, impl Future<Output = ()> + use<'a>) {
        let tags: Vec<String> = groups::listed(response, &groups::CACHE_GROUP_INVALIDATION)
            .iter()
            .map(|group| groups::tag(&self.keys.prefix, changed.scheme, &changed.authority, group))
            .collect();
        let written = self.fetcher.store.invalidate_tags(tags);
        for named in invalidation::named_targets(response, changed.scheme, &changed.authority, &changed.path) {
            let key = self.keys.key(changed.scheme, &changed.authority, &named.path, named.query.as_deref());
            if key != changed.key {
                self.forget(&key);
            }
        }
        let own = self.fetcher.store.invalidate_by(&changed.key, position);
        self.fetcher.flights.detach(changed.key.hash());
        self.forget_searched(&changed.key);
        self.metrics.invalidations.add_one();
        (own, written)
    }

    fn forget(&self, key: &CacheKey) {
        self.fetcher.store.invalidate(key);
        self.fetcher.flights.detach(key.hash());
        self.forget_searched(key);
        self.metrics.invalidations.add_one();
    }

    /// Forgets what is stored for a URL together with others. To be done after the URL's own key is
    /// purged: what is learnt of its queries from then on was fetched before, and is not kept.
    pub(super) fn forget_searched(&self, key: &CacheKey) {
        if let Some(searched) = self.fetcher.memories.searches.key(key) {
            self.fetcher.store.forget(&searched);
            self.fetcher.flights.detach(searched.hash());
        }
    }

    /// Passes a request to change protocols on, and ties the two connections together.
    pub(super) async fn tunnel(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &Target<'_>,
        mut request: Request<ClientBody>,
    ) -> Answer {
        let client = caller.upgraded(&mut request);
        let (parts, body) = request.into_parts();
        let onward = self.fetcher.origin.onward(caller.peer(), target.scheme, target.authority());
        let mut fields = onward.fields(&parts.headers);
        if let Some(protocol) = parts.headers.get(header::UPGRADE) {
            fields.insert(header::UPGRADE, protocol.clone());
            let options = if fields.contains_key(header::TE) { "upgrade, te" } else { "upgrade" };
            fields.insert(header::CONNECTION, HeaderValue::from_static(options));
        }
        // Such a request has none.
        drop(body);
        let (method, uri) = (&parts.method, &*origin_form(&parts.uri));
        let fields = || fields.clone();
        let (errand, transfer) = (Errand::Client, &*target.rule.transfer);
        let request = OriginRequest { method, uri, fields: &fields, informational: None, errand, transfer };
        let mut response = match self.fetcher.origin.upstream.send(&request, RequestBody::Empty).await {
            Ok(response) => response,
            Err(error) => return unanswered(&error, Fwd::Bypass),
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            clean_response(response.headers_mut(), &self.fetcher.clock);
            return passed(response, Fwd::Bypass);
        }
        let origin = hyper::upgrade::on(&mut response);
        let limit = self.tunnel_timeout;
        self.tunnels.spawn(async move {
            let (Ok(client), Ok(origin)) = tokio::join!(client, origin) else { return };
            if let Err(error) = tunnel::tie(client, TokioIo::new(origin), limit).await {
                debug!("a tunnel ended: {error}");
            }
        });
        add_age(response.headers_mut());
        (CacheStatus::forward(Fwd::Bypass), response.map(|_: UpstreamBody| ResponseBody::empty()))
    }
}
