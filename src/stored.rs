//! A stored response, and the versioned encoding in which the durable tier keeps it ([`encoding`]).
//!
//! A [`StoredResponse`] is made from a [`Storable`], the proof that RFC 9111 §3 allows it, or read
//! back from bytes that were once written from one.

pub mod encoding;
pub mod fields;
pub mod seen;
pub mod wire;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use http::{Method, StatusCode};

use self::fields::Fields;
use self::seen::{Covered, Seen};
use crate::clock::Timestamp;
use crate::rfc9111::conditional;
use crate::rfc9111::freshness::Freshness;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::partial::{self, Parts, Piece};
use crate::rfc9111::reuse::Failure;
use crate::rfc9111::storage::Storable;
use crate::rfc9111::tags::TagFields;
use crate::rfc9111::vary::{self, Vary};

/// Bodies are kept in pieces of at most this many bytes.
pub const SEGMENT: usize = 256 * 1024;

/// A complete body in memory. Clones share its bytes.
#[derive(Clone, Debug, Default)]
pub struct Body {
    segments: Segments,
    len: u64,
}

#[derive(Clone, Debug)]
enum Segments {
    One(Bytes),
    Many(Arc<[Bytes]>),
}

impl Default for Segments {
    fn default() -> Self {
        Self::One(Bytes::new())
    }
}

impl Body {
    /// Copies `chunks` together into pieces of their own, so that a stored body never keeps alive
    /// the larger network buffers that its bytes arrived in.
    pub fn from_chunks<'a>(chunks: impl Iterator<Item = &'a Bytes>, len: u64) -> Self {
        let mut segments = Vec::new();
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let mut current = Vec::with_capacity(left.min(SEGMENT));
        for chunk in chunks {
            let mut rest = &chunk[..];
            while !rest.is_empty() {
                let take = rest.len().min(SEGMENT - current.len());
                current.extend_from_slice(&rest[..take]);
                rest = &rest[take..];
                left = left.saturating_sub(take);
                if current.len() == SEGMENT {
                    segments.push(Bytes::from(std::mem::replace(&mut current, Vec::with_capacity(left.min(SEGMENT)))));
                }
            }
        }
        if !current.is_empty() {
            segments.push(Bytes::from(current.into_boxed_slice()));
        }
        Self::from_segments(segments)
    }

    fn from_segments(mut segments: Vec<Bytes>) -> Self {
        let len = segments.iter().map(|segment| segment.len() as u64).sum();
        let segments = match segments.len() {
            0 | 1 => Segments::One(segments.pop().unwrap_or_default()),
            _ => Segments::Many(segments.into()),
        };
        Self { segments, len }
    }

    /// Puts a body together from runs of two others.
    pub fn combined(old: &Self, new: &Self, pieces: &[Piece]) -> Self {
        let mut chunks = Vec::new();
        for piece in pieces {
            let from = if piece.is_new { new } else { old };
            from.cut(piece.offset, piece.len, &mut chunks);
        }
        let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        Self::from_chunks(chunks.iter(), len)
    }

    /// Appends to `chunks` the `len` bytes from `offset` on, or those of them that there are.
    pub fn cut(&self, offset: u64, len: u64, chunks: &mut Vec<Bytes>) {
        let (mut skip, mut left) = (offset, len);
        for segment in self.segments() {
            let size = segment.len() as u64;
            let start = skip.min(size);
            skip -= start;
            let take = (size - start).min(left);
            left -= take;
            // Both lie within the segment's length, which is a usize.
            if let (Ok(from), Ok(to)) = (usize::try_from(start), usize::try_from(start + take))
                && from < to
            {
                chunks.push(segment.slice(from..to));
            }
        }
    }

    /// The bytes from `offset` to the end of the piece that they are in; `None` at the end.
    pub fn piece_from(&self, offset: u64) -> Option<Bytes> {
        let offset = usize::try_from(offset).ok().filter(|_| offset < self.len)?;
        match self.segments() {
            [one] => Some(one.slice(offset..)),
            // Those of several pieces were put together here: all but the last have one size.
            many => Some(many.get(offset / SEGMENT)?.slice(offset % SEGMENT..)),
        }
    }

    /// The number of bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, if they are in one piece.
    pub fn into_one(self) -> Result<Bytes, Self> {
        match self.segments {
            Segments::One(bytes) => Ok(bytes),
            Segments::Many(_) => Err(self),
        }
    }

    /// The pieces, in order; each at most [`SEGMENT`] bytes when it came from a fill.
    pub fn segments(&self) -> &[Bytes] {
        match &self.segments {
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(segments) => segments,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::from_segments(vec![bytes])
    }
}

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
    /// The same for other processes: the purges that this one knew of.
    pub seen: Arc<Seen>,
    /// What few responses have.
    rare: Option<Box<Rare>>,
    /// Its body's own object in the durable tier, when the body is kept apart from the head; shared by all
    /// heads with the same body.
    pub body_object: Option<Arc<BodyObject>>,
    /// What happens to it while it is kept.
    pub marks: Marks,
    /// For how many milliseconds its request was under way when its head arrived.
    took: u32,
    /// Its status.
    pub status: StatusCode,
    /// Whether it is found by something else than its URL's key alone: as a variant, or for several queries.
    pub is_found_otherwise: bool,
}

