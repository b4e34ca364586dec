//! The version vector of a stored response: which purges its process knew of when it began to fetch the response.
//!
//! The processes that share a durable tier write each purge into a journal, with the time at which it was made and the
//! node (process) that made it. A purge covers a stored response unless the response's version vector contains it.
//!
//! A process reads the journal with some delay. Its knowledge is therefore complete only up to
//! [`VersionVector::complete_until`], and partial after that.

use bytes::BufMut;

use crate::base::wire::{DecodeError, Decoder, put_count16};
use crate::rfc9111::timestamp::Timestamp;

/// A time in the journal: milliseconds since 1970, shifted left by [`TICK_BITS`], and a count within the millisecond.
pub(crate) type JournalTime = u64;

/// The bits of a [`JournalTime`] below the millisecond.
pub(crate) const TICK_BITS: u32 = 10;

/// Distance in milliseconds between a look into the journal and the time up to which that look is complete. It exceeds
/// the difference between two processes' clocks and the time that a record takes to be written, taken together.
pub(crate) const HORIZON: u64 = 5 * 60_000;

/// The effect of purges on a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// No purge covers it.
    No,
    /// A soft purge covers it: it is stale from this moment on.
    Softly(Timestamp),
    /// A hard purge covers it: it counts as absent.
    Wholly,
}

/// The purges that a process knew of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VersionVector {
    /// Every purge made until then was known.
    pub complete_until: JournalTime,
    /// For each node that purged later than that: the node, and the time of its last known purge. A node writes its
    /// purges in order, so all of its earlier ones are known too. At most [`VersionVector::MAX_RECENT`] nodes; purges of
    /// nodes that are left out count as unknown.
    pub recent: Vec<(u64, JournalTime)>,
}

impl VersionVector {
    /// The most nodes in [`VersionVector::recent`].
    pub const MAX_RECENT: usize = 64;

    /// Returns whether the purge that `node` made at `time` was known.
    pub fn contains(&self, node: u64, time: JournalTime) -> bool {
        time <= self.complete_until || self.recent.iter().any(|(other, last)| *other == node && time <= *last)
    }

    /// Returns the version vector of what knew all that is known to either.
    pub fn joined(&self, other: &Self) -> Self {
        let complete_until = self.complete_until.max(other.complete_until);
        let mut recent: Vec<(u64, JournalTime)> = Vec::new();
        for (node, last) in self.recent.iter().chain(&other.recent) {
            match recent.iter_mut().find(|(known, _)| known == node) {
                Some((_, known)) => *known = (*known).max(*last),
                None if *last > complete_until => recent.push((*node, *last)),
                None => {}
            }
        }
        // Of too many the latest matter.
        recent.sort_unstable_by_key(|(_, last)| std::cmp::Reverse(*last));
        recent.truncate(Self::MAX_RECENT);
        Self { complete_until, recent }
    }

    /// Returns the version vector without the claim to know every purge made after `limit`.
    pub fn complete_until(&self, limit: JournalTime) -> Self {
        Self { complete_until: self.complete_until.min(limit), recent: self.recent.clone() }
    }

    /// Appends the version vector to an object.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.complete_until);
        put_count16(out, self.recent.len().min(Self::MAX_RECENT));
        for (node, last) in self.recent.iter().take(Self::MAX_RECENT) {
            out.put_u64_le(*node);
            out.put_u64_le(*last);
        }
    }

    /// Reads what [`VersionVector::encode`] wrote.
    pub fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let complete_until = decoder.u64()?;
        let count = usize::from(decoder.u16()?);
        if count > Self::MAX_RECENT {
            return Err(DecodeError::Malformed);
        }
        let mut recent = Vec::with_capacity(count);
        for _ in 0..count {
            recent.push((decoder.u64()?, decoder.u64()?));
        }
        Ok(Self { complete_until, recent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_contains_what_either_does_and_no_more() {
        let (one, other) = (
            VersionVector { complete_until: 100, recent: vec![(7, 130), (8, 120)] },
            VersionVector { complete_until: 110, recent: vec![(7, 115), (8, 140), (9, 105)] },
        );
        let joined = one.joined(&other);
        for node in [7, 8, 9, 10] {
            for time in 95..150 {
                let either = one.contains(node, time) || other.contains(node, time);
                assert_eq!(joined.contains(node, time), either, "{node} {time}");
            }
        }
        let many = VersionVector { complete_until: 0, recent: (0..64).map(|node| (node, 10 + node)).collect() };
        let more = VersionVector { complete_until: 0, recent: (64..128).map(|node| (node, 10 + node)).collect() };
        assert_eq!(many.joined(&more).recent.len(), VersionVector::MAX_RECENT);
    }

    #[test]
    fn a_version_vector_contains_all_until_a_time_and_the_named_purges_after_it() {
        let vector = VersionVector { complete_until: 100, recent: vec![(7, 130), (8, 120)] };
        for (node, time, is_known) in
            [(9, 100, true), (9, 101, false), (7, 130, true), (7, 131, false), (8, 121, false), (8, 90, true)]
        {
            assert_eq!(vector.contains(node, time), is_known, "{node} {time}");
        }
    }
}
