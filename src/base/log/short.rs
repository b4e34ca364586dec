//! Formats the line of a request for a person at a terminal: method, path, status, what the cache did, and how long.

use std::fmt::{self, Write as _};

use tracing::Event;
use tracing::field::{Field, Visit};

use super::line::escape;

/// The fields of a request that the line shows.
#[derive(Default)]
struct Shown {
    method: String,
    uri: String,
    cache_status: String,
    not_stored: String,
    status: u64,
    duration_us: u64,
}

impl Visit for Shown {
    fn record_debug(&mut self, _field: &Field, _value: &dyn fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        let into = match field.name() {
            "method" => &mut self.method,
            "uri" => &mut self.uri,
            "cache_status" => &mut self.cache_status,
            "not_stored" => &mut self.not_stored,
            _ => return,
        };
        escape(value, into);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "status" => self.status = value,
            "duration_us" => self.duration_us = value,
            _ => {}
        }
    }
}

/// Appends the line of a request to `out`.
pub(super) fn request(event: &Event<'_>, out: &mut String) {
    let mut shown = Shown::default();
    event.record(&mut shown);
    shown.write(out);
}

impl Shown {
    fn write(&self, out: &mut String) {
        let Self { method, uri, cache_status, not_stored, status, duration_us } = self;
        // Whole tenths of a millisecond. Writing to a `String` never fails.
        let tenths = duration_us.saturating_add(50) / 100;
        let _ = write!(out, "{method} {uri} {status} {cache_status}");
        if !not_stored.is_empty() {
            let _ = write!(out, " (not stored: {not_stored})");
        }
        let _ = writeln!(out, " {}.{} ms", tenths / 10, tenths % 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_short_line() {
        let mut shown = Shown {
            method: "GET".into(),
            uri: "/a?b=1".into(),
            cache_status: "larder; hit; ttl=59".into(),
            not_stored: String::new(),
            status: 200,
            duration_us: 1_234,
        };
        let mut line = String::new();
        shown.write(&mut line);
        assert_eq!(line, "GET /a?b=1 200 larder; hit; ttl=59 1.2 ms\n");
        shown.cache_status = "larder; fwd=uri-miss".into();
        shown.not_stored = "no-store".into();
        line.clear();
        shown.write(&mut line);
        assert_eq!(line, "GET /a?b=1 200 larder; fwd=uri-miss (not stored: no-store) 1.2 ms\n");
    }
}
