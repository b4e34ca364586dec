//! `[resp]`

use std::time::Duration;

use super::parse::Limits;
use crate::downstream::Listen;

/// `[resp]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address that clients connect to; `None`: no listener.
    pub listen: Option<Listen>,
    /// The password that clients send with `AUTH` or `HELLO`; empty: none is needed.
    pub password: String,
    /// The largest value, in bytes.
    pub max_value_size: usize,
    /// The most connections at once.
    pub max_connections: u64,
    /// The bytes of commands and replies that all clients together may hold.
    pub max_buffered: usize,
    /// The time for a command to arrive, and for its reply to be read, beside what their bytes take.
    pub timeout: Duration,
    /// The longest time that a connection may stay without a command.
    pub idle_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            password: String::new(),
            max_value_size: 64 << 20,
            max_connections: 10_000,
            max_buffered: 256 << 20,
            timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(3600),
        }
    }
}

impl Config {
    /// Returns whether clients have to send a password.
    pub(super) fn needs_password(&self) -> bool {
        !self.password.is_empty()
    }

    /// Returns what a client may send after `AUTH`.
    pub(super) fn limits(&self) -> Limits {
        let command = self.max_value_size.saturating_mul(4).clamp(MIN_COMMAND, MAX_COMMAND);
        Limits { is_authenticated: true, value: self.max_value_size, command }
    }
}

/// The most bytes of a command: four of the largest values, and within these bounds.
const MIN_COMMAND: usize = 64 << 20;
const MAX_COMMAND: usize = 2 << 30;
