//! The pace that readers of a window must keep.

use std::time::Duration;

/// Bytes a second below which a reader of a window may not hold the others.
const LEAST_RATE: u64 = 64 * 1024;

/// Time for which a client may block the others beyond what [`LEAST_RATE`] allows.
const STALL: Duration = Duration::from_secs(5);

/// Time for which a reader in the background may block clients beyond what its rate allows.
const BACKGROUND_STALL: Duration = Duration::from_secs(2);

/// Pause between two looks at the readers that block the writer.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The readers that make the writer wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocker {
    /// A client among them.
    Client,
    /// Only readers in the background, and the highest rate that one of them named.
    Background(u64),
}

/// The time for which clients have waited for slower readers, less what the least rates allow.
#[derive(Debug, Default)]
pub(super) struct BlockedTime {
    /// Waits for slower clients.
    by_clients: Duration,
    /// Waits for readers in the background.
    by_background: Duration,
    /// The rate that the last of these named, in bytes a second.
    rate: u64,
}

impl BlockedTime {
    /// Adds a wait, and returns whether the blocking reader is to be expelled.
    pub(super) fn add(&mut self, blocker: Blocker, waited: Duration) -> bool {
        match blocker {
            Blocker::Client => {
                self.by_clients += waited;
                self.by_clients >= STALL
            }
            Blocker::Background(rate) => {
                self.rate = rate;
                self.by_background += waited;
                self.by_background >= BACKGROUND_STALL
            }
        }
    }

    /// Subtracts the time that the least rates allow for `bytes` more of the body.
    pub(super) fn allow_for(&mut self, bytes: usize) {
        let allowed = |rate: u64| Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate.max(1));
        self.by_clients = self.by_clients.saturating_sub(allowed(LEAST_RATE));
        self.by_background = self.by_background.saturating_sub(allowed(self.rate));
    }
}
