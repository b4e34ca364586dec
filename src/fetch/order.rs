//! The order of a fetch: what was asked, which is shared and never changes, and what the cache holds of it so far.

use std::sync::Arc;

use http::header::{self, HeaderMap};
use http::{Method, Request, Uri};

use crate::base::Stopwatch;
use crate::entry::{Replaced, StoredHead, StoredResponse, VersionVector};
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::directives::{CacheControl, RequestDirectives};
use crate::rfc9111::groups;
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::tags::TooManyTags;
use crate::store::{Durability, KnownRecord};
use crate::upstream::forwarding::Peer;
use crate::upstream::{Content, Errand, Informational, RequestBody, StickyCookies, Transfer, UpstreamName};

/// The request to the origin where a client wants a range that is not stored: a rule's `ranges`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranges {
    /// For the range; for the whole once it is known that memory takes it.
    #[default]
    Auto,
    /// For the whole, from which later ranges are answered.
    Whole,
    /// For the range.
    Forward,
}

/// A request, with the terms that the configuration sets for it.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The key that its response is looked up under.
    pub(crate) key: CacheKey,
    /// The key of its URI, byte for byte. Differs from `key` where the origin said that some differences between
    /// queries do not matter (No-Vary-Search).
    pub(crate) exact: CacheKey,
    /// The request as the client sent it, with preconditions and range. The origin gets its fields, and those that
    /// forwarding adds.
    pub(crate) request: Arc<Request<()>>,
    /// The path and query of the request to the origin.
    pub(crate) uri: Uri,
    /// The content of the request to the origin, which then is a QUERY, though `request` is a GET.
    pub(crate) content: Option<Content>,
    /// The client.
    pub(crate) peer: Peer,
    /// The time since which the client has waited.
    pub(crate) since: Stopwatch,
    /// The client's directives, as far as they count.
    pub(crate) directives: CacheControl,
    /// The terms of its rule.
    pub(crate) terms: Terms,
    /// The purges that a peer knew when it asked on behalf of its client; `None`: the client asks here.
    pub(crate) from_peer: Option<Arc<VersionVector>>,
}

/// Says who is asked for a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Route {
    /// The origin.
    #[default]
    Origin,
    /// The peer whose share has the key, and the origin if that fails.
    Peers,
}

/// The flights that ask a peer are others than those that ask the origin: a peer's request joins the latter alone. So
/// no two nodes wait for each other, whatever each takes the other's share to be.
const TO_PEERS: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;

impl Route {
    /// Returns the number under which requests that select a variant join flights by this route.
    pub(crate) const fn flight(self, selection: u128) -> u128 {
        match self {
            Self::Origin => selection,
            Self::Peers => selection ^ TO_PEERS,
        }
    }
}

/// The terms of a request's rule that matter to a fetch.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The upstream that is asked.
    pub(crate) upstream: UpstreamName,
    /// Says how far the directives of clients count.
    pub(crate) request_directives: RequestDirectives,
    /// The policy by which responses are stored.
    pub(crate) policy: Arc<StoragePolicy>,
    /// Limits for the bodies of requests and responses.
    pub(crate) transfer: Arc<Transfer>,
    /// Says whether the durable tier may keep a response.
    pub(crate) durability: Durability,
    /// True if requests that ask alike wait for one answer.
    pub(crate) collapse: bool,
    /// Says what is fetched for a range.
    pub(crate) ranges: Ranges,
    /// The tags that the rule gives to responses.
    pub(crate) tags: Vec<String>,
    /// The hash of what decides who may share a response.
    pub(crate) digest: u64,
}

/// The cache's holdings for a request, as far as they were looked up.
#[derive(Clone, Debug)]
pub(crate) struct Holdings {
    /// The reason for asking the origin.
    pub(crate) fwd: Fwd,
    /// A stored response to validate.
    pub(crate) validate: Option<Arc<StoredResponse>>,
    /// A stored part of the response, to be completed or added to.
    pub(crate) part: Option<Arc<StoredResponse>>,
    /// A stored response that is of no use, and is removed once another is stored.
    pub(crate) replaced: Option<Replaced>,
    /// The stored response to GET that the answer to this HEAD may update.
    pub(crate) head_of: Option<Arc<StoredResponse>>,
    /// The variants of the key, if they were read.
    pub(crate) known: Option<KnownRecord>,
    /// The tier that `validate` came from.
    pub(crate) tier: Tier,
    /// True if the durable tier was asked already.
    pub(crate) asked_durable: bool,
}

