//! A circuit breaker: spares requests to a server that is known to be down.
//!
//! After several failures on end the breaker is **open**. Requests that can do without the server then do, and of the others
//! a few are let through as probes. The first answer of any kind closes it.
//!
//! A failure that may be the fault of the request counts once for that request, however often it is repeated: one slow page
//! does not mean that the server is down.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::Stopwatch;

/// A circuit breaker, closed at first.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// Number of failures on end that open it; 0: none does.
    failures: u32,
    /// Least time between two probes of those that are let through by time.
    pause: Duration,
    /// Failures on end so far.
    counted: AtomicU32,
    is_open: AtomicBool,
    /// Answers so far.
    answers: AtomicU64,
    /// Guarded by its lock, which is taken only while the breaker is open, or counts a failure.
    probing: Mutex<Probing>,
}

#[derive(Debug, Default)]
struct Probing {
    /// Number of probes under way.
    under_way: u32,
    last: Option<Stopwatch>,
    /// True if the last failure took its time: the server is slow rather than gone.
    was_slow: bool,
    /// Fingerprints of the requests whose failures count, at most [`MAX_CULPRITS`], the newest last.
    culprits: VecDeque<u64>,
}

/// The most requests that are told apart. Past it the oldest may count once more.
const MAX_CULPRITS: usize = 64;

/// The decision about a request.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It may go.
    Granted,
    /// It may go, and shows whether the server is up again. The caller holds the probe until it knows.
    Probe(Probe),
    /// It may not go.
    Refused {
        /// True if the last failure took its time: the server is slow rather than gone.
        was_slow: bool,
    },
}

/// A probe under way. Counts as such until it is dropped.
#[derive(Debug)]
pub(crate) struct Probe(Arc<Breaker>);

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.probing.lock().under_way -= 1;
    }
}

/// The most probes at once of a server that is gone: each fails at once.
const PROBES_OF_GONE: u32 = 1;

/// The most probes at once of a server that is slow: one slow page does not speak for all.
const PROBES_OF_SLOW: u32 = 16;

impl Breaker {
    /// A breaker that opens after `failures` on end (0: never), and lets at least one probe through each `pause`.
    pub(crate) fn new(failures: u32, pause: Duration) -> Arc<Self> {
        Arc::new(Self {
            failures,
            pause,
            counted: AtomicU32::new(0),
            is_open: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            probing: Mutex::default(),
        })
    }

    /// Returns whether the breaker is open.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Decides about a request that has no other answer.
    pub(crate) fn admit(self: &Arc<Self>) -> Admission {
        if !self.is_open() {
            return Admission::Granted;
        }
        let mut probing = self.probing.lock();
        let most = if probing.was_slow { PROBES_OF_SLOW } else { PROBES_OF_GONE };
        if probing.under_way >= most && !self.is_due(&probing) {
            return Admission::Refused { was_slow: probing.was_slow };
        }
        self.begin(&mut probing)
    }

    /// Decides about a request that no client waits for: while open, one a pause may go.
    pub(crate) fn admit_in_background(self: &Arc<Self>) -> Admission {
        if !self.is_open() {
            return Admission::Granted;
        }
        let mut probing = self.probing.lock();
        if !self.is_due(&probing) {
            return Admission::Refused { was_slow: probing.was_slow };
        }
        self.begin(&mut probing)
    }

    /// Returns whether [`Breaker::admit_in_background`] would let a request go.
    pub(crate) fn is_probe_due(&self) -> bool {
        !self.is_open() || self.is_due(&self.probing.lock())
    }

    fn is_due(&self, probing: &Probing) -> bool {
        probing.last.is_none_or(|last| last.elapsed() >= self.pause)
    }

    fn begin(self: &Arc<Self>, probing: &mut Probing) -> Admission {
        probing.last = Some(Stopwatch::start());
        probing.under_way += 1;
        Admission::Probe(Probe(Arc::clone(self)))
    }

    /// Returns the number of answers so far, to compare two moments.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Counts an answer, and closes the breaker. Returns whether it was open.
    pub(crate) fn succeeded(&self) -> bool {
        self.answers.fetch_add(1, Ordering::Relaxed);
        if self.counted.load(Ordering::Acquire) == 0 && !self.is_open() {
            return false;
        }
        let mut probing = self.probing.lock();
        probing.culprits.clear();
        self.counted.store(0, Ordering::Release);
        self.is_open.swap(false, Ordering::AcqRel)
    }

