//! Begins fetches: for a flight, for one client, and in the background.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Method;
use tokio::sync::oneshot;
use tracing::{Span, debug, debug_span};

use super::fetch::{Fetch, Fetched};
use super::fetcher::{Fetcher, MAX_UNATTENDED};
use super::flight::{FlightName, Joined, Lease, Outcome, Watch};
use super::order::Order;
use crate::base::log::cut;
use crate::entry::StoredResponse;
use crate::rfc9111::cache_status::Fwd;
use crate::store::Opening;
use crate::upstream::Errand;

/// The variant under which background validations of durable responses join flights.
const BACKGROUND: u128 = 0x5bd1_e995_7b7d_159c_c2b2_ae3d_27d4_eb4f;

impl Fetcher {
    /// Runs a flight in a task of its own, which goes on when its client leaves. When nobody waits for it any more,
    /// and its head has not come, it goes on only as one of at most [`MAX_UNATTENDED`].
    pub(crate) fn launch(self: &Arc<Self>, order: Order, lease: Lease, leader: Option<oneshot::Sender<Fetched>>) {
        let this = Arc::clone(self);
        let span = span_of(&order);
        self.spawn(span, async move {
            let watch = lease.watch();
            let mut fetch = Box::new(Fetch::begin(&this, order, Some(lease)));
            let unsent = this.may_wait_for_room(&fetch.order).then(|| Arc::clone(&fetch.is_sent));
            let fetched = tokio::select! {
                biased;
                fetched = fetch.run() => fetched,
                () = this.is_called_off(&watch, unsent.as_deref()) => return,
            };
            if let Some(lease) = fetch.take_lease() {
                lease.end(match &fetched {
                    Fetched::Shared(shared, _) => Outcome::Shared(Arc::clone(shared)),
                    Fetched::Own(..) | Fetched::Apart(..) | Fetched::Passed { .. } => Outcome::NotShared,
                    Fetched::Failed(error, _) => Outcome::Failed(error.clone()),
                });
            }
            if let Some(leader) = leader {
                // The leader may have left; nobody needs its own response then.
                let _ = leader.send(fetched);
            }
        });
    }

    /// Returns whether a flight for a client may have to wait until an address has room.
    fn may_wait_for_room(&self, order: &Order) -> bool {
        let upstream = self.origins.named(order.asked.terms.upstream);
        order.errand == Errand::Client && upstream.upstream.config().max_requests > 0
    }

    /// Returns when nobody waits for a flight and [`MAX_UNATTENDED`] others go on already, or, by `unsent`, nothing of it was
    /// sent: it would take the room of those whose clients are there.
    async fn is_called_off(&self, watch: &Watch, unsent: Option<&AtomicBool>) {
        loop {
            watch.deserted().await;
            if unsent.is_some_and(|is_sent| !is_sent.load(Ordering::Relaxed)) && watch.cancel() {
                debug!("a fetch that nobody waits for ends: nothing of it was sent");
                return;
            }
            if let Ok(_permit) = self.limits.unattended.try_acquire() {
                return std::future::pending().await;
            }
            if watch.cancel() {
                debug!("a fetch that nobody waits for ends: {MAX_UNATTENDED} others go on");
                return;
            }
        }
    }

    /// Looks in the durable tier for a request outside any flight. Returns a response that may be reused; otherwise
    /// notes in `order` what the tier has.
    pub(crate) async fn find_durable(self: &Arc<Self>, order: &mut Order) -> Option<Fetched> {
        // Of a large body only the range that is asked for is read.
        let opening = if order.is_for_the_whole() { Opening::AtOnce } else { Opening::Later };
        order.held.asked_durable = true;
        let mut fetch = Fetch::begin(self, order.clone(), None);
        let fetched = fetch.consult_durable(opening).await;
        *order = fetch.into_order();
        fetched
    }

    /// Asks the origin for one client, outside any flight.
    pub(crate) async fn alone(self: &Arc<Self>, order: Order) -> Fetched {
        let mut fetch = Fetch::begin(self, order, None);
        Box::pin(fetch.alone()).await
    }

    /// Validates a response that `fetch` served stale, in the background, once a key at a time. Purges since `fetch`
    /// began cover what comes of it.
    pub(super) fn validate_in_background(self: &Arc<Self>, mut fetch: Fetch, stored: Arc<StoredResponse>) {
        if *fetch.order.method() != Method::GET
            || !self.origins.named(fetch.order.asked.terms.upstream).upstream.is_probe_due()
        {
            return;
        }
        let name = FlightName::new(&fetch.order.asked.exact, BACKGROUND);
        let hash = fetch.order.asked.exact.hash();
        let Joined::Leader(lease) = self.flights.join(name) else { return };
        // The response may have been found before the last validation ended.
        let validated = self.memories.validated.get(hash, self.clock.now());
        if validated.is_some_and(|at| at > stored.head.response_time()) {
            return;
        }
        fetch.order = fetch.order.in_background();
        fetch.order.held.validate = Some(stored);
        fetch.order.held.fwd = Fwd::Stale;
        fetch.order.route = self.route_of(&fetch.order);
        // Held until the answer is stored, so that requests meanwhile begin no other validation.
        fetch.lease = Some(lease);
        let this = Arc::clone(self);
        let span = span_of(&fetch.order);
        self.spawn(span, async move {
            let Ok(_permit) = this.limits.unattended.try_acquire() else { return };
            let mut fetch = Box::new(fetch);
            if let Fetched::Shared(shared, _) = &fetch.ask_the_origin().await {
                this.memories.validated.remember(hash, shared.head().response_time(), this.clock.now());
            }
        });
    }

    /// Notes that a range of a response was read from the durable tier. The second time, a response that fits is taken
    /// into memory.
    pub(crate) fn note_ranged(self: &Arc<Self>, order: &Order, len: u64) {
        let asked = &order.asked;
        if *order.method() != Method::GET || len > self.limits.memory.max_object_size || asked.key != asked.exact {
            return;
        }
        let (hash, now) = (asked.key.hash(), self.clock.now());
        if self.memories.ranged.get(hash, now).is_none() {
            return self.memories.ranged.remember(hash, (), now);
        }
        self.memories.ranged.forget(hash);
        if let Joined::Leader(lease) = self.flights.join(FlightName::new(&asked.key, BACKGROUND)) {
            let mut order = order.clone().in_background();
            order.held.asked_durable = false;
            self.launch(order, lease, None);
        }
    }
}

/// Makes the span of a fetch, which names the request that began it; disabled where the level is off.
fn span_of(order: &Order) -> Span {
    let asked = &order.asked;
    let authority = asked.exact.authority().unwrap_or_default();
    debug_span!(
        "fetch",
        host = &*cut(authority.into()),
        path = &*cut(asked.uri.path().into()),
        background = order.errand == Errand::Background
    )
}
