//! The head of a stored response: all of it but the body.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName};
use http::{Method, StatusCode};

use super::fields::Fields;
use super::marks::{BodyObject, Marks};
use super::response::StoredResponse;
use super::version_vector::{Covered, VersionVector};
use crate::rfc9111::freshness::Freshness;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::partial::Parts;
use crate::rfc9111::storage::{Storable, sets_cookies};
use crate::rfc9111::tags::TagFields;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary::Vary;
use crate::rfc9111::{conditional, partial, vary};

/// The request fields that select a stored response (RFC 9111 §4.1), and their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The nominated fields, sorted.
    pub names: Vec<HeaderName>,
    /// Their values, as [`vary::selector`] encodes them.
    pub selector: Vec<u8>,
}

/// All of a stored response but its body. Takes 160 bytes for each response in memory.
#[derive(Clone, Debug)]
pub struct StoredHead {
    /// The full key.
    pub key: CacheKey,
    /// The fields as the origin sent them, without those of the connection.
    pub fields: Fields,
    /// The times and lifetimes that its freshness is calculated from.
    pub freshness: Freshness,
    /// The purge position in this process when its fetch began, or when it was read from the durable tier. Only later
    /// purges cover it.
    pub position: u64,
    /// The purges of other processes that this one knew of at that position.
    pub version_vector: Arc<VersionVector>,
    /// The properties that few responses have.
    pub(super) rare: Option<Box<Rare>>,
    /// The object of its body in the durable tier, if that keeps the body apart from the head. Shared by all heads with
    /// the same body.
    pub body_object: Option<Arc<BodyObject>>,
    /// The state that changes while it is kept.
    pub marks: Marks,
    /// Milliseconds from its request to its head.
    pub(super) took: u32,
    /// The status code.
    pub status: StatusCode,
    /// True if it is not found by its URL's key alone: as a variant, for several queries, or for a QUERY.
    pub is_found_otherwise: bool,
}

/// The properties that few responses have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rare {
    /// See [`StoredHead::variant`].
    pub(super) variant: Option<Variant>,
    /// See [`StoredHead::parts`].
    pub(super) parts: Option<Parts>,
    /// See [`StoredHead::tags`].
    pub(super) tags: Box<[String]>,
    /// True if the variant has fields that only the `Vary` of other responses for the key names.
    pub(super) inherits_vary: bool,
}

impl Rare {
    /// Returns the properties, or `None` if there are none.
    pub(super) fn boxed(self) -> Option<Box<Self>> {
        let is_none = self == Self::default();
        (!is_none).then(|| Box::new(self))
    }
}

/// The parts of a response that is about to be stored.
#[derive(Debug)]
pub struct NewHead<'a> {
    /// The key of the request.
    pub key: &'a CacheKey,
    /// The fields of the request as its client sent them.
    pub request: &'a HeaderMap,
    /// The response's status.
    pub status: StatusCode,
    /// The response's fields, without those of the connection.
    pub fields: &'a HeaderMap,
    /// Time at which the request was sent.
    pub request_time: Timestamp,
    /// Time at which the response's head arrived.
    pub response_time: Timestamp,
    /// See [`StoredHead::position`].
    pub position: u64,
    /// See [`StoredHead::version_vector`].
    pub version_vector: Arc<VersionVector>,
    /// The tags that it can be purged by.
    pub tags: Vec<String>,
    /// The fields that are not stored, since clients do not get them.
    pub hidden: &'a TagFields,
}

impl StoredHead {
    /// Makes the head of a response that may be stored.
    pub fn new(storable: &Storable, new: NewHead<'_>) -> Self {
        let variant = match storable.vary() {
            Vary::None | Vary::Any => None,
            Vary::Fields(names) => Some(Variant { names: names.clone(), selector: vary::selector(names, new.request) }),
        };
        let is_found_otherwise = variant.is_some() || new.key.is_found_otherwise();
        let inherits_vary = storable.inherits_vary();
        let rare = Rare { variant, parts: storable.parts(), tags: new.tags.into(), inherits_vary };
        Self {
            key: new.key.clone(),
            fields: kept(new.fields, new.hidden, storable.leaves_out_cookies()),
            freshness: *storable.freshness(),
            position: new.position,
            version_vector: new.version_vector,
            rare: rare.boxed(),
            body_object: None,
            marks: Marks::default(),
            took: took(new.request_time, new.response_time),
            status: new.status,
            is_found_otherwise,
        }
    }

    /// Returns the requests for the key that it answers; `None`: all.
    pub fn variant(&self) -> Option<&Variant> {
        self.rare.as_ref()?.variant.as_ref()
    }