/// What few responses have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rare {
    variant: Option<Variant>,
    parts: Option<Parts>,
    tags: Box<[String]>,
}

impl Rare {
    fn boxed(self) -> Option<Box<Self>> {
        let is_none = self == Self::default();
        (!is_none).then(|| Box::new(self))
    }
}

/// The object of a separate body in the durable tier.
#[derive(Debug)]
pub struct BodyObject {
    /// Names it.
    pub id: u128,
    /// Whether it was written.
    pub is_written: AtomicBool,
}

impl BodyObject {
    /// One that is still to be written, for the body of a response with `key`: its name begins with the key's
    /// hash, so that whoever finds it knows where its head would be, and is random otherwise.
    pub fn new(key: &CacheKey) -> Arc<Self> {
        let id = key.hash() >> 64 << 64 | u128::from(fastrand::u64(..));
        Arc::new(Self { id, is_written: AtomicBool::new(false) })
    }

    /// Notes that it is there, or is not any more.
    pub fn note(&self, is_written: bool) {
        self.is_written.store(is_written, Ordering::Release);
    }

    /// One that was written, with its name.
    pub fn written(id: u128) -> Arc<Self> {
        Arc::new(Self { id, is_written: AtomicBool::new(true) })
    }
}

/// What happens to a stored response while it is kept.
#[derive(Debug, Default)]
pub struct Marks {
    /// Whether the durable tier has this response, or is about to.
    pub is_durable: AtomicBool,
    /// When the origin last failed to validate it, in milliseconds, and how; 0: never.
    failed: AtomicI64,
    /// Whether it goes to the durable tier once it was used often enough.
    pub awaits_uses: AtomicBool,
    /// The purge position up to which it is known that no purge covers it.
    pub checked: AtomicU64,
}

/// A head that is made from another begins with what happened to that.
impl Clone for Marks {
    fn clone(&self) -> Self {
        Self {
            is_durable: AtomicBool::new(self.is_durable.load(Ordering::Acquire)),
            failed: AtomicI64::new(self.failed.load(Ordering::Relaxed)),
            awaits_uses: AtomicBool::new(self.awaits_uses.load(Ordering::Acquire)),
            checked: AtomicU64::new(self.checked.load(Ordering::Acquire)),
        }
    }
}

impl Marks {
    /// Those of a response that the durable tier has.
    pub fn durable() -> Self {
        Self { is_durable: AtomicBool::new(true), ..Self::default() }
    }

