//! Tests of the encoding of packs. Golden files pin version 1 to the byte.

use bytes::Bytes;
use http::header::HeaderName;

use super::*;
use crate::base::wire::PREAMBLE;
use crate::entry::encoding::{encode_response, encode_separate, encode_tombstone, encode_vary};
use crate::entry::tests::sample;
use crate::entry::{VaryRecord, VersionVector};
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::PackName;

const ORDER: u64 = 1_700_000_000_000 << 10;

fn key(path: &str) -> CacheKey {
    CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "example.com", path, query: None })
}

fn new_entry(kind: EntryKind, key: &CacheKey, variant: u128, order: u64, object: Vec<u8>) -> NewEntry {
    let is_response = kind == EntryKind::Response;
    let head = sample().head;
    NewEntry {
        kind,
        replaces: kind == EntryKind::Tombstone,
        order: ORDER + order,
        key: key.clone(),
        variant,
        vector: if is_response { (*head.version_vector).clone() } else { VersionVector::default() },
        tags: if is_response { head.tags().to_vec() } else { Vec::new() },
        fresh_until: Timestamp::from_secs(1_700_000_060),
        of_use_until: Timestamp::from_secs(1_700_086_460),
        body: None,
        object,
    }
}

/// The tombstone that `docs/durable-format.md` shows.
fn tombstone() -> NewEntry {
    let mut tombstone = new_entry(EntryKind::Tombstone, &key("/gone"), 0, 3, encode_tombstone(&key("/gone")));
    (tombstone.fresh_until, tombstone.of_use_until) = (Timestamp::default(), Timestamp::default());
    tombstone
}

/// A pack that replaces another: a Vary record with its variant, a response with a separate body, a tombstone.
fn pack() -> (PackBuilder, Vec<u8>) {
    let (stored, mut out) = (sample(), Vec::new());
    let key_of = stored.head.key.clone();
    let record = VaryRecord::new(key_of.clone(), 99, vec![HeaderName::from_static("accept-language")]);
    let mut builder = PackBuilder::default();
    builder.set_replaces(vec![PackName { time: ORDER - 1024, node: 7 }]);
    let group = vec![
        new_entry(EntryKind::Vary, &key_of, 0, 1, encode_vary(&record)),
        new_entry(EntryKind::Response, &key_of, 5, 1, encode_response(&stored, true)),
    ];
    builder.push(group, &mut out);
    let object = encode_separate(&stored.head, 600_000, &[1, 2, 3]);
    let separate = NewEntry {
        body: Some((stored.head.body_id(), 600_000)),
        ..new_entry(EntryKind::Response, &key_of, 0, 2, object)
    };
    builder.push(vec![separate], &mut out);
    builder.push(vec![tombstone()], &mut out);
    (builder, out)
}

fn golden(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Pins version 1 to the byte: a change of the format needs a new version. `LARDER_WRITE_GOLDEN=1` writes the files that
/// are missing.
#[test]
fn golden_files_are_written_and_read_to_the_byte() {
    let (builder, entries) = pack();
    let whole = [&entries[..], &builder.finish()].concat();
    let mut entry = Vec::new();
    PackBuilder::default().push(
        vec![new_entry(EntryKind::Response, &sample().head.key, 0, 1, encode_response(&sample(), true))],
        &mut entry,
    );
    let mut deletion = Vec::new();
    PackBuilder::default().push(vec![tombstone()], &mut deletion);
    for (name, written) in [
        ("v1-entry.bin", &entry),
        ("v1-entry-tombstone.bin", &deletion),
        ("v1-footer.bin", &builder.finish()),
        ("v1-pack.bin", &whole),
    ] {
        if std::env::var_os("LARDER_WRITE_GOLDEN").is_some() && !golden(name).exists() {
            std::fs::write(golden(name), written).expect("golden file is written");
        }
        assert_eq!(&std::fs::read(golden(name)).expect("golden file is there"), written, "{name}");
    }
    let read = std::fs::read(golden("v1-pack.bin")).expect("golden file is there");
    let trailer = Trailer::decode(&read[read.len() - TRAILER..], read.len() as u64).expect("a trailer");
    assert_eq!(trailer.offset, entries.len() as u64);
    let footer = Footer::decode(&read[entries.len()..read.len() - TRAILER]).expect("a footer");
    assert_eq!(footer.replaces, [PackName { time: ORDER - 1024, node: 7 }]);
    assert_eq!(footer.entries, builder.entries());
    let kinds: Vec<EntryKind> = footer.entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::Vary, EntryKind::Response, EntryKind::Response, EntryKind::Tombstone]);
}

