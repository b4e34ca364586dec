//! The index in a snapshot of the journal:
//!
//! ```text
//! secret of the fingerprints: u64, u64
//! packs (u32 count, each: time u64, node u64, length u64, that of the entries u64, least order u64, of use until i64 ms,
//!        flags u8: 1 holds older entries down, 2 is damaged, 4 has responses to QUERY, 8 and the pages are listed,
//!        packs that it replaces (u16 count, each: time u64, node u64),
//!        separate bodies (u32 count, each: id u128, length u64),
//!        with flag 8 the pages that it has responses to QUERY of (u16 count, each: hash of the key u128))
//! places, to the end: the first two bytes of their fingerprints, u32 count, each in twenty bytes (places.rs), with the
//!        number that the pack has in the list above
//! ```
//!
//! Packs that still grow are left out, with their places.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BufMut;

use super::packs::{Queries, References};
use super::places::Packed;
use super::{Index, PackInfo, Place};
use crate::base::wire::{DecodeError, Decoder, put_count16};
use crate::entry::JournalTime;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::PackName;

const HOLDS_DOWN: u8 = 1;
const DAMAGED: u8 = 2;
const QUERIES: u8 = 4;
const LISTED: u8 = 8;

impl Index {
    /// Encodes the index. Returns the packs that are in it, too.
    pub(in crate::store) fn encode(&self) -> (Vec<u8>, Vec<Arc<PackInfo>>) {
        let (first, second) = self.seed();
        let mut out = Vec::new();
        out.put_u64_le(first);
        out.put_u64_le(second);
        let packs: Vec<Arc<PackInfo>> = self.all_packs().into_iter().filter(|pack| !pack.is_open()).collect();
        out.put_u32_le(u32::try_from(packs.len()).unwrap_or(u32::MAX));
        for pack in &packs {
            encode_pack(pack, &mut out);
        }
        let numbers: HashMap<u32, u32> = packs.iter().zip(0..).map(|(pack, number)| (pack.id, number)).collect();
        self.each_leaf(|first, second, leaf| {
            let start = out.len();
            out.extend_from_slice(&[first, second, 0, 0, 0, 0]);
            let mut count = 0_u32;
            for packed in leaf {
                if let Some(packed) = packed.renumbered(|pack| numbers.get(&pack).copied()) {
                    out.extend_from_slice(&packed.0);
                    count += 1;
                }
            }
            if count == 0 {
                out.truncate(start);
            } else {
                out[start + 2..start + 6].copy_from_slice(&count.to_le_bytes());
            }
        });
        (out, packs)
    }

    /// Adds what [`Index::encode`] wrote. Returns `false` if its fingerprints have another secret, and nothing was added.
    /// Adds nothing if any of it is malformed, or of a time after `latest`.
    pub(in crate::store) fn decode(&self, encoded: &[u8], latest: JournalTime) -> Result<bool, DecodeError> {
        let mut decoder = Decoder(encoded);
        let seed = (decoder.u64()?, decoder.u64()?);
        let mut packs = Vec::new();
        for _ in 0..decoder.u32()? {
            packs.push(decode_pack(&mut decoder)?);
        }
        let mut leaves = Vec::new();
        while !decoder.0.is_empty() {
            leaves.push(Leaf::decode(&mut decoder, leaves.last(), packs.len())?);
        }
        let order = |leaf: &Leaf<'_>, place: &[u8; 20]| Packed(*place).read(leaf.first, leaf.second).1.order;
        let is_later = |leaf: &Leaf<'_>| leaf.places.iter().any(|place| order(leaf, place) > latest);
        if packs.iter().any(|pack| pack.name.time > latest) || leaves.iter().any(is_later) {
            return Err(DecodeError::Malformed);
        }
        if !self.adopt_seed(seed) {
            return Ok(false);
        }
        let sizes: Vec<u64> = packs.iter().map(|pack| pack.size).collect();
        let packs: Vec<Arc<PackInfo>> = packs.into_iter().map(|pack| self.restore_pack(pack)).collect();
        for leaf in &leaves {
            self.restore_leaf(leaf, &packs);
        }
        // Complete only now, with all places: a pack without any is deleted.
        packs.iter().zip(sizes).for_each(|(pack, size)| pack.set_size(size, false));
        Ok(true)
    }

    fn restore_pack(&self, saved: SavedPack) -> Arc<PackInfo> {
        let pack = self.add_pack(saved.name);
        pack.note_filled(saved.filled);
        pack.note_bounds(saved.least_order, saved.of_use_until, saved.holds_down);
        if saved.is_damaged {
            pack.set_damaged();
        }
        match saved.queries {
            Queries::Of(pages) => pages.into_iter().for_each(|page| pack.note_query_of(page)),
            Queries::OfAny => pack.note_queries_of_any(),
        }
        pack.set_replaces(saved.refers.packs);
        pack.note_bodies(&saved.refers.bodies);
        pack.set_saved();
        pack
    }

