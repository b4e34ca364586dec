//! The end of the tier: it writes what waits while there is time, and reports what it could not write.

use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::Durable;
use super::write::Work;
use super::write_breaker::PAUSE_AT_STOP;
use crate::base::Lost;
use crate::store::throttle::LogThrottle;

/// The operations that are left after a drain, and the responses lost before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Responses that still wait to be written.
    pub unwritten: u64,
    /// Deletions that still wait. What they should delete is there, and counts as purged.
    pub undeleted: u64,
    /// Purges that are not in the journal.
    pub unannounced: u64,
    /// Numbers of responses that were lost since the start, by reason.
    pub lost: Vec<(Lost, u64)>,
}

impl Drained {
    /// Returns how many operations are left.
    pub fn left(&self) -> u64 {
        self.unwritten + self.undeleted + self.unannounced
    }
}

impl Durable {
    /// Waits until nothing is outstanding, at most `deadline`. Pauses between attempts are short.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.inner.writes.set_stopping(true);
        let throttle = LogThrottle::default();
        let write_journal = async || {
            while let Err(error) = self.inner.journal.write().await {
                if throttle.is_due().is_some() {
                    warn!("the journal can't be written: {error}");
                }
                tokio::time::sleep(PAUSE_AT_STOP).await;
            }
        };
        let emptied = tokio::time::timeout(deadline, async {
            // Both at once: the journal must not wait for writes that can't succeed.
            tokio::join!(self.write_all(), write_journal());
        });
        let _ = emptied.await;
        self.inner.writes.set_stopping(false);
        self.left()
    }

    /// Waits until all that waits is written, and no pack is open.
    async fn write_all(&self) {
        loop {
            let (sender, is_sealed) = oneshot::channel();
            if self.inner.writer.send(Work::Seal(sender)).is_err() || is_sealed.await.is_err() {
                return;
            }
            // Separate bodies and uploads may be under way: their heads follow.
            if tokio::time::timeout(PAUSE_AT_STOP, self.inner.queue.empty()).await.is_ok() {
                let (sender, is_sealed) = oneshot::channel();
                if self.inner.writer.send(Work::Seal(sender)).is_ok() {
                    let _ = is_sealed.await;
                }
                return;
            }
        }
    }

    /// Returns the operations that are outstanding now.
    fn left(&self) -> Drained {
        let (inner, queue) = (&self.inner, &self.inner.queue);
        let unwritten = queue.puts().0 + queue.uploads();
        Drained {
            unwritten,
            undeleted: queue.deletions().0,
            unannounced: inner.journal.outstanding(),
            lost: inner.metrics.losses(),
        }
    }
}

/// Logs at the stop what became of the responses that were to be written.
pub(crate) fn report_drain(drained: &Drained, deadline: Duration) {
    let lost: u64 = drained.lost.iter().map(|(_, count)| count).sum();
    if lost + drained.left() == 0 {
        info!("every response that was to be written to the durable tier is written");
        return;
    }
    let Drained { unwritten, undeleted, unannounced, .. } = drained;
    let mut reasons = Vec::new();
    if *unwritten > 0 {
        reasons.push(format!(
            "{unwritten} responses still waited when durable.drain_timeout ({} s) had passed",
            deadline.as_secs_f64()
        ));
    }
    reasons.extend(drained.lost.iter().map(|(why, count)| match why {
        Lost::QueueFull => format!("{count} found the queue full (durable.queue_objects, durable.queue_bytes)"),
        Lost::NotTaken => format!("{count} were not taken by the tier"),
        Lost::NoRoom => format!("{count} found no room"),
        Lost::Upload => format!("{count} too large for memory could not be written as they came in"),
    }));
    if *undeleted > 0 {
        reasons.push(format!("{undeleted} that were invalidated are not deleted there, and count as purged"));
    }
    if *unannounced > 0 {
        reasons.push(format!("{unannounced} purges are not known to other processes"));
    }
    warn!(
        "{} responses were not written to the durable tier when they were to be: {}",
        lost + unwritten,
        reasons.join("; ")
    );
}
