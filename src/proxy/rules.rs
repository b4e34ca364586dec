//! `[[rule]]`: the settings for some requests, by host, path and method.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::HeaderMap;

use xxhash_rust::xxh3::xxh3_64;

pub(crate) use self::rule::{Config, Rule};
use super::hosts::HostPattern;
use super::readings::{is_spelt_out, readings, unescape};
use crate::rfc9111::directives::{CacheControl, RequestDirectives};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::{QueryRules, glob};
use crate::rfc9111::storage::StoragePolicy;
use crate::rfc9111::vary::Nominated;
use crate::store::Durability;
use crate::upstream::{Transfer, UpstreamName};

mod rule;

/// The limits for bodies where no rule says otherwise, for each upstream.
#[derive(Clone, Debug, Default)]
pub struct Transfers {
    /// Those of `[upstream]`.
    pub default: Transfer,
    /// Those of each `[upstreams.NAME]`, in their order.
    pub named: Vec<(String, Transfer)>,
}

impl Transfers {
    /// Returns the upstream that a rule names, and its limits. A name that there is not, which the configuration has
    /// refused, stands for `[upstream]`.
    fn of(&self, name: Option<&str>) -> (UpstreamName, &Transfer) {
        let found = self.named.iter().zip(0..).find(|((own, _), _)| Some(own.as_str()) == name);
        found.map_or((UpstreamName::Default, &self.default), |((_, transfer), n)| (UpstreamName::Named(n), transfer))
    }
}

/// The rules, and the terms for requests that none matches.
#[derive(Debug)]
pub struct Rules {
    listed: Vec<Resolved>,
    fallback: Resolved,
    /// For each upstream, the terms for paths that two rules could claim: those of `[upstream]` first.
    disputed: Vec<Disputed>,
    /// True if a rule is for some methods only.
    have_methods: bool,
}

/// The terms for paths that two rules of one upstream could claim.
#[derive(Debug)]
struct Disputed {
    /// Grants no lifetime, and keeps nothing durably.
    strictest: Resolved,
    /// Stores nothing: a rule could claim the path which overrides what responses state.
    closed: Resolved,
}

/// A path whose readings lead to several upstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ambiguous;

/// A rule, resolved against the defaults of `[cache]`.
#[derive(Debug)]
pub struct Resolved {
    /// The pattern, with escapes undone.
    pattern: String,
    /// The hosts and methods; `None`: any, as mostly.
    scope: Option<Box<Scope>>,
    /// The rule.
    pub rule: Rule,
    /// The policy by which its responses are stored.
    pub policy: Arc<StoragePolicy>,
    /// The policy by which its responses to QUERY are stored: only those that state a lifetime are.
    pub policy_of_query: Arc<StoragePolicy>,
    /// Says how far the directives of clients count.
    pub request_directives: RequestDirectives,
    /// The limits for the bodies of its requests and responses.
    pub transfer: Arc<Transfer>,
    /// The upstream that its requests go to.
    pub upstream: UpstreamName,
    /// The hash of what decides who may share a response. Nodes that differ in it do not answer for each other.
    pub digest: u64,
}

/// The hosts and methods of a rule that is not for all of them.
#[derive(Debug)]
struct Scope {
    host: Option<HostPattern>,
    methods: Vec<Method>,
}

impl Scope {
    fn of(rule: &Rule) -> Option<Box<Self>> {
        let is_for_some = rule.host.is_some() || !rule.methods.is_empty();
        is_for_some.then(|| Box::new(Self { host: rule.host.clone(), methods: rule.methods.clone() }))
    }

    fn has(&self, authority: &str, method: &Method) -> bool {
        (self.methods.is_empty() || self.has_method(method.as_str()))
            && self.host.as_ref().is_none_or(|host| host.matches(authority))
    }
}

impl Scope {
    /// Returns whether the rule is for a method. Some applications take `post` for POST, so it goes where that goes.
    /// Whatever answers GET answers HEAD, so that a stored response serves both. GET stands for QUERY too, which asks
    /// as safely, but a rule may name QUERY alone.
    fn has_method(&self, method: &str) -> bool {
        let has = |method: &str| self.methods.iter().any(|own| own.as_str().eq_ignore_ascii_case(method));
        match method {
            _ if method.eq_ignore_ascii_case("HEAD") => has("GET"),
            _ if method.eq_ignore_ascii_case("QUERY") => has("GET") || has("QUERY"),
            _ => has(method),
        }
    }
}

