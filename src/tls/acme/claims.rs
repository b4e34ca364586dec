//! Lets one process order at a time, although no place has locks, and some ignore conditions.
//!
//! 1. A process that sees no live claim writes its own, a name with its time.
//! 2. It waits until the claims of others that did so at the same time are there, and lists again.
//! 3. The lowest live claim has it. The others take theirs back.
//!
//! A claim is alive while its beat grows: each process measures that by its own clock, from when it first saw the beat. So the
//! clocks of processes need not agree. If a process takes longer to write its claim than step 2 waits, both order: that is an
//! order too many, and no harm else.

use std::collections::HashMap;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::records::{ClaimName, Stamp};
use crate::base::Stopwatch;
use crate::store::{Keep, StoreError};

/// The claims of one CA's state.
#[derive(Debug)]
pub(super) struct Claims {
    keep: Keep,
    /// The beginning of their names.
    prefix: String,
    node: u64,
    pace: Pace,
    /// Guarded by its lock: the beat of each claim, and when it was first seen.
    seen: Mutex<HashMap<Stamp, (u32, Stopwatch)>>,
}

/// The times that a claim takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Step 2 above.
    pub(super) settle: Duration,
    /// Between two beats.
    pub(super) beat: Duration,
    /// A claim that has not beaten for this long is dead.
    pub(super) dead_after: Duration,
}

impl Pace {
    /// The pace for a state that is looked at every `poll`.
    pub(super) fn of(poll: Duration) -> Self {
        Self { settle: poll / 9, beat: poll / 3, dead_after: poll * 4 / 3 }
    }
}

/// The claim of this process, which is the lowest.
#[derive(Debug)]
pub(super) struct Held<'a> {
    claims: &'a Claims,
    name: ClaimName,
}

impl Claims {
    pub(super) fn new(keep: Keep, base: &str, node: u64, pace: Pace) -> Self {
        Self { keep, prefix: format!("{base}{}/", ClaimName::KIND), node, pace, seen: Mutex::default() }
    }

    /// Claims, unless another process does.
    pub(super) async fn acquire(&self) -> Result<Option<Held<'_>>, StoreError> {
        if let Some(other) = self.live(None).await?.first() {
            debug!("another process orders certificates, or is about to: {other}");
            return Ok(None);
        }
        let held =
            Held { claims: self, name: ClaimName { stamp: Stamp { time: self.keep.now(), node: self.node }, beat: 0 } };
        self.write(held.name).await?;
        sleep(self.pace.settle).await;
        match self.live(Some(held.name.stamp)).await {
            Ok(live) if live.first() == Some(&held.name.stamp) => Ok(Some(held)),
            Ok(_) => {
                held.release().await;
                Ok(None)
            }
            Err(error) => {
                held.release().await;
                Err(error)
            }
        }
    }

    /// Returns the claims that are alive, the lowest first, `own` among them. Deletes the others.
    async fn live(&self, own: Option<Stamp>) -> Result<Vec<Stamp>, StoreError> {
        let names = self.keep.list(&self.prefix).await?;
        let claims = names.iter().filter_map(|name| ClaimName::parse(name.strip_prefix(&self.prefix)?));
        let (live, dead) = self.observe(claims, own);
        for claim in dead {
            // Its process may be alive and cut off: it finds out that others go on without it, at worst after an order.
            if let Err(error) = self.keep.delete(&self.name_of(claim)).await {
                debug!("a claim that is dead could not be deleted: {error}");
            }
        }
        Ok(live)
    }

    /// Tells the claims that are alive from those that are not.
    fn observe(&self, claims: impl Iterator<Item = ClaimName>, own: Option<Stamp>) -> (Vec<Stamp>, Vec<ClaimName>) {
        let mut listed: HashMap<Stamp, u32> = HashMap::new();
        let all: Vec<ClaimName> = claims.collect();
        for claim in &all {
            let beat = listed.entry(claim.stamp).or_default();
            *beat = (*beat).max(claim.beat);
        }
        let mut seen = self.seen.lock();
        seen.retain(|stamp, _| listed.contains_key(stamp));
        for (stamp, beat) in &listed {
            let of_stamp = seen.entry(*stamp).or_insert_with(|| (*beat, Stopwatch::start()));
            if of_stamp.0 != *beat {
                *of_stamp = (*beat, Stopwatch::start());
            }
        }
        // Another claim of this process is one that it could not give back.
        let is_live = |stamp: &Stamp| {
            let beats = || seen.get(stamp).is_some_and(|(_, since)| since.elapsed() < self.pace.dead_after);
            if stamp.node == self.node { own == Some(*stamp) } else { beats() }
        };
        let mut live: Vec<Stamp> = listed.into_keys().filter(is_live).collect();
        live.sort_unstable();
        (live, all.into_iter().filter(|claim| !is_live(&claim.stamp)).collect())
    }

    fn name_of(&self, claim: ClaimName) -> String {
        format!("{}{claim}", self.prefix)
    }

    async fn write(&self, claim: ClaimName) -> Result<(), StoreError> {
        self.keep.put(&self.name_of(claim), Bytes::from_static(b"A process that orders certificates.\n")).await
    }
}

