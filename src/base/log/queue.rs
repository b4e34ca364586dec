//! The queue of lines for the thread that writes the log.
//!
//! There are two buffers: lines are appended to one while the other is written. Each has at most [`LIMIT`] bytes. A line
//! that does not fit is lost and counted, as is a line that can't be written.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::Level;

use super::notice_line;

/// The most bytes that wait to be written.
const LIMIT: usize = 1 << 20;

/// Pause after a failed write.
const PAUSE: Duration = Duration::from_secs(1);

/// Pause after a write that would block, if standard error was set not to.
const FULL: Duration = Duration::from_millis(20);

/// A queue of lines.
#[derive(Debug)]
pub(super) struct Queue {
    /// Locked to append a line and to swap the buffers, never during a write.
    state: Mutex<QueueState>,
    /// Wakes the thread that writes.
    wake: Condvar,
    /// Wakes those that wait until every line is written.
    done: Condvar,
    /// Number of lines lost so far.
    lost: AtomicU64,
}

#[derive(Debug)]
struct QueueState {
    /// The lines that wait to be written.
    waiting: Vec<u8>,
    /// Lost lines from before those in `waiting`, which could not be written. Not reported yet.
    failed: LostLines,
    /// Number of lines lost after those in `waiting`, for want of room. Not reported yet.
    overrun: u64,
    /// True during a write.
    is_writing: bool,
    /// True if somebody waits for the lines, so that a failed write is tried again at once.
    hurry: bool,
}

/// Lines that were lost.
#[derive(Debug)]
struct LostLines {
    /// Their number.
    lines: u64,
    /// The reason for the last.
    why: String,
}

impl LostLines {
    const NONE: Self = Self { lines: 0, why: String::new() };

    /// Adds lines that were lost for the reason `why`.
    fn add(&mut self, lines: u64, why: &str) {
        self.lines += lines;
        why.clone_into(&mut self.why);
    }

    /// Returns the log line that reports the loss, if there is one.
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

/// The reason for lines lost for want of room.
const TOO_FAST: &str = "standard error took them more slowly than they came";

/// Returns the number of lines in `bytes`.
fn lines_in(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

impl Queue {
    /// Makes an empty queue.
    pub(super) const fn new() -> Self {
        let state =
            QueueState { waiting: Vec::new(), failed: LostLines::NONE, overrun: 0, is_writing: false, hurry: false };
        Self { state: Mutex::new(state), wake: Condvar::new(), done: Condvar::new(), lost: AtomicU64::new(0) }
    }

    /// Appends a line, which ends with a newline, or counts it as lost.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.state.lock();
        // After a line was lost, all further ones are, until the loss is reported: the report stands where they are missing.
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

    /// Returns the number of lines lost so far.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until every line is written or lost, at most `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let mut state = self.state.lock();
        state.hurry = true;
        self.wake.notify_one();
        self.done.wait_while_for(&mut state, |state| state.is_writing || !state.waiting.is_empty(), limit);
    }

    /// Writes lines to `out` as they come, and never returns.
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
                let until_hurried = |state: &mut QueueState| !state.hurry;
                self.wake.wait_while_for(&mut state, until_hurried, PAUSE);
                state.hurry = false;
            }
        }
    }

    /// Waits for lines, which it moves to `batch`, or for a loss to report. Returns the lines lost before and after them.
    fn next(&self, batch: &mut Vec<u8>) -> (LostLines, u64) {
        let mut state = self.state.lock();
        while state.waiting.is_empty() && state.failed.lines == 0 && state.overrun == 0 {
            state.hurry = false;
            self.done.notify_all();
            self.wake.wait(&mut state);
        }
        state.is_writing = true;
        std::mem::swap(&mut state.waiting, batch);
        (std::mem::replace(&mut state.failed, LostLines::NONE), std::mem::take(&mut state.overrun))
    }

    /// Writes the report of the lines lost before the batch, the batch, and the report of those lost after it. Returns
    /// the loss that is still to be reported, if a write fails.
    fn write(
        &self,
        out: &mut Out<'_, impl Write>,
        mut failed: LostLines,
        batch: &[u8],
        overrun: u64,
    ) -> Result<(), LostLines> {
        let after = if overrun > 0 { LostLines { lines: overrun, why: TOO_FAST.to_owned() } } else { LostLines::NONE };
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
        let mut failed = LostLines::NONE;
        if let Err((written, error)) = out.write(batch) {
            let lines = lines_in(&batch[written..]);
            self.lost.fetch_add(lines, Ordering::Relaxed);
            failed.add(lines + overrun, &error.to_string());
            return Err(failed);
        }
        write(out, after.line()).map_err(|_| after)
    }
}

/// The output.
struct Out<'a, W> {
    out: &'a mut W,
    /// True if the last write failed within a line.
    is_cut: bool,
}

impl<W: Write> Out<'_, W> {
    /// Writes all of `bytes`. An error has the number of bytes written before. Ends an incomplete line first.
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

    /// Writes all of `bytes`. An error has the number of bytes written before.
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

    /// An output that is full, closed or blocked, as the test sets it.
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
        // The writer has begun to write, and is held there: all that is lost from now on is told in one line.
        queue.push(b"first\n");
        while !queue.state.lock().waiting.is_empty() {
            std::thread::yield_now();
        }
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
        assert_eq!(lines_in(text.as_bytes()), 1 + 10_000 - lost + 2);
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
