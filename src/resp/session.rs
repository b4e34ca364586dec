//! What a connection has said about itself: who it is, which protocol and database it uses, and the commands that it
//! has queued.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::commands::transactions::Watched;
use super::memory::{ClientMemory, Lease};
use super::reply::Protocol;
use crate::base::{RespCounters, Stopwatch};

/// The number of databases.
pub(super) const DATABASES: u8 = 16;

/// What a connection has said about itself.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Unique in this process.
    pub(super) id: u64,
    /// Where it comes from; `None`: a unix socket.
    pub(super) peer: Option<SocketAddr>,
    /// Runs since it was accepted.
    pub(super) begun: Option<Stopwatch>,
    /// True once the password was given, or if none is needed.
    pub(super) is_authenticated: bool,
    /// The protocol of replies.
    pub(super) protocol: Protocol,
    /// The database that `SELECT` chose; below [`DATABASES`].
    pub(super) database: u8,
    /// `CLIENT SETNAME`
    pub(super) name: Bytes,
    /// `CLIENT SETINFO`: the name and the version of the client's library.
    pub(super) library: [Bytes; 2],
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

impl Session {
    /// Forgets what the connection has said about itself, as `RESET` does.
    pub(super) fn reset(&mut self, is_authenticated: bool) {
        self.is_authenticated = is_authenticated;
        self.protocol = Protocol::default();
        self.database = 0;
        self.name = Bytes::new();
        self.transaction = None;
        self.watched = Vec::new();
    }
}

/// Commands that wait for `EXEC`.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Each with its arguments, none of which shares memory with what the connection reads into.
    pub(super) commands: Vec<Vec<Bytes>>,
    /// True if a command could not be queued: `EXEC` then carries out none.
    pub(super) is_spoilt: bool,
    /// Counts their memory.
    lease: Lease,
}

/// The memory that a queued command and each of its arguments take beside their bytes.
const OVERHEAD: usize = size_of::<Vec<Bytes>>() + size_of::<Bytes>();

impl Transaction {
    /// Begins without commands.
    pub(super) fn new(memory: &Arc<ClientMemory>) -> Self {
        Self { commands: Vec::new(), is_spoilt: false, lease: Lease::new(memory) }
    }

    /// Adds a command, if there is room. Else the transaction is spoilt.
    pub(super) fn queue(&mut self, arguments: &[Bytes]) -> bool {
        let bytes: usize = arguments.iter().map(|argument| argument.len() + OVERHEAD).sum();
        let has_room = self.lease.set(self.lease.bytes().saturating_add(bytes).saturating_add(OVERHEAD));
        if has_room {
            self.commands.push(arguments.iter().map(|argument| Bytes::copy_from_slice(argument)).collect());
        } else {
            self.commands = Vec::new();
            self.is_spoilt = true;
            self.lease.set(0);
        }
        has_room
    }
}