#[test]
fn a_footer_is_made_anew_from_the_entries() {
    let (builder, entries) = pack();
    let whole = Bytes::from([&entries[..], &builder.finish()].concat());
    let found = entries_of(whole.clone(), 0);
    assert_eq!((found.entries(), found.len()), (builder.entries(), entries.len() as u64));
    assert!(is_footer(&whole[entries.len()..]) && !is_footer(&whole));
    // In pieces, too.
    let first = u64::from(builder.entries()[0].len);
    let rest = entries_of(whole.slice(usize::try_from(first).expect("it is small")..), first);
    assert_eq!((rest.entries(), rest.len()), (&builder.entries()[1..], entries.len() as u64));
}

#[test]
fn entries_are_sound_up_to_the_first_that_is_cut_or_changed() {
    let (builder, entries) = pack();
    let ends: Vec<u64> = builder.entries().iter().map(|entry| entry.offset + u64::from(entry.len)).collect();
    for at in 0..entries.len() {
        let sound = |bytes: &[u8]| entries_of(Bytes::copy_from_slice(bytes), 0).len();
        let before = ends.iter().rev().copied().find(|end| *end <= at as u64).unwrap_or(0);
        assert_eq!(sound(&entries[..at]), before, "cut at {at}");
        let mut changed = entries.clone();
        changed[at] ^= 4;
        // Zeros that nothing checks: the padding of entries, and two bytes in the preamble of an object.
        let entry = builder.entries().iter().rev().find(|entry| entry.offset <= at as u64).expect("an entry");
        let start = usize::try_from(entry.offset).expect("it is small");
        let object = EntryHeader::decode(&entries[start..]).expect("a header").object_len as usize;
        let within = at - start;
        let is_checked = within < entry::HEADER + object && !(entry::HEADER + 6..entry::HEADER + 8).contains(&within);
        assert_eq!(sound(&changed) == before, is_checked, "changed at {at}");
    }
}

#[test]
fn a_cut_or_changed_footer_does_not_decode() {
    let footer = pack().0.finish();
    let (body, size) = (footer.len() - TRAILER, footer.len() as u64 + pack().0.len());
    for at in 0..footer.len() {
        assert!(Footer::decode(&footer[..at.min(body - 1)]).is_err());
        let mut changed = footer.clone();
        changed[at] ^= 1;
        let is_read = Footer::decode(&changed[..body]).is_ok() && Trailer::decode(&changed[body..], size).is_ok();
        // The preamble's two zero bytes are not checked.
        assert!(!is_read || (6..8).contains(&at), "{at}");
    }
    assert!(Footer::decode(&footer[..body]).is_ok() && PREAMBLE < body);
    assert!(Trailer::decode(&footer[body..], size + 1).is_err(), "it is not the end of the pack");
}

#[test]
fn a_footer_whose_entries_have_gaps_does_not_decode() {
    let of = |change: &dyn Fn(&mut FooterEntry)| {
        let mut footer = pack().0.into_footer();
        change(&mut footer.entries[1]);
        let encoded = footer.encode(footer.offset());
        Footer::decode(&encoded[..encoded.len() - TRAILER]).is_ok()
    };
    assert!(of(&|_| ()));
    assert!(!of(&|entry| entry.offset += 16) && !of(&|entry| entry.offset = u64::MAX - 15));
    assert!(!of(&|entry| entry.len = 0) && !of(&|entry| entry.len += 1));
    assert!(!of(&|entry| entry.group_len = u32::MAX));
}
