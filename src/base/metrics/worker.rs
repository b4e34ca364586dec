//! The counters of one worker thread.

use super::counter::Counter;
use crate::rfc9111::cache_status::{CacheStatus, Fwd, Handling, Tier};
use crate::rfc9111::storage::NotStorable;

/// The counters of one worker thread, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerMetrics {
    /// Requests answered from memory.
    pub(super) hits_memory: Counter,
    /// Requests answered from the durable tier.
    pub(super) hits_durable: Counter,
    /// Requests forwarded to the origin, by reason.
    pub(super) forwarded: [Counter; Fwd::ALL.len()],
    /// Requests that shared the fetch of another.
    pub(super) collapsed: Counter,
    /// Forwarded requests whose response was stored.
    pub(super) stored: Counter,
    /// Requests that were refused.
    pub(super) refused: Counter,
    /// Responses that may not be stored, by reason.
    pub(super) not_stored: [Counter; NotStorable::ALL.len()],
    /// Connections accepted.
    pub connections: Counter,
    /// Connections closed.
    pub connections_closed: Counter,
}

impl WorkerMetrics {
    /// Counts one answered request.
    pub fn record(&self, status: &CacheStatus) {
        if let Some(why) = status.not_stored {
            self.not_stored[why as usize].add_one();
        }
        match status.handling {
            Handling::Hit if status.detail == Some(Tier::Durable.as_str()) => self.hits_durable.add_one(),
            Handling::Hit => self.hits_memory.add_one(),
            Handling::Forward { fwd, stored, collapsed, .. } => {
                self.forwarded[fwd.index()].add_one();
                if stored {
                    self.stored.add_one();
                }
                if collapsed {
                    self.collapsed.add_one();
                }
            }
            Handling::Refused => self.refused.add_one(),
        }
    }
}
