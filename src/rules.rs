//! `[[rule]]`: what the configuration says of some paths.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::{QueryRules, glob};
use crate::rfc9111::storage::{SetCookie, StoragePolicy};
use crate::rfc9111::tags::TagFields;
use crate::rfc9111::targeted::Targets;
use crate::store::Durability;
use crate::stored::StoredHead;

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The namespace of every key, in both tiers.
    pub key_prefix: String,
    /// The freshness lifetime of a storable response that states none; zero: heuristic only.
    pub default_timeout: Duration,
    /// Whether a read that finds an expired object deletes it from the durable tier.
    pub purge_expired_on_read: bool,
    /// What to do with responses that set cookies.
    pub set_cookie: SetCookie,
    /// Whether the directives of clients count.
    pub request_directives: RequestDirectives,
    /// How long a key is remembered as not storable, so that nobody waits for a response that
    /// can't be shared.
    pub pass_memory: Duration,
    /// How long a request waits for another one's answer from the origin before it asks as well.
    pub collapse_timeout: Duration,
    /// How many requests for the same thing may be at the origin at once; at least one.
    pub collapse_limit: usize,
    /// The response fields that speak to this cache in particular.
    pub targets: Targets,
    /// Whether those are taken out of what clients see.
    pub remove_targets: bool,
    /// The response fields that tags come in.
    pub tag_fields: TagFields,
    /// `stale-while-revalidate` for responses that do not have it.
    pub stale_while_revalidate: Duration,
    /// `stale-if-error` for responses that do not have it.
    pub stale_if_error: Duration,
    /// How long past its freshness a response may stand in for an origin that can't be reached,
    /// where nothing in it forbids that (RFC 9111 §4.2.4).
    pub stale_if_unreachable: Duration,
    /// Whether `Cache-Status` names the cache key.
    pub status_key: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            key_prefix: String::new(),
            default_timeout: Duration::ZERO,
            purge_expired_on_read: false,
            set_cookie: SetCookie::Explicit,
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

/// `cache.request_directives`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestDirectives {
    /// They count as RFC 9111 §5.2.1 has it.
    Honour,
    /// They are passed on and otherwise left alone.
    Ignore,
}

/// What is asked of the origin for a range of what is not stored: a rule's `ranges`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranges {
    /// The range; and the whole once it is known that memory takes it.
    #[default]
    Auto,
    /// The whole: what follows is answered from it.
    Whole,
    /// The range.
    Forward,
}

/// One `[[rule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The paths it is for; `*` stands for any run of characters.
    pub path: String,
    /// Freshness lifetime where the response states none.
    pub timeout: Option<Duration>,
    /// Freshness lifetime whatever the response states.
    pub override_timeout: Option<Duration>,
    /// Instead of `cache.stale_while_revalidate`.
    pub stale_while_revalidate: Option<Duration>,
    /// Instead of `cache.stale_if_error`.
    pub stale_if_error: Option<Duration>,
    /// Instead of `cache.stale_if_unreachable`.
    pub stale_if_unreachable: Option<Duration>,
    /// Whether the cache keeps out of the way.
    pub bypass: bool,
    /// Whether requests for the same thing wait for one answer.
    pub collapse: bool,
    /// The last part of its lifetime, in thousandths, in which a response is validated in the
    /// background before it expires; 0: none.
    pub early_refresh: u16,
    /// What is asked of the origin for a range.
    pub ranges: Ranges,
    /// What of the query enters the key.
    pub query: QueryRules,
    /// Whether responses go to the durable tier.
    pub durability: Durability,
    /// What the responses can be purged by.
    pub tags: Vec<String>,
}

impl Rule {
    /// Whether nothing is left for `later`, which comes after this one: this one's pattern matches all that
    /// the other's does. A star of the other's is matched by stars alone.
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
            bypass: false,
            collapse: true,
            early_refresh: 0,
            ranges: Ranges::Auto,
            query: QueryRules::default(),
            durability: Durability::Durable,
            tags: Vec::new(),
        }
    }
}

/// Every rule, and what holds where none matches.
#[derive(Debug)]
pub struct Rules {
    listed: Vec<Resolved>,
    fallback: Resolved,
    /// For paths that two rules could claim: no lifetime is granted, and nothing is kept durably.
    strictest: Resolved,
}

/// A rule with the defaults of `[cache]` filled in.
#[derive(Debug)]
pub struct Resolved {
    /// Its pattern, escapes undone.
    pattern: String,
    /// The rule.
    pub rule: Rule,
    /// What it says of storing.
    pub policy: Arc<StoragePolicy>,
}

