//! Reads every key: a line of `Config::read` names its section, its key and its default. What no line asked for is
//! unknown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, Uri};
use ipnet::IpNet;
use toml::Value;

use super::hints::{duplicate, line_of, nearest};
use crate::base::log::LogFormat;
use crate::base::{Prices, format_size, log, parse_duration, parse_size};
use crate::downstream::{Listen, ServerConfig};
use crate::fetch::Ranges;
use crate::proxy::{CacheConfig, Rule};
use crate::rfc9111::claims::Claim;
use crate::rfc9111::directives::RequestDirectives;
use crate::rfc9111::key::{QueryRules, normal_authority};
use crate::rfc9111::present::Present;
use crate::rfc9111::storage::SetCookie;
use crate::rfc9111::tags::TagFields;
use crate::rfc9111::targeted::Targets;
use crate::rfc9111::{claims, fields};
use crate::store::s3::S3Config;
use crate::store::{Durability, Location};
use crate::upstream::{Address, Overrides, Transfer};
use crate::{admin, store, upstream};

/// Everything that can be configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[upstream]`
    pub upstream: upstream::Config,
    /// `[cache]`
    pub cache: CacheConfig,
    /// `[memory]`
    pub memory: store::MemoryConfig,
    /// `[durable]`
    pub durable: store::DurableConfig,
    /// `[admin]`
    pub admin: admin::Config,
    /// `[log]`
    pub log: log::Config,
    /// `[[rule]]`
    pub rules: Vec<Rule>,
}

/// What is wrong with a configuration: one sentence a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// What a key was set to, and by whom.
#[derive(Clone, Debug)]
struct Setting {
    value: Given,
    from: String,
}

#[derive(Clone, Debug)]
enum Given {
    /// From the file, with its type.
    Typed(Value),
    /// From the environment or `--set`, to be read as whatever the key takes.
    Text(String),
}

impl Config {
    /// Returns how bytes pass where no rule says otherwise.
    pub fn transfer(&self) -> Transfer {
        Transfer {
            buffer_request: self.upstream.buffer_request,
            buffer_response: self.upstream.buffer_response,
            spool: self.upstream.spool,
            min_body_rate: self.server.min_body_rate,
            response_timeout: self.upstream.response_timeout,
            body_timeout: self.upstream.body_timeout,
        }
    }

