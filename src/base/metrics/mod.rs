//! Counters, named as in RFC 9211.
//!
//! Counters are plain atomics. Each worker thread has a block of its own for those of the hit path, so that no two
//! threads write to one cache line. A scrape adds the blocks up.

mod acme;
mod counter;
mod labels;
mod peers;
mod render;
mod resp;
mod tls;
mod worker;

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, OnceLock};

pub(crate) use self::acme::{AcmeCounters, AcmeOutcome};
pub(crate) use self::counter::Gauge;
use self::counter::{Counter, Histogram};
use self::labels::{CLASSES, LOST, OPS, OUTCOMES, PURPOSES, SAVED};
pub(crate) use self::labels::{
    DurableOp, DurableOutcome, Lost, OriginOutcome, Prices, RequestClass, RequestPurpose, Saved, Unparsed,
};
pub(crate) use self::peers::{PeerAnswer, PeerCounters, PeerOutcome};
pub(crate) use self::resp::{RespClass, RespCounters, RespRefusal};
pub(crate) use self::tls::{Handshake, HandshakeFailure, Sni, TlsCounters};
pub(crate) use self::worker::WorkerMetrics;

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    workers: Vec<Arc<WorkerMetrics>>,
    resp: Vec<Arc<RespCounters>>,
    /// Bytes that Redis clients hold: commands that arrive, transactions, replies that wait to be read.
    pub resp_buffered: Arc<AtomicUsize>,
    unparsed: [Counter; Unparsed::ALL.len()],
    origin: [Counter; OriginOutcome::ALL.len()],
    /// Requests to the origin that were tried again on a new connection.
    pub origin_retries: Counter,
    /// Requests that were not sent because the origin is known to be down.
    pub origin_refused: Counter,
    /// Times that the origin became known to be down.
    pub origin_downs: Counter,
    /// Time from sending a request to the head of the origin's response.
    pub origin_latency: Histogram,
    durable: [[Counter; OUTCOMES.len()]; OPS.len()],
    requests: [[Counter; CLASSES.len()]; PURPOSES.len()],
    prices: OnceLock<Prices>,
    saved: [Counter; SAVED.len()],
    lost: [Counter; LOST.len()],
    /// Look-ups in the durable tier that were answered without waiting.
    pub durable_at_hand: Counter,
    /// Waits for a directory to have a value that ended before it had.
    pub values_late: Counter,
    /// Entries written to packs.
    pub entries_written: Counter,
    /// Packs that were completed.
    pub packs_written: Counter,
    /// Packs deleted: nothing of them was of use, or others have replaced them.
    pub packs_deleted: Counter,
    /// Packs written by merging or rewriting others.
    pub packs_rewritten: Counter,
    /// Bytes that were copied from pack to pack.
    pub bytes_rewritten: Counter,
    /// Packs dropped to keep the tier within its capacity.
    pub packs_evicted: Counter,
    /// Bytes of those, and of the separate bodies that went with them.
    pub bytes_evicted: Counter,
    /// Times that the durable tier became known to be down.
    pub durable_downs: Counter,
    /// Records of the journal that were read.
    pub journal_read: Counter,
    /// Records of the journal that could not be decoded.
    pub journal_unreadable: Counter,
    /// Records that were written to the journal.
    pub journal_written: Counter,
    /// Snapshots that were written.
    pub snapshots: Counter,
    /// Time from asking the durable tier to its answer.
    pub durable_latency: Histogram,
    /// Bodies too large for memory whose upload to the durable tier has ended, well or not.
    pub durable_uploads: Counter,
    /// URLs invalidated by unsafe methods.
    pub invalidations: Counter,
    /// Purges taken by the admin listener.
    pub purges: Counter,
    /// The counters of TLS.
    pub(crate) tls: TlsCounters,
    /// The counters of ACME.
    pub(crate) acme: AcmeCounters,
    /// The counters of the peers.
    pub(crate) peers: PeerCounters,
}

