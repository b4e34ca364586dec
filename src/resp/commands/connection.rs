//! Commands about the connection itself: who the client is, and how it is spoken to.

use std::fmt::Write as _;

use bytes::Bytes;
use subtle::ConstantTimeEq;

use super::{Command, Context, Step, When, wrong_number};
use crate::base::{RespClass, RespRefusal};
use crate::resp::reply::{Protocol, Reply};
use crate::resp::session::{DATABASES, Session};
use crate::resp::values::operation::read_integer;

/// The version of Redis that clients are told, and that some of them choose commands by. It is the last version before
/// Redis and Valkey parted, and the one that Valkey tells too: nothing that came later is here.
pub(super) const VERSION: &str = "7.2.4";

const fn command(name: &'static str, arity: i16, when: When, run: super::Handler) -> Command {
    Command { name, arity, class: RespClass::Connection, flags: &["fast"], keys: (0, 0, 0), when, run }
}

pub(super) static COMMANDS: &[Command] = &[
    command("ping", -1, When::Usual, ping),
    command("echo", 2, When::Usual, |_, arguments| Reply::Bulk(arguments[1].clone()).into()),
    command("hello", -1, When::Early, hello),
    command("auth", -2, When::Early, auth),
    command("select", 2, When::Usual, select),
    command("client", -2, When::Usual, client),
    command("quit", -1, When::Always, quit),
    command("reset", 1, When::Always, reset),
];

fn ping(_: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    match arguments {
        [_] => Reply::Simple("PONG".into()).into(),
        [_, text] => Reply::Bulk(text.clone()).into(),
        _ => wrong_number("ping").into(),
    }
}

fn quit(context: &mut Context<'_>, _: &[Bytes]) -> Step {
    context.session.is_closing = true;
    Reply::OK.into()
}

fn reset(context: &mut Context<'_>, _: &[Bytes]) -> Step {
    context.session.reset(!context.server.config.needs_password());
    Reply::Simple("RESET".into()).into()
}

fn select(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let Some(number) = read_integer(&arguments[1]) else {
        return Reply::error("ERR value is not an integer or out of range").into();
    };
    if i32::try_from(number).is_err() {
        let (least, most) = (i32::MIN, i32::MAX);
        return Reply::error(format!("ERR value is out of range, value must between {least} and {most}")).into();
    }
    match u8::try_from(number) {
        Ok(database) if database < DATABASES => {
            context.session.database = database;
            Reply::OK.into()
        }
        Ok(_) | Err(_) => Reply::error("ERR DB index is out of range").into(),
    }
}

/// Reads a number as Redis does: no plus, no leading zeros, no spaces.
fn integer(text: &[u8]) -> Option<i32> {
    let number: i32 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == text).then_some(number)
}

const WRONG_PASSWORD: &str = "WRONGPASS invalid username-password pair or user is disabled.";

/// Lets a client in that knows the password of `user`. There is one user, `default`.
fn authenticate(context: &mut Context<'_>, user: &[u8], password: &[u8]) -> Result<(), Reply> {
    let config = &context.server.config;
    // In constant time, so that the password can't be guessed byte by byte.
    let is_right = !config.needs_password() || bool::from(password.ct_eq(config.password.as_bytes()));
    if user == b"default" && is_right {
        context.session.is_authenticated = true;
        return Ok(());
    }
    context.session.counters.refused(RespRefusal::Password);
    context.server.tell(RespRefusal::Password, context.session.peer, &[]);
    Err(Reply::error(WRONG_PASSWORD))
}

fn auth(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let outcome = match arguments {
        [_, _] if !context.server.config.needs_password() => Err(Reply::error(
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
        )),
        [_, password] => authenticate(context, b"default", password),
        [_, user, password] => authenticate(context, user, password),
        _ => Err(Reply::error("ERR syntax error")),
    };
    outcome.map_or_else(Step::from, |()| Reply::OK.into())
}

/// The request of a `HELLO`.
#[derive(Debug, Default)]
struct Hello<'a> {
    protocol: Option<Protocol>,
    login: Option<(&'a [u8], &'a [u8])>,
    name: Option<&'a Bytes>,
}

impl<'a> Hello<'a> {
    fn read(arguments: &'a [Bytes]) -> Result<Self, Reply> {
        let mut hello = Self::default();
        let [_, version, options @ ..] = arguments else { return Ok(hello) };
        hello.protocol = Some(match integer(version) {
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Err(Reply::error("NOPROTO unsupported protocol version")),
            None => return Err(Reply::error("ERR Protocol version is not an integer or out of range")),
        });
        let mut rest = options;
        while let [option, behind @ ..] = rest {
            rest = match behind {
                [user, password, behind @ ..] if option.eq_ignore_ascii_case(b"auth") => {
                    hello.login = Some((user, password));
                    behind
                }
                [name, behind @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                    hello.name = Some(name);
                    behind
                }
                _ => {
                    let option = String::from_utf8_lossy(&option[..option.len().min(128)]);
                    return Err(Reply::error(format!("ERR Syntax error in HELLO option '{option}'")));
                }
            };
        }
        Ok(hello)
    }
}

