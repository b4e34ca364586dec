//! Explains why a request is a hit or not: its key, its rule, what each tier holds and how old that is, the purges
//! that cover it, and the decision. Does not ask the application.

use std::sync::Arc;

use http::header::HeaderMap;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use super::Proxy;
use super::purge::Url;
use super::query::keyed;
use super::request::newer;
use crate::entry::{Covered, StoredHead, VaryRecord, Who};
use crate::fetch::{
    Background, Decision, Inquiry, OnStored, Unshared, Use, with_nothing, with_stored, without_looking,
};
use crate::proxy::rules::Resolved;
use crate::respond::Refusal;
use crate::rfc9111::cache_status::{CacheStatus, Fwd, Tier};
use crate::rfc9111::freshness::{Freshness, LifetimeSource, StaleUse};
use crate::rfc9111::key::{CacheKey, KeyParts};
use crate::rfc9111::present::Present;
use crate::rfc9111::query::is_query;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::validation;
use crate::store::{Durability, EITHER, Examined, Lookup, PurgeStamp, PurgeTarget};
use crate::upstream::PeerState;
use crate::upstream::forwarding;
use crate::upstream::forwarding::Peer;

/// The request to be explained.
#[derive(Debug)]
pub struct Question<'a> {
    /// An absolute URL.
    pub url: &'a str,
    /// The method, in capitals.
    pub method: &'a str,
    /// The fields of the request.
    pub fields: HeaderMap,
    /// The content of the request. Only that of a QUERY matters.
    pub content: &'a [u8],
}

impl Question<'_> {
    /// Reads fields of the form `Name: value`. An error names the line that is not one.
    pub fn fields(lines: &[String]) -> Result<HeaderMap, String> {
        let mut fields = HeaderMap::new();
        for line in lines {
            let parsed = line.split_once(':').and_then(|(name, value)| {
                Some((name.trim().parse::<HeaderName>().ok()?, HeaderValue::from_str(value.trim()).ok()?))
            });
            let (name, value) = parsed.ok_or_else(|| format!("\"{line}\" is no field; write it as Name: value"))?;
            fields.append(name, value);
        }
        Ok(fields)
    }
}

/// A stored response that the request selects.
struct Candidate {
    tier: Tier,
    head: StoredHead,
    len: u64,
    covered: Covered,
}

/// The explanation: lines for people, and the same as data.
struct Story {
    lines: Vec<String>,
    data: Value,
}

impl Story {
    fn say(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }
}

impl Proxy {
    /// Explains why a request is, or would be, a hit or not. An error says what is wrong with the question.
    pub async fn explain(&self, question: Question<'_>) -> Result<Value, String> {
        let Url { scheme, authority, path, query } = Url::read(question.url)?;
        let method = Method::from_bytes(question.method.as_bytes())
            .map_err(|_| format!("\"{}\" is no method; write GET or another", question.method))?;
        // Treats the fields as if a trusted proxy had sent them.
        let mut fields = question.fields;
        // As the proxy does: a field that the origin will not see selects nothing.
        crate::rfc9111::fields::remove_listed(&mut fields);
        forwarding::receive(&self.trust, &Peer::of_operator(), &method, &mut fields);
        let mut exact = self.keys.key(scheme, &authority, &path, query.as_deref());
        let mut story = Story { lines: Vec::new(), data: json!({}) };
        let Ok(rule) = self.keys.rules.matching(&authority, &method, &path) else {
            tell_key(&mut story, &exact, query.as_deref());
            story.say(
                "rule: none, since the path can be read in several ways, which lead to different applications: 400",
            );
            let (status, _) = Refusal::Path.answer();
            return Ok(told(story, &status));
        };
        let mut stands_for = method.clone();
        if is_query(&method) && !rule.rule.bypass {
            let limit = rule.transfer.buffer_request;
            match keyed(&fields, Present::of(&fields), limit) {
                Ok(metadata) if question.content.len() as u64 <= limit => {
                    exact = exact.with_content(&metadata.digest(question.content));
                    // From here on the request is a GET for the URL and the content.
                    stands_for = Method::GET;
                }
                passed => {
                    tell_key(&mut story, &exact, query.as_deref());
                    self.tell_rule(&mut story, rule);
                    story.say(NOT_KEYED);
                    let fwd = passed.err().unwrap_or(Fwd::Request);
                    story.data["decision"] = json!(format!("{:?}", Decision::Pass(fwd)));
                    return Ok(told(story, &CacheStatus::forward(fwd)));
                }
            }
        }
        let method = stands_for;
        tell_key(&mut story, &exact, query.as_deref());
        self.tell_rule(&mut story, rule);
        if exact.has_content() {
            story.say("rule: of responses to QUERY only those that state a lifetime are stored");
        }
        if !exact.has_content() {
            self.tell_peer(&mut story, &exact);
        }
        let searched = self.fetcher.memories.searches.key(&exact);
        if searched.is_some() {
            story.say("key: its origin said (No-Vary-Search) that some differences between queries do not matter");
        }
        let status = self.verdict(&mut story, rule, &exact, searched.as_ref(), &method, &fields).await;
        Ok(told(story, &status))
    }

