//! Decides whether a response may be stored (RFC 9111 §3).
//!
//! [`storable`] is the only way to a [`Storable`], and a `Storable` is the only thing that becomes a stored response:
//! no tier can hold what did not pass here.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};

use super::directives::{CacheControl, Delta};
use super::fields;
use super::freshness::{self, Freshness, LifetimePolicy, LifetimeSource, StaleUse};
use super::partial::{Part, Parts};
use super::tags::TagFields;
use super::targeted::{Governing, governing};
use super::vary::{MAX_NOMINATED, Nominated, Vary};
use crate::rfc9111::timestamp::Timestamp;

/// `cache.set_cookie`: says whether a response that sets a cookie is stored. The strictest comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetCookie {
    /// Never stored.
    #[default]
    Never,
    /// Stored without its cookies, which only the client that it was fetched for gets; not if it varies by
    /// `Cookie`.
    Strip,
    /// Stored only when the origin grants a lifetime to shared caches alone, by `s-maxage` or a targeted field;
    /// not if it varies by `Cookie`.
    Explicit,
    /// Stored like any other response (RFC 9111 §7.3).
    Rfc,
}

/// Says what is done with the cookies of a response that may be stored otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cookies {
    /// There are none, or they are stored.
    Stored,
    /// They are left out.
    LeftOut,
    /// They keep the response from being stored.
    Forbid,
}

/// The configuration's settings for storing the response to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoragePolicy {
    /// See [`SetCookie`].
    pub set_cookie: SetCookie,
    /// Lifetimes that the configuration grants.
    pub lifetimes: LifetimePolicy,
    /// The fields that tags are read from.
    pub tag_fields: Arc<TagFields>,
    /// The request fields that select a response besides those that its `Vary` names.
    pub nominated: Arc<Nominated>,
}

/// The reason why a response is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStorable {
    /// The request method is not one whose responses are reused.
    Method,
    /// The status is informational, or 304, or must be understood and is not.
    Status,
    /// The response is a part (206) that does not say which, or of what, or that was not asked for; or an answer to a
    /// range that says nothing of the whole.
    Part,
    /// The client said `no-store`.
    RequestNoStore,
    /// The origin said `no-store`.
    NoStore,
    /// The origin said `private`.
    Private,
    /// The request was authenticated and the response does not say that it may be shared (§3.5).
    Authorization,
    /// The response sets a cookie and does not say that it may be shared.
    SetCookie,
    /// `Vary: *`, or more nominated fields than a cache can follow.
    Vary,
    /// The response could never be reused: it is never fresh, and has no validator.
    NothingToReuse,
    /// The body is larger than a tier takes.
    TooLarge,
    /// The response has more tags than can be kept, so it could not be purged by all of them.
    Tags,
    /// The body ends with its connection, so a complete one can't be told from a broken one (§3.3).
    Unframed,
    /// The response is of a type that goes on for as long as somebody listens.
    Stream,
}

impl NotStorable {
    /// Every reason.
    pub const ALL: [Self; 14] = [
        Self::Method,
        Self::Status,
        Self::Part,
        Self::RequestNoStore,
        Self::NoStore,
        Self::Private,
        Self::Authorization,
        Self::SetCookie,
        Self::Vary,
        Self::NothingToReuse,
        Self::TooLarge,
        Self::Tags,
        Self::Unframed,
        Self::Stream,
    ];