impl Resolved {
    /// Returns whether the rule is for a host and a method.
    #[inline]
    fn is_for(&self, authority: &str, method: &Method) -> bool {
        self.scope.as_ref().is_none_or(|scope| scope.has(authority, method))
    }

    /// Returns whether the rule is for every path.
    fn is_for_all_paths(&self) -> bool {
        matches!(&*self.pattern, "*" | "/*")
    }

    /// Returns the directives of a request that count under this rule.
    pub fn directives(&self, request: &HeaderMap) -> CacheControl {
        let all = CacheControl::of_request(request);
        match self.request_directives {
            RequestDirectives::Honour | RequestDirectives::Bound => all,
            // Keeps `no-store`: no setting may store what the client forbids to store.
            RequestDirectives::Ignore => CacheControl { no_store: all.no_store, ..CacheControl::default() },
        }
    }
}

/// Returns the hash of the terms on which responses are shared. Equal settings have equal hashes in every process.
fn digest(rule: &Rule, policy: &StoragePolicy) -> u64 {
    xxh3_64(format!("{policy:?} {:?} {:?} {}", rule.tags, rule.upstream, rule.collapse).as_bytes())
}

impl Rules {
    /// Resolves `rules` against the defaults of `[cache]` and of `transfers`.
    pub fn new(cache: &Config, transfers: &Transfers, rules: Vec<Rule>, nominated: Nominated) -> Self {
        let nominated = Arc::new(nominated);
        let targets = Arc::new(cache.targets.clone());
        let tag_fields = Arc::new(cache.tag_fields.clone());
        let granted = |timeout: Duration| Some(timeout).filter(|timeout| !timeout.is_zero());
        let resolve = |rule: Rule| {
            let default_timeout = rule.timeout.or(granted(cache.default_timeout));
            let while_revalidate = rule.stale_while_revalidate.or(granted(cache.stale_while_revalidate));
            let if_error = rule.stale_if_error.or(granted(cache.stale_if_error));
            let lifetimes = LifetimePolicy {
                targets: Arc::clone(&targets),
                default_timeout: default_timeout.map(millis),
                override_timeout: rule.override_timeout.map(millis),
                stale_while_revalidate: while_revalidate.map(millis),
                stale_if_error: if_error.map(millis),
                stale_if_unreachable: millis(rule.stale_if_unreachable.unwrap_or(cache.stale_if_unreachable)),
                explicit_only: false,
            };
            let (upstream, transfer) = transfers.of(rule.upstream.as_deref());
            let policy = StoragePolicy {
                set_cookie: rule.set_cookie.unwrap_or(cache.set_cookie),
                lifetimes,
                tag_fields: Arc::clone(&tag_fields),
                nominated: Arc::clone(&nominated),
            };
            let digest = digest(&rule, &policy);
            Resolved {
                digest,
                pattern: unescape(&rule.path),
                scope: Scope::of(&rule),
                policy_of_query: of_query(&policy),
                policy: Arc::new(policy),
                request_directives: rule.request_directives.unwrap_or(cache.request_directives),
                transfer: Arc::new(rule.transfer.of(transfer)),
                upstream,
                rule,
            }
        };
        let set_cookie = rules.iter().filter_map(|rule| rule.set_cookie).chain([cache.set_cookie]).min();
        let disputed = |upstream: Option<String>| {
            let terms = || Rule { upstream: upstream.clone(), ..Rule::default() };
            let mut strictest = resolve(Rule { durability: Durability::MemoryOnly, set_cookie, ..terms() });
            let lifetimes = LifetimePolicy { targets: Arc::clone(&targets), ..LifetimePolicy::default() };
            let policy = StoragePolicy { lifetimes, ..(*strictest.policy).clone() };
            strictest.policy_of_query = of_query(&policy);
            strictest.policy = Arc::new(policy);
            Disputed { strictest, closed: resolve(Rule { bypass: true, ..terms() }) }
        };
        let upstreams = std::iter::once(None).chain(transfers.named.iter().map(|(name, _)| Some(name.clone())));
        Self {
            fallback: resolve(Rule::default()),
            disputed: upstreams.map(disputed).collect(),
            have_methods: rules.iter().any(|rule| !rule.methods.is_empty()),
            listed: rules.into_iter().map(resolve).collect(),
        }
    }