    /// Counts a failure. Returns whether that opened the breaker.
    pub(crate) fn failed(&self, was_slow: bool) -> bool {
        self.note(was_slow, None)
    }

    /// Counts a failure of the request `culprit`, which may be its reason. Returns whether that opened the breaker.
    pub(crate) fn failed_at(&self, was_slow: bool, culprit: u64) -> bool {
        self.note(was_slow, Some(culprit))
    }

    fn note(&self, was_slow: bool, culprit: Option<u64>) -> bool {
        if self.failures == 0 {
            return false;
        }
        // Under the lock: an answer meanwhile must not leave the breaker open, or the count half reset.
        let mut probing = self.probing.lock();
        if let Some(culprit) = culprit {
            if probing.culprits.contains(&culprit) {
                return false;
            }
            if probing.culprits.len() == MAX_CULPRITS {
                probing.culprits.pop_front();
            }
            probing.culprits.push_back(culprit);
        }
        let counted = self.counted.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        probing.was_slow = was_slow;
        if counted < self.failures || self.is_open.swap(true, Ordering::AcqRel) {
            return false;
        }
        probing.last = Some(Stopwatch::start());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    fn open(was_slow: bool) -> Arc<Breaker> {
        let breaker = Breaker::new(3, PAUSE);
        assert!(!breaker.failed(was_slow));
        assert!(!breaker.failed(was_slow));
        assert!(breaker.failed(was_slow), "three on end");
        assert!(!breaker.failed(was_slow), "it is open already");
        breaker
    }

    fn probe(admission: Admission) -> Option<Probe> {
        match admission {
            Admission::Probe(probe) => Some(probe),
            Admission::Granted | Admission::Refused { .. } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_on_end_open_it_and_any_answer_closes_it() {
        let breaker = Breaker::new(3, PAUSE);
        for _ in 0..10 {
            breaker.failed(false);
            breaker.failed(false);
            breaker.succeeded();
        }
        assert!(!breaker.is_open(), "never three on end");
        let breaker = open(false);
        assert!(breaker.is_open());
        assert!(breaker.succeeded());
        assert!(matches!(breaker.admit(), Admission::Granted));
        let never = Breaker::new(0, PAUSE);
        assert!((0..100).all(|_| !never.failed(true)));
    }

    #[tokio::test(start_paused = true)]
    async fn repeated_failures_of_one_request_count_once() {
        let breaker = Breaker::new(3, PAUSE);
        assert!((0..100).all(|_| !breaker.failed_at(true, 1)));
        assert!(!breaker.failed_at(true, 2));
        assert!((0..100).all(|n| !breaker.failed_at(true, 1 + n % 2)) && !breaker.is_open());
        breaker.succeeded();
        for culprit in [1, 1, 2] {
            assert!(!breaker.failed_at(false, culprit), "an answer lies between");
        }
        assert!(breaker.failed_at(false, 3));
        let many = Breaker::new(1000, PAUSE);
        assert!((0..999).all(|n| !many.failed_at(true, n)));
        assert_eq!(many.probing.lock().culprits.len(), MAX_CULPRITS);
        assert!(many.failed(true), "a failure of no one thing counts whatever the others were");
    }

    #[tokio::test(start_paused = true)]
    async fn few_probes_run_at_once_and_one_more_each_pause() {
        let breaker = open(false);
        let first = probe(breaker.admit()).expect("one is let through");
        assert!(matches!(breaker.admit(), Admission::Refused { was_slow: false }));
        tokio::time::sleep(PAUSE).await;
        let second = probe(breaker.admit()).expect("a pause has passed");
        assert!(probe(breaker.admit()).is_none());
        drop((first, second));
        assert!(probe(breaker.admit()).is_some(), "none is under way");

        let breaker = open(true);
        let probes: Vec<_> = (0..PROBES_OF_SLOW).map(|_| probe(breaker.admit()).expect("a slow place")).collect();
        assert!(matches!(breaker.admit(), Admission::Refused { was_slow: true }));
        assert!(probe(breaker.admit_in_background()).is_none());
        tokio::time::sleep(PAUSE).await;
        assert!(breaker.is_probe_due());
        assert!(probe(breaker.admit_in_background()).is_some());
        assert!(!breaker.is_probe_due());
        drop(probes);
        assert_eq!(breaker.probing.lock().under_way, 0);
    }
}
