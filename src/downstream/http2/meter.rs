//! Finds clients that send frames which ask for nothing, or streams that come to nothing (RFC 9113 §10.5).
//!
//! `h2` bounds what a frame may hold. How many there may be is counted here, from the bytes as they are read and written.
//! Each kind has an allowance that grows with time, so that a well-behaved client never meets it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::base::Stopwatch;

/// The length of the client's preface (RFC 9113 §3.4).
const PREFACE: u32 = 24;

/// Counts the frames of a connection.
#[derive(Debug)]
pub(super) struct Meter {
    received: Mutex<Received>,
    sent: Mutex<Sent>,
    /// The streams that were answered, each of which justifies the reset of another.
    answered: AtomicU32,
    /// The streams that were reset here because of what they were, and are not reported yet.
    malformed: AtomicU32,
    /// True once a stream was reset.
    has_resets: AtomicBool,
    /// A [`Flood`], or 0.
    flood: AtomicU8,
}

/// The kind of frames that a client sends too many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flood {
    /// SETTINGS, PING, PRIORITY, unknown ones, and those that are empty.
    Control = 1,
    /// `WINDOW_UPDATE`, beyond what was sent to it.
    WindowUpdates,
    /// `RST_STREAM`, or what makes this side send it.
    Resets,
}

impl Flood {
    /// Returns what the client did.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Control => "too many frames of HTTP/2 that carry nothing",
            Self::WindowUpdates => "too many WINDOW_UPDATE frames",
            Self::Resets => "too many streams were reset",
        }
    }
}

/// Counts the frames that the client sends.
#[derive(Debug)]
struct Received {
    frames: Frames,
    control: Allowance,
    updates: Allowance,
    resets: Allowance,
}

/// Counts the frames that are sent to it.
#[derive(Debug)]
struct Sent {
    frames: Frames,
    /// The bytes that have not justified a `WINDOW_UPDATE` yet.
    bytes: usize,
    resets: Allowance,
}

/// A number of frames that is used up, and grows with time.
#[derive(Debug)]
struct Allowance {
    left: u32,
    most: u32,
    /// Frames a second.
    rate: u32,
    since: Stopwatch,
}

impl Allowance {
    fn new(most: u32, rate: u32, since: Stopwatch) -> Self {
        Self { left: most, most, rate, since }
    }

    /// Takes one. Returns whether there was one. The clock is read only where none is left.
    fn take(&mut self) -> bool {
        if self.left == 0 {
            let grown = self.since.elapsed().as_millis() * u128::from(self.rate) / 1000;
            self.left = u32::try_from(grown).unwrap_or(u32::MAX).min(self.most);
            if self.left > 0 {
                self.since = Stopwatch::start();
            }
        }
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }

    fn grant(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(self.most);
    }
}

/// The bytes sent that justify one more `WINDOW_UPDATE`.
const BYTES_A_WINDOW_UPDATE: usize = 256;

/// The resets that need no justification: so many at once, and so many a second.
const RESETS: (u32, u32) = (500, 100);

impl Meter {
    pub(super) fn new() -> Self {
        let since = Stopwatch::start();
        let resets = || Allowance::new(RESETS.0, RESETS.1, since);
        let received = Received {
            frames: Frames { left: PREFACE, ..Frames::default() },
            control: Allowance::new(2000, 500, since),
            updates: Allowance::new(20_000, 2000, since),
            resets: resets(),
        };
        let sent = Sent { frames: Frames::default(), bytes: 0, resets: resets() };
        Self {
            received: Mutex::new(received),
            sent: Mutex::new(sent),
            answered: AtomicU32::new(0),
            malformed: AtomicU32::new(0),
            has_resets: AtomicBool::new(false),
            flood: AtomicU8::new(0),
        }
    }

    /// Returns the kind of frames that there were too many of.
    pub(super) fn flood(&self) -> Option<Flood> {
        match self.flood.load(Ordering::Relaxed) {
            1 => Some(Flood::Control),
            2 => Some(Flood::WindowUpdates),
            3 => Some(Flood::Resets),
            _ => None,
        }
    }

    /// Notes that a stream was answered.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of malformed requests since this was last called.
    pub(super) fn take_malformed(&self) -> u32 {
        if self.malformed.load(Ordering::Relaxed) == 0 { 0 } else { self.malformed.swap(0, Ordering::Relaxed) }
    }

    /// Counts the frames that begin in what was read.
    pub(super) fn read(&self, bytes: &[u8]) {
        let Received { frames, control, updates, resets } = &mut *self.received.lock();
        frames.read(bytes, |frame| {
            let (allowance, flood) = match frame.kind {
                DATA if frame.length > 0 || frame.flags & END_STREAM != 0 => return,
                HEADERS | CONTINUATION if frame.length > 0 => return,
                WINDOW_UPDATE => (&mut *updates, Flood::WindowUpdates),
                RST_STREAM => return self.reset(resets),
                _ => (&mut *control, Flood::Control),
            };
            if !allowance.take() {
                self.flood.store(flood as u8, Ordering::Relaxed);
            }
        });
    }

    /// Counts the frames that begin in what was written.
    pub(super) fn wrote(&self, bytes: &[u8]) {
        let Sent { frames, bytes: sent, resets } = &mut *self.sent.lock();
        frames.read(bytes, |frame| {
            if frame.kind != RST_STREAM {
                return;
            }
            match h2::Reason::from(frame.code) {
                h2::Reason::NO_ERROR | h2::Reason::CANCEL | h2::Reason::REFUSED_STREAM => return,
                h2::Reason::PROTOCOL_ERROR => drop(self.malformed.fetch_add(1, Ordering::Relaxed)),
                _ => {}
            }
            self.reset(resets);
        });
        *sent += bytes.len();
        if *sent >= BYTES_A_WINDOW_UPDATE {
            let more = u32::try_from(*sent / BYTES_A_WINDOW_UPDATE).unwrap_or(u32::MAX);
            *sent %= BYTES_A_WINDOW_UPDATE;
            self.received.lock().updates.grant(more);
        }
    }

