//! `[upstream]`

use crate::config::key::{Also, Key, Of, Section};
use crate::config::kinds::{Size, Time, Whole};
use crate::config::values::{UPSTREAM_HOST, UPSTREAM_URL};

pub(super) static SECTION: Section = Section {
    name: "upstream",
    about: "The application that Larder asks.",
    keys: &[
        Key {
            name: "url",
            field: &Of { at: |d| &mut d.config.upstream.address, kind: UPSTREAM_URL },
            does: "Names the application: \"http://host:port\" or \"unix:/run/gunicorn.sock\".",
        },
        Key {
            name: "connect_timeout",
            field: &Of { at: |d| &mut d.config.upstream.connect_timeout, kind: Time::AboveZero },
            does: "Limits the time to make a connection. Past it the client gets 504.",
        },
        Key {
            name: "response_timeout",
            field: &Also {
                at: |d| &mut d.config.upstream.response_timeout,
                rule: |rule| &mut rule.transfer.response_timeout,
                kind: Time::AboveZero,
            },
            does: "Limits the time from sending a request to the response's head. Past it the client gets 504.",
        },
        Key {
            name: "body_timeout",
            field: &Also {
                at: |d| &mut d.config.upstream.body_timeout,
                rule: |rule| &mut rule.transfer.body_timeout,
                kind: Time::AboveZero,
            },
            does: "Limits the longest silence within a response's body.",
        },
        Key {
            name: "idle_timeout",
            field: &Of { at: |d| &mut d.config.upstream.idle_timeout, kind: Time::AboveZero },
            does: "Closes an unused connection after this long.",
        },
        Key {
            name: "max_idle",
            field: &Of { at: |d| &mut d.config.upstream.max_idle, kind: Whole { least: 0, most: 100_000 } },
            does: "Keeps up to this many unused connections for each worker thread.",
        },
        Key {
            name: "host",
            field: &Of { at: |d| &mut d.config.upstream.host, kind: UPSTREAM_HOST },
            does: "Sends this Host with every request; \"preserve\" sends the client's.",
        },
        Key {
            name: "buffer_request",
            field: &Also {
                at: |d| &mut d.config.upstream.buffer_request,
                rule: |rule| &mut rule.transfer.buffer_request,
                kind: Size { least: 0, most: 1 << 30 },
            },
            does: "Reads a request's body before it asks the application: this much of it into memory, the rest into \
                   a temporary file. 0: the body passes as it comes.",
        },
        Key {
            name: "buffer_response",
            field: &Also {
                at: |d| &mut d.config.upstream.buffer_response,
                rule: |rule| &mut rule.transfer.buffer_response,
                kind: Size { least: 0, most: 1 << 30 },
            },
            does: "Reads a response that is not stored ahead of a slow client: this much of it into memory, the rest \
                   into a temporary file. 0: the response passes at the client's pace.",
        },
        Key {
            name: "spool",
            field: &Also {
                at: |d| &mut d.config.upstream.spool,
                rule: |rule| &mut rule.transfer.spool,
                kind: Size { least: 0, most: 1 << 50 },
            },
            does: "Limits the temporary file of one message. A larger message passes at the pace of the slower side. \
                   0: no files.",
        },
        Key {
            name: "max_headers",
            field: &Of { at: |d| &mut d.config.upstream.max_headers, kind: Whole { least: 1, most: 10_000 } },
            does: "Refuses an answer with more fields. The client gets 502.",
        },
        Key {
            name: "max_header_size",
            field: &Of {
                at: |d| &mut d.config.upstream.max_header_size,
                kind: Size { least: 1 << 10, most: 16 << 20 },
            },
            does: "Refuses an answer with a larger head. The client gets 502.",
        },
        Key {
            name: "breaker_failures",
            field: &Of { at: |d| &mut d.config.upstream.breaker_failures, kind: Whole { least: 0, most: 1_000_000 } },
            does: "Counts the application as down after this many failures in a row. Each failed connection counts; \
                   missing answers of one path count once. Stale responses are then served at once, and one request \
                   at a time is sent. 0: never.",
        },
        Key {
            name: "breaker_pause",
            field: &Of { at: |d| &mut d.config.upstream.breaker_pause, kind: Time::AboveZero },
            does: "Validates in the background at most this often while the application is down, and lets one more \
                   request through this often while an earlier one gets no answer.",
        },
    ],
};
