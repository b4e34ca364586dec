//! `larder lifecycle`, `larder sweep` and `larder keys`: the upkeep of a bucket or directory. None needs a running Larder, and
//! all may run beside any number.

use std::time::Duration;

use crate::base::{Clock, Metrics};
use crate::config::Config;
use crate::rfc9111::freshness::HEURISTIC_MAX;
use crate::store::s3::{Lifecycle, S3Bucket};
use crate::store::{Durable, KeptKey, Location, ObjectNames, StoreErrorKind};

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

/// The error of upkeep without a durable tier.
const OFF: &str = "durable.url is \"off\": there is nothing to keep up";

/// Compares the bucket's lifecycle rules with those that fit the configuration, or installs these. Returns lines for
/// people.
pub async fn lifecycle(config: &Config, longest: Option<Duration>, apply: bool) -> Result<Vec<String>, String> {
    let (bucket, names) = match &config.durable.location {
        Location::Off => return Err(OFF.into()),
        Location::File(_) => {
            return Err("a directory has no lifecycle rules: run \"larder sweep\" from time to time".into());
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
        return Ok(lines);
    }
    let mut lines = vec![format!("{:#}", wanted.to_json())];
    match bucket.compare_lifecycle(&wanted).await {
        Ok(changes) => lines.extend(changes),
        // The rules are printed all the same: an operator with the right may install them.
        Err(error) if error.kind() == StoreErrorKind::Refused && bucket.is_listable(names.root()).await => {
            lines.push(format!("what the bucket has now can't be read: {error}"));
        }
        Err(error) => return Err(error.to_string()),
    }
    Ok(lines)
}

/// Reclaims at once what a running Larder reclaims in time. Returns lines for people.
pub async fn sweep(config: &Config, sweep: Sweep, clock: &Clock) -> Result<Vec<String>, String> {
    let swept = Durable::sweep(&config.durable, &config.cache.key_prefix, sweep, clock);
    let swept = swept.await.map_err(|error| format!("durable.url: {error}"))?.ok_or(OFF)?;
    Ok(swept.in_words(sweep.is_dry))
}

/// Says which keys are listed.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The beginning of their URLs; or a path, of any host. Empty: all.
    pub prefix: String,
    /// A tag that they have. Empty: any, or none.
    pub tag: String,
}

impl Wanted {
    fn has(&self, key: &KeptKey) -> bool {
        let path = || key.url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        let is_below = key.url.starts_with(&self.prefix) || path().is_some_and(|path| path.starts_with(&self.prefix));
        is_below && (self.tag.is_empty() || key.tags.contains(&self.tag))
    }
}

/// Lists what the durable tier holds, one line a response.
pub async fn keys(config: &Config, wanted: &Wanted, clock: &Clock) -> Result<Vec<String>, String> {
    let keys = Durable::keys(&config.durable, &config.cache.key_prefix, clock);
    let mut keys = keys.await.map_err(|error| format!("durable.url: {error}"))?.ok_or(OFF)?;
    keys.retain(|key| wanted.has(key));
    keys.sort_by(|a, b| a.url.cmp(&b.url));
    let rows = keys.iter().map(|key| {
        let fresh = match u64::try_from(key.fresh_millis) {
            Ok(_) if key.fresh_millis == i64::MAX => "ever".to_owned(),
            Ok(millis) => short(millis),
            Err(_) => format!("-{}", short(key.fresh_millis.unsigned_abs())),
        };
        let age = short(u64::try_from(key.age.as_millis()).unwrap_or(u64::MAX));
        [format!("{}", key.size), age, fresh, key.pack.clone(), key.url.replace('\0', "*")]
    });
    let head = ["BYTES", "AGE", "FRESH FOR", "PACK", "URL"].map(str::to_owned);
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |[size, age, fresh, pack, url]: &[String; 5]| {
        format!("{size:>0$}  {age:>1$}  {fresh:>2$}  {pack:<3$}  {url}", widths[0], widths[1], widths[2], widths[3])
    };
    Ok(rows.iter().map(line).collect())
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
