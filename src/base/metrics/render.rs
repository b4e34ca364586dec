//! Writes the counters as Prometheus text.

use std::fmt::Write as _;

use super::counter::Counter;
use super::labels::{CLASSES, LOST, OPS, OUTCOMES, PURPOSES, SAVED};
use super::{Gauge, Metrics, OriginOutcome, Unparsed, WorkerMetrics};
use crate::base::log;
use crate::rfc9111::cache_status::{Fwd, Tier};
use crate::rfc9111::storage::NotStorable;

impl Metrics {
    /// Returns every counter as Prometheus text, and `gauges` behind them.
    pub fn render(&self, gauges: &[Gauge]) -> String {
        let mut out = String::with_capacity(8192);
        self.render_requests(&mut out);
        self.render_not_stored(&mut out);
        self.render_counters(&mut out);
        self.render_unparsed(&mut out);
        self.render_origin(&mut out);
        self.render_durable(&mut out);
        self.render_resp(&mut out);
        self.render_tls(&mut out);
        self.render_acme(&mut out);
        self.render_peers(&mut out);
        let mut before = "";
        for gauge in gauges {
            if gauge.name != before {
                let kind = if gauge.name.ends_with("_total") { "counter" } else { "gauge" };
                header(&mut out, gauge.name, kind, gauge.help);
                before = gauge.name;
            }
            let _ = writeln!(out, "{}{} {}", gauge.name, labels(&gauge.labels), gauge.value);
        }
        out
    }

    /// Returns the sum of one counter over all workers.
    fn sum(&self, pick: impl Fn(&WorkerMetrics) -> &Counter) -> u64 {
        self.workers.iter().map(|worker| pick(worker).value()).sum()
    }

    /// Writes the answered requests, by what the cache did.
    fn render_requests(&self, out: &mut String) {
        header(out, "larder_requests_total", "counter", "Requests answered, by what the cache did (RFC 9211).");
        for (tier, value) in [
            (Tier::Memory, self.sum(|worker| &worker.hits_memory)),
            (Tier::Durable, self.sum(|worker| &worker.hits_durable)),
        ] {
            let _ = writeln!(out, "larder_requests_total{{status=\"hit\",tier=\"{}\"}} {value}", tier.as_str());
        }
        for fwd in Fwd::ALL {
            let value = self.sum(|worker| &worker.forwarded[fwd.index()]);
            let _ = writeln!(out, "larder_requests_total{{status=\"fwd\",fwd=\"{}\"}} {value}", fwd.as_str());
        }
        let _ = writeln!(out, "larder_requests_total{{status=\"refused\"}} {}", self.sum(|worker| &worker.refused));
    }

    /// Writes the responses that may not be stored, by reason.
    fn render_not_stored(&self, out: &mut String) {
        let reasons = NotStorable::ALL.iter();
        let values = reasons.map(|why| (why.as_str(), self.sum(|worker| &worker.not_stored[*why as usize])));
        labelled(out, "larder_not_stored_total", "Answers that may not be stored, by reason.", "reason", values);
    }

