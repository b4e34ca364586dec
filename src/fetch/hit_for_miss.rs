//! Hit-for-miss: remembers for a short while that responses could not be shared, so that requests which would get the
//! like do not wait for each other.
//!
//! The memory is of requests that ask alike, not of the key. Requests are told apart by the fields that `Vary` was
//! seen to name for the key, and by the presence of `Cookie` and of `Authorization`. After an error that one client's
//! fields may have caused, all fields count. Requests that ask otherwise are not affected.
//!
//! The memory only decides who waits for whom. It stops no background validation, no look-up in the durable tier, and
//! no stale response that stands in for an error.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName};
use smallvec::SmallVec;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::base::Recent;
use crate::rfc9111::present::Present;
use crate::rfc9111::storage::NotStorable;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary;
use crate::rfc9111::vary::MAX_NOMINATED;

/// The reason why nobody waits for a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unshared {
    /// The response may not be stored.
    NotStorable,
    /// The response is stored, and each request needs a validation of its own.
    EachValidates,
}

/// Identifies the variant that a request asks for, by the fields known to select responses for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selection(u128);

impl Selection {
    /// Returns the number that stands for the selection.
    pub(crate) const fn number(self) -> u128 {
        self.0
    }
}

/// The memory of requests that ask alike, looked up before a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recalled {
    /// The variant that the request asks for.
    pub selection: Selection,
    /// The reason why nobody should wait for the response; `None`: requests may wait.
    pub unshared: Option<Unshared>,
    /// True if the memory lasts for a while yet and need not be renewed.
    pub lasts: bool,
}

/// Says which requests share the fate of a response that could not be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Those that select the same variant.
    Selection,
    /// Those with exactly the same fields.
    SameFields,
}

/// The most requests of one key that are remembered; the oldest give way.
const MAX_OF_A_KEY: usize = 16;

/// The memory of one key.
#[derive(Clone, Debug, Default)]
struct OfKey {
    /// The reason why a response for it was last not stored, and the time.
    refused: Option<(NotStorable, Timestamp)>,
    /// The fields that responses for it were seen to vary by.
    names: Option<Arc<[HeaderName]>>,
    remembered: SmallVec<[Remembered; 1]>,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    by: u128,
    reach: Reach,
    what: Unshared,
    until: Timestamp,
}

/// The memories of all keys.
#[derive(Debug)]
pub(crate) struct HitForMiss {
    keys: Recent<OfKey>,
    keep: i64,
}

/// The minimum time for which the rest is remembered: the fields that select variants, and the reason for not storing.
const LONGER: Duration = Duration::from_secs(600);

impl HitForMiss {
    /// Remembers that a response could not be shared for `keep`; never if that is zero.
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keys: Recent::new(keep.max(LONGER)), keep: i64::try_from(keep.as_millis()).unwrap_or(i64::MAX) }
    }

    /// Returns which variant of a key a request asks for, and whether nobody should wait for the response.
    pub(crate) fn look(&self, key: u128, request: &HeaderMap, now: Timestamp) -> Recalled {
        self.look_at(key, request, Present::of(request), now)
    }

    /// Does the same as [`Self::look`], with `present` worked out already.
    pub(crate) fn look_at(&self, key: u128, request: &HeaderMap, present: Present, now: Timestamp) -> Recalled {
        self.keys.with(key, now, |of_key| {
            let Some(of_key) = of_key else {
                return Recalled { selection: selection(key, None, request, present), unshared: None, lasts: false };
            };
            let selection = selection(key, of_key.names.as_deref(), request, present);
            let mut exact = None;
            let unshared = of_key.remembered.iter().find(|unshared| {
                let by = match unshared.reach {
                    Reach::Selection => selection.0,
                    Reach::SameFields => *exact.get_or_insert_with(|| all_fields(request)),
                };
                unshared.by == by && unshared.until > now
            });
            let lasts = unshared.is_some_and(|unshared| unshared.until.millis_since(now) > self.keep / 2);
            Recalled { selection, unshared: unshared.map(|unshared| unshared.what), lasts }
        })
    }

    /// Notes that responses for a key vary by `names`.
    pub(crate) fn divide(&self, key: u128, names: &[HeaderName], now: Timestamp) {
        let is_known = |of_key: Option<&OfKey>| {
            let known = of_key.and_then(|of_key| of_key.names.as_deref()).unwrap_or_default();
            names.iter().all(|name| known.contains(name))
        };
        if names.is_empty() || self.keys.with(key, now, is_known) {
            return;
        }
        self.keys.change(key, now, |of_key| {
            let mut of_key = of_key.unwrap_or_default();
            let mut all: Vec<HeaderName> = of_key.names.as_deref().unwrap_or_default().to_vec();
            all.extend(names.iter().filter(|name| !all.contains(name)).cloned().collect::<Vec<_>>());
            if all.len() > MAX_NOMINATED {
                all = names.to_vec();
            }
            all.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            of_key.names = Some(all.into());
            of_key
        });
    }

    /// Notes why a response for a key was not stored. `explain` shows it.
    pub(crate) fn note_refused(&self, key: u128, why: NotStorable, now: Timestamp) {
        self.keys.change(key, now, |of_key| OfKey { refused: Some((why, now)), ..of_key.unwrap_or_default() });
    }

    /// Returns why a response for a key was last not stored, and when, if that is remembered.
    pub(crate) fn refused(&self, key: u128, now: Timestamp) -> Option<(NotStorable, Timestamp)> {
        self.keys.with(key, now, |of_key| of_key?.refused)
    }

    /// Remembers that the response to a request like this one could not be shared.
    pub(crate) fn remember(&self, key: u128, request: &HeaderMap, (what, reach): (Unshared, Reach), now: Timestamp) {
        if self.keep == 0 {
            return;
        }
        let until = now.plus_millis(self.keep);
        self.keys.change(key, now, |of_key| {
            let mut of_key = of_key.unwrap_or_default();
            let by = match reach {
                Reach::Selection => selection(key, of_key.names.as_deref(), request, Present::of(request)).0,
                Reach::SameFields => all_fields(request),
            };
            of_key.remembered.retain(|unshared| unshared.until > now && unshared.by != by);
            if of_key.remembered.len() >= MAX_OF_A_KEY {
                of_key.remembered.remove(0);
            }
            of_key.remembered.push(Remembered { by, reach, what, until });
            of_key
        });
    }

    /// Forgets that responses to requests like this one could not be shared.
    pub(crate) fn forget(&self, key: u128, request: &HeaderMap, now: Timestamp) {
        if self.look(key, request, now).unshared.is_none() {
            return;
        }
        self.keys.change(key, now, |of_key| {
            let mut of_key = of_key.unwrap_or_default();
            let own = selection(key, of_key.names.as_deref(), request, Present::of(request)).0;
            let exact = all_fields(request);
            of_key.remembered.retain(|unshared| unshared.by != own && unshared.by != exact);
            of_key
        });
    }
}