    /// Tells which node's share has the key.
    fn tell_peer(&self, story: &mut Story, key: &CacheKey) {
        let Some(peers) = &self.fetcher.peers else { return };
        match peers.named(key.hash()) {
            Some((address, PeerState::Own)) => {
                story.say(format!("peers: this node asks the application, for all nodes ({address})"));
                story.data["peer"] = json!({"address": address, "is_own": true});
            }
            Some((address, _)) => {
                story.say(format!("peers: {address} asks the application, for all nodes"));
                story.data["peer"] = json!({"address": address, "is_own": false});
            }
            None => {
                story.say("peers: none answers, so this node asks the application");
                story.data["peer"] = Value::Null;
            }
        }
        story.data["peers"] = json!(
            peers
                .states()
                .iter()
                .map(|(address, state)| json!({"address": address, "state": state.as_str()}))
                .collect::<Vec<_>>()
        );
    }

    fn tell_rule(&self, story: &mut Story, rule: &Resolved) {
        let seconds = |millis: i64| format!("{}s", millis / 1000);
        let lifetimes = &rule.policy.lifetimes;
        let mut terms = Vec::new();
        if rule.rule.bypass {
            terms.push("bypass".to_owned());
        }
        terms.extend(lifetimes.override_timeout.map(|millis| format!("override_timeout {}", seconds(millis))));
        terms.extend(lifetimes.default_timeout.map(|millis| format!("timeout {}", seconds(millis))));
        if rule.rule.durability == Durability::MemoryOnly {
            terms.push("memory only".into());
        }
        if !rule.rule.collapse {
            terms.push("collapse false".into());
        }
        if rule.rule.set_cookie.is_some() {
            terms.push(format!("set_cookie {:?}", rule.policy.set_cookie).to_lowercase());
        }
        if rule.rule.request_directives.is_some() {
            terms.push(format!("request_directives {:?}", rule.request_directives).to_lowercase());
        }
        if !rule.rule.tags.is_empty() {
            terms.push(format!("tags {}", rule.rule.tags.join(", ")));
        }
        let terms = if terms.is_empty() { "nothing of its own".to_owned() } else { terms.join(", ") };
        let number = self.keys.rules.number(rule);
        let name = match number {
            Some(number) => format!("rule[{number}], {}", rule.rule.in_words()),
            None => "none of the configuration matches: the defaults hold".to_owned(),
        };
        story.say(format!("rule: {name}; it says {terms}"));
        let origin = self.fetcher.origins.named(rule.upstream);
        let addresses: Vec<String> = origin.upstream.endpoints().iter().map(|endpoint| endpoint.name.clone()).collect();
        story.say(format!("upstream: {}, at {}", origin.name, addresses.join(", ")));
        story.data["upstream"] = json!({"name": origin.name, "addresses": addresses});
        story.data["rule"] = json!({
            "number": number,
            "path": number.map(|_| &rule.rule.path),
            "host": rule.rule.host.as_ref().map(ToString::to_string),
            "method": rule.rule.methods.iter().map(Method::as_str).collect::<Vec<_>>(),
            "bypass": rule.rule.bypass,
            "timeout_ms": lifetimes.default_timeout,
            "override_timeout_ms": lifetimes.override_timeout,
            "durable": rule.rule.durability == Durability::Durable,
            "tags": rule.rule.tags,
        });
    }