    /// Returns whether its own `Vary` names all the fields that select it.
    pub fn states_vary(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.variant.is_some() && !rare.inherits_vary)
    }

    /// Returns the hash by which its uses are counted: that of its key, or of its variant.
    pub fn uses_hash(&self) -> u128 {
        self.variant().map_or(self.key.hash(), |variant| self.key.variant_hash(&variant.selector))
    }

    /// Returns the parts of the representation that the body has; `None`: all of it.
    pub fn parts(&self) -> Option<&Parts> {
        self.rare.as_ref()?.parts.as_ref()
    }

    /// Returns the tags that it can be purged by.
    pub fn tags(&self) -> &[String] {
        self.rare.as_ref().map_or(&[], |rare| &rare.tags)
    }

    /// Sets the parts of the representation that the body has.
    pub fn set_parts(&mut self, parts: Option<Parts>) {
        let mut rare = self.rare.take().map_or_else(Rare::default, |rare| *rare);
        rare.parts = parts;
        self.rare = rare.boxed();
    }

    /// Returns the time at which its request was sent.
    pub fn request_time(&self) -> Timestamp {
        self.response_time().plus_millis(-i64::from(self.took))
    }

    /// Returns the time at which its head arrived.
    pub fn response_time(&self) -> Timestamp {
        self.freshness.response_time
    }

    /// Returns the name of its body's object in the durable tier; 0: there is none.
    pub fn body_id(&self) -> u128 {
        self.body_object.as_ref().map_or(0, |object| object.id)
    }

    /// Returns whether its body's object was written to the durable tier.
    pub fn is_body_written(&self) -> bool {
        self.body_object.as_ref().is_some_and(|object| object.is_written())
    }

    /// Returns whether `Vary` lets this response answer `request` (RFC 9111 §4.1).
    pub fn is_selected_by(&self, request: &HeaderMap) -> bool {
        self.variant().is_none_or(|variant| {
            vary::selector(&variant.names, request) == variant.selector
                || (self.is_chosen() && vary::selects(&variant.selector, &self.fields.to_map(), request))
        })
    }

    /// Returns whether this is a representation that was chosen among others, and not a statement about them.
    fn is_chosen(&self) -> bool {
        matches!(self.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
    }

    /// Returns the other names that this response is found by (see [`vary::aliases_of_response`]).
    pub(super) fn aliases(&self, variant: &Variant) -> Vec<u128> {
        if self.is_chosen() { vary::aliases_of_response(&variant.selector, &self.fields.to_map()) } else { Vec::new() }
    }

    /// Returns whether this response can answer a request of `method` with `fields`. A stored part, of which there are
    /// `len` bytes, answers only ranges that it has (RFC 9111 §3.3).
    pub fn can_answer(&self, method: &Method, fields: &HeaderMap, len: u64) -> bool {
        self.parts().is_none_or(|parts| {
            *method == Method::GET && self.if_range_holds(fields) && parts.slice(fields, len).is_some()
        })
    }

    /// Returns whether both responses certainly have the same representation.
    pub fn is_of_the_same(&self, other: &Self) -> bool {
        let (own, others) = (self.fields.to_map(), other.fields.to_map());
        partial::is_same_representation((&own, self.response_time()), (&others, other.response_time()))
    }

    /// Returns whether `If-Range` lets this response answer with a range (RFC 9110 §13.1.5).
    pub fn if_range_holds(&self, request: &HeaderMap) -> bool {
        !request.contains_key(http::header::IF_RANGE)
            || conditional::if_range_holds(request, &self.fields.to_map(), self.response_time())
    }

    /// Returns whether this stored response is kept, rather than replaced by `new`.
    ///
    /// A part does not replace a complete response. A complete response replaces a part of the same representation.
    /// Otherwise the response that was received later is kept. A time of receipt in the future is a clock's error, and
    /// does not count.
    pub fn outranks(&self, new: &Self, now: Timestamp) -> bool {
        let is_same = || self.is_of_the_same(new);
        match (self.parts(), new.parts()) {
            (None, Some(_)) => true,
            (Some(_), None) if is_same() => false,
            (None, None) | (Some(_), _) => self.response_time() > new.response_time() && self.response_time() <= now,
        }
    }

    /// Applies a purge: makes the response stale if it covers it softly. Returns whether the response may still be kept.
    pub fn outlives(&mut self, covered: Covered) -> bool {
        if let Covered::Softly(moment) = covered {
            self.freshness.expire(moment);
        }
        covered != Covered::Wholly
    }

    /// Returns whether `Content-Length`, where it is stated, is `len`. With a body of another length, a client would
    /// take bytes of this response for the next one on its connection.
    pub fn is_of_length(&self, len: u64) -> bool {
        let mut lengths = self.fields.iter().filter(|(name, _)| **name == http::header::CONTENT_LENGTH);
        lengths.all(|(_, value)| std::str::from_utf8(value).is_ok_and(|text| text.parse() == Ok(len)))
    }

    /// Returns about how many bytes this head takes in memory.
    pub fn weight(&self) -> usize {
        let rare = self.rare.as_ref().map_or(0, |_| size_of::<Rare>());
        let variant = self.variant().map_or(0, |v| v.selector.len() + v.names.len() * 32);
        let tags: usize = self.tags().iter().map(|tag| tag.len() + size_of::<String>()).sum();
        let parts = self.parts().map_or(0, |parts| parts.ranges().len() * 16);
        OVERHEAD + rare + parts + self.key.as_bytes().len() + self.fields.weight() + variant + tags
    }
}

/// Bytes that every response takes in memory: its own size, its reference counts, those of its key, and the memory
/// tier's bookkeeping.
const OVERHEAD: usize = size_of::<StoredResponse>() + 16 + 16 + 320;

/// Returns the milliseconds from a request to the head of its response; 0 if the clock was set back.
pub(super) fn took(request_time: Timestamp, response_time: Timestamp) -> u32 {
    u32::try_from(response_time.millis_since(request_time).max(0)).unwrap_or(u32::MAX)
}

/// Returns the fields that are stored. Drops `Trailer`, since trailers are not stored.
fn kept(fields: &HeaderMap, hidden: &TagFields, leaves_out_cookies: bool) -> Fields {
    let stays = |name: &HeaderName| {
        *name != http::header::TRAILER && !hidden.hides(name) && !(leaves_out_cookies && sets_cookies(name))
    };
    Fields::new(fields.iter().filter(|(name, _)| stays(name)))
}

#[cfg(test)]
pub(crate) mod tests;
