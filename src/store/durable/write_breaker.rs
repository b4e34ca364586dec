//! The write breaker: after several failed writes on end nothing is written, until the probe is.
//!
//! The probe is written at the pace of the look-up breaker. Once it is, the writers begin again, each at another moment.
//! A place that is down, or refuses writes, is thus asked by one probe instead of everything that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Inner;
use crate::base::DurableOp;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::place::PROBE;

/// The longest that writing the probe takes.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two probes grows up to this many times the first.
const MOST_PAUSES: u32 = 5;

/// Length of every pause while Larder stops.
pub(super) const PAUSE_AT_STOP: Duration = Duration::from_millis(100);

/// Time over which the writers begin again.
const SPREAD: Duration = Duration::from_millis(500);

/// Counts failed writes, and holds the writers back while it is open.
#[derive(Debug)]
pub(super) struct WriteBreaker {
    /// Number of failures on end that open it; 0: none does.
    limit: u32,
    /// Failures on end so far.
    failures: AtomicU32,
    /// Writes that succeeded so far.
    done: AtomicU64,
    is_closed: watch::Sender<bool>,
    /// True while Larder stops: then pauses are short.
    is_stopping: watch::Sender<bool>,
}

impl WriteBreaker {
    /// A closed breaker that opens after `limit` failures on end; 0: never.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            failures: AtomicU32::new(0),
            done: AtomicU64::new(0),
            is_closed: watch::Sender::new(true),
            is_stopping: watch::Sender::new(false),
        }
    }

    /// Returns whether writes go on.
    pub(super) fn is_closed(&self) -> bool {
        *self.is_closed.borrow()
    }

    /// Returns whether Larder stops.
    pub(super) fn is_stopping(&self) -> bool {
        *self.is_stopping.borrow()
    }

    /// Waits until Larder stops.
    pub(super) async fn wait_for_stop(&self) {
        let _ = self.is_stopping.subscribe().wait_for(|is_stopping| *is_stopping).await;
    }

    /// Says whether Larder stops.
    pub(super) fn set_stopping(&self, is_stopping: bool) {
        self.is_stopping.send_replace(is_stopping);
    }

    /// Returns the number of writes that succeeded so far.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Counts a write that succeeded, and closes the breaker.
    pub(super) fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.is_closed.send_if_modified(|is_closed| !std::mem::replace(is_closed, true));
    }

    /// Counts a write that failed. Returns whether that opened the breaker.
    fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.limit > 0 && failures >= self.limit && self.open()
    }

    /// Opens the breaker. Returns whether it was closed.
    fn open(&self) -> bool {
        self.is_closed.send_if_modified(|is_closed| std::mem::replace(is_closed, false))
    }

    /// Waits while the breaker is open.
    pub(super) async fn wait(&self) {
        if self.is_closed() {
            return;
        }
        let _ = self.is_closed.subscribe().wait_for(|is_closed| *is_closed).await;
        self.pause(SPREAD.mul_f64(fastrand::f64())).await;
    }

    /// Sleeps for `pause`, or less once Larder stops.
    pub(super) async fn pause(&self, pause: Duration) {
        if tokio::time::timeout(pause, self.wait_for_stop()).await.is_ok() {
            tokio::time::sleep(pause.min(PAUSE_AT_STOP)).await;
        }
    }
}

impl Inner {
    /// Writes the probe, which shows whether the place takes writes. A full disk does: eviction makes space.
    pub(super) async fn write_probe(&self) -> Result<(), StoreError> {
        let probe = [Bytes::from_static(PROBE)];
        match tokio::time::timeout(PROBE_TIMEOUT, self.place.put(&self.probe, &probe)).await {
            Ok(Err(error)) if error.kind() == StoreErrorKind::Full => Ok(()),
            Ok(written) => written,
            Err(_) => Err(StoreError::new(StoreErrorKind::Unavailable, "the probe is not written in time")),
        }
    }

    /// Counts a failed write or deletion. Where the place can't be reached, look-ups count it as well.
    pub(super) fn note_failed_write(self: &Arc<Self>, error: &StoreError) {
        if error.kind() == StoreErrorKind::Unavailable {
            self.note_outage(false, error);
        }
        if self.writes.failed() {
            self.probe_writes(error);
        }
    }

    /// Opens the write breaker.
    pub(super) fn stop_writing(self: &Arc<Self>, why: &StoreError) {
        if self.writes.open() {
            self.probe_writes(why);
        }
    }

    /// Writes the probe until that succeeds, and then closes the breaker.
    fn probe_writes(self: &Arc<Self>, why: &StoreError) {
        let (objects, _) = self.queue.depth();
        let logged = self.log.writes_wait.is_due();
        if let Some(suppressed) = logged {
            warn!("writes to the durable tier wait, {objects} so far, and are tried again: {why}{suppressed}");
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            let first = this.config.breaker_pause;
            let mut pause = first;
            loop {
                this.writes.pause(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                if this.writes.is_closed() {
                    break;
                }
                pause = pause.mul_f64(1.25).min(first * MOST_PAUSES);
                match this.write_probe().await {
                    Ok(()) => break,
                    Err(error) => this.log_error(DurableOp::Put, &error),
                }
            }
            this.writes.succeeded();
            if logged.is_some() {
                info!("the durable tier takes writes again");
            }
        });
    }
}
