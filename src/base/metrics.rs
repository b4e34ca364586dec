//! Counters, in the words of RFC 9211.
//!
//! Counters are plain atomics. Those of the hit path come in one block a worker thread, so that
//! no two threads write to one cache line; a scrape adds them up.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::base::log;
use crate::rfc9111::cache_status::{CacheStatus, Fwd, Handling, Tier};
use crate::rfc9111::storage::NotStorable;

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

    /// The number.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker thread counts. Its own cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerMetrics {
    hits_memory: Counter,
    hits_durable: Counter,
    forwarded: [Counter; Fwd::ALL.len()],
    collapsed: Counter,
    stored: Counter,
    refused: Counter,
    not_stored: [Counter; NotStorable::ALL.len()],
    /// Connections accepted.
    pub connections: Counter,
    /// Connections closed.
    pub connections_closed: Counter,
}

impl WorkerMetrics {
    /// Counts one answered request.
    pub fn record(&self, status: &CacheStatus) {
        if let Some(why) = status.not_stored {
            self.not_stored[why as usize].add_one();
        }
        match status.handling {
            Handling::Hit if status.detail == Some(Tier::Durable.as_str()) => self.hits_durable.add_one(),
            Handling::Hit => self.hits_memory.add_one(),
            Handling::Forward { fwd, stored, collapsed, .. } => {
                self.forwarded[fwd.index()].add_one();
                if stored {
                    self.stored.add_one();
                }
                if collapsed {
                    self.collapsed.add_one();
                }
            }
            Handling::Refused => self.refused.add_one(),
        }
    }
}

/// Why a client's request was refused before it was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unparsed {
    /// It is not HTTP/1.1.
    Malformed,
    /// Its head is larger than `server.max_header_size`, or has more fields than `server.max_headers`.
    HeadTooLarge,
    /// Its target is too long.
    TargetTooLong,
    /// It has both `Content-Length` and `Transfer-Encoding`.
    Framing,
    /// Its head did not arrive in time.
    HeadTimeout,
    /// There were as many connections as there may be.
    TooManyConnections,
}

impl Unparsed {
    const ALL: [Self; 6] = [
        Self::Malformed,
        Self::HeadTooLarge,
        Self::TargetTooLong,
        Self::Framing,
        Self::HeadTimeout,
        Self::TooManyConnections,
    ];

    /// As `/metrics` and the log call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::Framing => "framing",
            Self::HeadTimeout => "head-timeout",
            Self::TooManyConnections => "too-many-connections",
        }
    }
}

/// The outcomes of a request to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginOutcome {
    /// A response head arrived.
    Answered,
    /// No connection could be made.
    ConnectFailed,
    /// No head arrived in time.
    TimedOut,
    /// The connection broke, or what came was no HTTP.
    Broken,
}

impl OriginOutcome {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Answered, "answered"),
        (Self::ConnectFailed, "connect-failed"),
        (Self::TimedOut, "timed-out"),
        (Self::Broken, "broken"),
    ];
}

/// What the durable tier is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableOp {
    /// Read an object.
    Get,
    /// Write an object.
    Put,
    /// Delete an object.
    Delete,
}

impl DurableOp {
    /// Number of kinds.
    pub const COUNT: usize = 3;
}

/// Why a response that was to be written to the durable tier was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The queue was full.
    QueueFull,
    /// The tier takes others, but not this one.
    NotTaken,
    /// There was no room, also after something was evicted.
    NoRoom,
    /// Its writing as it came in failed, or too many were written so.
    Upload,
}

const LOST: [(Lost, &str); 4] = [
    (Lost::QueueFull, "queue-full"),
    (Lost::NotTaken, "not-taken"),
    (Lost::NoRoom, "no-room"),
    (Lost::Upload, "upload"),
];

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurableOutcome {
    /// Done; a read found its object.
    Ok,
    /// There is no such object.
    NotFound,
    /// The tier could not be reached, or refused.
    Error,
    /// It took longer than it may.
    TimedOut,
    /// The object could not be read as one of ours: truncated, corrupt, foreign, or unknown.
    Unreadable,
    /// Given up: the queue was full, or the tier did not take it.
    Dropped,
}

