//! Lines between those who write them and the thread that brings them out.
//!
//! Two pieces of memory: lines are put at the end of one while the other is written. At most [`LIMIT`]
//! bytes wait and as many are being written; a line for which there is no room is lost, and counted. So is
//! what could not be written.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::Level;

use super::notice_line;

/// The most bytes that wait.
const LIMIT: usize = 1 << 20;

/// Pause after a failed write.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause after a full standard error that somebody has set not to block.
const FULL: Duration = Duration::from_millis(20);

/// The queue.
#[derive(Debug)]
pub(super) struct Queue {
    /// Held for the copy of a line, and to swap the two pieces of memory; never while one is written.
    state: Mutex<State>,
    /// Wakes the thread that writes.
    wake: Condvar,
    /// Wakes who waits for everything to be written.
    done: Condvar,
    lost: AtomicU64,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// Lines that came before those and could not be written, and why. Not told yet.
    failed: Lost,
    /// Lines that came after those, when there was no room.
    overrun: u64,
    is_writing: bool,
    /// Somebody waits: what failed is tried again at once.
    hurry: bool,
}

#[derive(Debug)]
struct Lost {
    lines: u64,
    why: String,
}

impl Lost {
    const NONE: Self = Self { lines: 0, why: String::new() };

    fn add(&mut self, lines: u64, why: &str) {
        self.lines += lines;
        why.clone_into(&mut self.why);
    }

    /// Returns the line that reports the loss.
    fn line(&self) -> Option<String> {
        let Self { lines, why } = self;
        let lines = match lines {
            0 => return None,
            1 => "1 log line was lost".to_owned(),
            lines => format!("{lines} log lines were lost"),
        };
        Some(notice_line(Level::WARN, &format!("{lines}: {why}")))
    }
}

const TOO_FAST: &str = "standard error took them more slowly than they came";

fn lines_in(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

impl Queue {
    pub(super) const fn new() -> Self {
        let state = State { waiting: Vec::new(), failed: Lost::NONE, overrun: 0, is_writing: false, hurry: false };
        Self { state: Mutex::new(state), wake: Condvar::new(), done: Condvar::new(), lost: AtomicU64::new(0) }
    }

    /// Puts one line, with its end, behind the others, or counts it as lost.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        // Once there was no room: what comes next would be out of order with what is told of that.
        if state.overrun > 0 || state.waiting.len() + line.len() > LIMIT {
            state.overrun += 1;
            drop(state);
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let was_empty = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// The lines that were lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everything is written, or can't be, for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        let mut state = self.state.lock();
        state.hurry = true;
        self.wake.notify_one();
        self.done.wait_while_for(&mut state, |state| state.is_writing || !state.waiting.is_empty(), limit);
    }

    /// Writes what comes to `out`, for good.
    pub(super) fn write_to(&self, out: &mut impl Write) {
        let mut out = Out { out, is_cut: false };
        let mut batch = Vec::new();
        loop {
            let (failed, overrun) = self.next(&mut batch);
            let outcome = self.write(&mut out, failed, &batch, overrun);
            batch.clear();
            batch.shrink_to(64 << 10);
            let mut state = self.state.lock();
            state.is_writing = false;
            if state.waiting.is_empty() {
                self.done.notify_all();
            }
            if let Err(failed) = outcome {
                state.failed = failed;
                let until_hurried = |state: &mut State| !state.hurry;
                self.wake.wait_while_for(&mut state, until_hurried, PAUSE);
                state.hurry = false;
            }
        }
    }

    /// Waits for lines, or for word of lost ones.
    fn next(&self, batch: &mut Vec<u8>) -> (Lost, u64) {
        let mut state = self.state.lock();
        while state.waiting.is_empty() && state.failed.lines == 0 && state.overrun == 0 {
            state.hurry = false;
            self.done.notify_all();
            self.wake.wait(&mut state);
        }
        state.is_writing = true;
        std::mem::swap(&mut state.waiting, batch);
        (std::mem::replace(&mut state.failed, Lost::NONE), std::mem::take(&mut state.overrun))
    }

    /// Writes a batch between word of what was lost before and after it; an error is what is to be told
    /// another time.
    fn write(&self, out: &mut Out<'_, impl Write>, mut failed: Lost, batch: &[u8], overrun: u64) -> Result<(), Lost> {
        let after = if overrun > 0 { Lost { lines: overrun, why: TOO_FAST.to_owned() } } else { Lost::NONE };
        let write = |out: &mut Out<'_, _>, text: Option<String>| match text {
            Some(text) => out.write(text.as_bytes()),
            None => Ok(()),
        };
        if let Err((_, error)) = write(out, failed.line()) {
            let lines = lines_in(batch);
            self.lost.fetch_add(lines, Ordering::Relaxed);
            failed.add(lines + overrun, &error.to_string());
            return Err(failed);
        }
        let mut failed = Lost::NONE;
        if let Err((written, error)) = out.write(batch) {
            let lines = lines_in(&batch[written..]);
            self.lost.fetch_add(lines, Ordering::Relaxed);
            failed.add(lines + overrun, &error.to_string());
            return Err(failed);
        }
        write(out, after.line()).map_err(|_| after)
    }
}

