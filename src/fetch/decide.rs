//! Decides what is done with a request, and with the head of the origin's answer.
//!
//! Everything here is pure: the request, the stored response, the terms and the time go in, a value comes out. `proxy`
//! and [`Fetch`](super::fetch::Fetch) carry it out, and `explain` shows it. Nothing awaits, reads a clock, or does
//! I/O.

use http::header::HeaderMap;
use http::{Method, StatusCode};

use super::hit_for_miss::Unshared;
use super::order::{Order, Terms};
use crate::entry::{StoredHead, StoredResponse};
use crate::rfc9111::cache_status::Fwd;
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::present::Present;
use crate::rfc9111::reuse::{self, Failure, Reuse, Why};
use crate::rfc9111::storage::{self, Exchange, NotStorable, Storable, storable};
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::validation::{self, Validation};

/// The decision on a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Passes the request on: no stored response may answer it.
    Pass(Fwd),
    /// Does this with the stored response that the key and `Vary` select.
    Stored(OnStored),
    /// Asks the durable tier and the origin, for this reason: nothing is stored that they select.
    Fetch(Fwd),
}

/// The decision on a request for which a response is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OnStored {
    /// Answers from the stored response.
    Answer(Use, Background),
    /// Asks the durable tier and the origin, for this reason.
    Fetch(Fwd),
    /// Answers 504: the client accepts only a stored response, and this one will not do (RFC 9111 §5.2.1.7).
    NotCached,
}

/// The reason for using a stored response.
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

/// Says whether a stored response that is used is also validated in the background.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Background {
    /// Not validated.
    No,
    /// Validated.
    Yes,
    /// Validated with this probability, before it expires. A lot is drawn so that processes that ask at the same time
    /// do not all validate.
    Perhaps(f64),
}

/// The properties of a request that decide what is done with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inquiry<'a> {
    /// The method.
    pub(crate) method: &'a Method,
    /// The fields.
    pub(crate) fields: &'a HeaderMap,
    /// The fields among them that matter to caching.
    pub(crate) present: Present,
    /// True if the request has content.
    pub(crate) has_content: bool,
}

/// Decides to pass on a request that no stored response may answer; `None`: a stored response may.
#[inline]
pub(crate) fn without_looking(inquiry: Inquiry<'_>, bypass: bool) -> Option<Fwd> {
    if bypass {
        return Some(Fwd::Bypass);
    }
    // RFC 9111 §4: "the request method associated with the stored response allows it to be used for the presented
    // request": responses to GET are stored, and answer GET and HEAD.
    if *inquiry.method != Method::GET && *inquiry.method != Method::HEAD {
        return Some(Fwd::Method);
    }
    // Content in a GET may change the response, and is no part of the key. RFC 9110 §13.1.1, §13.1.4: If-Match and
    // If-Unmodified-Since are conditions on the origin's state.
    if inquiry.has_content || inquiry.present.has(Present::FOR_THE_ORIGIN) {
        return Some(Fwd::Request);
    }
    None
}

/// Decides on a request for which a response is stored. Its key and `Vary` select that response, whose body here has
/// `len` bytes, and no purge covers it.
///
/// `directives` are the request's, as far as they count for this response. `early_refresh` is the last part of a
/// lifetime, in thousandths, in which the response is validated before it expires.
#[inline]
pub(crate) fn with_stored(
    inquiry: Inquiry<'_>,
    directives: &CacheControl,
    head: &StoredHead,
    len: u64,
    early_refresh: u16,
    known_failure: impl FnOnce() -> Option<Failure>,
    now: Timestamp,
) -> OnStored {
    // RFC 9111 §3.3: an incomplete response answers only for ranges that it holds.
    if !head.can_answer(inquiry.method, inquiry.fields, len) {
        return OnStored::Fetch(Fwd::Partial);
    }
    match reuse::reuse(directives, &head.freshness, now) {
        Reuse::Fresh if early_refresh == 0 => OnStored::Answer(Use::Fresh, Background::No),
        Reuse::Fresh => OnStored::Answer(Use::Fresh, before_it_expires(head, early_refresh, now)),
        Reuse::Stale => OnStored::Answer(Use::Accepted, Background::No),
        // RFC 9111 §5.2.1.7: "either respond using a stored response … or respond with a 504".
        Reuse::GatewayTimeout => OnStored::NotCached,
        // A part is not validated in the background: a fetch adds to it.
        Reuse::StaleWhileRevalidate if head.parts().is_none() => {
            OnStored::Answer(Use::WhileRevalidate, Background::Yes)
        }
        Reuse::StaleWhileRevalidate => OnStored::Fetch(Fwd::Stale),
        Reuse::Validate(Why::Request) => OnStored::Fetch(Fwd::Request),
        Reuse::Validate(Why::Stale) if head.parts().is_none() => {
            let stands_in = |failure: &Failure| reuse::stale_if_error(directives, &head.freshness, *failure, now);
            match known_failure().filter(stands_in) {
                Some(failure) => OnStored::Answer(Use::InPlaceOf(failure), Background::Yes),
                None => OnStored::Fetch(Fwd::Stale),
            }
        }
        Reuse::Validate(Why::Stale) => OnStored::Fetch(Fwd::Stale),
    }
}

