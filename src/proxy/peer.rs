//! Answers peers: other Larders that ask on behalf of their clients.
//!
//! A peer gets what a client here would get, with what it needs to store it: the purges that were known when its fetch
//! began, and its tags. It gets nothing that is stale, since it may have a stale response of its own, and knows its
//! client. Where a client here would not share its fetch with others, the peer goes to the origin itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode};

use super::Proxy;
use super::background::is_due;
use super::client::{Client, Upgraded, informational};
use super::reply::{Reply, Step};
use super::share::asked;
use crate::base::{PeerAnswer, WorkerMetrics};
use crate::entry::{StoredHead, StoredResponse, VersionVector};
use crate::fetch::{
    Holdings, Inquiry, OnStored, Order, Provenance, Shared, SharedResponse, Sharing, Use, fingerprint, sharing,
    with_nothing, without_looking,
};
use crate::respond::{Answer, ClientRequest, Label, ResponseBody, hit};
use crate::rfc9111::cache_status::{CacheStatus, Fwd, Tier};
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::fields;
use crate::rfc9111::present::Present;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::Lookup;
use crate::upstream::forwarding::Peer;
use crate::upstream::{
    Asker, ClientBody, Informational, NewStickyCookie, Peers, Received, Verdict, answers_question, forwarding,
    write_facts, write_sticky, write_verdict,
};

/// Says who may have an answer: the peer and all its clients, or its one client.
#[derive(Clone, Debug)]
pub(super) enum ForPeer {
    /// A response that is shared: complete, or coming in.
    Stored(Arc<StoredResponse>),
    /// See above.
    Filling(Arc<StoredHead>),
    /// The origin's response to this request, for its client alone.
    Own,
}

impl ForPeer {
    /// Notes that a response is shared, unless it is stale or stands in for an error.
    pub(super) fn note_shared(response: &mut Response<ResponseBody>, shared: &Shared, now: Timestamp) {
        let may_be_given = match shared.source {
            Provenance::Origin { .. } => true,
            Provenance::Tier(_) => shared.head().freshness.is_fresh(now),
            Provenance::StandIn(_) | Provenance::InPlaceOfError { .. } => false,
        };
        if may_be_given {
            response.extensions_mut().insert(match &shared.response {
                SharedResponse::Stored(stored) => Self::Stored(Arc::clone(stored)),
                SharedResponse::Filling(head, _) => Self::Filling(Arc::clone(head)),
            });
        }
    }

    fn head(&self) -> Option<&StoredHead> {
        match self {
            Self::Stored(stored) => Some(&stored.head),
            Self::Filling(head) => Some(head),
            Self::Own => None,
        }
    }
}

/// The client of a peer, as the peer describes it.
struct PeersClient<'a> {
    /// The connection of the peer.
    connection: &'a dyn Client,
    /// The client.
    peer: Peer,
    known: Arc<VersionVector>,
    /// Tells for which key and terms the peer takes the request: see [`fingerprint`].
    fingerprint: Option<u128>,
    /// True if this process asks itself, since it is the next one after a peer that failed.
    is_own: bool,
}

impl Client for PeersClient<'_> {
    fn peer(&self) -> &Peer {
        &self.peer
    }

    fn informational(&self) -> Informational {
        self.connection.informational()
    }

    fn wake_on_informational(&self, waker: &Waker) {
        self.connection.wake_on_informational(waker);
    }

    fn known_to_peer(&self) -> Option<Arc<VersionVector>> {
        Some(Arc::clone(&self.known))
    }

    fn upgraded(&self, request: &mut Request<ClientBody>) -> Upgraded {
        self.connection.upgraded(request)
    }
}

/// The fields that make a question conditional on what the asking node has stored.
const CONDITIONS: [HeaderName; 2] = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];

/// The least and the longest time between two signs that a peer is still waited for.
const SIGNS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(10));

