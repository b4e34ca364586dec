//! Updates a stored response with the fields of a newer one about the same content: after a 304 (RFC 9111 §4.3.4) or a
//! HEAD (§4.3.5).

use std::sync::Arc;

use http::header::HeaderMap;
use http::{Method, StatusCode};

use super::fetch::{Fetch, Fetched, ForLeader, shared};
use super::flight::{Provenance, Shared, SharedResponse};
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
    /// RFC 9111 §4.3.4: updates the stored response with the fields of the 304, and returns it.
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
                    source: Provenance::Origin {
                        fwd: self.order.held.fwd,
                        status,
                        stored: kept,
                        by_peer: self.is_by_peer(),
                    },
                };
                Fetched::Shared(Arc::new(shared), ForLeader { cookies: updated.cookies, reader: None })
            }
            Err(why) => {
                // The newer fields no longer allow storing, for everybody or for this client.
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
                    source: Provenance::Origin {
                        fwd: self.order.held.fwd,
                        status,
                        stored: false,
                        by_peer: self.is_by_peer(),
                    },
                };
                Fetched::Own(Arc::new(own), ForLeader { cookies: updated.cookies, reader: None })
            }
        }
    }

    /// RFC 9111 §4.3.5: updates the stored response to GET by the response to a HEAD. Returns `None` where it updates
    /// nothing.
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
                // A stored part can't answer a HEAD.
                if fresh.head.parts().is_some() {
                    return None;
                }
                let source =
                    Provenance::Origin { fwd: self.order.held.fwd, status: None, stored: kept, by_peer: false };
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
                let speaks = storage::speaks_for_all(self.order.client_fields(), names);
                if speaks && !self.fetcher.store.outdate(&replaced, self.order.held.known.as_ref()) {
                    self.forget_outdated(&replaced);
                }
                None
            }
            HeadOutcome::Neither => None,
        }
    }

    /// RFC 9111 §3.2: replaces stored fields by those of a newer response about the same content, and stores the
    /// outcome if that is still allowed.
    fn update(&self, stored: &Arc<StoredResponse>, newer: &HeaderMap, request_time: Timestamp) -> Updated {
        let mut newer = newer.clone();
        let response_time = self.fetcher.clock.now();
        // Cookies are for the client that the newer response answers, even if the stored one is shared.
        let cookies = cookies_of(&newer);
        for name in cookies.keys() {
            newer.remove(name);
        }
        let mut fields = stored.head.fields.to_map();
        validation::freshen(&mut fields, &newer);
        // A part is stored under the conditions of the whole.
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
            // Its body was not fetched after the purges that only a peer knew, whatever the origin says of it.
            head.version_vector = Arc::clone(&self.local);
            head.set_parts(stored.head.parts().cloned());
            // The stored response's body object is reused only under the same key and variant. An object's name begins
            // with that of its key, and each variant deletes its own object with itself. A body that came inline from
            // the durable tier has no object yet.
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
    /// The response, and whether it is kept; or the reason why it may not be.
    verdict: Result<(Arc<StoredResponse>, bool), NotStorable>,
    /// Its fields.
    fields: HeaderMap,
    /// The cookies that the newer one brought, only for the client that asked.
    cookies: HeaderMap,
    /// The times of the newer request and of its response.
    times: (Timestamp, Timestamp),
    /// The status that it is stored with.
    status: StatusCode,
}

impl Updated {
    /// Returns the exchange that decided on storing the outcome.
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
