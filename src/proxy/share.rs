//! One fetch for everyone who waits for the same: who leads, who follows, and what a follower may have
//! of what came.

use std::sync::Arc;
use std::time::Duration;

use http::header;
use http::{Request, Response};
use tokio::sync::oneshot;

use super::Proxy;
use super::request::held_by;
use crate::base::Stopwatch;
use crate::entry::FillReader;
use crate::fetch::{
    Fetched, Follower, ForLeader, Joined, Lease, Looked, Order, Outcome, Selection, Shared, SharedResponse, Source,
};
use crate::respond::{
    Answer, ClientRequest, Multipart, Part, Refusal, ResponseBody, add_age, answer_head, build, unanswered,
};
use crate::rfc9111::cache_status::{CacheStatus, Fwd, Handling, Tier, ttl_seconds};
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

/// Limit of the flights that one waiting request joins, or begins, after its first: because the origin failed, or
/// because what came was for the leader alone.
const MAX_JOINED_AGAIN: u32 = 2;

impl Proxy {
    /// Tells how the order's request asks for its key, as far as is known by now, and whether it should wait for
    /// nobody.
    pub(super) fn selection_of(&self, order: &Order) -> Looked {
        self.fetcher.memories.hit_for_miss.look(order.asked.key.hash(), order.client_fields(), self.fetcher.clock.now())
    }

    /// Joins the flight of those who ask alike: the response to anyone else might not be theirs.
    pub(super) fn join(&self, order: &Order, selection: Selection) -> Joined {
        self.fetcher.flights.join(order.asked.key.hash(), selection.number())
    }

