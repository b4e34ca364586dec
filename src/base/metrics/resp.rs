//! The counters of the listener that speaks Redis's protocol.

use super::counter::Counter;

/// The kind of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RespClass {
    /// About the connection or the server.
    Connection,
    /// Reads values.
    Read,
    /// Writes or deletes values.
    Write,
    /// Lists keys, or deletes all.
    Keys,
    /// `MULTI` and what belongs to it, and scripts.
    Transaction,
    /// There is no such command.
    Unknown,
}

impl RespClass {
    /// Every class, with its name.
    pub(super) const ALL: [(Self, &'static str); 6] = [
        (Self::Connection, "connection"),
        (Self::Read, "read"),
        (Self::Write, "write"),
        (Self::Keys, "keys"),
        (Self::Transaction, "transaction"),
        (Self::Unknown, "unknown"),
    ];
}

/// The reason why a connection or a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RespRefusal {
    /// The bytes are not the protocol.
    Protocol,
    /// The bytes are HTTP.
    Http,
    /// The password is wrong.
    Password,
    /// The limit of connections was reached.
    TooManyConnections,
    /// The clients together hold as much as they may.
    Memory,
    /// A value is too large.
    TooLarge,
    /// A command did not arrive in time.
    SlowCommand,
    /// Replies were not read in time.
    SlowReader,
}

impl RespRefusal {
    /// Every reason.
    pub(super) const ALL: [Self; 8] = [
        Self::Protocol,
        Self::Http,
        Self::Password,
        Self::TooManyConnections,
        Self::Memory,
        Self::TooLarge,
        Self::SlowCommand,
        Self::SlowReader,
    ];

    /// Returns the name in `/metrics` and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Http => "http",
            Self::Password => "password",
            Self::TooManyConnections => "too-many-connections",
            Self::Memory => "memory",
            Self::TooLarge => "too-large",
            Self::SlowCommand => "slow-command",
            Self::SlowReader => "slow-reader",
        }
    }
}

/// The counters of one worker thread, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct RespCounters {
    /// Connections accepted.
    pub connections: Counter,
    /// Connections closed.
    pub connections_closed: Counter,
    /// Bytes read.
    pub bytes_in: Counter,
    /// Bytes written.
    pub bytes_out: Counter,
    /// Reads of a value that memory had.
    pub hits_memory: Counter,
    /// Reads of a value that the durable tier had.
    pub hits_durable: Counter,
    /// Reads of a value that there was not.
    pub misses: Counter,
    /// Commands that did what they are for, by class.
    ok: [Counter; RespClass::ALL.len()],
    /// Commands that were answered with an error, by class.
    failed: [Counter; RespClass::ALL.len()],
    refused: [Counter; RespRefusal::ALL.len()],
}

impl RespCounters {
    /// Counts one command.
    pub fn command(&self, class: RespClass, is_error: bool) {
        let of = if is_error { &self.failed } else { &self.ok };
        of[class as usize].add_one();
    }

    /// Counts one refusal.
    pub fn refused(&self, why: RespRefusal) {
        self.refused[why as usize].add_one();
    }
}