    /// Returns the first rule for a request: the `authority` of its key, its `method` and its `path`.
    ///
    /// Patterns and paths are compared with their escapes undone, as applications do. Servers and frameworks differ on
    /// what else a path may be read as (see `readings`). A path has the rule that all its readings have. Where those
    /// differ, it bypasses if one of them does, or if one has `override_timeout`; otherwise the strictest terms hold.
    /// So nobody can spell a page in a way that grants it more. A path whose readings lead to several upstreams has no
    /// rule: each application would take it for another page.
    pub fn matching(&self, authority: &str, method: &Method, path: &str) -> Result<&Resolved, Ambiguous> {
        if !is_spelt_out(path) {
            return Ok(self.first(authority, method, path));
        }
        if path.len() > MAX_READ {
            return self.unread(authority, method);
        }
        let asked = self.first(authority, method, &unescape(path));
        let others: Vec<&Resolved> =
            readings(path).iter().map(|reading| self.first(authority, method, reading)).collect();
        let all = || std::iter::once(asked).chain(others.iter().copied());
        if others.iter().all(|other| std::ptr::eq(asked, *other)) {
            Ok(asked)
        } else if others.iter().any(|other| other.upstream != asked.upstream) {
            Err(Ambiguous)
        } else if let Some(bypassing) = all().find(|resolved| resolved.rule.bypass) {
            Ok(bypassing)
        } else if all().any(|resolved| resolved.rule.override_timeout.is_some()) {
            Ok(&self.disputed(asked.upstream).closed)
        } else {
            Ok(&self.disputed(asked.upstream).strictest)
        }
    }

    /// Returns the terms for a path that is too long to be read in all ways: it bypasses the cache. Every rule may be
    /// that of one of its readings.
    #[cold]
    fn unread(&self, authority: &str, method: &Method) -> Result<&Resolved, Ambiguous> {
        let mut upstreams = Vec::new();
        for rule in self.listed.iter().filter(|rule| rule.is_for(authority, method)).chain([&self.fallback]) {
            upstreams.push(rule.upstream);
            if rule.is_for_all_paths() {
                break;
            }
        }
        match &*upstreams {
            [first, others @ ..] if others.iter().all(|other| other == first) => Ok(&self.disputed(*first).closed),
            _ => Err(Ambiguous),
        }
    }

    /// Returns how the query of a URL enters its key. Goes by the rule that GET has, so that every method finds what GET
    /// stored.
    pub fn query(&self, authority: &str, path: &str) -> &QueryRules {
        &self.matching(authority, &Method::GET, path).unwrap_or(&self.fallback).rule.query
    }

    /// Returns whether a method may have another rule than GET.
    #[inline]
    pub fn differ_from_get(&self, method: &Method) -> bool {
        self.have_methods && !matches!(*method, Method::GET | Method::HEAD)
    }

    /// Returns the number of a rule of the configuration; `None`: it is one made here.
    pub fn number(&self, rule: &Resolved) -> Option<usize> {
        self.listed.iter().position(|listed| std::ptr::eq(listed, rule))
    }

    fn first(&self, authority: &str, method: &Method, path: &str) -> &Resolved {
        let is_it = |rule: &&Resolved| rule.is_for(authority, method) && glob(&rule.pattern, path);
        self.listed.iter().find(is_it).unwrap_or(&self.fallback)
    }

    fn disputed(&self, upstream: UpstreamName) -> &Disputed {
        &self.disputed[upstream.index()]
    }
}

/// Returns the policy for responses to QUERY where `policy` is that for GET.
fn of_query(policy: &StoragePolicy) -> Arc<StoragePolicy> {
    let lifetimes = LifetimePolicy { explicit_only: true, ..policy.lifetimes.clone() };
    Arc::new(StoragePolicy { lifetimes, ..policy.clone() })
}

/// The longest path that is read. A longer one with more than one reading bypasses the cache.
const MAX_READ: usize = 4096;

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
