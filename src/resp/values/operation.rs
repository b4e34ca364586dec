//! Decides what an operation on one value does: a pure function of the value that was found, in Redis's terms.

use bytes::Bytes;

use crate::resp::reply::Reply;
use crate::rfc9111::timestamp::Timestamp;
use crate::store::FoundValue;

/// The error of a value or an argument that is no integer of 64 bits.
pub(in crate::resp) const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// An operation on the value of one key.
#[derive(Clone, Debug)]
pub(in crate::resp) enum Operation {
    /// `GET`
    Get,
    /// `STRLEN`
    Len,
    /// `EXISTS`, `TOUCH`
    Exists,
    /// `TYPE`
    Type,
    /// `TTL`, `PTTL`
    TimeToLive(Unit),
    /// `EXPIRETIME`, `PEXPIRETIME`
    ExpireTime(Unit),
    /// `SET` and its relatives.
    Set(Set),
    /// `SETNX`
    SetNew(Bytes),
    /// `APPEND`; the second is the most bytes of a value.
    Append(Bytes, usize),
    /// `INCRBY`; negative: `DECRBY`
    Add(i64),
    /// `EXPIRE` and its relatives.
    Expire(Timestamp, Option<ExpireIf>),
    /// `PERSIST`
    Persist,
    /// `GETEX`: the moment at which the value expires from then on.
    GetAndExpire(Expiry),
    /// `GETDEL`
    GetAndDelete,
    /// `DEL`, `UNLINK`
    Delete,
}

/// `SET`
#[derive(Clone, Debug)]
pub(in crate::resp) struct Set {
    /// The new value.
    pub(in crate::resp) value: Bytes,
    /// When it expires.
    pub(in crate::resp) expiry: Expiry,
    /// `NX`, `XX`
    pub(in crate::resp) condition: Option<SetIf>,
    /// `GET`: the reply is the old value.
    pub(in crate::resp) returns_old: bool,
}

/// The unit of a time in a reply or argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp) enum Unit {
    Seconds,
    Millis,
}

/// When a value expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp) enum Expiry {
    /// Never.
    Never,
    /// As before.
    Keep,
    /// At this moment.
    At(Timestamp),
}

/// The condition of a `SET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp) enum SetIf {
    /// `NX`
    Absent,
    /// `XX`
    Present,
}

/// The condition of an `EXPIRE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp) enum ExpireIf {
    /// `NX`: it never expires yet.
    Never,
    /// `XX`: it expires.
    Ever {
        /// Also the condition that this says.
        and: Option<Order>,
    },
    /// `GT`, `LT`
    Compared(Order),
}

/// A condition on the new moment and the old one. A value that never expires does so last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::resp) enum Order {
    /// `GT`
    Later,
    /// `LT`
    Sooner,
}

/// The change of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resp) enum Change {
    /// It stays.
    Nothing,
    /// Another takes its place.
    Put {
        /// Its bytes.
        value: Bytes,
        /// The moment at which it expires.
        expires: Option<Timestamp>,
    },
    /// Replaces it by what was made of it.
    Rewrite {
        /// Its bytes.
        value: Bytes,
        /// The moment at which it expires.
        expires: Option<Timestamp>,
    },
    /// It stays, and expires at another moment.
    Retime {
        /// That moment.
        expires: Option<Timestamp>,
    },
    /// It goes.
    Delete,
}

/// The reply to an operation, and what becomes of the value.
pub(in crate::resp) type Outcome = (Reply, Change);

impl Operation {
    /// Returns whether it may change the value.
    pub(in crate::resp) fn writes(&self) -> bool {
        match self {
            Self::Get | Self::Len | Self::Exists | Self::Type | Self::TimeToLive(_) | Self::ExpireTime(_) => false,
            Self::GetAndExpire(expiry) => *expiry != Expiry::Keep,
            Self::Set(_)
            | Self::SetNew(_)
            | Self::Append(..)
            | Self::Add(_)
            | Self::Expire(..)
            | Self::Persist
            | Self::GetAndDelete
            | Self::Delete => true,
        }
    }

    /// Returns whether it depends on the value that is there.
    pub(in crate::resp) fn needs_value(&self) -> bool {
        match self {
            Self::Set(Set { expiry, condition, returns_old, .. }) => {
                *returns_old || condition.is_some() || *expiry == Expiry::Keep
            }
            _ => true,
        }
    }

