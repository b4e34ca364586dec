//! What a process knew of purges when it began to fetch a response, in terms that every other process
//! understands.
//!
//! Purges are written into the journal that the processes share, each with the time at which it was
//! made and the process that made it. A process reads the journal with some delay, so what it knows
//! is not all until a moment: it is all until [`Seen::until`], a moment far enough back that no purge
//! of before can still turn up, and of what was made since, what it had read by then.

use bytes::BufMut;

use crate::base::wire::{DecodeError, Reader, put_count16};
use crate::rfc9111::timestamp::Timestamp;

/// A time in the journal: milliseconds since 1970, shifted left by [`TICK_BITS`], and a count within.
pub(crate) type JournalTime = u64;

/// The bits of a [`JournalTime`] below the millisecond.
pub(crate) const TICK_BITS: u32 = 10;

/// How far back from the last look into the journal everything is known, in milliseconds. More than
/// the clocks of two processes may differ by and a record may take to be written together.
pub(crate) const HORIZON: u64 = 5 * 60_000;

/// What purges make of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// No purge covers it.
    No,
    /// One does that leaves it stale from this moment on.
    Softly(Timestamp),
    /// It counts as not there.
    Wholly,
}

/// The purges that were known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// All that were made until then were.
    pub until: JournalTime,
    /// Of those made since: the last one known of each process that made any. A process's purges are
    /// written in their order, so all that it made before are known as well. At most
    /// [`Seen::MAX_RECENT`]; those left out count as unknown.
    pub recent: Vec<(u64, JournalTime)>,
}

impl Seen {
    /// The most processes whose last purges are told one by one.
    pub const MAX_RECENT: usize = 16;

    /// Whether the purge that `maker` made at `time` was known.
    pub fn has(&self, maker: u64, time: JournalTime) -> bool {
        time <= self.until || self.recent.iter().any(|(other, last)| *other == maker && time <= *last)
    }

    /// What an object of version 2 says: there, a position was a time by its writer's clock.
    pub(super) fn of_version_2(position: u64) -> Self {
        Self { until: position.saturating_sub(HORIZON << TICK_BITS), recent: Vec::new() }
    }

    /// Appends it to an object.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.until);
        put_count16(out, self.recent.len().min(Self::MAX_RECENT));
        for (maker, last) in self.recent.iter().take(Self::MAX_RECENT) {
            out.put_u64_le(*maker);
            out.put_u64_le(*last);
        }
    }

    /// Reads it back.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let until = reader.u64()?;
        let count = usize::from(reader.u16()?);
        if count > Self::MAX_RECENT {
            return Err(DecodeError::Malformed);
        }
        let mut recent = Vec::with_capacity(count);
        for _ in 0..count {
            recent.push((reader.u64()?, reader.u64()?));
        }
        Ok(Self { until, recent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_is_all_until_then_and_what_is_named() {
        let seen = Seen { until: 100, recent: vec![(7, 130), (8, 120)] };
        for (maker, time, known) in
            [(9, 100, true), (9, 101, false), (7, 130, true), (7, 131, false), (8, 121, false), (8, 90, true)]
        {
            assert_eq!(seen.has(maker, time), known, "{maker} {time}");
        }
    }
}