    /// Returns whether a stream was reset, by whichever side.
    pub(super) fn has_resets(&self) -> bool {
        self.has_resets.load(Ordering::Relaxed)
    }

    fn reset(&self, resets: &mut Allowance) {
        self.has_resets.store(true, Ordering::Relaxed);
        if resets.take() {
            return;
        }
        resets.grant(self.answered.swap(0, Ordering::Relaxed));
        if !resets.take() {
            self.flood.store(Flood::Resets as u8, Ordering::Relaxed);
        }
    }
}

// The kinds of frames, and flags, of RFC 9113 §6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// The length of a frame's head (RFC 9113 §4.1), and of a `RST_STREAM` frame with its code.
const HEAD: usize = 9;
const RESET: usize = HEAD + 4;

/// Finds the frames in a stream of bytes, however these arrive.
#[derive(Debug, Default)]
struct Frames {
    /// The head of the next frame, and the code if it is a reset, as far as they were read.
    head: [u8; RESET],
    have: usize,
    /// The bytes of the frame's payload, or of the preface, that are still to come.
    left: u32,
}

/// The parts of a frame that are counted by.
struct Frame {
    kind: u8,
    flags: u8,
    length: u32,
    /// The reason of a reset.
    code: u32,
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8], mut each: impl FnMut(&Frame)) {
        loop {
            let skipped = (self.left as usize).min(bytes.len());
            self.left -= u32::try_from(skipped).unwrap_or(self.left);
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let needed = if self.have >= HEAD { RESET } else { HEAD };
            let taken = (needed - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            let [a, b, c, kind, flags, _, _, _, _, code @ ..] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]);
            let is_reset = kind == RST_STREAM && length == 4;
            if self.have < HEAD || (is_reset && self.have < RESET) {
                continue;
            }
            self.have = 0;
            self.left = if is_reset { 0 } else { length };
            each(&Frame { kind, flags, length, code: u32::from_be_bytes(code) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    /// Returns the flood that so many of a frame are, in reads of `size` bytes.
    fn flood_of(frame: &[u8], count: usize, size: usize) -> Option<Flood> {
        let meter = Meter::new();
        meter.read(&[0; PREFACE as usize]);
        let bytes = frame.repeat(count);
        bytes.chunks(size).for_each(|read| meter.read(read));
        meter.flood()
    }

    #[test]
    fn frames_that_ask_for_nothing_are_limited_however_they_arrive() {
        let cases: [(&str, Vec<u8>, Option<Flood>); 10] = [
            ("ping", frame(6, 0, &[0; 8]), Some(Flood::Control)),
            ("settings", frame(4, 0, &[0; 6]), Some(Flood::Control)),
            ("settings acknowledged", frame(4, 1, &[]), Some(Flood::Control)),
            ("priority", frame(2, 0, &[0; 5]), Some(Flood::Control)),
            ("unknown", frame(0xfe, 0, &[0; 3]), Some(Flood::Control)),
            ("empty data", frame(0, 0, &[]), Some(Flood::Control)),
            ("empty continuation", frame(9, 0, &[]), Some(Flood::Control)),
            ("window update", frame(8, 0, &[0, 0, 0, 1]), Some(Flood::WindowUpdates)),
            ("reset", frame(3, 0, &[0; 4]), Some(Flood::Resets)),
            ("data", frame(0, 0, b"x"), None),
        ];
        for (name, frame, expected) in cases {
            for size in [1, 7, 4096] {
                assert_eq!(flood_of(&frame, 50_000, size), expected, "{name} in reads of {size}");
                assert_eq!(flood_of(&frame, 400, size), None, "{name} in reads of {size}");
            }
        }
    }

    #[test]
    fn what_was_sent_justifies_window_updates() {
        let meter = Meter::new();
        meter.read(&[0; PREFACE as usize]);
        let update = frame(8, 0, &[0, 0, 0, 1]);
        let sent = frame(0, 0, &[0; BYTES_A_WINDOW_UPDATE - HEAD]);
        for half in sent.repeat(100_000).chunks(BYTES_A_WINDOW_UPDATE / 2) {
            meter.wrote(half);
            if meter.sent.lock().bytes == 0 {
                meter.read(&update);
            }
        }
        assert_eq!(meter.flood(), None);
    }

    #[test]
    fn streams_that_come_to_nothing_are_limited_unless_as_many_are_answered() {
        // Returns what 2,000 resets are, of which so many are sent by the client.
        let resets = |by_client: bool, code: u8, answers: bool| {
            let meter = Meter::new();
            meter.read(&[0; PREFACE as usize]);
            let reset = frame(3, 0, &[0, 0, 0, code]);
            for _ in 0..2000 {
                if answers {
                    meter.answered();
                }
                for byte in reset.chunks(5) {
                    if by_client { meter.read(byte) } else { meter.wrote(byte) }
                }
            }
            (meter.flood(), meter.take_malformed())
        };
        assert_eq!(resets(true, 8, false), (Some(Flood::Resets), 0));
        assert_eq!(resets(true, 8, true), (None, 0));
        assert_eq!(resets(false, 1, false), (Some(Flood::Resets), 2000));
        assert_eq!(resets(false, 3, false), (Some(Flood::Resets), 0));
        assert_eq!(resets(false, 1, true), (None, 2000));
        for code in [0, 7, 8] {
            assert_eq!(resets(false, code, false), (None, 0), "what this side decides is not the client's fault");
        }
    }
}
