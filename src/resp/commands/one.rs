//! Commands on one value, and on several one after the other.
//!
//! What memory has, and what takes no turn that somebody else has, is done in the poll that read the command. The rest goes
//! the same way in a future.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Context, Step};
use crate::base::RespCounters;
use crate::entry::ValueKey;
use crate::resp::reply::Reply;
use crate::resp::values::Values;
use crate::resp::values::operation::{Change, Operation};
use crate::resp::values::turns::{Turn, Turns};
use crate::store::{FoundValue, LookedUp};

/// The most keys of a command that is done in one poll.
const MOST_AT_ONCE: usize = 64;

/// The most values that one command looks for at once in the durable tier.
const LOOKUPS: usize = 32;

/// The reply to a command that depends on a value which could not be read.
const NOT_KNOWN: &str =
    "TRYAGAIN the durable tier did not answer in time, so the value of the key is not known; nothing was changed";

/// Everything that a command on values needs, on its own thread or later.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) values: Arc<Values>,
    counters: Arc<RespCounters>,
    pub(super) database: u8,
    /// True if the turns of all keys are held already.
    is_held: bool,
}

impl Work {
    pub(super) fn of(context: &Context<'_>) -> Self {
        let session = &*context.session;
        Self {
            values: Arc::clone(context.values),
            counters: Arc::clone(&session.counters),
            database: session.database,
            is_held: session.holds_turns,
        }
    }

    /// Carries out an operation, waiting for whatever it needs.
    pub(super) async fn carry_out(&self, key: &ValueKey, operation: Operation) -> Reply {
        let values = &*self.values;
        let turn =
            if operation.writes() && !self.is_held { Some(values.turns.take(Turns::number(key)).await) } else { None };
        if operation.writes() && !values.store.has_room_for_value(operation.size()) {
            values.settle().await;
        }
        let found = if operation.needs_value() {
            match values.store.find_value(key).await {
                LookedUp::Found(found) => Some(found),
                LookedUp::Nothing => None,
                LookedUp::Unknown if matches!(operation, Operation::Delete) => return self.delete_unread(key),
                LookedUp::Unknown if operation.writes() => return Reply::error(NOT_KNOWN),
                LookedUp::Unknown => None,
            }
        } else {
            None
        };
        match finish(values, &self.counters, key, operation, found.as_ref()) {
            Ok((reply, None)) => reply,
            Ok((reply, Some(len))) => {
                drop(turn);
                values.store.large_value_written(key, len).await;
                reply
            }
            Err(error) => error,
        }
    }
}

impl Work {
    /// Deletes a value that could not be read, and counts it as one that was there.
    fn delete_unread(&self, key: &ValueKey) -> Reply {
        match self.values.carry_out(key, None, Change::Delete) {
            Ok(_) => Reply::Integer(1),
            Err(error) => error,
        }
    }
}

/// Carries out an operation on what was found. Returns the reply, and the length of a value that has to be waited for.
fn finish(
    values: &Values,
    counters: &RespCounters,
    key: &ValueKey,
    operation: Operation,
    found: Option<&FoundValue>,
) -> Result<(Reply, Option<u64>), Reply> {
    if operation.is_read() {
        count(counters, found);
    }
    let (reply, change) = operation.apply(found, || values.now());
    if change == Change::Nothing {
        return Ok((reply, None));
    }
    let large = values.carry_out(key, found, change)?;
    Ok((reply, large))
}

/// Counts a read.
pub(super) fn count(counters: &RespCounters, found: Option<&FoundValue>) {
    match found {
        Some(found) if found.is_durable() => counters.hits_durable.add_one(),
        Some(_) => counters.hits_memory.add_one(),
        None => counters.misses.add_one(),
    }
}

