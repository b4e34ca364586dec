//! Passes on requests that no stored response may answer, and invalidates what unsafe ones change.

use crate::proxy::rules::Resolved;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tracing::debug;

use super::client::{Client, informational};
use super::share::asked;
use super::{Proxy, tunnel};
use crate::fetch::{Fetch, Holdings, Order, clean_response};
use crate::proxy::target::{RequestTarget, origin_form};
use crate::respond::{Answer, ClientRequest, Refusal, ResponseBody, add_age, options, passed, unanswered};
use crate::rfc9111::cache_status::{CacheStatus, Fwd};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::{Exchange, NotStorable};
use crate::rfc9111::targeted::governing;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::{groups, invalidation};
use crate::upstream::{
    ClientBody, Errand, Fault, Informational, OriginRequest, RequestBody, StickyCookies, TunnelSeat, UpstreamBody,
    UpstreamError,
};

/// The time for which the answer to an unsafe request is awaited after its client has left. Such a request holds a
/// connection to the origin that no limit counts.
const ABANDONED: Duration = Duration::from_secs(5);

/// The circumstances in which hit-for-miss passes a request on.
#[derive(Clone, Copy)]
pub(super) struct Passed {
    pub(super) fwd: Fwd,
    /// The time at which it was passed on.
    pub(super) now: Timestamp,
    /// True if hit-for-miss remembers the reason for a while yet, and need not be told again.
    pub(super) is_noted: bool,
}

/// The target of an unsafe request.
struct Changed {
    scheme: &'static str,
    authority: String,
    key: CacheKey,
    path: String,
}

