//! `[durable]`

use crate::config::key::{Key, Of, Section};
use crate::config::kinds::{FLAG, OrEmpty, Price, Size, Time, Whole, ZeroOr};
use crate::config::values::{DURABLE_URL, ENDPOINT, REGION};

pub(super) static SECTION: Section = Section {
    name: "durable",
    about: "The tier that survives restarts: a directory, or a bucket that several Larders share.",
    keys: &[
        Key {
            name: "url",
            field: &Of { at: |d| &mut d.config.durable.location, kind: DURABLE_URL },
            does: "Names the place of the objects: \"file:./directory\", \"s3://bucket/any/prefix\" or \"off\".",
        },
        Key {
            name: "endpoint_url",
            field: &Of { at: |d| &mut d.s3.endpoint_url, kind: ENDPOINT },
            does: "Names a service that speaks S3; empty: AWS.",
        },
        Key {
            name: "region",
            field: &Of { at: |d| &mut d.s3.region, kind: REGION },
            does: "Names the bucket's region; empty: as the AWS SDK finds it, like the credentials.",
        },
        Key {
            name: "path_style",
            field: &Of { at: |d| &mut d.s3.path_style, kind: FLAG },
            does: "Names the bucket in the path rather than in the host name.",
        },
        Key {
            name: "required",
            field: &Of { at: |d| &mut d.config.durable.required, kind: FLAG },
            does: "Refuses to start if the tier can't be reached; false: warns, and serves without it.",
        },
        Key {
            name: "capacity",
            field: &Of {
                at: |d| &mut d.config.durable.capacity,
                kind: OrEmpty(ZeroOr(Size { least: 2 << 20, most: 1 << 50 })),
            },
            does: "Limits what the tier holds: the oldest packs go first, and what has been used since is copied to a new \
                   pack. Empty: 10GiB for a directory, no limit for a bucket. 0: no limit.",
        },
        Key {
            name: "pack_size",
            field: &Of { at: |d| &mut d.config.durable.pack_size, kind: Size { least: 64 << 10, most: 128 << 20 } },
            does: "Completes a pack, the object that holds many responses, at this size, or at a thirty-second of \
                   capacity if that is less.",
        },
        Key {
            name: "pack_interval",
            field: &Of { at: |d| &mut d.config.durable.pack_interval, kind: OrEmpty(Time::AboveZero) },
            does: "Writes a pack to a bucket at the latest this long after its first response came; empty: 5s. Reads \
                   what other processes append to a directory this often; empty: 1s.",
        },
        Key {
            name: "lookup_timeout",
            field: &Of { at: |d| &mut d.config.durable.lookup_timeout, kind: Time::AboveZero },
            does: "Limits a look-up. Past it the application is asked.",
        },
        Key {
            name: "min_lifetime",
            field: &Of { at: |d| &mut d.config.durable.min_lifetime, kind: Time::Any },
            does: "Keeps responses that are fresh for less time in memory only.",
        },
        Key {
            name: "retain",
            field: &Of { at: |d| &mut d.config.durable.retain, kind: Time::Any },
            does: "Keeps an object this long past its freshness, for validation and stale-if-error.",
        },
        Key {
            name: "inline_size",
            field: &Of { at: |d| &mut d.config.durable.inline_size, kind: Size { least: 0, most: 64 << 20 } },
            does: "Writes a larger body as an object of its own, which is read as a stream.",
        },
        Key {
            name: "max_object_size",
            field: &Of { at: |d| &mut d.config.durable.max_object_size, kind: Size { least: 0, most: 32 << 30 } },
            does: "Keeps no larger response. A response too large for memory is written as it comes in.",
        },
        Key {
            name: "uploads",
            field: &Of { at: |d| &mut d.config.durable.uploads, kind: Whole { least: 0, most: 1024 } },
            does: "Writes this many responses too large for memory at once; each takes up to 32 MiB of memory.",
        },
        Key {
            name: "min_upload_rate",
            field: &Of { at: |d| &mut d.config.durable.min_upload_rate, kind: Size { least: 1 << 10, most: 1 << 40 } },
            does: "Gives up such a write if it would slow its clients to fewer bytes a second.",
        },
        Key {
            name: "queue_objects",
            field: &Of { at: |d| &mut d.config.durable.queue_objects, kind: Whole { least: 1, most: 10_000_000 } },
            does: "Limits the responses that wait to be written. Further ones are dropped and counted.",
        },
        Key {
            name: "queue_bytes",
            field: &Of { at: |d| &mut d.config.durable.queue_bytes, kind: Size { least: 1 << 10, most: 1 << 40 } },
            does: "Limits the bytes of the responses that wait to be written, and by themselves those of deletions that \
                   wait. While a pack is written to a bucket, it takes its length besides.",
        },
        Key {
            name: "writers",
            field: &Of { at: |d| &mut d.config.durable.writers, kind: Whole { least: 1, most: 1024 } },
            does: "Limits the packs and separate bodies that are being written at once.",
        },
        Key {
            name: "drain_timeout",
            field: &Of { at: |d| &mut d.config.durable.drain_timeout, kind: Time::Any },
            does: "Limits the time that the queue has to empty when Larder stops.",
        },
        Key {
            name: "poll_interval",
            field: &Of { at: |d| &mut d.config.durable.poll_interval, kind: Time::AboveZero },
            does: "Looks this often for what other processes purged and stored. Each look is one LIST: at 2s, 1.3 \
                   million a month.",
        },
        Key {
            name: "breaker_failures",
            field: &Of { at: |d| &mut d.config.durable.breaker_failures, kind: Whole { least: 0, most: 1_000_000 } },
            does: "Counts the tier as down after this many failed or slow requests in a row. Nothing is then looked \
                   for there. 0: never.",
        },
        Key {
            name: "breaker_pause",
            field: &Of { at: |d| &mut d.config.durable.breaker_pause, kind: Time::AboveZero },
            does: "Waits this long between two attempts to find the tier up again.",
        },
        Key {
            name: "after_hits",
            field: &Of { at: |d| &mut d.config.durable.after_hits, kind: Whole { least: 1, most: 255 } },
            does: "Writes a response at this use of it; 1: at the first, when it is stored.",
        },
        Key {
            name: "monthly_writes",
            field: &Of {
                at: |d| &mut d.config.durable.monthly_writes,
                kind: Whole { least: 0, most: 1_000_000_000_000 },
            },
            does: "Limits the packs and separate bodies that are written to a bucket to this many a month, in bursts of \
                   a day's worth. The less is left, the longer packs wait and the more they hold. 0: no limit.",
        },
        Key {
            name: "price_write",
            field: &Of { at: |d| &mut d.config.durable.prices.write, kind: Price },
            does: "States what a million writes and listings cost, for /metrics and the log.",
        },
        Key {
            name: "price_read",
            field: &Of { at: |d| &mut d.config.durable.prices.read, kind: Price },
            does: "States what a million reads cost.",
        },
    ],
};
