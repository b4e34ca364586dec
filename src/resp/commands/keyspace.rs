//! Commands on the names of a database: listing, counting, and deleting all.

use std::sync::Arc;

use bytes::Bytes;

use super::{Command, Context, Step, When};
use crate::base::RespClass;
use crate::resp::reply::Reply;
use crate::resp::values::Values;
use crate::resp::values::glob::Pattern;
use crate::resp::values::operation::{NOT_AN_INTEGER, read_integer};

const fn command(name: &'static str, arity: i16, flags: &'static [&'static str], run: super::Handler) -> Command {
    Command { name, arity, class: RespClass::Keys, flags, keys: (0, 0, 0), when: When::Usual, run }
}

pub(super) static COMMANDS: &[Command] = &[
    command("keys", 2, &["readonly"], keys),
    command("scan", -2, &["readonly"], scan),
    command("dbsize", 1, &["readonly"], dbsize),
    command("flushdb", -1, &["write"], |context, a| flush(context, a, Some(context.session.database))),
    command("flushall", -1, &["write"], |context, a| flush(context, a, None)),
];

fn keys(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    if let Err(error) = Pattern::check(&arguments[1]) {
        return error.into();
    }
    let (values, database, asker) = (Arc::clone(context.values), context.session.database, context.session.asker());
    let pattern = Bytes::copy_from_slice(&arguments[1]);
    Step::Waits(Box::pin(async move {
        match values.keys(&asker, database, &pattern).await {
            Ok(names) => Reply::Array(names.into_iter().map(Reply::Bulk).collect()),
            Err(error) => error,
        }
    }))
}

fn dbsize(context: &mut Context<'_>, _: &[Bytes]) -> Step {
    let (values, database, asker) = (Arc::clone(context.values), context.session.database, context.session.asker());
    Step::Waits(Box::pin(async move {
        match values.count(&asker, database).await {
            Ok(count) => Reply::Integer(i64::try_from(count).unwrap_or(i64::MAX)),
            Err(error) => error,
        }
    }))
}

/// The options of a `SCAN`.
#[derive(Debug)]
struct Scan {
    pattern: Bytes,
    count: usize,
    /// False if no value is of the type that it asks for.
    is_of_strings: bool,
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
fn scan(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let Some(cursor) = read_cursor(&arguments[1]) else {
        return Reply::error("ERR invalid cursor").into();
    };
    let scan = match options(&arguments[2..]) {
        Ok(scan) => scan,
        Err(error) => return error.into(),
    };
    let (values, database, asker) = (Arc::clone(context.values), context.session.database, context.session.asker());
    let reply = |cursor: u64, names: Vec<Bytes>| {
        let names = names.into_iter().map(Reply::Bulk).collect();
        Reply::Array(vec![Reply::Bulk(cursor.to_string().into()), Reply::Array(names)])
    };
    if !scan.is_of_strings {
        return reply(0, Vec::new()).into();
    }
    Step::Waits(Box::pin(async move {
        match values.scan(&asker, database, cursor, &scan.pattern, scan.count).await {
            Ok((next, names)) => reply(next, names),
            Err(error) => error,
        }
    }))
}

/// Reads a cursor as Redis does, which takes a number with a minus for its complement.
fn read_cursor(text: &[u8]) -> Option<u64> {
    let (digits, is_negated) = text.strip_prefix(b"-").map_or((text, false), |digits| (digits, true));
    let number: u64 =
        std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with(['-', '+']))?.parse().ok()?;
    Some(if is_negated { number.wrapping_neg() } else { number })
}

fn options(arguments: &[Bytes]) -> Result<Scan, Reply> {
    let syntax_error = || Reply::error("ERR syntax error");
    let mut scan = Scan { pattern: Bytes::from_static(b"*"), count: 10, is_of_strings: true };
    let mut pairs = arguments.chunks_exact(2);
    for pair in &mut pairs {
        match pair[0].to_ascii_lowercase().as_slice() {
            b"match" => {
                Pattern::check(&pair[1])?;
                scan.pattern = Bytes::copy_from_slice(&pair[1]);
            }
            b"count" => {
                let count = read_integer(&pair[1]).ok_or_else(|| Reply::error(NOT_AN_INTEGER))?;
                scan.count = usize::try_from(count).ok().filter(|count| *count > 0).ok_or_else(syntax_error)?;
            }
            b"type" => scan.is_of_strings = pair[1].eq_ignore_ascii_case(b"string"),
            _ => return Err(syntax_error()),
        }
    }
    if pairs.remainder().is_empty() { Ok(scan) } else { Err(syntax_error()) }
}

/// `FLUSHDB [ASYNC | SYNC]`, `FLUSHALL [ASYNC | SYNC]`: a purge, which searches for nothing either way.
fn flush(context: &mut Context<'_>, arguments: &[Bytes], database: Option<u8>) -> Step {
    let is_known = |option: &Bytes| option.eq_ignore_ascii_case(b"async") || option.eq_ignore_ascii_case(b"sync");
    match &arguments[1..] {
        [] => {}
        [option] if is_known(option) => {}
        _ => return Reply::error("ERR syntax error").into(),
    }
    let values = Arc::clone(context.values);
    let recorded = values.flush(database);
    Step::Waits(Box::pin(async move { flushed(&values, recorded).await }))
}

async fn flushed(values: &Values, receipt: crate::store::PurgeReceipt) -> Reply {
    match values.store.recorded(receipt).await {
        Ok(()) => Reply::OK,
        Err(error) => Reply::error(format!(
            "ERR the values are gone from this process; the others, and the next one, learn of it once the durable tier \
             takes the record, which is tried again: {error}"
        )),
    }
}
