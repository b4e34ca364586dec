//! `larder keys`: what the tier holds, from the footers of its packs.

use super::super::{Config, Durable, Inner};
use crate::base::Clock;
use crate::entry::{Covered, TICK_BITS};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::journal::{all_entries, read_footer};
use crate::store::pack::{EntryKind, FooterEntry};

/// A response that the tier holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptKey {
    /// Its key.
    pub key: CacheKey,
    /// The name of the variant, if it is one of several that the request's fields select among; otherwise 0.
    pub variant: u128,
    /// The bytes that it takes: body, fields, key and checksums.
    pub size: u64,
    /// The time at which it came.
    pub came: Timestamp,
    /// The end of its freshness.
    pub fresh_until: Timestamp,
    /// The name of its pack.
    pub pack: String,
    /// Its place in the pack.
    pub offset: u64,
    /// Its tags.
    pub tags: Vec<String>,
}

impl KeptKey {
    /// Returns whether it is fresh for good, as a value without an expiry is.
    pub fn lasts(&self) -> bool {
        self.fresh_until.as_millis() == i64::MAX
    }
}

impl Durable {
    /// Lists what the tier holds, the packs in the order of their names. `None` if the tier is off.
    pub async fn keys(config: &Config, key_prefix: &str, clock: &Clock) -> Result<Option<Vec<KeptKey>>, StoreError> {
        let Some(inner) = Self::opened_for_command(config, key_prefix, clock).await? else { return Ok(None) };
        let mut keys = Vec::new();
        for pack in inner.index.all_packs() {
            let name = inner.names.pack(pack.name);
            let entries = if pack.is_open() {
                all_entries(&*inner.place, &name, pack.size()).await.map(|found| found.into_footer().entries)
            } else {
                read_footer(&*inner.place, &name, pack.size()).await.map(|footer| footer.entries)
            };
            match entries {
                Ok(entries) => keys.extend(entries.iter().filter_map(|entry| inner.kept(&pack, entry))),
                Err(error) if matches!(error.kind(), StoreErrorKind::Absent | StoreErrorKind::Corrupt) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(keys))
    }
}

impl Inner {
    /// Returns what is listed of an entry, if it counts and is of use.
    fn kept(&self, pack: &PackInfo, entry: &FooterEntry) -> Option<KeptKey> {
        let now = self.purges.time();
        let place = self.index.slot(self.index.fingerprint(&entry.key, entry.variant))?;
        let counts = place.pack == pack.id && place.offset == entry.offset;
        if !counts || entry.kind != EntryKind::Response || !self.is_useful(entry, now) {
            return None;
        }
        let fresh_until = match self.purges.covers_entry(&entry.key, &entry.tags, &entry.vector) {
            Covered::No => entry.fresh_until,
            Covered::Softly(moment) => moment.min(entry.fresh_until),
            Covered::Wholly => return None,
        };
        let came = Timestamp::from_millis(i64::try_from(entry.order >> TICK_BITS).unwrap_or(i64::MAX));
        Some(KeptKey {
            key: entry.key.clone(),
            variant: entry.variant,
            size: u64::from(entry.len) + entry.body.map_or(0, |(_, len)| len),
            came,
            fresh_until,
            pack: pack.name.to_string(),
            offset: entry.offset,
            tags: entry.tags.clone(),
        })
    }
}
