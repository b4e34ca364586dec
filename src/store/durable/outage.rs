//! The look-up breaker: after several failures on end no look-up asks the place, until the probe shows that it answers.
//!
//! Only errors of an outage count ([`StoreErrorKind::is_outage`]). A refused or corrupt object is an answer.

use std::fmt::Display;
use std::sync::Arc;

use tracing::{info, warn};

use super::{HEAD_LIMIT, Inner};
use crate::store::error::StoreError;
#[cfg(doc)]
use crate::store::error::StoreErrorKind;

impl Inner {
    /// Counts the outcome of a read for the breaker.
    pub(super) fn note_read<T>(self: &Arc<Self>, outcome: &Result<T, StoreError>) {
        match outcome {
            Err(error) if error.kind().is_outage() => self.note_outage(false, error),
            Ok(_) | Err(_) => drop(self.breaker.succeeded()),
        }
    }

    /// Counts a failure of an outage: the place took its time, or failed at once. Enough of them on end open the breaker.
    pub(super) fn note_outage(self: &Arc<Self>, was_slow: bool, why: &dyn Display) {
        if !self.breaker.failed(was_slow) {
            return;
        }
        self.metrics.durable_downs.add_one();
        self.is_up.send_replace(false);
        let logged = self.log.down.is_due();
        if let Some(suppressed) = logged {
            warn!("the durable tier counts as down until it answers: {why}{suppressed}");
        }
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            loop {
                this.writes.pause(this.config.breaker_pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                if this.answers().await {
                    this.breaker.succeeded();
                    this.is_up.send_replace(true);
                    if logged.is_some() {
                        info!("the durable tier answers again");
                    }
                    return;
                }
            }
        });
    }

    /// Returns whether the place answers when it is asked for the probe, whatever it says.
    async fn answers(&self) -> bool {
        let look = self.place.get(&self.probe, HEAD_LIMIT);
        match tokio::time::timeout(self.config.lookup_timeout, look).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => !error.kind().is_outage(),
            Err(_) => false,
        }
    }

    /// Waits until the tier takes writes: while it is down, or the write breaker is open. Waits less at a stop, where there
    /// is time for one more attempt.
    pub(super) async fn wait_to_write(&self) {
        let is_up = async {
            let _ = self.is_up.subscribe().wait_for(|is_up| *is_up).await;
        };
        tokio::select! {
            () = is_up => {}
            () = self.writes.wait_for_stop() => {}
        }
        self.writes.wait().await;
    }
}
