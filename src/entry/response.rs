//! A stored response: its head, and its body as it is kept.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::body::{Body, Segments};
use super::marks::BodyObject;
use super::{StoredHead, Variant};
use crate::rfc9111::key::CacheKey;

/// What a piece of a body takes besides its bytes where it is not its response's own: a count, and the way to it.
const PIECE: usize = 64;

/// A response that passed RFC 9111 §3, complete. It is 176 bytes, and its count makes them 192.
#[derive(Debug)]
pub struct StoredResponse {
    /// Everything but the body.
    pub head: StoredHead,
    pub(super) body: Kept,
}

/// A body as it is kept.
#[derive(Debug)]
pub(super) enum Kept {
    /// In a piece of memory of its own, which has no count: it is the response's that counts.
    Own(Box<[u8]>),
    /// In several, or in one that another response had first.
    Shared(Box<Elsewhere>),
}

/// A body that is not in a piece of its response's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Elsewhere {
    body: Body,
    /// The bytes that are kept with it: the head of the response that had it first.
    with_it: usize,
}

/// Up to so many bytes a response that has another's body gets its own copy: to share them would keep the
/// other's head.
pub(super) const COPIED: usize = 4 << 10;

/// A response whose body is an object of its own in the durable tier, and nowhere else.
#[derive(Clone, Debug)]
pub struct StoredApart {
    /// Everything but the body.
    pub head: Arc<StoredHead>,
    /// The length of the body.
    pub len: u64,
    /// The checksum of each chunk of it (see `encoding::BODY_CHUNK`).
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
    /// Which requests it answers; `None`: all for its key.
    pub variant: Option<Variant>,
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
        Self {
            key: head.key.clone(),
            variant: head.variant().cloned(),
            body_object: head.body_object.clone(),
            response: Weak::new(),
            was_durable,
        }
    }

    /// The response, if anybody has it still.
    pub fn response_itself(&self) -> Option<Arc<StoredResponse>> {
        self.response.upgrade()
    }

    /// Whether the durable tier has it, or is about to.
    pub fn is_durable(&self) -> bool {
        self.response.upgrade().map_or(self.was_durable, |stored| stored.head.marks.is_durable.load(Ordering::Acquire))
    }
}
