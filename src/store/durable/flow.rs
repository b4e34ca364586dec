//! Decides whether background work goes on, or waits until the place takes it again.
//!
//! After so many failed writes on end nothing is written. Then one small object, the probe, is written at the pace of
//! the breaker until that succeeds; what waits goes on after it, each writer at another moment. So a place that is
//! down, or refuses, is not asked by everything that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Inner;
use crate::base::DurableOp;
use crate::store::backend::PROBE;
use crate::store::{BackendError, Trouble};

/// Time limit for writing the probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two probes grows to so many times the first.
const MOST_PAUSES: u32 = 5;

/// The pause at a stop.
pub(super) const AT_THE_END: Duration = Duration::from_millis(100);

/// Over so long the writers begin again.
const SPREAD: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Flow {
    /// So many failures on end stop it; 0: nothing does.
    limit: u32,
    /// Failures on end, up to now.
    failures: AtomicU32,
    /// Writes that succeeded.
    done: AtomicU64,
    is_flowing: watch::Sender<bool>,
    /// Larder stops: there is no time for pauses.
    is_ending: watch::Sender<bool>,
}

impl Flow {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            failures: AtomicU32::new(0),
            done: AtomicU64::new(0),
            is_flowing: watch::Sender::new(true),
            is_ending: watch::Sender::new(false),
        }
    }

    pub(super) fn is_flowing(&self) -> bool {
        *self.is_flowing.borrow()
    }

    pub(super) fn is_ending(&self) -> bool {
        *self.is_ending.borrow()
    }

    /// Waits until Larder stops.
    pub(super) async fn ends(&self) {
        let _ = self.is_ending.subscribe().wait_for(|is_ending| *is_ending).await;
    }

    /// From now on pauses are short.
    pub(super) fn end(&self) {
        self.is_ending.send_replace(true);
    }

    /// There is time again.
    pub(super) fn go_on(&self) {
        self.is_ending.send_replace(false);
    }

    /// Writes that succeeded so far.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.done.fetch_add(1, Ordering::Relaxed);
        self.is_flowing.send_if_modified(|is_flowing| !std::mem::replace(is_flowing, true));
    }

    /// A write failed. Whether that stopped it.
    fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        self.limit > 0 && failures >= self.limit && self.stop()
    }

    /// Stops the work, and returns whether it was not stopped before.
    fn stop(&self) -> bool {
        self.is_flowing.send_if_modified(|is_flowing| std::mem::replace(is_flowing, false))
    }

    /// Waits while it is stopped.
    pub(super) async fn wait(&self) {
        if self.is_flowing() {
            return;
        }
        let _ = self.is_flowing.subscribe().wait_for(|is_flowing| *is_flowing).await;
        self.pause(SPREAD.mul_f64(fastrand::f64())).await;
    }

    /// Waits so long, or less when Larder stops.
    pub(super) async fn pause(&self, pause: Duration) {
        let mut ending = self.is_ending.subscribe();
        let ends = async {
            let _ = ending.wait_for(|is_ending| *is_ending).await;
        };
        if tokio::time::timeout(pause, ends).await.is_ok() {
            tokio::time::sleep(pause.min(AT_THE_END)).await;
        }
    }
}

impl Inner {
    /// Writes the probe, which shows whether the place takes writes.
    pub(super) async fn write_probe(&self) -> Result<(), BackendError> {
        let probe = [Bytes::from_static(PROBE)];
        match tokio::time::timeout(PROBE_TIMEOUT, self.backend.put(&self.probe, &probe)).await {
            // A full disk takes what it is given once something was evicted.
            Ok(Err(error)) if error.trouble == Trouble::Full => Ok(()),
            Ok(written) => written,
            Err(_) => Err(BackendError::new(Trouble::Unreachable, "the probe is not written in time")),
        }
    }

    /// A write, or a deletion, failed: after so many on end nothing is written until the probe is.
    pub(super) fn write_failed(self: &Arc<Self>, error: &BackendError) {
        if error.trouble == Trouble::Unreachable {
            // Then there is nothing to be looked for either.
            self.failed(false, error);
        }
        if self.flow.failed() {
            self.probe_writes(error);
        }
    }

    /// Stops writing, until the probe is written.
    pub(super) fn stop_writing(self: &Arc<Self>, why: &dyn std::fmt::Display) {
        if self.flow.stop() {
            self.probe_writes(why);
        }
    }

    fn probe_writes(self: &Arc<Self>, why: &dyn std::fmt::Display) {
        let (objects, _) = self.queue.depth();
        let is_said = self.said.stops.is_due();
        if let Some(left_out) = is_said {
            warn!("writes to the durable tier wait, {objects} so far, and are tried again: {why}{left_out}");
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            let first = this.config.breaker_pause;
            let mut pause = first;
            loop {
                this.flow.pause(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                if this.flow.is_flowing() {
                    break;
                }
                pause = pause.mul_f64(1.25).min(first * MOST_PAUSES);
                match this.write_probe().await {
                    Ok(()) => break,
                    Err(error) => this.say_error(DurableOp::Put, &error),
                }
            }
            this.flow.succeeded();
            if is_said.is_some() {
                info!("the durable tier takes writes again");
            }
        });
    }
}