    /// Reads the configuration from `file`, if there is one, `environment` and the `--set`
    /// options, each overriding the ones before.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        sets: &[String],
    ) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::default();
        if let Some(path) = file {
            reader.read_file(path);
        }
        for (name, value) in environment {
            reader.read_variable(&name, &value);
        }
        for set in sets {
            reader.read_set(set);
        }
        let config = Self::read(&mut reader);
        reader.finish(config)
    }

    /// Reads the configuration from the text of a file alone.
    pub fn parse(text: &str) -> Result<Self, ConfigErrors> {
        let mut reader = Reader::default();
        reader.read_text("config.toml", text);
        let config = Self::read(&mut reader);
        reader.finish(config)
    }

    fn read(r: &mut Reader) -> Self {
        let default = Self::default();
        let d = &default;
        let config = Self {
            server: ServerConfig {
                listen: r.list("server.listen", &d.server.listen, listen),
                threads: r.int("server.threads", d.server.threads, 0..=1024),
                trusted_proxies: r.list("server.trusted_proxies", &d.server.trusted_proxies, network),
                trusted_fields: r.list("server.trusted_fields", &d.server.trusted_fields, trusted_field),
                allowed_fields: r.list("server.allowed_fields", &d.server.allowed_fields, allowed_field),
                header_timeout: r.duration("server.header_timeout", d.server.header_timeout),
                idle_timeout: r.duration("server.idle_timeout", d.server.idle_timeout),
                body_timeout: r.duration("server.body_timeout", d.server.body_timeout),
                max_body_size: r.size("server.max_body_size", d.server.max_body_size, 0, 1 << 50),
                max_buffered: r.size("server.max_buffered", d.server.max_buffered, 1 << 20, 1 << 50),
                max_header_size: usize_of(r.size(
                    "server.max_header_size",
                    d.server.max_header_size as u64,
                    1 << 10,
                    16 << 20,
                )),
                max_headers: r.int("server.max_headers", d.server.max_headers, 1..=10_000),
                max_connections: r.int("server.max_connections", usize_of(d.server.max_connections), 1..=10_000_000)
                    as u64,
                drain_timeout: r.duration("server.drain_timeout", d.server.drain_timeout),
                socket_mode: r.one("server.socket_mode", d.server.socket_mode, socket_mode),
                min_body_rate: r.size("server.min_body_rate", d.server.min_body_rate, 0, 1 << 40),
                tunnel_timeout: r.duration("server.tunnel_timeout", d.server.tunnel_timeout),
                max_spooled: r.size("server.max_spooled", d.server.max_spooled, 0, 1 << 60),
                spool_dir: r.one("server.spool_dir", d.server.spool_dir.clone(), |text| Ok(text.into())),
            },
            upstream: read_upstream(r, &d.upstream),
            cache: CacheConfig {
                key_prefix: r.one("cache.key_prefix", d.cache.key_prefix.clone(), key_prefix),
                default_timeout: r.duration_or_zero("cache.default_timeout", d.cache.default_timeout),
                purge_expired_on_read: r.flag("cache.purge_expired_on_read", d.cache.purge_expired_on_read),
                set_cookie: r.word("cache.set_cookie", d.cache.set_cookie, SET_COOKIE),
                request_directives: r.word("cache.request_directives", d.cache.request_directives, REQUEST_DIRECTIVES),
                pass_memory: r.duration_or_zero("cache.pass_memory", d.cache.pass_memory),
                collapse_timeout: r.duration("cache.collapse_timeout", d.cache.collapse_timeout),
                collapse_limit: r.int("cache.collapse_limit", d.cache.collapse_limit, 1..=1000),
                targets: Targets {
                    list: r.list("cache.targets", &d.cache.targets.list, target),
                    surrogate_control: r.flag("cache.surrogate_control", d.cache.targets.surrogate_control),
                    x_accel_expires: r.flag("cache.x_accel_expires", d.cache.targets.x_accel_expires),
                },
                remove_targets: r.flag("cache.remove_targets", d.cache.remove_targets),
                tag_fields: TagFields {
                    names: r.list("cache.tag_fields", &d.cache.tag_fields.names, field_name),
                    are_shown: r.flag("cache.show_tag_fields", d.cache.tag_fields.are_shown),
                },
                stale_while_revalidate: r
                    .duration_or_zero("cache.stale_while_revalidate", d.cache.stale_while_revalidate),
                stale_if_error: r.duration_or_zero("cache.stale_if_error", d.cache.stale_if_error),
                stale_if_unreachable: r.duration_or_zero("cache.stale_if_unreachable", d.cache.stale_if_unreachable),
                status_key: r.flag("cache.status_key", d.cache.status_key),
            },
            memory: store::MemoryConfig {
                capacity: r.size("memory.capacity", d.memory.capacity, 0, 1 << 50),
                max_object_size: r.size("memory.max_object_size", d.memory.max_object_size, 0, 3 << 30),
                fill_budget: r.size("memory.fill_budget", d.memory.fill_budget, 0, 1 << 50),
            },
            durable: read_durable(r, &d.durable),
            admin: admin::Config {
                listen: r.one("admin.listen", d.admin.listen.clone(), admin_listen),
                token: r.one("admin.token", d.admin.token.clone(), admin_token),
                hosts: r.list("admin.hosts", &d.admin.hosts, admin_host),
            },
            log: log::Config {
                format: r.word("log.format", d.log.format, &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
                level: r.one("log.level", d.log.level.clone(), log_level),
                access: r.flag("log.access", d.log.access),
            },
            rules: read_rules(r),
        };
        if config.server.listen.is_empty() {
            r.errors.push("server.listen: it is empty; name at least one address, such as \"127.0.0.1:8080\"".into());
        }
        if config.admin.token.is_empty()
            && let Some(listen) = config.admin.listen.as_ref().filter(|listen| !is_local(listen))
        {
            r.errors.push(format!(
                "admin.token: it is empty, and admin.listen = \"{listen}\" can be reached from other machines; set a token, or listen on a loopback address or a unix socket"
            ));
        }
        r.errors.extend(config.address_clashes());
        config
    }
}

