//! The one range that is missing of a stored part.

use std::sync::Arc;

use http::header::{self, HeaderMap};

use crate::entry::StoredResponse;
use crate::rfc9111::partial;

/// The one range that a stored part lacks, and the part.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) stored: Arc<StoredResponse>,
    pub(super) range: (u64, u64),
    pub(super) complete: u64,
}

impl Missing {
    /// Returns the range that a stored part lacks. `None`: it lacks more than one, its body has another length than it
    /// says, or the whole would have more than `limit` bytes.
    pub(super) fn of(stored: &Arc<StoredResponse>, limit: u64) -> Option<Self> {
        let parts = stored.head.parts().filter(|parts| parts.len() == stored.len())?;
        if parts.complete_len() > limit {
            return None;
        }
        Some(Self { stored: Arc::clone(stored), range: parts.gap()?, complete: parts.complete_len() })
    }

    /// Makes `request` a request for the range.
    pub(super) fn ask_for(&self, request: &mut HeaderMap) {
        request.insert(header::RANGE, partial::range_of(self.range, self.complete));
        let head = &self.stored.head;
        if let Some(validator) = partial::if_range(&head.fields.to_map(), head.response_time()) {
            request.insert(header::IF_RANGE, validator);
        }
    }
}
