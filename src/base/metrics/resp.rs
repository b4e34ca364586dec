//! The counters of the listener that speaks Redis's protocol.

use std::fmt::Write as _;

use super::Metrics;
use super::counter::Counter;
use super::render::{header, labelled};

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

    /// Returns what was refused, in words.
    pub fn what(self) -> &'static str {
        match self {
            Self::Protocol => "a connection that does not speak Redis's protocol",
            Self::Http => "a connection that speaks HTTP",
            Self::Password => "a password that is wrong (resp.password)",
            Self::TooManyConnections => "a connection, for there are too many (resp.max_connections)",
            Self::Memory => "a command, for the clients hold as much as they may (resp.max_buffered)",
            Self::TooLarge => "a value that is too large (resp.max_value_size)",
            Self::SlowCommand => "a client that takes too long to send a command (resp.timeout)",
            Self::SlowReader => "a client that takes too long to read its replies (resp.timeout)",
        }
    }

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

/// The sums over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RespTotals {
    /// Connections accepted.
    pub connections: u64,
    /// Connections turned away.
    pub rejected_connections: u64,
    /// Commands answered.
    pub commands: u64,
    /// Bytes read.
    pub bytes_in: u64,
    /// Bytes written.
    pub bytes_out: u64,
    /// Reads of a value that one of the tiers had.
    pub hits: u64,
    /// Reads of a value that there was not.
    pub misses: u64,
}

impl Metrics {
    fn sum_resp(&self, pick: impl Fn(&RespCounters) -> u64) -> u64 {
        self.resp.iter().map(|worker| pick(worker)).sum()
    }

    /// Returns the number of connections of Redis clients that are open.
    pub fn open_resp_connections(&self) -> u64 {
        self.sum_resp(|worker| worker.connections.value())
            .saturating_sub(self.sum_resp(|worker| worker.connections_closed.value()))
    }

    /// Returns the sums over all workers.
    pub fn resp_totals(&self) -> RespTotals {
        RespTotals {
            connections: self.sum_resp(|worker| worker.connections.value()),
            rejected_connections: self
                .sum_resp(|worker| worker.refused[RespRefusal::TooManyConnections as usize].value()),
            commands: self.sum_resp(|worker| worker.ok.iter().chain(&worker.failed).map(Counter::value).sum()),
            bytes_in: self.sum_resp(|worker| worker.bytes_in.value()),
            bytes_out: self.sum_resp(|worker| worker.bytes_out.value()),
            hits: self.sum_resp(|worker| worker.hits_memory.value() + worker.hits_durable.value()),
            misses: self.sum_resp(|worker| worker.misses.value()),
        }
    }

    /// Writes the counters of the Redis listener.
    pub(super) fn render_resp(&self, out: &mut String) {
        let total = self.resp_totals();
        for (name, help, value) in [
            ("larder_resp_connections_total", "Connections of Redis clients accepted.", total.connections),
            ("larder_resp_received_bytes_total", "Bytes read from Redis clients.", total.bytes_in),
            ("larder_resp_sent_bytes_total", "Bytes written to Redis clients.", total.bytes_out),
        ] {
            header(out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        }
        header(out, "larder_resp_commands_total", "counter", "Commands of Redis clients, by kind and outcome.");
        for (class, word) in RespClass::ALL {
            for (outcome, pick) in OUTCOMES {
                let value = self.sum_resp(|worker| pick(worker)[class as usize].value());
                let _ = writeln!(out, "larder_resp_commands_total{{class=\"{word}\",outcome=\"{outcome}\"}} {value}");
            }
        }
        let values = [
            ("memory", self.sum_resp(|worker| worker.hits_memory.value())),
            ("durable", self.sum_resp(|worker| worker.hits_durable.value())),
            ("none", total.misses),
        ];
        let help = "Reads of values by Redis clients, by the tier that had them.";
        labelled(out, "larder_resp_reads_total", help, "tier", values);
        let values =
            RespRefusal::ALL.map(|why| (why.as_str(), self.sum_resp(|worker| worker.refused[why as usize].value())));
        let help = "Connections and commands of Redis clients that were refused, by reason.";
        labelled(out, "larder_resp_refused_total", help, "reason", values);
    }
}

/// The counters of commands by class.
type ByClass = [Counter; RespClass::ALL.len()];

/// The outcomes of a command.
const OUTCOMES: [(&str, fn(&RespCounters) -> &ByClass); 2] =
    [("ok", |worker| &worker.ok), ("error", |worker| &worker.failed)];
