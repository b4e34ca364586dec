//! What is to be fetched for a request, and what may be done with what comes.

use std::sync::Arc;

use http::header::{self, HeaderMap};
use http::{Method, Request, Uri};

use crate::entry::{Replaced, StoredHead, StoredResponse, VersionVector};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::directives::{CacheControl, RequestDirectives};
use crate::rfc9111::groups;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::tags::TooManyTags;
use crate::store::{Durability, KnownRecord};
use crate::upstream::forwarding::Peer;
use crate::upstream::{Errand, Interim, Transfer};

/// What is asked of the origin for a range of what is not stored: a rule's `ranges`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranges {
    /// The range; and the whole once it is known that memory takes it.
    #[default]
    Auto,
    /// The whole: what follows is answered from it.
    Whole,
    /// The range.
    Forward,
}

/// What a GET is to fetch, and what may be done with it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The key that its response is looked for under.
    pub key: CacheKey,
    /// The key of its URI to the byte; another than `key` where the origin said that some
    /// differences between queries do not matter.
    pub exact: CacheKey,
    /// The request as the client sent it: the origin is asked with its fields, preconditions and range
    /// among them, and what is made of them on the way.
    pub request: Arc<Request<()>>,
    /// The fields that select a variant and decide on storing, where they are not those of the request.
    pub as_asked: Option<Box<HeaderMap>>,
    /// Who the client is.
    pub peer: Peer,
    /// The client's own directives, as far as they count.
    pub directives: CacheControl,
    /// Says how far those directives count.
    pub request_directives: RequestDirectives,
    /// The method to ask with.
    pub method: Method,
    /// Path and query to ask for.
    pub uri: Uri,
    /// What the configuration says of storing.
    pub policy: Arc<StoragePolicy>,
    /// Says how bytes pass.
    pub transfer: Arc<Transfer>,
    /// Whether the durable tier may keep it.
    pub durability: Durability,
    /// Whether it may wait for another request's answer.
    pub collapse: bool,
    /// What is asked of the origin where the client wants a range.
    pub ranges: Ranges,
    /// Whether the durable tier was asked already.
    pub asked_durable: bool,
    /// What it can be purged by.
    pub tags: Vec<String>,
    /// Why the origin is asked, as far as is known before the durable tier is.
    pub fwd: Fwd,
    /// A stored response to validate.
    pub validate: Option<Arc<StoredResponse>>,
    /// A stored part of what is asked for, to be completed or added to.
    pub part: Option<Arc<StoredResponse>>,
    /// A stored response that is no use but will be history once another is stored.
    pub replaced: Option<Replaced>,
    /// The stored response to GET that the answer to this HEAD speaks of.
    pub head_of: Option<Arc<StoredResponse>>,
    /// What is known of the key's variants.
    pub known: Option<KnownRecord>,
    /// Where interim responses go: to the client that led.
    pub interim: Option<Interim>,
    /// Whether anybody waits for it.
    pub errand: Errand,
    /// The tier that what is to be validated came from.
    pub tier: Tier,
    /// What was known of purges when the fetch began, in terms that hold in other processes.
    pub version_vector: Arc<VersionVector>,
}

impl Plan {
    /// The client's fields as far as the cache goes: what selects a variant and decides on storing.
    pub fn client_fields(&self) -> &HeaderMap {
        self.as_asked.as_deref().unwrap_or(self.request.headers())
    }

    /// Asks for the whole although the client wants a range of it.
    pub fn ask_for_the_whole(&mut self) {
        let mut fields = self.request.headers().clone();
        fields.remove(header::RANGE);
        fields.remove(header::IF_RANGE);
        self.as_asked = Some(Box::new(fields));
    }

    /// Whether the plan asks for the whole of its target.
    pub(super) fn is_for_the_whole(&self) -> bool {
        self.method == Method::GET && !self.client_fields().contains_key(header::RANGE)
    }

    /// Whether the whole is worth fetching for a range of it: because a rule says so, or because it is
    /// known that it fits, and this is not the first range that is asked for.
    pub fn prefers_whole(&self, limit: u64) -> bool {
        let is_range = self.method == Method::GET && self.client_fields().contains_key(header::RANGE);
        let fits = |part: &Arc<StoredResponse>| part.head.parts().is_some_and(|parts| parts.complete_len() <= limit);
        is_range
            && match self.ranges {
                Ranges::Whole => true,
                Ranges::Auto => self.part.as_ref().is_some_and(fits),
                Ranges::Forward => false,
            }
    }

    /// What a response to the plan can be purged by, besides its URL: what its rule and its own fields say,
    /// and the groups that it is in, both by their names and as groups of their origin.
    pub fn tags_of(&self, response: &HeaderMap) -> Result<Vec<String>, TooManyTags> {
        let mut tags = self.tags.clone();
        let groups = groups::listed(response, &groups::CACHE_GROUPS);
        if let Some(parts) = self.exact.parts() {
            tags.extend(groups.iter().map(|group| groups::tag(parts.prefix, parts.scheme, parts.authority, group)));
        }
        tags.extend(groups);
        self.policy.tag_fields.add(response, &mut tags)?;
        Ok(tags)
    }

    /// The stored response that a new one takes the place of, as far as is known.
    pub(super) fn replaced(&self) -> Option<Replaced> {
        self.validate.as_ref().map(Replaced::response).or_else(|| self.replaced.clone())
    }

    /// Where what the plan brings is put.
    pub(super) fn place(&self) -> Place {
        Place {
            exact: self.exact.clone(),
            durability: self.durability,
            known: self.known.clone(),
            replaced: self.replaced(),
        }
    }

    /// Whether a stored response, whose body is `len` bytes, has what the plan asks for.
    pub(super) fn can_use(&self, head: &StoredHead, len: u64) -> bool {
        head.can_answer(&self.method, self.client_fields(), len)
    }
}

/// Where a response is put.
#[derive(Debug)]
pub(super) struct Place {
    /// The key of its URI to the byte.
    pub exact: CacheKey,
    pub durability: Durability,
    /// What is known of the key's variants.
    pub known: Option<KnownRecord>,
    /// What it takes the place of, as far as is known.
    pub replaced: Option<Replaced>,
}