const SET_COOKIE: &[(&str, SetCookie)] = &[
    ("never", SetCookie::Never),
    ("strip", SetCookie::Strip),
    ("explicit", SetCookie::Explicit),
    ("rfc", SetCookie::Rfc),
];

const REQUEST_DIRECTIVES: &[(&str, RequestDirectives)] = &[
    ("honour", RequestDirectives::Honour),
    ("bound", RequestDirectives::Bound),
    ("ignore", RequestDirectives::Ignore),
];

fn read_upstream(r: &mut Reader, d: &upstream::Config) -> upstream::Config {
    upstream::Config {
        address: r.one("upstream.url", d.address.clone(), upstream_url),
        connect_timeout: r.duration("upstream.connect_timeout", d.connect_timeout),
        response_timeout: r.duration("upstream.response_timeout", d.response_timeout),
        body_timeout: r.duration("upstream.body_timeout", d.body_timeout),
        idle_timeout: r.duration("upstream.idle_timeout", d.idle_timeout),
        max_idle: r.int("upstream.max_idle", d.max_idle, 0..=100_000),
        host: r.one("upstream.host", d.host.clone(), upstream_host),
        breaker_failures: u32_of(r.int("upstream.breaker_failures", 5, 0..=1_000_000)),
        breaker_pause: r.duration("upstream.breaker_pause", d.breaker_pause),
        buffer_request: r.size("upstream.buffer_request", d.buffer_request, 0, 1 << 30),
        buffer_response: r.size("upstream.buffer_response", d.buffer_response, 0, 1 << 30),
        spool: r.size("upstream.spool", d.spool, 0, 1 << 50),
        max_headers: r.int("upstream.max_headers", d.max_headers, 1..=10_000),
        max_header_size: usize_of(r.size("upstream.max_header_size", d.max_header_size as u64, 1 << 10, 16 << 20)),
    }
}

fn read_durable(r: &mut Reader, d: &store::DurableConfig) -> store::DurableConfig {
    let endpoint_url = r.one("durable.endpoint_url", String::new(), endpoint);
    let region = r.one("durable.region", String::new(), |text| Ok(text.to_owned()));
    let path_style = r.flag("durable.path_style", false);
    let mut location = r.one("durable.url", d.location.clone(), durable_url);
    if let Location::S3 { config, .. } = &mut location {
        *config = S3Config { bucket: config.bucket.clone(), endpoint_url, region, path_style };
    }
    store::DurableConfig {
        location,
        required: r.flag("durable.required", d.required),
        capacity: r.size("durable.capacity", d.capacity, 0, 1 << 50),
        lookup_timeout: r.duration("durable.lookup_timeout", d.lookup_timeout),
        min_lifetime: r.duration_or_zero("durable.min_lifetime", d.min_lifetime),
        retain: r.duration_or_zero("durable.retain", d.retain),
        inline_size: r.size("durable.inline_size", d.inline_size, 0, 64 << 20),
        max_object_size: r.size("durable.max_object_size", d.max_object_size, 0, 32 << 30),
        uploads: r.int("durable.uploads", d.uploads, 0..=1024),
        min_upload_rate: r.size("durable.min_upload_rate", d.min_upload_rate, 1 << 10, 1 << 40),
        queue_objects: r.int("durable.queue_objects", d.queue_objects, 1..=10_000_000),
        queue_bytes: r.size("durable.queue_bytes", d.queue_bytes, 1 << 10, 1 << 40),
        writers: r.int("durable.writers", d.writers, 1..=1024),
        drain_timeout: r.duration_or_zero("durable.drain_timeout", d.drain_timeout),
        poll_interval: r.duration("durable.poll_interval", d.poll_interval),
        announce_interval: r.duration("durable.announce_interval", d.announce_interval),
        breaker_failures: u32_of(r.int("durable.breaker_failures", 5, 0..=1_000_000)),
        breaker_pause: r.duration("durable.breaker_pause", d.breaker_pause),
        after_hits: u8::try_from(r.int("durable.after_hits", usize::from(d.after_hits), 0..=255)).unwrap_or(1),
        monthly_writes: u64::try_from(r.int("durable.monthly_writes", 0, 0..=1_000_000_000_000)).unwrap_or(0),
        prices: Prices {
            write: r.price("durable.price_write", d.prices.write),
            read: r.price("durable.price_read", d.prices.read),
        },
    }
}