fn hello(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    greet(context, arguments).unwrap_or_else(|refusal| refusal).into()
}

/// Carries out `HELLO`. Changes nothing if any of it is refused, but for the authentication.
fn greet(context: &mut Context<'_>, arguments: &[Bytes]) -> Result<Reply, Reply> {
    let hello = Hello::read(arguments)?;
    if let Some((user, password)) = hello.login {
        authenticate(context, user, password)?;
    }
    if !context.session.is_authenticated {
        return Err(Reply::error(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time",
        ));
    }
    let session = &mut *context.session;
    if let Some(name) = hello.name {
        set_name(session, name)?;
    }
    session.protocol = hello.protocol.unwrap_or(session.protocol);
    let number = match session.protocol {
        Protocol::Resp2 => 2,
        Protocol::Resp3 => 3,
    };
    let id = i64::try_from(session.id).unwrap_or(i64::MAX);
    Ok(Reply::Map(vec![
        // Clients look for this word.
        (Reply::text("server"), Reply::text("redis")),
        (Reply::text("version"), Reply::text(VERSION)),
        (Reply::text("proto"), Reply::Integer(number)),
        (Reply::text("id"), Reply::Integer(id)),
        (Reply::text("mode"), Reply::text("standalone")),
        (Reply::text("role"), Reply::text("master")),
        (Reply::text("modules"), Reply::Array(Vec::new())),
    ]))
}

/// The most bytes of a name that a client gives itself or its library.
const MAX_NAME: usize = 1024;

fn set_name(session: &mut Session, name: &Bytes) -> Result<(), Reply> {
    if !is_name(name) {
        return Err(Reply::error("ERR Client names cannot contain spaces, newlines or special characters."));
    }
    session.name = Bytes::copy_from_slice(name);
    Ok(())
}

fn is_name(name: &[u8]) -> bool {
    name.len() <= MAX_NAME && name.iter().all(u8::is_ascii_graphic)
}

fn client(context: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    let mut lower = arguments[1].to_vec();
    lower.make_ascii_lowercase();
    let session = &mut *context.session;
    let text = |name: &'static str, is_right: bool, reply: &mut dyn FnMut() -> Reply| {
        if is_right { reply() } else { wrong_number(&format!("client|{name}")) }
    };
    let reply = match (&lower[..], &arguments[2..]) {
        (b"id", rest) => {
            text("id", rest.is_empty(), &mut || Reply::Integer(i64::try_from(session.id).unwrap_or(i64::MAX)))
        }
        (b"getname", rest) => text("getname", rest.is_empty(), &mut || {
            if session.name.is_empty() { Reply::Null } else { Reply::Bulk(session.name.clone()) }
        }),
        (b"info", rest) => text("info", rest.is_empty(), &mut || Reply::Verbatim(describe(session))),
        (b"setname", [name]) => set_name(session, name).map_or_else(|refusal| refusal, |()| Reply::OK),
        (b"setname", _) => wrong_number("client|setname"),
        (b"setinfo", [what, value]) => set_info(session, what, value),
        (b"setinfo", _) => wrong_number("client|setinfo"),
        // Nothing is evicted or touched for the sake of a connection.
        (b"no-evict" | b"no-touch", [switch])
            if switch.eq_ignore_ascii_case(b"on") || switch.eq_ignore_ascii_case(b"off") =>
        {
            Reply::OK
        }
        (b"no-evict" | b"no-touch", [_]) => Reply::error("ERR syntax error"),
        _ => super::server::unknown_subcommand("CLIENT", &arguments[1]),
    };
    reply.into()
}

fn set_info(session: &mut Session, what: &Bytes, value: &Bytes) -> Reply {
    let which = match what.to_ascii_lowercase().as_slice() {
        b"lib-name" => 0,
        b"lib-ver" => 1,
        _ => {
            let what = String::from_utf8_lossy(&what[..what.len().min(128)]);
            return Reply::error(format!("ERR Unrecognized option '{what}'"));
        }
    };
    if !is_name(value) {
        let what = ["lib-name", "lib-ver"][which];
        return Reply::error(format!("ERR {what} cannot contain spaces, newlines or special characters."));
    }
    session.library[which] = Bytes::copy_from_slice(value);
    Reply::OK
}

/// Describes a connection in one line.
fn describe(session: &Session) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let mut line = format!("id={} ", session.id);
    let _ = match session.peer {
        Some(peer) => write!(line, "addr={peer}"),
        None => write!(line, "addr=unix:0"),
    };
    let queued = session.transaction.as_ref().map(|transaction| transaction.commands.len());
    let _ = writeln!(
        line,
        " name={} age={} db={} multi={} user=default lib-name={} lib-ver={} resp={}",
        text(&session.name),
        session.begun.map_or(0, |begun| begun.elapsed().as_secs()),
        session.database,
        queued.map_or_else(|| "-1".to_owned(), |queued| queued.to_string()),
        text(&session.library[0]),
        text(&session.library[1]),
        if session.protocol == Protocol::Resp3 { 3 } else { 2 },
    );
    line
}
