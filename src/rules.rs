//! `[[rule]]`: what the configuration says of some paths.

use std::time::Duration;

use crate::rfc9111::freshness::LifetimePolicy;
use crate::rfc9111::key::{QueryRules, glob};
use crate::rfc9111::storage::{SetCookie, StoragePolicy};
use crate::store::Durability;

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

/// One `[[rule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The paths it is for; `*` stands for any run of characters.
    pub path: String,
    /// Freshness lifetime where the response states none.
    pub timeout: Option<Duration>,
    /// Freshness lifetime whatever the response states.
    pub override_timeout: Option<Duration>,
    /// Whether the cache keeps out of the way.
    pub bypass: bool,
    /// What of the query enters the key.
    pub query: QueryRules,
    /// Whether responses go to the durable tier.
    pub durability: Durability,
    /// What the responses can be purged by.
    pub tags: Vec<String>,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            path: "*".into(),
            timeout: None,
            override_timeout: None,
            bypass: false,
            query: QueryRules::default(),
            durability: Durability::Durable,
            tags: Vec::new(),
        }
    }
}

/// Every rule, and what holds where none matches.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Resolved>,
    fallback: Resolved,
}

/// A rule with the defaults of `[cache]` filled in.
#[derive(Debug)]
pub struct Resolved {
    /// The rule.
    pub rule: Rule,
    /// What it says of storing.
    pub policy: StoragePolicy,
}

impl Rules {
    /// Resolves `rules` against the defaults of `[cache]`.
    pub fn new(cache: &Config, rules: Vec<Rule>) -> Self {
        let resolve = |rule: Rule| {
            let default_timeout = rule.timeout.or(Some(cache.default_timeout).filter(|timeout| !timeout.is_zero()));
            let lifetimes = LifetimePolicy {
                default_timeout: default_timeout.map(millis),
                override_timeout: rule.override_timeout.map(millis),
            };
            Resolved { policy: StoragePolicy { set_cookie: cache.set_cookie, lifetimes }, rule }
        };
        Self { rules: rules.into_iter().map(resolve).collect(), fallback: resolve(Rule::default()) }
    }

    /// The first rule for `path`.
    ///
    /// An application may take `/static/../account` or `/%61ccount` for `/account`. Such a path has
    /// the rule that both spellings have; where they differ, a rule that bypasses holds, and
    /// otherwise none: nobody can spell a page into a rule that was not made for it.
    pub fn matching(&self, path: &str) -> &Resolved {
        let asked = self.first(path);
        let Some(plain) = plain_path(path) else { return asked };
        let plain = self.first(&plain);
        if std::ptr::eq(asked, plain) || asked.rule.bypass {
            asked
        } else if plain.rule.bypass {
            plain
        } else {
            &self.fallback
        }
    }

    fn first(&self, path: &str) -> &Resolved {
        self.rules.iter().find(|resolved| glob(&resolved.rule.path, path)).unwrap_or(&self.fallback)
    }
}

/// What an application may take `path` for: escapes undone, dot segments and empty ones removed.
/// `None` when it is in that form already.
fn plain_path(path: &str) -> Option<String> {
    if !path.contains(['%', '\\']) && !path.contains("/.") && !path.contains("//") {
        return None;
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escaped = match (byte, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        decoded.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    let decoded = String::from_utf8_lossy(&decoded).replace('\\', "/");
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
    Some(format!("/{}{end}", kept.join("/")))
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
        let rules = Rules::new(&Config::default(), vec![rule("/static/*", false), rule("/admin/*", true)]);
        for (path, expected) in [
            ("/static/a.css", "/static/*"),
            ("/static/%61.css", "/static/*"),
            ("/static/x/../a.css", "/static/*"),
            ("/static/../account", "*"),
            ("/static/%2e%2e/account", "*"),
            ("/static/..%2faccount", "*"),
            ("/%73tatic/a.css", "*"),
            ("/admin/x", "/admin/*"),
            ("/%61dmin/x", "/admin/*"),
            ("//admin/x", "/admin/*"),
            ("/static/../admin/x", "/admin/*"),
            ("/admin/../static/x", "/admin/*"),
            ("/50%", "*"),
        ] {
            assert_eq!(rules.matching(path).rule.path, expected, "{path}");
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
