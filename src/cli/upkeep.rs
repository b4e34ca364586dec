//! `larder lifecycle` and `larder sweep`: what a bucket or directory needs from time to time. Neither needs a
//! running Larder, and both may run beside any number.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;

use crate::base::{Clock, Metrics};
use crate::config::Config;
use crate::entry::encoding::{DecodeError, Object, decode, key_of};
use crate::proxy::Rules;
use crate::rfc9111::freshness::HEURISTIC_MAX;
use crate::rfc9111::timestamp::Timestamp;
use crate::rfc9111::vary::Nominated;
use crate::store::s3::Lifecycle;
use crate::store::{Backend, BackendError, Kind, MAX_HEAD, Names, Trouble, body_of, place};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// After how many days nothing that the configuration speaks of is of use any more: the longest lifetime that it
/// grants, or `longest`, and `durable.retain`.
pub fn days(config: &Config, longest: Option<Duration>) -> i32 {
    let rules = config.rules.iter().flat_map(|rule| [rule.timeout, rule.override_timeout]).flatten();
    let heuristic = Duration::from_millis(u64::try_from(HEURISTIC_MAX).unwrap_or(0));
    let granted = rules.chain([config.cache.default_timeout]).chain(longest).fold(heuristic, Duration::max);
    let whole = granted.saturating_add(config.durable.retain).as_secs().div_ceil(DAY.as_secs());
    // Another one, since services round.
    i32::try_from(whole.saturating_add(1)).unwrap_or(i32::MAX)
}

async fn open(config: &Config) -> Result<(Backend, Names), String> {
    let metrics = Metrics::new(1);
    let place = place(&config.durable, &config.cache.key_prefix, &metrics, &Clock::system()).await;
    place.ok_or_else(|| "durable.url is \"off\": there is nothing to keep up".into())
}

/// The bucket's lifecycle rules that fit the configuration: printed, or installed; one line each, for people.
pub async fn lifecycle(config: &Config, longest: Option<Duration>, apply: bool) -> Result<Vec<String>, String> {
    let (backend, names) = open(config).await?;
    let Backend::S3(store) = &backend else {
        return Err("a directory has no lifecycle rules: run \"larder sweep\" from time to time".into());
    };
    let wanted = Lifecycle { root: names.root().to_owned(), days: days(config, longest) };
    if apply {
        let mut lines = store.install_lifecycle(&wanted).await.map_err(|error| error.to_string())?;
        lines.push("installed".into());
        return Ok(lines);
    }
    let mut lines = vec![format!("{:#}", wanted.to_json())];
    match store.compare_lifecycle(&wanted).await {
        Ok(changes) => lines.extend(changes),
        // They can be printed for somebody who has the right to install them.
        Err(error) if error.trouble == Trouble::Refused && store.is_there(names.root()).await => {
            lines.push(format!("what the bucket has now can't be read: {error}"));
        }
        Err(error) => return Err(error.to_string()),
    }
    Ok(lines)
}

/// What a sweep found, and removed unless it was told not to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Separate bodies that were looked at.
    pub bodies: u64,
    /// Those that no head leads to.
    pub orphans: u64,
    /// Responses past their retention, in a directory.
    pub expired: u64,
    /// Number of files left by interrupted writes; the reason it is not known, where it may not be looked for.
    pub unfinished: Result<u64, String>,
}

impl Swept {
    /// One line for people.
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

/// How a sweep is done.
#[derive(Clone, Copy, Debug)]
pub struct Sweep {
    /// What is younger is left alone: it may be that its head is about to be written.
    pub min_age: Duration,
    /// Only look.
    pub is_dry: bool,
}

/// Removes what nothing leads to any more.
pub async fn sweep(config: &Config, sweep: Sweep, clock: &Clock) -> Result<Swept, String> {
    let (backend, names) = open(config).await?;
    backend.look_for_cache(names.root()).await.map_err(|failure| format!("durable.url: {failure}"))?;
    let rules = Rules::new(&config.cache, &config.transfer(), config.rules.clone(), Nominated::default());
    let sweeper = Sweeper { backend: &backend, names: &names, config, rules, sweep, clock };
    sweeper.run().await.map_err(|error| error.to_string())
}

struct Sweeper<'a> {
    backend: &'a Backend,
    names: &'a Names,
    config: &'a Config,
    rules: Rules,
    sweep: Sweep,
    clock: &'a Clock,
}