/// Decides why the origin is asked for a request that no stored response is selected for.
#[inline]
pub(crate) fn with_nothing(has_other_variants: bool) -> Fwd {
    if has_other_variants { Fwd::VaryMiss } else { Fwd::UriMiss }
}

/// Returns the probability of a validation before the response expires. It rises towards the end, and sooner for
/// responses that take long to fetch, so that the new one arrives in time.
fn before_it_expires(head: &StoredHead, early_refresh: u16, now: Timestamp) -> Background {
    let window = head.freshness.lifetime.saturating_mul(i64::from(early_refresh)) / 1000;
    let remaining = head.freshness.remaining(now);
    if remaining <= 0 || remaining > window {
        return Background::No;
    }
    let fetched_in = head.response_time().millis_since(head.request_time());
    let mean = fetched_in.max(window / 10).max(1);
    // The probability that an exponentially distributed time with this mean is at least `remaining`.
    #[expect(clippy::cast_precision_loss, reason = "a probability")]
    let probability = (-(remaining as f64) / mean as f64).exp();
    Background::Perhaps(probability)
}

/// Says for whom a response is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// For this client alone.
    Alone,
    /// For everybody who asks alike, and the whole although this client wants a range.
    Whole,
    /// For everybody who asks alike at the same time.
    Together,
}

/// Decides for whom a response is fetched. `unshared` is what hit-for-miss remembers of requests that ask alike; `limit`
/// is the largest body that memory takes.
pub(crate) fn sharing(order: &Order, unshared: Option<Unshared>, limit: u64) -> Sharing {
    let (asked, held) = (&order.asked, &order.held);
    let Terms { collapse, .. } = asked.terms;
    let is_get = *order.method() == Method::GET;
    let is_of_a_whole = is_get && held.validate.as_ref().is_some_and(|stored| stored.head.parts().is_none());
    let wants_own = asked.directives.only_if_cached || asked.directives.no_store || unshared.is_some();
    if collapse && !wants_own && order.prefers_whole(limit) {
        return Sharing::Whole;
    }
    // A flight is not worth it for what only this client can use: a HEAD, a part, a response that may not be stored,
    // or one that each request validates for itself.
    if wants_own || !collapse || !(order.is_for_the_whole() || is_of_a_whole) {
        return Sharing::Alone;
    }
    Sharing::Together
}

/// Returns whether a request is passed on at once: responses to requests that ask alike could not be stored lately,
/// and neither tier has one.
#[inline]
pub(crate) fn is_passed_on(
    inquiry: Inquiry<'_>,
    directives: &CacheControl,
    unshared: Option<Unshared>,
    has_stored: bool,
    may_be_durable: impl FnOnce() -> bool,
) -> bool {
    unshared == Some(Unshared::NotStorable)
        && *inquiry.method == Method::GET
        && !inquiry.present.has(Present::RANGE)
        && !has_stored
        && !directives.only_if_cached
        && !may_be_durable()
}

/// The decision on the head of the origin's answer.
#[derive(Debug)]
pub(super) enum HeadDecision {
    /// Keeps the response, with these tags, if its body has at most so many bytes.
    Keep(Storable, Vec<String>, u64),
    /// Keeps the part, with these tags.
    KeepPart(Storable, Vec<String>),
    /// Passes the response on to the client that asked, and remembers that it was not stored.
    Pass(NotStorable),
    /// Passes on a part that was not asked for. It says nothing of later responses.
    UnaskedPart,
    /// Freshens the stored response with the fields of this answer.
    Freshen,
    /// Serves a stale response in its place, if there is one that may be served.
    StandIn,
    /// Asks the origin again for the whole: this answer is of no use.
    AskAgain,
    /// Passes the answer to a HEAD on, and updates the stored response to GET by it.
    LearnFrom,
}

