//! `[server]`

use crate::config::key::{Also, Key, Of, Section};
use crate::config::kinds::{FLAG, List, Size, Time, Whole};
use crate::config::values::{
    ALLOWED_FIELD, DIRECTORY, HSTS, LISTEN, NETWORK, PROXY_SENDER, SOCKET_MODE, TRUSTED_FIELD,
};

pub(super) static SECTION: Section = Section {
    name: "server",
    about: "Where clients connect, whom Larder believes, and what one client may take.",
    keys: &[
        Key {
            name: "listen",
            field: &Of { at: |d| &mut d.config.server.listen, kind: List { of: "addresses", item: LISTEN } },
            does: "Accepts clients on these addresses: \"http://0.0.0.0:80\", \"https://0.0.0.0:443\" (with [tls]) or \"unix:/run/larder.sock\". Without a scheme it is http.",
        },
        Key {
            name: "redirect_to_https",
            field: &Of { at: |d| &mut d.config.server.redirect_to_https, kind: FLAG },
            does: "Answers requests by http with 308 to the same URL with https. A trusted proxy's X-Forwarded-Proto \
                   says which it was. A GET for a token below /.well-known/acme-challenge/ is served.",
        },
        Key {
            name: "hsts",
            field: &Of { at: |d| &mut d.config.server.hsts, kind: HSTS },
            does: "Sends this as Strict-Transport-Security with what goes out by https, unless the application sends \
                   one; empty: nothing. \"max-age=31536000\" makes browsers use https alone for a year.",
        },
        Key {
            name: "h2c",
            field: &Of { at: |d| &mut d.config.server.h2c, kind: FLAG },
            does: "Takes HTTP/2 in clear text too, from clients that begin with it (prior knowledge), such as a load \
                   balancer. By https HTTP/2 is always there.",
        },
        Key {
            name: "threads",
            field: &Of { at: |d| &mut d.config.server.threads, kind: Whole { least: 0, most: 1024 } },
            does: "Runs this many worker threads; 0: one for each core.",
        },
        Key {
            name: "trusted_proxies",
            field: &Of {
                at: |d| &mut d.config.server.trusted_proxies,
                kind: List { of: "addresses or networks", item: NETWORK },
            },
            does: "Believes these proxies in X-Forwarded-For, -Proto and -Host. From anybody else Larder replaces \
                   these fields.",
        },
        Key {
            name: "proxy_protocol",
            field: &Of {
                at: |d| &mut d.config.server.proxy_protocol,
                kind: List { of: "addresses or networks", item: PROXY_SENDER },
            },
            does: "Takes connections from these load balancers only with a PROXY header (version 1 or 2), which names \
                   the client. \"unix\": those to unix sockets. From anybody else a header is refused.",
        },
        Key {
            name: "trusted_fields",
            field: &Of {
                at: |d| &mut d.config.server.trusted_fields,
                kind: List { of: "field names", item: TRUSTED_FIELD },
            },
            does: "Believes trusted proxies in these further fields, such as \"X-Forwarded-Prefix\". Each becomes \
                   part of every cache key. A field for an address, such as \"X-Real-IP\", is written by Larder \
                   itself.",
        },
        Key {
            name: "allowed_fields",
            field: &Of {
                at: |d| &mut d.config.server.allowed_fields,
                kind: List { of: "field names", item: ALLOWED_FIELD },
            },
            does: "Passes these request fields on although their names contain \"_\" or other signs. All other fields \
                   with such names are removed.",
        },
        Key {
            name: "header_timeout",
            field: &Of { at: |d| &mut d.config.server.header_timeout, kind: Time::AboveZero },
            does: "Limits the time from a request's first byte to the end of its head.",
        },
        Key {
            name: "idle_timeout",
            field: &Of { at: |d| &mut d.config.server.idle_timeout, kind: Time::AboveZero },
            does: "Closes a connection that carries no request for this long.",
        },
        Key {
            name: "body_timeout",
            field: &Of { at: |d| &mut d.config.server.body_timeout, kind: Time::AboveZero },
            does: "Limits the time in which a client reads nothing of its response, or sends nothing of its request's \
                   body. Past it an upload ends with 408.",
        },
        Key {
            name: "max_body_size",
            field: &Of { at: |d| &mut d.config.server.max_body_size, kind: Size { least: 0, most: 1 << 50 } },
            does: "Refuses a larger request body with 413; 0: no limit.",
        },
        Key {
            name: "max_buffered",
            field: &Of { at: |d| &mut d.config.server.max_buffered, kind: Size { least: 1 << 20, most: 1 << 50 } },
            does: "Limits the memory for fetches under way and for clients that still read. Past it, larger bodies \
                   pass without being kept. Past twice as much, requests that need more get 503; hits are still \
                   served.",
        },
        Key {
            name: "max_header_size",
            field: &Of { at: |d| &mut d.config.server.max_header_size, kind: Size { least: 1 << 10, most: 16 << 20 } },
            does: "Refuses a larger request head with 431.",
        },
        Key {
            name: "max_headers",
            field: &Of { at: |d| &mut d.config.server.max_headers, kind: Whole { least: 1, most: 10_000 } },
            does: "Refuses with 431 a request that has more fields.",
        },
        Key {
            name: "max_connections",
            field: &Of { at: |d| &mut d.config.server.max_connections, kind: Whole { least: 1, most: 10_000_000 } },
            does: "Limits the client connections open at once. Further ones get 503.",
        },
        Key {
            name: "max_streams",
            field: &Of { at: |d| &mut d.config.server.max_streams, kind: Whole { least: 1, most: 10_000 } },
            does: "Limits the requests of one connection of HTTP/2 at once. Browsers keep further ones back.",
        },
        Key {
            name: "max_requests",
            field: &Of { at: |d| &mut d.config.server.max_requests, kind: Whole { least: 1, most: 10_000_000 } },
            does: "Limits the requests of HTTP/2 at once, on all connections. Further ones get 503. A connection of \
                   HTTP/1 has one at a time, so that max_connections limits those.",
        },
        Key {
            name: "min_body_rate",
            field: &Also {
                at: |d| &mut d.config.server.min_body_rate,
                rule: |rule| &mut rule.transfer.min_body_rate,
                kind: Size { least: 0, most: 1 << 40 },
            },
            does: "Ends an upload with 408 if it is slower than this many bytes a second on average. The first 20 s \
                   are free, and time in which nobody reads is not counted. 0: no limit.",
        },
        Key {
            name: "tunnel_timeout",
            field: &Of { at: |d| &mut d.config.server.tunnel_timeout, kind: Time::AboveZero },
            does: "Ends a tunnel (WebSocket) in which nothing moves for this long.",
        },
        Key {
            name: "max_spooled",
            field: &Of { at: |d| &mut d.config.server.max_spooled, kind: Size { least: 0, most: 1 << 60 } },
            does: "Limits the bytes of all temporary files together.",
        },
        Key {
            name: "spool_dir",
            field: &Of { at: |d| &mut d.config.server.spool_dir, kind: DIRECTORY },
            does: "Names the directory of temporary files; empty: the system's (TMPDIR, /tmp). Do not use a tmpfs, \
                   which is memory.",
        },
        Key {
            name: "drain_timeout",
            field: &Of { at: |d| &mut d.config.server.drain_timeout, kind: Time::AboveZero },
            does: "Limits the time that requests under way have to finish when Larder stops.",
        },
        Key {
            name: "socket_mode",
            field: &Of { at: |d| &mut d.config.server.socket_mode, kind: SOCKET_MODE },
            does: "Sets the file mode of unix sockets, in octal; it decides who may connect. The admin listener's is \
                   always 0600.",
        },
    ],
};