fn read_rules(r: &mut Reader) -> Vec<Rule> {
    let Some(setting) = r.take("rule") else { return Vec::new() };
    let value = match setting.value {
        Given::Typed(value) => value,
        Given::Text(text) => match format!("rule = {text}").parse::<toml::Table>() {
            Ok(mut table) => table.remove("rule").unwrap_or(Value::Array(Vec::new())),
            Err(_) => Value::String(text),
        },
    };
    let Value::Array(tables) = value else {
        r.errors.push(format!("{}rule: rules are tables, each under its own [[rule]]", setting.from));
        return Vec::new();
    };
    tables.into_iter().enumerate().filter_map(|(index, table)| read_rule(r, index, table, &setting.from)).collect()
}

fn read_rule(r: &mut Reader, index: usize, table: Value, from: &str) -> Option<Rule> {
    let prefix = format!("rule[{index}]");
    let Value::Table(table) = table else {
        r.errors.push(format!("{from}{prefix}: a rule is a table, under [[rule]]"));
        return None;
    };
    for (key, value) in table {
        // What the environment or `--set` says of the same key goes before the file.
        let setting = Setting { value: Given::Typed(value), from: from.to_owned() };
        r.settings.entry(format!("{prefix}.{key}")).or_insert(setting);
    }
    let key = |name: &str| format!("{prefix}.{name}");
    if !r.settings.contains_key(&key("path")) {
        r.errors.push(format!("{from}{prefix}.path: it is missing; a rule is for some paths, such as \"/static/*\""));
    }
    let d = Rule::default();
    Some(Rule {
        path: r.one(&key("path"), d.path, rule_path),
        timeout: r.optional_duration(&key("timeout")),
        override_timeout: r.optional_duration(&key("override_timeout")),
        stale_while_revalidate: r.optional_duration(&key("stale_while_revalidate")),
        stale_if_error: r.optional_duration(&key("stale_if_error")),
        stale_if_unreachable: r.optional_duration(&key("stale_if_unreachable")),
        set_cookie: r.optional_word(&key("set_cookie"), SET_COOKIE),
        request_directives: r.optional_word(&key("request_directives"), REQUEST_DIRECTIVES),
        bypass: r.flag(&key("bypass"), d.bypass),
        collapse: r.flag(&key("collapse"), d.collapse),
        early_refresh: r.fraction(&key("early_refresh")),
        ranges: r.word(
            &key("ranges"),
            d.ranges,
            &[("auto", Ranges::Auto), ("whole", Ranges::Whole), ("forward", Ranges::Forward)],
        ),
        query: QueryRules {
            ignore: r.list(&key("ignore_query"), &[], |text| Ok(text.to_owned())),
            sort: r.flag(&key("sort_query"), false),
        },
        durability: if r.flag(&key("durable"), true) { Durability::Durable } else { Durability::MemoryOnly },
        tags: r.list(&key("tags"), &[], tag),
        transfer: Overrides {
            buffer_request: r.optional_size(&key("buffer_request"), 1 << 30),
            buffer_response: r.optional_size(&key("buffer_response"), 1 << 30),
            spool: r.optional_size(&key("spool"), 1 << 50),
            min_body_rate: r.optional_size(&key("min_body_rate"), 1 << 40),
            response_timeout: r.optional_timeout(&key("response_timeout")),
            body_timeout: r.optional_timeout(&key("body_timeout")),
        },
    })
}

/// The settings that were given, and the mistakes that were found.
#[derive(Debug, Default)]
struct Reader {
    settings: BTreeMap<String, Setting>,
    known: Vec<String>,
    errors: Vec<String>,
}

impl Reader {
    fn set(&mut self, key: String, value: Given, from: String) {
        self.settings.insert(key, Setting { value, from });
    }

