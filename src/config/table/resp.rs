//! `[resp]`

use crate::config::key::{Key, Of, Section};
use crate::config::kinds::{Secret, Size, Time, Whole};
use crate::config::values::{OPTIONAL_LISTEN, PASSWORD};

pub(super) static SECTION: Section = Section {
    name: "resp",
    about: "The listener that speaks Redis's protocol: objects that the application itself keeps in both tiers.",
    keys: &[
        Key {
            name: "listen",
            field: &Of { at: |d| &mut d.config.resp.listen, kind: OPTIONAL_LISTEN },
            does: "Accepts Redis clients on this address: \"127.0.0.1:6379\", \"unix:/run/larder-resp.sock\" or \
                   \"off\". The mode of a unix socket is server.socket_mode.",
        },
        Key {
            name: "password",
            field: &Of { at: |d| &mut d.config.resp.password, kind: Secret(PASSWORD) },
            does: "Demands this password of clients (AUTH). It must be set unless the listener is a loopback address \
                   or a unix socket.",
        },
        Key {
            name: "max_value_size",
            field: &Of { at: |d| &mut d.config.resp.max_value_size, kind: Size { least: 1 << 10, most: 512 << 20 } },
            does: "Refuses a larger value with an error.",
        },
        Key {
            name: "max_connections",
            field: &Of { at: |d| &mut d.config.resp.max_connections, kind: Whole { least: 1, most: 1_000_000 } },
            does: "Limits the connections open at once. Further ones get an error and are closed.",
        },
        Key {
            name: "max_buffered",
            field: &Of { at: |d| &mut d.config.resp.max_buffered, kind: Size { least: 1 << 20, most: 1 << 50 } },
            does: "Limits the memory for commands that arrive and for replies that wait to be read, of all clients \
                   together. Past it, commands that need more get an error; small ones are still served.",
        },
        Key {
            name: "timeout",
            field: &Of { at: |d| &mut d.config.resp.timeout, kind: Time::AboveZero },
            does: "Ends a client that sends nothing of the rest of a command, or reads nothing of its replies, for \
                   this long; also one that is slower than 16 KiB a second for this long.",
        },
        Key {
            name: "idle_timeout",
            field: &Of { at: |d| &mut d.config.resp.idle_timeout, kind: Time::AboveZero },
            does: "Closes a connection that carries no command for this long.",
        },
    ],
};