    async fn verdict(
        &self,
        story: &mut Story,
        rule: &Resolved,
        exact: &CacheKey,
        searched: Option<&CacheKey>,
        method: &Method,
        fields: &HeaderMap,
    ) -> CacheStatus {
        let now = self.fetcher.clock.now();
        let (mut in_memory, mut others) = (None, false);
        match self.in_memory(exact, searched, fields) {
            Lookup::Found(stored) => {
                let covered = self.fetcher.store.purges().covers(&stored.head, stored.head.position);
                let covering = self.fetcher.store.purges().covering(&stored.head, Some(stored.head.position));
                tell_response(story, "memory", &stored.head, stored.len(), &covering, now);
                let head = stored.head.clone();
                in_memory = Some(Candidate { tier: Tier::Memory, head, len: stored.len(), covered });
            }
            Lookup::OtherVariants(record) => {
                tell_variants(story, "memory", &record, fields);
                others = true;
            }
            Lookup::Nothing => {
                story.say("memory: nothing");
                story.data["memory"] = json!({"has": "nothing"});
            }
        }
        let (in_durable, other_durable) = self.tell_durable(story, rule, exact, fields, now).await;
        if let (Some(found), None) = (&in_memory, &in_durable)
            && let Some(why) = self.fetcher.store.why_not_written(&found.head, found.len, rule.rule.durability)
        {
            story.say(format!("durable: what memory has is not written: {why}"));
            story.data["not_written"] = json!(why);
        }
        let inquiry = Inquiry { method, fields, present: Present::of(fields), has_content: false };
        let others = others || other_durable;
        let decision = self.decide_on(story, rule, inquiry, [in_memory, in_durable], others, now);
        if matches!(decision.0, Decision::Fetch(_) | Decision::Stored(OnStored::Fetch(Fwd::Partial))) {
            if rule.directives(fields).only_if_cached {
                story.say("the request wants nothing but a stored response (only-if-cached): 504");
            }
            self.tell_hit_for_miss(story, searched.unwrap_or(exact), fields, now);
        }
        story.data["decision"] = json!(match decision.0 {
            Decision::Stored(on_stored) => format!("{on_stored:?}"),
            decision => format!("{decision:?}"),
        });
        status_of(decision, rule.directives(fields).only_if_cached, now)
    }

    /// Returns what memory has, chosen as for a request. A response that was purged comes last: it is told as such.
    fn in_memory(&self, exact: &CacheKey, searched: Option<&CacheKey>, fields: &HeaderMap) -> Lookup {
        let store = &self.fetcher.store;
        let look = |key| store.memory().peek(key, fields);
        let Some(searched) = searched else { return look(exact) };
        let is_purged = |found: &Lookup| match found {
            Lookup::Found(stored) => store.purges().covers(&stored.head, stored.head.position) == Covered::Wholly,
            Lookup::OtherVariants(_) | Lookup::Nothing => false,
        };
        let (searched, own) = (look(searched), look(exact));
        match (is_purged(&searched), is_purged(&own)) {
            (true, false) if matches!(own, Lookup::Found(_)) => own,
            (false, true) if matches!(searched, Lookup::Found(_)) => searched,
            _ => newer(searched, own).1,
        }
    }

    /// Decides as the proxy does: on what memory has, and where that does not decide, on what the durable tier has.
    /// Returns with the decision the stored response that it is about.
    fn decide_on(
        &self,
        story: &mut Story,
        rule: &Resolved,
        inquiry: Inquiry<'_>,
        tiers: [Option<Candidate>; 2],
        has_other_variants: bool,
        now: Timestamp,
    ) -> (Decision, Option<(Tier, Freshness)>) {
        if let Some(fwd) = without_looking(inquiry, rule.rule.bypass) {
            story.say(passed_because(fwd, inquiry.method));
            return (Decision::Pass(fwd), None);
        }
        let mut decision = Decision::Fetch(with_nothing(has_other_variants));
        for mut found in tiers.into_iter().flatten() {
            let tier = found.tier.as_str();
            if !found.head.outlives(found.covered) {
                story.say(format!("{tier}: what it has was purged, and counts as not there"));
                continue;
            }
            let (head, freshness) = (&found.head, found.head.freshness);
            let directives = rule.directives(inquiry.fields);
            let directives = rule.request_directives.bounded(directives, head.response_time(), now);
            let failure = || self.fetcher.known_failure(rule.upstream, head, Who::of(inquiry.fields));
            let early = rule.rule.early_refresh;
            let on_this = with_stored(inquiry, &directives, head, found.len, early, failure, now);
            tell_decision(story, &found, on_this);
            match on_this {
                // Another tier may hold more of the response.
                OnStored::Fetch(Fwd::Partial) => decision = Decision::Stored(on_this),
                on_this => return (Decision::Stored(on_this), Some((found.tier, freshness))),
            }
        }
        (decision, None)
    }

