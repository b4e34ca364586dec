//! Shares one fetch among all requests that ask alike: who leads, who follows, and which responses a follower may
//! have.

use std::sync::Arc;
use std::time::Duration;

use http::header;
use http::{Method, Request, Response};
use tokio::sync::oneshot;

use super::Proxy;
use super::client::Client;
use super::label::held_by;
use super::peer::ForPeer;
use super::target::{RequestTarget, shared_form};
use crate::base::Stopwatch;
use crate::entry::FillReader;
use crate::fetch::{
    Asked, Fetched, FlightName, Follower, ForLeader, Joined, Lease, Order, Outcome, Provenance, Recalled, Selection,
    Shared, SharedResponse, Sharing, Terms, Unshared, sharing,
};
use crate::respond::{
    Answer, ClientRequest, Multipart, Portion, Refusal, ResponseBody, add_age, answer_head, build, unanswered,
};
use crate::rfc9111::cache_status::{CacheStatus, Fwd, Handling, Tier, ttl_seconds};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::reuse::{Reuse, Why};
use crate::rfc9111::storage::NotStorable;
use crate::rfc9111::targeted::governing;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::{reuse, storage};
use crate::store::BodyPart;
use crate::upstream::UpstreamError;

fn wanted_of(parts: &Multipart) -> Vec<BodyPart> {
    let mut wanted = Vec::with_capacity(2 * parts.ranges.len() + 1);
    for (text, (first, end)) in parts.before.iter().zip(&parts.ranges) {
        wanted.push(BodyPart::Text(text.clone().into()));
        wanted.push(BodyPart::Range(*first, *end));
    }
    wanted.push(BodyPart::Text(parts.end.clone().into()));
    wanted
}

/// The most flights that a waiting request joins or leads after its first one: because the origin failed, or because
/// the response was for the leader alone.
const MAX_JOINED_AGAIN: u32 = 2;

/// The `detail` of a response for which a peer asked the origin.
const BY_PEER: &str = "peer";

/// The end of a follower's wait.
enum Awaited {
    /// The flight has ended, or has taken too long.
    Outcome(Outcome),
    /// This follower may ask the origin as well.
    Lease(Lease),
}

impl Proxy {
    /// Fetches an order, shared or not as [`sharing`] decides.
    pub(super) async fn fetch_order(
        self: &Arc<Self>,
        request: &Request<()>,
        mut order: Order,
        unshared: Option<Unshared>,
    ) -> Answer {
        let sharing = sharing(&order, unshared, self.fetcher.limits.memory.max_object_size);
        let holds_nothing = order.held.validate.is_none() && order.held.part.is_none();
        // A flight asks the durable tier by itself, for everyone in it.
        if sharing != Sharing::Together
            && holds_nothing
            && let Some(fetched) = Box::pin(self.fetcher.find_durable(&mut order)).await
            && let Some(answer) = self.answer_found(request, &order, fetched).await
        {
            return answer;
        }
        match sharing {
            Sharing::Together => self.fly(request, order).await,
            Sharing::Whole => {
                // The original request keeps its range, in case it is fetched for this client alone.
                order.ask_for_the_whole();
                self.fly(request, order).await
            }
            Sharing::Alone if order.asked.directives.only_if_cached => Refusal::OnlyIfCached.answer(),
            Sharing::Alone => {
                if *request.method() != Method::GET {
                    let held = &mut order.held;
                    let stored = held.validate.take().or_else(|| held.part.take());
                    held.head_of = stored.or(held.head_of.take());
                }
                Box::pin(self.alone(request, order)).await
            }
        }
    }

    pub(super) async fn fly(self: &Arc<Self>, request: &Request<()>, mut order: Order) -> Answer {
        order.route = self.fetcher.route_of(&order);
        let selection = self.selection_of(&order).selection;
        match self.join(&order, selection) {
            Joined::Leader(lease) => self.lead(request, order, lease).await,
            Joined::Follower(follower) => Box::pin(self.follow(request, order, follower, selection)).await,
        }
    }

    /// Returns which variant of its key the order asks for, as far as that is known, and whether it should wait for
    /// nobody.
    fn selection_of(&self, order: &Order) -> Recalled {
        self.fetcher.memories.hit_for_miss.look(order.asked.key.hash(), order.client_fields(), self.fetcher.clock.now())
    }

