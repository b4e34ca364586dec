//! Asks a peer in place of the origin: which fetches do, and which of a peer's responses are taken.
//!
//! * A peer is asked for what is shared here: the whole of a GET, or its validation, by a flight.
//! * **A purge that is known here is never undone.** A peer's response comes with the purges that were known when its fetch
//!   began. If one that is known here is not among them and covers it, the response is dropped, and the origin is asked.
//!   Later purges cover it by its position, like every other.
//! * A fetch for a peer begins after the purges that the peer knew when it asked. So they count as known to the response.

use std::sync::Arc;

use http::{Method, Response};

use super::fetch::{Fetch, Wish};
use super::fetcher::{Fetcher, clean_response};
use super::order::{Order, Route};
use crate::base::{PeerOutcome, Stopwatch};
use crate::rfc9111::search::NO_VARY_SEARCH;
use crate::store::Durability;
use crate::upstream::forwarding::Onward;
use crate::upstream::{PeerReply, PeerRequest, UpstreamBody, UpstreamError};

impl Fetcher {
    /// Decides who is asked for an order that others share.
    pub(crate) fn route_of(&self, order: &Order) -> Route {
        let Some(peers) = &self.peers else { return Route::Origin };
        let asked = &order.asked;
        // A response that is stored for several queries may be covered by a purge of another one of them.
        let is_for_peers = asked.from_peer.is_none()
            && *order.method() == Method::GET
            && asked.key == asked.exact
            && asked.terms.collapse
            && !asked.directives.no_store
            && !asked.directives.only_if_cached;
        if is_for_peers && peers.belongs_elsewhere(asked.exact.hash()) { Route::Peers } else { Route::Origin }
    }
}

impl Fetch {
    /// Returns whether the response came from a peer.
    pub(super) fn is_by_peer(&self) -> bool {
        self.order.told_by_peer.is_some()
    }

    /// Returns whether the response came from a peer that keeps it in the durable tier of all.
    pub(super) fn is_kept_by_peer(&self) -> bool {
        self.order.asked.terms.durability == Durability::Durable
            && self.is_by_peer()
            && self.fetcher.store.durable().is_some_and(|durable| !durable.is_local())
    }

    /// Asks peers. `None`: the origin is to be asked.
    pub(super) async fn ask_peers(&mut self, wish: Wish<'_>) -> Option<Result<Response<UpstreamBody>, UpstreamError>> {
        // What an earlier question brought says nothing of this one.
        self.order.told_by_peer = None;
        self.version_vector = Arc::clone(&self.known);
        let is_of_a_whole = match wish {
            Wish::Whole => self.order.is_for_the_whole(),
            Wish::Validation => self.order.held.validate.as_ref().is_some_and(|stored| stored.head.parts().is_none()),
            Wish::AsAsked | Wish::Missing(_) => false,
        };
        if self.lease.is_none() || !is_of_a_whole {
            return None;
        }
        let begun = Stopwatch::start();
        let (reply, patience) = {
            let (order, asked) = (&self.order, &self.order.asked);
            let upstream = &self.fetcher.origins.named(asked.terms.upstream).upstream;
            let patience = upstream.patience_for(asked.terms.transfer.response_timeout);
            // The peer tells the origin what it is told by us about the client, and the rest by itself.
            let fields = || self.fields_onward(wish, Onward { host: None, surrogate_control: false, ..self.onward() });
            let question = PeerRequest {
                hash: asked.exact.hash(),
                uri: &asked.uri,
                fields: &fields,
                peer: &asked.peer,
                informational: order.informational.as_ref(),
                transfer: &asked.terms.transfer,
                known: &self.known,
                patience,
            };
            (self.fetcher.peers.as_ref()?.ask(&question).await, patience)
        };
        match reply {
            PeerReply::Own(mut response) => {
                clean_response(response.headers_mut(), &self.fetcher.clock);
                Some(Ok(response))
            }
            PeerReply::Shared(mut response, facts) => {
                clean_response(response.headers_mut(), &self.fetcher.clock);
                let key = &self.order.asked.exact;
                let is_covered = self.fetcher.store.is_covered_elsewhere(key, &facts.tags, &facts.version_vector);
                if is_covered || response.headers().contains_key(NO_VARY_SEARCH) {
                    if let Some(peers) = self.fetcher.peers.as_ref().filter(|_| is_covered) {
                        peers.metrics().peers.asked(PeerOutcome::Purged);
                    }
                    return None;
                }
                self.order.told_by_peer = Some(facts.tags);
                self.version_vector = Arc::new(facts.version_vector);
                Some(Ok(response))
            }
            // The client's time is over: the peer has waited for the origin all the while.
            PeerReply::None if begun.elapsed() >= patience => Some(Err(UpstreamError::ResponseTimeout)),
            PeerReply::None => None,
        }
    }
}