    /// Asks the origin for a flight. Another that does so as well may have its answer first: then
    /// that is this client's, too.
    pub(super) async fn lead(self: &Arc<Self>, request: &Request<()>, order: Order, lease: Lease) -> Answer {
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
            // It would be a pity to send all of it for a range.
            Ok(Fetched::Passed { why: NotStorable::TooLarge, .. }) if request.headers().contains_key(header::RANGE) => {
                Box::pin(self.alone(request, asked)).await
            }
            Ok(fetched) => self.answer_fetched(ClientRequest::of(request), fetched),
            Err(_) => Refusal::RequestLost.failed(Fwd::Miss),
        }
    }

    /// Waits for what another one fetches. Past `cache.collapse_timeout` the origin is asked as well,
    /// for everyone who waits; when it failed, one of those who wait asks it again.
    pub(super) async fn follow(
        self: &Arc<Self>,
        request: &Request<()>,
        mut order: Order,
        mut follower: Follower,
        mut selection: Selection,
    ) -> Answer {
        let arrived = self.fetcher.clock.now();
        let (watch, patience) = (
            Stopwatch::start(),
            self.fetcher.origin.upstream.patience_for(order.asked.terms.transfer.response_timeout),
        );
        let mut joined_again = 0;
        loop {
            let left = |limit: Duration| limit.saturating_sub(watch.elapsed());
            let until_second = left(self.cache.collapse_timeout);
            let permits = follower.permits();
            let a_permit = async {
                tokio::time::sleep(until_second).await;
                permits.take().await
            };
            let outcome = tokio::select! {
                biased;
                outcome = follower.outcome() => outcome,
                lease = a_permit => return self.lead(request, order, lease).await,
                () = tokio::time::sleep(left(patience)) => Outcome::Failed(UpstreamError::ResponseTimeout),
            };
            match outcome {
                Outcome::Shared(shared) => {
                    if let Some(answer) = self.answer_follower(request, &order, &shared, arrived) {
                        return answer;
                    }
                    // What came is another's: another variant, or not to be shared with this client;
                    // or its first bytes are gone, which the durable tier still has.
                    if matches!(shared.source, Source::Tier(_))
                        && let Some(fetched) = Box::pin(self.fetcher.find_durable(&mut order)).await
                        && let Some(answer) = self.answer_found(request, &order, fetched).await
                    {
                        return answer;
                    }
                    // Those who ask as this client does may share another one.
                    if let Some(variant) = shared.head().variant() {
                        self.fetcher.memories.hit_for_miss.divide(
                            order.asked.key.hash(),
                            &variant.names,
                            self.fetcher.clock.now(),
                        );
                    }
                    let Looked { selection: own, pass, .. } = self.selection_of(&order);
                    if own == selection || pass.is_some() || joined_again == MAX_JOINED_AGAIN {
                        return Box::pin(self.alone(request, order)).await;
                    }
                    selection = own;
                }
                Outcome::NotShared => {
                    // That the leader's response was its own alone says nothing of who asks otherwise.
                    let Looked { selection: own, pass, .. } = self.selection_of(&order);
                    if pass.is_some() || joined_again == MAX_JOINED_AGAIN {
                        return Box::pin(self.alone(request, order)).await;
                    }
                    selection = own;
                }
                Outcome::Failed(error) if joined_again == MAX_JOINED_AGAIN || left(patience).is_zero() => {
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

    /// Gives a follower what its flight brought, if every rule lets it have that.
    fn answer_follower(
        &self,
        request: &Request<()>,
        order: &Order,
        shared: &Shared,
        arrived: Timestamp,
    ) -> Option<Answer> {
        let head = shared.head();
        // Under another URL's key only if its origin said that the two are one.
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
            // A part on its way in is for the client that asked for it.
            SharedResponse::Filling(..) => head.parts().is_none(),
        };
        if !has_it {
            return None;
        }
        match reuse::reuse(&order.asked.directives, &head.freshness, self.fetcher.clock.now()) {
            Reuse::Fresh | Reuse::Stale | Reuse::StaleWhileRevalidate => {}
            // The origin has answered since: that is as new as this client can wish for.
            Reuse::Validate(Why::Request)
                if matches!(shared.source, Source::Origin { .. }) && head.response_time() >= arrived => {}
            Reuse::Validate(Why::Stale)
                if matches!(shared.source, Source::InPlaceOfError { .. } | Source::StandIn(_)) => {}
            Reuse::Validate(_) | Reuse::GatewayTimeout => return None,
        }
        let reader = match &shared.response {
            SharedResponse::Stored(_) => None,
            SharedResponse::Filling(_, fill) => Some(fill.reader()?),
        };
        self.answer_shared(ClientRequest::of(request), shared, reader, true)
    }

    /// Asks the origin for this client only.
    pub(super) async fn alone(self: &Arc<Self>, request: &Request<()>, order: Order) -> Answer {
        let fetched = self.fetcher.alone(order).await;
        self.answer_fetched(ClientRequest::of(request), fetched)
    }

    /// Answers with what the durable tier has for this client alone; of a body that is still there only
    /// what is asked for is read. `None` when that can't be had.
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
            Part::None => return Some((status, Response::from_parts(parts, ResponseBody::empty()))),
            Part::Whole => (vec![BodyPart::Range(0, apart.len())], apart.len()),
            Part::Range(first, end) => (vec![BodyPart::Range(first, end)], end.saturating_sub(first)),
            Part::Multipart(parts) => (wanted_of(&parts), parts.len),
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
                // In place of any that are stored.
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
                let status = CacheStatus { handling, ttl: None, detail: None, not_stored: Some(why) };
                (status, response.map(ResponseBody::upstream))
            }
            Fetched::Failed(error, fwd) => unanswered(&error, fwd),
            // Those go through `answer_found`.
            Fetched::Apart(..) => Refusal::ResponseLost.failed(Fwd::Miss),
        }
    }

    /// Answers from a shared response; a body that is coming in needs a reader.
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
            Source::Tier(tier) | Source::StandIn(tier) => CacheStatus::hit(tier, remaining),
            Source::InPlaceOfError { fwd, status } => {
                let handling = Handling::Forward { fwd, fwd_status: status, stored: false, collapsed };
                CacheStatus { handling, ttl: Some(ttl_seconds(remaining)), detail: None, not_stored: None }
            }
            Source::Origin { fwd, status, stored } => {
                let handling = Handling::Forward { fwd, fwd_status: status, stored, collapsed };
                CacheStatus { handling, ttl: Some(ttl_seconds(remaining)), detail: None, not_stored: None }
            }
        };
        let reading = match &shared.response {
            SharedResponse::Stored(stored) => self.fetcher.limits.budget.reading(stored),
            SharedResponse::Filling(..) => None,
        };
        let response = build(request, &shared.response, reader, now)?;
        let answer = (status, response);
        Some(match reading {
            Some(reading) => held_by(answer, reading),
            None => answer,
        })
    }
}
