//! The threads that wait for the disk: those of the runtime that the directory was opened on, which are few.
//!
//! * A read that does not come to an end, as on a network file system whose server is gone, keeps its thread. So reads have
//!   a deadline, no more than [`READS`] of them go on at once, and a file is not read again before its last read has ended.
//!   Some threads are always left for writes.
//! * Writes have no deadline here: one that went on after it counted as failed would spoil what comes after it.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::fault;
use crate::store::error::{StoreError, StoreErrorKind};

/// The most reads and listings at once.
const READS: usize = 8;

/// The longest that a read takes, and a listing.
const READ_WITHIN: Duration = Duration::from_secs(30);
const LIST_WITHIN: Duration = Duration::from_secs(120);

#[derive(Clone, Debug)]
pub(super) struct Threads {
    runtime: Handle,
    reads: Arc<Semaphore>,
    /// The names whose last read has passed its deadline, and has not ended.
    late: Arc<Mutex<HashSet<String>>>,
}

impl Threads {
    pub(super) fn of_current_runtime() -> Self {
        Self { runtime: Handle::current(), reads: Arc::new(Semaphore::new(READS)), late: Arc::default() }
    }

    /// Runs `work` on one of the threads. One call for a whole operation: each hand-over to another thread costs as much as a
    /// system call.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        ended(name, self.runtime.spawn_blocking(work)).await
    }

    /// Runs `work`, which reads the object `name`.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.within(READ_WITHIN, name, work).await
    }

    /// Runs `work`, which lists the directory `name`.
    pub(super) async fn list<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.within(LIST_WITHIN, name, work).await
    }

    async fn within<T: Send + 'static>(
        &self,
        limit: Duration,
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.late.lock().contains(name) {
            return Err(unavailable(format!("{name}: the disk has not answered an earlier read yet")));
        }
        let too_late = || unavailable(format!("{name}: the disk does not answer within {} s", limit.as_secs()));
        let deadline = tokio::time::sleep(limit);
        tokio::pin!(deadline);
        let permit = tokio::select! {
            permit = Arc::clone(&self.reads).acquire_owned() => permit,
            () = &mut deadline => return Err(too_late()),
        };
        let mut reading = self.runtime.spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        });
        tokio::select! {
            done = ended(name, &mut reading) => done,
            () = &mut deadline => {
                self.remember_until_it_ends(name, reading);
                Err(too_late())
            }
        }
    }

    fn remember_until_it_ends<T: Send + 'static>(&self, name: &str, reading: JoinHandle<T>) {
        let (late, name) = (Arc::clone(&self.late), name.to_owned());
        late.lock().insert(name.clone());
        self.runtime.spawn(async move {
            let _ = reading.await;
            late.lock().remove(&name);
        });
    }
}

async fn ended<T>(
    name: &str,
    work: impl Future<Output = Result<io::Result<T>, tokio::task::JoinError>>,
) -> Result<T, StoreError> {
    match work.await {
        Ok(done) => done.map_err(|error| fault(name, error)),
        Err(_) => Err(StoreError::given_up(name)),
    }
}

fn unavailable(message: String) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_that_never_end_leave_threads_for_others_and_are_not_begun_again() {
        let threads = Threads::of_current_runtime();
        let (stuck, release): (Vec<_>, Vec<_>) = (0..=READS)
            .map(|number| {
                let (threads, (release, wait)) = (threads.clone(), mpsc::channel::<()>());
                let read =
                    async move { threads.read(&format!("file {number}"), move || Ok(wait.recv().is_ok())).await };
                (tokio::spawn(read), release)
            })
            .unzip();
        tokio::task::yield_now().await;
        // The clock stands still while threads are busy.
        tokio::time::advance(READ_WITHIN + Duration::from_secs(1)).await;
        for read in stuck {
            let error = read.await.expect("no panic").expect_err("it never ends");
            assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        }
        let error = threads.read("file 0", || Ok(())).await.expect_err("it has not ended");
        assert!(error.to_string().contains("an earlier read"), "{error}");
        // A write goes on.
        threads.run("file", || Ok(())).await.expect("a thread is left");
        drop(release);
        while !threads.late.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        threads.read("file 0", || Ok(())).await.expect("it has ended");
    }
}
