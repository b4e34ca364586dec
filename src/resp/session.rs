//! What a connection has said about itself: who it is, which protocol and database it uses, and the commands that it
//! has queued.

use std::sync::Arc;

use bytes::Bytes;

use super::commands::transactions::Watched;
use super::reply::Protocol;
use crate::base::RespCounters;

/// Number of databases. `SELECT` chooses among them.
pub(super) const DATABASES: u8 = 16;

/// What a connection has said about itself.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Unique in this process.
    pub(super) id: u64,
    /// True once the password was given, or if none is needed.
    pub(super) is_authenticated: bool,
    /// The protocol of replies.
    pub(super) protocol: Protocol,
    /// The database that `SELECT` chose.
    pub(super) database: u8,
    /// `CLIENT SETNAME`
    pub(super) name: Bytes,
    /// What `WATCH` has named.
    pub(super) watched: Vec<Watched>,
    /// True while the turns of all keys of a transaction are held.
    pub(super) holds_turns: bool,
    /// Commands since `MULTI`.
    pub(super) transaction: Option<Transaction>,
    /// True once the connection is to be closed behind the reply.
    pub(super) is_closing: bool,
    /// The counters of the worker that serves it.
    pub(super) counters: Arc<RespCounters>,
}

/// Commands that wait for `EXEC`.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    /// Each with its arguments, none of which shares memory with what the connection reads into.
    pub(super) commands: Vec<Vec<Bytes>>,
    /// Their bytes.
    pub(super) bytes: usize,
    /// True if a command could not be queued: `EXEC` then carries out none.
    pub(super) is_spoilt: bool,
}