    /// Tells what hit-for-miss remembers of requests that ask alike.
    fn tell_hit_for_miss(&self, story: &mut Story, key: &CacheKey, fields: &HeaderMap, now: Timestamp) {
        let memory = &self.fetcher.memories.hit_for_miss;
        if let Some((why, at)) = memory.refused(key.hash(), now) {
            let ago = now.millis_since(at) / 1000;
            story.say(format!("its last response that was not stored ({ago}s ago): {}", why.in_words()));
            story.data["not_stored"] = json!({"why": why.as_str(), "seconds_ago": ago});
        }
        match memory.look(key.hash(), fields, now).unshared {
            Some(Unshared::NotStorable) => story.say("requests that ask like this one do not wait for each other"),
            Some(Unshared::EachValidates) => story.say("its responses have to be validated for each request"),
            None => {}
        }
    }

    /// Tells what the durable tier has. Returns its response, and whether it has only other variants.
    async fn tell_durable(
        &self,
        story: &mut Story,
        rule: &Resolved,
        key: &CacheKey,
        fields: &HeaderMap,
        now: Timestamp,
    ) -> (Option<Candidate>, bool) {
        let Some(durable) = self.fetcher.store.durable() else {
            story.say("durable: there is no such tier (durable.url = \"off\")");
            story.data["durable"] = json!({"has": "no-tier"});
            return (None, false);
        };
        let policy = if key.has_content() { &rule.policy_of_query } else { &rule.policy };
        let (word, line) = match durable.examine(key, fields, Arc::clone(policy)).await {
            Examined::Response { head, len, is_apart, at } => {
                let covering = self.fetcher.store.purges().covering(&head, None);
                let covered = self.fetcher.store.purges().covers_read(&head);
                tell_response(story, "durable", &head, len, &covering, now);
                story.say(format!("durable: it is in pack {at}"));
                story.say(format!("durable: its body is {}", if is_apart { "an object of its own" } else { "inline" }));
                let retained = head.freshness.remaining(now).saturating_add(durable.retain_millis()) >= 0;
                if !retained {
                    story.say("durable: it is past durable.retain, and counts as not there");
                }
                let found = Candidate { tier: Tier::Durable, head: *head, len, covered };
                return (Some(found).filter(|_| retained), false);
            }
            Examined::OtherVariants(record) => {
                tell_variants(story, "durable", &record, fields);
                return (None, true);
            }
            Examined::NotIndexed => ("nothing", "nothing, by its index: it is not asked".to_owned()),
            Examined::Nothing => ("nothing", "nothing".to_owned()),
            Examined::NotLoaded => ("not-loaded", "its journal is not read yet: it is not asked".to_owned()),
            Examined::Down => ("down", "it counts as down: it is not asked".to_owned()),
            Examined::Waiting => ("waiting", "a write or deletion waits to be carried out".to_owned()),
            Examined::Failed(why) => ("failed", format!("it failed: {why}")),
            Examined::Unreadable(why) => {
                ("unreadable", format!("an object that can't be believed ({}): a miss", why.as_str()))
            }
        };
        story.say(format!("durable: {line}"));
        story.data["durable"] = json!({"has": word});
        (None, false)
    }
}

/// Says why a QUERY is passed on whatever is stored.
const NOT_KEYED: &str = "it goes to the application: no stored response answers a QUERY that does not have one Content-Type, is longer than upstream.buffer_request, sends a part of a content (Content-Range), or has If-Match or If-Unmodified-Since";

/// Ends the explanation with the `Cache-Status` that the request gets.
fn told(mut story: Story, status: &CacheStatus) -> Value {
    let text = status.to_value(None).to_str().unwrap_or_default().to_owned();
    story.say(format!("verdict: Cache-Status: {text}"));
    story.data["verdict"] = json!(text);
    story.data["lines"] = json!(story.lines);
    story.data
}

/// Returns the reason for passing a request on, in words.
fn passed_because(fwd: Fwd, method: &Method) -> String {
    match fwd {
        Fwd::Bypass => "it goes to the application: the rule says bypass".to_owned(),
        Fwd::Method => format!("it goes to the application: no stored response answers {method}"),
        _ => "it goes to the application: If-Match and If-Unmodified-Since are about its state".to_owned(),
    }
}

