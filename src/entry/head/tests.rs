//! Tests the encoding (identity, golden files, and every way an object can be broken), and what a head decides.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::base::wire::{PREAMBLE, frame, put_string};
use crate::entry::encoding::*;
use crate::entry::response::COPIED;
use crate::entry::{Body, Replaced, SEGMENT, Tried, VaryRecord, VersionVector, Who};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::KeyParts;
use crate::rfc9111::reuse::Failure;
use crate::rfc9111::storage::{Exchange, StoragePolicy, storable};
use crate::rfc9111::tags::TagFields;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_123);

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "example.com", path, query: Some("a=1") })
}

fn response(fields: &[(&str, &[u8])], request: &[(&str, &str)], body: &[u8]) -> StoredResponse {
    let mut response = HeaderMap::new();
    response.insert("cache-control", HeaderValue::from_static("max-age=60"));
    for (name, value) in fields {
        response.append(
            HeaderName::from_bytes(name.as_bytes()).expect("test name"),
            HeaderValue::from_bytes(value).expect("test value"),
        );
    }
    let mut request_fields = HeaderMap::new();
    for (name, value) in request {
        request_fields.append(
            HeaderName::from_bytes(name.as_bytes()).expect("test name"),
            HeaderValue::from_str(value).expect("test value"),
        );
    }
    let exchange = Exchange {
        method: &http::Method::GET,
        request: &request_fields,
        status: StatusCode::OK,
        response: &response,
        request_time: NOW,
        response_time: NOW.plus_millis(5),
    };
    let storable = storable(&exchange, &StoragePolicy::default()).expect("storable");
    let new = NewHead {
        key: &key("/page"),
        request: &request_fields,
        status: StatusCode::OK,
        fields: &response,
        request_time: NOW,
        response_time: NOW.plus_millis(5),
        position: 42,
        version_vector: Arc::new(version_vector()),
        tags: vec!["a".into(), "blog:7".into()],
        hidden: &TagFields::default(),
    };
    let mut head = StoredHead::new(&storable, new);
    head.body_object = Some(BodyObject::written(7));
    StoredResponse::new(head, Body::from_chunks([Bytes::copy_from_slice(body)].iter(), body.len() as u64))
}

fn version_vector() -> VersionVector {
    VersionVector { complete_until: 1_700_000_000_000 << 10, recent: vec![(7, (1_700_000_030_000 << 10) + 1)] }
}

pub(crate) fn sample() -> StoredResponse {
    response(
        &[
            ("vary", b"accept-language, x"),
            ("x-bytes", b"\xe9\xff"),
            ("x-many", b"1"),
            ("x-many", b"2"),
            ("etag", b"\"e\""),
        ],
        &[("accept-language", "de, en")],
        b"hello",
    )
}

fn record() -> VaryRecord {
    let variant =
        Variant { names: vec![HeaderName::from_static("cookie"), HeaderName::from_static("x")], selector: Vec::new() };
    VaryRecord::new(key("/page"), 99, vec![HeaderName::from_static("accept-language")])
        .leading_to(&variant, &sample().head)
}

fn record_with_aliases() -> VaryRecord {
    VaryRecord { aliases: vec![(1, 2), (u128::MAX, 3)], ..record() }
}

/// Two parts of a whole of twenty bytes.
fn sample_part() -> StoredResponse {
    let stored = sample();
    let mut head = stored.head.clone();
    head.status = StatusCode::PARTIAL_CONTENT;
    head.set_parts(Parts::from_ranges(20, vec![(2, 5), (10, 12)]));
    let mut fields = head.fields.to_map();
    fields.insert("content-range", HeaderValue::from_static("bytes 10-11/20"));
    head.fields = Fields::new(fields.iter());
    head.freshness =
        Freshness::of(head.status, &fields, head.request_time(), head.response_time(), &LifetimePolicy::default());
    StoredResponse { head, ..stored }
}

