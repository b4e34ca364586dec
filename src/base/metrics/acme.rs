//! Counters of ACME.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::Metrics;
use super::counter::Counter;
use super::render::{header, labelled};
use crate::rfc9111::timestamp::Timestamp;

/// The outcome of an order, or of an attempt at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AcmeOutcome {
    /// The CA issued a certificate.
    Issued,
    /// The CA can't be reached, fails by itself, or takes too long.
    Unreachable,
    /// The CA refused, such as because it could not validate a name.
    Refused,
    /// The CA says that it was asked too often.
    TooOften,
    /// The state could not be read or written.
    State,
}

/// Every outcome, with its name.
const OUTCOMES: [(AcmeOutcome, &str); 5] = [
    (AcmeOutcome::Issued, "issued"),
    (AcmeOutcome::Unreachable, "unreachable"),
    (AcmeOutcome::Refused, "refused"),
    (AcmeOutcome::TooOften, "rate-limited"),
    (AcmeOutcome::State, "state"),
];

/// Counts orders, challenges and errors of ACME.
#[derive(Debug, Default)]
pub(crate) struct AcmeCounters {
    orders: [Counter; OUTCOMES.len()],
    /// Challenges that were answered.
    pub(crate) challenges: Counter,
    /// Seconds since 1970; 0: there is nothing to renew, or nothing failed.
    renewal: AtomicI64,
    error: AtomicI64,
    missing: AtomicUsize,
}

impl AcmeCounters {
    /// Counts an order, or an attempt at one.
    pub(crate) fn ordered(&self, outcome: AcmeOutcome) {
        self.orders[outcome as usize].add_one();
    }

    /// Notes when the next certificate is renewed.
    pub(crate) fn renewal_at(&self, next: Option<Timestamp>) {
        self.renewal.store(next.map_or(0, Timestamp::as_secs), Ordering::Relaxed);
    }

    /// Notes when something failed.
    pub(crate) fn failed_at(&self, now: Timestamp) {
        self.error.store(now.as_secs(), Ordering::Relaxed);
    }

    /// Notes the number of names without a certificate.
    pub(crate) fn missing(&self, names: usize) {
        self.missing.store(names, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Writes the counters of ACME.
    pub(super) fn render_acme(&self, out: &mut String) {
        let values = OUTCOMES.map(|(outcome, word)| (word, self.acme.orders[outcome as usize].value()));
        labelled(out, "larder_acme_orders_total", "Orders of certificates (ACME), by outcome.", "outcome", values);
        let name = "larder_acme_challenges_total";
        header(out, name, "counter", "Challenges of CAs that were answered.");
        let _ = writeln!(out, "{name} {}", self.acme.challenges.value());
        let (renewal, error) = (self.acme.renewal.load(Ordering::Relaxed), self.acme.error.load(Ordering::Relaxed));
        let missing = i64::try_from(self.acme.missing.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        for (name, help, value) in [
            (
                "larder_acme_next_renewal_timestamp_seconds",
                "When the next certificate is to be renewed; 0: there is none.",
                renewal,
            ),
            (
                "larder_acme_last_error_timestamp_seconds",
                "When an order or a look at the state failed last; 0: never.",
                error,
            ),
            ("larder_acme_missing_names", "Names of tls.acme.domains without a certificate.", missing),
        ] {
            header(out, name, "gauge", help);
            let _ = writeln!(out, "{name} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_counted_under_their_own_names() {
        for (n, (outcome, _)) in OUTCOMES.into_iter().enumerate() {
            assert_eq!(outcome as usize, n);
        }
    }
}
