//! The encoding of the journal's objects: the preamble of every durable object ([`crate::base::wire`]), and then:
//!
//! ```text
//! kind 2, a record: node u64, time u64,
//!         purges (u32 count, each: time u64, soft u8, target)
//! kind 3, a snapshot: all until u64, latest time u64,
//!         nodes (u32 count, each: node u64, last time u64),
//!         purges (u32 count, each: time u64, node u64, soft u8, target),
//!         the fingerprints of evicted URLs (a string, see `store/purge/fingerprints.rs`),
//!         1u8 and the index (a string, see `store/index/snapshot.rs`), or 0u8
//! target: u8 0 and the key's hash u128; 1 and a prefix, a string; 2 and a tag, a string; 3 for all;
//!         in a snapshot also 4 and a tag's hash u128, and 5, 6, 7 for the floors of URLs, tags, prefixes,
//!         8 for that of the fingerprints of evicted URLs
//! ```

use bytes::BufMut;

use crate::base::wire::{DecodeError, Decoder, Framed, frame, put_string, unframe};
use crate::entry::JournalTime;
use crate::store::purge::{Purge, PurgeSnapshot, PurgeStamp, PurgeTarget, Scope};

const KIND_RECORD: u8 = 2;
const KIND_SNAPSHOT: u8 = 3;

/// A record: the purges that one process tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its writer.
    pub node: u64,
    /// The time in its name.
    pub time: JournalTime,
    /// Purges, and the time of each.
    pub purges: Vec<(Purge, JournalTime)>,
}

/// All that the journal told until some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Everything told before this time is in it.
    pub until: JournalTime,
    /// The purges.
    pub purges: PurgeSnapshot,
    /// The index, if its writer's was complete.
    pub index: Option<Vec<u8>>,
}

impl Record {
    /// Encodes the record.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.purges.len() * 32);
        out.put_u64_le(self.node);
        out.put_u64_le(self.time);
        put_count(&mut out, self.purges.len());
        for (purge, time) in &self.purges {
            out.put_u64_le(*time);
            out.put_u8(u8::from(purge.is_soft));
            match &purge.target {
                PurgeTarget::Url(hash) => put_hash(&mut out, 0, *hash),
                PurgeTarget::Prefix(prefix) => put_text(&mut out, 1, prefix),
                PurgeTarget::Tag(tag) => put_text(&mut out, 2, tag),
                PurgeTarget::All => out.put_u8(3),
            }
        }
        frame(KIND_RECORD, &out)
    }

    /// Decodes what `encode` wrote.
    pub(crate) fn decode(object: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = head_of(object, KIND_RECORD)?;
        let (node, time) = (decoder.u64()?, decoder.u64()?);
        let mut purges = Vec::new();
        for _ in 0..decoder.u32()? {
            let (time, is_soft) = (decoder.u64()?, flag(&mut decoder)?);
            let target = match decoder.u8()? {
                0 => PurgeTarget::Url(decoder.u128()?),
                1 => PurgeTarget::Prefix(text(&mut decoder)?),
                2 => PurgeTarget::Tag(text(&mut decoder)?),
                3 => PurgeTarget::All,
                _ => return Err(DecodeError::Malformed),
            };
            purges.push((Purge { target, is_soft }, time));
        }
        ends(decoder)?;
        Ok(Self { node, time, purges })
    }
}

impl Snapshot {
    /// Encodes the snapshot.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let purges = &self.purges;
        let index_len = self.index.as_ref().map_or(0, Vec::len);
        let mut out = Vec::with_capacity(64 + purges.stamps.len() * 40 + purges.nodes.len() * 16 + index_len);
        out.put_u64_le(self.until);
        out.put_u64_le(purges.latest);
        put_count(&mut out, purges.nodes.len());
        for (node, time) in &purges.nodes {
            out.put_u64_le(*node);
            out.put_u64_le(*time);
        }
        put_count(&mut out, purges.stamps.len());
        for (scope, stamp) in &purges.stamps {
            out.put_u64_le(stamp.time);
            out.put_u64_le(stamp.node);
            out.put_u8(u8::from(stamp.is_soft));
            match scope {
                Scope::Url(hash) => put_hash(&mut out, 0, *hash),
                Scope::Prefix(prefix) => put_text(&mut out, 1, prefix),
                Scope::All => out.put_u8(3),
                Scope::Tag(hash) => put_hash(&mut out, 4, *hash),
                Scope::UrlFloor => out.put_u8(5),
                Scope::TagFloor => out.put_u8(6),
                Scope::PrefixFloor => out.put_u8(7),
                Scope::OldUrls => out.put_u8(8),
            }
        }
        put_string(&mut out, &purges.old_urls);
        out.put_u8(u8::from(self.index.is_some()));
        if let Some(index) = &self.index {
            put_string(&mut out, index);
        }
        frame(KIND_SNAPSHOT, &out)
    }

    /// Decodes what `encode` wrote.
    pub(crate) fn decode(object: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = head_of(object, KIND_SNAPSHOT)?;
        let until = decoder.u64()?;
        let mut purges = PurgeSnapshot { latest: decoder.u64()?, ..PurgeSnapshot::default() };
        for _ in 0..decoder.u32()? {
            purges.nodes.push((decoder.u64()?, decoder.u64()?));
        }
        for arrival in 0..u64::from(decoder.u32()?) {
            let (time, node, is_soft) = (decoder.u64()?, decoder.u64()?, flag(&mut decoder)?);
            let scope = match decoder.u8()? {
                0 => Scope::Url(decoder.u128()?),
                1 => Scope::Prefix(text(&mut decoder)?),
                3 => Scope::All,
                4 => Scope::Tag(decoder.u128()?),
                5 => Scope::UrlFloor,
                6 => Scope::TagFloor,
                7 => Scope::PrefixFloor,
                8 => Scope::OldUrls,
                _ => return Err(DecodeError::Malformed),
            };
            purges.stamps.push((scope, PurgeStamp { arrival, time, node, is_soft }));
        }
        purges.old_urls = decoder.string()?.to_vec();
        let index = if flag(&mut decoder)? { Some(decoder.string()?.to_vec()) } else { None };
        ends(decoder)?;
        Ok(Self { until, purges, index })
    }
}