    /// Returns whether it counts as a read that finds a value or does not.
    pub(in crate::resp) fn is_read(&self) -> bool {
        match self {
            Self::Get | Self::Len | Self::GetAndExpire(_) | Self::GetAndDelete => true,
            Self::Set(set) => set.returns_old,
            _ => false,
        }
    }

    /// Returns the bytes that it writes, at least.
    pub(in crate::resp) fn size(&self) -> usize {
        match self {
            Self::Set(Set { value, .. }) | Self::SetNew(value) | Self::Append(value, _) => value.len(),
            _ => 0,
        }
    }

    /// Carries it out on the value that was found, which has not expired. Asks `now` for the time only if that matters.
    pub(in crate::resp) fn apply(self, found: Option<&FoundValue>, now: impl Fn() -> Timestamp) -> Outcome {
        let expires = found.and_then(FoundValue::expires);
        let is_there = i64::from(found.is_some());
        match (self, found) {
            (Self::Get, _) => (bulk(found), Change::Nothing),
            (Self::Len, _) => (integer(found.map_or(0, FoundValue::len)), Change::Nothing),
            (Self::Exists, _) => (Reply::Integer(is_there), Change::Nothing),
            (Self::Type, _) => (Reply::Simple(found.map_or("none", |_| "string").into()), Change::Nothing),
            (Self::TimeToLive(_) | Self::ExpireTime(_), None) => (Reply::Integer(-2), Change::Nothing),
            (Self::TimeToLive(unit), Some(_)) => {
                (Reply::Integer(expires.map_or(-1, |moment| unit.of(moment.millis_since(now())))), Change::Nothing)
            }
            (Self::ExpireTime(unit), Some(_)) => {
                (Reply::Integer(expires.map_or(-1, |moment| unit.of(moment.as_millis()))), Change::Nothing)
            }
            (Self::Set(set), _) => set.apply(found, now),
            (Self::SetNew(value), None) => (Reply::Integer(1), Change::Put { value, expires: None }),
            (Self::SetNew(_), Some(_)) => (Reply::Integer(0), Change::Nothing),
            (Self::Append(more, most), _) => append(found, &more, most),
            (Self::Add(by), _) => add(found, by),
            (Self::Expire(..) | Self::Persist, None) => (Reply::Integer(0), Change::Nothing),
            (Self::Expire(moment, condition), Some(_)) => match condition {
                Some(condition) if !condition.holds(expires, moment) => (Reply::Integer(0), Change::Nothing),
                Some(_) | None => (Reply::Integer(1), Expiry::At(moment).of_what_is_there(now())),
            },
            (Self::Persist, Some(_)) if expires.is_none() => (Reply::Integer(0), Change::Nothing),
            (Self::Persist, Some(_)) => (Reply::Integer(1), Change::Retime { expires: None }),
            (Self::GetAndExpire(_) | Self::GetAndDelete, None) => (Reply::Null, Change::Nothing),
            (Self::GetAndExpire(Expiry::Never), Some(_)) if expires.is_none() => (bulk(found), Change::Nothing),
            (Self::GetAndExpire(expiry), Some(_)) => (bulk(found), expiry.of_what_is_there(now())),
            (Self::GetAndDelete, Some(_)) => (bulk(found), Change::Delete),
            // Also what is not known here: another process may have just stored it.
            (Self::Delete, _) => (Reply::Integer(is_there), Change::Delete),
        }
    }
}

impl Set {
    fn apply(self, found: Option<&FoundValue>, now: impl Fn() -> Timestamp) -> Outcome {
        let Self { value, expiry, condition, returns_old } = self;
        let is_allowed = match condition {
            Some(SetIf::Absent) => found.is_none(),
            Some(SetIf::Present) => found.is_some(),
            None => true,
        };
        let reply = match (returns_old, is_allowed) {
            (true, _) => bulk(found),
            (false, true) => Reply::OK,
            (false, false) => Reply::Null,
        };
        if !is_allowed {
            return (reply, Change::Nothing);
        }
        let expires = match expiry {
            Expiry::Never => None,
            Expiry::Keep => found.and_then(FoundValue::expires),
            // It has expired before it is there.
            Expiry::At(moment) if moment <= now() => return (reply, Change::Delete),
            Expiry::At(moment) => Some(moment),
        };
        (reply, Change::Put { value, expires })
    }
}

