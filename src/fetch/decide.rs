//! What is done with a request, and with the head of the origin's answer. Decides, and does nothing.
//!
//! Everything here is pure: the request, what was found, the terms and the time go in, a value comes out. `proxy` and
//! [`Fetch`](super::fetch::Fetch) carry it out, and `explain` shows it. Nothing awaits, reads a clock, or does I/O.

use http::header::HeaderMap;
use http::{Method, StatusCode};

use super::hit_for_miss::Pass;
use super::order::{Order, Terms};
use crate::entry::{StoredHead, StoredResponse};
use crate::rfc9111::cache_status::Fwd;
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::present::Present;
use crate::rfc9111::reuse::{self, Failure, Reuse, Why};
use crate::rfc9111::storage::{self, Exchange, NotStorable, Storable, storable};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::validation::{self, Validation};

/// What is done with a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Decision {
    /// It is answered from the stored response.
    Answer(Use, Behind),
    /// The durable tier and the origin are asked, because of that.
    Fetch(Fwd),
    /// It is passed on; no stored response may answer it.
    Pass(Fwd),
    /// The client wants nothing but a stored response, and there is none that will do: 504 (RFC 9111 §5.2.1.7).
    NotCached,
}

/// Why a stored response is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is fresh.
    Fresh,
    /// It is stale, and the client accepts that (`max-stale`).
    Accepted,
    /// It is stale, and served while it is validated (RFC 5861 §3).
    WhileRevalidate,
    /// It is stale, and the origin is known to fail (RFC 5861 §4, RFC 9111 §4.2.4).
    InPlaceOf(Failure),
}

/// Says whether a stored response that is used is validated behind its client.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Behind {
    /// No.
    No,
    /// Yes.
    Yes,
    /// Before it expires, with this probability: processes that ask at the same time do not all do it.
    Perhaps(f64),
}

/// A request, as far as it decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inquiry<'a> {
    /// The method.
    pub(crate) method: &'a Method,
    /// The fields.
    pub(crate) fields: &'a HeaderMap,
    /// The names among them that decide something.
    pub(crate) present: Present,
    /// True if it has content.
    pub(crate) has_content: bool,
}

/// Decides on a request that no stored response may answer.
#[inline]
pub(crate) fn without_looking(inquiry: Inquiry<'_>, bypass: bool) -> Option<Decision> {
    if bypass {
        return Some(Decision::Pass(Fwd::Bypass));
    }
    // RFC 9111 §4: "the request method associated with the stored response allows it to be used for the presented
    // request": responses to GET are stored, and answer GET and HEAD.
    if *inquiry.method != Method::GET && *inquiry.method != Method::HEAD {
        return Some(Decision::Pass(Fwd::Method));
    }
    // Content in a GET may change the response, and is no part of the key. RFC 9110 §13.1.1, §13.1.4: If-Match and
    // If-Unmodified-Since are conditions on the origin's state.
    if inquiry.has_content || inquiry.present.has(Present::FOR_THE_ORIGIN) {
        return Some(Decision::Pass(Fwd::Request));
    }
    None
}

/// Decides on a request for which a response is stored whose body here is `len` bytes. Its key and `Vary` select it, and
/// no purge covers it. `directives` are the request's, as far as they count for this response; `early_refresh` is the
/// last part of a lifetime, in thousandths, in which it is validated before it expires.
#[inline]
pub(crate) fn with_stored(
    inquiry: Inquiry<'_>,
    directives: &CacheControl,
    head: &StoredHead,
    len: u64,
    early_refresh: u16,
    known_failure: impl FnOnce() -> Option<Failure>,
    now: Timestamp,
) -> Decision {
    // RFC 9111 §3.3: an incomplete response answers only for ranges that it holds.
    if !head.can_answer(inquiry.method, inquiry.fields, len) {
        return Decision::Fetch(Fwd::Partial);
    }
    match reuse::reuse(directives, &head.freshness, now) {
        Reuse::Fresh if early_refresh == 0 => Decision::Answer(Use::Fresh, Behind::No),
        Reuse::Fresh => Decision::Answer(Use::Fresh, before_it_expires(head, early_refresh, now)),
        Reuse::Stale => Decision::Answer(Use::Accepted, Behind::No),
        // RFC 9111 §5.2.1.7: "either respond using a stored response … or respond with a 504".
        Reuse::GatewayTimeout => Decision::NotCached,
        // A part is not validated behind its client: it is added to.
        Reuse::StaleWhileRevalidate if head.parts().is_none() => Decision::Answer(Use::WhileRevalidate, Behind::Yes),
        Reuse::StaleWhileRevalidate => Decision::Fetch(Fwd::Stale),
        Reuse::Validate(Why::Request) => Decision::Fetch(Fwd::Request),
        Reuse::Validate(Why::Stale) if head.parts().is_none() => {
            let stands_in = |failure: &Failure| reuse::stale_if_error(directives, &head.freshness, *failure, now);
            match known_failure().filter(stands_in) {
                Some(failure) => Decision::Answer(Use::InPlaceOf(failure), Behind::Yes),
                None => Decision::Fetch(Fwd::Stale),
            }
        }
        Reuse::Validate(Why::Stale) => Decision::Fetch(Fwd::Stale),
    }
}