    /// Returns the reason in one word, for metrics, logs and `Cache-Status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::Part => "partial",
            Self::RequestNoStore => "request-no-store",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::Vary => "vary",
            Self::NothingToReuse => "no-lifetime",
            Self::TooLarge => "too-large",
            Self::Tags => "too-many-tags",
            Self::Unframed => "unframed",
            Self::Stream => "stream",
        }
    }

    /// Returns the reason in a sentence, with what would change it.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Method => "its method is not one whose responses are stored",
            Self::Status => "its status is one that is not stored",
            Self::Part => "it is a part that does not say of what, or says nothing of the whole",
            Self::RequestNoStore => "the request said no-store",
            Self::NoStore => "the response said no-store",
            Self::Private => "the response said private",
            Self::Authorization => {
                "the request had Authorization, and the response does not say public, must-revalidate or s-maxage"
            }
            Self::SetCookie => {
                "the response sets a cookie, and set_cookie does not let it be stored (\"strip\" and \"explicit\" never with Vary: Cookie)"
            }
            Self::Vary => "its Vary is *, or names a field that can't select a response here",
            Self::NothingToReuse => {
                "it states no lifetime (max-age, s-maxage, Expires) and has nothing to validate it by; a rule's timeout would grant one"
            }
            Self::TooLarge => "its body is larger than memory.max_object_size, and the durable tier does not take it",
            Self::Tags => "it has more tags than can be kept, and could not be purged by all of them",
            Self::Unframed => "its body ends with the connection, so that nobody can tell whether it is complete",
            Self::Stream => "its type is one of streams without end (text/event-stream, multipart/x-mixed-replace)",
        }
    }

    /// Returns whether the next response for the same key is likely to be refused as well. Clients then do not wait
    /// for each other.
    pub fn is_about_the_response(self) -> bool {
        match self {
            Self::Method | Self::RequestNoStore | Self::Part => false,
            Self::Authorization
            | Self::Status
            | Self::NoStore
            | Self::Private
            | Self::SetCookie
            | Self::Vary
            | Self::NothingToReuse
            | Self::TooLarge
            | Self::Tags
            | Self::Unframed
            | Self::Stream => true,
        }
    }

    /// Returns whether a response that is not stored for this reason makes the stored one stale for everybody.
    ///
    /// It does not if it may concern one client alone: it sets a cookie, its request had a `Cookie` or `Authorization`
    /// that does not select it, or it is an error, which one client's fields may have caused. A page that is gone
    /// (404, 410) concerns everybody.
    pub fn outdates(self, status: StatusCode, request: &HeaderMap, stored: Option<&[HeaderName]>) -> bool {
        self.is_about_the_response()
            && self != Self::SetCookie
            && speaks_of_the_page(status)
            && speaks_for_all(request, stored)
    }
}

/// Returns whether the answer to a request speaks for all who would get the stored response. It does not if the
/// request had a `Cookie` or `Authorization` that does not select the stored response.
pub fn speaks_for_all(request: &HeaderMap, stored: Option<&[HeaderName]>) -> bool {
    [header::COOKIE, header::AUTHORIZATION]
        .iter()
        .all(|name| !request.contains_key(name) || stored.is_some_and(|names| names.contains(name)))
}

/// Returns whether a status says something about the page for everyone, rather than about one request or a failure.
pub fn speaks_of_the_page(status: StatusCode) -> bool {
    (status.is_success() && status != StatusCode::PARTIAL_CONTENT)
        || (status.is_redirection() && status != StatusCode::NOT_MODIFIED)
        || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

/// Proof that RFC 9111 §3 allows a shared cache to store a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storable {
    vary: Vary,
    freshness: Freshness,
    part: Option<Part>,
    cookies: Cookies,
    inherits_vary: bool,
}

impl Storable {
    /// Returns the request fields that select the response.
    pub fn vary(&self) -> &Vary {
        &self.vary
    }

    /// Returns its freshness.
    pub fn freshness(&self) -> &Freshness {
        &self.freshness
    }

    /// Returns whether the response is stored without the cookies that it sets.
    pub fn leaves_out_cookies(&self) -> bool {
        self.cookies == Cookies::LeftOut
    }

    /// Makes the response vary by `others` as well, by which fresh responses for its key vary.
    ///
    /// §4.1 chooses the most recent response "with a valid Vary field value": one that names fewer fields must not
    /// hide those that name more. It then answers requests that have those fields as its own request did.
    #[must_use]
    pub fn beside(self, others: &[HeaderName]) -> Self {
        let own = match &self.vary {
            Vary::Fields(names) => &names[..],
            Vary::None | Vary::Any => &[],
        };
        let mut names: Vec<HeaderName> = own.iter().chain(others).cloned().collect();
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        if names.len() == own.len() || names.len() > MAX_NOMINATED {
            return self;
        }
        Self { vary: Vary::Fields(names), inherits_vary: true, ..self }
    }