/// Holds the output, and remembers whether its last line is incomplete.
struct Out<'a, W> {
    out: &'a mut W,
    is_cut: bool,
}

impl<W: Write> Out<'_, W> {
    /// Writes all of `bytes`, or says how many it took and why no more.
    fn write(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        if self.is_cut {
            self.all(b"\n").map_err(|(_, error)| (0, error))?;
            self.is_cut = false;
        }
        let outcome = self.all(bytes);
        if let Err((written, _)) = &outcome {
            self.is_cut = bytes[..*written].last().is_some_and(|byte| *byte != b'\n');
        }
        outcome
    }

    fn all(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < bytes.len() {
            match self.out.write(&bytes[written..]) {
                Ok(0) => return Err((written, ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(FULL),
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    /// A place to write to that is full, closed, or held up, as the test says.
    #[derive(Clone, Default)]
    struct Sink(Arc<(Mutex<Inner>, Condvar)>);

    #[derive(Default)]
    struct Inner {
        text: Vec<u8>,
        is_held: bool,
        /// Number of bytes that it takes before it fails.
        room: Option<usize>,
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.0.lock();
            self.0.1.wait_while(&mut inner, |inner| inner.is_held);
            let n = match &mut inner.room {
                Some(0) => return Err(ErrorKind::StorageFull.into()),
                Some(room) => {
                    let n = bytes.len().min(*room);
                    *room -= n;
                    n
                }
                None => bytes.len(),
            };
            inner.text.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        fn set(&self, change: impl FnOnce(&mut Inner)) {
            change(&mut self.0.0.lock());
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.0.lock().text).into_owned()
        }
    }

    fn running(sink: &Sink) -> &'static Queue {
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        let mut sink = sink.clone();
        std::thread::spawn(move || queue.write_to(&mut sink));
        queue
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn lines_come_out_in_order() {
        let sink = Sink::default();
        let queue = running(&sink);
        let expected = (0..10_000).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n") + "\n";
        for line in expected.split_inclusive('\n') {
            queue.push(line.as_bytes());
        }
        queue.flush(LONG);
        assert_eq!(sink.text(), expected);
        assert_eq!(queue.lost(), 0);
    }

    #[test]
    fn what_a_full_disk_takes_from_the_log_is_counted_and_told_when_there_is_room() {
        let sink = Sink::default();
        sink.set(|inner| inner.room = Some(7));
        let queue = running(&sink);
        queue.push(b"one\n");
        queue.flush(LONG);
        queue.push(b"two-two-two\n");
        queue.flush(LONG);
        queue.push(b"three\n");
        queue.flush(LONG);
        let lost = queue.lost();
        assert_eq!(lost, 2, "{}", sink.text());
        sink.set(|inner| inner.room = None);
        // Told by itself, without another line.
        while !sink.text().contains("2 log lines were lost: ") {
            std::thread::yield_now();
        }
        queue.push(b"four\n");
        queue.flush(LONG);
        let text = sink.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.first(), lines.last()), (Some(&"one"), Some(&"four")), "{text}");
        assert_eq!(lines[1], "two", "the cut line ends: {text}");
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(queue.lost(), 2);
    }

    #[test]
    fn who_writes_never_waits_for_who_does_not_read() {
        let sink = Sink::default();
        sink.set(|inner| inner.is_held = true);
        let queue = running(&sink);
        let line = [&[b'x'; 1000][..], b"\n"].concat();
        for _ in 0..10_000 {
            queue.push(&line);
        }
        assert!(queue.lost() >= 10_000 - 2 * (LIMIT / line.len()) as u64 - 2, "{}", queue.lost());
        queue.flush(Duration::from_millis(10));
        let lost = queue.lost();
        sink.set(|inner| inner.is_held = false);
        queue.flush(LONG);
        while !sink.text().contains(&format!("{lost} log lines were lost: {TOO_FAST}")) {
            std::thread::yield_now();
        }
        queue.push(b"after\n");
        queue.flush(LONG);
        let text = sink.text();
        assert!(text.ends_with("after\n"));
        assert_eq!(lines_in(text.as_bytes()), 10_000 - lost + 2);
    }

    #[test]
    fn many_threads_lose_nothing_and_mix_nothing() {
        let sink = Sink::default();
        let queue = running(&sink);
        let (sender, receiver) = mpsc::channel::<()>();
        for thread in 0..4 {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for n in 0..1000 {
                    queue.push(format!("{thread}:{n}\n").as_bytes());
                }
                drop(sender);
            });
        }
        drop(sender);
        assert!(receiver.recv().is_err(), "all are done");
        queue.flush(LONG);
        let text = sink.text();
        for thread in 0..4 {
            let own: Vec<&str> = text.lines().filter(|line| line.starts_with(&format!("{thread}:"))).collect();
            assert_eq!(own.len(), 1000);
            assert!(own.iter().enumerate().all(|(n, line)| *line == format!("{thread}:{n}")));
        }
    }
}