/// What services charge requests by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestClass {
    /// Reads an object.
    Read,
    /// Writes one, or a part of one.
    Write,
    /// Lists names.
    List,
    /// Deletes an object.
    Delete,
}

/// What a million requests cost, in whatever currency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prices {
    /// Of writes and listings.
    pub write: f64,
    /// Of reads.
    pub read: f64,
}

impl Eq for Prices {}

impl Default for Prices {
    fn default() -> Self {
        Self { write: 5.0, read: 0.4 }
    }
}

const CLASSES: [(RequestClass, &str); 4] = [
    (RequestClass::Read, "read"),
    (RequestClass::Write, "write"),
    (RequestClass::List, "list"),
    (RequestClass::Delete, "delete"),
];

/// Why the durable tier was not asked to do something, and a request saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// A read: the index knows that there is nothing.
    Index,
    /// A write: the response does not last.
    MinLifetime,
    /// A write: its rule says so.
    Rule,
    /// A write: it was not used often enough yet.
    AfterHits,
    /// A write: the month's budget is spent.
    Budget,
    /// Either: the tier is known to be down.
    Breaker,
}

const SAVED: [(Saved, &str); 6] = [
    (Saved::Index, "index"),
    (Saved::MinLifetime, "min-lifetime"),
    (Saved::Rule, "rule"),
    (Saved::AfterHits, "after-hits"),
    (Saved::Budget, "budget"),
    (Saved::Breaker, "breaker"),
];

const OPS: [(DurableOp, &str); 3] = [(DurableOp::Get, "get"), (DurableOp::Put, "put"), (DurableOp::Delete, "delete")];
const OUTCOMES: [(DurableOutcome, &str); 6] = [
    (DurableOutcome::Ok, "ok"),
    (DurableOutcome::NotFound, "not-found"),
    (DurableOutcome::Error, "error"),
    (DurableOutcome::TimedOut, "timed-out"),
    (DurableOutcome::Unreadable, "unreadable"),
    (DurableOutcome::Dropped, "dropped"),
];

/// The upper bounds of the latency histogram's buckets, in microseconds.
const BUCKETS: [u64; 12] =
    [500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000, 30_000_000];

/// How long something took, in buckets.
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

    #[expect(clippy::cast_precision_loss, reason = "seconds on a metrics page")]
    fn write(&self, out: &mut String, name: &str) {
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

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<Arc<WorkerMetrics>>,
    unparsed: [Counter; Unparsed::ALL.len()],
    origin: [Counter; OriginOutcome::ALL.len()],
    /// Requests to the origin that were tried again on a new connection.
    pub origin_retries: Counter,
    /// Requests that were not sent because the origin is known to be down.
    pub origin_refused: Counter,
    /// Times that the origin became known to be down.
    pub origin_downs: Counter,
    /// From sending a request to the origin's response head.
    pub origin_latency: Histogram,
    durable: [[Counter; OUTCOMES.len()]; OPS.len()],
    requests: [Counter; CLASSES.len()],
    prices: OnceLock<Prices>,
    saved: [Counter; SAVED.len()],
    lost: [Counter; LOST.len()],
    /// Evictions from a directory to keep it to its capacity: objects, and their bytes on disk.
    pub durable_evicted_objects: Counter,
    /// See `durable_evicted_objects`.
    pub durable_evicted_bytes: Counter,
    /// Times that the durable tier became known to be down.
    pub durable_downs: Counter,
    /// Records that were read from the journal, and those that could not be.
    pub journal_read: Counter,
    /// Records of the journal that made no sense.
    pub journal_unreadable: Counter,
    /// Records that were written.
    pub journal_written: Counter,
    /// Snapshots that were written.
    pub snapshots: Counter,
    /// From asking the durable tier to its answer.
    pub durable_latency: Histogram,
    /// Large bodies that were written, or tried to be, as they came in.
    pub durable_uploads: Counter,
    /// URLs invalidated by unsafe methods.
    pub invalidations: Counter,
    /// Purges taken by the admin listener.
    pub purges: Counter,
}