    /// Returns whether the response varies by fields that only other responses for its key name.
    pub fn inherits_vary(&self) -> bool {
        self.inherits_vary
    }

    /// Returns the part of a representation that it is; `None`: it is a whole (§3.3).
    pub fn part(&self) -> Option<Part> {
        self.part
    }
}

/// One request and the head of the final response to it.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The method of the request as the client sent it.
    pub method: &'a Method,
    /// Its fields, as the client sent them.
    pub request: &'a HeaderMap,
    /// The status of the response.
    pub status: StatusCode,
    /// Its fields.
    pub response: &'a HeaderMap,
    /// The time at which the request was sent on.
    pub request_time: Timestamp,
    /// The time at which the response's head arrived.
    pub response_time: Timestamp,
}

/// RFC 9111 §3, sentence by sentence. It stays one function, so that it can be read against the RFC.
pub fn storable(exchange: &Exchange<'_>, policy: &StoragePolicy) -> Result<Storable, NotStorable> {
    let governing = governing(exchange.response, &policy.lifetimes.targets, exchange.response_time);
    let directives = &governing.directives;
    let status = exchange.status;
    let understood = is_understood(status);
    let require = |condition: bool, otherwise: NotStorable| if condition { Ok(()) } else { Err(otherwise) };

    // "the request method is understood by the cache" — and its response reusable for GET. For a POST the caller asks
    // `answers_get` whether it is (RFC 9110 §9.3.3).
    let is_post = exchange.method == Method::POST;
    require(exchange.method == Method::GET || is_post, NotStorable::Method)?;
    require(
        !is_post || (status == StatusCode::OK && governing.states_lifetime(exchange.response)),
        NotStorable::Method,
    )?;
    // "the response status code is final"
    require(status.as_u16() >= 200, NotStorable::Status)?;
    // "if the response status code is 206 or 304, or the must-understand cache directive is
    // present: the cache understands the response status code"
    require(status != StatusCode::NOT_MODIFIED, NotStorable::Status)?;
    // An answer to a range that is neither a part nor the whole (416, an error) is about the range.
    let asks_for_part = exchange.request.contains_key(header::RANGE);
    require(!asks_for_part || matches!(status.as_u16(), 200 | 206), NotStorable::Part)?;
    let part =
        if status == StatusCode::PARTIAL_CONTENT { Some(exchange.part().ok_or(NotStorable::Part)?) } else { None };
    require(understood || !directives.must_understand, NotStorable::Status)?;
    // "the no-store cache directive is not present in the response" — which must-understand
    // overrides for a status that is understood (§5.2.2.3).
    require(!directives.no_store || (directives.must_understand && understood), NotStorable::NoStore)?;
    // §5.2.1.5: nor in the request.
    require(!CacheControl::of_request(exchange.request).no_store, NotStorable::RequestNoStore)?;
    // "if the cache is shared: the private response directive is … not present"
    require(!directives.private, NotStorable::Private)?;
    // Each listener of a stream gets what is sent from then on, so that stored bytes are no answer.
    require(!is_stream(exchange.response), NotStorable::Stream)?;
    // "if the cache is shared: the Authorization header field is not present in the request or a
    // response directive is present that explicitly allows shared caching" (§3.5)
    require(
        !exchange.request.contains_key(header::AUTHORIZATION) || allows_authorized(directives),
        NotStorable::Authorization,
    )?;
    // §4.1: "a stored response with a Vary header field value containing a member "*" always
    // fails to match", so it is not worth storing.
    let vary = Vary::of(exchange.response, &policy.nominated);
    let cookies = cookies(exchange.response, &governing, &vary, policy.set_cookie);
    require(cookies != Cookies::Forbid, NotStorable::SetCookie)?;
    require(vary != Vary::Any, NotStorable::Vary)?;

    // "the response contains at least one of the following: public, Expires, max-age, s-maxage, …,
    // or a status code that is defined as heuristically cacheable"
    let freshness =
        Freshness::of(status, exchange.response, exchange.request_time, exchange.response_time, &policy.lifetimes);
    let may_be_reused = governing.states_lifetime(exchange.response)
        || (!policy.lifetimes.explicit_only
            && (freshness::allows_heuristic(status, directives) || freshness.source == LifetimeSource::Configuration));
    // Of those, only what can serve a later request, as it is or after validation, is kept.
    let is_of_use = freshness.is_reusable_as_it_is(exchange.response_time)
        || (!freshness.stale_if_error.is_zero() && freshness.stale_use == StaleUse::Allowed)
        || has_validator(status, exchange.response);
    require(may_be_reused && is_of_use, NotStorable::NothingToReuse)?;
    Ok(Storable { vary, freshness, part, cookies, inherits_vary: false })
}