impl Metrics {
    /// Makes the counters for `workers` worker threads.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Self {
            workers: (0..workers.max(1)).map(|_| Arc::default()).collect(),
            resp: (0..workers.max(1)).map(|_| Arc::default()).collect(),
            resp_buffered: Arc::default(),
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
            durable_at_hand: Counter::default(),
            values_late: Counter::default(),
            entries_written: Counter::default(),
            packs_written: Counter::default(),
            packs_deleted: Counter::default(),
            packs_rewritten: Counter::default(),
            bytes_rewritten: Counter::default(),
            packs_evicted: Counter::default(),
            bytes_evicted: Counter::default(),
            durable_downs: Counter::default(),
            journal_read: Counter::default(),
            journal_unreadable: Counter::default(),
            journal_written: Counter::default(),
            snapshots: Counter::default(),
            durable_latency: Histogram::default(),
            durable_uploads: Counter::default(),
            invalidations: Counter::default(),
            purges: Counter::default(),
            tls: TlsCounters::default(),
            acme: AcmeCounters::default(),
            peers: PeerCounters::default(),
        })
    }

    /// Returns the block of worker `index`.
    pub fn worker(&self, index: usize) -> Arc<WorkerMetrics> {
        Arc::clone(&self.workers[index % self.workers.len()])
    }

    /// Returns the block of worker `index` for the listener of Redis's protocol.
    pub fn resp(&self, index: usize) -> Arc<RespCounters> {
        Arc::clone(&self.resp[index % self.resp.len()])
    }

    /// Returns the number of connections that are open.
    pub fn open_connections(&self) -> u64 {
        let sum =
            |pick: fn(&WorkerMetrics) -> &Counter| self.workers.iter().map(|worker| pick(worker).value()).sum::<u64>();
        sum(|worker| &worker.connections).saturating_sub(sum(|worker| &worker.connections_closed))
    }

    /// Counts a request that was refused before it was read.
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
    pub fn request(&self, class: RequestClass, purpose: RequestPurpose) {
        self.requests[purpose as usize][class as usize].add_one();
    }

    /// Returns the number of requests of a class.
    pub fn requests(&self, class: RequestClass) -> u64 {
        PURPOSES.iter().map(|(purpose, _)| self.requests_for(*purpose, class)).sum()
    }

    /// Returns the number of requests of a class for a purpose.
    pub fn requests_for(&self, purpose: RequestPurpose, class: RequestClass) -> u64 {
        self.requests[purpose as usize][class as usize].value()
    }

    /// Sets the prices of requests.
    pub fn set_prices(&self, prices: Prices) {
        // Only the first call has an effect: there is one durable tier.
        let _ = self.prices.set(prices);
    }

    /// Returns the cost of the requests so far.
    pub fn cost(&self) -> f64 {
        PURPOSES.iter().map(|(purpose, _)| self.cost_of(*purpose)).sum()
    }

    /// Returns the cost of the requests for a purpose.
    #[expect(clippy::cast_precision_loss, reason = "a price")]
    pub fn cost_of(&self, purpose: RequestPurpose) -> f64 {
        let prices = self.prices.get().copied().unwrap_or_default();
        let number = |class| self.requests_for(purpose, class);
        let writes = number(RequestClass::Write) + number(RequestClass::List);
        (writes as f64 * prices.write + number(RequestClass::Read) as f64 * prices.read) / 1e6
    }

    /// Returns the requests, their cost and those saved as a sentence, if there were any requests.
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

    /// Counts a request to the durable tier that was saved.
    pub fn saved(&self, why: Saved) {
        self.saved[why as usize].add_one();
    }

    /// Counts a response that was not written to the durable tier although it should have been.
    pub fn lost(&self, why: Lost) {
        self.lost[why as usize].add_one();
    }

    /// Returns the reasons for which responses were lost, each with their number.
    pub fn losses(&self) -> Vec<(Lost, u64)> {
        let all = LOST.iter().map(|(why, _)| (*why, self.lost[*why as usize].value()));
        all.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rfc9111::cache_status::{CacheStatus, Fwd, Tier};

    #[test]
    fn what_workers_count_is_added_up() {
        let metrics = Metrics::new(2);
        metrics.worker(0).record(&CacheStatus::hit(Tier::Memory, 1000));
        metrics.worker(1).record(&CacheStatus::hit(Tier::Memory, 1000));
        metrics.worker(1).record(&CacheStatus::forward(Fwd::VaryMiss));
        metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
        metrics.origin_latency.record(Duration::from_millis(3));
        let text = metrics.render(&[
            Gauge { name: "larder_x", help: "X.", labels: Vec::new(), value: 7 },
            Gauge { name: "larder_y", help: "Y.", labels: vec![("a", "1".into()), ("b", "\"\\\n".into())], value: 8 },
            Gauge { name: "larder_y", help: "Y.", labels: vec![("a", "2".into())], value: 9 },
            Gauge { name: "larder_z_total", help: "Z.", labels: Vec::new(), value: 10 },
        ]);
        for line in [
            "larder_requests_total{status=\"hit\",tier=\"memory\"} 2",
            "larder_requests_total{status=\"fwd\",fwd=\"vary-miss\"} 1",
            "larder_durable_operations_total{op=\"put\",outcome=\"dropped\"} 1",
            "larder_origin_latency_seconds_bucket{le=\"0.0025\"} 0",
            "larder_origin_latency_seconds_bucket{le=\"0.005\"} 1",
            "larder_x 7",
            "larder_y{a=\"1\",b=\"\\\"\\\\\\n\"} 8",
            "larder_y{a=\"2\"} 9",
            "# TYPE larder_y gauge",
            "# TYPE larder_z_total counter",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert_eq!(text.matches("# TYPE larder_y ").count(), 1, "a metric is described once");
    }
}