impl Proxy {
    /// Asks the origin for one client, where responses to requests that ask alike lately could not be stored. Prepares
    /// nothing for storing, but stores the response after all if that is allowed. The request's target is in origin
    /// form.
    pub(super) async fn pass_on(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &RequestTarget<'_>,
        key: Option<&CacheKey>,
        request: &http::request::Parts,
        Passed { fwd, now, is_noted }: Passed,
    ) -> Answer {
        let fetcher = &self.fetcher;
        let position = fetcher.store.position();
        let version_vector = fetcher.store.purges().version_vector();
        let origin = fetcher.origins.named(target.rule.upstream);
        let fields = || origin.onward(caller.peer(), target.scheme, target.authority()).fields(&request.headers);
        let (method, uri) = (target.method(&request.method), &request.uri);
        let informational = informational(caller, request.version);
        let informational = informational.as_ref();
        let transfer = &target.rule.transfer;
        let (errand, since, sticky, is_sent) = (Errand::Client, None, request.extensions.get(), None);
        let fields = &fields;
        let sent = OriginRequest { method, uri, fields, informational, errand, since, sticky, is_sent, transfer };
        // Calls the origin directly rather than by `Fetcher::send`: most requests passed on wait here, and each layer
        // makes their future larger.
        let body = target.content.as_ref().map_or(RequestBody::Empty, RequestBody::from);
        let mut response = match origin.upstream.send(&sent, body).await {
            Ok(response) => response,
            Err(error) => return unanswered(&error, fwd),
        };
        clean_response(response.headers_mut(), &fetcher.clock);
        let exchange = Exchange {
            method: &request.method,
            request: &request.headers,
            status: response.status(),
            response: response.headers(),
            request_time: now,
            // Close enough for this check. `keep_or_pass` reads the clock before it stores.
            response_time: now,
        };
        // A part that was not asked for is passed to this client. It says nothing of what others would get.
        let why = match response.status() {
            StatusCode::PARTIAL_CONTENT => Some(NotStorable::Part),
            _ => fetcher.still_not_storable(key.unwrap_or(&target.key), &exchange, target.policy(), is_noted),
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

    /// Sends on a request that no stored response may answer, and invalidates what it changes.
    pub(super) async fn forward(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &RequestTarget<'_>,
        parts: &http::request::Parts,
        body: RequestBody,
        fwd: Fwd,
    ) -> Answer {
        let transfer = &target.rule.transfer;
        let (position, request_time) = (self.fetcher.store.position(), self.fetcher.clock.now());
        let onward =
            self.fetcher.origins.named(target.rule.upstream).onward(caller.peer(), target.scheme, target.authority());
        let (uri, informational) = (origin_form(&parts.uri), informational(caller, parts.version));
        if invalidation::is_safe(&parts.method) {
            let fields = || onward.fields(&parts.headers);
            let (method, informational) = (&parts.method, informational.as_ref());
            let (uri, fields, errand, since) = (&*uri, &fields, Errand::Client, None);
            let (sticky, is_sent) = (parts.extensions.get(), None);
            let sent = OriginRequest { method, uri, fields, informational, errand, since, sticky, is_sent, transfer };
            return match self.fetcher.send(target.rule.upstream, &sent, body).await {
                Ok(response) => passed(response, fwd),
                Err(error) => unanswered(&error, fwd),
            };
        }
        // Boxed: few requests are unsafe.
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
            // The purges known now include the request's own invalidation.
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

    /// Makes the body of the request to the origin. Takes it in first where the rule has requests buffered.
    pub(super) async fn body_for_origin(&self, body: ClientBody, rule: &Resolved) -> Result<RequestBody, Refusal> {
        let transfer = &rule.transfer;
        let buffers = self.fetcher.origins.named(rule.upstream).upstream.buffers();
        let body = RequestBody::client(body, self.upload_limits, transfer).map_err(Refusal::Body)?;
        if !matches!(body, RequestBody::Sending(_)) || transfer.buffer_request == 0 {
            return Ok(body);
        }
        if buffers.are_full() {
            return Err(Refusal::Overloaded);
        }
        // Boxed: few requests come here, and the box is gone before the origin is asked.
        Box::pin(body.take_in(transfer, buffers)).await.map_err(Refusal::Body)
    }

    /// Sends an unsafe request in a task of its own, so that what it changes is invalidated even if its client leaves.
    async fn send_unsafe(
        self: &Arc<Self>,
        target: &RequestTarget<'_>,
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
        let (transfer, upstream) = (Arc::clone(&target.rule.transfer), target.rule.upstream);
        let sticky: Option<StickyCookies> = parts.extensions.get().cloned();
        self.fetcher.tasks.spawn(async move {
            let (fields, informational) = (|| fields.clone(), informational.as_ref());
            let (method, uri) = (&method, &uri);
            let place = AtomicBool::new(false);
            let (fields, errand, since) = (&fields, Errand::Client, None);
            let (sticky, is_sent, transfer) = (sticky.as_ref(), Some(&place), &*transfer);
            let request =
                OriginRequest { method, uri, fields, informational, errand, since, sticky, is_sent, transfer };
            let is_abandoned = async {
                sender.closed().await;
                // One that waits for room leaves the queue with its client.
                if place.load(Ordering::Relaxed) {
                    tokio::time::sleep(ABANDONED).await;
                }
            };
            let answered = tokio::select! {
                answered = this.fetcher.send(upstream, &request, body) => answered,
                () = is_abandoned => {
                    if !place.load(Ordering::Relaxed) {
                        return;
                    }
                    // The request may have been carried out or not, so its target is invalidated.
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
            // The client may have left; nobody needs its response then.
            let _ = sender.send(sent);
        });
        receiver.await.unwrap_or(Err(UpstreamError::RequestBody(Fault::Broken)))
    }

    /// Returns whether the response to a POST may answer a later GET (RFC 9110 §9.3.3): it states a lifetime, and that
    /// it is what a GET would get. Where GET has another rule, it may go to another upstream, or may not be stored.
    fn is_for_get<B>(
        &self,
        target: &RequestTarget<'_>,
        request: &http::request::Parts,
        response: &Response<B>,
    ) -> bool {
        let (uri, fields) = (&request.uri, response.headers());
        request.method == Method::POST
            && response.status() == StatusCode::OK
            && self.keys.has_rule_of_get(target, uri.path())
            && governing(fields, &self.cache.targets, self.fetcher.clock.now()).states_lifetime(fields)
            && invalidation::answers_get(fields, target.scheme, target.authority(), uri.path(), uri.query())
    }

    /// RFC 9111 §4.4, RFC 9875 §3: invalidates what a successful unsafe request, sent at `position`, changed.
    ///
    /// Returns the position from which on a response for its own URI may be stored again, unless somebody else purged
    /// it meanwhile; and a future that ends when the invalidation is recorded.
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
        let tags_written = self.fetcher.store.invalidate_tags(tags);
        let mut awaited = None;
        for named in invalidation::named_targets(response, changed.scheme, &changed.authority, &changed.path) {
            let key = self.keys.key(changed.scheme, &changed.authority, &named.path, named.query.as_deref());
            if key != changed.key {
                awaited = awaited.max(self.forget(&key));
            }
        }
        let (own, of_own) = self.fetcher.store.invalidate_by(&changed.key, position);
        let awaited = awaited.max(of_own);
        self.fetcher.flights.detach(changed.key.hash());
        self.forget_searched(&changed.key);
        self.metrics.invalidations.add_one();
        let written = async move {
            tags_written.await;
            self.fetcher.store.deletions_written(awaited).await;
        };
        (own, written)
    }

    /// Removes everything stored for a key. Returns what [`Store::invalidate`](crate::store::Store::invalidate) does.
    fn forget(&self, key: &CacheKey) -> Option<u64> {
        let awaited = self.fetcher.store.invalidate(key);
        self.fetcher.flights.detach(key.hash());
        self.forget_searched(key);
        self.metrics.invalidations.add_one();
        awaited
    }

    /// Forgets the response that is stored for a URL and for other queries of its path. Call it after the URL's own
    /// key is purged: a variance learnt from then on comes of an earlier fetch, and its response is not kept.
    pub(super) fn forget_searched(&self, key: &CacheKey) {
        if let Some(searched) = self.fetcher.memories.searches.key(key) {
            self.fetcher.store.forget(&searched);
            self.fetcher.flights.detach(searched.hash());
        }
    }

    /// Passes on a request to change protocols, and ties the two connections together.
    pub(super) async fn tunnel(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &RequestTarget<'_>,
        mut request: Request<ClientBody>,
    ) -> Answer {
        let client = caller.upgraded(&mut request);
        let (parts, body) = request.into_parts();
        let onward =
            self.fetcher.origins.named(target.rule.upstream).onward(caller.peer(), target.scheme, target.authority());
        let mut fields = onward.fields(&parts.headers);
        if let Some(protocol) = parts.headers.get(header::UPGRADE) {
            fields.insert(header::UPGRADE, protocol.clone());
            let options = if fields.contains_key(header::TE) { "upgrade, te" } else { "upgrade" };
            fields.insert(header::CONNECTION, HeaderValue::from_static(options));
        }
        // A request to change protocols has no body.
        drop(body);
        let (method, uri) = (&parts.method, &*origin_form(&parts.uri));
        let fields = || fields.clone();
        let (fields, informational, errand, since) = (&fields, None, Errand::Client, None);
        let (sticky, is_sent, transfer) = (parts.extensions.get(), None, &*target.rule.transfer);
        let request = OriginRequest { method, uri, fields, informational, errand, since, sticky, is_sent, transfer };
        let mut response =
            match self.fetcher.origins.named(target.rule.upstream).upstream.send(&request, RequestBody::Empty).await {
                Ok(response) => response,
                Err(error) => return unanswered(&error, Fwd::Bypass),
            };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            clean_response(response.headers_mut(), &self.fetcher.clock);
            return passed(response, Fwd::Bypass);
        }
        let origin = hyper::upgrade::on(&mut response);
        let seat: Option<TunnelSeat> = response.extensions_mut().remove();
        let limit = self.tunnel_timeout;
        // A tunnel ends with the certificate of its client, too.
        let lasts = caller.peer().lasts(self.fetcher.clock.now()).unwrap_or(Duration::MAX);
        self.tunnels.spawn(async move {
            let _seat = seat;
            let (Ok(client), Ok(origin)) = tokio::join!(client, origin) else { return };
            let tied = tunnel::tie(client, TokioIo::new(origin), limit);
            match tokio::time::timeout(lasts, tied).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("a tunnel ended: {error}"),
                Err(_) => debug!("a tunnel ended with the certificate of its client"),
            }
        });
        add_age(response.headers_mut());
        (CacheStatus::forward(Fwd::Bypass), response.map(|_: UpstreamBody| ResponseBody::empty()))
    }
}

/// RFC 9110 §7.6.2: answers an OPTIONS request that may be forwarded no further; otherwise takes one from its
/// `Max-Forwards`.
pub(super) fn max_forwards(request: &mut HeaderMap) -> Option<Answer> {
    let left = request.get(header::MAX_FORWARDS)?.to_str().ok()?.parse::<u64>().ok()?;
    match left.checked_sub(1) {
        Some(left) => {
            request.insert(header::MAX_FORWARDS, HeaderValue::from(left));
            None
        }
        None => Some(options()),
    }
}
