//! `[[rule]]`: the settings for some paths.

use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderMap;

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
    /// Returns whether this rule's pattern matches every path of `later`, so that the later rule never applies. Only
    /// stars match a star of the later pattern.
    pub fn hides(&self, later: &Self) -> bool {
        glob(&unescape(&self.path), &unescape(&later.path))
    }
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            path: "*".into(),
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

/// The rules, and the defaults for paths that none matches.
#[derive(Debug)]
pub struct Rules {
    listed: Vec<Resolved>,
    fallback: Resolved,
    /// For paths that two rules could claim: grants no lifetime, and keeps nothing durably.
    strictest: Resolved,
    /// For paths that a rule could claim which overrides what responses state: stores nothing.
    closed: Resolved,
}

/// A rule, resolved against the defaults of `[cache]`.
#[derive(Debug)]
pub struct Resolved {
    /// The pattern, with escapes undone.
    pattern: String,
    /// The rule.
    pub rule: Rule,
    /// The policy by which its responses are stored.
    pub policy: Arc<StoragePolicy>,
    /// Says how far the directives of clients count.
    pub request_directives: RequestDirectives,
    /// The limits for the bodies of its requests and responses.
    pub transfer: Arc<Transfer>,
    /// The upstream that its requests go to.
    pub upstream: UpstreamName,
}

impl Resolved {
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
    /// Resolves `rules` against the defaults of `[cache]` and of `transfer`.
    pub fn new(cache: &Config, transfer: &Transfer, rules: Vec<Rule>, nominated: Nominated) -> Self {
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
            };
            Resolved {
                pattern: unescape(&rule.path),
                policy: Arc::new(StoragePolicy {
                    set_cookie: rule.set_cookie.unwrap_or(cache.set_cookie),
                    lifetimes,
                    tag_fields: Arc::clone(&tag_fields),
                    nominated: Arc::clone(&nominated),
                }),
                request_directives: rule.request_directives.unwrap_or(cache.request_directives),
                transfer: Arc::new(rule.transfer.of(transfer)),
                upstream: UpstreamName::Default,
                rule,
            }
        };
        let set_cookie = rules.iter().filter_map(|rule| rule.set_cookie).chain([cache.set_cookie]).min();
        let mut strictest = resolve(Rule { durability: Durability::MemoryOnly, set_cookie, ..Rule::default() });
        let lifetimes = LifetimePolicy { targets: Arc::clone(&targets), ..LifetimePolicy::default() };
        strictest.policy = Arc::new(StoragePolicy { lifetimes, ..(*strictest.policy).clone() });
        Self {
            fallback: resolve(Rule::default()),
            strictest,
            closed: resolve(Rule { bypass: true, ..Rule::default() }),
            listed: rules.into_iter().map(resolve).collect(),
        }
    }

    /// Returns the first rule for `path`.
    ///
    /// Patterns and paths are compared with their escapes undone, as applications do. Servers and frameworks differ on
    /// what else a path may be read as (see `readings`). A path has the rule that all its readings have. Where those
    /// differ, it bypasses if one of them does, or if one has `override_timeout`; otherwise the strictest terms hold.
    /// So nobody can spell a page in a way that grants it more.
    pub fn matching(&self, path: &str) -> &Resolved {
        if !is_spelt_out(path) {
            return self.first(path);
        }
        if path.len() > MAX_READ {
            return &self.closed;
        }
        let asked = self.first(&unescape(path));
        let others: Vec<&Resolved> = readings(path).iter().map(|reading| self.first(reading)).collect();
        let all = || std::iter::once(asked).chain(others.iter().copied());
        if others.iter().all(|other| std::ptr::eq(asked, *other)) {
            asked
        } else if let Some(bypassing) = all().find(|resolved| resolved.rule.bypass) {
            bypassing
        } else if all().any(|resolved| resolved.rule.override_timeout.is_some()) {
            &self.closed
        } else {
            &self.strictest
        }
    }

    /// Returns whether a rule is in the configuration.
    pub fn is_listed(&self, rule: &Resolved) -> bool {
        self.listed.iter().any(|listed| std::ptr::eq(listed, rule))
    }

    fn first(&self, path: &str) -> &Resolved {
        self.listed.iter().find(|resolved| glob(&resolved.pattern, path)).unwrap_or(&self.fallback)
    }
}

/// The longest path that is read. A longer one with more than one reading bypasses the cache.
const MAX_READ: usize = 4096;

/// Returns whether a path has more than one reading.
fn is_spelt_out(path: &str) -> bool {
    let mut before = 0;
    path.bytes().any(|byte| {
        let is_behind_slash = before == b'/';
        before = byte;
        matches!(byte, b'%' | b'\\' | b';') || (is_behind_slash && matches!(byte, b'.' | b'/'))
    })
}

/// The most rounds in which escapes of escapes are undone.
const MAX_DECODED: usize = 3;

