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

/// The request fields that a stored response was selected by, and the values they had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The nominated fields, sorted.
    pub names: Vec<HeaderName>,
    /// Their values, as [`vary::selector`] writes them.
    pub selector: Vec<u8>,
}

/// All of a stored response but its body. Every response in memory has one: it is 160 bytes.
#[derive(Clone, Debug)]
pub struct StoredHead {
    /// The exact key.
    pub key: CacheKey,
    /// Its fields as the origin sent them, without those of the connection.
    pub fields: Fields,
    /// What time does to it.
    pub freshness: Freshness,
    /// The purge position when its fetch began, or when it was read from the durable tier: only later
    /// purges cover it. Positions are of one process.
    pub position: u64,
    /// The purges that its process knew of when its fetch began: what other processes compare purges with.
    pub version_vector: Arc<VersionVector>,
    /// What few responses have.
    pub(super) rare: Option<Box<Rare>>,
    /// Its body's own object in the durable tier, when the body is kept apart from the head; shared by all
    /// heads with the same body.
    pub body_object: Option<Arc<BodyObject>>,
    /// What happens to it while it is kept.
    pub marks: Marks,
    /// For how many milliseconds its request was under way when its head arrived.
    pub(super) took: u32,
    /// Its status.
    pub status: StatusCode,
    /// Whether it is found by something else than its URL's key alone: as a variant, or for several queries.
    pub is_found_otherwise: bool,
}

/// What few responses have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rare {
    pub(super) variant: Option<Variant>,
    pub(super) parts: Option<Parts>,
    pub(super) tags: Box<[String]>,
    /// True if the variant has fields that only other responses for the key name in their `Vary`.
    pub(super) inherits_vary: bool,
}

impl Rare {
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
    /// When the request was sent.
    pub request_time: Timestamp,
    /// When the response's head arrived.
    pub response_time: Timestamp,
    /// See [`StoredHead::position`].
    pub position: u64,
    /// See [`StoredHead::version_vector`].
    pub version_vector: Arc<VersionVector>,
    /// What it can be purged by, besides its URL.
    pub tags: Vec<String>,
    /// The fields that are not kept, since clients do not see them.
    pub hidden: &'a TagFields,
}

impl StoredHead {
    /// Makes the head of a response that may be stored.
    pub fn new(storable: &Storable, new: NewHead<'_>) -> Self {
        let variant = match storable.vary() {
            Vary::None | Vary::Any => None,
            Vary::Fields(names) => Some(Variant { names: names.clone(), selector: vary::selector(names, new.request) }),
        };
        let is_found_otherwise = variant.is_some() || new.key.is_searched();
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

    /// Which requests for the key it answers; `None`: all.
    pub fn variant(&self) -> Option<&Variant> {
        self.rare.as_ref()?.variant.as_ref()
    }

    /// Returns whether its own `Vary` names all the fields that select it.
    pub fn states_vary(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.variant.is_some() && !rare.inherits_vary)
    }

    /// The hash by which its uses are counted: that of its key, or of the variant.
    pub fn uses_hash(&self) -> u128 {
        self.variant().map_or(self.key.hash(), |variant| self.key.variant_hash(&variant.selector))
    }

    /// What of the representation the body is; `None`: all of it.
    pub fn parts(&self) -> Option<&Parts> {
        self.rare.as_ref()?.parts.as_ref()
    }

    /// What it can be purged by, besides its URL.
    pub fn tags(&self) -> &[String] {
        self.rare.as_ref().map_or(&[], |rare| &rare.tags)
    }

    /// Has the body be `parts` of the representation.
    pub fn set_parts(&mut self, parts: Option<Parts>) {
        let mut rare = self.rare.take().map_or_else(Rare::default, |rare| *rare);
        rare.parts = parts;
        self.rare = rare.boxed();
    }

    /// When the request that it answers was sent.
    pub fn request_time(&self) -> Timestamp {
        self.response_time().plus_millis(-i64::from(self.took))
    }

    /// When its head arrived.
    pub fn response_time(&self) -> Timestamp {
        self.freshness.response_time
    }

    /// The name of its body's own object; 0: it has none.
    pub fn body_id(&self) -> u128 {
        self.body_object.as_ref().map_or(0, |object| object.id)
    }

    /// Whether its body's own object was written.
    pub fn is_body_written(&self) -> bool {
        self.body_object.as_ref().is_some_and(|object| object.is_written())
    }

