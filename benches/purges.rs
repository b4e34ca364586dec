//! What purges cost: the purge itself, the first use of each entry after it, and every use after that.
//!
//! `cargo bench --bench purges [-- ENTRIES]`: so many entries in memory (a million, if not said), a tenth
//! of them with a tag. Prints times of one thread; ratios within a run compare, and times of two runs do not.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use larder::base::{Clock, Stopwatch};
use larder::entry::{Body, NewHead, StoredHead, StoredResponse};
use larder::rfc9111::key::{CacheKey, KeyParts};
use larder::rfc9111::storage::{Exchange, StoragePolicy, storable};
use larder::rfc9111::tags::TagFields;
use larder::rfc9111::timestamp::Timestamp;
use larder::store::{Durability, Lookup, Memory, MemoryConfig, Purge, PurgeTarget, Purges, Store};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn main() {
    let entries = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let clock = Clock::manual(NOW);
    let purges = Arc::new(Purges::new(clock.clone(), 1));
    let memory = Memory::new(&MemoryConfig { capacity: 1 << 40, ..MemoryConfig::default() });
    let store = Store::new(Arc::new(memory), None, purges, clock);
    let keys: Vec<CacheKey> = (0..entries).map(key).collect();
    for (n, key) in keys.iter().enumerate() {
        store.insert(&response(key, n % 10 == 0, store.position()), Durability::MemoryOnly, None, None);
    }
    println!("{entries} entries, {} of them tagged", entries.div_ceil(10));
    let before = pass(&store, &keys, "hits, before any purge");
    for (what, target) in [
        ("a tag that nothing has", PurgeTarget::Tag("nothing".into())),
        ("a prefix that nothing begins with", PurgeTarget::Prefix("http://elsewhere/".into())),
        ("a URL, softly", PurgeTarget::Url(1)),
    ] {
        purge(&store, what, target, true);
        pass(&store, &keys, "  hits, the first after it");
        let after = pass(&store, &keys, "  hits, from then on");
        println!("  ratio to before: {:.2}", after.0 / before.0);
    }
    purge(&store, "the tag of a tenth", PurgeTarget::Tag("tenth".into()), false);
    let (_, found) = pass(&store, &keys, "  look-ups, the first after it");
    assert_eq!(found, entries - entries.div_ceil(10), "only what has the tag is gone");
    purge(&store, "a prefix over all", PurgeTarget::Prefix("http://h/".into()), false);
    let (_, found) = pass(&store, &keys, "  look-ups, the first after it");
    assert_eq!(found, 0);
    purge(&store, "everything", PurgeTarget::All, false);
}

fn purge(store: &Store, what: &str, target: PurgeTarget, is_soft: bool) {
    let watch = Stopwatch::start();
    store.purge(Purge { target, is_soft }, None);
    println!("purge of {what}: {:.1} us", watch.elapsed().as_secs_f64() * 1e6);
}

/// Looks every entry up once; nanoseconds each, and how many were found.
#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn pass(store: &Store, keys: &[CacheKey], what: &str) -> (f64, usize) {
    let request = HeaderMap::new();
    let watch = Stopwatch::start();
    let found = keys.iter().filter(|key| matches!(black_box(store.lookup(key, &request)), Lookup::Found(_))).count();
    let nanos = watch.elapsed().as_secs_f64() * 1e9 / keys.len() as f64;
    println!("{what}: {nanos:.0} ns each, {found} found");
    (nanos, found)
}

fn key(n: usize) -> CacheKey {
    let path = format!("/page/{n}");
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path: &path, query: None })
}

fn response(key: &CacheKey, is_tagged: bool, position: u64) -> Arc<StoredResponse> {
    let mut fields = HeaderMap::new();
    fields.insert("cache-control", HeaderValue::from_static("max-age=3600"));
    let request = HeaderMap::new();
    let exchange = Exchange {
        method: &Method::GET,
        request: &request,
        status: StatusCode::OK,
        response: &fields,
        request_time: NOW,
        response_time: NOW,
    };
    let storable = storable(&exchange, &StoragePolicy::default()).expect("storable");
    let new = NewHead {
        key,
        request: &request,
        status: StatusCode::OK,
        fields: &fields,
        request_time: NOW,
        response_time: NOW,
        position,
        version_vector: Arc::default(),
        tags: if is_tagged { vec!["tenth".to_owned()] } else { Vec::new() },
        hidden: &TagFields::default(),
    };
    Arc::new(StoredResponse::new(StoredHead::new(&storable, new), Body::from(Bytes::new())))
}
