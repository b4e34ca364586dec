//! Keeps what a connection has said about itself: who it is, which protocol and database it uses, and the commands that it
//! has queued.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;

use super::commands::transactions::Watched;
use super::memory::{ClientMemory, Lease};
use super::reply::{Protocol, Reply};
use super::values::listing::Asker;
use crate::base::{RespCounters, Stopwatch};

/// The number of databases.
pub(super) const DATABASES: u8 = 16;

/// The state that a connection has set by its commands.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Unique in this process.
    pub(super) id: u64,
    /// The address that it comes from; `None`: a unix socket.
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
    /// The keys that `WATCH` has named.
    pub(super) watched: Vec<Watched>,
    /// True while the turns of all keys of a transaction are held.
    pub(super) holds_turns: bool,
    /// Commands since `MULTI`.
    pub(super) transaction: Option<Transaction>,
    /// True once the connection is to be closed behind the reply.
    pub(super) is_closing: bool,
    /// True once the client is gone.
    pub(super) is_gone: Arc<AtomicBool>,
    /// The counters of the worker that serves it.
    pub(super) counters: Arc<RespCounters>,
}

impl Session {
    /// Returns who asks for a list.
    pub(super) fn asker(&self) -> Asker {
        Asker { is_gone: Arc::clone(&self.is_gone), has_place: self.holds_turns }
    }

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

/// The most commands of a transaction, and the most arguments of all of them. Others wait for its turns while they run.
const MOST_COMMANDS: usize = 16 << 10;
const MOST_ARGUMENTS: usize = 128 << 10;

/// Commands that wait for `EXEC`.
#[derive(Debug)]
pub(super) struct Transaction {
    /// Each with its arguments, none of which shares memory with what the connection reads into.
    pub(super) commands: Vec<Vec<Bytes>>,
    /// True if a command could not be queued: `EXEC` then carries out none.
    pub(super) is_spoilt: bool,
    /// True if one of them lists names.
    pub(super) lists: bool,
    /// True if one of them deletes all values of a database.
    flushes: bool,
    arguments: usize,
    /// Counts their memory.
    lease: Lease,
}

/// The kinds of command of which a transaction has only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Keys that it names.
    Keys,
    /// Names that it lists or counts.
    Lists,
    /// All values of a database.
    Flushes,
}

/// The reason why a command was not queued.
#[derive(Debug)]
pub(super) enum NotQueued {
    /// The clients hold as much as they may.
    NoRoom,
    /// The transaction has as many as it may.
    TooMany(Reply),
}

/// The memory that a queued command and each of its arguments take beside their bytes.
const OVERHEAD: usize = size_of::<Vec<Bytes>>() + size_of::<Bytes>();

impl Transaction {
    /// Begins without commands.
    pub(super) fn new(memory: &Arc<ClientMemory>) -> Self {
        let lease = Lease::new(memory);
        Self { commands: Vec::new(), is_spoilt: false, lists: false, flushes: false, arguments: 0, lease }
    }

    /// Adds a command, if there is room. Else the transaction is spoilt.
    pub(super) fn queue(&mut self, arguments: &[Bytes], about: About) -> Result<(), NotQueued> {
        let outcome = self.admit(arguments, about);
        match &outcome {
            // A spoilt one is never carried out: nothing of it is kept.
            Ok(()) if self.is_spoilt => self.forget(),
            Ok(()) => self.commands.push(arguments.iter().map(|argument| Bytes::copy_from_slice(argument)).collect()),
            Err(_) => self.forget(),
        }
        outcome
    }

    fn forget(&mut self) {
        self.commands = Vec::new();
        self.is_spoilt = true;
        self.lease.set(0);
    }

    fn admit(&mut self, arguments: &[Bytes], about: About) -> Result<(), NotQueued> {
        let too_many = |text: String| Err(NotQueued::TooMany(Reply::error(text)));
        let is_second = match about {
            About::Keys => false,
            About::Lists => std::mem::replace(&mut self.lists, true),
            About::Flushes => std::mem::replace(&mut self.flushes, true),
        };
        match about {
            About::Lists if is_second => {
                return too_many("ERR a transaction has one of KEYS, SCAN and DBSIZE at most".into());
            }
            About::Flushes if is_second => {
                return too_many("ERR a transaction has one of FLUSHDB and FLUSHALL at most".into());
            }
            About::Keys | About::Lists | About::Flushes => {}
        }
        self.arguments = self.arguments.saturating_add(arguments.len());
        if self.commands.len() >= MOST_COMMANDS || self.arguments > MOST_ARGUMENTS {
            let most = format!("ERR a transaction has at most {MOST_COMMANDS} commands and {MOST_ARGUMENTS} arguments");
            return too_many(most);
        }
        let bytes: usize = arguments.iter().map(|argument| argument.len() + OVERHEAD).sum();
        let has_room = self.lease.set(self.lease.bytes().saturating_add(bytes).saturating_add(OVERHEAD));
        if has_room { Ok(()) } else { Err(NotQueued::NoRoom) }
    }
}