    /// Notes that the origin failed to validate it.
    pub fn note_failure(&self, failure: Failure, now: Timestamp) {
        let how = i64::from(failure == Failure::Status);
        self.failed.store(now.as_millis().saturating_mul(2).saturating_add(how), Ordering::Relaxed);
    }

    /// How the origin failed to validate it last, if that is no longer ago than `within`
    /// milliseconds.
    pub fn failure(&self, within: i64, now: Timestamp) -> Option<Failure> {
        let failed = self.failed.load(Ordering::Relaxed);
        let since = now.as_millis().saturating_sub(failed >> 1);
        if failed == 0 || !(0..=within).contains(&since) {
            return None;
        }
        Some(if failed & 1 == 1 { Failure::Status } else { Failure::Unreachable })
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
    /// See [`StoredHead::seen`].
    pub seen: Arc<Seen>,
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
        let rare = Rare { variant, parts: storable.parts(), tags: new.tags.into() };
        Self {
            key: new.key.clone(),
            fields: kept(new.fields, new.hidden),
            freshness: *storable.freshness(),
            position: new.position,
            seen: new.seen,
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
        self.body_object.as_ref().is_some_and(|object| object.is_written.load(Ordering::Acquire))
    }

    /// Notes that its body's own object is there, or is not any more.
    pub fn note_body_written(&self, is_written: bool) {
        if let Some(object) = &self.body_object {
            object.note(is_written);
        }
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
    fn aliases(&self, variant: &Variant) -> Vec<u128> {
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

/// What a piece of a body takes besides its bytes where it is not its response's own: a count, and the way to it.
const PIECE: usize = 64;

/// A response that passed RFC 9111 §3, complete. It is 176 bytes, and its count makes them 192.
#[derive(Debug)]
pub struct StoredResponse {
    /// Everything but the body.
    pub head: StoredHead,
    body: Kept,
}

/// A body as it is kept.
#[derive(Debug)]
enum Kept {
    /// In a piece of memory of its own, which has no count: it is the response's that counts.
    Own(Box<[u8]>),
    /// In several, or in one that another response had first.
    Shared(Box<Elsewhere>),
}

/// A body that is not in a piece of its response's own.
#[derive(Clone, Debug, Default)]
struct Elsewhere {
    body: Body,
    /// The bytes that are kept with it: the head of the response that had it first.
    with_it: usize,
}

/// Up to so many bytes a response that has another's body gets its own copy: to share them would keep the
/// other's head.
const COPIED: usize = 4 << 10;

/// A response whose body is an object of its own in the durable tier, and nowhere else.
#[derive(Clone, Debug)]
pub struct StoredApart {
    /// Everything but the body.
    pub head: Arc<StoredHead>,
    /// The length of the body.
    pub len: u64,
    /// The checksum of each chunk of it (see [`encoding::BODY_CHUNK`]).
    pub checksums: Arc<[u64]>,
}

impl StoredResponse {
    /// A response with a body of its own.
    pub fn new(head: StoredHead, body: Body) -> Self {
        let body = match body.segments {
            Segments::One(bytes) if bytes.is_unique() || bytes.len() <= COPIED => {
                Kept::Own(Vec::from(bytes).into_boxed_slice())
            }
            segments => Kept::Shared(Box::new(Elsewhere { body: Body { segments, len: body.len }, with_it: 0 })),
        };
        Self { head, body }
    }

    /// A response with the same body as `other`.
    pub fn with_body_of(other: &Arc<Self>, head: StoredHead) -> Self {
        let body = match &other.body {
            Kept::Own(bytes) if bytes.len() <= COPIED => Kept::Own(bytes.clone()),
            Kept::Own(_) => Kept::Shared(Box::new(Elsewhere { body: other.body(), with_it: other.head.weight() })),
            Kept::Shared(elsewhere) => Kept::Shared(elsewhere.clone()),
        };
        Self { head, body }
    }

    /// The body, to its last byte.
    pub fn body(self: &Arc<Self>) -> Body {
        Arc::clone(self).into_body()
    }

    /// The body, to its last byte, which keeps the response.
    pub fn into_body(self: Arc<Self>) -> Body {
        match &self.body {
            Kept::Own(bytes) => {
                let len = bytes.len() as u64;
                Body { segments: Segments::One(Bytes::from_owner(OwnBody(self))), len }
            }
            Kept::Shared(elsewhere) => elsewhere.body.clone(),
        }
    }

    /// The body, if it is in a piece of memory of its own.
    pub fn own_body(&self) -> Option<&[u8]> {
        match &self.body {
            Kept::Own(bytes) => Some(bytes),
            Kept::Shared(_) => None,
        }
    }

    /// The bytes of the body, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let (own, shared) = match &self.body {
            Kept::Own(bytes) => (Some(&bytes[..]), &[][..]),
            Kept::Shared(elsewhere) => (None, elsewhere.body.segments()),
        };
        own.into_iter().chain(shared.iter().map(|piece| &piece[..]))
    }

    /// The number of bytes of the body.
    pub fn len(&self) -> u64 {
        match &self.body {
            Kept::Own(bytes) => bytes.len() as u64,
            Kept::Shared(elsewhere) => elsewhere.body.len(),
        }
    }

    /// Whether the body is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that the response takes in memory: body, fields, key and bookkeeping.
    pub fn weight(&self) -> usize {
        let shared = match &self.body {
            Kept::Own(_) => 0,
            Kept::Shared(elsewhere) => {
                size_of::<Elsewhere>() + elsewhere.body.segments().len() * PIECE + elsewhere.with_it
            }
        };
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX);
        self.head.weight().saturating_add(shared).saturating_add(len)
    }
}

/// The body of a response that has it in a piece of its own.
struct OwnBody(Arc<StoredResponse>);

impl AsRef<[u8]> for OwnBody {
    fn as_ref(&self) -> &[u8] {
        self.0.own_body().unwrap_or_default()
    }
}

/// What a new response takes the place of, as far as is known. It keeps neither the response nor its body: what
/// takes the place may take long to come.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// Its key.
    pub key: CacheKey,
    /// Its body's own object in the durable tier.
    pub body_object: Option<Arc<BodyObject>>,
    response: Weak<StoredResponse>,
    /// Whether the durable tier has it, when nobody has the response any more.
    was_durable: bool,
}