fn decode_at(object: &[u8], path: &str) -> Result<Object, DecodeError> {
    decode(&Bytes::copy_from_slice(object), &key(path), &LifetimePolicy::default())
}

fn assert_same(object: Object, original: &StoredResponse) {
    let Object::Response { head, body } = object else { panic!("a response was written") };
    let expected = &original.head;
    assert_eq!(head.key, expected.key);
    assert_eq!(head.variant(), expected.variant());
    assert_eq!(head.parts(), expected.parts());
    assert_eq!(head.status, expected.status);
    assert_eq!(head.fields, expected.fields);
    assert_eq!((head.request_time(), head.response_time()), (expected.request_time(), expected.response_time()));
    assert_eq!(head.freshness, expected.freshness);
    assert_eq!((&head.version_vector, head.tags()), (&expected.version_vector, expected.tags()));
    assert_eq!(head.position, 0, "positions are of one process");
    match body {
        DurableBody::Inline(bytes) => assert_eq!(bytes, original.pieces().collect::<Vec<_>>().concat()),
        DurableBody::Separate { len, checksums } => {
            assert_eq!(head.body_id(), expected.body_id());
            assert_eq!(len, original.len());
            assert_eq!(checksums[..], chunk_checksums(original.pieces()));
        }
    }
}

#[test]
fn encoding_then_decoding_is_the_identity() {
    let original = sample();
    assert_same(decode_at(&encode_response(&original, true), "/page").expect("decodes"), &original);
    assert_same(decode_at(&encode_response(&original, false), "/page").expect("decodes"), &original);
    assert_same(decode_at(&encode_response(&sample_part(), true), "/page").expect("decodes"), &sample_part());
    match decode_at(&encode_vary(&record_with_aliases()), "/page").expect("decodes") {
        Object::Vary(decoded) => assert_eq!(decoded, record_with_aliases()),
        Object::Response { .. } => panic!("a record was written"),
    }
}

fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Pins version 1 to the byte: a change of the format needs a new version. `LARDER_WRITE_GOLDEN=1` writes the files that
/// are missing.
#[test]
fn golden_files_are_written_and_read_to_the_byte() {
    for (name, written, response) in [
        ("v1-response-inline.bin", encode_response(&sample(), true), Some(sample())),
        ("v1-response-separate.bin", encode_response(&sample(), false), Some(sample())),
        ("v1-part.bin", encode_response(&sample_part(), true), Some(sample_part())),
        ("v1-vary.bin", encode_vary(&record_with_aliases()), None),
    ] {
        if std::env::var_os("LARDER_WRITE_GOLDEN").is_some() && !golden(name).exists() {
            std::fs::write(golden(name), &written).expect("golden file is written");
        }
        let bytes = std::fs::read(golden(name)).expect("golden file is there");
        assert_eq!(bytes, written, "{name}");
        match (decode_at(&bytes, "/page").expect(name), response) {
            (object @ Object::Response { .. }, Some(expected)) => assert_same(object, &expected),
            (Object::Vary(decoded), None) => assert_eq!(decoded, record_with_aliases(), "{name}"),
            (object, _) => panic!("{name}: {object:?}"),
        }
    }
}

#[test]
fn broken_objects_are_told_apart() {
    let good = encode_response(&sample(), true);
    let flip = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let of_version = |version: u8| {
        let mut bytes = good.clone();
        bytes[4] = version;
        bytes
    };
    let mut longer = good.clone();
    longer.push(0);
    for (bytes, path, expected) in [
        (b"".to_vec(), "/page", DecodeError::Foreign),
        (b"<html>".to_vec(), "/page", DecodeError::Foreign),
        (flip(0), "/page", DecodeError::Foreign),
        (of_version(2), "/page", DecodeError::Version(2)),
        (of_version(0), "/page", DecodeError::Version(0)),
        (flip(PREAMBLE + 30), "/page", DecodeError::Checksum),
        (flip(good.len() - 1), "/page", DecodeError::Checksum),
        (longer, "/page", DecodeError::Checksum),
        (good[..good.len() - 1].to_vec(), "/page", DecodeError::Truncated),
        (good[..PREAMBLE + 9].to_vec(), "/page", DecodeError::Truncated),
        (good[..6].to_vec(), "/page", DecodeError::Truncated),
        (good.clone(), "/other", DecodeError::OtherKey),
    ] {
        assert_eq!(decode_at(&bytes, path).map(|_| ()), Err(expected), "{:?} {path}", &bytes[..bytes.len().min(8)]);
    }
}

