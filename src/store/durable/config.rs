//! The durable tier's configuration, and the place that it names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Clock, Metrics, Prices};
use crate::store::directory::Directory;
use crate::store::names::ObjectNames;
use crate::store::place::Place;
use crate::store::s3::{S3Bucket, S3Config};

/// `[durable]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The place in which objects are kept.
    pub location: Location,
    /// True if Larder refuses to start without the tier.
    pub required: bool,
    /// The most bytes that the tier takes; 0: any number. `None`: 10 GiB for a directory, any number for a bucket.
    pub capacity: Option<u64>,
    /// A pack is complete at this length.
    pub pack_size: u64,
    /// The longest that a response waits to be written to a bucket, and to be read by others from a directory. `None`: 5 s
    /// and 1 s.
    pub pack_interval: Option<Duration>,
    /// The longest that a look-up takes before the origin is asked instead.
    pub lookup_timeout: Duration,
    /// A response that is fresh for less than this stays in memory only.
    pub min_lifetime: Duration,
    /// Time past its freshness for which an object serves validation and stale-if-error.
    pub retain: Duration,
    /// A larger body is an object of its own, read as a stream.
    pub inline_size: u64,
    /// A larger response is not kept.
    pub max_object_size: u64,
    /// The most bodies too large for memory that are written at once.
    pub uploads: usize,
    /// Bytes a second below which the writing of such a body may not hold its clients.
    pub min_upload_rate: u64,
    /// The most objects that wait to be written.
    pub queue_objects: usize,
    /// The most body bytes that wait to be written.
    pub queue_bytes: u64,
    /// The most writes under way at once.
    pub writers: usize,
    /// The longest that emptying the queue takes when Larder stops.
    pub drain_timeout: Duration,
    /// Time between two looks for what other processes purged and stored.
    pub poll_interval: Duration,
    /// Number of failures on end after which no look-up asks the tier until it answers; 0: no number.
    pub breaker_failures: u32,
    /// Time between two attempts to find the tier up again.
    pub breaker_pause: Duration,
    /// The use on which a response is written: 1 for the first.
    pub after_hits: u8,
    /// The most packs and separate bodies that are written to a bucket a month; 0: any number.
    pub monthly_writes: u64,
    /// The prices of requests.
    pub prices: Prices,
}

/// A pack of a bounded tier takes at most this part of its capacity, so that one that goes is not missed.
pub(super) const PACKS: u64 = 32;

/// The smallest pack that is complete by its size.
const LEAST_PACK: u64 = 64 << 10;

impl Config {
    /// Returns the capacity in bytes; 0: any number.
    pub fn capacity(&self) -> u64 {
        self.capacity.unwrap_or(match self.location {
            Location::File(_) => 10 << 30,
            Location::S3 { .. } | Location::Off => 0,
        })
    }

    /// Returns the length at which a pack is complete where the tier may take `bound` bytes.
    pub(super) fn pack_size_within(&self, bound: u64) -> u64 {
        self.pack_size.min((bound / PACKS).max(LEAST_PACK))
    }

    /// Returns the length at which a pack is complete, on a disk that has room for the capacity.
    pub fn pack_size(&self) -> u64 {
        match self.capacity() {
            0 => self.pack_size,
            capacity => self.pack_size_within(capacity),
        }
    }

    /// Returns the interval of packs in the configured place.
    pub fn pack_interval(&self) -> Duration {
        self.pack_interval.unwrap_or(match self.location {
            Location::File(_) => Duration::from_secs(1),
            Location::S3 { .. } | Location::Off => Duration::from_secs(5),
        })
    }
}

/// `durable.url`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// There is no durable tier.
    Off,
    /// A directory.
    File(PathBuf),
    /// A bucket, and a prefix of names in it.
    S3 {
        /// The access to the bucket.
        config: S3Config,
        /// The prefix, without slashes at its ends; empty: none.
        prefix: String,
    },
}

impl Location {
    /// Returns the place as a person finds it: a directory by its absolute path.
    pub fn in_words(&self) -> String {
        match self {
            Self::Off => "off".into(),
            Self::File(path) => {
                let absolute = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                format!("the directory {}", absolute.display())
            }
            Self::S3 { config, prefix } => format!("the bucket s3://{}/{prefix}", config.bucket),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            location: Location::File("./larder-cache".into()),
            required: true,
            capacity: None,
            pack_size: 8 << 20,
            pack_interval: None,
            lookup_timeout: Duration::from_millis(500),
            min_lifetime: Duration::from_secs(30),
            retain: Duration::from_secs(7 * 24 * 3600),
            inline_size: 1 << 20,
            max_object_size: 16 << 30,
            uploads: 2,
            min_upload_rate: 8 << 20,
            queue_objects: 65_536,
            queue_bytes: 64 << 20,
            writers: 8,
            drain_timeout: Duration::from_secs(5),
            poll_interval: Duration::from_secs(2),
            breaker_failures: 5,
            breaker_pause: Duration::from_secs(2),
            after_hits: 1,
            monthly_writes: 0,
            prices: Prices::default(),
        }
    }
}

/// Makes the place that the configuration names, and the names in it. Returns `None` if the tier is off. Asks the place
/// for nothing.
pub(crate) async fn open_place(
    config: &Config,
    key_prefix: &str,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Option<(Arc<dyn Place>, ObjectNames)> {
    match &config.location {
        Location::Off => None,
        Location::File(root) => {
            let names = ObjectNames::new("", key_prefix);
            Some((Arc::new(Directory::new(root.clone())), names))
        }
        Location::S3 { config, prefix } => {
            let bucket = S3Bucket::connect(config.clone(), Arc::clone(metrics), clock.clone()).await;
            Some((Arc::new(bucket), ObjectNames::new(prefix, key_prefix)))
        }
    }
}