/// Says what an answer means for the stored response to be validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validates {
    /// It validates that response, or a stale response may stand in for it.
    Yes,
    /// It validates that response; nothing stands in for an error.
    NothingStandsIn,
    /// It answers a request for the whole, and validates nothing.
    No,
}

/// The head of the origin's answer, with what the decision needs besides.
pub(super) struct AnswerHead<'a> {
    /// The request and the answer to it.
    pub(super) exchange: &'a Exchange<'a>,
    /// The length of the body, if it is known.
    pub(super) len: Option<u64>,
    /// True if the body ends with the connection, so that a complete one can't be told from a broken one.
    pub(super) is_unframed: bool,
    /// True if the origin was asked for a range, or did not answer with one.
    pub(super) asked_for_range: bool,
    /// Says what the answer means for a stored response to be validated.
    pub(super) validation: Validates,
}

/// The largest bodies that the tiers take.
pub(super) struct KeepLimits<L, A> {
    /// The largest body that memory takes.
    pub(super) in_memory: u64,
    /// True if there is a durable tier.
    pub(super) has_durable: bool,
    /// Returns the largest body that may be kept for a response.
    pub(super) largest: L,
    /// Returns whether the durable tier takes a body that memory does not. The call counts as a use, so it is made
    /// last, and only where it decides.
    pub(super) admits_large: A,
}

/// Decides on the head of the origin's answer to an order.
pub(super) fn on_head<L: Fn(&Storable) -> u64, A: Fn(&Storable) -> bool>(
    order: &Order,
    answer: &AnswerHead<'_>,
    limits: &KeepLimits<L, A>,
) -> HeadDecision {
    let (exchange, status) = (answer.exchange, answer.exchange.status);
    // A part that was not asked for is passed to this client. It says nothing of what others would get.
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
            // §4.3.4: a 304 for another representation updates nothing, and the client can't use it without the stored
            // response.
            Validation::Mismatched => return HeadDecision::AskAgain,
            // §4.3.3: "A full response … indicates that none of the stored responses … are suitable".
            Validation::Failed | Validation::Replaced => {}
        }
    }
    match may_be_kept(order, answer, limits) {
        Ok((storable, tags, _)) if storable.part().is_some() => HeadDecision::KeepPart(storable, tags),
        Ok((storable, tags, largest)) => HeadDecision::Keep(storable, tags, largest),
        Err(_) if *order.method() == Method::HEAD => HeadDecision::LearnFrom,
        Err(why) => HeadDecision::Pass(why),
    }
}

fn may_be_kept<L: Fn(&Storable) -> u64, A: Fn(&Storable) -> bool>(
    order: &Order,
    answer: &AnswerHead<'_>,
    limits: &KeepLimits<L, A>,
) -> Result<(Storable, Vec<String>, u64), NotStorable> {
    let exchange = answer.exchange;
    let storable = storable(exchange, &order.asked.terms.policy)?;
    if answer.is_unframed {
        return Err(NotStorable::Unframed);
    }
    // An error does not replace a page that is still fresh either: one client's fields may have caused it.
    let is_fresh = |stored: &StoredResponse| {
        stored.head.status.is_success() && stored.head.freshness.is_fresh(exchange.response_time)
    };
    if order.held.validate.as_deref().is_some_and(is_fresh) && !storage::speaks_of_the_page(exchange.status) {
        return Err(NotStorable::Status);
    }
    let tags = order.tags_of(exchange.response).map_err(|_| NotStorable::Tags)?;
    // A part of an object too large for memory is not stored: it would keep the whole from being stored.
    let is_of_large = storable.part().is_some_and(|part| part.complete > limits.in_memory);
    if is_of_large && limits.has_durable {
        return Err(NotStorable::TooLarge);
    }
    // A body that fits into memory does not need the durable tier's limit.
    let largest = match answer.len {
        Some(len) if len <= limits.in_memory => limits.in_memory,
        Some(len) if len > (limits.largest)(&storable) => limits.in_memory,
        Some(_) if !(limits.admits_large)(&storable) => limits.in_memory,
        Some(_) | None => (limits.largest)(&storable),
    };
    if answer.len.is_none_or(|len| len <= largest) { Ok((storable, tags, largest)) } else { Err(NotStorable::TooLarge) }
}

/// Returns whether a response says nothing of the whole: it is a part, or says that the client's own condition failed.
pub(super) fn is_partial(status: StatusCode) -> bool {
    matches!(status.as_u16(), 206 | 304 | 412 | 416)
}
