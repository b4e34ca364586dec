//! A process of the model: both tiers over the shared place, and a clock of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::base::{Clock, Metrics};
use crate::entry::{Body, StoredResponse, VersionVector, sample_head};
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::storage::StoragePolicy;
use crate::store::journal::Journal;
use crate::store::place::Place;
use crate::store::purge::Purges;
use crate::store::simulated::{Simulated, SimulatedBucket};
use crate::store::{
    Durable, DurableConfig, DurableLookup, FoundBody, Lookup, Memory, ObjectNames, Opening, Store, memory,
};

/// A page, and its tags.
#[derive(Clone)]
pub(super) struct Page {
    pub key: CacheKey,
    pub url: String,
    pub tags: Vec<String>,
    pub varies: bool,
}

impl Page {
    fn request(&self, variant: usize) -> HeaderMap {
        let mut request = HeaderMap::new();
        if self.varies {
            request.insert(HeaderName::from_static("x"), HeaderValue::from(variant));
        }
        request
    }
}

pub(super) fn pages() -> Vec<Page> {
    let list = [("/a/1", "x"), ("/a/2", "x y"), ("/a/b/3", "y"), ("/b/4", ""), ("/b/vary", "x"), ("/vary", "z")];
    list.iter()
        .map(|(path, tags)| Page {
            key: CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query: None }),
            url: format!("http://h{path}"),
            tags: tags.split_whitespace().map(str::to_owned).collect(),
            varies: path.ends_with("vary"),
        })
        .collect()
}

/// What was served.
#[derive(Debug)]
pub(super) struct Served {
    pub body: Bytes,
    pub is_fresh: bool,
}

pub(super) struct Node {
    pub clock: Clock,
    pub place: Arc<Simulated>,
    pub store: Store,
    metrics: Arc<Metrics>,
    pub life: usize,
    /// The step at which it last read the journal.
    pub read_at: usize,
}

impl Node {
    /// Starts a process. `number` is its node in the journal.
    pub(super) fn start(place: &Arc<SimulatedBucket>, clock: Clock, number: u64, life: usize) -> Self {
        let purges = Arc::new(Purges::new(clock.clone(), number));
        let memory = Arc::new(Memory::new(&memory::Config::default()));
        let place = Arc::new(Simulated::to(place));
        let config = DurableConfig {
            lookup_timeout: Duration::from_secs(60),
            min_lifetime: Duration::ZERO,
            writers: 2,
            breaker_failures: 0,
            pack_interval: Some(Duration::from_secs(1)),
            pack_size: 16 << 10,
            inline_size: 8 << 10,
            capacity: Some(0),
            ..DurableConfig::default()
        };
        let metrics = Metrics::new(1);
        let durable = Durable::over(
            Arc::clone(&place) as Arc<dyn Place>,
            &config,
            ObjectNames::new("", ""),
            Arc::clone(&purges),
            Arc::clone(&memory),
            Arc::clone(&metrics),
        );
        let store = Store::new(memory, Some(durable), purges, clock.clone());
        Self { clock, place, store, metrics, life, read_at: 0 }
    }

    pub(super) fn durable(&self) -> &Durable {
        self.store.durable().expect("a durable tier")
    }

    /// Returns whether a write was given up.
    pub(super) fn has_lost(&self) -> bool {
        self.metrics.losses().iter().any(|(_, count)| *count > 0)
    }

    pub(super) fn journal(&self) -> &Journal {
        self.durable().journal()
    }

    /// Returns the position and version vector of a fetch that begins now.
    pub(super) fn now(&self) -> (u64, Arc<VersionVector>) {
        (self.store.position(), self.store.purges().version_vector())
    }

    /// Reads the journal, at a step in which nothing else happens. Returns whether that succeeded.
    pub(super) async fn tail(&mut self, step: usize) -> bool {
        let is_loaded = self.journal().is_loaded() && self.durable().index().is_loaded();
        let read = if is_loaded { self.journal().read().await } else { self.journal().load().await };
        if read.is_ok() {
            self.read_at = step;
        }
        read.is_ok()
    }

    /// Writes a snapshot.
    pub(super) async fn compact(&self) {
        self.journal().compact(true).await;
    }

    pub(super) fn response(
        &self,
        page: &Page,
        variant: usize,
        body: Bytes,
        (position, version_vector): (u64, Arc<VersionVector>),
    ) -> Arc<StoredResponse> {
        let fields = [("cache-control", "max-age=604800"), ("vary", if page.varies { "x" } else { "" })];
        let (request, now, known) = (page.request(variant), self.clock.now(), (position, version_vector));
        let mut head = sample_head(&page.key, &request, &fields, now, known, page.tags.clone());
        self.store.name_body(&mut head, body.len() as u64);
        Arc::new(StoredResponse::new(head, Body::from(body)))
    }

    /// Returns what a client would get. What the durable tier had is in memory from then on.
    pub(super) async fn look(&self, page: &Page, variant: usize) -> Option<Served> {
        let request = page.request(variant);
        if let Lookup::Found(stored) = self.store.lookup(&page.key, &request) {
            return Some(self.served(&stored));
        }
        let (policy, position) = (Arc::new(StoragePolicy::default()), self.store.position());
        let known = self.store.known(&page.key).map(|known| known.record);
        match self.store.lookup_durable(&page.key, &request, policy, known, Opening::AtOnce).await {
            DurableLookup::Response(found) => {
                let stored = Arc::new(StoredResponse::new(found.head, Body::from(whole(found.body).await?)));
                self.store.promote(&stored, found.record);
                Some(self.served(&stored))
            }
            DurableLookup::OtherVariants(record) => {
                self.store.adopt(record, position);
                None
            }
            DurableLookup::Nothing | DurableLookup::Unknown => None,
        }
    }

    /// Returns what the durable tier has. Changes nothing in memory.
    pub(super) async fn look_durable(&self, page: &Page, variant: usize) -> Option<Served> {
        let (request, policy) = (page.request(variant), Arc::new(StoragePolicy::default()));
        match self.store.lookup_durable(&page.key, &request, policy, None, Opening::AtOnce).await {
            DurableLookup::Response(found) => {
                let stored = StoredResponse::new(found.head, Body::from(whole(found.body).await?));
                Some(self.served(&stored))
            }
            DurableLookup::OtherVariants(_) | DurableLookup::Nothing | DurableLookup::Unknown => None,
        }
    }

    fn served(&self, stored: &StoredResponse) -> Served {
        Served {
            body: Bytes::from(stored.pieces().collect::<Vec<_>>().concat()),
            is_fresh: stored.head.freshness.is_fresh(self.clock.now()),
        }
    }
}

/// Reads a body to its end; `None` if that fails.
async fn whole(body: FoundBody) -> Option<Bytes> {
    match body {
        FoundBody::Whole(body) => Some(Bytes::from(body.segments().concat())),
        FoundBody::Streamed(first, mut rest) => {
            let mut all = first.to_vec();
            loop {
                match rest.next().await.ok()? {
                    Some(chunk) => all.extend_from_slice(&chunk),
                    None => return Some(Bytes::from(all)),
                }
            }
        }
        FoundBody::Separate(_) => None,
    }
}