/// Decides on a request for which nothing is stored that its key and `Vary` select.
#[inline]
pub(crate) fn with_nothing(has_other_variants: bool) -> Decision {
    Decision::Fetch(if has_other_variants { Fwd::VaryMiss } else { Fwd::UriMiss })
}

/// Returns the probability of a validation before the response expires. It rises towards the end, the sooner the longer
/// the response took to fetch, so that the new one is there in time.
fn before_it_expires(head: &StoredHead, early_refresh: u16, now: Timestamp) -> Behind {
    let window = head.freshness.lifetime.saturating_mul(i64::from(early_refresh)) / 1000;
    let remaining = head.freshness.remaining(now);
    if remaining <= 0 || remaining > window {
        return Behind::No;
    }
    let fetched_in = head.response_time().millis_since(head.request_time());
    let mean = fetched_in.max(window / 10).max(1);
    // The probability that an exponential deviate is as large.
    #[expect(clippy::cast_precision_loss, reason = "a probability")]
    let probability = (-(remaining as f64) / mean as f64).exp();
    Behind::Perhaps(probability)
}

/// How a request that has to be fetched for is fetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// For this client alone.
    Alone,
    /// The whole, although the client wants a range of it.
    Whole,
    /// Once for everybody who asks alike at the same time.
    Together,
}

/// Decides how a request is fetched for. `pass` is what is remembered of those who ask alike; `limit` the largest body
/// that memory takes.
pub(crate) fn sharing(order: &Order, pass: Option<Pass>, limit: u64) -> Sharing {
    let (asked, held) = (&order.asked, &order.held);
    let Terms { collapse, .. } = asked.terms;
    let is_get = *order.method() == Method::GET;
    let is_of_a_whole = is_get && held.validate.as_ref().is_some_and(|stored| stored.head.parts().is_none());
    let wants_own = asked.directives.only_if_cached || asked.directives.no_store || pass.is_some();
    if collapse && !wants_own && order.prefers_whole(limit) {
        return Sharing::Whole;
    }
    // What only this client can use is not worth a flight: a HEAD, a part, what is not to be stored, what each request
    // validates for itself.
    if wants_own || !collapse || !(order.is_for_the_whole() || is_of_a_whole) {
        return Sharing::Alone;
    }
    Sharing::Together
}

/// Returns whether a request is passed on at once: those who ask alike lately got what can't be stored, and neither tier
/// has anything for it.
#[inline]
pub(crate) fn is_passed_on(
    inquiry: Inquiry<'_>,
    directives: &CacheControl,
    pass: Option<Pass>,
    has_stored: bool,
    may_be_durable: impl FnOnce() -> bool,
) -> bool {
    pass == Some(Pass::NotStorable)
        && *inquiry.method == Method::GET
        && !inquiry.present.has(Present::RANGE)
        && !has_stored
        && !directives.only_if_cached
        && !may_be_durable()
}

/// What is done with the head of the origin's answer.
#[derive(Debug)]
pub(super) enum HeadDecision {
    /// The response is kept, with these tags; a body of at most so many bytes.
    Keep(Storable, Vec<String>, u64),
    /// The part is kept, with these tags.
    KeepPart(Storable, Vec<String>),
    /// It is passed on to the client that asked, and that is remembered.
    Pass(NotStorable),
    /// It is a part although the whole was asked for: it is passed on, and says nothing else.
    UnaskedPart,
    /// The stored response is good again, with the fields of this one.
    Freshen,
    /// A stale response stands in for it, if there is one that may.
    StandIn,
    /// It says nothing: the origin is asked again, for the whole.
    AskAgain,
    /// It is passed on, and says something of the stored response to GET.
    LearnFrom,
}

/// Says what an answer means for the stored response that is to be validated, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validates {
    /// It validates it, or a stale response may stand in for it.
    Yes,
    /// It validates it; nothing stands in for an error.
    NothingStandsIn,
    /// It is the answer to a request for the whole, and says nothing of it.
    No,
}

