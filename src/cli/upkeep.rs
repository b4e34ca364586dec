//! `larder lifecycle`, `larder sweep` and `larder keys`: the upkeep of a bucket or directory. None needs a running Larder, and
//! all may run beside any number.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::base::{Clock, Metrics, readable_size};
use crate::config::Config;
use crate::proxy::{Schemes, prefixes};
use crate::rfc9111::freshness::HEURISTIC_MAX;
use crate::rfc9111::key::{CacheKey, VALUE_SCHEME};
use crate::rfc9111::timestamp::Timestamp;
use crate::store::s3::{Lifecycle, S3Bucket};
use crate::store::{Durable, KeptKey, Location, ObjectNames, StoreErrorKind, begins_with};

pub(crate) use crate::store::Sweep;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Returns the age in days at which no object is of use any more: the longest lifetime that the configuration grants, or
/// `longest`, and `durable.retain`.
pub fn days(config: &Config, longest: Option<Duration>) -> i32 {
    let rules = config.rules.iter().flat_map(|rule| [rule.timeout, rule.override_timeout]).flatten();
    let heuristic = Duration::from_millis(u64::try_from(HEURISTIC_MAX).unwrap_or(0));
    let granted = rules.chain([config.cache.default_timeout]).chain(longest).fold(heuristic, Duration::max);
    let whole = granted.saturating_add(config.durable.retain).as_secs().div_ceil(DAY.as_secs());
    // Services round to whole days: one more.
    i32::try_from(whole.saturating_add(1)).unwrap_or(i32::MAX)
}

/// The output of a command.
#[derive(Debug, Default)]
pub struct Told {
    /// Lines for standard output.
    pub lines: Vec<String>,
    /// Lines about those, for standard error: what is piped elsewhere is the lines alone.
    pub notes: Vec<String>,
}

/// Returns the error of a command without a durable tier.
fn off(nothing_to: &str) -> String {
    format!("durable.url is \"off\": there is nothing to {nothing_to}")
}