impl Replaced {
    /// A response in memory.
    pub fn response(stored: &Arc<StoredResponse>) -> Self {
        // One that was about to be written may have been before it was evicted.
        let may_be = stored.head.marks.awaits_uses.load(Ordering::Acquire);
        let head = Self::head(&stored.head);
        Self { response: Arc::downgrade(stored), was_durable: head.was_durable || may_be, ..head }
    }

    /// A response of which only the head was read.
    pub fn head(head: &StoredHead) -> Self {
        let was_durable = head.marks.is_durable.load(Ordering::Acquire);
        Self { key: head.key.clone(), body_object: head.body_object.clone(), response: Weak::new(), was_durable }
    }

    /// Whether the durable tier has it, or is about to.
    pub fn is_durable(&self) -> bool {
        self.response.upgrade().map_or(self.was_durable, |stored| stored.head.marks.is_durable.load(Ordering::Acquire))
    }
}

/// What is kept at the key of a response that varies: which fields to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaryRecord {
    /// The exact key.
    pub key: CacheKey,
    /// Part of every variant's name: a new record after a purge never leads to older variants.
    pub generation: u128,
    /// Sets of nominated fields, newest first, at most [`VaryRecord::MAX_SETS`].
    pub sets: Vec<Vec<HeaderName>>,
    /// Other names of variants, newest first, at most [`VaryRecord::MAX_ALIASES`]: by the language
    /// or coding they are in (see [`vary::aliases_of_response`]), and the variant's own name.
    pub aliases: Vec<(u128, u128)>,
}

