//! `[log]`

use crate::base::log::LogFormat;
use crate::config::key::{Key, Of, Section};
use crate::config::kinds::{FLAG, Names, Words};

pub(super) static SECTION: Section = Section {
    name: "log",
    about: "The lines on standard error.",
    keys: &[
        Key {
            name: "format",
            field: &Of {
                at: |d| &mut d.config.log.format,
                kind: Words(&[("text", LogFormat::Text), ("short", LogFormat::Short), ("json", LogFormat::Json)]),
            },
            does: "Writes lines for people (\"text\"), the same with little of each request (\"short\"), or one JSON object a line (\"json\").",
        },
        Key {
            name: "level",
            field: &Of { at: |d| &mut d.config.log.level, kind: Names(&["error", "warn", "info", "debug", "trace"]) },
            does: "Logs messages of this level and above.",
        },
        Key {
            name: "access",
            field: &Of { at: |d| &mut d.config.log.access, kind: FLAG },
            does: "Writes one line for each request, whatever the level.",
        },
    ],
};