#[test]
fn a_new_generation_leads_to_no_older_variant() {
    let old = record();
    let new = VaryRecord { generation: 100, ..record() };
    let request = HeaderMap::new();
    assert!(old.candidates(&request).all(|a| new.candidates(&request).all(|b| a != b)));
}

#[test]
fn the_weight_counts_body_fields_and_key() {
    let small = response(&[], &[], b"").weight();
    assert_eq!(response(&[], &[], &[0; 1000]).weight(), small + 1000);
    assert!(response(&[("x-long", &[b'a'; 500])], &[], b"").weight() >= small + 500);
}

#[test]
fn bodies_are_cut_into_segments_of_their_own() {
    let chunks = [Bytes::from(vec![1; SEGMENT - 1]), Bytes::from(vec![2; 2]), Bytes::from(vec![3; SEGMENT])];
    let len = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let body = Body::from_chunks(chunks.iter(), len);
    let lengths: Vec<_> = body.segments().iter().map(Bytes::len).collect();
    assert_eq!(lengths, [SEGMENT, SEGMENT, 1]);
    assert_eq!(body.segments().concat(), chunks.concat());
    assert_eq!(
        chunk_checksums(body.segments().iter().map(|piece| &piece[..])),
        chunk_checksums(std::iter::once(&chunks.concat()[..]))
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_at(&bytes, "/page");
        // Sound frames around arbitrary content.
        let _ = decode_at(&frame(KIND_RESPONSE, &bytes), "/page");
        let mut keyed = Vec::new();
        put_string(&mut keyed, key("/page").as_bytes());
        keyed.extend_from_slice(&bytes);
        let _ = decode_at(&frame(KIND_RESPONSE, &keyed), "/page");
        let _ = decode_at(&frame(KIND_VARY, &keyed), "/page");
    }

    #[test]
    fn any_response_survives(
        value in proptest::collection::vec(32_u8..=126, 0..50),
        body in proptest::collection::vec(any::<u8>(), 0..2000),
        inline in any::<bool>(),
    ) {
        let original = response(&[("x-any", &value)], &[], &body);
        assert_same(decode_at(&encode_response(&original, inline), "/page").expect("decodes"), &original);
    }
}

#[test]
fn a_stored_response_outranks_an_older_one_and_a_whole_a_part() {
    let at = |stored: StoredResponse, secs: i64, etag: &'static str| {
        let mut head = stored.head.clone();
        head.freshness.response_time = NOW.plus_millis(secs * 1000);
        let mut fields = head.fields.to_map();
        fields.insert("etag", HeaderValue::from_static(etag));
        head.fields = Fields::new(fields.iter());
        head
    };
    let (whole, part) = (|secs, etag| at(sample(), secs, etag), |secs, etag| at(sample_part(), secs, etag));
    let now = NOW.plus_millis(100_000);
    for (kept, new, stays, why) in [
        (whole(0, "\"a\""), whole(1, "\"b\""), false, "the later one takes the place"),
        (whole(1, "\"a\""), whole(0, "\"b\""), true, "an answer that took long is not newer for that"),
        (whole(1000, "\"a\""), whole(0, "\"b\""), false, "one from the future is a clock's mistake"),
        (whole(0, "\"a\""), part(1, "\"b\""), true, "a part says nothing against a whole"),
        (part(1, "\"a\""), whole(0, "\"a\""), false, "a part gives way to its own whole"),
        (part(1, "\"a\""), whole(0, "\"b\""), true, "and to no older one of another"),
        (part(1, "W/\"a\""), whole(0, "W/\"a\""), true, "which takes a strong validator to tell"),
        (part(0, "\"a\""), part(1, "\"a\""), false, "a later part takes the place of a part"),
        (part(1, "\"a\""), part(0, "\"a\""), true, "an older one does not"),
    ] {
        assert_eq!(kept.outranks(&new, now), stays, "{why}");
    }
}

