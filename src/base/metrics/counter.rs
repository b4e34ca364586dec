//! A counter, a histogram and a gauge.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of the latency histogram's buckets, in microseconds.
const BUCKETS: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

/// Durations, counted in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; BUCKETS.len()],
    count: Counter,
    sum_micros: Counter,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS.iter().position(|&bound| micros <= bound) {
            self.buckets[bucket].add_one();
        }
        self.count.add_one();
        self.sum_micros.add(micros);
    }

    /// Writes the histogram as Prometheus text.
    #[expect(clippy::cast_precision_loss, reason = "seconds on a metrics page")]
    pub(super) fn write(&self, out: &mut String, name: &str) {
        let mut total = 0;
        for (bound, bucket) in BUCKETS.iter().zip(&self.buckets) {
            total += bucket.value();
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {total}", *bound as f64 / 1e6);
        }
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", self.count.value());
        let _ = writeln!(out, "{name}_sum {}", self.sum_micros.value() as f64 / 1e6);
        let _ = writeln!(out, "{name}_count {}", self.count.value());
    }
}

/// The value that another module reports at a scrape: a number that goes up and down.
#[derive(Clone, Debug)]
pub struct Gauge {
    /// The name of the metric. One that ends with `_total` only ever grows: it is a counter.
    pub name: &'static str,
    /// Its help text, one sentence.
    pub help: &'static str,
    /// The names and values of its labels. Gauges of one name follow each other.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub value: u64,
}
