//! `[[rule]]`: the settings for some requests, by host, path and method.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::HeaderMap;

use super::hosts::HostPattern;
use super::readings::{is_spelt_out, readings, unescape};
use crate::fetch::Ranges;
use crate::rfc9111::directives::{CacheControl, RequestDirectives};
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::{QueryRules, glob};
use crate::rfc9111::storage::{SetCookie, StoragePolicy};
use crate::rfc9111::tags::TagFields;
use crate::rfc9111::targeted::Targets;
use crate::rfc9111::vary::Nominated;
use crate::store::Durability;
use crate::upstream::{Overrides, Transfer, UpstreamName};

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
            Resolved {
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
mod tests {
    use super::*;

    /// Returns the rule of GET for a path of any host.
    fn of_get<'a>(rules: &'a Rules, path: &str) -> &'a Resolved {
        rules.matching("site.example", &Method::GET, path).expect("one upstream")
    }

    #[test]
    fn a_page_cannot_be_spelt_into_another_ones_rule() {
        let rule = |path: &str, bypass| Rule { path: path.into(), bypass, ..Rule::default() };
        let cache = Config { default_timeout: Duration::from_secs(9), ..Config::default() };
        let listed = ["/static/*", "/my%20files/*", "/café/*", "/account*"].map(|path| rule(path, false));
        let all = listed.into_iter().chain([rule("/admin/*", true)]).collect();
        let rules = Rules::new(&cache, &Transfers::default(), all, Nominated::default());
        let strictest = "strictest";
        for (path, expected) in [
            ("/static/a.css", "/static/*"),
            ("/static/%61.css", "/static/*"),
            ("/%73tatic/a.css", "/static/*"),
            ("/static/x/../a.css", "/static/*"),
            ("/my%20files/a", "/my%20files/*"),
            ("/caf%C3%A9/a", "/café/*"),
            ("/%61ccount", "/account*"),
            ("/plain/%61", "*"),
            ("/static/../account", strictest),
            ("/static/%2e%2e/account", strictest),
            ("/static/..%2faccount", strictest),
            ("//account", strictest),
            ("/plain/../account", strictest),
            ("/admin/x", "/admin/*"),
            ("/%61dmin/x", "/admin/*"),
            ("//admin/x", "/admin/*"),
            ("/static/../admin/x", "/admin/*"),
            ("/admin/../static/x", "/admin/*"),
            ("/50%", "*"),
            ("/static/a;v=1.css", "/static/*"),
            ("/static/..;/account", strictest),
            ("/static/..;x=1/account", strictest),
            ("/static/..%3b/account", strictest),
            ("/static/%252e%252e/account", strictest),
            ("/static/%25252e%25252e/account", strictest),
            ("/static/..%00/account", strictest),
            ("/static/..%5caccount", strictest),
            ("/account;/../static/x.css", strictest),
            ("/page;x.css", "*"),
            ("/page.html%00.css", "*"),
            ("/account%23/../static/x.css", strictest),
            ("/static/..%2faccount%3fx.css", strictest),
            ("/static/../admin;x.css/y", "/admin/*"),
            ("/static/..;/admin/x", "/admin/*"),
            ("/static/%252e%252e/admin/x", "/admin/*"),
            ("/admin/x%00/../../static/x", "/admin/*"),
            ("/./admin/x//../../plain", "/admin/*"),
            ("/static/./x//../y", "/static/*"),
        ] {
            let resolved = of_get(&rules, path);
            if expected == strictest {
                assert!(std::ptr::eq(resolved, &raw const rules.disputed[0].strictest), "{path}");
                assert_eq!(resolved.policy.lifetimes, LifetimePolicy::default());
            } else {
                assert_eq!(resolved.rule.path, expected, "{path}");
            }
        }
    }

    #[test]
    fn what_ends_a_path_elsewhere_does_not_lend_it_an_extensions_rule() {
        let rules = |style: Rule| {
            let rule = |path: &str| Rule { path: path.into(), ..Rule::default() };
            Rules::new(&Config::default(), &Transfers::default(), vec![style, rule("/account*")], Nominated::default())
        };
        let style = Rule { path: "*.css".into(), timeout: Some(Duration::from_secs(60)), ..Rule::default() };
        let granting = rules(style.clone());
        let overriding = rules(Rule { override_timeout: Some(Duration::from_secs(60)), ..style });
        for path in ["/account;x.css", "/account%3bx.css", "/account%00.css", "/account%23.css", "/account%3f.css"] {
            assert_eq!(of_get(&granting, path).policy.lifetimes.default_timeout, None, "{path}");
            assert!(of_get(&overriding, path).rule.bypass, "{path}");
        }
        for path in ["/account%0a.css", "/account%0d%0a.css", "/account%253f.css", "/x;y.css", "/x%23.css"] {
            assert_eq!(of_get(&granting, path).policy.lifetimes.default_timeout, None, "{path}");
        }
        assert_eq!(of_get(&granting, "/a%20b.css").policy.lifetimes.default_timeout, Some(60_000));
        let long = format!("/static/{}%41", "a".repeat(5000));
        assert!(of_get(&granting, &long).rule.bypass, "too long to be read in all ways");
    }

    #[test]
    fn the_first_match_wins_and_the_rest_is_defaults() {
        let rule =
            |path: &str, secs| Rule { path: path.into(), timeout: Some(Duration::from_secs(secs)), ..Rule::default() };
        let cache = Config { default_timeout: Duration::from_secs(9), ..Config::default() };
        let rules = Rules::new(
            &cache,
            &Transfers::default(),
            vec![rule("/static/*", 1), rule("/static/big/*", 2), rule("/a", 0)],
            Nominated::default(),
        );
        let timeout = |path: &str| of_get(&rules, path).policy.lifetimes.default_timeout;
        assert_eq!(timeout("/static/big/x"), Some(1000));
        assert_eq!(timeout("/static"), Some(9000));
        assert_eq!(timeout("/a"), Some(0), "a rule can say zero");
        assert_eq!(
            of_get(&Rules::new(&Config::default(), &Transfers::default(), vec![], Nominated::default()), "/")
                .policy
                .lifetimes
                .default_timeout,
            None
        );
    }

    /// Makes rules of their host, methods, path and upstream, each empty for any or none.
    fn rules_of(listed: &[[&str; 4]]) -> Rules {
        let rule = |[host, methods, path, upstream]: &[&str; 4]| Rule {
            host: (!host.is_empty()).then(|| HostPattern::read(host).expect("a host")),
            methods: methods.split_whitespace().map(|method| method.parse().expect("a method")).collect(),
            path: if path.is_empty() { "*".into() } else { (*path).into() },
            upstream: (!upstream.is_empty()).then(|| (*upstream).to_owned()),
            ..Rule::default()
        };
        let quick = |secs| Transfer { response_timeout: Duration::from_secs(secs), ..Transfer::default() };
        let named = vec![("a".to_owned(), quick(1)), ("b".to_owned(), quick(2))];
        let transfers = Transfers { default: quick(9), named };
        Rules::new(&Config::default(), &transfers, listed.iter().map(rule).collect(), Nominated::default())
    }

    const NAMES: [UpstreamName; 3] = [UpstreamName::Default, UpstreamName::Named(0), UpstreamName::Named(1)];

    #[test]
    fn a_rule_is_chosen_by_host_method_and_path_together() {
        let rules = rules_of(&[
            ["api.example", "", "", "a"],
            ["*.shop.example", "GET", "/p/*", "b"],
            ["", "POST PUT", "/up/*", "b"],
            ["api.example:8080", "", "/never", "b"],
        ]);
        let [none, a, b] = NAMES;
        for (authority, method, path, expected) in [
            ("api.example", "GET", "/x", a),
            ("api.example", "POST", "/up/x", a),
            ("api.example:8080", "GET", "/never", a),
            ("api.example.", "GET", "/x", a),
            ("x.api.example", "GET", "/x", none),
            ("a.shop.example", "GET", "/p/1", b),
            ("a.shop.example", "HEAD", "/p/1", b),
            ("a.shop.example", "get", "/p/1", b),
            ("a.shop.example", "POST", "/p/1", none),
            ("a.shop.example", "GET", "/q/1", none),
            ("shop.example", "GET", "/p/1", none),
            ("other.example", "POST", "/up/1", b),
            ("other.example", "post", "/up/1", b),
            ("other.example", "PUT", "/up/1", b),
            ("other.example", "GET", "/up/1", none),
            ("", "GET", "/x", none),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let found = rules.matching(authority, &method, path).expect("one upstream");
            assert_eq!(found.upstream, expected, "{authority} {method} {path}");
            let timeout = Duration::from_secs([9, 1, 2][expected.index()]);
            assert_eq!(found.transfer.response_timeout, timeout, "the limits are the upstream's own");
        }
    }

    #[test]
    fn a_path_whose_readings_lead_to_several_upstreams_has_no_rule() {
        let rules = rules_of(&[["", "", "/api/*", "a"], ["", "", "/admin/*", "b"], ["one.example", "", "", "b"]]);
        let matching = |authority: &str, path: &str| rules.matching(authority, &Method::GET, path);
        for path in [
            "/api/../admin/x",
            "/api/..%2fadmin/x",
            "/api/%2e%2e/admin/x",
            "/api/..;/admin/x",
            "//api/x",
            "/x/../api/y",
            "/api/../x",
            "/x\\..\\api\\y",
            "/%2561pi/x",
            "/api;x/y",
            "/x%00/../../api/y",
        ] {
            assert_eq!(matching("h.example", path).err(), Some(Ambiguous), "{path}");
        }
        for (path, expected) in [
            ("/%61pi/x", NAMES[1]),
            ("/api/x;y=1", NAMES[1]),
            ("/api//x", NAMES[1]),
            ("/api/x/../y", NAMES[1]),
            ("/API/x", NAMES[0]),
            ("/x;y/z", NAMES[0]),
            ("/%zz", NAMES[0]),
        ] {
            assert_eq!(matching("h.example", path).expect(path).upstream, expected, "{path}");
        }
        // Of one upstream, they have its strictest terms.
        let rules = rules_of(&[["", "", "/a/*", "b"], ["", "", "/b/*", "b"], ["", "", "", "b"]]);
        let found = rules.matching("h.example", &Method::GET, "/a/../b/x").expect("one upstream");
        assert!(std::ptr::eq(found, &raw const rules.disputed[2].strictest));
        assert_eq!((found.upstream, found.transfer.response_timeout), (NAMES[2], Duration::from_secs(2)));
    }

    #[test]
    fn a_path_too_long_to_be_read_goes_where_all_its_rules_lead_or_nowhere() {
        let rules = rules_of(&[
            ["one.example", "", "/x", "a"],
            ["one.example", "", "", "a"],
            ["two.example", "GET", "/api/*", "b"],
            ["three.example", "", "/a", "b"],
            ["three.example", "", "/*", "b"],
        ]);
        let long = format!("/%41{}", "a".repeat(MAX_READ));
        let matching = |authority: &str, method: &Method| {
            rules.matching(authority, method, &long).map(|found| (found.upstream, found.rule.bypass))
        };
        assert_eq!(matching("one.example", &Method::GET), Ok((NAMES[1], true)));
        assert_eq!(matching("two.example", &Method::GET), Err(Ambiguous));
        assert_eq!(matching("two.example", &Method::POST), Ok((NAMES[0], true)));
        assert_eq!(matching("three.example", &Method::GET), Ok((NAMES[2], true)));
        assert_eq!(matching("four.example", &Method::GET), Ok((NAMES[0], true)));
    }

    #[test]
    fn a_rule_hides_another_by_host_method_and_path_together() {
        let rule = |[host, methods, path]: [&str; 3]| Rule {
            host: (!host.is_empty()).then(|| HostPattern::read(host).expect("a host")),
            methods: methods.split_whitespace().map(|method| method.parse().expect("a method")).collect(),
            path: path.into(),
            ..Rule::default()
        };
        for (former, later, expected) in [
            (["", "", "/a/*"], ["h.example", "GET", "/a/b"], true),
            (["h.example", "", "/a/*"], ["", "", "/a/b"], false),
            (["h.example", "", "/a/*"], ["h.example:81", "", "/a/b"], true),
            (["*.example", "", "*"], ["h.example", "", "/a"], true),
            (["h.example", "", "*"], ["i.example", "", "/a"], false),
            (["", "GET POST", "*"], ["", "POST", "/a"], true),
            (["", "POST", "*"], ["", "GET POST", "/a"], false),
            (["", "POST", "*"], ["", "", "/a"], false),
            (["", "", "/a"], ["", "", "*"], false),
            (["", "GET", "*"], ["", "QUERY", "/a"], true),
            (["", "QUERY", "*"], ["", "GET", "/a"], false),
            (["", "POST", "*"], ["", "QUERY", "/a"], false),
        ] {
            assert_eq!(rule(former).hides(&rule(later)), expected, "{former:?} {later:?}");
        }
    }

    #[test]
    fn every_method_finds_the_key_by_the_rule_of_get() {
        let query = QueryRules { ignore: vec!["utm_*".into()], sort: false };
        let of_post = Rule { methods: vec![Method::POST], query, ..Rule::default() };
        let rules = Rules::new(&Config::default(), &Transfers::default(), vec![of_post], Nominated::default());
        assert!(rules.query("h.example", "/a").is_empty());
        assert!(rules.differ_from_get(&Method::POST) && !rules.differ_from_get(&Method::HEAD));
    }
}