    /// Adds the places of a leaf. `packs` are those of the snapshot.
    fn restore_leaf(&self, leaf: &Leaf<'_>, packs: &[Arc<PackInfo>]) {
        let pack_of = |number: u32| usize::try_from(number).ok().and_then(|number| packs.get(number));
        let known = self.packs.read();
        let filled = {
            let mut shard = self.shards[usize::from(leaf.first)].write();
            let own = leaf.places.iter().map(|place| {
                let packed = Packed(*place);
                packed.renumbered(|number| pack_of(number).map(|pack| pack.id)).unwrap_or(packed)
            });
            shard.fill(leaf.second, own)
        };
        for place in leaf.places {
            let (fingerprint, place) = Packed(*place).read(leaf.first, leaf.second);
            let Some(pack) = pack_of(place.pack) else { continue };
            if filled {
                pack.gain(place);
            } else {
                self.insert(&known, pack, fingerprint, Place { pack: pack.id, ..place });
            }
        }
    }
}

/// A pack in a snapshot.
struct SavedPack {
    name: PackName,
    size: u64,
    filled: u64,
    least_order: JournalTime,
    of_use_until: Timestamp,
    holds_down: bool,
    is_damaged: bool,
    queries: Queries,
    refers: References,
}

/// The places in a snapshot whose fingerprints begin with the same two bytes.
struct Leaf<'a> {
    first: u8,
    second: u8,
    places: &'a [[u8; 20]],
}

impl<'a> Leaf<'a> {
    /// Takes the leaf after `before`. Its places are sorted, and are in one of `packs` packs.
    fn decode(decoder: &mut Decoder<'a>, before: Option<&Self>, packs: usize) -> Result<Self, DecodeError> {
        let ([first, second], count) = (decoder.array()?, decoder.len32()?);
        let (places, _) = decoder.take(count.checked_mul(20).ok_or(DecodeError::Truncated)?)?.as_chunks();
        let is_in_order = before.is_none_or(|before| (before.first, before.second) < (first, second));
        let is_sorted = places.is_sorted_by(|a, b| a[..6] < b[..6]);
        let has_pack = |place: &[u8; 20]| usize::try_from(Packed(*place).pack()).is_ok_and(|number| number < packs);
        if is_in_order && is_sorted && places.iter().all(has_pack) {
            Ok(Self { first, second, places })
        } else {
            Err(DecodeError::Malformed)
        }
    }
}

fn decode_pack(decoder: &mut Decoder<'_>) -> Result<SavedPack, DecodeError> {
    let name = PackName { time: decoder.u64()?, node: decoder.u64()? };
    let (size, filled, least_order) = (decoder.u64()?, decoder.u64()?, decoder.u64()?);
    let of_use_until = Timestamp::from_millis(decoder.i64()?);
    let flags = decoder.u8()?;
    let (holds_down, is_damaged) = (flags & HOLDS_DOWN != 0, flags & DAMAGED != 0);
    let mut refers = References::default();
    for _ in 0..decoder.u16()? {
        refers.packs.push(PackName { time: decoder.u64()?, node: decoder.u64()? });
    }
    for _ in 0..decoder.u32()? {
        refers.bodies.push((decoder.u128()?, decoder.u64()?));
    }
    let queries = match flags & (QUERIES | LISTED) {
        QUERIES => Queries::OfAny,
        flags if flags & LISTED != 0 => {
            Queries::Of((0..decoder.u16()?).map(|_| decoder.u128()).collect::<Result<_, _>>()?)
        }
        _ => Queries::default(),
    };
    Ok(SavedPack { name, size, filled, least_order, of_use_until, holds_down, is_damaged, queries, refers })
}

fn encode_pack(pack: &PackInfo, out: &mut Vec<u8>) {
    out.put_u64_le(pack.name.time);
    out.put_u64_le(pack.name.node);
    out.put_u64_le(pack.size());
    out.put_u64_le(pack.filled());
    out.put_u64_le(pack.least_order());
    out.put_i64_le(pack.of_use_until().as_millis());
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let flags = flag(pack.holds_down(), HOLDS_DOWN) | flag(pack.is_damaged(), DAMAGED);
    let queries = pack.queries();
    out.put_u8(match &queries {
        Queries::Of(pages) if pages.is_empty() => flags,
        Queries::Of(_) => flags | QUERIES | LISTED,
        Queries::OfAny => flags | QUERIES,
    });
    let refers = pack.references();
    put_count16(out, refers.packs.len());
    for name in &refers.packs {
        out.put_u64_le(name.time);
        out.put_u64_le(name.node);
    }
    out.put_u32_le(u32::try_from(refers.bodies.len()).unwrap_or(u32::MAX));
    for (id, len) in &refers.bodies {
        out.put_u128_le(*id);
        out.put_u64_le(*len);
    }
    if let Queries::Of(pages) = queries
        && !pages.is_empty()
    {
        put_count16(out, pages.len());
        for page in pages {
            out.put_u128_le(page);
        }
    }
}
