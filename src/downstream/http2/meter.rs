//! Finds clients that send frames which ask for nothing (RFC 9113 §10.5).
//!
//! `h2` bounds what a frame may hold. How many there may be is counted here, from the bytes as they are read. Each kind
//! has an allowance that grows with time, so that a well-behaved client never meets it.

use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use crate::base::Stopwatch;

/// The length of a frame's head (RFC 9113 §4.1).
const HEAD: usize = 9;

/// The length of the client's preface (RFC 9113 §3.4).
const PREFACE: u32 = 24;

/// Counts the frames of a connection.
#[derive(Debug)]
pub(super) struct Meter {
    state: Mutex<State>,
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
    /// `RST_STREAM`.
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

    /// Returns it as the log shows it.
    pub(super) fn as_bytes(self) -> &'static [u8] {
        self.as_str().as_bytes()
    }
}

#[derive(Debug)]
struct State {
    /// The head of the next frame, as far as it was read.
    head: [u8; HEAD],
    have: usize,
    /// The bytes of the frame's payload, or of the preface, that are still to come.
    payload: u32,
    control: Allowance,
    updates: Allowance,
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

impl Meter {
    pub(super) fn new() -> Self {
        let since = Stopwatch::start();
        let state = State {
            head: [0; HEAD],
            have: 0,
            payload: PREFACE,
            control: Allowance::new(2000, 500, since),
            updates: Allowance::new(20_000, 2000, since),
            resets: Allowance::new(500, 100, since),
        };
        Self { state: Mutex::new(state), flood: AtomicU8::new(0) }
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

    /// Counts the frames that begin in what was read.
    pub(super) fn read(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        if let Some(flood) = state.read(bytes) {
            self.flood.store(flood as u8, Ordering::Relaxed);
        }
    }

    /// Notes that so many bytes were sent.
    pub(super) fn wrote(&self, bytes: usize) {
        let more = u32::try_from(bytes / BYTES_A_WINDOW_UPDATE).unwrap_or(u32::MAX);
        if more > 0 {
            self.state.lock().updates.grant(more);
        }
    }
}

impl State {
    fn read(&mut self, mut bytes: &[u8]) -> Option<Flood> {
        loop {
            let skipped = (self.payload as usize).min(bytes.len());
            self.payload -= u32::try_from(skipped).unwrap_or(self.payload);
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return None;
            }
            let taken = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < HEAD {
                return None;
            }
            self.have = 0;
            let [a, b, c, kind, flags, ..] = self.head;
            self.payload = u32::from_be_bytes([0, a, b, c]);
            if let Some(flood) = self.count(kind, flags) {
                return Some(flood);
            }
        }
    }

    /// Counts a frame (RFC 9113 §6).
    fn count(&mut self, kind: u8, flags: u8) -> Option<Flood> {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const SETTINGS: u8 = 4;
        const WINDOW_UPDATE: u8 = 8;
        const CONTINUATION: u8 = 9;
        /// `END_STREAM` of DATA and HEADERS.
        const END_STREAM: u8 = 1;
        const ACK: u8 = 1;
        let (allowance, flood) = match kind {
            DATA if self.payload > 0 || flags & END_STREAM != 0 => return None,
            HEADERS | CONTINUATION if self.payload > 0 => return None,
            SETTINGS if flags & ACK != 0 && self.payload == 0 => (&mut self.control, Flood::Control),
            WINDOW_UPDATE => (&mut self.updates, Flood::WindowUpdates),
            RST_STREAM => (&mut self.resets, Flood::Resets),
            _ => (&mut self.control, Flood::Control),
        };
        (!allowance.take()).then_some(flood)
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
        for _ in 0..100_000 {
            meter.wrote(BYTES_A_WINDOW_UPDATE);
            meter.read(&update);
        }
        assert_eq!(meter.flood(), None);
    }
}
