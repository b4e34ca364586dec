//! The table of commands, and what happens to a command before it runs.
//!
//! A command runs in the poll that read it. What must wait for the durable tier returns a future, and only that
//! connection waits.

mod connection;
mod keyspace;
mod one;
mod scripts;
mod strings;
mod times;
pub(super) mod transactions;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::reply::Reply;
use super::server::Server;
use super::session::Session;
use super::values::Values;
use crate::base::RespClass;

/// What a command may use.
pub(super) struct Context<'a> {
    /// The objects.
    pub(super) values: &'a Arc<Values>,
    /// The connection's own state.
    pub(super) session: &'a mut Session,
    /// The listener: its configuration and counters.
    pub(super) server: &'a Arc<Server>,
}

/// What a command comes to.
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
    /// What it is counted as.
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

/// Says when a command runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// After `AUTH`; queued after `MULTI`.
    Usual,
    /// After `AUTH`; after `MULTI` too, since it belongs to the transaction itself.
    InTransaction,
    /// Before `AUTH`; after `MULTI` it runs at once.
    Always,
    /// Before `AUTH`; refused after `MULTI`.
    NotInTransaction,
}

/// Every command, by parts.
static TABLES: &[&[Command]] = &[
    strings::COMMANDS,
    times::COMMANDS,
    keyspace::COMMANDS,
    transactions::COMMANDS,
    scripts::COMMANDS,
    connection::COMMANDS,
];

/// The most bytes of a command's name.
const LONGEST_NAME: usize = 16;

/// Returns the command of a name, in any case.
pub(super) fn find(name: &[u8]) -> Option<&'static Command> {
    let mut lower = [0; LONGEST_NAME];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    TABLES.iter().flat_map(|table| table.iter()).find(|command| command.name.as_bytes() == lower)
}

/// Runs a command, queues it after `MULTI`, or refuses it in Redis's words. `arguments` is not empty.
pub(super) fn run(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let Some(command) = find(&arguments[0]) else {
        return refuse(context, unknown(arguments)).into();
    };
    if !accepts(command, arguments.len()) {
        let text = format!("ERR wrong number of arguments for '{}' command", command.name);
        return refuse(context, Reply::error(text)).into();
    }
    let is_early = matches!(command.when, When::Always | When::NotInTransaction);
    if !context.session.is_authenticated && !is_early {
        return refuse(context, Reply::error("NOAUTH Authentication required.")).into();
    }
    if let Some(transaction) = &mut context.session.transaction {
        match command.when {
            When::Usual => {
                transaction.bytes += arguments.iter().map(Bytes::len).sum::<usize>();
                transaction.commands.push(arguments.iter().map(|argument| Bytes::copy_from_slice(argument)).collect());
                return Reply::Simple("QUEUED".into()).into();
            }
            When::NotInTransaction => {
                return refuse(context, Reply::error("ERR Command not allowed inside a transaction")).into();
            }
            When::InTransaction | When::Always => {}
        }
    }
    (command.run)(context, arguments)
}

fn accepts(command: &Command, count: usize) -> bool {
    let least = usize::from(command.arity.unsigned_abs());
    if command.arity < 0 { count >= least } else { count == least }
}

/// Spoils the transaction, if there is one, and returns `reply`.
fn refuse(context: &mut Context<'_>, reply: Reply) -> Reply {
    if let Some(transaction) = &mut context.session.transaction {
        transaction.is_spoilt = true;
    }
    reply
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
        beginning.push_str(&format!("'{}' ", shown(argument)));
    }
    Reply::error(format!("ERR unknown command '{}', with args beginning with: {beginning}", shown(&arguments[0])))
}
