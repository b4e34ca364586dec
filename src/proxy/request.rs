//! The life of a request.
//!
//! 1. [`Proxy::handle`] removes what its sender may not say, and works out its target, key and rule.
//! 2. [`Proxy::answer`] passes on what no stored response may answer (`forward`), and takes in the content of a QUERY,
//!    which is part of its key (`query`).
//! 3. It looks in memory, and [`decide`](crate::fetch) decides on what it finds.
//! 4. It carries the decision out: answers from memory at once, refuses, or fetches (`share`), which asks the durable
//!    tier and the origin.
//! 5. [`Reply`] counts and logs the answer, which `label` has given its `Cache-Status`.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::HeaderMap;
use http::request::Parts;
use http::{Method, Request};
use tracing::field::Empty;
use tracing::{Span, debug_span};

use super::Proxy;
use super::access::AccessLine;
use super::background::is_due;
use super::client::{Client, informational};
use super::forward::{Passed, max_forwards};
use super::https::is_challenge;
use super::label::held_by;
use super::reply::{Reply, Step};
use super::share::asked;
use super::target::{RequestTarget, is_upgrade, shared_form};
use crate::base::WorkerMetrics;
use crate::base::log::cut;
use crate::entry::{StoredResponse, Who};
use crate::fetch::{
    Holdings, Inquiry, OnStored, Order, Recalled, Unshared, is_passed_on, with_nothing, with_stored, without_looking,
};
use crate::respond::{ClientRequest, Refusal, hit};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::fields;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::present::Present;
use crate::rfc9111::query::is_query;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::{FoundBody, Lookup};
use crate::upstream::forwarding::{Original, Peer};
use crate::upstream::{ClientBody, RequestBody, StickyCookies, forwarding};

