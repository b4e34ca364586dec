//! `GET /metrics`: the counters, and the gauges as they are at the scrape.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use http::Response;
use http::header::{self, HeaderValue};
use http_body_util::Full;

use super::api::{Admin, AdminReply};
use crate::base::{Gauge, OriginOutcome};
use crate::proxy::Proxy;
use crate::store::{Durable, Index};
use crate::upstream::PeerState;

impl Admin {
    /// Renders every metric in the text format of Prometheus.
    pub(super) fn metrics(&self) -> AdminReply {
        let proxy = &self.proxy;
        let gauges =
            [process(proxy).as_slice(), &upstreams(proxy), &peers(proxy), &durable(proxy), &index(proxy)].concat();
        let mut reply = Response::new(Full::from(self.proxy.metrics.render(&gauges)));
        reply
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        reply
    }
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Gauge {
    Gauge { name, help, labels: Vec::new(), value }
}

/// The state of an address of an upstream.
#[derive(Clone, Copy, Default)]
struct Address {
    requests: u64,
    outcomes: [u64; OriginOutcome::ALL.len()],
    is_up: bool,
    is_healthy: bool,
}

/// Measures the upstreams and their addresses. An address that is listed twice counts as one, since a metric has each
/// set of labels once.
fn upstreams(proxy: &Proxy) -> Vec<Gauge> {
    let (mut waiting, mut requests, mut down, mut healthy) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut totals = Vec::new();
    for (upstream, of) in proxy.upstreams() {
        let label = || ("upstream", upstream.to_owned());
        waiting.push(Gauge {
            name: "larder_upstream_waiting",
            help: "Requests that wait until an address of the upstream has room: what upstream.max_waiting limits.",
            labels: vec![label()],
            value: of.waiting() as u64,
        });
        let mut addresses: BTreeMap<String, Address> = BTreeMap::new();
        for endpoint in of.endpoints().iter() {
            let address = addresses.entry(endpoint.name.clone()).or_default();
            address.requests += u64::from(endpoint.under_way());
            for (sum, count) in address.outcomes.iter_mut().zip(endpoint.outcomes()) {
                *sum += count;
            }
            address.is_up |= !endpoint.is_down();
            address.is_healthy |= !endpoint.is_unhealthy();
        }
        for (name, address) in addresses {
            let of_address = |metric, help, value| Gauge {
                name: metric,
                help,
                labels: vec![label(), ("address", name.clone())],
                value,
            };
            requests.push(of_address(
                "larder_upstream_requests",
                "Requests under way at the address: what upstream.max_requests limits.",
                address.requests,
            ));
            for (count, (_, outcome)) in address.outcomes.into_iter().zip(OriginOutcome::ALL) {
                let mut total = of_address(
                    "larder_upstream_requests_total",
                    "Requests to the address so far, by outcome; repeated ones too.",
                    count,
                );
                total.labels.push(("outcome", outcome.to_owned()));
                totals.push(total);
            }
            down.push(of_address(
                "larder_upstream_down",
                "1 while the address is known to be down, by failed requests or by failed health checks.",
                u64::from(!address.is_up),
            ));
            healthy.push(of_address(
                "larder_upstream_healthy",
                "0 while the address fails its health checks; always 1 without upstream.health_path.",
                u64::from(address.is_healthy),
            ));
        }
    }
    [waiting, requests, totals, down, healthy].concat()
}

/// Measures the peers.
fn peers(proxy: &Proxy) -> Vec<Gauge> {
    let peers = proxy.peers();
    let up = peers.iter().map(|(address, state)| Gauge {
        name: "larder_peer_up",
        help: "1 while the node answers greetings and requests.",
        labels: vec![("address", address.clone())],
        value: u64::from(matches!(state, PeerState::Own | PeerState::Up)),
    });
    let own = peers.iter().map(|(address, state)| Gauge {
        name: "larder_peer_own",
        help: "1 for the address that is this node's own.",
        labels: vec![("address", address.clone())],
        value: u64::from(*state == PeerState::Own),
    });
    up.chain(own).collect()
}

/// Measures memory, fetches and connections.
fn process(proxy: &Proxy) -> [Gauge; 12] {
    let (store, usage) = (proxy.store(), proxy.usage());
    let is_down = proxy.upstreams().any(|(_, upstream)| upstream.is_down());
    let (objects, bytes) = store.memory().usage();
    [
        gauge("larder_memory_objects", "Objects in the memory tier.", objects),
        gauge("larder_memory_bytes", "Bytes in the memory tier: bodies, fields, keys and bookkeeping.", bytes),
        gauge("larder_fill_bytes", "Bytes held by fetches under way.", usage.filling),
        gauge(
            "larder_held_bytes",
            "Bytes held by fetches under way, and by finished ones that clients still read: what server.max_buffered limits.",
            usage.held,
        ),
        gauge(
            "larder_buffered_bytes",
            "Bytes of uploads and of what is read ahead of clients, in memory.",
            usage.buffered,
        ),
        gauge(
            "larder_spooled_bytes",
            "Bytes of uploads and of what is read ahead of clients, in temporary files.",
            usage.spooled,
        ),
        gauge("larder_flights", "Fetches under way that can be shared.", usage.flights),
        gauge("larder_origin_down", "1 while every address of an upstream is known to be down.", u64::from(is_down)),
        gauge(
            "larder_purge_position",
            "The number of the last purge that this process knows of, its own and others'.",
            store.purges().position(),
        ),
        gauge("larder_connections", "Client connections that are open.", proxy.metrics.open_connections()),
        gauge(
            "larder_resp_connections",
            "Connections of Redis clients that are open.",
            proxy.metrics.open_resp_connections(),
        ),
        gauge(
            "larder_resp_buffered_bytes",
            "Bytes that Redis clients hold: commands that arrive, transactions, replies that wait to be read.",
            proxy.metrics.resp_buffered.load(Ordering::Relaxed) as u64,
        ),
    ]
}

/// Measures the durable tier; all is 0 without one.
fn durable(proxy: &Proxy) -> [Gauge; 6] {
    let durable = proxy.store().durable();
    let (queued, queued_bytes) = durable.map_or((0, 0), Durable::queue_depth);
    let (held, capacity) = durable.map_or((0, 0), Durable::held);
    [
        gauge(
            "larder_durable_queue_objects",
            "Writes and deletions that the durable tier has yet to carry out.",
            queued,
        ),
        gauge(
            "larder_durable_uploads",
            "Bodies too large for memory that are being written as they come in.",
            durable.map_or(0, Durable::uploads),
        ),
        gauge("larder_durable_queue_bytes", "Bytes that waiting writes hold.", queued_bytes),
        gauge("larder_durable_bytes", "Bytes on disk that the durable tier's directory holds.", held),
        gauge(
            "larder_durable_capacity_bytes",
            "Bytes that the durable tier's directory may hold; 0: any number.",
            capacity,
        ),
        gauge(
            "larder_durable_down",
            "1 while the durable tier is known to be down, or to take no writes.",
            u64::from(durable.is_some_and(Durable::is_down)),
        ),
    ]
}

/// Measures the index of the durable tier; all is 0 without one.
fn index(proxy: &Proxy) -> [Gauge; 9] {
    let index = |of: fn(&Index) -> u64| proxy.store().durable().map_or(0, |durable| of(durable.index()));
    let packs = proxy.store().durable().map(Durable::packs).unwrap_or_default();
    [
        gauge("larder_index_keys", "Entries of the durable tier that its index has a place of.", index(Index::len)),
        gauge("larder_index_bytes", "Bytes of memory that the durable tier's index takes.", index(Index::bytes)),
        gauge("larder_index_loaded", "1 once the index is complete.", index(|index| u64::from(index.is_loaded()))),
        gauge("larder_packs", "Packs that the durable tier is known to have.", packs.count),
        gauge("larder_packs_bytes", "Their bytes.", packs.bytes),
        gauge(
            "larder_packs_dead_bytes",
            "Those of entries that are of no use, with the separate bodies that they lead to.",
            packs.dead,
        ),
        gauge("larder_packs_bodies", "Separate bodies that packs lead to.", packs.bodies.0),
        gauge("larder_packs_bodies_bytes", "Bytes of those.", packs.bodies.1),
        gauge("larder_packs_live_bytes", "Those of responses that no newer one has replaced.", packs.live),
    ]
}
