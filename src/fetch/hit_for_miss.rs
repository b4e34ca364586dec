//! Hit-for-miss: what is remembered for a short while of responses that could not be shared, so that clients who
//! would get the like do not wait for each other.
//!
//! It is remembered of those who ask alike, not of the key: requests are told apart by the fields that `Vary`
//! was seen to name for the key, by the presence of `Cookie` and of `Authorization`, and, where the response was
//! an error that one client's fields may have caused, by all of their fields. Who asks otherwise is not touched.
//!
//! It only says whom not to wait for. It stops no background validation, no look into the durable tier, and no
//! stale response that may stand in for an error.

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

/// Why nobody waits for a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// It may not be stored.
    NotStorable,
    /// It is stored, and each request needs a validation of its own.
    EachValidates,
}

/// Identifies the variant that a request asks for, by the fields known to select responses for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selection(u128);

impl Selection {
    /// The number that stands for it.
    pub(crate) const fn number(self) -> u128 {
        self.0
    }
}

/// Holds what is remembered for a request's key before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Looked {
    /// Variant that the request asks for.
    pub selection: Selection,
    /// Why nobody should wait for the response, if that is so.
    pub pass: Option<Pass>,
    /// True if the memory lasts for a while yet and need not be renewed.
    pub lasts: bool,
}

/// Says which requests a response that could not be shared speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// For everyone who asks alike.
    Selection,
    /// For requests with the very same fields.
    SameFields,
}

/// At most so many passes of one key are remembered; the oldest give way.
const MAX_OF_A_KEY: usize = 16;

/// Holds what is remembered of one key.
#[derive(Clone, Debug, Default)]
struct OfKey {
    /// Why a response for it was last not stored, and when.
    refused: Option<(NotStorable, Timestamp)>,
    /// The fields that responses for it were seen to vary by.
    names: Option<Arc<[HeaderName]>>,
    passes: SmallVec<[Remembered; 1]>,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    by: u128,
    reach: Reach,
    what: Pass,
    until: Timestamp,
}

/// The passes of all keys.
#[derive(Debug)]
pub(crate) struct HitForMiss {
    keys: Recent<OfKey>,
    keep: i64,
}

/// Keeps the rest (the fields that divide keys, the reason for not storing) for at least as long.
const LONGER: Duration = Duration::from_secs(600);

impl HitForMiss {
    /// Remembers each pass for `keep`; none if that is zero.
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keys: Recent::new(keep.max(LONGER)), keep: i64::try_from(keep.as_millis()).unwrap_or(i64::MAX) }
    }

    /// Tells how a request asks for the key with this hash, and whether nobody should wait for the response.
    pub(crate) fn look(&self, key: u128, request: &HeaderMap, now: Timestamp) -> Looked {
        self.look_at(key, request, Present::of(request), now)
    }

    /// The same, with what is known of the request's fields.
    pub(crate) fn look_at(&self, key: u128, request: &HeaderMap, present: Present, now: Timestamp) -> Looked {
        self.keys.with(key, now, |of_key| {
            let Some(of_key) = of_key else {
                return Looked { selection: selection(key, None, request, present), pass: None, lasts: false };
            };
            let selection = selection(key, of_key.names.as_deref(), request, present);
            let mut exact = None;
            let pass = of_key.passes.iter().find(|pass| {
                let by = match pass.reach {
                    Reach::Selection => selection.0,
                    Reach::SameFields => *exact.get_or_insert_with(|| all_fields(request)),
                };
                pass.by == by && pass.until > now
            });
            let lasts = pass.is_some_and(|pass| pass.until.millis_since(now) > self.keep / 2);
            Looked { selection, pass: pass.map(|pass| pass.what), lasts }
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

    /// Notes why a response for a key was not stored, for who asks about it.
    pub(crate) fn note_refused(&self, key: u128, why: NotStorable, now: Timestamp) {
        self.keys.change(key, now, |of_key| OfKey { refused: Some((why, now)), ..of_key.unwrap_or_default() });
    }

    /// Why a response for a key was last not stored, and when, as far as that is remembered.
    pub(crate) fn refused(&self, key: u128, now: Timestamp) -> Option<(NotStorable, Timestamp)> {
        self.keys.with(key, now, |of_key| of_key?.refused)
    }

    /// Remembers that the response to a request like this one could not be shared.
    pub(crate) fn remember(&self, key: u128, request: &HeaderMap, (what, reach): (Pass, Reach), now: Timestamp) {
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
            of_key.passes.retain(|pass| pass.until > now && pass.by != by);
            if of_key.passes.len() >= MAX_OF_A_KEY {
                of_key.passes.remove(0);
            }
            of_key.passes.push(Remembered { by, reach, what, until });
            of_key
        });
    }

    /// Forgets that responses to requests like this one could not be shared.
    pub(crate) fn forget(&self, key: u128, request: &HeaderMap, now: Timestamp) {
        if self.look(key, request, now).pass.is_none() {
            return;
        }
        self.keys.change(key, now, |of_key| {
            let mut of_key = of_key.unwrap_or_default();
            let own = selection(key, of_key.names.as_deref(), request, Present::of(request)).0;
            let exact = all_fields(request);
            of_key.passes.retain(|pass| pass.by != own && pass.by != exact);
            of_key
        });
    }
}