/// Carries out an operation on the value of `name`.
pub(super) fn one(context: &mut Context<'_>, name: &Bytes, operation: Operation) -> Step {
    let values = &**context.values;
    let key = match values.key(context.session.database, name) {
        Ok(key) => key,
        Err(error) => return error.into(),
    };
    match at_once(values, &context.session.counters, context.session.holds_turns, &key, operation) {
        Ok(reply) => reply.into(),
        Err(Waits::For(operation)) => {
            let work = Work::of(context);
            Step::Waits(Box::pin(async move { work.carry_out(&key, operation).await }))
        }
        Err(Waits::ForLarge(reply, len)) => {
            let values = Arc::clone(context.values);
            Step::Waits(Box::pin(async move {
                values.store.large_value_written(&key, len).await;
                reply
            }))
        }
    }
}

/// The reason why an operation has no reply yet.
enum Waits {
    /// It needs what can't be had at once.
    For(Operation),
    /// It is done, and its large value is being written.
    ForLarge(Reply, u64),
}

fn at_once(
    values: &Values,
    counters: &RespCounters,
    is_held: bool,
    key: &ValueKey,
    operation: Operation,
) -> Result<Reply, Waits> {
    let _turn: Option<Turn<'_>> = if operation.writes() && !is_held {
        match values.turns.try_take(Turns::number(key)) {
            Some(turn) => Some(turn),
            None => return Err(Waits::For(operation)),
        }
    } else {
        None
    };
    if operation.writes() && !values.store.has_room_for_value(operation.size()) {
        return Err(Waits::For(operation));
    }
    let found = if operation.needs_value() {
        match values.store.look_up_value(key) {
            LookedUp::Found(found) => Some(found),
            LookedUp::Nothing => None,
            LookedUp::Unknown => return Err(Waits::For(operation)),
        }
    } else {
        None
    };
    match finish(values, counters, key, operation, found.as_ref()) {
        Ok((reply, None)) => Ok(reply),
        Ok((reply, Some(len))) => Err(Waits::ForLarge(reply, len)),
        Err(error) => Ok(error),
    }
}

/// Joins the replies to operations on several keys into one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Joined {
    /// Their sum.
    Sum,
    /// An array of them, of at most so many bytes.
    Array(usize),
}

/// The replies so far, in the order of the keys.
struct Collected {
    replies: Vec<Reply>,
    bytes: usize,
    joined: Joined,
}

impl Collected {
    fn set(&mut self, number: usize, reply: Reply) {
        if let Reply::Bulk(bytes) = &reply {
            self.bytes = self.bytes.saturating_add(bytes.len());
        }
        self.replies[number] = reply;
    }

    fn is_too_large(&self) -> bool {
        matches!(self.joined, Joined::Array(most) if self.bytes > most)
    }

    fn join(self) -> Reply {
        if self.is_too_large() {
            return too_large();
        }
        match self.joined {
            Joined::Array(_) => Reply::Array(self.replies),
            Joined::Sum => {
                let number = |reply: &Reply| if let Reply::Integer(number) = reply { *number } else { 0 };
                let sum = self.replies.iter().map(number).sum();
                self.replies.into_iter().find(Reply::is_error).unwrap_or(Reply::Integer(sum))
            }
        }
    }
}

/// The error of a command whose reply would hold more than clients may.
pub(super) fn too_large() -> Reply {
    Reply::error("ERR the reply is larger than resp.max_buffered: ask for fewer keys at once")
}

/// Carries out the same operation on several keys, each for itself.
pub(super) fn each(context: &mut Context<'_>, names: &[Bytes], operation: Operation, joined: Joined) -> Step {
    let (values, session) = (&**context.values, &*context.session);
    let keys = names.iter().map(|name| values.key(session.database, name)).collect::<Result<Vec<_>, _>>();
    let keys = match keys {
        Ok(keys) => keys,
        Err(error) => return error.into(),
    };
    let mut collected = Collected { replies: vec![Reply::Null; keys.len()], bytes: 0, joined };
    let mut done = 0;
    if keys.len() <= MOST_AT_ONCE {
        for key in &keys {
            match at_once(values, &session.counters, session.holds_turns, key, operation.clone()) {
                Ok(reply) | Err(Waits::ForLarge(reply, _)) => collected.set(done, reply),
                Err(Waits::For(_)) => break,
            }
            done += 1;
        }
        if done == keys.len() {
            return collected.join().into();
        }
    }
    let rest = keys.into_iter().enumerate().skip(done).collect();
    let work = Work::of(context);
    Step::Waits(Box::pin(async move { later(&work, rest, &operation, collected).await }))
}