    /// Joins the flight of requests that select the same variant.
    fn join(&self, order: &Order, selection: Selection) -> Joined {
        let name = FlightName::new(&order.asked.key, order.route.flight(selection.number()));
        self.fetcher.flights.join(name)
    }

    /// Leads a flight. If another leader of the flight has its answer first, this client gets that.
    async fn lead(self: &Arc<Self>, request: &Request<()>, order: Order, lease: Lease) -> Answer {
        let arrived = self.fetcher.clock.now();
        let (sender, mut receiver) = oneshot::channel();
        let mut others = lease.others();
        let asked = order.clone();
        self.fetcher.launch(order, lease, Some(sender));
        let fetched = tokio::select! {
            biased;
            fetched = &mut receiver => fetched,
            outcome = others.outcome() => {
                if let Outcome::Shared(shared) = outcome
                    && let Some(answer) = self.answer_follower(request, &asked, &shared, arrived)
                {
                    return answer;
                }
                receiver.await
            }
        };
        match fetched {
            // The response is not shared and large, so this client gets only the range that it asked for.
            Ok(Fetched::Passed { why: NotStorable::TooLarge, .. }) if request.headers().contains_key(header::RANGE) => {
                Box::pin(self.alone(request, asked)).await
            }
            Ok(fetched) => self.answer_fetched(ClientRequest::of(request), fetched),
            Err(_) => Refusal::RequestLost.failed(Fwd::Miss),
        }
    }

    /// Waits for what another request's flight brings. Past `cache.collapse_timeout` one of those who wait asks the
    /// origin as well, for all of them; when the flight failed, one of them asks again.
    async fn follow(
        self: &Arc<Self>,
        request: &Request<()>,
        mut order: Order,
        mut follower: Follower,
        mut selection: Selection,
    ) -> Answer {
        let arrived = self.fetcher.clock.now();
        let terms = &order.asked.terms;
        let upstream = &self.fetcher.origins.named(terms.upstream).upstream;
        let patience = upstream.patience_for(terms.transfer.response_timeout);
        let watch = Stopwatch::start();
        let mut joined_again = 0;
        loop {
            let outcome = match self.wait(&mut follower, watch, patience).await {
                Awaited::Outcome(outcome) => outcome,
                Awaited::Lease(lease) => return self.lead(request, order, lease).await,
            };
            match outcome {
                Outcome::Shared(shared) => {
                    if let Some(answer) = self.take_shared(request, &mut order, &shared, arrived).await {
                        return answer;
                    }
                    let Recalled { selection: own, unshared, .. } = self.selection_of(&order);
                    if own == selection || unshared.is_some() || joined_again == MAX_JOINED_AGAIN {
                        return Box::pin(self.alone(request, order)).await;
                    }
                    selection = own;
                }
                Outcome::NotShared => {
                    // The response was the leader's alone. That says nothing of requests that select another one.
                    let Recalled { selection: own, unshared, .. } = self.selection_of(&order);
                    if unshared.is_some() || joined_again == MAX_JOINED_AGAIN {
                        return Box::pin(self.alone(request, order)).await;
                    }
                    selection = own;
                }
                Outcome::Failed(error) if joined_again == MAX_JOINED_AGAIN || watch.elapsed() >= patience => {
                    return unanswered(&error, order.held.fwd);
                }
                Outcome::Failed(_) => {}
            }
            joined_again += 1;
            match self.join(&order, selection) {
                Joined::Leader(lease) => return self.lead(request, order, lease).await,
                Joined::Follower(next) => follower = next,
            }
        }
    }

    /// Waits for a flight's outcome, and past `cache.collapse_timeout` for leave to ask the origin as well. Gives up
    /// when `watch` shows `patience`.
    async fn wait(&self, follower: &mut Follower, watch: Stopwatch, patience: Duration) -> Awaited {
        let left = |limit: Duration| limit.saturating_sub(watch.elapsed());
        let until_second = left(self.cache.collapse_timeout);
        let permits = follower.permits();
        let a_permit = async {
            tokio::time::sleep(until_second).await;
            permits.take().await
        };
        tokio::select! {
            biased;
            outcome = follower.outcome() => Awaited::Outcome(outcome),
            lease = a_permit => Awaited::Lease(lease),
            () = tokio::time::sleep(left(patience)) => {
                Awaited::Outcome(Outcome::Failed(UpstreamError::ResponseTimeout))
            }
        }
    }

