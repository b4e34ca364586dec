//! The table of commands, and what happens to a command before it runs.
//!
//! A command runs in the poll that read it. What must wait for the durable tier returns a future, and only that
//! connection waits.

mod connection;
mod keyspace;
mod one;
mod scripts;
mod server;
mod strings;
mod times;
pub(super) mod transactions;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use ahash::RandomState;
use bytes::Bytes;

use super::reply::Reply;
use super::server::Server;
use super::session::{About, NotQueued, Session};
use super::values::Values;
use crate::base::{RespClass, RespRefusal};

/// The parts of the server that a command may use.
pub(super) struct Context<'a> {
    /// The objects.
    pub(super) values: &'a Arc<Values>,
    /// The connection's own state.
    pub(super) session: &'a mut Session,
    /// The listener: its configuration and counters.
    pub(super) server: &'a Arc<Server>,
}

/// The outcome of a command in the poll that read it.
pub(super) enum Step {
    /// The reply is there.
    Done(Reply),
    /// The reply has to be waited for.
    Waits(Waiting),
    /// The reply has to be waited for, and the session is in use until then: it was taken out of the [`Context`].
    TakesSession(WaitingWithSession),
}

/// A reply that has to be waited for.
pub(super) type Waiting = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// A reply that has to be waited for, and the session that comes back with it.
pub(super) type WaitingWithSession = Pin<Box<dyn Future<Output = (Reply, Session)> + Send>>;

impl From<Reply> for Step {
    fn from(reply: Reply) -> Self {
        Self::Done(reply)
    }
}

/// Runs a command. `arguments[0]` is its name. Their number is right.
///
/// Arguments are slices of the read buffer: whoever keeps one copies it, or a small value would keep a large buffer.
pub(super) type Handler = fn(&mut Context<'_>, &[Bytes]) -> Step;

/// One command.
#[derive(Debug)]
pub(super) struct Command {
    /// In lower case.
    pub(super) name: &'static str,
    /// The number of arguments with the name; negative: at least so many. As in Redis's `COMMAND`.
    pub(super) arity: i16,
    /// The class that it is counted in.
    pub(super) class: RespClass,
    /// As in Redis's `COMMAND`: `readonly`, `write`, `fast`, `noscript` and so on.
    pub(super) flags: &'static [&'static str],
    /// The first and last argument that is a key, and the step between keys; zeros: there are none.
    pub(super) keys: (i8, i8, i8),
    /// Says what happens to it after `MULTI`, and before `AUTH`.
    pub(super) when: When,
    /// Runs it.
    pub(super) run: Handler,
}

impl Command {
    /// Returns whether it changes nothing, so that it may end anywhere.
    fn is_read(&self) -> bool {
        self.flags.contains(&"readonly")
    }

    fn about(&self) -> About {
        match self.class {
            RespClass::Keys if self.is_read() => About::Lists,
            RespClass::Keys => About::Flushes,
            _ => About::Keys,
        }
    }
}

/// Says when a command may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// After `AUTH`; queued after `MULTI`.
    Usual,
    /// After `AUTH`; at once after `MULTI`, since it belongs to the transaction itself.
    OfTransaction,
    /// Before `AUTH`; queued after `MULTI`.
    Early,
    /// Before `AUTH`; at once after `MULTI`.
    Always,
}

/// Every command, by parts.
static TABLES: &[&[Command]] = &[
    strings::COMMANDS,
    times::COMMANDS,
    keyspace::COMMANDS,
    transactions::COMMANDS,
    scripts::COMMANDS,
    connection::COMMANDS,
    server::COMMANDS,
];

/// The commands by name.
static BY_NAME: LazyLock<HashMap<&[u8], &Command, RandomState>> =
    LazyLock::new(|| all().map(|command| (command.name.as_bytes(), command)).collect());

/// The most bytes of a command's name.
const LONGEST_NAME: usize = 16;

/// Returns all commands.
fn all() -> impl Iterator<Item = &'static Command> {
    TABLES.iter().flat_map(|table| table.iter())
}