impl Held<'_> {
    /// Does `work` while the claim beats, and gives the claim back.
    pub(super) async fn during<T>(mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                () = sleep(self.claims.pace.beat) => {}
            }
            let mut beat = pin!(self.beat());
            tokio::select! {
                biased;
                done = &mut work => {
                    // A write that is under way would come after the claim is given back.
                    beat.await;
                    break done;
                }
                () = &mut beat => {}
            }
        };
        self.release().await;
        done
    }

    async fn beat(&mut self) {
        let last = self.name;
        let next = ClaimName { beat: last.beat + 1, ..last };
        match self.claims.write(next).await {
            Ok(()) => {
                self.name = next;
                let _ = self.claims.keep.delete(&self.claims.name_of(last)).await;
            }
            Err(error) => warn!("tls.acme: the claim to order certificates could not be renewed: {error}"),
        }
    }

    /// Gives the claim back.
    async fn release(self) {
        let Claims { keep, prefix, .. } = self.claims;
        // A beat that was interrupted may have left two names.
        let own = |name: &String| {
            let claim = name.strip_prefix(prefix.as_str()).and_then(ClaimName::parse);
            claim.is_some_and(|claim| claim.stamp == self.name.stamp)
        };
        let names = keep.list(prefix).await.unwrap_or_else(|_| vec![self.claims.name_of(self.name)]);
        for name in names.iter().filter(|name| own(name)) {
            if let Err(error) = keep.delete(name).await {
                debug!("a claim could not be given back, and dies by itself: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::base::Clock;
    use crate::rfc9111::timestamp::Timestamp;

    const PACE: Pace = Pace {
        settle: Duration::from_millis(300),
        beat: Duration::from_millis(100),
        // Long enough that a machine with other work beats in time.
        dead_after: Duration::from_secs(3),
    };

    async fn keep(directory: &tempfile::TempDir, clock: i64) -> Keep {
        let clock = Clock::manual(Timestamp::from_secs(clock));
        Keep::in_directory(directory.path(), clock).await.expect("a directory")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_that_want_to_order_at_once_one_may_whatever_their_clocks_say() {
        let directory = tempfile::tempdir().expect("a directory");
        let (winners, mut tasks) = (Arc::new(AtomicUsize::new(0)), Vec::new());
        for node in 0..8 {
            // Clocks that are minutes apart.
            let keep = keep(&directory, 1_000_000 - 100 * i64::try_from(node).expect("small")).await;
            let winners = Arc::clone(&winners);
            tasks.push(tokio::spawn(async move {
                let claims = Claims::new(keep, "ca/", node, PACE);
                if let Some(held) = claims.acquire().await.expect("it is there") {
                    winners.fetch_add(1, Ordering::SeqCst);
                    // Longer than a claim lives that does not beat.
                    held.during(sleep(PACE.dead_after * 2)).await;
                }
            }));
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        assert_eq!(winners.load(Ordering::SeqCst), 1);
        let keep = keep(&directory, 0).await;
        assert_eq!(keep.list("ca/claims/").await.expect("a list"), Vec::<String>::new(), "all are given back");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_claim_that_beats_is_respected_and_a_dead_one_is_taken_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let (first, second) = (keep(&directory, 50).await, keep(&directory, 10).await);
        let (first, second) = (Claims::new(first, "ca/", 1, PACE), Claims::new(second, "ca/", 2, PACE));
        let held = first.acquire().await.expect("it is there").expect("nobody else");
        let work = async {
            for _ in 0..8 {
                assert!(second.acquire().await.expect("it is there").is_none());
                sleep(PACE.dead_after / 4).await;
            }
        };
        held.during(work).await;
        // Nothing is given back, and nothing beats, as after kill -9.
        let _killed = first.acquire().await.expect("it is there").expect("nobody else");
        assert!(second.acquire().await.expect("it is there").is_none(), "it may be alive");
        sleep(PACE.dead_after).await;
        assert!(second.acquire().await.expect("it is there").is_some());
    }
}