impl Expiry {
    /// Returns what becomes of a value that is there and is to expire then.
    fn of_what_is_there(self, now: Timestamp) -> Change {
        match self {
            Self::Keep => Change::Nothing,
            Self::Never => Change::Retime { expires: None },
            Self::At(moment) if moment <= now => Change::Delete,
            Self::At(moment) => Change::Retime { expires: Some(moment) },
        }
    }
}

impl Unit {
    /// Returns milliseconds in this unit, rounded as Redis does.
    fn of(self, millis: i64) -> i64 {
        match self {
            Self::Seconds => millis.saturating_add(500) / 1000,
            Self::Millis => millis,
        }
    }
}

impl ExpireIf {
    fn holds(self, old: Option<Timestamp>, new: Timestamp) -> bool {
        match self {
            Self::Never => old.is_none(),
            Self::Ever { and } => old.is_some() && and.is_none_or(|order| order.holds(old, new)),
            Self::Compared(order) => order.holds(old, new),
        }
    }
}

impl Order {
    fn holds(self, old: Option<Timestamp>, new: Timestamp) -> bool {
        match self {
            Self::Later => old.is_some_and(|old| new > old),
            Self::Sooner => old.is_none_or(|old| new < old),
        }
    }
}

fn bulk(found: Option<&FoundValue>) -> Reply {
    found.map_or(Reply::Null, |found| Reply::Bulk(found.bytes()))
}

fn integer(number: u64) -> Reply {
    Reply::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn append(found: Option<&FoundValue>, more: &Bytes, most: usize) -> Outcome {
    let (old, expires) = (found.map(FoundValue::bytes).unwrap_or_default(), found.and_then(FoundValue::expires));
    if old.len().saturating_add(more.len()) > most {
        return (Reply::error("ERR string exceeds maximum allowed size (proto-max-bulk-len)"), Change::Nothing);
    }
    let value = Bytes::from([&old[..], &more[..]].concat());
    (integer(value.len() as u64), Change::Rewrite { value, expires })
}

fn add(found: Option<&FoundValue>, by: i64) -> Outcome {
    let old = match found.map(FoundValue::bytes) {
        None => Some(0),
        Some(bytes) => read_integer(&bytes),
    };
    let Some(old) = old else { return (Reply::error(NOT_AN_INTEGER), Change::Nothing) };
    let Some(new) = old.checked_add(by) else {
        return (Reply::error("ERR increment or decrement would overflow"), Change::Nothing);
    };
    let value = Bytes::copy_from_slice(itoa::Buffer::new().format(new).as_bytes());
    (Reply::Integer(new), Change::Rewrite { value, expires: found.and_then(FoundValue::expires) })
}

/// Reads an integer of 64 bits as Redis does: no sign but a minus, no zero in front, nothing around it.
pub(in crate::resp) fn read_integer(bytes: &[u8]) -> Option<i64> {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let is_canonical = match digits {
        [b'0'] => digits.len() == bytes.len(),
        [b'1'..=b'9', rest @ ..] => rest.len() < 19 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    std::str::from_utf8(bytes).ok().filter(|_| is_canonical)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_table() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("99999999999999999999999", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+1", None),
            ("01", None),
            (" 1", None),
            ("1 ", None),
            ("1.0", None),
            ("0x1", None),
        ] {
            assert_eq!(read_integer(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn expire_conditions_table() {
        let at = |millis| Timestamp::from_millis(millis);
        let (never, soon) = (None, Some(at(1000)));
        for (condition, old, new, expected) in [
            (ExpireIf::Never, never, 5, true),
            (ExpireIf::Never, soon, 5, false),
            (ExpireIf::Ever { and: None }, never, 5, false),
            (ExpireIf::Ever { and: None }, soon, 5, true),
            (ExpireIf::Ever { and: Some(Order::Later) }, soon, 5, false),
            (ExpireIf::Compared(Order::Later), never, 5000, false),
            (ExpireIf::Compared(Order::Later), soon, 1000, false),
            (ExpireIf::Compared(Order::Later), soon, 1001, true),
            (ExpireIf::Compared(Order::Sooner), never, 5000, true),
            (ExpireIf::Compared(Order::Sooner), soon, 1000, false),
            (ExpireIf::Compared(Order::Sooner), soon, 999, true),
        ] {
            assert_eq!(condition.holds(old, at(new)), expected, "{condition:?} {old:?} {new}");
        }
    }
}