impl Holdings {
    /// Makes empty holdings; `fwd` is the reason for which the origin would be asked.
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

    /// Returns the stored response that a new one replaces, if it is known.
    pub(super) fn replaced(&self) -> Option<Replaced> {
        self.validate.as_ref().map(Replaced::response).or_else(|| self.replaced.clone())
    }
}

/// An order for a fetch. Cheap to clone: it mostly counts references.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The request and its terms.
    pub(crate) asked: Arc<Asked>,
    /// The cache's holdings for it.
    pub(crate) held: Holdings,
    /// Says on whose behalf the origin is asked.
    pub(crate) errand: Errand,
    /// Takes informational responses to the client that led.
    pub(crate) informational: Option<Informational>,
    /// The request's fields without its range, where the whole is fetched instead: they select a variant and decide on
    /// storing.
    without_range: Option<Arc<HeaderMap>>,
    /// Says who is asked.
    pub(crate) route: Route,
    /// The tags that a peer told of its response; `None`: no peer's response was taken.
    pub(super) told_by_peer: Option<Vec<String>>,
}

impl Order {
    /// Orders what was asked, for a client that waits.
    pub(crate) fn new(asked: Arc<Asked>, held: Holdings, informational: Option<Informational>) -> Self {
        Self {
            asked,
            held,
            errand: Errand::Client,
            informational,
            without_range: None,
            route: Route::Origin,
            told_by_peer: None,
        }
    }

    /// Makes it a background order: nobody waits, and informational responses are dropped.
    pub(crate) fn in_background(self) -> Self {
        Self { errand: Errand::Background, informational: None, ..self }
    }

    /// Returns the client's fields that select a variant and decide on storing.
    pub(crate) fn client_fields(&self) -> &HeaderMap {
        self.without_range.as_deref().unwrap_or(self.asked.request.headers())
    }

    /// Returns the cookies of ours that the client has; `None`: it has none, or nobody waits.
    pub(super) fn sticky(&self) -> Option<&StickyCookies> {
        self.asked.request.extensions().get().filter(|_| self.errand != Errand::Background)
    }

    /// Returns the method to ask with.
    pub(crate) fn method(&self) -> &Method {
        self.asked.request.method()
    }

    /// Returns the method of the request to the origin.
    pub(super) fn origin_method(&self) -> &Method {
        if self.asked.content.is_some() { &Method::QUERY } else { self.method() }
    }

    /// Returns the body of the request to the origin.
    pub(super) fn origin_body(&self) -> RequestBody {
        self.asked.content.as_ref().map_or(RequestBody::Empty, RequestBody::from)
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

    /// Returns whether the whole is fetched for a range: a rule says so, or a range was asked for before and the whole
    /// is known to have at most `limit` bytes.
    pub(crate) fn prefers_whole(&self, limit: u64) -> bool {
        let fits = |part: &Arc<StoredResponse>| part.head.parts().is_some_and(|parts| parts.complete_len() <= limit);
        self.wants_range()
            && match self.asked.terms.ranges {
                Ranges::Whole => true,
                Ranges::Auto => self.held.part.as_ref().is_some_and(fits),
                Ranges::Forward => false,
            }
    }

    /// Returns whether a stored response, whose body has `len` bytes, can answer the order.
    pub(super) fn is_answered_by(&self, head: &StoredHead, len: u64) -> bool {
        head.can_answer(self.method(), self.client_fields(), len)
    }

    /// Returns the tags of a response: those of its rule and of its own fields, and its groups, both by their names
    /// and as groups of their origin (RFC 9875).
    pub(crate) fn tags_of(&self, response: &HeaderMap) -> Result<Vec<String>, TooManyTags> {
        if let Some(told) = &self.told_by_peer {
            // The fields that had them may not be in what a peer stored.
            return Ok(told.clone());
        }
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
            durability: match self.asked.terms.durability {
                // The peer has written it.
                Durability::Durable if self.told_by_peer.is_some() => Durability::ByPeer,
                durability => durability,
            },
            known: self.held.known.clone(),
            replaced: self.held.replaced(),
        }
    }
}

/// The place of a response in the store, and the response that it replaces.
#[derive(Debug)]
pub(super) struct Placement {
    /// The key of its URI, byte for byte.
    pub(super) exact: CacheKey,
    /// Says whether the durable tier may keep it.
    pub(super) durability: Durability,
    /// The variants of the key.
    pub(super) known: Option<KnownRecord>,
    /// The stored response that is replaced.
    pub(super) replaced: Option<Replaced>,
}