    fn read_file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_text(&path.display().to_string(), &text),
            Err(error) => self.errors.push(format!("{}: it can't be read: {error}", path.display())),
        }
    }

    fn read_text(&mut self, name: &str, text: &str) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                let at = error.span().unwrap_or_default();
                let why = match error.message() {
                    "duplicate key" => duplicate(text, at.clone()),
                    message => message.to_owned(),
                };
                self.errors.push(format!("{name}: line {}: {why}", line_of(text, at.start)));
                return;
            }
        };
        let from = format!("{name}: ");
        for (section, value) in table {
            match value {
                Value::Table(keys) if section != "rule" => {
                    for (key, value) in keys {
                        self.set(format!("{section}.{key}"), Given::Typed(value), from.clone());
                    }
                }
                value => self.set(section, Given::Typed(value), from.clone()),
            }
        }
    }

    /// `LARDER_SECTION__KEY`. Other variables that begin with `LARDER_` are left alone: container
    /// platforms make them up for services of that name.
    fn read_variable(&mut self, name: &str, value: &str) {
        let Some((section, key)) = name.strip_prefix("LARDER_").and_then(|rest| rest.split_once("__")) else { return };
        let key = format!("{}.{}", section.to_ascii_lowercase(), key.to_ascii_lowercase());
        self.set(key, Given::Text(unquoted(value)), format!("{name}: "));
    }

    fn read_set(&mut self, set: &str) {
        match set.split_once('=') {
            Some((key, value)) => {
                self.set(key.trim().to_owned(), Given::Text(unquoted(value.trim())), "--set ".into());
            }
            None => self.errors.push(format!("--set {set}: write it as section.key=value")),
        }
    }

    fn take(&mut self, key: &str) -> Option<Setting> {
        self.known.push(key.to_owned());
        self.settings.remove(key)
    }

    /// Reads `key` with `read`, which is given the setting's value; a mistake is noted, and the
    /// default goes on in its place.
    fn value<T>(&mut self, key: &str, default: T, allowed: &str, read: impl FnOnce(&Given) -> Result<T, String>) -> T {
        let Some(setting) = self.take(key) else { return default };
        match read(&setting.value) {
            Ok(value) => value,
            Err(why) => {
                let why = if why.is_empty() { allowed.to_owned() } else { why };
                self.errors.push(format!("{}{key}: {} {why}", setting.from, shown(&setting.value)));
                default
            }
        }
    }

    fn one<T>(&mut self, key: &str, default: T, read: impl FnOnce(&str) -> Result<T, String>) -> T {
        self.value(key, default, "is not a string", |given| read(given.text().ok_or_else(String::new)?))
    }

    fn list<T: Clone>(&mut self, key: &str, default: &[T], read: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        self.value(key, default.to_vec(), "is not a list of strings", |given| {
            let items = given.strings().ok_or_else(String::new)?;
            items.iter().map(|item| read(item).map_err(|why| format!("has \"{item}\", which {why}"))).collect()
        })
    }

    fn word<T: Copy>(&mut self, key: &str, default: T, words: &[(&str, T)]) -> T {
        let allowed = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ");
        self.value(key, default, &format!("is not one of {allowed}"), |given| {
            let text = given.text().ok_or_else(String::new)?;
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(String::new)
        })
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        self.value(key, default, "is not true or false", |given| match given {
            Given::Typed(Value::Boolean(flag)) => Ok(*flag),
            Given::Text(text) => text.parse().map_err(|_| String::new()),
            Given::Typed(_) => Err(String::new()),
        })
    }

    fn int(&mut self, key: &str, default: usize, range: std::ops::RangeInclusive<usize>) -> usize {
        let allowed = format!("is not a whole number from {} to {}", range.start(), range.end());
        self.value(key, default, &allowed, |given| {
            let number = match given {
                Given::Typed(Value::Integer(number)) => usize::try_from(*number).ok(),
                Given::Text(text) => text.parse().ok(),
                Given::Typed(_) => None,
            };
            number.filter(|number| range.contains(number)).ok_or_else(String::new)
        })
    }

    /// A part of the whole, from 0 up to but not including 1, in thousandths.
    fn fraction(&mut self, key: &str) -> u16 {
        self.value(key, 0, "is not a number from 0 to 0.999, such as 0.1", |given| {
            let number = match given {
                Given::Typed(Value::Float(number)) => Some(*number),
                Given::Typed(Value::Integer(0)) => Some(0.0),
                Given::Text(text) => text.parse().ok(),
                Given::Typed(_) => None,
            };
            let thousandths = number.map(|number| (number * 1000.0).round()).filter(|n| (0.0..1000.0).contains(n));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 0..1000")]
            thousandths.map(|thousandths| thousandths as u16).ok_or_else(String::new)
        })
    }

    /// What a million requests cost.
    fn price(&mut self, key: &str, default: f64) -> f64 {
        self.value(key, default, "is not a price of a million requests, such as 5.0", |given| {
            #[expect(clippy::cast_precision_loss, reason = "a price")]
            let number = match given {
                Given::Typed(Value::Float(number)) => Some(*number),
                Given::Typed(Value::Integer(number)) => Some(*number as f64),
                Given::Text(text) => text.parse().ok(),
                Given::Typed(_) => None,
            };
            number.filter(|price| (0.0..1e9).contains(price)).ok_or_else(String::new)
        })
    }

    fn duration(&mut self, key: &str, default: Duration) -> Duration {
        self.value(
            key,
            default,
            "is not a duration above zero, such as \"250ms\", \"30s\", \"5m\", \"1h\" or \"7d\"",
            |given| {
                parse_duration(given.text().ok_or_else(String::new)?)
                    .filter(|duration| !duration.is_zero())
                    .ok_or_else(String::new)
            },
        )
    }

    fn duration_or_zero(&mut self, key: &str, default: Duration) -> Duration {
        self.value(key, default, DURATION, |given| {
            parse_duration(given.text().ok_or_else(String::new)?).ok_or_else(String::new)
        })
    }

    fn optional_word<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let optional: Vec<(&str, Option<T>)> = words.iter().map(|(word, value)| (*word, Some(*value))).collect();
        self.word(key, None, &optional)
    }

    fn optional_duration(&mut self, key: &str) -> Option<Duration> {
        self.value(key, None, DURATION, |given| {
            parse_duration(given.text().ok_or_else(String::new)?).map(Some).ok_or_else(String::new)
        })
    }

    /// One that is set is above zero.
    fn optional_timeout(&mut self, key: &str) -> Option<Duration> {
        self.settings.contains_key(key).then(|| self.duration(key, Duration::MAX)).or_else(|| {
            self.known.push(key.to_owned());
            None
        })
    }

    fn optional_size(&mut self, key: &str, most: u64) -> Option<u64> {
        self.settings.contains_key(key).then(|| self.size(key, 0, 0, most)).or_else(|| {
            self.known.push(key.to_owned());
            None
        })
    }

    fn size(&mut self, key: &str, default: u64, least: u64, most: u64) -> u64 {
        let allowed = format!(
            "is not a size from {} to {}, such as \"512KiB\", \"64MiB\" or \"2GiB\"",
            format_size(least),
            format_size(most)
        );
        self.value(key, default, &allowed, |given| {
            let size = match given {
                Given::Typed(Value::Integer(bytes)) => u64::try_from(*bytes).ok(),
                given => given.text().and_then(parse_size),
            };
            size.filter(|size| (least..=most).contains(size)).ok_or_else(String::new)
        })
    }

    /// What is left was asked for by no one.
    fn finish(mut self, config: Config) -> Result<Config, ConfigErrors> {
        for (key, setting) in std::mem::take(&mut self.settings) {
            let hint = nearest(&self.known, &key)
                .map_or_else(String::new, |known| format!("; the nearest key is \"{known}\""));
            self.errors.push(format!("{}{key}: there is no such key{hint}", setting.from));
        }
        if self.errors.is_empty() { Ok(config) } else { Err(ConfigErrors(self.errors)) }
    }
}