    /// Answers a follower with what its flight brought, or with what the durable tier has. Otherwise notes which
    /// fields select the response that came, so that those who ask alike can share another flight.
    async fn take_shared(
        self: &Arc<Self>,
        request: &Request<()>,
        order: &mut Order,
        shared: &Shared,
        arrived: Timestamp,
    ) -> Option<Answer> {
        if let Some(answer) = self.answer_follower(request, order, shared, arrived) {
            return Some(answer);
        }
        // What came is another variant, or is not shared with this client; or memory no longer has its first bytes,
        // which the durable tier still has.
        if matches!(shared.source, Provenance::Tier(_))
            && let Some(fetched) = Box::pin(self.fetcher.find_durable(order)).await
            && let Some(answer) = self.answer_found(request, order, fetched).await
        {
            return Some(answer);
        }
        if let Some(variant) = shared.head().variant() {
            let now = self.fetcher.clock.now();
            self.fetcher.memories.hit_for_miss.divide(order.asked.key.hash(), &variant.names, now);
        }
        None
    }

    /// Answers a follower with what its flight brought, if the rules allow that for its request.
    fn answer_follower(
        &self,
        request: &Request<()>,
        order: &Order,
        shared: &Shared,
        arrived: Timestamp,
    ) -> Option<Answer> {
        let head = shared.head();
        // A response under another URL's key answers only if the origin said that the two are alike.
        if head.key != order.asked.exact
            && self.fetcher.memories.searches.key(&order.asked.exact).as_ref() != Some(&head.key)
        {
            return None;
        }
        if !head.is_selected_by(request.headers()) || self.fetcher.store.is_covered(head) {
            return None;
        }
        if request.headers().contains_key(header::AUTHORIZATION) {
            let governing =
                governing(&head.fields.to_map(), &order.asked.terms.policy.lifetimes.targets, head.response_time());
            if !storage::allows_authorized(&governing.directives) {
                return None;
            }
        }
        let has_it = match &shared.response {
            SharedResponse::Stored(stored) => head.can_answer(request.method(), request.headers(), stored.len()),
            // A part that is coming in answers only the client that asked for it.
            SharedResponse::Filling(..) => head.parts().is_none(),
        };
        if !has_it {
            return None;
        }
        match reuse::reuse(&order.asked.directives, &head.freshness, self.fetcher.clock.now()) {
            Reuse::Fresh | Reuse::Stale | Reuse::StaleWhileRevalidate => {}
            // The origin has answered since this request arrived, which satisfies a request for validation.
            Reuse::Validate(Why::Request)
                if matches!(shared.source, Provenance::Origin { .. }) && head.response_time() >= arrived => {}
            Reuse::Validate(Why::Stale)
                if matches!(shared.source, Provenance::InPlaceOfError { .. } | Provenance::StandIn(_)) => {}
            Reuse::Validate(_) | Reuse::GatewayTimeout => return None,
        }
        let reader = match &shared.response {
            SharedResponse::Stored(_) => None,
            SharedResponse::Filling(_, fill) => Some(fill.reader()?),
        };
        self.answer_shared(ClientRequest::of(request), shared, reader, true)
    }

    /// Asks the origin for this client only.
    async fn alone(self: &Arc<Self>, request: &Request<()>, order: Order) -> Answer {
        let fetched = self.fetcher.alone(order).await;
        self.answer_fetched(ClientRequest::of(request), fetched)
    }

    /// Answers with what the durable tier has, for this client alone. Of a body that is not read yet it reads only
    /// what is asked for. Returns `None` when the body can't be read.
    pub(super) async fn answer_found(
        self: &Arc<Self>,
        request: &Request<()>,
        order: &Order,
        fetched: Fetched,
    ) -> Option<Answer> {
        let Fetched::Apart(head, apart) = fetched else {
            return Some(self.answer_fetched(ClientRequest::of(request), fetched));
        };
        let now = self.fetcher.clock.now();
        let status = CacheStatus::hit(Tier::Durable, head.freshness.remaining(now));
        let (parts, part) = answer_head(ClientRequest::of(request), &head, Some(apart.len()), now).into_parts();
        let (wanted, len) = match part {
            Portion::None => return Some((status, Response::from_parts(parts, ResponseBody::empty()))),
            Portion::Whole => (vec![BodyPart::Range(0, apart.len())], apart.len()),
            Portion::Range(first, end) => (vec![BodyPart::Range(first, end)], end.saturating_sub(first)),
            Portion::Multipart(parts) => (wanted_of(&parts), parts.len),
        };
        let body = ResponseBody::pieces(apart.read(wanted).await?, len);
        self.fetcher.note_ranged(order, apart.len());
        Some((status, Response::from_parts(parts, body)))
    }

