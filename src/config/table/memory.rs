//! `[memory]`

use crate::config::key::{Key, Of, Section};
use crate::config::kinds::{Size, Words};
use crate::store::MemoryPolicy;

pub(super) static SECTION: Section = Section {
    name: "memory",
    about: "The tier in memory.",
    keys: &[
        Key {
            name: "capacity",
            field: &Of { at: |d| &mut d.config.memory.capacity, kind: Size { least: 0, most: 1 << 50 } },
            does: "Limits what the tier holds: bodies, fields, keys and bookkeeping. 0: nothing is kept.",
        },
        Key {
            name: "policy",
            field: &Of {
                at: |d| &mut d.config.memory.policy,
                kind: Words(&[("tinylfu", MemoryPolicy::TinyLfu), ("lru", MemoryPolicy::Lru)]),
            },
            does: "Decides what leaves when memory is full. \"tinylfu\": what was used least of late; a new response is \
                   there at once, and after a while stays if it is used more than what would leave for it. \"lru\": \
                   what was used longest ago.",
        },
        Key {
            name: "max_object_size",
            field: &Of { at: |d| &mut d.config.memory.max_object_size, kind: Size { least: 0, most: 3 << 30 } },
            does: "Keeps no larger body in memory.",
        },
        Key {
            name: "fill_budget",
            field: &Of { at: |d| &mut d.config.memory.fill_budget, kind: Size { least: 0, most: 1 << 50 } },
            does: "Limits what all fetches under way hold together before they stop keeping whole bodies.",
        },
    ],
};