/// Carries out an operation on the rest of several keys. Looks for some at once in the durable tier, since a bucket takes its
/// time for each.
async fn later(work: &Work, rest: Vec<(usize, ValueKey)>, operation: &Operation, mut collected: Collected) -> Reply {
    let (mut under_way, mut seen): (JoinSet<(usize, Reply)>, _) = (JoinSet::new(), HashSet::new());
    for (count, (number, key)) in rest.into_iter().enumerate() {
        // A key that is named twice is used twice, one after the other.
        let is_again = !seen.insert(key.key().hash());
        while under_way.len() >= LOOKUPS || (is_again && !under_way.is_empty()) {
            take(&mut under_way, &mut collected).await;
        }
        if collected.is_too_large() {
            return collected.join();
        }
        match at_once(&work.values, &work.counters, work.is_held, &key, operation.clone()) {
            Ok(reply) | Err(Waits::ForLarge(reply, _)) => collected.set(number, reply),
            Err(Waits::For(operation)) => {
                let work = work.clone();
                under_way.spawn(async move { (number, work.carry_out(&key, operation).await) });
            }
        }
        if count % MOST_AT_ONCE == MOST_AT_ONCE - 1 {
            // Others on this thread have their turn.
            tokio::task::yield_now().await;
        }
    }
    while !under_way.is_empty() {
        take(&mut under_way, &mut collected).await;
    }
    collected.join()
}

async fn take(under_way: &mut JoinSet<(usize, Reply)>, collected: &mut Collected) {
    if let Some(Ok((number, reply))) = under_way.join_next().await {
        collected.set(number, reply);
    }
}

/// Stores several values, so that no other change of them comes in between.
pub(super) fn put_all(context: &mut Context<'_>, pairs: &[Bytes]) -> Step {
    let values = &**context.values;
    let name_and_value = pairs.chunks_exact(2);
    let keys = name_and_value.clone().map(|pair| values.key(context.session.database, &pair[0]));
    let keys = match keys.collect::<Result<Vec<_>, _>>() {
        Ok(keys) => keys,
        Err(error) => return error.into(),
    };
    let numbers: Vec<usize> =
        if context.session.holds_turns { Vec::new() } else { keys.iter().map(Turns::number).collect() };
    let size = pairs.iter().map(Bytes::len).sum();
    if keys.len() <= MOST_AT_ONCE
        && values.store.has_room_for_value(size)
        && !name_and_value.clone().any(|pair| values.store.is_large_value(pair[1].len() as u64))
        && let Some(_turns) = values.turns.try_take_all(numbers.clone())
    {
        for (key, pair) in keys.iter().zip(name_and_value) {
            if let Err(error) = put(values, key, &pair[1]) {
                return error.into();
            }
        }
        return Reply::OK.into();
    }
    let pairs: Vec<(ValueKey, Bytes)> = keys.into_iter().zip(name_and_value.map(|pair| pair[1].clone())).collect();
    let (values, is_gone) = (Arc::clone(context.values), Arc::clone(&context.session.is_gone));
    let is_held = context.session.holds_turns;
    Step::Waits(Box::pin(async move {
        let turns = values.turns.take_all(numbers).await;
        // Nothing is done yet, unless it is within a transaction.
        if !is_held && is_gone.load(Ordering::Relaxed) {
            return Reply::error("ERR the client is gone");
        }
        for (count, (key, value)) in pairs.iter().enumerate() {
            if !values.store.has_room_for_value(value.len()) {
                values.settle().await;
            }
            if let Err(error) = put(&values, key, value) {
                return error;
            }
            if count % MOST_AT_ONCE == MOST_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        drop(turns);
        for (key, value) in &pairs {
            values.store.large_value_written(key, value.len() as u64).await;
        }
        Reply::OK
    }))
}

fn put(values: &Values, key: &ValueKey, value: &Bytes) -> Result<(), Reply> {
    values.carry_out(key, None, Change::Put { value: value.clone(), expires: None }).map(|_| ())
}
