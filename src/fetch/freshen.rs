//! A stored response with the fields of a newer one about the same content: after a 304 (RFC 9111 §4.3.4) or a HEAD
//! (§4.3.5).

use std::sync::Arc;

use http::header::HeaderMap;
use http::{Method, StatusCode};

use super::fetch::{Fetch, Fetched, ForLeader, shared};
use super::flight::{Shared, SharedResponse, Source};
use super::keep::cookies_of;
use super::order::Order;
use super::parts::all_tags;
use crate::entry::{Fields, Replaced, StoredResponse};
use crate::rfc9111::freshness::Freshness;
use crate::rfc9111::partial::Parts;
use crate::rfc9111::storage::{self, Exchange, NotStorable, storable};
use crate::rfc9111::tags::TooManyTags;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::validation::{self, HeadOutcome};

impl Fetch {
    /// RFC 9111 §4.3.4: the stored response is good again, with the fields of the 304.
    pub(super) fn freshen(
        &self,
        stored: &Arc<StoredResponse>,
        not_modified: &HeaderMap,
        request_time: Timestamp,
    ) -> Fetched {
        let updated = self.update(stored, not_modified, request_time);
        match updated.verdict {
            Ok((fresh, kept)) => {
                let status = Some(StatusCode::NOT_MODIFIED.as_u16());
                let shared = Shared {
                    response: SharedResponse::Stored(fresh),
                    source: Source::Origin { fwd: self.order.held.fwd, status, stored: kept },
                };
                Fetched::Shared(Arc::new(shared), ForLeader { cookies: updated.cookies, reader: None })
            }
            Err(why) => {
                // The origin took back its leave to store, for everybody or for this client.
                self.note_not_stored();
                self.outdate(&Replaced::response(stored), why, stored.head.status);
                let (now, policy) = (self.fetcher.clock.now(), &self.order.asked.terms.policy.lifetimes);
                self.fetcher.memories.note_not_storable(
                    &self.order.asked.key,
                    &updated.exchange(&self.order),
                    &self.order.asked.terms.policy,
                    why,
                    now,
                );
                let mut head = stored.head.clone();
                head.freshness = Freshness::of(head.status, &updated.fields, request_time, now, policy);
                head.fields = Fields::new(updated.fields.iter());
                let status = Some(StatusCode::NOT_MODIFIED.as_u16());
                let own = Shared {
                    response: SharedResponse::Stored(Arc::new(StoredResponse::with_body_of(stored, head))),
                    source: Source::Origin { fwd: self.order.held.fwd, status, stored: false },
                };
                Fetched::Own(Arc::new(own), ForLeader { cookies: updated.cookies, reader: None })
            }
        }
    }

    /// RFC 9111 §4.3.5: what the response to a HEAD says of the stored response to GET. `None` when
    /// that is not updated by it.
    pub(super) fn learn_from_head(
        &self,
        status: StatusCode,
        answer: &HeaderMap,
        request_time: Timestamp,
    ) -> Option<Fetched> {
        let stored = self.order.held.head_of.as_ref().filter(|_| status == StatusCode::OK)?;
        let len = stored.head.parts().map_or(stored.len(), Parts::complete_len);
        match validation::head_outcome(answer, &stored.head.fields.to_map(), len) {
            HeadOutcome::Updates => {
                let updated = self.update(stored, answer, request_time);
                let (fresh, kept) = match updated.verdict {
                    Ok(fresh) => fresh,
                    Err(why) => {
                        self.outdate(&Replaced::response(stored), why, stored.head.status);
                        return None;
                    }
                };
                // What is said of the whole is not to be told from a part.
                if fresh.head.parts().is_some() {
                    return None;
                }
                let source = Source::Origin { fwd: self.order.held.fwd, status: None, stored: kept };
                match shared(&fresh, source) {
                    Fetched::Shared(shared, _) => {
                        Some(Fetched::Shared(shared, ForLeader { cookies: updated.cookies, reader: None }))
                    }
                    Fetched::Own(..) | Fetched::Apart(..) | Fetched::Passed { .. } | Fetched::Failed(..) => None,
                }
            }
            HeadOutcome::Outdates => {
                let names = stored.head.variant().map(|variant| &variant.names[..]);
                let replaced = Replaced::response(stored);
                let speaks = storage::is_word_for_all(self.order.client_fields(), names);
                if speaks && !self.fetcher.store.outdate(&replaced, self.order.held.known.as_ref()) {
                    self.forget_outdated(&replaced);
                }
                None
            }
            HeadOutcome::Neither => None,
        }
    }

    /// RFC 9111 §3.2: puts the fields of a newer response about the same content in place of the
    /// stored ones, and stores the outcome if it still may be.
    fn update(&self, stored: &Arc<StoredResponse>, newer: &HeaderMap, request_time: Timestamp) -> Updated {
        let mut newer = newer.clone();
        let response_time = self.fetcher.clock.now();
        // Its cookies are for the client that it answers, whatever the stored response may share.
        let cookies = cookies_of(&newer);
        for name in cookies.keys() {
            newer.remove(name);
        }
        let mut fields = stored.head.fields.to_map();
        validation::freshen(&mut fields, &newer);
        // A part is stored under the same conditions as the whole.
        let status = if stored.head.parts().is_some() { StatusCode::OK } else { stored.head.status };
        let exchange = Exchange {
            method: &Method::GET,
            request: self.order.client_fields(),
            status,
            response: &fields,
            request_time,
            response_time,
        };
        let forbidden = storage::forbids(&newer, &self.order.asked.terms.policy, response_time);
        let may_be_stored =
            if forbidden { Err(NotStorable::Private) } else { storable(&exchange, &self.order.asked.terms.policy) };
        let verdict = may_be_stored.and_then(|storable| {
            let tags =
                all_tags(&self.order, &newer, stored.head.tags(), None).map_err(|TooManyTags| NotStorable::Tags)?;
            let new = (stored.head.status, &fields, tags);
            let mut head = self.new_head(&storable, new, &exchange);
            head.set_parts(stored.head.parts().cloned());
            // A body that came inline from the durable tier has no object of its own yet.
            // Another variant's object may be deleted with its body: each has its own. An object's name begins
            // with its key's.
            if head.key == stored.head.key && head.variant() == stored.head.variant() {
                head.body_object.clone_from(&stored.head.body_object);
            }
            self.fetcher.store.name_body(&mut head, stored.len());
            let fresh = Arc::new(StoredResponse::with_body_of(stored, head));
            let kept = self.fetcher.insert(&self.order.placement(), &fresh);
            Ok((fresh, kept))
        });
        Updated { verdict, fields, cookies, times: (request_time, response_time), status }
    }
}

/// A stored response with the fields of a newer one.
struct Updated {
    /// The response, and whether it is kept; or why it may not be.
    verdict: Result<(Arc<StoredResponse>, bool), NotStorable>,
    /// Its fields.
    fields: HeaderMap,
    /// Cookies that the newer one brought, for the client that asked and no one else.
    cookies: HeaderMap,
    /// Times of the newer request and of its response.
    times: (Timestamp, Timestamp),
    /// The status that it is stored with.
    status: StatusCode,
}

impl Updated {
    /// The exchange that the outcome would be stored of.
    fn exchange<'a>(&'a self, order: &'a Order) -> Exchange<'a> {
        Exchange {
            method: &Method::GET,
            request: order.client_fields(),
            status: self.status,
            response: &self.fields,
            request_time: self.times.0,
            response_time: self.times.1,
        }
    }
}
