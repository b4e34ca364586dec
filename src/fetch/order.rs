//! What a fetch is for: what was asked, which never changes and is shared, and what the cache holds of it so far.

use std::sync::Arc;

use http::header::{self, HeaderMap};
use http::{Method, Request, Uri};

use crate::entry::{Replaced, StoredHead, StoredResponse};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::directives::{CacheControl, RequestDirectives};
use crate::rfc9111::groups;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::tags::TooManyTags;
use crate::store::{Durability, KnownRecord};
use crate::upstream::forwarding::Peer;
use crate::upstream::{Errand, Informational, Transfer};

/// What the origin is asked for where a client wants a range of what is not stored: a rule's `ranges`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranges {
    /// The range; and the whole once it is known that memory takes it.
    #[default]
    Auto,
    /// The whole: later ranges are answered from it.
    Whole,
    /// The range.
    Forward,
}

/// What was asked, and the terms that the configuration sets for it.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The key that its response is looked for under.
    pub(crate) key: CacheKey,
    /// The key of its URI to the byte; differs from `key` where the origin said that some differences between queries
    /// do not matter (No-Vary-Search).
    pub(crate) exact: CacheKey,
    /// The request as the client sent it. The origin is asked with its fields, preconditions and range among them,
    /// and with those that are added on the way.
    pub(crate) request: Arc<Request<()>>,
    /// Path and query to ask the origin for.
    pub(crate) uri: Uri,
    /// The client.
    pub(crate) peer: Peer,
    /// The client's own directives, as far as they count.
    pub(crate) directives: CacheControl,
    /// The terms of its rule.
    pub(crate) terms: Terms,
}

/// The terms of a request's rule, as far as a fetch goes by them.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Says how far the directives of clients count.
    pub(crate) request_directives: RequestDirectives,
    /// Decides on storing.
    pub(crate) policy: Arc<StoragePolicy>,
    /// Limits for the bytes of requests and responses.
    pub(crate) transfer: Arc<Transfer>,
    /// Says whether the durable tier may keep a response.
    pub(crate) durability: Durability,
    /// True if requests for the same thing wait for one answer.
    pub(crate) collapse: bool,
    /// Says what is fetched for a range.
    pub(crate) ranges: Ranges,
    /// Tags that responses can be purged by.
    pub(crate) tags: Vec<String>,
}

/// What the cache holds for a request, as far as it was looked at.
#[derive(Clone, Debug)]
pub(crate) struct Holdings {
    /// The reason for asking the origin.
    pub(crate) fwd: Fwd,
    /// A stored response to validate.
    pub(crate) validate: Option<Arc<StoredResponse>>,
    /// A stored part of what is asked for, to be completed or added to.
    pub(crate) part: Option<Arc<StoredResponse>>,
    /// A stored response that is of no use, and becomes history once another is stored.
    pub(crate) replaced: Option<Replaced>,
    /// The stored response to GET that the answer to this HEAD speaks of.
    pub(crate) head_of: Option<Arc<StoredResponse>>,
    /// The variants of the key.
    pub(crate) known: Option<KnownRecord>,
    /// The tier that `validate` came from.
    pub(crate) tier: Tier,
    /// True if the durable tier was asked already.
    pub(crate) asked_durable: bool,
}

impl Holdings {
    /// Nothing so far, and `fwd` says why the origin would be asked.
    pub(crate) fn nothing(fwd: Fwd) -> Self {
        Self {
            fwd,
            validate: None,
            part: None,
            replaced: None,
            head_of: None,
            known: None,
            tier: Tier::Memory,
            asked_durable: false,
        }
    }

    /// Returns the stored response that a new one takes the place of, as far as that is known.
    pub(super) fn replaced(&self) -> Option<Replaced> {
        self.validate.as_ref().map(Replaced::response).or_else(|| self.replaced.clone())
    }
}

