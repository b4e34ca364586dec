//! What a hit is made of, what storing is, and what it costs that many read one body as it comes in:
//! `cargo bench --bench hit_path`.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use larder::entry::encoding::{decode, encode_response};
use larder::entry::{Body, Budget, Fill, NewHead, StoredHead, StoredResponse, Unread};
use larder::rfc9111::cache_status::{CacheStatus, Tier};
use larder::rfc9111::directives::CacheControl;
use larder::rfc9111::freshness::LifetimePolicy;
use larder::rfc9111::key::{CacheKey, KeyParts, normal_authority};
use larder::rfc9111::reuse;
use larder::rfc9111::storage::{Exchange, StoragePolicy, storable};
use larder::rfc9111::tags::TagFields;
use larder::rfc9111::timestamp::Timestamp;
use larder::store::{Memory, MemoryConfig};

const NOW: Timestamp = Timestamp::from_secs(1_790_000_000);

fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

fn request() -> HeaderMap {
    fields(&[("host", "example.com"), ("user-agent", "bench"), ("accept", "*/*"), ("accept-language", "de, en;q=0.5")])
}

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "example.com", path, query: Some("page=1") })
}

fn exchange<'a>(request: &'a HeaderMap, response: &'a HeaderMap) -> Exchange<'a> {
    Exchange { method: &Method::GET, request, status: StatusCode::OK, response, request_time: NOW, response_time: NOW }
}

fn response(path: &str, vary: bool, body: usize) -> Arc<StoredResponse> {
    let mut response = fields(&[
        ("cache-control", "public, max-age=600"),
        ("content-type", "text/html; charset=utf-8"),
        ("etag", "\"5f3e\""),
        ("date", "Sat, 21 Nov 2026 00:00:00 GMT"),
        ("server", "gunicorn"),
    ]);
    if vary {
        response.insert("vary", HeaderValue::from_static("accept-language"));
    }
    let request = request();
    let exchange = exchange(&request, &response);
    let storable = storable(&exchange, &StoragePolicy::default()).expect("storable");
    let new = NewHead {
        key: &key(path),
        request: &request,
        status: StatusCode::OK,
        fields: &response,
        request_time: NOW,
        response_time: NOW,
        position: 0,
        version_vector: Arc::default(),
        tags: Vec::new(),
        hidden: &TagFields::default(),
    };
    Arc::new(StoredResponse::new(StoredHead::new(&storable, new), Body::from(Bytes::from(vec![b'x'; body]))))
}

fn parts_of_a_hit(c: &mut Criterion) {
    let request = request();
    c.bench_function("key", |b| {
        b.iter(|| {
            let authority = normal_authority(black_box("example.com"), "http").expect("an authority");
            CacheKey::new(KeyParts {
                prefix: "",
                scheme: "http",
                authority: &authority,
                path: black_box("/a/page"),
                query: None,
            })
        });
    });
    let memory = Memory::new(&MemoryConfig::default());
    for n in 0..1000 {
        memory.insert(&response(&format!("/{n}"), n % 2 == 1, 1024), &|| None, &|| true);
    }
    for (name, path) in [("lookup", "/500"), ("lookup, varying", "/501")] {
        let key = key(path);
        c.bench_function(name, |b| b.iter(|| memory.lookup(black_box(&key), &request)));
    }
    c.bench_function("request directives, none", |b| b.iter(|| CacheControl::of_request(black_box(&request))));
    let busy = fields(&[("cache-control", "public, max-age=600, stale-while-revalidate=30, x=\"a, b\"")]);
    c.bench_function("response directives", |b| b.iter(|| CacheControl::of(black_box(&busy))));
    let stored = response("/a", false, 1024);
    let directives = CacheControl::of_request(&request);
    c.bench_function("reuse", |b| b.iter(|| reuse::reuse(black_box(&directives), &stored.head.freshness, NOW)));
    let head = &stored.head;
    c.bench_function("response fields, ready", |b| {
        b.iter(|| {
            larder::entry::ready::fields(black_box(&stored), NOW, || {
                let mut fields = head.fields.to_map();
                fields.insert("age", HeaderValue::from(head.freshness.age_seconds(NOW)));
                fields.append("cache-status", CacheStatus::hit(Tier::Memory, 599_000).to_value(None));
                fields
            })
        });
    });
    c.bench_function("response fields", |b| {
        b.iter(|| {
            let mut fields = black_box(&stored.head.fields).to_map();
            fields.insert("age", HeaderValue::from(stored.head.freshness.age_seconds(NOW)));
            fields.append("cache-status", CacheStatus::hit(Tier::Memory, 599_000).to_value(None));
            fields
        });
    });
}

fn encoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("durable object");
    for size in [1 << 10, 100 << 10] {
        let stored = response("/a", true, size);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("encode {size}"), |b| b.iter(|| encode_response(black_box(&stored), true)));
        let object = Bytes::from(encode_response(&stored, true));
        let key = key("/a");
        group.bench_function(format!("decode {size}"), |b| {
            b.iter(|| decode(black_box(&object), &key, &LifetimePolicy::default()).expect("decodes"));
        });
    }
    group.finish();
}

fn storing(c: &mut Criterion) {
    let (request, response) = (
        request(),
        fields(&[
            ("cache-control", "public, max-age=600, stale-while-revalidate=30"),
            ("content-type", "text/html; charset=utf-8"),
            ("etag", "\"5f3e\""),
            ("date", "Sat, 21 Nov 2026 00:00:00 GMT"),
            ("vary", "accept-encoding"),
        ]),
    );
    let exchange = exchange(&request, &response);
    let policy = StoragePolicy::default();
    c.bench_function("storable", |b| b.iter(|| storable(black_box(&exchange), &policy).expect("storable")));
}

/// A body of sixteen pieces comes in, and so many read it as it comes.
fn filling(c: &mut Criterion) {
    let mut group = c.benchmark_group("fill of 64 KiB");
    let piece = Bytes::from(vec![b'x'; 4 << 10]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for readers in [1_u64, 100, 10_000] {
        group.throughput(Throughput::Elements(readers));
        group.bench_function(format!("{readers} readers"), |b| {
            b.iter(|| {
                runtime.block_on(async {
                    let mut writer = Fill::start(1 << 20, Unread::Finite, Budget::new(1 << 30));
                    let mut all: Vec<_> = (0..readers).filter_map(|_| writer.fill().reader()).collect();
                    for _ in 0..15 {
                        writer.push(piece.clone()).await;
                        for reader in &mut all {
                            black_box(reader.chunk().await);
                        }
                    }
                    let body = writer.whole(&piece);
                    writer.complete(piece.clone(), body);
                    for reader in &mut all {
                        black_box(reader.chunk().await);
                    }
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, parts_of_a_hit, storing, filling, encoding);
criterion_main!(benches);