/// Returns the head of an object of this kind.
fn head_of(object: &[u8], expected: u8) -> Result<Decoder<'_>, DecodeError> {
    let Framed { kind, head, rest, .. } = unframe(object)?;
    if kind != expected || !rest.is_empty() {
        return Err(DecodeError::Malformed);
    }
    Ok(Decoder(head))
}

fn ends(decoder: Decoder<'_>) -> Result<(), DecodeError> {
    if decoder.0.is_empty() { Ok(()) } else { Err(DecodeError::Malformed) }
}

fn flag(decoder: &mut Decoder<'_>) -> Result<bool, DecodeError> {
    match decoder.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Malformed),
    }
}

fn text(decoder: &mut Decoder<'_>) -> Result<String, DecodeError> {
    String::from_utf8(decoder.string()?.to_vec()).map_err(|_| DecodeError::Malformed)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_hash(out: &mut Vec<u8>, kind: u8, hash: u128) {
    out.put_u8(kind);
    out.put_u128_le(hash);
}

fn put_text(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.put_u8(kind);
    put_string(out, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let targets = [
            PurgeTarget::Url(7),
            PurgeTarget::Prefix("http://h/a".into()),
            PurgeTarget::Tag("é".into()),
            PurgeTarget::All,
        ];
        let purges = targets.into_iter().zip(1..).map(|(target, n)| (Purge { target, is_soft: n == 2 }, n));
        Record { node: 3, time: 9, purges: purges.collect() }
    }

    fn snapshot() -> Snapshot {
        let scopes = [
            Scope::All,
            Scope::Prefix("/a".into()),
            Scope::Tag(5),
            Scope::Url(u128::MAX),
            Scope::UrlFloor,
            Scope::TagFloor,
            Scope::PrefixFloor,
            Scope::OldUrls,
        ];
        let stamp = |n: u64| PurgeStamp { arrival: n, time: 10 + n, node: n, is_soft: n == 1 };
        let stamps = scopes.into_iter().zip(0..).map(|(scope, n)| (scope, stamp(n))).collect();
        let purges = PurgeSnapshot { stamps, nodes: vec![(1, 2), (3, 4)], old_urls: vec![9], latest: 99 };
        Snapshot { until: 8, purges, index: Some(vec![1, 2, 3]) }
    }

    /// Pins version 1 to the byte: a change of the format needs a new version.
    #[test]
    fn golden_files_are_written_and_read_to_the_byte() {
        let golden = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        for (name, written) in [("v1-record.bin", record().encode()), ("v1-snapshot.bin", snapshot().encode())] {
            if std::env::var_os("LARDER_WRITE_GOLDEN").is_some() && !golden(name).exists() {
                std::fs::write(golden(name), &written).expect("golden file is written");
            }
            assert_eq!(std::fs::read(golden(name)).expect("golden file is there"), written, "{name}");
        }
        let read = |name: &str| std::fs::read(golden(name)).expect("golden file is there");
        assert_eq!(Record::decode(&read("v1-record.bin")), Ok(record()));
        assert_eq!(Snapshot::decode(&read("v1-snapshot.bin")), Ok(snapshot()));
    }

    #[test]
    fn a_cut_or_changed_object_does_not_decode() {
        for object in [record().encode(), snapshot().encode()] {
            for len in 0..object.len() {
                assert!(Record::decode(&object[..len]).is_err() && Snapshot::decode(&object[..len]).is_err());
            }
            for at in 0..object.len() {
                let mut changed = object.clone();
                changed[at] ^= 1;
                // The preamble's two zero bytes are not checked.
                let is_read = Record::decode(&changed).is_ok() || Snapshot::decode(&changed).is_ok();
                assert!(!is_read || (6..8).contains(&at), "{at}");
            }
        }
        assert!(Record::decode(&snapshot().encode()).is_err());
        let mut of_a_version_to_come = record().encode();
        of_a_version_to_come[4] = 2;
        assert_eq!(Record::decode(&of_a_version_to_come), Err(DecodeError::Version(2)));
    }
}
