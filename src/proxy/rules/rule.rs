//! `[cache]` and `[[rule]]` as the configuration has them.

use std::time::Duration;

use http::Method;

use crate::fetch::Ranges;
use crate::proxy::hosts::HostPattern;
use crate::proxy::readings::unescape;
use crate::rfc9111::directives::RequestDirectives;
use crate::rfc9111::key::{QueryRules, glob};
use crate::rfc9111::storage::SetCookie;
use crate::rfc9111::tags::TagFields;
use crate::rfc9111::targeted::Targets;
use crate::store::Durability;
use crate::upstream::Overrides;

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The namespace of every key, in both tiers.
    pub key_prefix: String,
    /// The freshness lifetime of a storable response that states none; zero: heuristic only.
    pub default_timeout: Duration,
    /// True if a read that finds an expired object deletes it from the durable tier.
    pub purge_expired_on_read: bool,
    /// Says what is done with responses that set cookies.
    pub set_cookie: SetCookie,
    /// Says which directives of clients count.
    pub request_directives: RequestDirectives,
    /// The time for which hit-for-miss remembers that a response could not be shared; requests that ask alike then do
    /// not wait for each other.
    pub pass_memory: Duration,
    /// The time for which a request waits for another's answer before it asks the origin as well.
    pub collapse_timeout: Duration,
    /// The most requests to the origin for the same response at once; at least one.
    pub collapse_limit: usize,
    /// The targeted response fields that this cache obeys.
    pub targets: Targets,
    /// True if clients do not see those.
    pub remove_targets: bool,
    /// The response fields that tags are read from.
    pub tag_fields: TagFields,
    /// `stale-while-revalidate` for responses that do not have it.
    pub stale_while_revalidate: Duration,
    /// `stale-if-error` for responses that do not have it.
    pub stale_if_error: Duration,
    /// The time past its freshness for which a response may stand in for an unreachable origin, where nothing in it
    /// forbids that (RFC 9111 §4.2.4).
    pub stale_if_unreachable: Duration,
    /// True if `Cache-Status` names the cache key.
    pub status_key: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            key_prefix: String::new(),
            default_timeout: Duration::ZERO,
            purge_expired_on_read: false,
            set_cookie: SetCookie::Never,
            request_directives: RequestDirectives::Honour,
            pass_memory: Duration::from_secs(10),
            collapse_timeout: Duration::from_secs(10),
            collapse_limit: 4,
            targets: Targets::default(),
            remove_targets: false,
            tag_fields: TagFields::default(),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            stale_if_unreachable: Duration::from_secs(3600),
            status_key: false,
        }
    }
}

/// One `[[rule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The pattern of its paths; `*` matches any run of characters.
    pub path: String,
    /// Its hosts; `None`: any.
    pub host: Option<HostPattern>,
    /// Its methods; empty: any. GET stands for HEAD and QUERY too.
    pub methods: Vec<Method>,
    /// The name of the upstream that its requests go to; `None`: `[upstream]`.
    pub upstream: Option<String>,
    /// The freshness lifetime of responses that state none.
    pub timeout: Option<Duration>,
    /// The freshness lifetime of all responses, whatever they state.
    pub override_timeout: Option<Duration>,
    /// Instead of `cache.stale_while_revalidate`.
    pub stale_while_revalidate: Option<Duration>,
    /// Instead of `cache.stale_if_error`.
    pub stale_if_error: Option<Duration>,
    /// Instead of `cache.stale_if_unreachable`.
    pub stale_if_unreachable: Option<Duration>,
    /// Instead of `cache.set_cookie`.
    pub set_cookie: Option<SetCookie>,
    /// Instead of `cache.request_directives`.
    pub request_directives: Option<RequestDirectives>,
    /// True if its requests pass the cache by.
    pub bypass: bool,
    /// True if requests that ask alike wait for one answer.
    pub collapse: bool,
    /// The last part of a lifetime, in thousandths, in which a response is validated in the background before it
    /// expires; 0: none.
    pub early_refresh: u16,
    /// Says what is fetched for a range.
    pub ranges: Ranges,
    /// Says how the query enters the key.
    pub query: QueryRules,
    /// Says whether responses go to the durable tier.
    pub durability: Durability,
    /// The tags of its responses.
    pub tags: Vec<String>,
    /// The settings for the bodies of its requests and responses.
    pub transfer: Overrides,
}

impl Rule {
    /// Returns whether this rule matches every request that `later` matches, so that the later rule never applies. Only
    /// stars match a star of the later pattern.
    pub fn hides(&self, later: &Self) -> bool {
        let has_hosts = match (&self.host, &later.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(later)) => own.covers(later),
        };
        let has_methods = self.methods.is_empty()
            || (!later.methods.is_empty() && later.methods.iter().all(|method| self.has_method(method)));
        has_hosts && has_methods && glob(&unescape(&self.path), &unescape(&later.path))
    }

    /// Returns whether the rule, which names methods, is for all requests of `method`. GET stands for QUERY too.
    fn has_method(&self, method: &Method) -> bool {
        self.methods.contains(method) || (*method == Method::QUERY && self.methods.contains(&Method::GET))
    }

    /// Returns the rule's hosts, paths and methods as a file gives them.
    pub fn in_words(&self) -> String {
        let host = self.host.as_ref().map(|host| format!("host = \"{host}\""));
        let methods: Vec<String> = self.methods.iter().map(|method| format!("\"{method}\"")).collect();
        let methods = (!methods.is_empty()).then(|| format!("method = [{}]", methods.join(", ")));
        let is_for_some = host.is_some() || methods.is_some();
        let path = (!is_for_some || self.path != "*").then(|| format!("path = \"{}\"", self.path));
        [host, path, methods].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            path: "*".into(),
            host: None,
            methods: Vec::new(),
            upstream: None,
            timeout: None,
            override_timeout: None,
            stale_while_revalidate: None,
            stale_if_error: None,
            stale_if_unreachable: None,
            set_cookie: None,
            request_directives: None,
            bypass: false,
            collapse: true,
            early_refresh: 0,
            ranges: Ranges::Auto,
            query: QueryRules::default(),
            durability: Durability::Durable,
            tags: Vec::new(),
            transfer: Overrides::default(),
        }
    }
}
