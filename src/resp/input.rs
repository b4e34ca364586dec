//! The bytes of a connection that no command was made of yet.
//!
//! A connection reads into a buffer that all connections of its thread share, since they run in turn. Between its turns
//! it holds no more than the part of a command that has arrived. A command that is too large for the shared buffer gets
//! a buffer of its own once half of that has arrived; it has at most twice the room of what has arrived.

use bytes::{BufMut, Bytes, BytesMut};

use super::memory::Lease;
use super::parse::{Limits, Next, Parser, ProtocolError, Skipped};

/// The size of the shared buffer.
pub(super) const SHARED: usize = 64 << 10;

/// The free room in the shared buffer that is enough to read into.
const ENOUGH: usize = 16 << 10;

/// Room behind a large argument for the short ones that may follow it.
const SLACK: usize = 256;

/// The bytes that a connection may hold without being counted.
const UNCOUNTED: usize = 1 << 10;

/// The bytes of a connection that no command was made of yet.
#[derive(Debug)]
pub(super) struct Input {
    /// During a turn the shared buffer, or one of its own. Else its own.
    buffer: BytesMut,
    is_shared: bool,
    parser: Parser,
    /// Counts what its own buffer and the arguments found so far take.
    lease: Lease,
}

/// There is no room for the command, and nobody knows where it ends: the connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Input {
    /// Begins with nothing.
    pub(super) fn new(lease: Lease) -> Self {
        Self { buffer: BytesMut::new(), is_shared: false, parser: Parser::default(), lease }
    }

    /// Begins a turn: lends it the shared buffer.
    #[inline]
    pub(super) fn lend(&mut self, shared: &mut BytesMut) {
        if self.fits_shared() {
            shared.clear();
            shared.reserve(SHARED);
            shared.extend_from_slice(&self.buffer);
            self.buffer = std::mem::take(shared);
            self.is_shared = true;
            self.lease.set(0);
        }
    }

    /// Ends a turn: takes the shared buffer back, and keeps what is left in it.
    #[inline]
    pub(super) fn give_back(&mut self, shared: &mut BytesMut) {
        if self.is_shared {
            // An empty buffer allocates nothing.
            let rest = BytesMut::from(&self.buffer[..]);
            *shared = std::mem::replace(&mut self.buffer, rest);
            self.is_shared = false;
        } else if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.lease.set(self.parser.overhead());
        }
    }

    /// Takes the next command out. See [`Parser::next`].
    #[inline]
    pub(super) fn next(&mut self, arguments: &mut Vec<Bytes>, limits: &Limits) -> Result<Next, ProtocolError> {
        self.parser.next(&mut self.buffer, arguments, limits)
    }

    /// Returns whether a part of a command has arrived.
    pub(super) fn is_within(&self) -> bool {
        self.parser.is_within(&self.buffer)
    }

    /// Returns the beginning of what is left, for the log.
    pub(super) fn beginning(&self) -> &[u8] {
        &self.buffer
    }

    fn needs(&self) -> usize {
        self.parser.needs(&self.buffer).saturating_add(SLACK)
    }

    /// Returns whether the shared buffer has room for what is left, and for enough of what is to come.
    fn fits_shared(&self) -> bool {
        self.needs() <= SHARED || self.buffer.len() < SHARED / 2
    }

    /// Makes room to read into, once no whole command is left. If there is none, drops the command and what is to come
    /// of it; `Ok(false)`.
    pub(super) fn make_room(&mut self, shared: &mut BytesMut) -> Result<bool, NoRoom> {
        if self.fits_shared() {
            if !self.is_shared {
                self.lend(shared);
            }
            if self.buffer.capacity() - self.buffer.len() < ENOUGH {
                // Moves what is left to the beginning. Allocates only if a command that waits holds the buffer.
                self.buffer.reserve(SHARED - self.buffer.len());
            }
            return self.count(self.buffer.len());
        }
        let len = self.buffer.len();
        if !self.is_shared && self.buffer.capacity() > len {
            return self.count(self.buffer.capacity());
        }
        let capacity = self.needs().min(2 * len).max(len + SLACK);
        if !self.count(capacity)? {
            return Ok(false);
        }
        let mut own = BytesMut::with_capacity(capacity);
        own.put_slice(&self.buffer);
        let former = std::mem::replace(&mut self.buffer, own);
        if std::mem::take(&mut self.is_shared) {
            *shared = former;
        }
        Ok(true)
    }

    /// Counts `bytes`, or skips the command.
    fn count(&mut self, bytes: usize) -> Result<bool, NoRoom> {
        let held = bytes + self.parser.overhead();
        let counted = if held <= UNCOUNTED || self.parser.is_skipping() { 0 } else { held };
        if self.lease.set(counted) {
            return Ok(true);
        }
        self.lease.set(0);
        if self.parser.skip(&mut self.buffer, Skipped::NoRoom) { Ok(false) } else { Err(NoRoom) }
    }

    /// Returns the buffer to read into.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }
}