/// Returns everything that a server or application may read `path` as. Readings undo escapes once or more, take
/// backslashes for slashes, resolve dot segments and empty ones, and drop parameters (`;x`). They also end the path
/// at, or drop, characters that end a string or path elsewhere (NUL, line ends, `#`, `?`).
fn readings(path: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut note = |reading: String| {
        if !found.contains(&reading) {
            found.push(reading);
        }
    };
    let mut decoded = unescape(path);
    for _ in 0..=MAX_DECODED {
        let whole = decoded.replace('\\', "/");
        let cut = whole.split(|c: char| c.is_control() || matches!(c, '#' | '?')).next().unwrap_or_default().to_owned();
        let without: String = whole.chars().filter(|c| !c.is_control()).collect();
        for text in [whole, cut, without] {
            for text in [without_parameters(&text), text] {
                note(resolved(&text, Empty::Dropped));
                note(resolved(&text, Empty::Kept));
            }
        }
        let next = decode(&decoded, |_| true);
        if next == decoded {
            break;
        }
        decoded = next;
    }
    found
}

/// Returns `path` without parameters: what follows a semicolon in a segment.
fn without_parameters(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

/// Undoes the escapes of `path`, except those of slashes, backslashes, dots and percent signs, on which applications
/// differ.
fn unescape(path: &str) -> String {
    decode(path, |byte| !matches!(byte, b'/' | b'\\' | b'.' | b'%'))
}

fn decode(path: &str, is_undone: impl Fn(u8) -> bool) -> String {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escaped = match (byte, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        let escaped = escaped.filter(|byte| is_undone(*byte));
        decoded.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Says what happens to empty segments where dot segments are resolved: RFC 3986 and browsers keep them, servers do
/// not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Empty {
    Kept,
    Dropped,
}

/// Resolves the dot segments of `path`, and keeps empty segments or drops them.
fn resolved(path: &str, empty: Empty) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.strip_prefix('/').unwrap_or(path).split('/') {
        match segment {
            "." => {}
            "" if empty == Empty::Dropped => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    if empty == Empty::Kept {
        return format!("/{}", kept.join("/"));
    }
    let ends_in_directory = path.ends_with('/') || path.ends_with("/.") || path.ends_with("/..");
    let end = if ends_in_directory && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_cannot_be_spelt_into_another_ones_rule() {
        let rule = |path: &str, bypass| Rule { path: path.into(), bypass, ..Rule::default() };
        let cache = Config { default_timeout: Duration::from_secs(9), ..Config::default() };
        let listed = ["/static/*", "/my%20files/*", "/café/*", "/account*"].map(|path| rule(path, false));
        let all = listed.into_iter().chain([rule("/admin/*", true)]).collect();
        let rules = Rules::new(&cache, &Transfer::default(), all, Nominated::default());
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
            let resolved = rules.matching(path);
            if expected == strictest {
                assert!(std::ptr::eq(resolved, &raw const rules.strictest), "{path}");
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
            Rules::new(&Config::default(), &Transfer::default(), vec![style, rule("/account*")], Nominated::default())
        };
        let style = Rule { path: "*.css".into(), timeout: Some(Duration::from_secs(60)), ..Rule::default() };
        let granting = rules(style.clone());
        let overriding = rules(Rule { override_timeout: Some(Duration::from_secs(60)), ..style });
        for path in ["/account;x.css", "/account%3bx.css", "/account%00.css", "/account%23.css", "/account%3f.css"] {
            assert_eq!(granting.matching(path).policy.lifetimes.default_timeout, None, "{path}");
            assert!(overriding.matching(path).rule.bypass, "{path}");
        }
        for path in ["/account%0a.css", "/account%0d%0a.css", "/account%253f.css", "/x;y.css", "/x%23.css"] {
            assert_eq!(granting.matching(path).policy.lifetimes.default_timeout, None, "{path}");
        }
        assert_eq!(granting.matching("/a%20b.css").policy.lifetimes.default_timeout, Some(60_000));
        let long = format!("/static/{}%41", "a".repeat(5000));
        assert!(granting.matching(&long).rule.bypass, "too long to be read in all ways");
    }

    #[test]
    fn the_first_match_wins_and_the_rest_is_defaults() {
        let rule =
            |path: &str, secs| Rule { path: path.into(), timeout: Some(Duration::from_secs(secs)), ..Rule::default() };
        let cache = Config { default_timeout: Duration::from_secs(9), ..Config::default() };
        let rules = Rules::new(
            &cache,
            &Transfer::default(),
            vec![rule("/static/*", 1), rule("/static/big/*", 2), rule("/a", 0)],
            Nominated::default(),
        );
        let timeout = |path: &str| rules.matching(path).policy.lifetimes.default_timeout;
        assert_eq!(timeout("/static/big/x"), Some(1000));
        assert_eq!(timeout("/static"), Some(9000));
        assert_eq!(timeout("/a"), Some(0), "a rule can say zero");
        assert_eq!(
            Rules::new(&Config::default(), &Transfer::default(), vec![], Nominated::default())
                .matching("/")
                .policy
                .lifetimes
                .default_timeout,
            None
        );
    }
}
