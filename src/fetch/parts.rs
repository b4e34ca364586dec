//! Parts: fetches the bytes that a stored part lacks, and combines parts into one response (RFC 9111 §3.3, §3.4).

use crate::fetch::missing::Missing;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use hyper::body::Body as _;

use super::body::Incoming;
use super::fetch::{Fetch, Fetched};
use super::keep::left_out;
use super::order::Order;
use crate::entry::{Body, StoredHead, StoredResponse};
use crate::rfc9111::partial::{self, Part, Parts};
use crate::rfc9111::storage::{Exchange, NotStorable, storable};
use crate::rfc9111::tags::{MAX_TAGS, TooManyTags};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::Lookup;
use crate::upstream::{EndsWithConnection, UpstreamBody};

/// A stored part of at most this many bytes is combined with any other.
const SMALL: u64 = 1 << 20;

fn are_of_one_whole(a: &StoredHead, b: &StoredHead) -> bool {
    a.is_of_the_same(b)
}

impl Fetch {
    /// Combines a part with what is stored of the same representation, or stores it by itself. Leaves a stored whole
    /// as it is.
    pub(super) fn add_part(&self, new: &Arc<StoredResponse>) {
        // A body longer than its part has bytes of unknown position.
        if new.head.parts().is_none_or(|parts| new.len() > parts.len()) {
            return;
        }
        let base = match self.fetcher.store.look_again(&new.head.key, self.order.client_fields()) {
            Lookup::Found(stored) if stored.head.parts().is_none() => return,
            Lookup::Found(stored) => Some(stored),
            Lookup::OtherVariants(_) | Lookup::Nothing => self.order.held.part.clone(),
        };
        let Some(base) = base else {
            let whole = self.combined(None, new).map(Arc::new);
            self.fetcher.insert(&self.order.placement(), whole.as_ref().unwrap_or(new));
            return;
        };
        let combined = self.combined(Some(&base), new);
        let is_same = are_of_one_whole(&base.head, &new.head);
        // Otherwise a request for a few bytes would cause a copy of megabytes: such a part is fetched again instead.
        let is_worth_it = base.len() <= SMALL || new.len() >= base.len() / 16;
        match combined {
            Some(combined) if is_worth_it => drop(self.fetcher.insert(&self.order.placement(), &Arc::new(combined))),
            Some(_) => {}
            // Both are of one whole and too large together: the older one stays.
            None if is_same && base.head.freshness.is_fresh(self.fetcher.clock.now()) => {}
            None => drop(self.fetcher.insert(&self.order.placement(), new)),
        }
    }

    /// Combines a part with what is stored. Without stored parts it returns a response only if the part is the whole.
    fn combined(&self, base: Option<&Arc<StoredResponse>>, new: &Arc<StoredResponse>) -> Option<StoredResponse> {
        let new_fields = new.head.fields.to_map();
        let part = Part::of(&new_fields)?;
        if part.end - part.first != new.len() {
            return None;
        }
        let (parts, body, mut fields) = match base {
            None => (Parts::from(part), new.body(), HeaderMap::new()),
            Some(base) => {
                let old = base.head.parts().filter(|old| old.len() == base.len())?;
                if !are_of_one_whole(&base.head, &new.head) {
                    return None;
                }
                let (parts, pieces) = old.with(part)?;
                if parts.len() > self.fetcher.limits.memory.max_object_size {
                    return None;
                }
                (parts, Body::combined(&base.body(), &new.body(), &pieces), base.head.fields.to_map())
            }
        };
        if base.is_none() && !parts.is_complete() {
            return None;
        }
        partial::combine(&mut fields, &new_fields);
        if parts.is_complete() {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(parts.complete_len()));
        }
        let exchange = Exchange {
            method: &Method::GET,
            request: self.order.client_fields(),
            status: StatusCode::OK,
            response: &fields,
            request_time: new.head.request_time(),
            response_time: new.head.response_time(),
        };
        let storable = storable(&exchange, &self.order.asked.terms.policy).ok()?;
        let tags = all_tags(&self.order, &new_fields, new.head.tags(), base.map(|base| base.head.tags())).ok()?;
        let all = (StatusCode::OK, &fields, tags);
        let mut head = self.new_head(&storable, all, &exchange);
        head.version_vector = Arc::clone(&self.local);
        if !parts.is_complete() {
            head.status = StatusCode::PARTIAL_CONTENT;
            head.set_parts(Some(parts));
        }
        Some(self.fetcher.whole_of(head, body))
    }

    /// Begins to store a completed response, for everyone who wants the whole. Returns `None`, and keeps the lease, if
    /// the answer does not fit the stored part.
    pub(super) fn keep_completed(
        &mut self,
        missing: &Missing,
        answer: Response<UpstreamBody>,
        request_time: Timestamp,
    ) -> Option<Fetched> {
        let response_time = self.fetcher.clock.now();
        let stored = &missing.stored;
        let (first, end) = missing.range;
        let fits = Part::of(answer.headers()) == Some(Part { first, end, complete: missing.complete })
            && answer.body().size_hint().exact().is_none_or(|len| len == end - first)
            && answer.extensions().get::<EndsWithConnection>().is_none()
            && partial::is_same_representation(
                (&stored.head.fields.to_map(), stored.head.response_time()),
                (answer.headers(), response_time),
            )
            && missing.complete <= self.fetcher.limits.memory.max_object_size;
        if !fits || !may_be_shared(&self.order, answer.headers(), request_time, response_time) {
            return None;
        }
        let mut fields = stored.head.fields.to_map();
        partial::combine(&mut fields, answer.headers());
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(missing.complete));
        let exchange = Exchange {
            method: self.order.method(),
            request: self.order.client_fields(),
            status: StatusCode::OK,
            response: &fields,
            request_time,
            response_time,
        };
        let Ok(storable) = storable(&exchange, &self.order.asked.terms.policy) else { return None };
        let Ok(tags) = all_tags(&self.order, answer.headers(), stored.head.tags(), None) else { return None };
        let mut head = self.new_head(&storable, (StatusCode::OK, &fields, tags), &exchange);
        head.version_vector = Arc::clone(&self.local);
        let cookies = left_out(&storable, answer.headers());
        let mut body = Incoming::from(answer.into_body());
        body.len = Some(end - first);
        let held = stored.body();
        held.cut(0, first, &mut body.before);
        held.cut(first, missing.complete - end, &mut body.after);
        Some(self.keep(head, body, (Some(StatusCode::PARTIAL_CONTENT), cookies), None))
    }
}

/// Returns whether the answer that completes a part may be shared by its own fields. The stored part's permission does
/// not extend to it.
fn may_be_shared(order: &Order, answer: &HeaderMap, request_time: Timestamp, response_time: Timestamp) -> bool {
    let exchange = Exchange {
        method: order.method(),
        request: order.client_fields(),
        status: StatusCode::OK,
        response: answer,
        request_time,
        response_time,
    };
    // Being reusable by itself is not required.
    matches!(storable(&exchange, &order.asked.terms.policy), Ok(_) | Err(NotStorable::NothingToReuse))
}

/// Returns the tags of a combined response: the tags of all its sources.
pub(super) fn all_tags(
    order: &Order,
    newer: &HeaderMap,
    older: &[String],
    others: Option<&[String]>,
) -> Result<Vec<String>, TooManyTags> {
    let mut tags = order.tags_of(newer)?;
    for tag in older.iter().chain(others.unwrap_or_default()) {
        if !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    if tags.len() > MAX_TAGS { Err(TooManyTags) } else { Ok(tags) }
}