    /// Writes the counters without labels.
    fn render_counters(&self, out: &mut String) {
        for (name, help, value) in [
            (
                "larder_requests_stored_total",
                "Forwarded requests whose response was stored.",
                self.sum(|worker| &worker.stored),
            ),
            (
                "larder_requests_collapsed_total",
                "Requests that shared another one's trip to the origin.",
                self.sum(|worker| &worker.collapsed),
            ),
            ("larder_connections_total", "Client connections accepted.", self.sum(|worker| &worker.connections)),
            (
                "larder_origin_retries_total",
                "Requests tried again, because a kept connection had gone or an address failed.",
                self.origin_retries.value(),
            ),
            (
                "larder_origin_refused_total",
                "Requests not sent to the origin because it is known to be down, or has no room.",
                self.origin_refused.value(),
            ),
            ("larder_origin_downs_total", "Times that the origin became known to be down.", self.origin_downs.value()),
            (
                "larder_durable_uploads_total",
                "Bodies too large for memory whose writing as they came in has ended, well or not.",
                self.durable_uploads.value(),
            ),
            (
                "larder_invalidations_total",
                "URLs invalidated by unsafe methods (RFC 9111 4.4).",
                self.invalidations.value(),
            ),
            ("larder_purges_total", "Purges taken by the admin listener.", self.purges.value()),
            ("larder_log_lines_dropped_total", "Lines that standard error did not take.", log::lost()),
            (
                "larder_durable_downs_total",
                "Times that the durable tier became known to be down.",
                self.durable_downs.value(),
            ),
            (
                "larder_journal_read_total",
                "Records of other processes read from the journal.",
                self.journal_read.value(),
            ),
            (
                "larder_journal_unreadable_total",
                "Records of the journal that made no sense.",
                self.journal_unreadable.value(),
            ),
            ("larder_journal_written_total", "Records written to the journal.", self.journal_written.value()),
            ("larder_snapshots_total", "Snapshots of index and purges written.", self.snapshots.value()),
        ] {
            header(out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        }
    }

    /// Writes the refused requests, by reason.
    fn render_unparsed(&self, out: &mut String) {
        let values = Unparsed::ALL.map(|why| (why.as_str(), self.unparsed[why as usize].value()));
        let help = "Requests refused before they could be read as such, by reason.";
        labelled(out, "larder_requests_unparsed_total", help, "reason", values);
    }

    /// Writes the requests to the origin, and their latency.
    fn render_origin(&self, out: &mut String) {
        let values = OriginOutcome::ALL.map(|(outcome, word)| (word, self.origin[outcome as usize].value()));
        labelled(out, "larder_origin_requests_total", "Requests to the origin, by outcome.", "outcome", values);
        header(
            out,
            "larder_origin_latency_seconds",
            "histogram",
            "From sending a request to the origin's response head.",
        );
        self.origin_latency.write(out, "larder_origin_latency_seconds");
    }

    /// Writes the counters of the durable tier.
    fn render_durable(&self, out: &mut String) {
        header(
            out,
            "larder_durable_operations_total",
            "counter",
            "Operations of the durable tier, by kind and outcome.",
        );
        for (op, op_word) in OPS {
            for (outcome, word) in OUTCOMES {
                let value = self.durable[op as usize][outcome as usize].value();
                let _ = writeln!(out, "larder_durable_operations_total{{op=\"{op_word}\",outcome=\"{word}\"}} {value}");
            }
        }
        self.render_bill(out);
        let values = SAVED.map(|(why, word)| (word, self.saved[why as usize].value()));
        let help = "Reads and writes of the durable tier that were not made, and why.";
        labelled(out, "larder_durable_saved_total", help, "why", values);
        let values = LOST.map(|(why, word)| (word, self.lost[why as usize].value()));
        let help = "Responses that were to be written to the durable tier and were not, and why.";
        labelled(out, "larder_durable_lost_total", help, "why", values);
        for (name, help, value) in [
            (
                "larder_durable_at_hand_total",
                "Look-ups that a directory answered from the page cache, without waiting.",
                self.durable_at_hand.value(),
            ),
            (
                "larder_durable_late_values_total",
                "Replies to Redis clients that did not wait any longer for a directory to have what they confirm.",
                self.values_late.value(),
            ),
            ("larder_durable_entries_total", "Entries written to packs.", self.entries_written.value()),
            ("larder_packs_written_total", "Packs completed.", self.packs_written.value()),
            ("larder_packs_deleted_total", "Packs deleted that were of no use any more.", self.packs_deleted.value()),
            (
                "larder_packs_rewritten_total",
                "Packs written from others that they replace.",
                self.packs_rewritten.value(),
            ),
            ("larder_packs_rewritten_bytes_total", "Bytes copied from pack to pack.", self.bytes_rewritten.value()),
            (
                "larder_packs_evicted_total",
                "Packs dropped to keep the tier within its capacity.",
                self.packs_evicted.value(),
            ),
            (
                "larder_packs_evicted_bytes_total",
                "Their bytes, and those of the separate bodies that went with them.",
                self.bytes_evicted.value(),
            ),
        ] {
            header(out, name, "counter", help);
            let _ = writeln!(out, "{name} {value}");
        }
        header(
            out,
            "larder_durable_latency_seconds",
            "histogram",
            "From asking the durable tier for an object to its answer.",
        );
        self.durable_latency.write(out, "larder_durable_latency_seconds");
    }
}

impl Metrics {
    /// Writes the requests to the bucket, and their cost.
    fn render_bill(&self, out: &mut String) {
        let name = "larder_durable_requests_total";
        header(out, name, "counter", "Requests to the bucket, by what they are charged as and what they are for.");
        for (purpose, purpose_word) in PURPOSES {
            for (class, word) in CLASSES {
                let value = self.requests_for(purpose, class);
                let _ = writeln!(out, "{name}{{class=\"{word}\",purpose=\"{purpose_word}\"}} {value}");
            }
        }
        let name = "larder_durable_cost_total";
        header(out, name, "counter", "What those cost at the configured prices, by what they are for.");
        for (purpose, word) in PURPOSES {
            let _ = writeln!(out, "{name}{{purpose=\"{word}\"}} {:.6}", self.cost_of(purpose));
        }
    }
}

/// Returns labels as they stand behind the name of a metric.
fn labels(labels: &[(&str, String)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    format!("{{{}}}", labels.join(","))
}

/// Writes the lines that describe a metric.
pub(super) fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes a counter that has one value for each value of a label.
pub(super) fn labelled(
    out: &mut String,
    name: &str,
    help: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) {
    header(out, name, "counter", help);
    for (word, value) in values {
        let _ = writeln!(out, "{name}{{{label}=\"{word}\"}} {value}");
    }
}
