//! Commands that read and write values.

use bytes::Bytes;

use super::one::{Joined, each, one, put_all};
use super::times::{Spent, moment};
use super::{Command, Context, Step, When};
use crate::base::RespClass;
use crate::resp::reply::Reply;
use crate::resp::values::operation::{Expiry, NOT_AN_INTEGER, Operation, Set, SetIf, Unit, read_integer};

/// A command on values, which waits for `EXEC` after `MULTI`.
const fn command(
    name: &'static str,
    arity: i16,
    class: RespClass,
    flags: &'static [&'static str],
    keys: (i8, i8, i8),
    run: super::Handler,
) -> Command {
    Command { name, arity, class, flags, keys, when: When::Usual, run }
}

const READ: &[&str] = &["readonly", "fast"];
const WRITE: &[&str] = &["write", "denyoom"];
const FAST_WRITE: &[&str] = &["write", "denyoom", "fast"];
const DELETES: &[&str] = &["write"];
const ONE: (i8, i8, i8) = (1, 1, 1);
const ALL: (i8, i8, i8) = (1, -1, 1);

pub(super) static COMMANDS: &[Command] = &[
    command("get", 2, RespClass::Read, READ, ONE, |context, a| one(context, &a[1], Operation::Get)),
    command("set", -3, RespClass::Write, WRITE, ONE, set),
    command("mget", -2, RespClass::Read, READ, ALL, |context, a| {
        let most = context.server.config.max_buffered;
        each(context, &a[1..], Operation::Get, Joined::Array(most))
    }),
    command("mset", -3, RespClass::Write, WRITE, (1, -1, 2), mset),
    command("setex", 4, RespClass::Write, WRITE, ONE, |context, a| set_until(context, a, "setex", Unit::Seconds)),
    command("psetex", 4, RespClass::Write, WRITE, ONE, |context, a| set_until(context, a, "psetex", Unit::Millis)),
    command("setnx", 3, RespClass::Write, FAST_WRITE, ONE, |context, a| {
        one(context, &a[1], Operation::SetNew(a[2].clone()))
    }),
    command("getset", 3, RespClass::Write, FAST_WRITE, ONE, |context, a| {
        let set = Set { value: a[2].clone(), expiry: Expiry::Never, condition: None, returns_old: true };
        one(context, &a[1], Operation::Set(set))
    }),
    command("getdel", 2, RespClass::Write, &["write", "fast"], ONE, |context, a| {
        one(context, &a[1], Operation::GetAndDelete)
    }),
    command("getex", -2, RespClass::Write, &["write", "fast"], ONE, getex),
    command("append", 3, RespClass::Write, FAST_WRITE, ONE, |context, a| {
        let most = context.server.config.max_value_size;
        one(context, &a[1], Operation::Append(a[2].clone(), most))
    }),
    command("strlen", 2, RespClass::Read, READ, ONE, |context, a| one(context, &a[1], Operation::Len)),
    command("incr", 2, RespClass::Write, FAST_WRITE, ONE, |context, a| one(context, &a[1], Operation::Add(1))),
    command("decr", 2, RespClass::Write, FAST_WRITE, ONE, |context, a| one(context, &a[1], Operation::Add(-1))),
    command("incrby", 3, RespClass::Write, FAST_WRITE, ONE, |context, a| match read_integer(&a[2]) {
        Some(by) => one(context, &a[1], Operation::Add(by)),
        None => Reply::error(NOT_AN_INTEGER).into(),
    }),
    command("decrby", 3, RespClass::Write, FAST_WRITE, ONE, |context, a| {
        match read_integer(&a[2]).map(i64::checked_neg) {
            Some(Some(by)) => one(context, &a[1], Operation::Add(by)),
            Some(None) => Reply::error("ERR decrement would overflow").into(),
            None => Reply::error(NOT_AN_INTEGER).into(),
        }
    }),
    command("exists", -2, RespClass::Read, READ, ALL, |context, a| {
        each(context, &a[1..], Operation::Exists, Joined::Sum)
    }),
    command("touch", -2, RespClass::Read, READ, ALL, |context, a| {
        each(context, &a[1..], Operation::Exists, Joined::Sum)
    }),
    command("del", -2, RespClass::Write, DELETES, ALL, |context, a| {
        each(context, &a[1..], Operation::Delete, Joined::Sum)
    }),
    command("unlink", -2, RespClass::Write, &["write", "fast"], ALL, |context, a| {
        each(context, &a[1..], Operation::Delete, Joined::Sum)
    }),
    command("type", 2, RespClass::Read, READ, ONE, |context, a| one(context, &a[1], Operation::Type)),
];

fn syntax_error() -> Step {
    Reply::error("ERR syntax error").into()
}

/// `SET key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT seconds | PXAT milliseconds | KEEPTTL]`
fn set(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let mut set = Set { value: arguments[2].clone(), expiry: Expiry::Never, condition: None, returns_old: false };
    if arguments.len() > 3 {
        let (mut time, mut keeps) = (None, false);
        let mut options = arguments[3..].iter();
        while let Some(option) = options.next() {
            let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
            let has_expiry = keeps || time.is_some();
            match Spent::of(option) {
                Some(spent) if !has_expiry => match options.next() {
                    Some(number) => time = Some((spent, number)),
                    None => return syntax_error(),
                },
                Some(_) => return syntax_error(),
                None if is("nx") && set.condition != Some(SetIf::Present) => set.condition = Some(SetIf::Absent),
                None if is("xx") && set.condition != Some(SetIf::Absent) => set.condition = Some(SetIf::Present),
                None if is("get") => set.returns_old = true,
                None if is("keepttl") && time.is_none() => keeps = true,
                None => return syntax_error(),
            }
        }
        set.expiry = match time {
            Some((spent, number)) => match moment(number, spent, context.values.now(), "set") {
                Ok(moment) => Expiry::At(moment),
                Err(error) => return error.into(),
            },
            None if keeps => Expiry::Keep,
            None => Expiry::Never,
        };
    }
    one(context, &arguments[1], Operation::Set(set))
}

/// `SETEX key seconds value`, `PSETEX key milliseconds value`
fn set_until(context: &mut Context<'_>, arguments: &[Bytes], name: &str, unit: Unit) -> Step {
    match moment(&arguments[2], Spent { unit, is_after_now: true }, context.values.now(), name) {
        Ok(moment) => {
            let value = arguments[3].clone();
            let set = Set { value, expiry: Expiry::At(moment), condition: None, returns_old: false };
            one(context, &arguments[1], Operation::Set(set))
        }
        Err(error) => error.into(),
    }
}

/// `GETEX key [EX seconds | PX milliseconds | EXAT seconds | PXAT milliseconds | PERSIST]`
fn getex(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let expiry = match &arguments[2..] {
        [] => Expiry::Keep,
        [option] if option.eq_ignore_ascii_case(b"persist") => Expiry::Never,
        [option, number] => match Spent::of(option) {
            Some(spent) => match moment(number, spent, context.values.now(), "getex") {
                Ok(moment) => Expiry::At(moment),
                Err(error) => return error.into(),
            },
            None => return syntax_error(),
        },
        _ => return syntax_error(),
    };
    one(context, &arguments[1], Operation::GetAndExpire(expiry))
}

fn mset(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    if arguments.len().is_multiple_of(2) {
        return Reply::error("ERR wrong number of arguments for 'mset' command").into();
    }
    put_all(context, &arguments[1..])
}
