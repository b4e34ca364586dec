//! Waits for events instead of for time: gates, counts, and threads that run at once.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Long enough that only something that never happens takes it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A point that threads wait at until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn wait(&self) {
        let open = self.0.0.lock().unwrap();
        let (open, _) = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
        assert!(*open, "a gate was never opened");
    }
}

/// A count that can be waited for.
#[derive(Clone, Default)]
pub(crate) struct Count(Arc<(Mutex<usize>, Condvar)>);

impl Count {
    pub(crate) fn add(&self) {
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_all();
    }

    pub(crate) fn value(&self) -> usize {
        *self.0.0.lock().unwrap()
    }

    pub(crate) fn wait_for(&self, n: usize) {
        let count = self.0.0.lock().unwrap();
        let (count, _) = self.0.1.wait_timeout_while(count, PATIENCE, |count| *count < n).unwrap();
        assert!(*count >= n, "only {} of {n} happened", *count);
    }
}

/// Asks until it is so. For what has no event of its own, such as another process's state.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came about: {what}");
}

/// Runs `f` on `n` threads at once and gives back what each came to.
pub(crate) fn at_once<T: Send + 'static>(n: usize, f: impl Fn(usize) -> T + Send + Sync + 'static) -> Vec<T> {
    let f = Arc::new(f);
    let threads: Vec<_> = (0..n).map(|i| (i, Arc::clone(&f))).map(|(i, f)| std::thread::spawn(move || f(i))).collect();
    threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
}
