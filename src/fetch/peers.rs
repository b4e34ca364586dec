//! Asks a peer in place of the origin: which fetches do, and which of a peer's responses are taken.
//!
//! * A peer is asked for what is shared here: the whole of a GET, or its validation, by a flight.
//! * **A purge that is known here is never undone.** A peer's response comes with the purges that were known when its
//!   fetch began. If one that is known here is not among them and covers it, the response is dropped.
//!   Later purges cover it by its position, like every other.
//! * The peer is told of such a purge once, so that it fetches anew: a purge is followed by one request to the origin,
//!   and not by one of each node.
//! * A fetch for a peer begins after the purges that the peer knew when it asked. So they count as known to the
//!   response.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};

use super::fetch::{Fetch, Wish};
use super::fetcher::{Fetcher, clean_response};
use super::order::{Order, Route};
use crate::base::{PeerOutcome, Stopwatch};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::search::NO_VARY_SEARCH;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::{Durability, Purge, PurgeStamp, PurgeTarget};
use crate::upstream::forwarding::Onward;
use crate::upstream::{PeerReply, PeerRequest, UpstreamBody, UpstreamError, put_word, word_of};

impl Fetcher {
    /// Takes over purges that a peer tells of, so that nothing they cover is given to it, or to clients here.
    pub(crate) fn learn_from_peer(&self, told: &str, key: &CacheKey) {
        for (purge, time, node) in told.split_terminator(',').filter_map(purge_of) {
            self.store.take_over(&purge, time, node);
        }
        self.flights.detach(key.hash());
    }

    /// Decides who is asked for an order that others share.
    pub(crate) fn route_of(&self, order: &Order) -> Route {
        let Some(peers) = &self.peers else { return Route::Origin };
        let asked = &order.asked;
        // A response that is stored for several queries may be covered by a purge of another one of them.
        let is_for_peers = asked.from_peer.is_none()
            && *order.method() == Method::GET
            && asked.key == asked.exact
            // No question to a peer has content.
            && !asked.exact.has_content()
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

    /// Returns the times of a request that was sent at `request_time`, and of its response, which has just come. The
    /// `Age` of a peer's response has the time for which the origin was waited for: that is not added once more.
    pub(super) fn times_since(&self, request_time: Timestamp) -> (Timestamp, Timestamp) {
        let now = self.fetcher.clock.now();
        (if self.is_by_peer() { now } else { request_time }, now)
    }

    /// Returns whether the response came from a peer that keeps it in the durable tier of all.
    pub(super) fn is_kept_by_peer(&self) -> bool {
        self.order.asked.terms.durability == Durability::Durable
            && self.is_by_peer()
            && self.fetcher.store.durable().is_some_and(|durable| !durable.is_local())
    }

    /// Asks peers. `None`: the origin is to be asked.
    pub(super) async fn ask_peers(&mut self, wish: Wish<'_>) -> Option<Result<Response<UpstreamBody>, UpstreamError>> {
        // Forget what an earlier question brought.
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
        let upstream = &self.fetcher.origins.named(self.order.asked.terms.upstream).upstream;
        let patience = upstream.patience_for(self.order.asked.terms.transfer.response_timeout);
        let mut purges: Option<String> = None;
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            match self.ask_peer(wish, purges.as_deref(), left).await? {
                PeerReply::Own(mut response) => {
                    clean_response(response.headers_mut(), &self.fetcher.clock);
                    return Some(Ok(response));
                }
                PeerReply::Shared(mut response, facts) => {
                    clean_response(response.headers_mut(), &self.fetcher.clock);
                    if response.headers().contains_key(NO_VARY_SEARCH)
                        || self.has_newer(response.status(), facts.held_for)
                    {
                        return None;
                    }
                    let vector = self.fetcher.store.purges().credible(&facts.version_vector, facts.held_for);
                    let key = &self.order.asked.exact;
                    let covering = self.fetcher.store.purges_of_foreign(key, &facts.tags, &vector);
                    if covering.is_empty() {
                        self.order.told_by_peer = Some(facts.tags);
                        self.version_vector = Arc::new(vector);
                        return Some(Ok(response));
                    }
                    self.fetcher.peers.as_ref()?.metrics().peers.asked(PeerOutcome::Purged);
                    // The peer has not heard of them. Once it is told, it fetches anew, for all nodes.
                    purges = Some(text_of(&covering).filter(|_| purges.is_none())?);
                }
                // The peer has waited for the origin all the while. Asking once more would double the load of a slow one.
                PeerReply::Late => return Some(Err(UpstreamError::ResponseTimeout)),
                PeerReply::None => return None,
            }
        }
    }

