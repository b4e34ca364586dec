//! Says what decides on the address of a request: what its client is kept by, and what `balance = "hash"` goes by.

use std::sync::Arc;

use http::{HeaderValue, Response, header};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use super::Upstream;
use super::body::UpstreamBody;
use super::config::{Balance, HashBy};
use super::message::OriginRequest;
use super::pool::{Choice, Seat};

impl Upstream {
    /// Returns what decides on the address of a request.
    pub(super) fn choice(&self, request: &OriginRequest<'_>) -> Choice {
        let (errand, affinity) = (request.errand, self.affinity(request));
        let kept_at = match (&self.sticky, request.sticky) {
            (Some(sticky), Some(cookies)) => sticky.find(cookies, &self.endpoints()),
            (Some(_) | None, _) => None,
        };
        Choice { errand, since: request.since, affinity, kept_at, tried: SmallVec::new() }
    }

    /// Gives a response the cookie that keeps its client at the address that it came from, unless the client has it.
    #[inline]
    pub(super) fn keep_at(&self, choice: &Choice, seat: &Seat, response: &mut Response<UpstreamBody>) {
        if let Some(sticky) = &self.sticky
            // A backup keeps nobody: it is for when no other can be asked.
            && !seat.endpoint.is_backup
            && choice.kept_at.as_ref().is_none_or(|kept| !Arc::ptr_eq(kept, &seat.endpoint))
        {
            response.extensions_mut().insert(sticky.cookie(&seat.endpoint));
        }
    }

    /// Returns the hash of what the choice of an address goes by.
    fn affinity(&self, request: &OriginRequest<'_>) -> u64 {
        if self.config.balance != Balance::Hash {
            return 0;
        }
        match &self.config.hash_by {
            HashBy::Path => xxh3_64(request.uri.path().as_bytes()),
            HashBy::Field(name) => {
                let fields = (request.fields)();
                xxh3_64(fields.get(name).map_or(b"", HeaderValue::as_bytes))
            }
            HashBy::Cookie(name) => {
                let fields = (request.fields)();
                let value = fields.get_all(header::COOKIE).iter().find_map(|field| cookie(field.as_bytes(), name));
                xxh3_64(value.unwrap_or_default())
            }
        }
    }
}

/// Returns the value of a cookie in a `Cookie` field.
fn cookie<'a>(field: &'a [u8], name: &str) -> Option<&'a [u8]> {
    field.split(|byte| *byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value)
    })
}
