//! The time for which a body is read on without a client.

use std::time::Duration;

/// Time for which a body of known length is read on without a client, besides one second for each [`FINITE_RATE`] bytes.
const FINITE: Duration = Duration::from_secs(600);

/// Bytes of a body of known length that extend its time by one second.
const FINITE_RATE: u64 = 1 << 20;

/// Time for which a body of unknown length, which may never end, is read on without a client.
const PERHAPS_ENDLESS: Duration = Duration::from_secs(30);

/// Limits the time for which a body is read on without a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The length is known. The limit is long enough for all of it to come.
    Finite,
    /// The length is unknown, and there may be no end. The limit is half a minute.
    PerhapsEndless,
}

impl Unread {
    /// Returns the limit for a body of which `len` bytes have come.
    pub(super) fn limit(self, len: u64) -> Duration {
        match self {
            Self::Finite => FINITE + Duration::from_secs(len / FINITE_RATE),
            Self::PerhapsEndless => PERHAPS_ENDLESS,
        }
    }
}