/// Compares the bucket's lifecycle rules with those that fit the configuration, or installs these.
pub async fn lifecycle(config: &Config, longest: Option<Duration>, apply: bool) -> Result<Told, String> {
    let (bucket, names) = match &config.durable.location {
        Location::Off => return Err(off("give rules to")),
        Location::File(_) => {
            return Err("a directory has no lifecycle rules, and needs none: Larder frees its space itself".into());
        }
        Location::S3 { config: s3, prefix } => {
            let bucket = S3Bucket::connect(s3.clone(), Metrics::new(1), Clock::system()).await;
            (bucket, ObjectNames::new(prefix, &config.cache.key_prefix))
        }
    };
    let wanted = Lifecycle { root: names.root().to_owned(), days: days(config, longest) };
    if apply {
        let mut lines = bucket.install_lifecycle(&wanted).await.map_err(|error| error.to_string())?;
        lines.push("installed".into());
        return Ok(Told { lines, notes: Vec::new() });
    }
    let lines = vec![format!("{:#}", wanted.to_json())];
    match bucket.compare_lifecycle(&wanted).await {
        Ok(notes) => Ok(Told { lines, notes }),
        // The rules are printed all the same: an operator with the right may install them.
        Err(error) if error.kind() == StoreErrorKind::Refused && bucket.is_listable(names.root()).await => {
            Ok(Told { lines, notes: vec![format!("what the bucket has now can't be read: {error}")] })
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Reclaims at once what a running Larder reclaims in time.
pub async fn sweep(config: &Config, sweep: Sweep, clock: &Clock) -> Result<Told, String> {
    let swept = Durable::sweep(&config.durable, &config.cache.key_prefix, sweep, clock);
    let swept = swept.await.map_err(|error| format!("durable.url: {error}"))?.ok_or_else(|| off("sweep"))?;
    Ok(Told { lines: swept.in_words(sweep.is_dry), notes: Vec::new() })
}

/// Says which keys are listed, and how.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The beginning of their URLs under either scheme, or a path of any host, as for a purge. Empty: all.
    pub prefix: String,
    /// A tag that they have. Empty: any, or none.
    pub tag: String,
    /// True for a JSON object a line, false for a table.
    pub json: bool,
}

/// Lists what the durable tier holds, one line a response.
pub async fn keys(config: &Config, wanted: &Wanted, clock: &Clock) -> Result<Told, String> {
    let Wanted { prefix, tag, json } = wanted;
    let prefixes = match prefix.as_str() {
        "" => None,
        // Values are no pages, and listed with them all the same.
        prefix if prefix.split_once("://").is_some_and(|(scheme, _)| scheme == VALUE_SCHEME) => {
            Some(vec![prefix.to_owned()])
        }
        prefix => Some(prefixes(prefix, Schemes::Both)?),
    };
    let kept = Durable::keys(&config.durable, &config.cache.key_prefix, clock);
    let mut kept = kept.await.map_err(|error| format!("durable.url: {error}"))?.ok_or_else(|| off("list"))?;
    kept.retain(|kept| {
        let is_below = |prefixes: &Vec<String>| prefixes.iter().any(|prefix| begins_with(&kept.key, prefix));
        prefixes.as_ref().is_none_or(is_below) && (tag.is_empty() || kept.tags.contains(tag))
    });
    let bytes = kept.iter().map(|kept| kept.size).sum();
    let packs: BTreeSet<&String> = kept.iter().map(|kept| &kept.pack).collect();
    let total =
        format!("{}, {}, in {}", count(kept.len(), "response"), readable_size(bytes), count(packs.len(), "pack"));
    let mut kept: Vec<(String, KeptKey)> = kept.into_iter().map(|kept| (url(&kept.key), kept)).collect();
    kept.sort_by(|(a, one), (b, other)| (a, one.variant).cmp(&(b, other.variant)));
    let lines = if *json {
        kept.iter().map(|(url, kept)| kept_as_json(url, kept).to_string()).collect()
    } else {
        table(&kept, clock.now())
    };
    Ok(Told { lines, notes: vec![total] })
}

/// Returns the URL of a key. The star in the query of one says that it stands for several; behind that of a QUERY is the
/// beginning of the digest of its content.
fn url(key: &CacheKey) -> String {
    key.parts().map_or_else(String::new, |parts| {
        let query = parts.query.map_or_else(String::new, |query| format!("?{}", query.replace('\0', "*")));
        let content =
            key.content().map_or_else(String::new, |digest| format!(" QUERY {}", digest.get(..16).unwrap_or(digest)));
        format!("{}://{}{}{query}{content}", parts.scheme, parts.authority, parts.path)
    })
}

fn kept_as_json(url: &str, kept: &KeptKey) -> serde_json::Value {
    serde_json::json!({
        "url": if kept.key.has_content() { kept.key.to_url() } else { url.to_owned() },
        "content": kept.key.content(),
        "prefix": kept.key.parts().map(|parts| parts.prefix),
        "variant": (kept.variant != 0).then(|| format!("{:032x}", kept.variant)),
        "bytes": kept.size,
        "stored": kept.came.to_rfc3339(),
        "fresh_until": (!kept.lasts()).then(|| kept.fresh_until.to_rfc3339()),
        "tags": kept.tags,
        "pack": kept.pack,
        "offset": kept.offset,
    })
}

/// Returns the lines of a table: a head, and a line for each response.
fn table(kept: &[(String, KeptKey)], now: Timestamp) -> Vec<String> {
    let rows = kept.iter().map(|(url, kept)| {
        let fresh = kept.fresh_until.millis_since(now);
        let variant = if kept.variant == 0 { "-".into() } else { format!("{:08x}", kept.variant >> 96) };
        let tags = if kept.tags.is_empty() { "-".into() } else { kept.tags.join(",") };
        let age = short(u64::try_from(now.millis_since(kept.came)).unwrap_or(0));
        let fresh = match fresh {
            _ if kept.lasts() => "ever".to_owned(),
            fresh => format!("{}{}", if fresh < 0 { "-" } else { "" }, short(fresh.unsigned_abs())),
        };
        [kept.size.to_string(), age, fresh, kept.pack.clone(), variant, tags, url.clone()]
    });
    let head = ["BYTES", "AGE", "FRESH FOR", "PACK", "VARIANT", "TAGS", "URL"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let [w0, w1, w2, w3, w4, w5] = widths;
    let line = |[size, age, fresh, pack, variant, tags, url]: &[String; 7]| {
        format!("{size:>w0$}  {age:>w1$}  {fresh:>w2$}  {pack:<w3$}  {variant:<w4$}  {tags:<w5$}  {url}")
    };
    rows.iter().map(line).collect()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Returns a duration in its greatest unit.
fn short(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Runs `work` on a runtime of its own.
pub fn block_on<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_millis(200));
    done
}
