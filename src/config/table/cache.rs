//! `[cache]`

use crate::config::key::{Also, Key, Of, Section};
use crate::config::kinds::{FLAG, List, Time, Whole, Words};
use crate::config::values::{FIELD_NAME, KEY_PREFIX, TARGET};
use crate::rfc9111::directives::RequestDirectives;
use crate::rfc9111::storage::SetCookie;

pub(super) static SECTION: Section = Section {
    name: "cache",
    about: "What is stored, and for how long it is served.",
    keys: &[
        Key {
            name: "key_prefix",
            field: &Of { at: |d| &mut d.config.cache.key_prefix, kind: KEY_PREFIX },
            does: "Begins every cache key, in both tiers, so that several caches can share a bucket.",
        },
        Key {
            name: "default_timeout",
            field: &Of { at: |d| &mut d.config.cache.default_timeout, kind: Time::Any },
            does: "Grants this freshness lifetime to a response to GET that states none; a rule's timeout overrides it. \
                   0s: only the heuristic of RFC 9111 4.2.2.",
        },
        Key {
            name: "purge_expired_on_read",
            field: &Of { at: |d| &mut d.config.cache.purge_expired_on_read, kind: FLAG },
            does: "Deletes an expired object from the durable tier when a read finds it.",
        },
        Key {
            name: "set_cookie",
            field: &Also {
                at: |d| &mut d.config.cache.set_cookie,
                rule: |rule| &mut rule.set_cookie,
                kind: Words(&[
                    ("never", SetCookie::Never),
                    ("strip", SetCookie::Strip),
                    ("explicit", SetCookie::Explicit),
                    ("rfc", SetCookie::Rfc),
                ]),
            },
            does: "Decides about a response with Set-Cookie. \"never\": it is not stored; \"strip\": it is stored \
                   without the cookie; \"explicit\": it is stored if it has s-maxage or a targeted field; \"rfc\": it \
                   is stored like any other. \"strip\" and \"explicit\" never store one with Vary: Cookie.",
        },
        Key {
            name: "request_directives",
            field: &Also {
                at: |d| &mut d.config.cache.request_directives,
                rule: |rule| &mut rule.request_directives,
                kind: Words(&[
                    ("honour", RequestDirectives::Honour),
                    ("bound", RequestDirectives::Bound),
                    ("ignore", RequestDirectives::Ignore),
                ]),
            },
            does: "Decides how far no-cache, max-age and min-fresh of clients count. \"honour\": one validation a key \
                   at a time; \"bound\": none within 10s of the last; \"ignore\": not at all.",
        },
        Key {
            name: "pass_memory",
            field: &Of { at: |d| &mut d.config.cache.pass_memory, kind: Time::Any },
            does: "Remembers for this long that a key's response can't be shared, so that no request waits for it.",
        },
        Key {
            name: "collapse_timeout",
            field: &Of { at: |d| &mut d.config.cache.collapse_timeout, kind: Time::AboveZero },
            does: "Limits how long a request waits for the answer to another one. Past it the request asks the \
                   application as well.",
        },
        Key {
            name: "collapse_limit",
            field: &Of { at: |d| &mut d.config.cache.collapse_limit, kind: Whole { least: 1, most: 1000 } },
            does: "Limits the requests for the same thing that are at the application at once.",
        },
        Key {
            name: "targets",
            field: &Of { at: |d| &mut d.config.cache.targets.list, kind: List { of: "field names", item: TARGET } },
            does: "Obeys the first valid one of these fields instead of Cache-Control and Expires (RFC 9213).",
        },
        Key {
            name: "surrogate_control",
            field: &Of { at: |d| &mut d.config.cache.targets.surrogate_control, kind: FLAG },
            does: "Obeys Surrogate-Control as well, after the fields in targets.",
        },
        Key {
            name: "x_accel_expires",
            field: &Of { at: |d| &mut d.config.cache.targets.x_accel_expires, kind: FLAG },
            does: "Obeys X-Accel-Expires as well, after Surrogate-Control.",
        },
        Key {
            name: "remove_targets",
            field: &Of { at: |d| &mut d.config.cache.remove_targets, kind: FLAG },
            does: "Removes the targeted fields that Larder obeys from what clients see.",
        },
        Key {
            name: "tag_fields",
            field: &Of {
                at: |d| &mut d.config.cache.tag_fields.names,
                kind: List { of: "field names", item: FIELD_NAME },
            },
            does: "Reads tags to purge by from these response fields, separated by commas or spaces.",
        },
        Key {
            name: "show_tag_fields",
            field: &Of { at: |d| &mut d.config.cache.tag_fields.are_shown, kind: FLAG },
            does: "Lets clients see the fields in tag_fields.",
        },
        Key {
            name: "stale_while_revalidate",
            field: &Also {
                at: |d| &mut d.config.cache.stale_while_revalidate,
                rule: |rule| &mut rule.stale_while_revalidate,
                kind: Time::Any,
            },
            does: "Serves a response stale for this long while it is validated, if it lacks the directive of that \
                   name (RFC 5861).",
        },
        Key {
            name: "stale_if_error",
            field: &Also {
                at: |d| &mut d.config.cache.stale_if_error,
                rule: |rule| &mut rule.stale_if_error,
                kind: Time::Any,
            },
            does: "Serves a response stale for this long in place of a 500, 502, 503 or 504, if it lacks the \
                   directive of that name (RFC 5861).",
        },
        Key {
            name: "stale_if_unreachable",
            field: &Also {
                at: |d| &mut d.config.cache.stale_if_unreachable,
                rule: |rule| &mut rule.stale_if_unreachable,
                kind: Time::Any,
            },
            does: "Serves a response stale for this long while the application can't be reached, unless the response \
                   forbids that (RFC 9111 4.2.4).",
        },
        Key {
            name: "status_key",
            field: &Of { at: |d| &mut d.config.cache.status_key, kind: FLAG },
            does: "Names the cache key in Cache-Status, for debugging.",
        },
    ],
};