/// An order for a fetch. A copy costs a few counts.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// What was asked.
    pub(crate) asked: Arc<Asked>,
    /// What the cache holds of it.
    pub(crate) held: Holdings,
    /// Says who waits for the fetch.
    pub(crate) errand: Errand,
    /// Takes informational responses to the client that led.
    pub(crate) informational: Option<Informational>,
    /// The fields that select a variant and decide on storing, where the whole is fetched for a range.
    without_range: Option<Arc<HeaderMap>>,
}

impl Order {
    /// Orders what was asked, for a client that waits.
    pub(crate) fn new(asked: Arc<Asked>, held: Holdings, informational: Option<Informational>) -> Self {
        Self { asked, held, errand: Errand::Client, informational, without_range: None }
    }

    /// The same in the background: nobody waits, and informational responses go to nobody.
    pub(crate) fn in_background(self) -> Self {
        Self { errand: Errand::Background, informational: None, ..self }
    }

    /// Returns the client's fields as far as the cache goes: what selects a variant and decides on storing.
    pub(crate) fn client_fields(&self) -> &HeaderMap {
        self.without_range.as_deref().unwrap_or(self.asked.request.headers())
    }

    /// The method to ask with.
    pub(crate) fn method(&self) -> &Method {
        self.asked.request.method()
    }

    /// Returns whether the client wants a range.
    fn wants_range(&self) -> bool {
        *self.method() == Method::GET && self.client_fields().contains_key(header::RANGE)
    }

    /// Orders the whole although the client wants a range of it.
    pub(crate) fn ask_for_the_whole(&mut self) {
        let mut fields = self.asked.request.headers().clone();
        fields.remove(header::RANGE);
        fields.remove(header::IF_RANGE);
        self.without_range = Some(Arc::new(fields));
    }

    /// Returns whether the whole of the target is ordered.
    pub(super) fn is_for_the_whole(&self) -> bool {
        *self.method() == Method::GET && !self.wants_range()
    }

    /// Returns whether the whole is worth fetching for a range of it: a rule says so, or it is known to have at most
    /// `limit` bytes, and this is not the first range that is asked for.
    pub(crate) fn prefers_whole(&self, limit: u64) -> bool {
        let fits = |part: &Arc<StoredResponse>| part.head.parts().is_some_and(|parts| parts.complete_len() <= limit);
        self.wants_range()
            && match self.asked.terms.ranges {
                Ranges::Whole => true,
                Ranges::Auto => self.held.part.as_ref().is_some_and(fits),
                Ranges::Forward => false,
            }
    }

    /// Returns whether a stored response, whose body is `len` bytes, has what is ordered.
    pub(super) fn is_answered_by(&self, head: &StoredHead, len: u64) -> bool {
        head.can_answer(self.method(), self.client_fields(), len)
    }

    /// Returns what a response can be purged by besides its URL: the tags of its rule and of its own fields, and the
    /// groups that it is in, both by their names and as groups of their origin (RFC 9875).
    pub(crate) fn tags_of(&self, response: &HeaderMap) -> Result<Vec<String>, TooManyTags> {
        let mut tags = self.asked.terms.tags.clone();
        let groups = groups::listed(response, &groups::CACHE_GROUPS);
        if let Some(parts) = self.asked.exact.parts() {
            tags.extend(groups.iter().map(|group| groups::tag(parts.prefix, parts.scheme, parts.authority, group)));
        }
        tags.extend(groups);
        self.asked.terms.policy.tag_fields.add(response, &mut tags)?;
        Ok(tags)
    }

    /// Returns where a response to the order is put.
    pub(super) fn placement(&self) -> Placement {
        Placement {
            exact: self.asked.exact.clone(),
            durability: self.asked.terms.durability,
            known: self.held.known.clone(),
            replaced: self.held.replaced(),
        }
    }
}

/// Says where a response is put, and what it takes the place of.
#[derive(Debug)]
pub(super) struct Placement {
    /// The key of its URI to the byte.
    pub(super) exact: CacheKey,
    /// Says whether the durable tier may keep it.
    pub(super) durability: Durability,
    /// The variants of the key.
    pub(super) known: Option<KnownRecord>,
    /// The stored response that gives way.
    pub(super) replaced: Option<Replaced>,
}