/// Tells the decision on a stored response.
fn tell_decision(story: &mut Story, found: &Candidate, decision: OnStored) {
    let (tier, freshness) = (found.tier.as_str(), &found.head.freshness);
    match decision {
        OnStored::Answer(Use::Fresh, Background::No) => {}
        OnStored::Answer(Use::Fresh, Background::Yes | Background::Perhaps(_)) => {
            story.say("it is fresh, and may be validated behind, since it soon expires (early_refresh)");
        }
        OnStored::Answer(Use::Accepted, _) => story.say("it is stale, and the request accepts that (max-stale)"),
        OnStored::Answer(Use::WhileRevalidate, _) => {
            story.say("it is stale, and served while it is validated (stale-while-revalidate)");
        }
        OnStored::Answer(Use::InPlaceOf(_), _) => {
            story.say("the application is known to fail: it is served stale, and validated behind");
        }
        OnStored::NotCached => story.say("the request wants nothing but a stored response (only-if-cached): 504"),
        OnStored::Fetch(Fwd::Partial) => story.say(format!("{tier}: it has only a part of what is asked for")),
        OnStored::Fetch(fwd) => {
            let validator = if validation::has_validator(&found.head.fields.to_map()) {
                "validated with its ETag or Last-Modified: a 304 makes it good again"
            } else {
                "fetched anew: it has no validator"
            };
            let reason = match fwd {
                _ if freshness.no_cache => "it says no-cache",
                Fwd::Request => "the request's own directives rule it out",
                _ => "it is stale",
            };
            story.say(format!("{reason}: it is {validator}"));
        }
    }
}

/// Returns the `Cache-Status` of a decision.
fn status_of(
    (decision, found): (Decision, Option<(Tier, Freshness)>),
    only_if_cached: bool,
    now: Timestamp,
) -> CacheStatus {
    match decision {
        Decision::Stored(OnStored::NotCached) => Refusal::OnlyIfCached.answer().0,
        Decision::Fetch(_) | Decision::Stored(OnStored::Fetch(_)) if only_if_cached => Refusal::OnlyIfCached.answer().0,
        Decision::Fetch(fwd) | Decision::Stored(OnStored::Fetch(fwd)) | Decision::Pass(fwd) => {
            CacheStatus::forward(fwd)
        }
        Decision::Stored(OnStored::Answer(..)) => match found {
            Some((tier, freshness)) => CacheStatus::hit(tier, freshness.remaining(now)),
            None => CacheStatus::forward(Fwd::Miss),
        },
    }
}

fn tell_key(story: &mut Story, key: &CacheKey, query: Option<&str>) {
    let Some(KeyParts { prefix, scheme, authority, path, query: kept }) = key.parts() else { return };
    story.say(format!("key: prefix \"{prefix}\", scheme {scheme}, authority {authority}, path {path}"));
    match (query, kept) {
        (None, _) => story.say("key: no query"),
        (Some(asked), Some(kept)) if asked == kept => story.say(format!("key: query {kept}")),
        (Some(asked), kept) => {
            story.say(format!("key: query {} (asked: {asked}; the rule leaves out or sorts)", kept.unwrap_or("none")));
        }
    }
    if let Some(content) = key.content() {
        story.say(format!("key: content {content} (SHA-256 of it and of the fields about it)"));
    }
    story.data["key"] = json!({
        "prefix": prefix, "scheme": scheme, "authority": authority, "path": path, "query": kept,
        "content": key.content(),
        "hash": format!("{:032x}", key.hash()),
    });
}