const DURATION: &str = "is not a duration, such as \"0s\", \"250ms\", \"30s\", \"5m\", \"1h\" or \"7d\"";

/// A value that is quoted as in the file, without its quotation marks.
fn unquoted(value: &str) -> String {
    let is_quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    let parsed = is_quoted.then(|| format!("value = {value}").parse::<toml::Table>().ok()).flatten();
    match parsed.as_ref().and_then(|table| table.get("value")) {
        Some(Value::String(text)) => text.clone(),
        Some(_) | None => value.to_owned(),
    }
}

impl Given {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Typed(Value::String(text)) | Self::Text(text) => Some(text),
            Self::Typed(_) => None,
        }
    }

    /// A list; a lone string is a list of one. From the environment: separated by commas.
    fn strings(&self) -> Option<Vec<String>> {
        match self {
            Self::Typed(Value::String(text)) => Some(vec![text.clone()]),
            Self::Typed(Value::Array(items)) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
            Self::Typed(_) => None,
            Self::Text(text) if text.is_empty() => Some(Vec::new()),
            Self::Text(text) => match format!("list = {text}").parse::<toml::Table>() {
                // An IPv6 address begins with a bracket, too.
                Ok(table) if text.starts_with('[') => Self::Typed(table.get("list")?.clone()).strings(),
                Ok(_) | Err(_) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
            },
        }
    }
}

