//! The look-up breaker: after several failures on end no look-up asks the place, until the probe shows that it answers.
//!
//! Only errors of an outage count ([`StoreErrorKind::is_outage`]). A corrupt object is an answer, and so is a refusal: the
//! place is not down. Yet a place that refuses one read mostly refuses the next, so look-ups rest for a pause after it.

use std::fmt::Display;
use std::sync::Arc;

use tracing::{info, warn};

use super::{HEAD_LIMIT, Inner};
use crate::base::Stopwatch;
use crate::store::error::{StoreError, StoreErrorKind};

impl Inner {
    /// Counts the outcome of a read for the breaker.
    pub(super) fn note_read<T>(self: &Arc<Self>, outcome: &Result<T, StoreError>) {
        match outcome {
            Err(error) if error.kind().is_outage() => self.note_outage(false, error),
            Ok(_) | Err(_) => drop(self.breaker.succeeded()),
        }
        if outcome.as_ref().is_err_and(|error| error.kind() == StoreErrorKind::Refused) {
            *self.refused.lock() = Some(Stopwatch::start());
        }
    }

    /// Returns whether look-ups are spared the place: it counts as down, or has just refused a read.
    pub(super) fn spares_lookups(&self) -> bool {
        self.breaker.is_open()
            || self.refused.lock().is_some_and(|refused| refused.elapsed() < self.config.breaker_pause)
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

    /// Returns whether the tier takes writes, as far as is known: it is not down, and the write breaker is closed.
    pub(super) fn takes_writes(&self) -> bool {
        *self.is_up.borrow() && self.writes.is_closed()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header::{ACCEPT_LANGUAGE, HeaderMap, HeaderValue};

    use crate::base::{Clock, Metrics};
    use crate::entry::tests::sample;
    use crate::rfc9111::timestamp::Timestamp;
    use crate::store::durable::{Came, Config, Durable, DurableLookup, Opening};
    use crate::store::memory::{self, Memory};
    use crate::store::names::ObjectNames;
    use crate::store::purge::Purges;
    use crate::store::simulated::{Faults, Simulated, SimulatedBucket};

    use super::*;

    /// A bucket with a sample response, and a tier over it that knows of it.
    async fn tier() -> (Arc<SimulatedBucket>, Durable) {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let bucket = Arc::new(SimulatedBucket::new(clock.clone(), 7));
        let config = Config { breaker_failures: 3, breaker_pause: Duration::from_secs(2), ..Config::default() };
        let durable = Durable::over(
            Arc::new(Simulated::to(&bucket)),
            &config,
            ObjectNames::new("", ""),
            Arc::new(Purges::new(clock, 1)),
            Arc::new(Memory::new(&memory::Config::default())),
            Metrics::new(1),
        );
        durable.journal().load().await.expect("no faults yet");
        let stored = Arc::new(sample());
        assert!(durable.put(Arc::clone(&stored), None, Came::JustNow));
        assert_eq!(durable.drain(Duration::from_secs(60)).await.left(), 0);
        (bucket, durable)
    }

    /// Looks up ten times in a bucket with these faults. Returns the reads that the bucket saw, how many found the response,
    /// and whether the tier counts as down.
    async fn ten_lookups((bucket, durable): &(Arc<SimulatedBucket>, Durable), faults: Faults) -> (u64, usize, bool) {
        bucket.set_faults(faults);
        let (before, mut found) = (bucket.reads(), 0);
        let key = sample().head.key;
        let request = HeaderMap::from_iter([(ACCEPT_LANGUAGE, HeaderValue::from_static("de, en"))]);
        for _ in 0..10 {
            let answer = durable.lookup(&key, &request, Arc::default(), None, Opening::Later).await;
            found += usize::from(matches!(answer, DurableLookup::Response(_)));
        }
        (bucket.reads() - before, found, durable.is_down())
    }

    #[tokio::test(start_paused = true)]
    async fn the_breaker_goes_by_the_kind_of_the_error() {
        let failing = Faults { fail: 1000, ..Faults::default() };
        assert_eq!(ten_lookups(&tier().await, failing).await, (3, 0, true), "an outage");
        let refusing = Faults { refuse: true, ..Faults::default() };
        assert_eq!(ten_lookups(&tier().await, refusing).await, (1, 0, false), "a refusal");
        let there = tier().await;
        assert_eq!(ten_lookups(&there, Faults::default()).await, (10, 10, false), "it answers");
        there.0.remove_all();
        assert_eq!(
            ten_lookups(&there, Faults::default()).await,
            (1, 0, false),
            "the pack is gone, and with it all in it"
        );
    }
}