    /// Whether this response answers `request`, as far as `Vary` goes (RFC 9111 §4.1).
    pub fn is_selected_by(&self, request: &HeaderMap) -> bool {
        self.variant().is_none_or(|variant| {
            vary::selector(&variant.names, request) == variant.selector
                || (self.is_chosen() && vary::selects(&variant.selector, &self.fields.to_map(), request))
        })
    }

    /// Whether this is a representation that was chosen among others, and not a word about them.
    fn is_chosen(&self) -> bool {
        matches!(self.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
    }

    /// What else this response is found by (see [`vary::aliases_of_response`]).
    pub(super) fn aliases(&self, variant: &Variant) -> Vec<u128> {
        if self.is_chosen() { vary::aliases_of_response(&variant.selector, &self.fields.to_map()) } else { Vec::new() }
    }

    /// Whether a request of `method` with `fields` can be answered from this response, whose body
    /// here is `len` bytes: a part answers only for ranges that it holds (RFC 9111 §3.3).
    pub fn can_answer(&self, method: &Method, fields: &HeaderMap, len: u64) -> bool {
        self.parts().is_none_or(|parts| {
            *method == Method::GET && self.if_range_holds(fields) && parts.slice(fields, len).is_some()
        })
    }

    /// Whether both are of one representation for certain.
    pub fn is_of_the_same(&self, other: &Self) -> bool {
        let (own, others) = (self.fields.to_map(), other.fields.to_map());
        partial::is_same_representation((&own, self.response_time()), (&others, other.response_time()))
    }

    /// Whether a range may be served from this response (RFC 9110 §13.1.5).
    pub fn if_range_holds(&self, request: &HeaderMap) -> bool {
        !request.contains_key(http::header::IF_RANGE)
            || conditional::if_range_holds(request, &self.fields.to_map(), self.response_time())
    }

    /// Whether this response, which is kept, stays where `new` would take its place.
    ///
    /// What is asked for in part says nothing against a whole, and gives way to the whole that it is of.
    /// Otherwise the one that was received later stays: an answer that took long is not newer for that.
    /// One from the future is a clock's mistake.
    pub fn outranks(&self, new: &Self, now: Timestamp) -> bool {
        let is_same = || self.is_of_the_same(new);
        match (self.parts(), new.parts()) {
            (None, Some(_)) => true,
            (Some(_), None) if is_same() => false,
            (None, None) | (Some(_), _) => self.response_time() > new.response_time() && self.response_time() <= now,
        }
    }

    /// Takes over what a purge left of it: all, nothing, or a stale response. Whether there is anything.
    pub fn outlives(&mut self, covered: Covered) -> bool {
        if let Covered::Softly(moment) = covered {
            self.freshness.expire(moment);
        }
        covered != Covered::Wholly
    }

    /// Whether a body of `len` bytes is the one that the fields speak of. One that is not would
    /// put bytes of one response into the next on a client's connection.
    pub fn is_of_length(&self, len: u64) -> bool {
        let mut lengths = self.fields.iter().filter(|(name, _)| **name == http::header::CONTENT_LENGTH);
        lengths.all(|(_, value)| std::str::from_utf8(value).is_ok_and(|text| text.parse() == Ok(len)))
    }

    /// The bytes that this head takes in memory, near enough to weigh it by.
    pub fn weight(&self) -> usize {
        let rare = self.rare.as_ref().map_or(0, |_| size_of::<Rare>());
        let variant = self.variant().map_or(0, |v| v.selector.len() + v.names.len() * 32);
        let tags: usize = self.tags().iter().map(|tag| tag.len() + size_of::<String>()).sum();
        let parts = self.parts().map_or(0, |parts| parts.ranges().len() * 16);
        OVERHEAD + rare + parts + self.key.as_bytes().len() + self.fields.weight() + variant + tags
    }
}

/// What an entry takes besides what it holds: the response's own size and its counts, those of its key, and
/// the memory tier's bookkeeping for one entry.
const OVERHEAD: usize = size_of::<StoredResponse>() + 16 + 16 + 320;

/// For how long a request was under way, as far as that can be told.
pub(super) fn took(request_time: Timestamp, response_time: Timestamp) -> u32 {
    u32::try_from(response_time.millis_since(request_time).max(0)).unwrap_or(u32::MAX)
}

/// What is kept of a response's fields. Trailers are not stored, and neither is what announces them.
fn kept(fields: &HeaderMap, hidden: &TagFields, leaves_out_cookies: bool) -> Fields {
    let stays = |name: &HeaderName| {
        *name != http::header::TRAILER && !hidden.hides(name) && !(leaves_out_cookies && sets_cookies(name))
    };
    Fields::new(fields.iter().filter(|(name, _)| stays(name)))
}

#[cfg(test)]
pub(crate) mod tests;
