//! `larder keys`: what the tier holds, from the footers of its packs.

use std::time::Duration;

use super::super::{Config, Durable, Inner};
use crate::base::Clock;
use crate::entry::{Covered, TICK_BITS};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::index::PackInfo;
use crate::store::journal::read_footer;
use crate::store::pack::{EntryKind, FooterEntry};

/// A response that the tier holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptKey {
    /// Its URL.
    pub url: String,
    /// True if it is one of several that the request's fields select among.
    pub is_variant: bool,
    /// The bytes that it takes.
    pub size: u64,
    /// Time since it came.
    pub age: Duration,
    /// Time for which it is still fresh; negative: it is stale, for so many milliseconds. The greatest number: for good.
    pub fresh_millis: i64,
    /// The name of its pack.
    pub pack: String,
    /// Its tags.
    pub tags: Vec<String>,
}

impl Durable {
    /// Lists what the tier holds, the packs in the order of their names. `None` if the tier is off.
    pub async fn keys(config: &Config, key_prefix: &str, clock: &Clock) -> Result<Option<Vec<KeptKey>>, StoreError> {
        let Some(inner) = Self::opened_for_command(config, key_prefix, clock).await? else { return Ok(None) };
        let mut keys = Vec::new();
        for pack in inner.index.all_packs() {
            let name = inner.names.pack(pack.name);
            let entries = if pack.is_open() {
                inner
                    .place
                    .get(&inner.names.open_pack(pack.name), u64::MAX)
                    .await
                    .map(|whole| crate::store::pack::entries_of(whole, 0).into_footer().entries)
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
        let age = u64::try_from(now.as_millis().saturating_sub(came.as_millis())).unwrap_or(0);
        let parts = entry.key.parts()?;
        let query = parts.query.map_or_else(String::new, |query| format!("?{query}"));
        Some(KeptKey {
            url: format!("{}://{}{}{query}", parts.scheme, parts.authority, parts.path),
            is_variant: entry.variant != 0,
            size: u64::from(entry.len) + entry.body.map_or(0, |(_, len)| len),
            age: Duration::from_millis(age),
            fresh_millis: match fresh_until.as_millis() {
                i64::MAX => i64::MAX,
                millis => millis.saturating_sub(now.as_millis()),
            },
            pack: pack.name.to_string(),
            tags: entry.tags.clone(),
        })
    }
}
