//! The record at the key of responses that vary.

use http::header::{HeaderMap, HeaderName};

use super::{StoredHead, Variant};
use crate::rfc9111::key::CacheKey;
use crate::rfc9111::vary;

/// The record at the key of responses that vary. Names the request fields that select one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaryRecord {
    /// The full key.
    pub key: CacheKey,
    /// Part of every variant's name, so that a new record after a purge does not lead to older variants.
    pub generation: u128,
    /// Sets of nominated fields, newest first, at most [`VaryRecord::MAX_SETS`].
    pub sets: Vec<Vec<HeaderName>>,
    /// Other names of variants, each with the variant's own name: hashes of their language or coding (see
    /// [`vary::aliases_of_response`]). Newest first, at most [`VaryRecord::MAX_ALIASES`].
    pub aliases: Vec<(u128, u128)>,
}

impl VaryRecord {
    /// The most sets. Further ones replace the oldest.
    pub const MAX_SETS: usize = 4;

    /// The most aliases. Further ones replace the oldest.
    pub const MAX_ALIASES: usize = 64;

    /// Makes a record with one set.
    pub fn new(key: CacheKey, generation: u128, names: Vec<HeaderName>) -> Self {
        Self { key, generation, sets: vec![names], aliases: Vec::new() }
    }

    /// Returns the record with `names` as its newest set.
    fn with_set(mut self, names: &[HeaderName]) -> Self {
        if self.sets.first().is_none_or(|first| first != names) {
            self.sets.retain(|set| set != names);
            self.sets.insert(0, names.to_vec());
            self.sets.truncate(Self::MAX_SETS);
        }
        self
    }

    /// Returns the record with `alias` as another name of `variant`.
    fn with_alias(mut self, alias: u128, variant: u128) -> Self {
        if !self.aliases.contains(&(alias, variant)) {
            self.aliases.retain(|(other, _)| *other != alias);
            self.aliases.insert(0, (alias, variant));
            self.aliases.truncate(Self::MAX_ALIASES);
        }
        self
    }

    /// Returns the record with the set and the aliases that lead to the variant with `head`.
    #[must_use]
    pub fn leading_to(self, variant: &Variant, head: &StoredHead) -> Self {
        let name = self.variant_hash(&variant.selector);
        let aliases = head.aliases(variant);
        aliases.into_iter().fold(self.with_set(&variant.names), |record, alias| record.with_alias(alias, name))
    }

    /// Returns the record with the sets of `newer` first. Keeps this record's generation; aliases of another generation
    /// would lead nowhere, and are left out.
    #[must_use]
    pub fn merged_with(self, newer: &Self) -> Self {
        let mut merged = newer.sets.iter().rev().fold(self, |record, set| record.with_set(set));
        if merged.generation == newer.generation {
            merged =
                newer.aliases.iter().rev().fold(merged, |record, (alias, variant)| record.with_alias(*alias, *variant));
        }
        merged
    }

    /// Returns the hash under which the variant with `selector` is kept.
    pub fn variant_hash(&self, selector: &[u8]) -> u128 {
        let mut salted = Vec::with_capacity(selector.len() + 16);
        salted.extend_from_slice(&self.generation.to_le_bytes());
        salted.extend_from_slice(selector);
        self.key.variant_hash(&salted)
    }

    /// Returns the hashes under which a variant for `request` may be kept, most likely first.
    pub fn candidates(&self, request: &HeaderMap) -> impl Iterator<Item = u128> {
        let exact = self.sets.iter().map(move |set| self.variant_hash(&vary::selector(set, request)));
        exact.chain(self.negotiated(request))
    }

    /// Returns the variants that an alias for `request` leads to.
    fn negotiated(&self, request: &HeaderMap) -> impl Iterator<Item = u128> {
        let sets = if self.aliases.is_empty() { &[][..] } else { &self.sets[..] };
        sets.iter().flat_map(move |set| vary::aliases_of_request(set, request)).filter_map(move |wanted| {
            self.aliases.iter().find(|(alias, _)| *alias == wanted).map(|(_, variant)| *variant)
        })
    }
}