#[test]
fn a_response_in_memory_has_a_size_that_allocators_have() {
    let sizes = [size_of::<StoredHead>(), size_of::<StoredResponse>(), size_of::<Fields>()];
    assert_eq!(sizes, [160, 176, 24], "with the two counts, 192 bytes, which is a size that allocators have");
}

#[test]
fn a_response_with_a_shared_body_keeps_at_most_one_other_head() {
    for (len, is_shared) in [(COPIED, false), (COPIED + 1, true), (SEGMENT + 1, true)] {
        let bytes = vec![b'x'; len];
        let first = Arc::new(response(&[], &[], &bytes));
        let head_weight = first.head.weight();
        let (mut newest, head) = (Arc::clone(&first), Arc::downgrade(&first));
        drop(first);
        for _ in 0..10 {
            let before = Arc::downgrade(&newest);
            newest = Arc::new(StoredResponse::with_body_of(&newest, newest.head.clone()));
            assert_eq!(newest.pieces().collect::<Vec<_>>().concat(), bytes);
            let is_first = std::ptr::eq(before.as_ptr(), head.as_ptr());
            assert_eq!(before.strong_count() > 0, is_first && len == COPIED + 1, "{len}");
        }
        assert_eq!(newest.own_body().is_none(), is_shared);
        let with_it = if len == COPIED + 1 { 2 * head_weight } else { head_weight };
        assert!(newest.weight() >= len + with_it, "{len}");
    }
}

#[test]
fn a_replaced_response_is_known_but_not_kept_in_memory() {
    let stored = Arc::new(sample());
    let replaced = Replaced::response(&stored);
    assert_eq!((Arc::strong_count(&stored), replaced.is_durable()), (1, false));
    stored.head.marks.is_durable.store(true, Ordering::Release);
    assert!(replaced.is_durable() && Replaced::head(&stored.head).is_durable());
    let waiting = Arc::new(sample());
    waiting.head.marks.awaits_uses.store(true, Ordering::Release);
    let (unknown, known) = (Replaced::response(&waiting), Replaced::response(&Arc::new(sample())));
    assert!(!unknown.is_durable());
    drop(waiting);
    assert!(unknown.is_durable(), "it may have been written before it was evicted");
    assert!(!known.is_durable());
}

#[test]
fn a_cloned_head_has_the_marks_of_the_original() {
    let head = sample().head;
    let marks = |head: &StoredHead| {
        let now = NOW.plus_millis(10);
        (
            head.marks.is_durable.load(Ordering::Acquire),
            head.marks.awaits_uses.load(Ordering::Acquire),
            head.marks.checked.load(Ordering::Acquire),
            head.marks.tried(100, Who::of(&HeaderMap::new()), now),
        )
    };
    assert_eq!(marks(&head.clone()), (false, false, 0, None));
    head.marks.is_durable.store(true, Ordering::Release);
    head.marks.awaits_uses.store(true, Ordering::Release);
    head.marks.checked.store(7, Ordering::Release);
    head.marks.note_tried(Tried::Failed(Failure::Unreachable), Who::of(&HeaderMap::new()), NOW);
    assert_eq!(marks(&head.clone()), (true, true, 7, Some(Tried::Failed(Failure::Unreachable))));
}
