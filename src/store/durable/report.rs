//! Counts and logs what happens to the durable tier, each kind of message once a minute.

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::{info, warn};

use super::Inner;
use crate::base::{DurableOp, DurableOutcome, Lost, Metrics};
use crate::rfc9111::key::CacheKey;
use crate::store::error::{StoreError, StoreErrorKind};
use crate::store::throttle::LogThrottle;

/// The most names of unreadable objects that are kept, so that each is logged once.
const MAX_UNREADABLE: usize = 4096;

/// Limits the tier's log messages.
#[derive(Debug, Default)]
pub(super) struct DurableLog {
    /// By operation and kind of error.
    errors: [[LogThrottle; StoreErrorKind::COUNT]; DurableOp::COUNT],
    lost: LogThrottle,
    pub(super) writes_wait: LogThrottle,
    pub(super) down: LogThrottle,
    pub(super) queue_full: LogThrottle,
    late: LogThrottle,
    /// Guarded by its lock: the names of objects that were logged as unreadable.
    unreadable: Mutex<HashSet<String>>,
}

impl Inner {
    /// Reports that a client is told that its value is stored before the directory has it.
    pub(super) fn report_late(&self, waited: Duration) {
        self.metrics.values_late.add_one();
        if let Some(suppressed) = self.log.late.is_due() {
            warn!(
                "the directory took longer than {waited:?} to write a value, whose client has its reply now: if this process is killed before it is written, it is lost, and the value before comes back{suppressed}"
            );
        }
    }

    /// Reports an object that can't be read and counts as absent. Logs each object once.
    pub(super) fn report_unreadable(&self, name: &str, why: &dyn Display) {
        self.metrics.durable(DurableOp::Get, DurableOutcome::Unreadable);
        let mut logged = self.log.unreadable.lock();
        if logged.len() >= MAX_UNREADABLE {
            logged.clear();
        }
        if !logged.insert(name.to_owned()) {
            return;
        }
        drop(logged);
        warn!(object = name, %why, "a durable object is not readable, and counts as not there");
    }

    /// Counts the outcome of an operation, and logs its error.
    pub(super) fn report(&self, op: DurableOp, outcome: &Result<(), StoreError>) {
        match outcome {
            Ok(()) => self.metrics.durable(op, DurableOutcome::Ok),
            Err(error) => self.report_error(op, error),
        }
    }

    /// Counts and logs a failed operation.
    pub(super) fn report_error(&self, op: DurableOp, error: &StoreError) {
        self.metrics.durable(op, DurableOutcome::Error);
        self.log_error(op, error);
    }

    pub(super) fn log_error(&self, op: DurableOp, error: &StoreError) {
        // The drain tells what is lost with it.
        if error.kind() == StoreErrorKind::GivenUp {
            return;
        }
        if let Some(suppressed) = self.log.errors[op as usize][error.kind() as usize].is_due() {
            warn!(op = ?op, "the durable tier failed: {error}{suppressed}");
        }
    }

    /// Reports that a response which was to be written will not be.
    pub(super) fn report_lost(&self, lost: Lost, key: &CacheKey, why: &dyn Display) {
        self.metrics.durable(DurableOp::Put, DurableOutcome::Dropped);
        self.metrics.lost(lost);
        if let Some(suppressed) = self.log.lost.is_due() {
            let url = key.parts().map_or_else(String::new, |parts| format!("{}{}", parts.authority, parts.path));
            warn!(url, "a response is not written to the durable tier: {why}{suppressed}");
        }
    }
}

/// Logs every hour the number of requests to the service so far, and their cost.
pub(super) async fn log_prices(metrics: Arc<Metrics>) {
    loop {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        if let Some(bill) = metrics.bill() {
            info!("the durable tier so far: {bill}");
        }
    }
}