impl Sweeper<'_> {
    async fn run(&self) -> Result<Swept, BackendError> {
        let mut swept = Swept { bodies: 0, orphans: 0, expired: 0, unfinished: Ok(0) };
        let age = i64::try_from(self.sweep.min_age.as_millis()).unwrap_or(i64::MAX);
        // By the clock of the place, which dates its objects.
        let before = self.clock.now().plus_millis(self.backend.clock_offset()).plus_millis(-age);
        for first in 0..=u8::MAX {
            self.sweep_shard(first, before, &mut swept).await?;
        }
        let (root, is_dry) = (self.names.root(), self.sweep.is_dry);
        let unfinished = match self.backend {
            Backend::S3(store) => store.end_uploads(root, before, is_dry).await,
            Backend::File(store) => store.remove_unfinished(root, before, is_dry).await,
            #[cfg(test)]
            Backend::Simulated(_) => Ok(0),
        };
        // The right to list uploads can't be narrowed to a prefix, so that there may be none.
        swept.unfinished = match unfinished {
            Err(error) if error.trouble == Trouble::Refused => Err(error.to_string()),
            unfinished => Ok(unfinished?),
        };
        Ok(swept)
    }

    /// Looks at the bodies and objects whose names begin with one byte: few enough to hold.
    async fn sweep_shard(&self, first: u8, before: Timestamp, swept: &mut Swept) -> Result<(), BackendError> {
        let bodies = self.backend.list_all(&self.names.shard(Kind::Body, first), "").await?;
        swept.bodies += bodies.len() as u64;
        // By the half of the key's hash that their names begin with.
        let mut suspects: HashMap<u64, Vec<(u128, String)>> = HashMap::new();
        for body in bodies.into_iter().filter(|body| body.modified < before) {
            if let Some((id, false)) = self.names.parse(Kind::Body, &body.name) {
                suspects.entry(half(id)).or_default().push((id, body.name));
            }
        }
        let is_near = self.backend.is_near();
        if suspects.is_empty() && !is_near {
            return Ok(());
        }
        // Listed after the bodies: a head that is written meanwhile leads to a body that is younger, or that
        // another head led to before.
        let mut led_to: HashSet<u128> = HashSet::new();
        for listed in self.backend.list_all(&self.names.shard(Kind::Object, first), "").await? {
            let Some((hash, _)) = self.names.parse(Kind::Object, &listed.name) else { continue };
            if !(is_near || suspects.contains_key(&half(hash))) {
                continue;
            }
            let Some(object) = self.backend.get(&listed.name, MAX_HEAD).await? else { continue };
            if is_near && listed.modified < before && self.is_expired(&object) {
                swept.expired += 1;
                self.delete(&listed.name).await?;
                // Its body has no head any more, and is younger than its head is old.
                continue;
            }
            led_to.extend(body_of(&object));
        }
        for (id, name) in suspects.into_values().flatten() {
            if !led_to.contains(&id) {
                swept.orphans += 1;
                self.delete(&name).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<(), BackendError> {
        if self.sweep.is_dry { Ok(()) } else { self.backend.delete(name).await }
    }

    /// Whether an object is past its freshness and retention. What can't be read is of no use either.
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
            // A record costs next to nothing, and its variants are looked at one by one.
            Ok(Object::Vary(_)) => false,
            // A newer version's is none of ours to judge.
            Err(DecodeError::Version(_)) => false,
            Err(_) => true,
        }
    }
}

fn half(hash: u128) -> u64 {
    u64::try_from(hash >> 64).unwrap_or(u64::MAX)
}

/// Runs one of these on a runtime of its own.
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