impl Proxy {
    /// Begins to answer a request of `client`; `present` are its fields that matter.
    ///
    /// A hit is answered at once. What has to wait does so on the heap, so that hits do not carry its state.
    pub(crate) fn handle<'a>(
        self: &'a Arc<Self>,
        worker: &'a WorkerMetrics,
        client: &'a dyn Client,
        mut request: Request<ClientBody>,
        mut present: Present,
    ) -> Reply<'a> {
        // A field that the origin will not see must not select a stored response either.
        if present.has(Present::CONNECTION) {
            fields::remove_listed(request.headers_mut());
            present = Present::of(request.headers());
        }
        if present.has(Present::COOKIE) && !self.sticky_cookies.is_empty() {
            present = self.take_sticky_cookies(&mut request, present);
        }
        let original = if present.has(Present::CLAIM) || self.trust.has_fields() {
            let (received, now_present) = self.receive(client.peer(), &mut request);
            present = now_present;
            received
        } else {
            Original::of_peer(client.peer())
        };
        let access = if self.access_log { Some(self.begin_line(client.peer(), &request)) } else { None };
        if present.has(Present::VIA) && self.fetcher.origins.have_seen(request.headers()) {
            return Reply::new(worker, client, access, self.labelled(Refusal::Loop.answer(), None));
        }
        let step = match self.keys.target(&original, &request, present) {
            Ok(target) if self.acme.is_some() && is_challenge(&request) => {
                self.answer_challenge(client, target, request, present)
            }
            Ok(target) if target.scheme == "http" && self.https.redirect.is_some() && !is_challenge(&request) => {
                self.labelled(self.redirected(&target, request.uri()), Some(&target))
            }
            Ok(target) => self.answer(client, target, request, present),
            Err(refusal) => self.labelled(self.refused(refusal, original.scheme), None),
        };
        Reply::new(worker, client, access, step)
    }

    /// Answers a request from memory, or returns the step that waits for its answer (RFC 9111 §4).
    pub(super) fn answer<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: RequestTarget<'a>,
        request: Request<ClientBody>,
        present: Present,
    ) -> Step<'a> {
        if is_upgrade(&request, present) {
            let span = span_of(&request, &target);
            return Step::waits(span, async move {
                let mut answer = self.tunnel(caller, &target, request).await;
                self.label_answer(&mut answer, Some(&target));
                answer
            });
        }
        let (method, has_content) = (request.method(), !request.body().is_none());
        let inquiry = Inquiry { method, fields: request.headers(), present, has_content };
        if let Some(fwd) = without_looking(inquiry, target.rule.rule.bypass) {
            if fwd == Fwd::Method && is_query(method) {
                return self.query(caller, target, request, present);
            }
            return self.pass(caller, target, request, fwd);
        }
        let now = self.fetcher.clock.now();
        let (key, found) = self.look_up(&target, request.headers());
        let mut directives = CacheControl::default();
        if present.has(Present::DIRECTIVES) {
            directives = target.rule.directives(request.headers());
        }
        let recalled = match found {
            Lookup::Nothing => {
                let looked_up = key.as_deref().unwrap_or(&target.key);
                Some(self.fetcher.memories.hit_for_miss.look_at(looked_up.hash(), request.headers(), present, now))
            }
            Lookup::Found(_) | Lookup::OtherVariants(_) => None,
        };
        // Spares a look for a response that could not be stored lately.
        let may_be_at_hand = recalled.as_ref().is_none_or(|recalled| recalled.unshared != Some(Unshared::NotStorable));
        if may_be_at_hand
            && let Some(step) = self.answer_at_hand(&target, &request, inquiry, &directives, key.as_deref(), &found)
        {
            return step;
        }
        let (fwd, stored) = match found {
            Lookup::Found(stored) => match self.decide(&target, inquiry, &mut directives, &stored, now) {
                OnStored::Answer(_, background) => {
                    if is_due(background) {
                        self.validate_in_background(caller, &target, key, &request, directives, &stored);
                    }
                    return self.hit(ClientRequest::noted(&request, present), stored, Tier::Memory, now, &target);
                }
                OnStored::NotCached => return self.labelled(Refusal::OnlyIfCached.answer(), Some(&target)),
                OnStored::Fetch(fwd) => (fwd, Some(stored)),
            },
            Lookup::OtherVariants(record) => {
                for names in &record.sets {
                    self.fetcher.memories.hit_for_miss.divide(record.key.hash(), names, now);
                }
                (with_nothing(true), None)
            }
            Lookup::Nothing => (with_nothing(false), None),
        };
        self.fetch(caller, target, request, present, Missed { fwd, stored, key, directives, now, recalled })
    }

    /// Looks in memory. Returns what it finds, and the key that it was found under where the origin said that some
    /// differences between queries do not matter.
    pub(super) fn look_up(&self, target: &RequestTarget<'_>, request: &HeaderMap) -> (Option<Box<CacheKey>>, Lookup) {
        let store = &self.fetcher.store;
        let Some(searched) = self.fetcher.memories.searches.key(&target.key) else {
            return (None, store.lookup(&target.key, request));
        };
        match newer(store.lookup(&searched, request), store.lookup(&target.key, request)) {
            (Under::Own, found) => (None, found),
            (Under::Searched, found) => (Some(Box::new(searched)), found),
        }
    }

    /// Decides on a response that memory has for a request. Leaves of the request's `directives` those that count for
    /// that response.
    #[inline]
    pub(super) fn decide(
        &self,
        target: &RequestTarget<'_>,
        inquiry: Inquiry<'_>,
        directives: &mut CacheControl,
        stored: &StoredResponse,
        now: Timestamp,
    ) -> OnStored {
        let (rule, head) = (target.rule, &stored.head);
        if inquiry.present.has(Present::DIRECTIVES) {
            *directives = rule.request_directives.bounded(std::mem::take(directives), head.response_time(), now);
        }
        let failure = || self.fetcher.known_failure(rule.upstream, head, Who::of(inquiry.fields));
        with_stored(inquiry, directives, head, stored.len(), rule.rule.early_refresh, failure, now)
    }

    /// Answers from the durable tier what memory does not have, if that is possible without waiting. What else the tier has is
    /// for a fetch.
    #[inline]
    fn answer_at_hand<'a>(
        &self,
        target: &RequestTarget<'a>,
        request: &Request<ClientBody>,
        inquiry: Inquiry<'_>,
        directives: &CacheControl,
        key: Option<&CacheKey>,
        found: &Lookup,
    ) -> Option<Step<'a>> {
        let known = match found {
            Lookup::Found(_) => return None,
            Lookup::OtherVariants(record) => Some(&**record),
            Lookup::Nothing => None,
        };
        if key.is_some() {
            return None;
        }
        let mut directives = directives.clone();
        let now = self.fetcher.clock.now();
        let found = self.fetcher.store.look_at_hand(&target.key, request.headers(), target.policy(), known)?;
        let FoundBody::Whole(body) = found.body else { return None };
        let stored = Arc::new(StoredResponse::new(found.head, body));
        match self.decide(target, inquiry, &mut directives, &stored, now) {
            // Whoever validates shares that with others.
            OnStored::Answer(_, background) if is_due(background) => return None,
            OnStored::Answer(..) => {}
            OnStored::Fetch(_) | OnStored::NotCached => return None,
        }
        if stored.len() <= self.fetcher.limits.memory.max_object_size {
            self.fetcher.store.promote_at_hand(&stored, found.record);
        }
        let asked = ClientRequest::noted(request, inquiry.present);
        Some(self.hit(asked, stored, Tier::Durable, now, target))
    }

    #[inline]
    fn hit<'a>(
        &self,
        asked: ClientRequest<'_>,
        stored: Arc<StoredResponse>,
        tier: Tier,
        now: Timestamp,
        target: &RequestTarget<'_>,
    ) -> Step<'a> {
        match self.fetcher.limits.budget.reading(&stored) {
            None => Step::answered(hit(asked, stored, tier, now, self.label(target))),
            Some(reading) => Step::answered(held_by(hit(asked, stored, tier, now, self.label(target)), reading)),
        }
    }

    /// Passes on a request that no stored response may answer.
    pub(super) fn pass<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: RequestTarget<'a>,
        mut request: Request<ClientBody>,
        fwd: Fwd,
    ) -> Step<'a> {
        if *request.method() == Method::OPTIONS
            && let Some(answer) = max_forwards(request.headers_mut())
        {
            return self.labelled(answer, Some(&target));
        }
        let span = span_of(&request, &target);
        let (request, body) = request.into_parts();
        Step::waits(span, async move {
            let mut answer = match self.body_for_origin(body, target.rule).await {
                Ok(body) => self.forward(caller, &target, &request, body, fwd).await,
                Err(refusal) => refusal.answer(),
            };
            self.label_answer(&mut answer, Some(&target));
            answer
        })
    }

    /// Passes on a request whose body was taken in.
    pub(super) fn pass_body<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: RequestTarget<'a>,
        request: Parts,
        body: RequestBody,
        fwd: Fwd,
    ) -> Step<'a> {
        let request = Request::from_parts(request, ());
        let span = span_of(&request, &target);
        let (request, ()) = request.into_parts();
        Step::waits(span, async move {
            let mut answer = self.forward(caller, &target, &request, body, fwd).await;
            self.label_answer(&mut answer, Some(&target));
            answer
        })
    }

    /// Fetches for a request that memory does not answer.
    fn fetch<'a>(
        self: &'a Arc<Self>,
        caller: &'a dyn Client,
        target: RequestTarget<'a>,
        request: Request<ClientBody>,
        present: Present,
        missed: Missed,
    ) -> Step<'a> {
        if self.fetcher.limits.are_overloaded() {
            return self.labelled(Refusal::Overloaded.answer(), Some(&target));
        }
        let Missed { fwd, stored, key, directives, now, recalled } = missed;
        let Recalled { unshared, lasts, .. } = recalled.unwrap_or_else(|| {
            let looked_up = key.as_deref().unwrap_or(&target.key);
            self.fetcher.memories.hit_for_miss.look_at(looked_up.hash(), request.headers(), present, now)
        });
        let inquiry = Inquiry { method: request.method(), fields: request.headers(), present, has_content: false };
        let may_be_durable = || self.fetcher.store.may_be_durable(&target.key);
        let span = span_of(&request, &target);
        if is_passed_on(inquiry, &directives, unshared, stored.is_some(), may_be_durable) {
            let (mut request, _) = request.into_parts();
            if let Cow::Owned(asked) = shared_form(&request.uri, target.query) {
                request.uri = asked;
            }
            return Step::waits(span, async move {
                let since = Passed { fwd, now, is_noted: lasts };
                let mut answer = self.pass_on(caller, &target, key.as_deref(), &request, since).await;
                self.label_answer(&mut answer, Some(&target));
                answer
            });
        }
        // Its body is empty: requests with content are passed on.
        let request = Arc::new(request.map(|_| ()));
        let mut held = Holdings::nothing(fwd);
        match fwd {
            Fwd::Partial => held.part = stored,
            _ => held.validate = stored,
        }
        let asked = asked(caller, &target, &request, directives, key.map(|key| *key));
        let order = Order::new(Arc::new(asked), held, informational(caller, request.version()));
        Step::waits(span, async move {
            let mut answer = self.fetch_order(&request, order, unshared).await;
            self.label_answer(&mut answer, Some(&target));
            answer
        })
    }

    /// Removes from a request what its sender may not say. Cold, and apart from `handle`: few requests say such a
    /// thing.
    #[cold]
    fn receive(&self, peer: &Peer, request: &mut Request<ClientBody>) -> (Original, Present) {
        let method = request.method().clone();
        let original = forwarding::receive(&self.trust, peer, &method, request.headers_mut());
        (original, Present::of(request.headers()))
    }

    /// Takes the sticky cookies out of a request, which keeps them beside its fields.
    #[cold]
    fn take_sticky_cookies(&self, request: &mut Request<ClientBody>, present: Present) -> Present {
        let Some(taken) = StickyCookies::take(request.headers_mut(), &self.sticky_cookies) else { return present };
        request.extensions_mut().insert(taken);
        Present::of(request.headers())
    }

    #[cold]
    fn begin_line(&self, peer: &Peer, request: &Request<ClientBody>) -> Box<AccessLine> {
        Box::new(AccessLine::begin(&self.trust, peer, request))
    }
}