impl Metrics {
    /// Counters for `workers` worker threads.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            workers: (0..workers.max(1)).map(|_| Arc::default()).collect(),
            unparsed: Default::default(),
            origin: Default::default(),
            origin_retries: Counter::default(),
            origin_refused: Counter::default(),
            origin_downs: Counter::default(),
            origin_latency: Histogram::default(),
            durable: Default::default(),
            requests: Default::default(),
            prices: OnceLock::new(),
            saved: Default::default(),
            lost: Default::default(),
            durable_evicted_objects: Counter::default(),
            durable_evicted_bytes: Counter::default(),
            durable_downs: Counter::default(),
            journal_read: Counter::default(),
            journal_unreadable: Counter::default(),
            journal_written: Counter::default(),
            snapshots: Counter::default(),
            durable_latency: Histogram::default(),
            durable_uploads: Counter::default(),
            invalidations: Counter::default(),
            purges: Counter::default(),
        })
    }

    /// The block of worker `index`.
    pub fn worker(&self, index: usize) -> Arc<WorkerMetrics> {
        Arc::clone(&self.workers[index % self.workers.len()])
    }

    /// Connections open now.
    pub fn open_connections(&self) -> u64 {
        let sum =
            |pick: fn(&WorkerMetrics) -> &Counter| self.workers.iter().map(|worker| pick(worker).value()).sum::<u64>();
        sum(|worker| &worker.connections).saturating_sub(sum(|worker| &worker.connections_closed))
    }

    /// Counts a request that was refused before it was one.
    pub fn unparsed(&self, why: Unparsed) {
        self.unparsed[why as usize].add_one();
    }

    /// Counts one request to the origin.
    pub fn origin(&self, outcome: OriginOutcome) {
        self.origin[outcome as usize].add_one();
    }

    /// Counts one operation of the durable tier.
    pub fn durable(&self, op: DurableOp, outcome: DurableOutcome) {
        self.durable[op as usize][outcome as usize].add_one();
    }

    /// Counts one request to the durable tier's service.
    pub fn request(&self, class: RequestClass) {
        self.requests[class as usize].add_one();
    }

    /// How many of a class there were.
    pub fn requests(&self, class: RequestClass) -> u64 {
        self.requests[class as usize].value()
    }

    /// Notes what requests cost.
    pub fn set_prices(&self, prices: Prices) {
        // The first word counts: there is one durable tier.
        let _ = self.prices.set(prices);
    }

    /// What the requests so far cost.
    #[expect(clippy::cast_precision_loss, reason = "a price")]
    pub fn cost(&self) -> f64 {
        let prices = self.prices.get().copied().unwrap_or_default();
        let writes = self.requests(RequestClass::Write) + self.requests(RequestClass::List);
        (writes as f64 * prices.write + self.requests(RequestClass::Read) as f64 * prices.read) / 1e6
    }

    /// In words, if there were any requests.
    pub fn bill(&self) -> Option<String> {
        let counts = CLASSES.map(|(class, word)| (self.requests(class), word));
        if counts.iter().all(|(count, _)| *count == 0) {
            return None;
        }
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        let asked = list(&mut counts.iter().map(|(count, word)| format!("{count} {word}")));
        let saved = list(&mut SAVED.iter().filter_map(|(why, word)| {
            let count = self.saved[*why as usize].value();
            (count > 0).then(|| format!("{count} by {word}"))
        }));
        let saved = if saved.is_empty() { "nothing".into() } else { saved };
        Some(format!("{asked}; cost {:.4}; saved: {saved}", self.cost()))
    }

    /// Counts a request that was not made.
    pub fn saved(&self, why: Saved) {
        self.saved[why as usize].add_one();
    }

    fn render_not_stored(&self, out: &mut String) {
        header(out, "larder_not_stored_total", "counter", "Answers that may not be stored, by reason.");
        for why in NotStorable::ALL {
            let value: u64 = self.workers.iter().map(|worker| worker.not_stored[why as usize].value()).sum();
            let _ = writeln!(out, "larder_not_stored_total{{reason=\"{}\"}} {value}", why.as_str());
        }
    }

    /// Counts a response that was to be written to the durable tier and was not.
    pub fn lost(&self, why: Lost) {
        self.lost[why as usize].add_one();
    }

    /// Why such responses were not written, with their number: those reasons that there were.
    pub fn losses(&self) -> Vec<(Lost, u64)> {
        let all = LOST.iter().map(|(why, _)| (*why, self.lost[*why as usize].value()));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Writes every counter as Prometheus text. `gauges` are the numbers that others keep.
    pub fn render(&self, gauges: &[Gauge]) -> String {
        let sum = |pick: &dyn Fn(&WorkerMetrics) -> u64| self.workers.iter().map(|worker| pick(worker)).sum::<u64>();
        let mut out = String::with_capacity(8192);
        header(&mut out, "larder_requests_total", "counter", "Requests answered, by what the cache did (RFC 9211).");
        for (tier, value) in
            [(Tier::Memory, sum(&|w| w.hits_memory.value())), (Tier::Durable, sum(&|w| w.hits_durable.value()))]
        {
            let _ = writeln!(out, "larder_requests_total{{status=\"hit\",tier=\"{}\"}} {value}", tier.as_str());
        }
        for fwd in Fwd::ALL {
            let value = sum(&|w| w.forwarded[fwd.index()].value());
            let _ = writeln!(out, "larder_requests_total{{status=\"fwd\",fwd=\"{}\"}} {value}", fwd.as_str());
        }
        let _ = writeln!(out, "larder_requests_total{{status=\"refused\"}} {}", sum(&|w| w.refused.value()));
        self.render_not_stored(&mut out);
        for (name, help, value) in [
            (
                "larder_requests_stored_total",
                "Forwarded requests whose response was stored.",
                sum(&|w| w.stored.value()),
            ),
            (
                "larder_requests_collapsed_total",
                "Requests that shared another one's trip to the origin.",
                sum(&|w| w.collapsed.value()),
            ),
            ("larder_connections_total", "Client connections accepted.", sum(&|w| w.connections.value())),
            (
                "larder_origin_retries_total",
                "Requests tried again because a kept connection had gone.",
                self.origin_retries.value(),
            ),
            (
                "larder_origin_refused_total",
                "Requests not sent to the origin because it is known to be down.",
                self.origin_refused.value(),
            ),
            ("larder_origin_downs_total", "Times that the origin became known to be down.", self.origin_downs.value()),
            (
                "larder_durable_uploads_total",
                "Bodies too large for memory whose writing as they came in has ended, well or not.",
                self.durable_uploads.value(),
            ),
            (
                "larder_invalidations_total",
                "URLs invalidated by unsafe methods (RFC 9111 4.4).",
                self.invalidations.value(),
            ),
            ("larder_purges_total", "Purges taken by the admin listener.", self.purges.value()),
            ("larder_log_lines_dropped_total", "Lines that standard error did not take.", log::lost()),
            (
                "larder_durable_downs_total",
                "Times that the durable tier became known to be down.",
                self.durable_downs.value(),
            ),
            (
                "larder_journal_read_total",
                "Records of other processes read from the journal.",
                self.journal_read.value(),
            ),
            (
                "larder_journal_unreadable_total",
                "Records of the journal that made no sense.",
                self.journal_unreadable.value(),
            ),
            ("larder_journal_written_total", "Records written to the journal.", self.journal_written.value()),
            ("larder_snapshots_total", "Snapshots of index and purges written.", self.snapshots.value()),
        ] {
            header(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        }
        header(
            &mut out,
            "larder_requests_unparsed_total",
            "counter",
            "Requests refused before they could be read as such, by reason.",
        );
        for why in Unparsed::ALL {
            let value = self.unparsed[why as usize].value();
            let _ = writeln!(out, "larder_requests_unparsed_total{{reason=\"{}\"}} {value}", why.as_str());
        }
        header(&mut out, "larder_origin_requests_total", "counter", "Requests to the origin, by outcome.");
        for (outcome, word) in OriginOutcome::ALL {
            let value = self.origin[outcome as usize].value();
            let _ = writeln!(out, "larder_origin_requests_total{{outcome=\"{word}\"}} {value}");
        }
        header(
            &mut out,
            "larder_origin_latency_seconds",
            "histogram",
            "From sending a request to the origin's response head.",
        );
        self.origin_latency.write(&mut out, "larder_origin_latency_seconds");
        self.render_durable(&mut out);
        for gauge in gauges {
            header(&mut out, gauge.name, "gauge", gauge.help);
            let _ = writeln!(out, "{} {}", gauge.name, gauge.value);
        }
        out
    }

    /// What is counted of the durable tier.
    fn render_durable(&self, out: &mut String) {
        header(
            out,
            "larder_durable_operations_total",
            "counter",
            "Operations of the durable tier, by kind and outcome.",
        );
        for (op, op_word) in OPS {
            for (outcome, word) in OUTCOMES {
                let value = self.durable[op as usize][outcome as usize].value();
                let _ = writeln!(out, "larder_durable_operations_total{{op=\"{op_word}\",outcome=\"{word}\"}} {value}");
            }
        }
        header(out, "larder_durable_requests_total", "counter", "Requests to the bucket, by what they are charged as.");
        for (class, word) in CLASSES {
            let _ = writeln!(out, "larder_durable_requests_total{{class=\"{word}\"}} {}", self.requests(class));
        }
        header(out, "larder_durable_cost_total", "counter", "What those cost, at the configured prices.");
        let _ = writeln!(out, "larder_durable_cost_total {:.6}", self.cost());
        header(
            out,
            "larder_durable_saved_total",
            "counter",
            "Reads and writes of the durable tier that were not made, and why.",
        );
        for (why, word) in SAVED {
            let value = self.saved[why as usize].value();
            let _ = writeln!(out, "larder_durable_saved_total{{why=\"{word}\"}} {value}");
        }
        header(
            out,
            "larder_durable_lost_total",
            "counter",
            "Responses that were to be written to the durable tier and were not, and why.",
        );
        for (why, word) in LOST {
            let value = self.lost[why as usize].value();
            let _ = writeln!(out, "larder_durable_lost_total{{why=\"{word}\"}} {value}");
        }
        for (name, help, value) in [
            (
                "larder_durable_evicted_objects_total",
                "Objects evicted to keep the directory to its capacity.",
                self.durable_evicted_objects.value(),
            ),
            ("larder_durable_evicted_bytes_total", "Their bytes.", self.durable_evicted_bytes.value()),
        ] {
            header(out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        }
        header(
            out,
            "larder_durable_latency_seconds",
            "histogram",
            "From asking the durable tier for an object to its answer.",
        );
        self.durable_latency.write(out, "larder_durable_latency_seconds");
    }
}

/// A number that goes up and down, as it is at the moment of a scrape.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    /// The metric's name.
    pub name: &'static str,
    /// One sentence on what it is.
    pub help: &'static str,
    /// The number.
    pub value: u64,
}

fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_count_is_added_up() {
        let metrics = Metrics::new(2);
        metrics.worker(0).record(&CacheStatus::hit(Tier::Memory, 1000));
        metrics.worker(1).record(&CacheStatus::hit(Tier::Memory, 1000));
        metrics.worker(1).record(&CacheStatus::forward(Fwd::VaryMiss));
        metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
        metrics.origin_latency.record(Duration::from_millis(3));
        let text = metrics.render(&[Gauge { name: "larder_x", help: "X.", value: 7 }]);
        for line in [
            "larder_requests_total{status=\"hit\",tier=\"memory\"} 2",
            "larder_requests_total{status=\"fwd\",fwd=\"vary-miss\"} 1",
            "larder_durable_operations_total{op=\"put\",outcome=\"dropped\"} 1",
            "larder_origin_latency_seconds_bucket{le=\"0.0025\"} 0",
            "larder_origin_latency_seconds_bucket{le=\"0.005\"} 1",
            "larder_x 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
