//! The end: what waits is written while there is time, and what is not is told.

use std::time::Duration;

use tracing::{info, warn};

use super::Durable;
use super::flow::AT_THE_END;
use crate::base::Lost;
use crate::store::seldom::Seldom;

/// Reports what became of the operations that were outstanding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Responses that still wait to be written.
    pub unwritten: u64,
    /// Deletions that still wait: what they are of is there, and counts as purged.
    pub undeleted: u64,
    /// Purges and new keys that are not in the journal.
    pub untold: u64,
    /// Responses that were lost since the start, and why.
    pub lost: Vec<(Lost, u64)>,
}

impl Drained {
    /// Returns how many operations are left.
    pub fn left(&self) -> u64 {
        self.unwritten + self.undeleted + self.untold
    }
}

impl Durable {
    /// Waits until nothing is outstanding, at most `deadline`, without the pauses that there are in service.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        self.inner.flow.end();
        let said = Seldom::default();
        let write_journal = async || {
            while let Err(error) = self.inner.journal.write().await {
                if said.is_due().is_some() {
                    warn!("the journal can't be written: {error}");
                }
                tokio::time::sleep(AT_THE_END).await;
            }
        };
        let emptied = tokio::time::timeout(deadline, async {
            // Waits for both at once: the journal does not wait for writes that can't succeed.
            tokio::join!(self.inner.queue.empty(), write_journal());
            write_journal().await;
        });
        let _ = emptied.await;
        self.inner.flow.go_on();
        self.left()
    }

    /// Returns the operations that are outstanding now.
    fn left(&self) -> Drained {
        let (inner, queue) = (&self.inner, &self.inner.queue);
        let unwritten = queue.puts() + queue.others();
        Drained {
            unwritten,
            undeleted: queue.depth().0.saturating_sub(queue.puts()) + queue.retrying(),
            untold: inner.journal.outstanding(),
            lost: inner.metrics.losses(),
        }
    }
}

/// Says at a stop what became of what was to be written.
pub(crate) fn report_drain(drained: &Drained, deadline: Duration) {
    let lost: u64 = drained.lost.iter().map(|(_, count)| count).sum();
    if lost + drained.left() == 0 {
        info!("every response that was to be written to the durable tier is written");
        return;
    }
    let Drained { unwritten, undeleted, untold, .. } = drained;
    let mut told = Vec::new();
    if *unwritten > 0 {
        told.push(format!(
            "{unwritten} responses still waited when durable.drain_timeout ({} s) had passed",
            deadline.as_secs_f64()
        ));
    }
    told.extend(drained.lost.iter().map(|(why, count)| match why {
        Lost::QueueFull => format!("{count} found the queue full (durable.queue_objects, durable.queue_bytes)"),
        Lost::NotTaken => format!("{count} were not taken by the tier"),
        Lost::NoRoom => format!("{count} found no room"),
        Lost::Upload => format!("{count} too large for memory could not be written as they came in"),
    }));
    if *undeleted > 0 {
        told.push(format!("{undeleted} that were invalidated are not deleted there, and count as purged"));
    }
    if *untold > 0 {
        told.push(format!("{untold} purges and new keys are not known to other processes"));
    }
    warn!(
        "{} responses were not written to the durable tier when they were to be: {}",
        lost + unwritten,
        told.join("; ")
    );
}