impl Exchange<'_> {
    fn part(&self) -> Option<Part> {
        self.request.contains_key(header::RANGE).then(|| Part::of(self.response))?
    }
}

impl Storable {
    /// Returns the parts that are stored if nothing else of the representation is.
    pub fn parts(&self) -> Option<Parts> {
        self.part.map(Parts::from)
    }
}

/// §3.5: returns whether a response to a request with `Authorization` may be shared.
pub fn allows_authorized(response: &CacheControl) -> bool {
    response.public || response.must_revalidate || matches!(response.s_maxage, Some(Delta::Seconds(_)))
}

/// Returns whether a newer response about stored content forbids, by itself, to keep that content.
pub fn forbids(newer: &HeaderMap, policy: &StoragePolicy, now: Timestamp) -> bool {
    let directives = governing(newer, &policy.lifetimes.targets, now).directives;
    directives.no_store || directives.private
}

/// Returns whether a response is of a type that goes on for as long as somebody listens.
fn is_stream(response: &HeaderMap) -> bool {
    let Some(stated) = response.get(header::CONTENT_TYPE) else { return false };
    let essence = fields::trim(stated.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default());
    [&b"text/event-stream"[..], b"multipart/x-mixed-replace"].iter().any(|known| essence.eq_ignore_ascii_case(known))
}

/// Returns whether a response sets cookies by this field.
pub fn sets_cookies(name: &HeaderName) -> bool {
    *name == header::SET_COOKIE || name.as_str() == "set-cookie2"
}

/// Decides what is done with a response's cookies.
fn cookies(response: &HeaderMap, governing: &Governing, vary: &Vary, policy: SetCookie) -> Cookies {
    if !response.contains_key(header::SET_COOKIE) && !response.contains_key("set-cookie2") {
        return Cookies::Stored;
    }
    // A response that depends on the client's cookies, and changes them, belongs to that client.
    let is_of_a_client = matches!(vary, Vary::Fields(names) if names.contains(&header::COOKIE));
    match policy {
        SetCookie::Strip if !is_of_a_client => Cookies::LeftOut,
        SetCookie::Explicit if !is_of_a_client => {
            let directives = &governing.directives;
            // A lifetime of zero does not grant sharing, nor does one that needs validation.
            let lasts = |delta| matches!(delta, Some(Delta::Seconds(1..)));
            let is_granted = lasts(directives.s_maxage) || (governing.by_list && lasts(directives.max_age));
            if is_granted && !directives.no_cache { Cookies::Stored } else { Cookies::Forbid }
        }
        SetCookie::Rfc => Cookies::Stored,
        SetCookie::Never | SetCookie::Strip | SetCookie::Explicit => Cookies::Forbid,
    }
}

/// Returns whether a stale copy could be freshened by validation (§4.3).
fn has_validator(status: StatusCode, response: &HeaderMap) -> bool {
    matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
        && (response.contains_key(header::ETAG) || response.contains_key(header::LAST_MODIFIED))
}

/// Returns whether this cache implements the caching behaviour of a status (RFC 9110 §15).
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=206 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505
    )
}

#[cfg(test)]
mod tests;