fn shown(given: &Given) -> String {
    match given {
        Given::Typed(value) => value.to_string(),
        Given::Text(text) => format!("\"{text}\""),
    }
}

fn u32_of(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn usize_of(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() { Err("names no path after unix:".into()) } else { Ok(Listen::Unix(path.into())) };
    }
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err("is not host:port, such as \"127.0.0.1:8080\", or \"unix:/path\"".into());
    }
    Ok(Listen::Tcp(text.to_owned()))
}

fn socket_mode(text: &str) -> Result<u32, String> {
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 && mode & 0o222 != 0 => Ok(mode),
        Ok(mode) if is_octal && mode <= 0o777 => Err("lets nobody connect: that takes the right to write".into()),
        Ok(_) | Err(_) => Err("is not the mode of a file in octal, such as \"0660\" or \"0600\"".into()),
    }
}

fn admin_token(text: &str) -> Result<String, String> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("has characters that a field can't carry: use letters, digits and signs, without white space".into())
    }
}

fn admin_host(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !text.is_empty() && text.len() <= 253 && text.chars().all(is_name) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("is not the name of a host, without scheme and port, such as \"larder.internal\"".into())
    }
}

fn admin_listen(text: &str) -> Result<Option<Listen>, String> {
    if text == "off" {
        return Ok(None);
    }
    listen(text).map(Some).map_err(|why| format!("{why}, or \"off\""))
}

fn is_local(address: &Listen) -> bool {
    match address {
        Listen::Unix(_) => true,
        Listen::Tcp(text) => {
            let host = text.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "is not an address or a network, such as \"10.0.0.0/8\"".into())
}

/// A further field to believe trusted proxies in.
fn trusted_field(text: &str) -> Result<HeaderName, String> {
    let name = field_name(text)?;
    if !claims::is_plain(name.as_str()) {
        return Err("has other characters than letters, digits and hyphens; see server.allowed_fields".into());
    }
    match claims::claim(name.as_str()) {
        Some(Claim::For | Claim::Proto | Claim::Host) => {
            Err("is believed of trusted proxies as it is, and need not be listed".into())
        }
        Some(Claim::Tls) => Err("only says the scheme, which X-Forwarded-Proto says".into()),
        _ if is_read_here(&name) => Err("is one that Larder itself reads or writes, and can't be believed".into()),
        Some(Claim::Address | Claim::Method | Claim::Other) | None => Ok(name),
    }
}

/// A field name with other characters than letters, digits and hyphens that may pass.
fn allowed_field(text: &str) -> Result<HeaderName, String> {
    let name = field_name(text)?;
    if claims::is_plain(name.as_str()) {
        return Err("has letters, digits and hyphens only, and passes as it is".into());
    }
    let twin = HeaderName::try_from(claims::twin(name.as_str())).map_err(|_| "is not the name of a field")?;
    if is_read_here(&twin) || claims::claim(twin.as_str()).is_some() {
        return Err(format!("could be taken for {twin} by an application, which must not come from a client that way"));
    }
    Ok(name)
}

/// Returns whether a field decides here about framing, connections, conditions, caching, or the origin asked.
fn is_read_here(name: &HeaderName) -> bool {
    let mut fields = http::HeaderMap::new();
    fields.insert(name.clone(), http::HeaderValue::from_static("x"));
    Present::of(&fields).has(Present::ANY_BUT_CLAIMS)
        || fields::is_hop_by_hop(name)
        || matches!(
            *name,
            http::header::HOST
                | http::header::CONTENT_LENGTH
                | http::header::AUTHORIZATION
                | http::header::COOKIE
                | http::header::EXPECT
                | http::header::TRAILER
                | http::header::IF_RANGE
                | http::header::VIA
                | http::header::MAX_FORWARDS
        )
}

fn upstream_url(text: &str) -> Result<Address, String> {
    const ALLOWED: &str = "is not \"http://host:port\" or \"unix:/path\"";
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() { Err(ALLOWED.into()) } else { Ok(Address::Unix(PathBuf::from(path))) };
    }
    if text.starts_with("https://") {
        return Err(
            "is https, which the connection to the origin can't be yet; put the origin on http or a unix socket".into(),
        );
    }
    let uri: Uri = text.parse().map_err(|_| ALLOWED.to_owned())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(|| ALLOWED.to_owned())?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
        return Err(format!("{ALLOWED}; paths of clients are passed on as they are, so it can't have one"));
    }
    let port = match authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':')) {
        Some(digits) => digits.parse().ok().filter(|port| *port != 0).ok_or_else(|| ALLOWED.to_owned())?,
        None => 80,
    };
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    if host.is_empty() { Err(ALLOWED.into()) } else { Ok(Address::Tcp { host, port }) }
}