impl Proxy {
    /// Begins to answer a message on the peers' listener.
    pub(crate) fn handle_peer<'a>(
        self: &'a Arc<Self>,
        worker: &'a WorkerMetrics,
        connection: &'a dyn Client,
        mut request: Request<ClientBody>,
    ) -> Reply<'a> {
        let Some(peers) = &self.fetcher.peers else {
            return Reply::new(worker, connection, None, Step::answered(bare(Verdict::Declined)));
        };
        let counters = &peers.metrics().peers;
        let step = match peers.receive(request.headers_mut()) {
            Received::Greeting(fields) => {
                counters.answered(PeerAnswer::Greeted);
                let (status, mut response) = bare(Verdict::Greeting);
                response.headers_mut().extend(fields);
                Step::answered((status, response))
            }
            Received::Refused => {
                counters.answered(PeerAnswer::Refused);
                let (status, mut response) = bare(Verdict::Refused);
                *response.status_mut() = StatusCode::FORBIDDEN;
                Step::answered((status, response))
            }
            Received::Question(asker) => {
                let step = async move { self.answer_peer(peers, connection, request, *asker).await };
                Step::waits(tracing::Span::none(), step)
            }
        };
        Reply::new(worker, connection, None, step)
    }

    /// Answers a question, and gives signs while the origin is waited for.
    async fn answer_peer(
        self: &Arc<Self>,
        peers: &Peers,
        connection: &dyn Client,
        mut request: Request<ClientBody>,
        mut asker: Asker,
    ) -> Answer {
        let pause = (asker.patience / 4).clamp(SIGNS.0, SIGNS.1);
        let signs = async {
            let mut sign = HeaderMap::new();
            write_verdict(&mut sign, Verdict::Waits);
            let to = connection.informational();
            loop {
                tokio::time::sleep(pause).await;
                to.sender.send(to.request, StatusCode::PROCESSING, &sign);
            }
        };
        if let Some(sticky) = asker.sticky.take() {
            request.extensions_mut().insert(sticky);
        }
        let Asker { known, purges, fingerprint, limit, subject, is_own, .. } = asker;
        let client =
            PeersClient { connection, peer: Peer::of_peer(subject), known: Arc::new(known), fingerprint, is_own };
        let is_conditional = CONDITIONS.iter().any(|name| request.headers().contains_key(name));
        let limit = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        // Boxed, since little of it is needed for a hit.
        let answered: Result<_, Infallible> = tokio::select! {
            biased;
            answer = Box::pin(self.answer_of_peer(&client, request, purges.as_deref())) => Ok(answer),
            () = limit => Ok(None),
            never = signs => Err(never),
        };
        let Ok(answer) = answered;
        let (status, mut response) = answer.unwrap_or_else(|| bare(Verdict::Declined));
        let for_peer = response.extensions_mut().remove::<ForPeer>();
        let sticky = response.extensions_mut().remove::<NewStickyCookie>();
        let counters = &peers.metrics().peers;
        let response_status = response.status();
        let fields = response.headers_mut();
        match for_peer.as_ref().map(ForPeer::head) {
            Some(Some(head)) => {
                write_verdict(fields, Verdict::Shared);
                let held_for = self.fetcher.clock.now().millis_since(head.response_time());
                if write_facts(fields, &head.version_vector, head.tags(), held_for) {
                    counters.answered(PeerAnswer::Shared);
                    return (status, response);
                }
            }
            // The asking node would take an answer to another question for broken.
            Some(None) if answers_question(response_status, is_conditional) => {
                write_verdict(fields, Verdict::Own);
                if let Some(cookie) = &sticky {
                    write_sticky(fields, cookie);
                }
                counters.answered(PeerAnswer::Own);
                return (status, response);
            }
            Some(None) | None => {}
        }
        counters.answered(PeerAnswer::Declined);
        bare(Verdict::Declined)
    }

    /// Answers a question as a client's request. `None`, and whatever does not say for whom it is: the peer goes to the
    /// origin itself.
    async fn answer_of_peer(
        self: &Arc<Self>,
        client: &PeersClient<'_>,
        mut request: Request<ClientBody>,
        purges: Option<&str>,
    ) -> Option<Answer> {
        let mut present = Present::of(request.headers());
        if present.has(Present::CONNECTION) {
            fields::remove_listed(request.headers_mut());
        }
        let original = forwarding::receive(&self.trust, &client.peer, &Method::GET, request.headers_mut());
        present = Present::of(request.headers());
        let has_content = !request.body().is_none();
        if *request.method() != Method::GET
            || has_content
            || (present.has(Present::VIA) && !client.is_own && self.fetcher.origins.have_seen(request.headers()))
            || self.fetcher.limits.are_overloaded()
        {
            return None;
        }
        let target = self.keys.target(&original, &request, present).ok()?;
        // With other settings one node may tell apart what the other does not.
        if client.fingerprint != Some(fingerprint(&target.key, target.rule.digest)) {
            return None;
        }
        let inquiry = Inquiry { method: request.method(), fields: request.headers(), present, has_content };
        if without_looking(inquiry, target.rule.rule.bypass).is_some() {
            return None;
        }
        if let Some(purges) = purges {
            self.fetcher.learn_from_peer(purges, &target.key);
        }
        let now = self.fetcher.clock.now();
        let (key, found) = self.look_up(&target, request.headers());
        let mut directives = CacheControl::default();
        if present.has(Present::DIRECTIVES) {
            directives = target.rule.directives(request.headers());
        }
        let mut held = match found {
            Lookup::Found(stored) => match self.decide(&target, inquiry, &mut directives, &stored, now) {
                OnStored::Answer(Use::Fresh, background) => {
                    if is_due(background) {
                        self.validate_in_background(client, &target, key, &request, directives, &stored);
                    }
                    let label = Label { put: |_: &CacheStatus, _: &mut HeaderMap| {}, is_steady: false };
                    let asked = ClientRequest::noted(&request, present);
                    let (status, mut response) = hit(asked, Arc::clone(&stored), Tier::Memory, now, label);
                    response.extensions_mut().insert(ForPeer::Stored(stored));
                    return Some((status, response));
                }
                OnStored::Answer(..) => Holdings { validate: Some(stored), ..Holdings::nothing(Fwd::Stale) },
                OnStored::Fetch(Fwd::Partial) | OnStored::NotCached => return None,
                OnStored::Fetch(fwd) => Holdings { validate: Some(stored), ..Holdings::nothing(fwd) },
            },
            Lookup::OtherVariants(record) => {
                for names in &record.sets {
                    self.fetcher.memories.hit_for_miss.divide(record.key.hash(), names, now);
                }
                Holdings::nothing(with_nothing(true))
            }
            Lookup::Nothing => Holdings::nothing(with_nothing(false)),
        };
        if held.validate.as_ref().is_some_and(|stored| stored.head.parts().is_some()) {
            held.validate = None;
        }
        let looked_up = key.as_deref().unwrap_or(&target.key);
        let recalled = self.fetcher.memories.hit_for_miss.look_at(looked_up.hash(), request.headers(), present, now);
        let request = Arc::new(request.map(|_| ()));
        let asked = asked(client, &target, &request, directives, key.map(|key| *key));
        let order = Order::new(Arc::new(asked), held, informational(client, request.version()));
        let limit = self.fetcher.limits.memory.max_object_size;
        if sharing(&order, recalled.unshared, limit) != Sharing::Together {
            return None;
        }
        Some(self.fly(&request, order).await)
    }
}

/// Makes an answer without a response.
fn bare(verdict: Verdict) -> Answer {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    write_verdict(response.headers_mut(), verdict);
    (CacheStatus::refused("peer"), response)
}
