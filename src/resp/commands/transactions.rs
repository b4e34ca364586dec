//! `MULTI` and what belongs to it.
//!
//! `EXEC` takes the turns of all keys that its commands name, and carries them out one after the other: no change by another
//! command comes in between. `WATCH` remembers the versions of keys; what shares a turn with one counts as it, so `EXEC` may
//! refuse without need, and never goes on where it should not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{Command, Context, Step, When, find, run};
use crate::base::RespClass;
use crate::resp::reply::Reply;
use crate::resp::server::Server;
use crate::resp::session::{DATABASES, Session, Transaction};
use crate::resp::values::turns::{Turns, Version};

/// The most keys that a connection watches.
const MOST_WATCHED: usize = 4096;

const fn command(name: &'static str, arity: i16, keys: (i8, i8, i8), when: When, run: super::Handler) -> Command {
    let flags: &[&str] = &["noscript", "fast"];
    Command { name, arity, class: RespClass::Transaction, flags, keys, when, run }
}

pub(super) static COMMANDS: &[Command] = &[
    command("multi", 1, (0, 0, 0), When::OfTransaction, multi),
    command("exec", 1, (0, 0, 0), When::OfTransaction, exec),
    command("discard", 1, (0, 0, 0), When::OfTransaction, discard),
    command("watch", -2, (1, -1, 1), When::OfTransaction, watch),
    command("unwatch", 1, (0, 0, 0), When::Usual, |context, _| {
        context.session.watched.clear();
        Reply::OK.into()
    }),
];

/// The number of a turn, and its version when a key with it was watched.
pub(in crate::resp) type Watched = (usize, Version);

fn multi(context: &mut Context<'_>, _: &[Bytes]) -> Step {
    if context.session.transaction.is_some() {
        return Reply::error("ERR MULTI calls can not be nested").into();
    }
    context.session.transaction = Some(Transaction::new(&context.server.memory));
    Reply::OK.into()
}

fn discard(context: &mut Context<'_>, _: &[Bytes]) -> Step {
    if context.session.transaction.take().is_none() {
        return Reply::error("ERR DISCARD without MULTI").into();
    }
    context.session.watched.clear();
    Reply::OK.into()
}

fn watch(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let Context { values, session, .. } = context;
    if session.transaction.is_some() {
        return Reply::error("ERR WATCH inside MULTI is not allowed").into();
    }
    if session.watched.len() + arguments.len() > MOST_WATCHED {
        return Reply::error(format!("ERR a connection watches at most {MOST_WATCHED} keys")).into();
    }
    for name in &arguments[1..] {
        match values.key(session.database, name) {
            Ok(key) => {
                let number = Turns::number(&key);
                session.watched.push((number, values.turns.version(number)));
            }
            Err(error) => return error.into(),
        }
    }
    Reply::OK.into()
}

fn exec(context: &mut Context<'_>, _: &[Bytes]) -> Step {
    let Some(transaction) = context.session.transaction.take() else {
        return Reply::error("ERR EXEC without MULTI").into();
    };
    let watched = std::mem::take(&mut context.session.watched);
    if transaction.is_spoilt {
        return Reply::error("EXECABORT Transaction discarded because of previous errors.").into();
    }
    let numbers = turns_of(context, &transaction, &watched);
    let (server, session) = (Arc::clone(context.server), std::mem::take(context.session));
    Step::TakesSession(Box::pin(async move {
        let values = Arc::clone(&server.values);
        // Before the turns: whoever has them waits for no list of another.
        let _place = if transaction.lists {
            Some(values.listings.of_transactions.acquire().await.expect("the queue is never closed"))
        } else {
            None
        };
        let _turns = values.turns.take_all(numbers).await;
        if session.is_gone.load(Ordering::Relaxed) {
            return (Reply::NullArray, session);
        }
        if watched.iter().any(|(number, version)| values.turns.version(*number) != *version) {
            return (Reply::NullArray, session);
        }
        let mut session = Session { holds_turns: true, ..session };
        let replies = carry_out(&server, &mut session, transaction).await;
        session.holds_turns = false;
        (replies, session)
    }))
}

/// Returns the numbers of the turns of all keys that the commands of a transaction name, and that are watched.
fn turns_of(context: &Context<'_>, transaction: &Transaction, watched: &[Watched]) -> Vec<usize> {
    let (mut numbers, mut database) = (Vec::new(), context.session.database);
    for arguments in &transaction.commands {
        let Some(command) = find(&arguments[0]) else { continue };
        if command.name == "select" {
            // Later commands are about other keys.
            let named = arguments.get(1).and_then(|text| std::str::from_utf8(text).ok()?.parse::<u8>().ok());
            database = named.filter(|database| *database < DATABASES).unwrap_or(database);
        }
        let names = names_of(command, arguments);
        numbers.extend(names.filter_map(|name| context.values.key(database, name).ok()).map(|key| Turns::number(&key)));
    }
    numbers.extend(watched.iter().map(|(number, _)| *number));
    numbers
}

/// Returns the arguments of a command that are keys.
fn names_of<'a>(command: &Command, arguments: &'a [Bytes]) -> impl Iterator<Item = &'a Bytes> {
    let (first, last, step) = command.keys;
    let at = |place: i8, len: usize| match usize::try_from(place) {
        Ok(place) => place,
        Err(_) => len.saturating_sub(usize::from(place.unsigned_abs())),
    };
    let (first, last) = (at(first, arguments.len()), at(last, arguments.len()));
    let step = usize::try_from(step).unwrap_or(1).max(1);
    let count = if first == 0 { 0 } else { (last + 1).saturating_sub(first) };
    arguments.iter().skip(first).take(count).step_by(step)
}

/// Carries out the commands of a transaction. An error of one does not keep the others from being carried out.
async fn carry_out(server: &Arc<Server>, session: &mut Session, transaction: Transaction) -> Reply {
    let (mut replies, mut bytes) = (Vec::with_capacity(transaction.commands.len()), 0_usize);
    for (count, arguments) in transaction.commands.into_iter().enumerate() {
        let reply = match run(server, session, &arguments).step {
            Step::Done(reply) => reply,
            Step::Waits(waiting) => waiting.await,
            Step::TakesSession(waiting) => {
                let (reply, back) = waiting.await;
                *session = back;
                reply
            }
        };
        bytes = bytes.saturating_add(size_of_reply(&reply));
        // The commands behind it are carried out all the same.
        let is_too_large = bytes > server.config.max_buffered;
        replies.push(if is_too_large { super::one::too_large() } else { reply });
        if count % 64 == 63 {
            tokio::task::yield_now().await;
        }
    }
    Reply::Array(replies)
}

fn size_of_reply(reply: &Reply) -> usize {
    match reply {
        Reply::Bulk(bytes) => bytes.len(),
        Reply::Array(replies) => replies.iter().map(size_of_reply).sum(),
        _ => 0,
    }
}
