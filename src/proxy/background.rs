//! Validates stored responses in the background, after they were served.

use std::sync::Arc;

use http::{Method, Request};

use super::Proxy;
use super::client::Client;
use super::share::asked;
use super::target::RequestTarget;
use crate::entry::{StoredResponse, Validating, Who};
use crate::fetch::{Background, FlightName, Holdings, Joined, Order};
use crate::rfc9111::cache_status::Fwd;
use crate::rfc9111::directives::CacheControl;
use crate::rfc9111::key::CacheKey;
use crate::upstream::ClientBody;

impl Proxy {
    /// Validates a stored response that has just been served, in the background and once at a time.
    pub(super) fn validate_in_background(
        self: &Arc<Self>,
        caller: &dyn Client,
        target: &RequestTarget<'_>,
        key: Option<Box<CacheKey>>,
        request: &Request<ClientBody>,
        directives: CacheControl,
        stored: &Arc<StoredResponse>,
    ) {
        if *request.method() != Method::GET
            || !self.fetcher.may_validate(target.rule.upstream, &stored.head, Who::of(request.headers()))
        {
            return;
        }
        let Some(validating) = Validating::begin(stored) else { return };
        let now = self.fetcher.clock.now();
        let looked_up = key.as_deref().unwrap_or(&target.key);
        let selection = self.fetcher.memories.hit_for_miss.look(looked_up.hash(), request.headers(), now).selection;
        let request = Arc::new(without_body(request));
        let asked = asked(caller, target, &request, directives, key.map(|key| *key));
        let held = Holdings { validate: Some(Arc::clone(stored)), ..Holdings::nothing(Fwd::Stale) };
        let mut order = Order::new(Arc::new(asked), held, None).in_background();
        order.route = self.fetcher.route_of(&order);
        let name = FlightName::new(&order.asked.key, order.route.flight(selection.number()));
        if let Joined::Leader(mut lease) = self.fetcher.flights.join(name) {
            lease.hold(validating);
            self.fetcher.launch(order, lease, None);
        }
    }
}

/// Returns whether the validation is done: draws a lot where it is due with some probability.
pub(super) fn is_due(background: Background) -> bool {
    match background {
        Background::No => false,
        Background::Yes => true,
        Background::Perhaps(probability) => fastrand::f64() < probability,
    }
}

/// Copies a request without its body.
fn without_body(request: &Request<ClientBody>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    head
}
