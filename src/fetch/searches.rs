//! Remembers, by path, which differences between queries an origin says do not matter (No-Vary-Search). Costs one
//! atomic load where no origin sends that field.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::search::SearchVariance;

/// The most paths that are remembered; the oldest are forgotten first.
const MAX_PATHS: usize = 8_192;

/// The paths whose last response had the field.
#[derive(Debug, Default)]
pub(crate) struct Searches {
    any: AtomicBool,
    /// Guarded by its lock, which readers share: the variances, by the hash of the path's key.
    known: RwLock<Paths>,
}

#[derive(Debug, Default)]
struct Paths {
    variances: HashMap<u128, Learnt>,
    order: VecDeque<u128>,
    generation: u64,
}

#[derive(Clone, Debug)]
struct Learnt {
    variance: Arc<SearchVariance>,
    /// Part of the keys. A response stored under an older variance, or before the path was forgotten and learnt again,
    /// is not found by it: no purge would have found that response either.
    generation: u64,
}

impl Searches {
    /// Returns the key that the response for `exact` is stored under, if its path is known to ignore some differences
    /// between queries.
    pub(crate) fn key(&self, exact: &CacheKey) -> Option<CacheKey> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let path = path_of(exact)?;
        let learnt = self.known.read().variances.get(&path)?.clone();
        searched_key(exact, &learnt)
    }

    /// Notes the variance in the response to `exact`. Returns the key to store it under, and whether this variance is
    /// new for the path.
    pub(crate) fn learn(&self, exact: &CacheKey, variance: SearchVariance) -> Option<(CacheKey, bool)> {
        let path = path_of(exact)?;
        let (learnt, is_new) = {
            let mut known = self.known.write();
            match known.variances.get(&path) {
                Some(learnt) if *learnt.variance == variance => (learnt.clone(), false),
                before => {
                    let is_first = before.is_none();
                    known.generation += 1;
                    let learnt = Learnt { variance: Arc::new(variance), generation: known.generation };
                    known.variances.insert(path, learnt.clone());
                    if is_first {
                        known.order.push_back(path);
                    }
                    while known.order.len() > MAX_PATHS {
                        if let Some(oldest) = known.order.pop_front() {
                            known.variances.remove(&oldest);
                        }
                    }
                    (learnt, true)
                }
            }
        };
        self.any.store(true, Ordering::Release);
        Some((searched_key(exact, &learnt)?, is_new))
    }
}

/// Returns the hash of the key without its query; `None` for the key of a QUERY, whose URL is only a part of it.
fn path_of(exact: &CacheKey) -> Option<u128> {
    if exact.has_content() {
        return None;
    }
    let parts = exact.parts()?;
    Some(CacheKey::new(KeyParts { query: None, ..parts }).hash())
}

/// Returns the key under a variance. `None` for a query with semicolons: some applications split parameters there,
/// which this does not.
fn searched_key(exact: &CacheKey, learnt: &Learnt) -> Option<CacheKey> {
    let parts = exact.parts().filter(|parts| parts.query.is_none_or(|query| !query.contains(';')))?;
    let query = format!("{}\0g{}", learnt.variance.key(parts.query), learnt.generation);
    Some(CacheKey::new(KeyParts { query: Some(&query), ..parts }))
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderMap, HeaderValue};

    use super::*;
    use crate::rfc9111::search::NO_VARY_SEARCH;

    fn variance(field: &'static str) -> SearchVariance {
        let mut fields = HeaderMap::new();
        fields.insert(NO_VARY_SEARCH, HeaderValue::from_static(field));
        SearchVariance::of(&fields).expect("a variance")
    }

    fn key(path: &str, query: Option<&str>) -> CacheKey {
        CacheKey::new(KeyParts { prefix: "", scheme: "http", authority: "h", path, query })
    }

    #[test]
    fn a_path_is_asked_as_its_origin_said_last() {
        let searches = Searches::default();
        assert_eq!(searches.key(&key("/a", Some("x=1"))), None);
        let learn = |query, field| searches.learn(&key("/a", Some(query)), variance(field)).expect("a key");
        let (stored, is_new) = learn("x=1&u=2", "params=(\"u\")");
        assert!(is_new);
        let stored = Some(stored);
        assert_eq!(searches.key(&key("/a", Some("x=1&u=3"))), stored);
        assert_eq!(searches.key(&key("/a", Some("x=1"))), stored);
        assert_ne!(searches.key(&key("/a", Some("x=2"))), stored);
        assert_eq!(searches.key(&key("/b", Some("x=1"))), None, "another path");
        // The same variance changes nothing. With another one no stored response is found.
        let (again, is_new) = learn("x=1", "params=(\"u\")");
        assert_eq!((Some(again), is_new), (stored.clone(), false));
        learn("x=1", "params");
        learn("x=1", "params=(\"u\")");
        assert_ne!(searches.key(&key("/a", Some("x=1"))), stored);
    }

    #[test]
    fn no_query_is_answered_under_a_key_without_its_content() {
        let searches = Searches::default();
        let mut fields = HeaderMap::new();
        fields.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("a/b"));
        let content = crate::rfc9111::query::metadata(&fields).expect("it may be keyed").digest(b"q");
        let query = key("/a", Some("x=1")).with_content(&content);
        assert!(searches.learn(&query, variance("params")).is_none());
        searches.learn(&key("/a", Some("x=1")), variance("params"));
        assert!(searches.key(&key("/a", Some("x=2"))).is_some());
        assert_eq!(searches.key(&query), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let searches = Searches::default();
        for n in 0..=MAX_PATHS {
            searches.learn(&key(&format!("/{n}"), None), variance("params"));
        }
        assert_eq!(searches.known.read().variances.len(), MAX_PATHS);
        assert_eq!(searches.key(&key("/0", None)), None);
    }
}