/// Tells apart the four ways to have a cookie, credentials, both, or neither.
const WITH_COOKIE: u128 = 0x5bd1_e995_7b7d_159c_c2b2_ae3d_27d4_eb50;
const WITH_AUTHORIZATION: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834;

fn selection(key: u128, names: Option<&[HeaderName]>, request: &HeaderMap, present: Present) -> Selection {
    let cookie = if present.has(Present::COOKIE) { WITH_COOKIE } else { 0 };
    let authorization = if present.has(Present::AUTHORIZATION) { WITH_AUTHORIZATION } else { 0 };
    let selected = names.map_or(0, |names| xxh3_128(&vary::selector(names, request)));
    Selection(key ^ cookie ^ authorization ^ selected)
}

/// A hash of all fields of a request, whatever their order.
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

    const FOR_ALIKE: (Pass, Reach) = (Pass::NotStorable, Reach::Selection);

    #[test]
    fn a_pass_is_remembered_of_who_asks_alike_and_of_nobody_else() {
        let (plain, mine, yours) = (map(&[]), map(&[("cookie", "a=1")]), map(&[("cookie", "a=2")]));
        let basic = map(&[("authorization", "Basic x")]);
        let memory = memory();
        memory.remember(KEY, &mine, FOR_ALIKE, NOW);
        let pass = |request: &HeaderMap| memory.look(KEY, request, NOW).pass.is_some();
        assert_eq!([&mine, &yours, &plain, &basic].map(pass), [true, true, false, false], "by presence");
        memory.divide(KEY, &[header::COOKIE], NOW);
        memory.remember(KEY, &mine, FOR_ALIKE, NOW);
        assert_eq!([&mine, &yours, &plain, &basic].map(pass), [true, false, false, false], "by value");
        assert_eq!(memory.look(8, &mine, NOW).pass, None, "of that key");
        assert_eq!(memory.look(KEY, &mine, NOW.plus_millis(10_000)).pass, None, "for a while");
        memory.forget(KEY, &mine, NOW);
        assert!(!pass(&mine));
    }

    #[test]
    fn an_error_is_remembered_of_the_very_same_request() {
        let memory = memory();
        let odd = map(&[("accept", "x/y"), ("user-agent", "a")]);
        memory.remember(KEY, &odd, (Pass::NotStorable, Reach::SameFields), NOW);
        assert!(memory.look(KEY, &odd, NOW).pass.is_some());
        assert!(memory.look(KEY, &map(&[("user-agent", "a"), ("accept", "x/y")]), NOW).pass.is_some(), "in any order");
        assert!(memory.look(KEY, &map(&[("accept", "*/*"), ("user-agent", "a")]), NOW).pass.is_none());
        assert!(memory.look(KEY, &map(&[]), NOW).pass.is_none());
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
        assert!(memory.keys.with(KEY, NOW, |of_key| of_key.is_some_and(|of_key| of_key.passes.len() <= MAX_OF_A_KEY)));
    }
}
