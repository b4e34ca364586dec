//! The index in a snapshot of the journal:
//!
//! ```text
//! secret of the fingerprints: u64, u64
//! packs (u32 count, each: time u64, node u64, length u64, that of the entries u64, least order u64, of use until i64 ms, holds down u8,
//!        packs that it replaces (u16 count, each: time u64, node u64),
//!        separate bodies (u32 count, each: id u128, length u64))
//! places, to the end: the first two bytes of their fingerprints, u32 count, each in twenty bytes (places.rs), with the
//!        number that the pack has in the list above
//! ```
//!
//! Packs that still grow are left out, with their places.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BufMut;

use super::packs::References;
use super::places::Packed;
use super::{Index, PackInfo};
use crate::base::wire::{DecodeError, Decoder, put_count16};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::names::PackName;

impl Index {
    /// Encodes the index.
    pub(in crate::store) fn encode(&self) -> Vec<u8> {
        let (first, second) = self.seed();
        let mut out = Vec::new();
        out.put_u64_le(first);
        out.put_u64_le(second);
        let packs: Vec<Arc<PackInfo>> = self.all_packs().into_iter().filter(|pack| !pack.is_open()).collect();
        out.put_u32_le(u32::try_from(packs.len()).unwrap_or(u32::MAX));
        packs.iter().for_each(|pack| encode_pack(pack, &mut out));
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
        out
    }

    /// Adds what [`Index::encode`] wrote. Returns `false` if its fingerprints have another secret, and nothing was added.
    pub(in crate::store) fn decode(&self, encoded: &[u8]) -> Result<bool, DecodeError> {
        let mut decoder = Decoder(encoded);
        if !self.adopt_seed((decoder.u64()?, decoder.u64()?)) {
            return Ok(false);
        }
        let mut packs = Vec::new();
        for _ in 0..decoder.u32()? {
            packs.push(self.decode_pack(&mut decoder)?);
        }
        while !decoder.0.is_empty() {
            let [first, second] = decoder.array()?;
            for _ in 0..decoder.u32()? {
                let packed = Packed(decoder.array()?);
                let (fingerprint, place) = packed.read(first, second);
                let pack = usize::try_from(place.pack).ok().and_then(|number| packs.get(number));
                self.restore(&pack.ok_or(DecodeError::Malformed)?.0, [(fingerprint, place)]);
            }
        }
        // Complete only now, with all places: a pack without any is deleted.
        packs.iter().for_each(|(pack, size)| pack.set_size(*size, false));
        Ok(true)
    }

    fn decode_pack(&self, decoder: &mut Decoder<'_>) -> Result<(Arc<PackInfo>, u64), DecodeError> {
        let name = PackName { time: decoder.u64()?, node: decoder.u64()? };
        let (size, filled, least_order) = (decoder.u64()?, decoder.u64()?, decoder.u64()?);
        let of_use_until = Timestamp::from_millis(decoder.i64()?);
        let holds_down = decoder.u8()? != 0;
        let mut refers = References::default();
        for _ in 0..decoder.u16()? {
            refers.packs.push(PackName { time: decoder.u64()?, node: decoder.u64()? });
        }
        for _ in 0..decoder.u32()? {
            refers.bodies.push((decoder.u128()?, decoder.u64()?));
        }
        let pack = self.add_pack(name);
        pack.note_filled(filled);
        pack.note_bounds(least_order, of_use_until, holds_down);
        pack.set_replaces(refers.packs);
        pack.note_bodies(&refers.bodies);
        Ok((pack, size))
    }
}

fn encode_pack(pack: &PackInfo, out: &mut Vec<u8>) {
    out.put_u64_le(pack.name.time);
    out.put_u64_le(pack.name.node);
    out.put_u64_le(pack.size());
    out.put_u64_le(pack.filled());
    out.put_u64_le(pack.least_order());
    out.put_i64_le(pack.of_use_until().as_millis());
    out.put_u8(u8::from(pack.holds_down()));
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
}
