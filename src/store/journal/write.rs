//! Writing records: one at a time, of what has waited.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tracing::warn;

use super::pace::Pace;
use super::record::Record;
use super::{Journal, Urgency};
use crate::base::Stopwatch;
use crate::store::error::StoreError;
use crate::store::names::PackName;

/// The longest that writing a record takes before it is tried again as another.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most purges of one record.
const MAX_PURGES: usize = 4096;

/// The longest that an invalidation waits for others to be written with it.
const INVALIDATION_DELAY: Duration = Duration::from_secs(1);

const INVALIDATION: u8 = Urgency::Invalidation as u8;
const AWAITED: u8 = Urgency::Awaited as u8;

/// The pauses between two attempts to write.
const MIN_PAUSE: Duration = Duration::from_millis(250);
const MAX_PAUSE: Duration = Duration::from_secs(5);

impl Journal {
    /// Writes what waits by now. Records are written one after the other.
    pub(in crate::store) async fn write(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        // Purges that come meanwhile have their own urgency.
        let last = self.purges.last_shared();
        loop {
            self.purges.set_clock_offset(self.place.clock_offset());
            self.under_way.store(self.purges.outgoing().min(MAX_PURGES) as u64, Ordering::Release);
            let batch = self.purges.take_outgoing(MAX_PURGES);
            if batch.purges.is_empty() {
                self.under_way.store(0, Ordering::Release);
                return Ok(());
            }
            self.under_way.store(batch.purges.len() as u64, Ordering::Release);
            let purges = batch.purges.iter().map(|outgoing| (outgoing.purge.clone(), outgoing.time)).collect();
            let record = Record { node: self.purges.node(), time: batch.time, purges };
            let object = [Bytes::from(record.encode())];
            let name = self.names.purges(PackName { time: batch.time, node: record.node });
            let written = tokio::time::timeout(WRITE_TIMEOUT, self.place.put(&name, &object)).await;
            if let Err(error) = written.unwrap_or_else(|_| Err(StoreError::timed_out())) {
                *self.last_error.lock() = Some(error.clone());
                self.purges.give_back(batch);
                self.under_way.store(0, Ordering::Release);
                return Err(error);
            }
            *self.last_error.lock() = None;
            self.metrics.journal_written.add_one();
            self.written.send_if_modified(|written| {
                let is_newer = batch.until > *written;
                *written = batch.until.max(*written);
                is_newer
            });
            if batch.until >= last {
                self.under_way.store(0, Ordering::Release);
                return Ok(());
            }
        }
    }

    /// Writes for good, whenever something has waited as long as it may.
    pub(in crate::store) async fn write_behind(self: Arc<Self>) {
        let mut pause = Duration::ZERO;
        let (mut pace, start) = (Pace::default(), Stopwatch::start());
        loop {
            self.wake.notified().await;
            let watch = Stopwatch::start();
            loop {
                let left = match self.urgency.load(Ordering::Acquire) {
                    ..=INVALIDATION => INVALIDATION_DELAY.saturating_sub(watch.elapsed()),
                    AWAITED => pace.wait(start.elapsed()),
                    _ => Duration::ZERO,
                };
                if left.is_zero() {
                    break;
                }
                // Woken by something more urgent.
                let _ = tokio::time::timeout(left, self.wake.notified()).await;
            }
            let urgency = self.urgency.swap(0, Ordering::AcqRel);
            if urgency == AWAITED {
                pace.note(start.elapsed());
            }
            match self.write().await {
                Ok(()) => pause = Duration::ZERO,
                Err(error) => {
                    if let Some(suppressed) = self.log.writing.is_due() {
                        warn!("the journal can't be written, which is tried again: {error}{suppressed}");
                    }
                    pause = (pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
                    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    self.urgency.fetch_max(urgency, Ordering::AcqRel);
                    self.wake.notify_one();
                }
            }
        }
    }
}
