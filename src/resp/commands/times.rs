//! Commands about when a value expires, and the times in arguments.

use bytes::Bytes;

use super::one::one;
use super::{Command, Context, Step, When};
use crate::base::RespClass;
use crate::resp::reply::Reply;
use crate::resp::values::operation::{ExpireIf, NOT_AN_INTEGER, Operation, Order, Unit, read_integer};
use crate::rfc9111::timestamp::Timestamp;

const fn command(name: &'static str, arity: i16, class: RespClass, run: super::Handler) -> Command {
    let flags: &[&str] = if matches!(class, RespClass::Read) { &["readonly", "fast"] } else { &["write", "fast"] };
    Command { name, arity, class, flags, keys: (1, 1, 1), when: When::Usual, run }
}

pub(super) static COMMANDS: &[Command] = &[
    command("expire", -3, RespClass::Write, |context, a| expire(context, a, "expire", Spent::SECONDS)),
    command("ttl", 2, RespClass::Read, |context, a| one(context, &a[1], Operation::TimeToLive(Unit::Seconds))),
    command("pttl", 2, RespClass::Read, |context, a| one(context, &a[1], Operation::TimeToLive(Unit::Millis))),
    command("pexpire", -3, RespClass::Write, |context, a| expire(context, a, "pexpire", Spent::MILLIS)),
    command("expireat", -3, RespClass::Write, |context, a| expire(context, a, "expireat", Spent::AT_SECONDS)),
    command("pexpireat", -3, RespClass::Write, |context, a| expire(context, a, "pexpireat", Spent::AT_MILLIS)),
    command("persist", 2, RespClass::Write, |context, a| one(context, &a[1], Operation::Persist)),
    command("expiretime", 2, RespClass::Read, |context, a| one(context, &a[1], Operation::ExpireTime(Unit::Seconds))),
    command("pexpiretime", 2, RespClass::Read, |context, a| one(context, &a[1], Operation::ExpireTime(Unit::Millis))),
];

/// The unit and the start of a time in an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spent {
    /// Its unit.
    pub(super) unit: Unit,
    /// True if it counts from now on, false if from the epoch on.
    pub(super) is_after_now: bool,
}

impl Spent {
    const SECONDS: Self = Self { unit: Unit::Seconds, is_after_now: true };
    const MILLIS: Self = Self { unit: Unit::Millis, is_after_now: true };
    const AT_SECONDS: Self = Self { unit: Unit::Seconds, is_after_now: false };
    const AT_MILLIS: Self = Self { unit: Unit::Millis, is_after_now: false };

    /// Returns what an option of `SET` and `GETEX` says of the number behind it.
    pub(super) fn of(option: &[u8]) -> Option<Self> {
        let options: [(&[u8], Self); 4] =
            [(b"ex", Self::SECONDS), (b"px", Self::MILLIS), (b"exat", Self::AT_SECONDS), (b"pxat", Self::AT_MILLIS)];
        options.into_iter().find(|(name, _)| option.eq_ignore_ascii_case(name)).map(|(_, spent)| spent)
    }

    /// Returns the moment that a number names; `None`: it is out of range.
    fn moment(self, number: i64, now: Timestamp) -> Option<Timestamp> {
        let millis = match self.unit {
            Unit::Seconds => number.checked_mul(1000)?,
            Unit::Millis => number,
        };
        let millis = if self.is_after_now { millis.checked_add(now.as_millis())? } else { millis };
        Some(Timestamp::from_millis(millis))
    }
}

/// Reads when a value that the command `name` stores expires, or returns the error that the argument gets.
pub(super) fn moment(number: &[u8], spent: Spent, now: Timestamp, name: &str) -> Result<Timestamp, Reply> {
    let number = read_integer(number).ok_or_else(|| Reply::error(NOT_AN_INTEGER))?;
    let moment = Some(number).filter(|number| *number > 0).and_then(|number| spent.moment(number, now));
    moment.ok_or_else(|| invalid(name))
}

fn invalid(name: &str) -> Reply {
    Reply::error(format!("ERR invalid expire time in '{name}' command"))
}

/// `EXPIRE key seconds [NX | XX | GT | LT]` and its relatives.
fn expire(context: &mut Context<'_>, arguments: &[Bytes], name: &str, spent: Spent) -> Step {
    let condition = match condition(&arguments[3..]) {
        Ok(condition) => condition,
        Err(error) => return error.into(),
    };
    let Some(number) = read_integer(&arguments[2]) else { return Reply::error(NOT_AN_INTEGER).into() };
    // A moment that is past is fine: the value goes.
    match spent.moment(number, context.values.now()) {
        Some(moment) => one(context, &arguments[1], Operation::Expire(moment, condition)),
        None => invalid(name).into(),
    }
}

fn condition(options: &[Bytes]) -> Result<Option<ExpireIf>, Reply> {
    let (mut never, mut ever, mut later, mut sooner) = (false, false, false, false);
    for option in options {
        match option.to_ascii_lowercase().as_slice() {
            b"nx" => never = true,
            b"xx" => ever = true,
            b"gt" => later = true,
            b"lt" => sooner = true,
            _ => return Err(Reply::error(format!("ERR Unsupported option {}", String::from_utf8_lossy(option)))),
        }
    }
    if never && (ever || later || sooner) {
        let text = "ERR NX and XX, GT or LT options at the same time are not compatible";
        return Err(Reply::error(text));
    }
    if later && sooner {
        return Err(Reply::error("ERR GT and LT options at the same time are not compatible"));
    }
    let order = if later { Some(Order::Later) } else { sooner.then_some(Order::Sooner) };
    Ok(match (never, ever, order) {
        (true, ..) => Some(ExpireIf::Never),
        (false, true, and) => Some(ExpireIf::Ever { and }),
        (false, false, Some(order)) => Some(ExpireIf::Compared(order)),
        (false, false, None) => None,
    })
}