/// Constants that tell apart requests with a cookie, with credentials, with both, and with neither.
const WITH_COOKIE: u128 = 0x5bd1_e995_7b7d_159c_c2b2_ae3d_27d4_eb50;
const WITH_AUTHORIZATION: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;

fn selection(key: u128, names: Option<&[HeaderName]>, request: &HeaderMap, present: Present) -> Selection {
    let cookie = if present.has(Present::COOKIE) { WITH_COOKIE } else { 0 };
    let authorization = if present.has(Present::AUTHORIZATION) { WITH_AUTHORIZATION } else { 0 };
    let selected = names.map_or(0, |names| xxh3_128(&vary::selector(names, request)));
    Selection(key ^ cookie ^ authorization ^ selected)
}

/// Hashes all fields of a request, independent of their order.
fn all_fields(request: &HeaderMap) -> u128 {
    request.iter().fold(1, |sum: u128, (name, value)| {
        let mut hash = Xxh3::new();
        hash.update(name.as_str().as_bytes());
        hash.update(b":");
        hash.update(value.as_bytes());
        sum.wrapping_add(hash.digest128())
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1000);
    const KEY: u128 = 7;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn memory() -> HitForMiss {
        HitForMiss::new(Duration::from_secs(10))
    }

    const FOR_ALIKE: (Unshared, Reach) = (Unshared::NotStorable, Reach::Selection);

    #[test]
    fn a_pass_is_remembered_of_who_asks_alike_and_of_nobody_else() {
        let (plain, mine, yours) = (map(&[]), map(&[("cookie", "a=1")]), map(&[("cookie", "a=2")]));
        let basic = map(&[("authorization", "Basic x")]);
        let memory = memory();
        memory.remember(KEY, &mine, FOR_ALIKE, NOW);
        let unshared = |request: &HeaderMap| memory.look(KEY, request, NOW).unshared.is_some();
        assert_eq!([&mine, &yours, &plain, &basic].map(unshared), [true, true, false, false], "by presence");
        memory.divide(KEY, &[header::COOKIE], NOW);
        memory.remember(KEY, &mine, FOR_ALIKE, NOW);
        assert_eq!([&mine, &yours, &plain, &basic].map(unshared), [true, false, false, false], "by value");
        assert_eq!(memory.look(8, &mine, NOW).unshared, None, "of that key");
        assert_eq!(memory.look(KEY, &mine, NOW.plus_millis(10_000)).unshared, None, "for a while");
        memory.forget(KEY, &mine, NOW);
        assert!(!unshared(&mine));
    }

    #[test]
    fn an_error_is_remembered_of_the_very_same_request() {
        let memory = memory();
        let odd = map(&[("accept", "x/y"), ("user-agent", "a")]);
        memory.remember(KEY, &odd, (Unshared::NotStorable, Reach::SameFields), NOW);
        assert!(memory.look(KEY, &odd, NOW).unshared.is_some());
        assert!(
            memory.look(KEY, &map(&[("user-agent", "a"), ("accept", "x/y")]), NOW).unshared.is_some(),
            "in any order"
        );
        assert!(memory.look(KEY, &map(&[("accept", "*/*"), ("user-agent", "a")]), NOW).unshared.is_none());
        assert!(memory.look(KEY, &map(&[]), NOW).unshared.is_none());
    }

    #[test]
    fn one_key_is_remembered_in_bounded_number() {
        let memory = memory();
        memory.divide(KEY, &[header::COOKIE], NOW);
        for n in 0..100 {
            let mut request = HeaderMap::new();
            request.insert(header::COOKIE, HeaderValue::from(n));
            memory.remember(KEY, &request, FOR_ALIKE, NOW);
        }
        assert!(
            memory.keys.with(KEY, NOW, |of_key| of_key.is_some_and(|of_key| of_key.remembered.len() <= MAX_OF_A_KEY))
        );
    }
}
