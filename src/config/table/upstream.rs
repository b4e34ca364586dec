//! `[upstream]`, and `[upstreams.NAME]`, which has the same keys.

use crate::config::key::{Also, Key, Of, Section};
use crate::config::kinds::{Fraction, List, OneOrMore, Secret, Size, Time, Whole, Words};
use crate::config::values::{
    COOKIE_NAME, FILE, HASH_BY, HEALTH_PATH, SERVER_NAME, STATUSES, STICKY_KEY, UPSTREAM_HOST, UPSTREAM_URL,
};
use crate::upstream::Balance;

/// The section whose tables are further upstreams.
pub(in crate::config) const UPSTREAMS: &str = "upstreams";

pub(in crate::config) const ABOUT_NAMED: &str = "A further application, under a name of letters, digits, hyphens and \
    underscores. It has the keys of [upstream], each with the default that it has there; url must be given. A [[rule]] \
    leads requests to it by upstream = \"NAME\".";

/// The key that every `[upstreams.NAME]` must have.
pub(in crate::config) const REQUIRED: &str = "url";

pub(in crate::config) static SECTION: Section = Section {
    name: "upstream",
    about: "The application that Larder asks where no rule names another one.",
    keys: &[
        Key {
            name: "url",
            field: &Of {
                at: |d| &mut d.config.upstream.addresses,
                kind: OneOrMore(List { of: "URLs", item: UPSTREAM_URL }),
            },
            does: "Names the application: \"http://host:port\", \"https://host:port\" or \"unix:/run/gunicorn.sock\", or a \
                   list of these. A name that has several addresses counts as a list. \"weight=2\" behind a URL gives it \
                   twice the requests; \"backup\" keeps it for when no other answers.",
        },
        Key {
            name: "balance",
            field: &Of {
                at: |d| &mut d.config.upstream.balance,
                kind: Words(&[("p2c", Balance::P2c), ("round_robin", Balance::RoundRobin), ("hash", Balance::Hash)]),
            },
            does: "Chooses among several addresses. \"p2c\": of two drawn at random the one with fewer requests under \
                   way; \"round_robin\": one after the other; \"hash\": the same for the same hash_by.",
        },
        Key {
            name: "hash_by",
            field: &Of { at: |d| &mut d.config.upstream.hash_by, kind: HASH_BY },
            does: "Says what balance = \"hash\" goes by: \"path\", \"field:NAME\" or \"cookie:NAME\".",
        },
        Key {
            name: "sticky_cookie",
            field: &Of { at: |d| &mut d.config.upstream.sticky_cookie, kind: COOKIE_NAME },
            does: "Keeps each client at one address by a cookie of this name, which comes with responses that nobody else \
                   gets. Neither the application nor the stored responses see it; empty: clients go anywhere.",
        },
        Key {
            name: "sticky_key",
            field: &Of { at: |d| &mut d.config.upstream.sticky_key, kind: Secret(STICKY_KEY) },
            does: "Makes the values of that cookie with this secret, which all that serve one site must have; empty: a \
                   random one, which ends with the process.",
        },
        Key {
            name: "max_requests",
            field: &Of { at: |d| &mut d.config.upstream.max_requests, kind: Whole { least: 0, most: 1_000_000 } },
            does: "Limits the requests under way at one address, from sending them to the end of their answers: set it \
                   to the number of an application's workers. Further ones wait. 0: any number.",
        },
        Key {
            name: "max_waiting",
            field: &Of { at: |d| &mut d.config.upstream.max_waiting, kind: Whole { least: 0, most: 1_000_000 } },
            does: "Limits the requests that wait because of max_requests. Further ones get 503, or a stale response.",
        },
        Key {
            name: "queue_timeout",
            field: &Of { at: |d| &mut d.config.upstream.queue_timeout, kind: Time::AboveZero },
            does: "Limits the time for which a request waits because of max_requests. Past it the client gets 503.",
        },
        Key {
            name: "retry_budget",
            field: &Of { at: |d| &mut d.config.upstream.retry_budget, kind: Fraction },
            does: "Limits the part of requests that are sent to another address after one has failed. Only those are \
                   that an address did not get, and idempotent ones whose answer broke off.",
        },
        Key {
            name: "health_path",
            field: &Of { at: |d| &mut d.config.upstream.health_path, kind: HEALTH_PATH },
            does: "Asks each address for this path, such as \"/healthz\", and sends it no requests while it does not \
                   answer as it should; empty: only failed requests tell.",
        },
        Key {
            name: "health_interval",
            field: &Of { at: |d| &mut d.config.upstream.health_interval, kind: Time::AboveZero },
            does: "Sets the time between two health checks of an address. Two on end decide.",
        },
        Key {
            name: "health_timeout",
            field: &Of { at: |d| &mut d.config.upstream.health_timeout, kind: Time::AboveZero },
            does: "Limits the time for the answer to a health check.",
        },
        Key {
            name: "health_status",
            field: &Of { at: |d| &mut d.config.upstream.health_status, kind: STATUSES },
            does: "Says which statuses an address answers a health check with while it is healthy.",
        },
        Key {
            name: "slow_start",
            field: &Of { at: |d| &mut d.config.upstream.slow_start, kind: Time::AboveZero },
            does: "Gives an address that was down a growing part of its share, from a tenth to all of it, over this time.",
        },
        Key {
            name: "resolve_interval",
            field: &Of { at: |d| &mut d.config.upstream.resolve_interval, kind: Time::AboveZero },
            does: "Looks the names of addresses up this often, and at once when an address can't be reached. While that \
                   fails the last addresses hold. localhost is looked up for each connection.",
        },
        Key {
            name: "ca_file",
            field: &Of { at: |d| &mut d.config.upstream.tls.ca_file, kind: FILE },
            does: "Believes the authorities in this PEM file where the URL is https; empty: those of the system.",
        },
        Key {
            name: "server_name",
            field: &Of { at: |d| &mut d.config.upstream.tls.server_name, kind: SERVER_NAME },
            does: "Asks for a certificate for this name; empty: for the host in the URL.",
        },
        Key {
            name: "client_chain",
            field: &Of { at: |d| &mut d.config.upstream.tls.client_chain, kind: FILE },
            does: "Shows the application the certificate in this PEM file, with its chain; empty: none.",
        },
        Key {
            name: "client_key",
            field: &Of { at: |d| &mut d.config.upstream.tls.client_key, kind: FILE },
            does: "Names the PEM file of the key of client_chain.",
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
                   a temporary file. A QUERY up to this may be answered from the cache. 0: the body passes as it \
                   comes.",
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