/// Returns the command of a name, in any case.
fn find(name: &[u8]) -> Option<&'static Command> {
    let mut lower = [0; LONGEST_NAME];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    BY_NAME.get(&*lower).copied()
}

/// The outcome of a command, for the counters.
pub(super) struct Ran {
    /// The class that it is counted in.
    pub(super) class: RespClass,
    /// True if it changes nothing, so that it may end anywhere.
    pub(super) is_read: bool,
    /// Its reply.
    pub(super) step: Step,
}

/// Runs a command, queues it after `MULTI`, or refuses it in Redis's words. `arguments` is not empty.
pub(super) fn run(server: &Arc<Server>, session: &mut Session, arguments: &[Bytes]) -> Ran {
    let Some(command) = find(&arguments[0]) else {
        return Ran { class: RespClass::Unknown, is_read: true, step: refuse(session, unknown(arguments)).into() };
    };
    let step = admit(server, session, command, arguments).unwrap_or_else(|| {
        let mut context = Context { values: &server.values, session, server };
        (command.run)(&mut context, arguments)
    });
    Ran { class: command.class, is_read: command.is_read(), step }
}

/// Returns the reply to a command that does not run now.
fn admit(server: &Arc<Server>, session: &mut Session, command: &Command, arguments: &[Bytes]) -> Option<Step> {
    if !accepts(command, arguments.len()) {
        let reply = wrong_number(command.name);
        return Some(if command.name == "exec" { abort(session, &reply) } else { refuse(session, reply) }.into());
    }
    if !session.is_authenticated && !matches!(command.when, When::Early | When::Always) {
        return Some(refuse(session, Reply::error("NOAUTH Authentication required.")).into());
    }
    let transaction = session.transaction.as_mut()?;
    if matches!(command.when, When::OfTransaction | When::Always) {
        return None;
    }
    match transaction.queue(arguments, command.about()) {
        Ok(()) => return Some(Reply::Simple("QUEUED".into()).into()),
        Err(NotQueued::TooMany(error)) => return Some(error.into()),
        Err(NotQueued::NoRoom) => {}
    }
    session.counters.refused(RespRefusal::Memory);
    server.tell(RespRefusal::Memory, session.peer, &[]);
    Some(no_room().into())
}

/// Returns the error for a command that needs more memory than there is for clients.
pub(super) fn no_room() -> Reply {
    Reply::error("OOM command not allowed: the clients together hold as much as they may (resp.max_buffered)")
}

/// Returns Redis's error for a wrong number of arguments. A subcommand is named `command|subcommand`.
pub(super) fn wrong_number(name: &str) -> Reply {
    Reply::error(format!("ERR wrong number of arguments for '{name}' command"))
}

fn accepts(command: &Command, count: usize) -> bool {
    let least = usize::from(command.arity.unsigned_abs());
    if command.arity < 0 { count >= least } else { count == least }
}

/// Spoils the transaction, if there is one, and returns `reply`.
fn refuse(session: &mut Session, reply: Reply) -> Reply {
    if let Some(transaction) = &mut session.transaction {
        transaction.is_spoilt = true;
    }
    reply
}

/// Gives the transaction up, since its `EXEC` is refused.
fn abort(session: &mut Session, reply: &Reply) -> Reply {
    session.transaction = None;
    session.watched = Vec::new();
    let why = if let Reply::Error(text) = reply { text.strip_prefix("ERR ").unwrap_or(text) } else { "" };
    Reply::error(format!("EXECABORT Transaction discarded because of: {why}"))
}

/// Returns Redis's error for a command that there is not.
fn unknown(arguments: &[Bytes]) -> Reply {
    const SHOWN: usize = 128;
    let shown = |argument: &Bytes| String::from_utf8_lossy(&argument[..argument.len().min(SHOWN)]).into_owned();
    let mut beginning = String::new();
    for argument in &arguments[1..] {
        if beginning.len() >= SHOWN {
            break;
        }
        let _ = write!(beginning, "'{}' ", shown(argument));
    }
    Reply::error(format!("ERR unknown command '{}', with args beginning with: {beginning}", shown(&arguments[0])))
}