    /// Returns whether the response to be validated is newer than what a peer gives in its place: nobody sees a page go
    /// back.
    fn has_newer(&self, status: StatusCode, held_for: i64) -> bool {
        let fetched = self.fetcher.clock.now().plus_millis(held_for.saturating_neg());
        status != StatusCode::NOT_MODIFIED
            && self.order.held.validate.as_ref().is_some_and(|stored| stored.head.response_time() > fetched)
    }

    async fn ask_peer(&self, wish: Wish<'_>, purges: Option<&str>, patience: Duration) -> Option<PeerReply> {
        let (order, asked) = (&self.order, &self.order.asked);
        // The peer tells the origin what it is told by us about the client, and the rest by itself.
        let fields = || self.fields_onward(wish, Onward { host: None, surrogate_control: false, ..self.onward() });
        let question = PeerRequest {
            hash: asked.exact.hash(),
            fingerprint: fingerprint(&asked.exact, asked.terms.digest),
            uri: &asked.uri,
            fields: &fields,
            peer: &asked.peer,
            sticky: order.sticky(),
            informational: order.informational.as_ref(),
            transfer: &asked.terms.transfer,
            known: &self.known,
            purges,
            is_conditional: matches!(wish, Wish::Validation),
            patience,
        };
        Some(self.fetcher.peers.as_ref()?.ask(&question).await)
    }
}

/// Returns the hash by which two nodes know that they take a request for the same: of its key, and of its rule's terms.
pub(crate) fn fingerprint(key: &CacheKey, digest: u64) -> u128 {
    key.hash() ^ u128::from(digest)
}

/// The most purges that a peer is told of with one question, and their bytes. With more the origin is asked.
const MOST_TOLD: (usize, usize) = (64, 8 << 10);

/// Writes purges for a peer; `None`: they are too many, or of no single node, so that no fetch is known to come after
/// them.
fn text_of(purges: &[(PurgeTarget, PurgeStamp)]) -> Option<String> {
    let mut text = String::new();
    for (target, stamp) in purges {
        if stamp.node == 0 {
            return None;
        }
        let kind = if stamp.is_soft { "soft" } else { "hard" };
        let _ = write!(text, "{kind} {:x} {:x} ", stamp.node, stamp.time);
        match target {
            PurgeTarget::Url(hash) => drop(write!(text, "url {hash:x}")),
            PurgeTarget::Prefix(prefix) => put_target(&mut text, "prefix", prefix),
            PurgeTarget::Tag(tag) => put_target(&mut text, "tag", tag),
            PurgeTarget::All => text.push_str("all *"),
        }
        text.push(',');
    }
    (purges.len() <= MOST_TOLD.0 && text.len() <= MOST_TOLD.1).then_some(text)
}

fn put_target(text: &mut String, kind: &str, target: &str) {
    text.push_str(kind);
    text.push(' ');
    put_word(text, target);
}

/// Reads one of the purges that [`text_of`] wrote: what it is of, its time, and its node.
fn purge_of(text: &str) -> Option<(Purge, u64, u64)> {
    let mut words = text.split(' ');
    let mut next = || words.next();
    let is_soft = match next()? {
        "soft" => true,
        "hard" => false,
        _ => return None,
    };
    let (node, time) = (u64::from_str_radix(next()?, 16).ok()?, u64::from_str_radix(next()?, 16).ok()?);
    let target = match (next()?, next()?) {
        ("url", hash) => PurgeTarget::Url(u128::from_str_radix(hash, 16).ok()?),
        ("prefix", prefix) => PurgeTarget::Prefix(word_of(prefix)?),
        ("tag", tag) => PurgeTarget::Tag(word_of(tag)?),
        ("all", _) => PurgeTarget::All,
        _ => return None,
    };
    Some((Purge { target, is_soft }, time, node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purges_are_read_as_they_were_written() {
        let stamp = |is_soft| PurgeStamp { arrival: 1, time: 7, node: u64::MAX, is_soft };
        let purges = [
            (PurgeTarget::Url(u128::MAX), stamp(false)),
            (PurgeTarget::Prefix("http://a/%20, b".into()), stamp(true)),
            (PurgeTarget::Tag("größe 1".into()), stamp(false)),
            (PurgeTarget::Tag(String::new()), stamp(false)),
            (PurgeTarget::All, stamp(true)),
        ];
        let text = text_of(&purges).expect("few enough");
        let read: Vec<_> = text.split_terminator(',').map(|one| purge_of(one).expect("a purge")).collect();
        let written = purges
            .iter()
            .map(|(target, stamp)| (Purge { target: target.clone(), is_soft: stamp.is_soft }, stamp.time, stamp.node));
        assert_eq!(read, written.collect::<Vec<_>>());
        let of_nobody = (PurgeTarget::All, PurgeStamp { node: 0, ..stamp(false) });
        assert_eq!(text_of(&[of_nobody]), None);
    }
}