/// The key that a response was found under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Under {
    /// The key of the request's own URI.
    Own,
    /// The key for several queries (No-Vary-Search).
    Searched,
}

/// Chooses between what is stored for several queries and what is stored for the request's own. Responses for one path
/// may differ in what they say of queries: the newer one counts.
pub(super) fn newer(searched: Lookup, own: Lookup) -> (Under, Lookup) {
    match (searched, own) {
        (Lookup::Found(searched), Lookup::Found(own)) if own.head.response_time() > searched.head.response_time() => {
            (Under::Own, Lookup::Found(own))
        }
        (Lookup::Found(searched), _) => (Under::Searched, Lookup::Found(searched)),
        (_, Lookup::Found(own)) => (Under::Own, Lookup::Found(own)),
        (Lookup::Nothing, Lookup::OtherVariants(record)) => (Under::Own, Lookup::OtherVariants(record)),
        (found, _) => (Under::Searched, found),
    }
}

/// A request that memory does not answer, as far as it was looked at.
struct Missed {
    fwd: Fwd,
    /// A stored response that does not answer it as it is.
    stored: Option<Arc<StoredResponse>>,
    /// The key that memory was asked for, where that is not the one of its URI.
    key: Option<Box<CacheKey>>,
    /// The client's directives, as far as they count.
    directives: CacheControl,
    /// The time of the look-up.
    now: Timestamp,
    /// The memory of earlier answers to such requests, if it was asked already.
    recalled: Option<Recalled>,
}

/// Makes the span of a request that waits, which all its lines name; disabled where the level is off.
pub(super) fn span_of<B>(request: &Request<B>, target: &RequestTarget<'_>) -> Span {
    debug_span!(
        "request",
        id = %target.id(),
        method = &*cut(target.method(request.method()).as_str().into()),
        host = &*cut(target.authority().into()),
        path = &*cut(request.uri().path().into()),
        cache_status = Empty,
    )
}