fn tell_variants(story: &mut Story, tier: &str, record: &VaryRecord, fields: &HeaderMap) {
    let names: Vec<Vec<&str>> = record.sets.iter().map(|set| set.iter().map(HeaderName::as_str).collect()).collect();
    let asked = |name: &str| {
        fields.get(name).map_or("nothing".into(), |value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let values: Vec<String> = names.iter().flatten().map(|name| format!("{name}: {}", asked(name))).collect();
    story.say(format!(
        "{tier}: other variants; its responses vary by {}, and none is for {}",
        names.concat().join(", "),
        values.join(", ")
    ));
    story.data[tier] = json!({"has": "other-variants", "vary": names});
}

fn tell_response(
    story: &mut Story,
    tier: &str,
    head: &StoredHead,
    len: u64,
    covering: &[(PurgeTarget, PurgeStamp)],
    now: Timestamp,
) {
    let what = if head.parts().is_some() { "a part of a response" } else { "a response" };
    story.say(format!(
        "{tier}: {what}, status {}, {len} bytes, received {} ({} s ago)",
        head.status.as_u16(),
        head.response_time().to_rfc3339(),
        now.millis_since(head.response_time()).max(0) / 1000
    ));
    if let Some(variant) = head.variant() {
        let names: Vec<&str> = variant.names.iter().map(HeaderName::as_str).collect();
        story.say(format!("{tier}: it is the variant for this request's {}", names.join(", ")));
    }
    if !head.tags().is_empty() {
        story.say(format!("{tier}: it is tagged {}", head.tags().join(", ")));
    }
    tell_freshness(story, tier, &head.freshness, now);
    let purges: Vec<String> = covering.iter().map(|(target, mark)| in_words(target, mark)).collect();
    for purge in &purges {
        story.say(format!("{tier}: it is covered by a purge of {purge}"));
    }
    if purges.is_empty() {
        story.say(format!("{tier}: no purge covers it"));
    }
    story.data[tier] = json!({
        "has": if head.parts().is_some() { "part" } else { "response" },
        "status": head.status.as_u16(),
        "bytes": len,
        "age_ms": head.freshness.current_age(now),
        "lifetime_ms": head.freshness.lifetime,
        "remaining_ms": head.freshness.remaining(now),
        "fresh": head.freshness.is_fresh(now),
        "vary": head.variant().map(|variant| variant.names.iter().map(HeaderName::as_str).collect::<Vec<_>>()),
        "tags": head.tags(),
        "purges": purges,
    });
}

fn tell_freshness(story: &mut Story, tier: &str, freshness: &Freshness, now: Timestamp) {
    let seconds = |millis: i64| {
        let (sign, millis) = (if millis < 0 { "-" } else { "" }, millis.unsigned_abs());
        format!("{sign}{}.{:03}s", millis / 1000, millis % 1000)
    };
    let source = match freshness.source {
        LifetimeSource::Origin => {
            "as its origin says (the max-age of CDN-Cache-Control or another targeted field, else s-maxage, max-age or Expires)"
        }
        LifetimeSource::Configuration => "as the configuration says",
        LifetimeSource::Heuristic => "a tenth of its age when it was received (heuristic)",
        LifetimeSource::None => "since nobody says any",
    };
    let (age, resident) = (freshness.current_age(now), now.millis_since(freshness.response_time).max(0));
    story.say(format!("{tier}: freshness lifetime {} {source}", seconds(freshness.lifetime)));
    story.say(format!(
        "{tier}: age {} = {} when it was received + {} here",
        seconds(age),
        seconds(freshness.initial_age),
        seconds(resident)
    ));
    let remaining = freshness.remaining(now);
    let word = if remaining > 0 { "fresh" } else { "stale" };
    story.say(format!("{tier}: {word}: {} - {} = {}", seconds(freshness.lifetime), seconds(age), seconds(remaining)));
    for (is_said, line) in [
        (freshness.no_cache, "no-cache: validated before each use".to_owned()),
        (freshness.stale_use == StaleUse::Never, "must-revalidate: never served stale".to_owned()),
        (
            !freshness.stale_while_revalidate.is_zero(),
            format!("stale-while-revalidate {}", seconds(freshness.stale_while_revalidate.millis())),
        ),
        (!freshness.stale_if_error.is_zero(), format!("stale-if-error {}", seconds(freshness.stale_if_error.millis()))),
    ] {
        if is_said {
            story.say(format!("{tier}: {line}"));
        }
    }
}

fn in_words(target: &PurgeTarget, stamp: &PurgeStamp) -> String {
    let what = match target {
        PurgeTarget::Url(_) => "its URL".to_owned(),
        PurgeTarget::Prefix(prefix) if prefix.is_empty() => "a prefix that is no longer remembered".to_owned(),
        PurgeTarget::Prefix(prefix) => match prefix.strip_prefix(EITHER).and_then(|rest| rest.strip_prefix("://")) {
            Some(rest) => format!("the prefix {rest} under both schemes"),
            None => format!("the prefix {prefix}"),
        },
        PurgeTarget::Tag(tag) => format!("the tag {tag}"),
        PurgeTarget::All => "everything".to_owned(),
    };
    let kind = if stamp.is_soft { ", softly" } else { "" };
    format!("{what}{kind}, made {:?}", stamp.moment())
}