fn upstream_host(text: &str) -> Result<Option<String>, String> {
    if text == "preserve" {
        return Ok(None);
    }
    match normal_authority(text, "http") {
        Some(_) => Ok(Some(text.to_owned())),
        None => Err("is not \"preserve\" or a host name for every request".into()),
    }
}

fn key_prefix(text: &str) -> Result<String, String> {
    if text.len() > 128 { Err("is longer than 128 bytes".into()) } else { Ok(text.to_owned()) }
}

fn durable_url(text: &str) -> Result<Location, String> {
    const ALLOWED: &str = "is not \"file:/directory\", \"s3://bucket/prefix\" or \"off\"";
    if text == "off" {
        return Ok(Location::Off);
    }
    if let Some(path) = text.strip_prefix("file:") {
        let path = match path.strip_prefix("//") {
            Some(path) if !path.starts_with('/') => return Err(format!("names a host; it {ALLOWED}")),
            Some(path) => path,
            None => path,
        };
        return if path.is_empty() { Err(ALLOWED.into()) } else { Ok(Location::File(path.into())) };
    }
    let rest = text.strip_prefix("s3://").ok_or_else(|| ALLOWED.to_owned())?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let is_bucket = (3..=63).contains(&bucket.len())
        && bucket.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b));
    if !is_bucket {
        return Err(format!("names no bucket (3 to 63 lower-case letters, digits, dots and hyphens); it {ALLOWED}"));
    }
    let config =
        S3Config { bucket: bucket.to_owned(), endpoint_url: String::new(), region: String::new(), path_style: false };
    Ok(Location::S3 { config, prefix: prefix.trim_matches('/').to_owned() })
}

fn endpoint(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    match text.parse::<Uri>() {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some() => {
            Ok(text.to_owned())
        }
        Ok(_) | Err(_) => Err("is not an http or https URL".into()),
    }
}

fn log_level(text: &str) -> Result<String, String> {
    if ["error", "warn", "info", "debug", "trace"].contains(&text) {
        Ok(text.to_owned())
    } else {
        Err("is not one of \"error\", \"warn\", \"info\", \"debug\" or \"trace\"".into())
    }
}

fn rule_path(text: &str) -> Result<String, String> {
    if text.starts_with('/') || text.starts_with('*') {
        Ok(text.to_owned())
    } else {
        Err("does not start with / or *".into())
    }
}

fn target(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| "is not a field name".to_owned())?;
    if name.as_str().ends_with("-cache-control") {
        Ok(name)
    } else {
        Err("is not a targeted field: their names end in -Cache-Control (RFC 9213)".into())
    }
}

fn field_name(text: &str) -> Result<HeaderName, String> {
    text.parse().map_err(|_| "is not the name of a field".into())
}

fn tag(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || text.bytes().any(|b| b.is_ascii_whitespace() || b == b',') {
        Err("is not a tag: 1 to 256 bytes without white space or commas".into())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests;