/// The head of the origin's answer, and what else decides on it.
pub(super) struct AnswerHead<'a> {
    /// The request that was answered, and the answer.
    pub(super) exchange: &'a Exchange<'a>,
    /// The length of the body, if that is known.
    pub(super) len: Option<u64>,
    /// True if the body ends with the connection, and nobody can tell whether it is complete.
    pub(super) is_unframed: bool,
    /// True if the origin was asked for a range.
    pub(super) asked_for_range: bool,
    /// Says what the answer means for a stored response that is to be validated.
    pub(super) validation: Validates,
}

/// What the tiers take.
pub(super) struct Room<L, A> {
    /// The largest body that memory takes.
    pub(super) in_memory: u64,
    /// True if there is a durable tier.
    pub(super) has_durable: bool,
    /// Returns the largest body that may be kept of a response.
    pub(super) largest: L,
    /// Returns whether the durable tier takes one that memory does not. Counts uses: asked last, and only where it decides.
    pub(super) admits_large: A,
}

/// Decides on the head of the origin's answer to what was ordered.
pub(super) fn on_head<L: Fn(&Storable) -> u64, A: Fn(&Storable) -> bool>(
    order: &Order,
    answer: &AnswerHead<'_>,
    room: &Room<L, A>,
) -> HeadDecision {
    let (exchange, status) = (answer.exchange, answer.exchange.status);
    // A part although the whole was asked for is the origin's word to this client, and no more.
    if status == StatusCode::PARTIAL_CONTENT && !answer.asked_for_range {
        return HeadDecision::UnaskedPart;
    }
    if let Some(stored) = order.held.validate.as_ref().filter(|_| answer.validation != Validates::No) {
        match validation::outcome(status, exchange.response, &stored.head.fields.to_map()) {
            // RFC 9111 §4.3.3: "A 304 (Not Modified) response status code indicates that the stored response can be
            // updated and reused".
            Validation::Freshened => return HeadDecision::Freshen,
            // §4.3.3: "if a cache receives a 5xx … it can either forward this response … or act as if the server failed
            // to respond".
            Validation::Failed if answer.validation == Validates::Yes => return HeadDecision::StandIn,
            // §4.3.4: such a 304 updates nothing, and without the stored response it says nothing to the client.
            Validation::Mismatched => return HeadDecision::AskAgain,
            // §4.3.3: "A full response … indicates that none of the stored responses … are suitable".
            Validation::Failed | Validation::Replaced => {}
        }
    }
    match may_be_kept(order, answer, room) {
        Ok((storable, tags, _)) if storable.part().is_some() => HeadDecision::KeepPart(storable, tags),
        Ok((storable, tags, largest)) => HeadDecision::Keep(storable, tags, largest),
        Err(_) if *order.method() == Method::HEAD => HeadDecision::LearnFrom,
        Err(why) => HeadDecision::Pass(why),
    }
}

fn may_be_kept<L: Fn(&Storable) -> u64, A: Fn(&Storable) -> bool>(
    order: &Order,
    answer: &AnswerHead<'_>,
    room: &Room<L, A>,
) -> Result<(Storable, Vec<String>, u64), NotStorable> {
    let exchange = answer.exchange;
    let storable = storable(exchange, &order.asked.terms.policy)?;
    if answer.is_unframed {
        return Err(NotStorable::Unframed);
    }
    // Nor does an error take the place of a page that is fresh: one client's fields may have caused it.
    let is_fresh = |stored: &StoredResponse| {
        stored.head.status.is_success() && stored.head.freshness.is_fresh(exchange.response_time)
    };
    if order.held.validate.as_deref().is_some_and(is_fresh) && !storage::speaks_of_the_page(exchange.status) {
        return Err(NotStorable::Status);
    }
    let tags = order.tags_of(exchange.response).map_err(|_| NotStorable::Tags)?;
    // A part of a whole that memory does not take would stand in the way of that.
    let is_of_large = storable.part().is_some_and(|part| part.complete > room.in_memory);
    if is_of_large && room.has_durable {
        return Err(NotStorable::TooLarge);
    }
    // What fits into memory has no need of the durable tier.
    let largest = match answer.len {
        Some(len) if len <= room.in_memory => room.in_memory,
        Some(len) if len > (room.largest)(&storable) => room.in_memory,
        Some(_) if !(room.admits_large)(&storable) => room.in_memory,
        Some(_) | None => (room.largest)(&storable),
    };
    if answer.len.is_none_or(|len| len <= largest) { Ok((storable, tags, largest)) } else { Err(NotStorable::TooLarge) }
}

/// Returns whether a response is a part, or says that the client's own condition failed: it says nothing of the whole.
pub(super) fn is_partial(status: StatusCode) -> bool {
    matches!(status.as_u16(), 206 | 304 | 412 | 416)
}
