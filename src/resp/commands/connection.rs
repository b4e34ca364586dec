//! Commands about the connection itself.

use bytes::Bytes;

use super::{Command, Context, Step, When};
use crate::base::RespClass;
use crate::resp::reply::Reply;

pub(super) static COMMANDS: &[Command] = &[
    Command {
        name: "ping",
        arity: -1,
        class: RespClass::Connection,
        flags: &["fast"],
        keys: (0, 0, 0),
        when: When::Usual,
        run: ping,
    },
    Command {
        name: "echo",
        arity: 2,
        class: RespClass::Connection,
        flags: &["fast"],
        keys: (0, 0, 0),
        when: When::Usual,
        run: |_, arguments| Reply::Bulk(arguments[1].clone()).into(),
    },
];

fn ping(_: &mut Context<'_>, arguments: &[Bytes]) -> Step {
    match arguments {
        [_] => Reply::Simple("PONG".into()).into(),
        [_, text] => Reply::Bulk(text.clone()).into(),
        _ => Reply::error("ERR wrong number of arguments for 'ping' command").into(),
    }
}
