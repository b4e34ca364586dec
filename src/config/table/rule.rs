//! `[[rule]]`: the keys that only rules have. Those that a rule shares with a section are rows of the section.

use crate::config::key::{InRule, Key};
use crate::config::kinds::{FLAG, Fraction, List, Optional, Switch, Time, Words};
use crate::config::values::{METHOD, PARAMETER, RULE_HOST, RULE_PATH, RULE_UPSTREAM, TAG};
use crate::fetch::Ranges;
use crate::proxy::Rule;
use crate::store::Durability;

pub(in crate::config) const ABOUT: &str =
    "Settings for some paths, hosts or methods. Rules are tried in order, and the first that matches applies.";

/// The name of the list of rules.
pub(in crate::config) const LIST: &str = "rule";

/// The key that a rule must have that has neither of [`INSTEAD`].
pub(in crate::config) const REQUIRED: &str = "path";

/// The keys that make up for a path.
pub(in crate::config) const INSTEAD: [&str; 2] = ["host", "method"];

pub(in crate::config) static KEYS: &[Key<Rule>] = &[
    Key {
        name: REQUIRED,
        field: &InRule { at: |rule| &mut rule.path, kind: RULE_PATH },
        does: "Matches these paths; * stands for any run of characters, slashes too.",
    },
    Key {
        name: "host",
        field: &InRule { at: |rule| &mut rule.host, kind: Optional(RULE_HOST) },
        does: "Matches this host, or with \"*.\" before it every name below it; on each port, unless it has one.",
    },
    Key {
        name: "method",
        field: &InRule { at: |rule| &mut rule.methods, kind: List { of: "methods", item: METHOD } },
        does: "Matches these methods; GET stands for HEAD and QUERY too. The rule that GET has for a URL decides under \
               which key every method finds its response.",
    },
    Key {
        name: "upstream",
        field: &InRule { at: |rule| &mut rule.upstream, kind: Optional(RULE_UPSTREAM) },
        does: "Asks the application of [upstreams.NAME]; not set, or \"default\": that of [upstream]. Its timeouts and \
               buffers hold where the rule sets none.",
    },
    Key {
        name: "timeout",
        field: &InRule { at: |rule| &mut rule.timeout, kind: Optional(Time::Any) },
        does: "Grants this freshness lifetime where the response states none, instead of cache.default_timeout. For \
               200, 203, 204, 206, 300, 301, 308, 404 and 410.",
    },
    Key {
        name: "override_timeout",
        field: &InRule { at: |rule| &mut rule.override_timeout, kind: Optional(Time::Any) },
        does: "Grants this freshness lifetime whatever the response states; for the same statuses.",
    },
    Key {
        name: "bypass",
        field: &InRule { at: |rule| &mut rule.bypass, kind: FLAG },
        does: "Passes requests to the application: true neither answers from the cache nor stores.",
    },
    Key {
        name: "collapse",
        field: &InRule { at: |rule| &mut rule.collapse, kind: FLAG },
        does: "Lets requests for the same thing wait for one answer; false: each asks the application.",
    },
    Key {
        name: "early_refresh",
        field: &InRule { at: |rule| &mut rule.early_refresh, kind: Fraction },
        does: "Validates a response in the background during this last part of its lifetime; 0.1 is the last tenth.",
    },
    Key {
        name: "ranges",
        field: &InRule {
            at: |rule| &mut rule.ranges,
            kind: Words(&[("auto", Ranges::Auto), ("whole", Ranges::Whole), ("forward", Ranges::Forward)]),
        },
        does: "Decides what to fetch for a range of what is not stored. \"auto\": the range, then the whole if memory \
               takes it; \"whole\": the whole at once; \"forward\": only the range.",
    },
    Key {
        name: "ignore_query",
        field: &InRule { at: |rule| &mut rule.query.ignore, kind: List { of: "parameters", item: PARAMETER } },
        does: "Leaves these parameters out of the cache key and of the request to the application; * stands for any \
               run of characters.",
    },
    Key {
        name: "sort_query",
        field: &InRule { at: |rule| &mut rule.query.sort, kind: FLAG },
        does: "Ignores the order of parameters in the cache key.",
    },
    Key {
        name: "durable",
        field: &InRule {
            at: |rule| &mut rule.durability,
            kind: Switch { on: Durability::Durable, off: Durability::MemoryOnly },
        },
        does: "Stores responses in the durable tier as well; false: in memory only.",
    },
    Key {
        name: "tags",
        field: &InRule { at: |rule| &mut rule.tags, kind: List { of: "tags", item: TAG } },
        does: "Tags the responses, so that they can be purged by these words.",
    },
];