    pub(super) fn answer_fetched(&self, request: ClientRequest<'_>, fetched: Fetched) -> Answer {
        match fetched {
            Fetched::Shared(shared, ForLeader { cookies, reader })
            | Fetched::Own(shared, ForLeader { cookies, reader }) => {
                let Some((status, mut response)) = self.answer_shared(request, &shared, reader, false) else {
                    return Refusal::ResponseLost.failed(Fwd::Miss);
                };
                // Cookies for this client replace stored ones.
                for name in cookies.keys() {
                    response.headers_mut().remove(name);
                }
                for (name, cookie) in &cookies {
                    response.headers_mut().append(name.clone(), cookie.clone());
                }
                (status, response)
            }
            Fetched::Passed { mut response, fwd, fwd_status, why } => {
                let handling = Handling::Forward { fwd, fwd_status, stored: false, collapsed: false };
                add_age(response.headers_mut());
                if self.fetcher.peers.is_some() {
                    response.extensions_mut().insert(ForPeer::Own);
                }
                let status = CacheStatus { handling, ttl: None, detail: None, not_stored: Some(why) };
                (status, response.map(ResponseBody::upstream))
            }
            Fetched::Failed(error, fwd) => unanswered(&error, fwd),
            // `answer_found` answers those.
            Fetched::Apart(..) => Refusal::ResponseLost.failed(Fwd::Miss),
        }
    }

    /// Answers from a shared response. `None`: its body is coming in, and `reader` is missing.
    fn answer_shared(
        &self,
        request: ClientRequest<'_>,
        shared: &Shared,
        reader: Option<FillReader>,
        collapsed: bool,
    ) -> Option<Answer> {
        let now = self.fetcher.clock.now();
        let remaining = shared.head().freshness.remaining(now);
        let status = match shared.source {
            Provenance::Tier(tier) | Provenance::StandIn(tier) => CacheStatus::hit(tier, remaining),
            Provenance::InPlaceOfError { fwd, status } => {
                let handling = Handling::Forward { fwd, fwd_status: status, stored: false, collapsed };
                CacheStatus { handling, ttl: Some(ttl_seconds(remaining)), detail: None, not_stored: None }
            }
            Provenance::Origin { fwd, status, stored, by_peer } => {
                let handling = Handling::Forward { fwd, fwd_status: status, stored, collapsed };
                let detail = by_peer.then_some(BY_PEER);
                CacheStatus { handling, ttl: Some(ttl_seconds(remaining)), detail, not_stored: None }
            }
        };
        let reading = match &shared.response {
            SharedResponse::Stored(stored) => self.fetcher.limits.budget.reading(stored),
            SharedResponse::Filling(..) => None,
        };
        let mut response = build(request, &shared.response, reader, now)?;
        if self.fetcher.peers.is_some() {
            ForPeer::note_shared(&mut response, shared, now);
        }
        let answer = (status, response);
        Some(match reading {
            Some(reading) => held_by(answer, reading),
            None => answer,
        })
    }
}

/// Makes the fixed part of an order: the request, the key that its response is looked up under (`key`, or else that of
/// its URI), and the terms of its rule.
pub(super) fn asked(
    caller: &dyn Client,
    target: &RequestTarget<'_>,
    request: &Arc<Request<()>>,
    directives: CacheControl,
    key: Option<CacheKey>,
) -> Asked {
    let rule = &target.rule.rule;
    Asked {
        key: key.unwrap_or_else(|| target.key.clone()),
        exact: target.key.clone(),
        request: Arc::clone(request),
        uri: shared_form(request.uri(), target.query).into_owned(),
        content: target.content.clone(),
        peer: caller.peer().clone(),
        since: Stopwatch::start(),
        directives,
        terms: Terms {
            upstream: target.rule.upstream,
            request_directives: target.rule.request_directives,
            policy: Arc::clone(target.policy()),
            transfer: Arc::clone(&target.rule.transfer),
            durability: rule.durability,
            collapse: rule.collapse,
            ranges: rule.ranges,
            tags: rule.tags.clone(),
            digest: target.rule.digest,
        },
        from_peer: caller.known_to_peer(),
    }
}