impl Resolved {
    /// Whether a fresh response is to be validated now, before it expires. Sooner or later by chance,
    /// so that processes that ask at the same time do not all do it; and the sooner the longer it took to
    /// fetch, so that it is there in time.
    pub fn is_due_early(&self, stored: &StoredHead, now: Timestamp) -> bool {
        if self.rule.early_refresh == 0 {
            return false;
        }
        let window = stored.freshness.lifetime.saturating_mul(i64::from(self.rule.early_refresh)) / 1000;
        let remaining = stored.freshness.remaining(now);
        if remaining <= 0 || remaining > window {
            return false;
        }
        let fetched_in = stored.response_time().millis_since(stored.request_time());
        let mean = fetched_in.max(window / 10).max(1);
        // The probability that an exponential deviate is as large.
        #[expect(clippy::cast_precision_loss, reason = "a probability")]
        let probability = (-(remaining as f64) / mean as f64).exp();
        fastrand::f64() < probability
    }
}

impl Rules {
    /// Resolves `rules` against the defaults of `[cache]`.
    pub fn new(cache: &Config, rules: Vec<Rule>) -> Self {
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
                    set_cookie: cache.set_cookie,
                    lifetimes,
                    tag_fields: Arc::clone(&tag_fields),
                }),
                rule,
            }
        };
        let mut strictest = resolve(Rule { durability: Durability::MemoryOnly, ..Rule::default() });
        let lifetimes = LifetimePolicy { targets: Arc::clone(&targets), ..LifetimePolicy::default() };
        strictest.policy =
            Arc::new(StoragePolicy { set_cookie: cache.set_cookie, lifetimes, tag_fields: Arc::clone(&tag_fields) });
        Self { listed: rules.into_iter().map(resolve).collect(), fallback: resolve(Rule::default()), strictest }
    }

    /// The first rule for `path`.
    ///
    /// Patterns and paths are compared with their escapes undone, as applications do. One may also
    /// take `/static/../account` or `//account` for `/account`. Such a path has the rule that both
    /// readings have; where they differ, a rule that bypasses holds, and otherwise the strictest
    /// terms there are: nobody can spell a page into more than was granted to it.
    pub fn matching(&self, path: &str) -> &Resolved {
        if !is_spelt_out(path) {
            return self.first(path);
        }
        let asked = self.first(&unescape(path));
        let plain = self.first(&plain_path(path));
        if std::ptr::eq(asked, plain) || asked.rule.bypass {
            asked
        } else if plain.rule.bypass {
            plain
        } else {
            &self.strictest
        }
    }

    /// Whether a rule is one of the configuration's.
    pub fn is_listed(&self, rule: &Resolved) -> bool {
        self.listed.iter().any(|listed| std::ptr::eq(listed, rule))
    }

    fn first(&self, path: &str) -> &Resolved {
        self.listed.iter().find(|resolved| glob(&resolved.pattern, path)).unwrap_or(&self.fallback)
    }
}

/// Whether a path has more than one reading.
fn is_spelt_out(path: &str) -> bool {
    let mut before = 0;
    path.bytes().any(|byte| {
        let is_behind_slash = before == b'/';
        before = byte;
        matches!(byte, b'%' | b'\\') || (is_behind_slash && matches!(byte, b'.' | b'/'))
    })
}

/// `path` with its escapes undone, but for those of slashes, backslashes, dots and percent signs:
/// applications differ on those.
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

/// What an application may take `path` for: every escape undone, dot segments and empty ones
/// removed.
fn plain_path(path: &str) -> String {
    let decoded = decode(path, |_| true).replace('\\', "/");
    let mut kept: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let ends_in_directory = decoded.ends_with('/') || decoded.ends_with("/.") || decoded.ends_with("/..");
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
        let rules = Rules::new(&cache, listed.into_iter().chain([rule("/admin/*", true)]).collect());
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
    fn the_first_match_wins_and_the_rest_is_defaults() {
        let rule =
            |path: &str, secs| Rule { path: path.into(), timeout: Some(Duration::from_secs(secs)), ..Rule::default() };
        let cache = Config { default_timeout: Duration::from_secs(9), ..Config::default() };
        let rules = Rules::new(&cache, vec![rule("/static/*", 1), rule("/static/big/*", 2), rule("/a", 0)]);
        let timeout = |path: &str| rules.matching(path).policy.lifetimes.default_timeout;
        assert_eq!(timeout("/static/big/x"), Some(1000));
        assert_eq!(timeout("/static"), Some(9000));
        assert_eq!(timeout("/a"), Some(0), "a rule can say zero");
        assert_eq!(Rules::new(&Config::default(), vec![]).matching("/").policy.lifetimes.default_timeout, None);
    }
}
