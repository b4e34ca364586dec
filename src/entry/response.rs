//! A stored response: its head and its body.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::body::{Body, Segments};
use super::marks::BodyObject;
use super::{StoredHead, Variant};
use crate::rfc9111::key::CacheKey;

/// Bytes that a shared piece of a body takes in memory besides its content: a reference count and a pointer.
const PIECE_OVERHEAD: usize = 64;

/// A complete response that RFC 9111 §3 allows to store. It takes 176 bytes, and 192 with its reference counts.
#[derive(Debug)]
pub struct StoredResponse {
    /// Everything but the body.
    pub head: StoredHead,
    pub(super) body: StoredBody,
}

/// The body of a stored response in memory.
#[derive(Debug)]
pub(super) enum StoredBody {
    /// In one piece that belongs to the response alone, and has no reference count of its own.
    Own(Box<[u8]>),
    /// In several pieces, or in one that another response had first.
    Shared(Box<SharedBody>),
}

/// A body in pieces that are reference-counted.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedBody {
    body: Body,
    /// Bytes that the body keeps in memory besides its own: the head of the response that had it first.
    retained: usize,
}

/// The longest body that is copied for a second response. Sharing it would keep the head of the first.
pub(super) const COPIED: usize = 4 << 10;

/// A response whose body is only in the durable tier, in an object of its own.
#[derive(Clone, Debug)]
pub struct StoredApart {
    /// Everything but the body.
    pub head: Arc<StoredHead>,
    /// The length of the body in bytes.
    pub len: u64,
    /// The checksum of each chunk of the body (see `encoding::BODY_CHUNK`).
    pub checksums: Arc<[u64]>,
}

impl StoredResponse {
    /// Makes a response with a body of its own.
    pub fn new(head: StoredHead, body: Body) -> Self {
        let body = match body.segments {
            Segments::One(bytes) if bytes.is_unique() || bytes.len() <= COPIED => {
                StoredBody::Own(Vec::from(bytes).into_boxed_slice())
            }
            segments => {
                StoredBody::Shared(Box::new(SharedBody { body: Body { segments, len: body.len }, retained: 0 }))
            }
        };
        Self { head, body }
    }

    /// Makes a response with a body in one piece of its own.
    pub fn with_own_body(head: StoredHead, body: Box<[u8]>) -> Self {
        Self { head, body: StoredBody::Own(body) }
    }

    /// Makes a response with the same body as `other`.
    pub fn with_body_of(other: &Arc<Self>, head: StoredHead) -> Self {
        let body = match &other.body {
            StoredBody::Own(bytes) if bytes.len() <= COPIED => StoredBody::Own(bytes.clone()),
            StoredBody::Own(_) => {
                StoredBody::Shared(Box::new(SharedBody { body: other.body(), retained: other.head.weight() }))
            }
            StoredBody::Shared(shared) => StoredBody::Shared(shared.clone()),
        };
        Self { head, body }
    }

    /// Returns the body, which keeps the response in memory.
    pub fn body(self: &Arc<Self>) -> Body {
        Arc::clone(self).into_body()
    }

    /// Turns into the body, which keeps the response in memory.
    pub fn into_body(self: Arc<Self>) -> Body {
        match &self.body {
            StoredBody::Own(bytes) => {
                let len = bytes.len() as u64;
                Body { segments: Segments::One(Bytes::from_owner(OwnBody(self))), len }
            }
            StoredBody::Shared(shared) => shared.body.clone(),
        }
    }

    /// Returns the body if it is in one piece that belongs to the response alone.
    pub fn own_body(&self) -> Option<&[u8]> {
        match &self.body {
            StoredBody::Own(bytes) => Some(bytes),
            StoredBody::Shared(_) => None,
        }
    }

    /// Returns the pieces of the body, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let (own, shared) = match &self.body {
            StoredBody::Own(bytes) => (Some(&bytes[..]), &[][..]),
            StoredBody::Shared(shared) => (None, shared.body.segments()),
        };
        own.into_iter().chain(shared.iter().map(|piece| &piece[..]))
    }

    /// Returns the length of the body in bytes.
    pub fn len(&self) -> u64 {
        match &self.body {
            StoredBody::Own(bytes) => bytes.len() as u64,
            StoredBody::Shared(shared) => shared.body.len(),
        }
    }

    /// Returns whether the body is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes that the response takes in memory: body, fields, key and bookkeeping.
    pub fn weight(&self) -> usize {
        let shared = match &self.body {
            StoredBody::Own(_) => 0,
            StoredBody::Shared(shared) => {
                size_of::<SharedBody>() + shared.body.segments().len() * PIECE_OVERHEAD + shared.retained
            }
        };
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX);
        self.head.weight().saturating_add(shared).saturating_add(len)
    }
}

/// Keeps a response whose body is in one piece of its own, and gives access to that.
struct OwnBody(Arc<StoredResponse>);

impl AsRef<[u8]> for OwnBody {
    fn as_ref(&self) -> &[u8] {
        self.0.own_body().unwrap_or_default()
    }
}

/// Describes the stored response that a new one replaces. Does not keep the response in memory: the new one may take
/// long to come.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The full key.
    pub key: CacheKey,
    /// The requests that it answers; `None`: all for its key.
    pub variant: Option<Variant>,
    /// The object of its body in the durable tier.
    pub body_object: Option<Arc<BodyObject>>,
    response: Weak<StoredResponse>,
    /// True if the durable tier may have it. Used once the response is gone from memory.
    was_durable: bool,
}

impl Replaced {
    /// Describes a response in memory.
    pub fn response(stored: &Arc<StoredResponse>) -> Self {
        // A response that waits to be written may be written before it is evicted.
        let may_be = stored.head.marks.awaits_uses.load(Ordering::Acquire);
        let head = Self::head(&stored.head);
        Self { response: Arc::downgrade(stored), was_durable: head.was_durable || may_be, ..head }
    }

    /// Describes a response of which only the head was read.
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

    /// Returns the response, if it is still in memory.
    pub fn response_itself(&self) -> Option<Arc<StoredResponse>> {
        self.response.upgrade()
    }

    /// Returns whether the durable tier has it, or is about to.
    pub fn is_durable(&self) -> bool {
        self.response.upgrade().map_or(self.was_durable, |stored| stored.head.marks.is_durable.load(Ordering::Acquire))
    }
}