impl VaryRecord {
    /// More sets than this are forgotten, oldest first.
    pub const MAX_SETS: usize = 4;

    /// More aliases than this are forgotten, oldest first.
    pub const MAX_ALIASES: usize = 64;

    /// A record that names one set.
    pub fn new(key: CacheKey, generation: u128, names: Vec<HeaderName>) -> Self {
        Self { key, generation, sets: vec![names], aliases: Vec::new() }
    }

    /// The same record with `names` as its newest set.
    fn with_set(mut self, names: &[HeaderName]) -> Self {
        if self.sets.first().is_none_or(|first| first != names) {
            self.sets.retain(|set| set != names);
            self.sets.insert(0, names.to_vec());
            self.sets.truncate(Self::MAX_SETS);
        }
        self
    }

    /// The same record with `alias` as another name of `variant`.
    fn with_alias(mut self, alias: u128, variant: u128) -> Self {
        if !self.aliases.contains(&(alias, variant)) {
            self.aliases.retain(|(other, _)| *other != alias);
            self.aliases.insert(0, (alias, variant));
            self.aliases.truncate(Self::MAX_ALIASES);
        }
        self
    }

    /// This record, leading to the variant with `head` as well.
    #[must_use]
    pub fn leading_to(self, variant: &Variant, head: &StoredHead) -> Self {
        let name = self.variant_hash(&variant.selector);
        let aliases = head.aliases(variant);
        aliases.into_iter().fold(self.with_set(&variant.names), |record, alias| record.with_alias(alias, name))
    }

    /// This record with the sets of `newer` first; its variants are named by this one's generation,
    /// so that aliases of another generation lead nowhere and are left out.
    #[must_use]
    pub fn merged_with(self, newer: &Self) -> Self {
        let mut merged = newer.sets.iter().rev().fold(self, |record, set| record.with_set(set));
        if merged.generation == newer.generation {
            merged =
                newer.aliases.iter().rev().fold(merged, |record, (alias, variant)| record.with_alias(*alias, *variant));
        }
        merged
    }

    /// The hash under which the variant with `selector` is kept.
    pub fn variant_hash(&self, selector: &[u8]) -> u128 {
        let mut salted = Vec::with_capacity(selector.len() + 16);
        salted.extend_from_slice(&self.generation.to_le_bytes());
        salted.extend_from_slice(selector);
        self.key.variant_hash(&salted)
    }

    /// The hashes under which a variant for `request` may be kept, most likely first.
    pub fn candidates(&self, request: &HeaderMap) -> impl Iterator<Item = u128> {
        let exact = self.sets.iter().map(move |set| self.variant_hash(&vary::selector(set, request)));
        exact.chain(self.negotiated(request))
    }

    fn negotiated(&self, request: &HeaderMap) -> impl Iterator<Item = u128> {
        let sets = if self.aliases.is_empty() { &[][..] } else { &self.sets[..] };
        sets.iter().flat_map(move |set| vary::aliases_of_request(set, request)).filter_map(move |wanted| {
            self.aliases.iter().find(|(alias, _)| *alias == wanted).map(|(_, variant)| *variant)
        })
    }
}

/// For how long a request was under way, as far as that can be told.
fn took(request_time: Timestamp, response_time: Timestamp) -> u32 {
    u32::try_from(response_time.millis_since(request_time).max(0)).unwrap_or(u32::MAX)
}

/// What is kept of a response's fields. Trailers are not stored, and neither is what announces them.
fn kept(fields: &HeaderMap, hidden: &TagFields) -> Fields {
    Fields::new(fields.iter().filter(|(name, _)| **name != http::header::TRAILER && !hidden.hides(name)))
}

#[cfg(test)]
pub(crate) mod tests;
