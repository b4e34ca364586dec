//! `larder lifecycle` and `larder sweep`: the upkeep of a bucket or directory. Neither needs a running Larder, and both may
//! run beside any number.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::base::{Clock, Metrics};
use crate::config::Config;
use crate::entry::encoding::{DecodeError, Object, decode, key_of, separate_body_of};
use crate::proxy::Rules;
use crate::rfc9111::freshness::HEURISTIC_MAX;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary::Nominated;
use crate::store::s3::{Lifecycle, S3Bucket};
use crate::store::{Location, MAX_HEAD, Namespace, ObjectNames, Place, StoreError, StoreErrorKind, open_place};

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

/// Removes separate bodies that nothing leads to, leftovers of interrupted writes, and in a directory what has expired.
pub async fn sweep(config: &Config, sweep: Sweep, clock: &Clock) -> Result<Swept, String> {
    let opened = open_place(&config.durable, &config.cache.key_prefix, &Metrics::new(1), clock).await;
    let (place, names) = opened.ok_or(OFF)?;
    place.find_cache(names.root()).await.map_err(|error| format!("durable.url: {error}"))?;
    let rules = Rules::new(&config.cache, &config.transfer(), config.rules.clone(), Nominated::default());
    let sweeper = Sweeper { place, names, config, rules, sweep, clock };
    sweeper.run().await.map_err(|error| error.to_string())
}

struct Sweeper<'a> {
    place: Arc<dyn Place>,
    names: ObjectNames,
    config: &'a Config,
    rules: Rules,
    sweep: Sweep,
    clock: &'a Clock,
}

impl Sweeper<'_> {
    async fn run(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept { bodies: 0, orphans: 0, expired: 0, unfinished: Ok(0) };
        let age = i64::try_from(self.sweep.min_age.as_millis()).unwrap_or(i64::MAX);
        // Objects are dated by the clock of the place.
        let before = self.clock.now().plus_millis(self.place.clock_offset()).plus_millis(-age);
        for first in 0..=u8::MAX {
            self.sweep_shard(first, before, &mut swept).await?;
        }
        let (root, is_dry) = (self.names.root(), self.sweep.is_dry);
        // The right to list uploads can't be narrowed to a prefix, and is often refused.
        swept.unfinished = match self.place.remove_unfinished(root, before, is_dry).await {
            Err(error) if error.kind() == StoreErrorKind::Refused => Err(error.to_string()),
            unfinished => Ok(unfinished?),
        };
        Ok(swept)
    }

    /// Sweeps the bodies and objects whose names begin with one byte: their names fit into memory.
    async fn sweep_shard(&self, first: u8, before: Timestamp, swept: &mut Swept) -> Result<(), StoreError> {
        let bodies = self.place.list_all(&self.names.shard(Namespace::Bodies, first), "").await?;
        swept.bodies += bodies.len() as u64;
        // Old bodies, by the half of the key's hash that their names begin with.
        let mut suspects: HashMap<u64, Vec<(u128, String)>> = HashMap::new();
        for body in bodies.into_iter().filter(|body| body.modified < before) {
            if let Some((id, false)) = self.names.parse(Namespace::Bodies, &body.name) {
                suspects.entry(half(id)).or_default().push((id, body.name));
            }
        }
        let is_local = self.place.is_local();
        if suspects.is_empty() && !is_local {
            return Ok(());
        }
        // Listed after the bodies: a head that is written meanwhile leads to a younger body, or to one that another head
        // led to before.
        let mut led_to: HashSet<u128> = HashSet::new();
        for listed in self.place.list_all(&self.names.shard(Namespace::Objects, first), "").await? {
            let Some((hash, _)) = self.names.parse(Namespace::Objects, &listed.name) else { continue };
            if !(is_local || suspects.contains_key(&half(hash))) {
                continue;
            }
            let object = match self.place.get(&listed.name, MAX_HEAD).await {
                Ok(object) => object,
                Err(error) if error.kind() == StoreErrorKind::Absent => continue,
                Err(error) => return Err(error),
            };
            if is_local && listed.modified < before && self.is_expired(&object) {
                swept.expired += 1;
                self.delete(&listed.name).await?;
                // Its body is an orphan now, and is removed with those if it is old enough.
                continue;
            }
            led_to.extend(separate_body_of(&object));
        }
        for (id, name) in suspects.into_values().flatten() {
            if !led_to.contains(&id) {
                swept.orphans += 1;
                self.delete(&name).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), StoreError> {
        if self.sweep.is_dry { Ok(()) } else { self.place.delete(name).await }
    }

    /// Returns whether an object is past its freshness and retention, or can't be read. One of another version may be of
    /// use to another Larder.
    fn is_expired(&self, object: &Bytes) -> bool {
        let key = match key_of(object) {
            Ok(key) => key,
            Err(error) => return !matches!(error, DecodeError::Version(_)),
        };
        let path = key.parts().map_or("/", |parts| parts.path).to_owned();
        let policy = &self.rules.matching(&path).policy.lifetimes;
        let retain = i64::try_from(self.config.durable.retain.as_millis()).unwrap_or(i64::MAX);
        match decode(object, &key, policy) {
            Ok(Object::Response { head, .. }) => head.freshness.remaining(self.clock.now()).saturating_add(retain) < 0,
            // Keeps a record: it is small, and its variants are examined one by one.
            Ok(Object::Vary(_)) => false,
            Err(DecodeError::Version(_)) => false,
            Err(_) => true,
        }
    }
}

fn half(hash: u128) -> u64 {
    u64::try_from(hash >> 64).unwrap_or(u64::MAX)
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
