//! Statistics as OpenMetrics text, for Prometheus and similar tools.
//!
//! A metric is `unified_` and the counter's name in `struct unified_stats`, with two exceptions: packets that were
//! lost are one metric with a label for the cause, and so are frames with their state. Latencies are histograms with
//! the buckets of `latency.rs`, in seconds.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::latency::{self, Latency};
use crate::stats::Statistics;

#[derive(Debug)]
struct Snapshot(Statistics);

struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        // The encoder appends the unit to the metric's name.
        let (name, unit) = match name.strip_suffix("_bytes") {
            Some(name) => (name, Some(&Unit::Bytes)),
            None => (name, None),
        };
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, metric.metric_type())?;
        metric.encode(encoder)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstGauge::new(value as i64);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// A histogram, and the longest time, which a histogram does not contain.
    fn latency(&mut self, what: &str, help: &str, latency: &Latency) -> fmt::Result {
        const NS: f64 = 1e9;
        let buckets: [(f64, u64); latency::BUCKETS] = std::array::from_fn(|i| {
            let bound = latency::bound(i).map_or(f64::MAX, |ns| ns as f64 / NS);
            (bound, latency.buckets[i])
        });
        self.0
            .encode_descriptor(what, help, Some(&Unit::Seconds), MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(
                latency.sum as f64 / NS,
                latency.count(),
                &buckets,
                None,
            )?;
        let max = ConstGauge::new(latency.max as f64 / NS);
        let name = format!("{what}_max");
        let encoder = self.0.encode_descriptor(
            &name,
            "The longest of these times",
            Some(&Unit::Seconds),
            max.metric_type(),
        )?;
        max.encode(encoder)
    }

    /// One metric with a label for each value.
    fn family(
        &mut self,
        (name, help, label): (&str, &str, &str),
        values: &[(&str, u64)],
        counts: bool,
    ) -> fmt::Result {
        let kind = match counts {
            true => ConstCounter::new(0u64).metric_type(),
            false => ConstGauge::new(0i64).metric_type(),
        };
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (which, value) in values {
            let labels = [(label, *which)];
            let labelled = encoder.encode_family(&labels)?;
            match counts {
                true => ConstCounter::new(*value).encode(labelled)?,
                false => ConstGauge::new(*value as i64).encode(labelled)?,
            }
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let (s, mut to) = (&self.0, Encoder(encoder));
        for (name, help, value) in [
            ("xdp_seen", "Packets that the XDP program saw", s.xdp.seen),
            (
                "xdp_passed",
                "Packets handed on to the kernel's stack",
                s.xdp.passed,
            ),
            (
                "xdp_redirected",
                "Packets sent to the AF_XDP socket",
                s.xdp.redirected,
            ),
            (
                "xdp_matched",
                "UDP packets to one of the ports",
                s.xdp.matched,
            ),
            (
                "xdp_no_socket",
                "Matching packets on a queue without a socket, passed",
                s.xdp.no_socket,
            ),
            (
                "xdp_malformed",
                "Matching packets with invalid lengths, passed",
                s.xdp.malformed,
            ),
            ("xdp_fragments", "IP fragments, passed", s.xdp.fragments),
            (
                "xdp_merged",
                "Packets that are several merged datagrams to the ports, passed",
                s.xdp.merged,
            ),
            ("events", "Metadata events written", s.xdp.events),
            (
                "events_lost",
                "Metadata events lost because the ring buffer was full",
                s.xdp.events_lost,
            ),
            (
                "no_metadata",
                "Packets without a timestamp",
                s.xdp.no_metadata,
            ),
            (
                "rx_fill_ring_empty",
                "Times the fill ring was found empty",
                s.xsk.rx_fill_ring_empty,
            ),
            ("received", "Packets handed out", s.received),
            (
                "received_bytes",
                "Bytes of packets handed out",
                s.received_bytes,
            ),
            ("stored", "Packets written with success", s.stored),
            (
                "stored_bytes",
                "Bytes of these writes, padding included",
                s.stored_bytes,
            ),
            ("failed", "Packets whose write failed", s.failed),
            ("released", "Packets let go unwritten", s.released),
            ("submitted", "Commands taken by the engine", s.submitted),
            ("completed", "Commands completed", s.completed),
            ("errors", "Commands completed with an error", s.errors),
            ("operations", "Operations given to the device", s.operations),
            (
                "sq_full",
                "Submissions refused because the SQ ring was full",
                s.sq_full,
            ),
            (
                "bounced",
                "Commands whose data the library copied",
                s.bounced,
            ),
            (
                "bounced_bytes",
                "Bytes that the library copied",
                s.bounced_bytes,
            ),
            (
                "bytes_written",
                "Bytes written with success",
                s.bytes_written,
            ),
            ("bytes_read", "Bytes read with success", s.bytes_read),
            (
                "spilled",
                "Writes that the device failed and the spill took",
                s.spilled,
            ),
            (
                "spilled_bytes",
                "Bytes that the spill took",
                s.spilled_bytes,
            ),
            (
                "packed",
                "Packets that were copied together with others",
                s.packed,
            ),
            (
                "packed_bytes",
                "Bytes of packets that were copied together with others",
                s.packed_bytes,
            ),
            (
                "misplaced",
                "Packets that do not begin where the headroom says",
                s.misplaced,
            ),
            (
                "bad_descriptors",
                "Invalid RX descriptors",
                s.bad_descriptors,
            ),
            (
                "link_changes",
                "Changes of the interface between up and down",
                s.link.changes,
            ),
            (
                "xdp_changes",
                "Changes of the XDP program by somebody else",
                s.link.xdp_changes,
            ),
        ] {
            to.counter(name, help, value)?;
        }
        to.family(
            (
                "dropped",
                "Redirected packets that the kernel lost",
                "cause",
            ),
            &[
                ("no_frame", s.xsk.rx_dropped),
                ("rx_ring_full", s.xsk.rx_ring_full),
                ("redirect_errors", s.redirect_errors),
            ],
            true,
        )?;
        for (name, help, value) in [
            ("rx_pending", "Packets in the RX ring", s.rx_pending),
            (
                "packets_held",
                "Packets that the program holds",
                s.frames.packets_held,
            ),
            (
                "packets_in_flight",
                "Packets in flight to the device",
                s.frames.packets_in_flight,
            ),
            (
                "commands_in_flight",
                "Commands that the device has",
                s.commands_in_flight(),
            ),
            (
                "link_up",
                "1: the interface is up and has a carrier",
                s.link.up.into(),
            ),
            (
                "xdp_attached",
                "1: the XDP program is attached",
                s.link.xdp_attached.into(),
            ),
        ] {
            to.gauge(name, help, value)?;
        }
        to.family(
            ("frames", "Frames by state", "state"),
            &[
                ("free", s.frames.free),
                ("filled", s.frames.filled),
                ("held", s.frames.held),
                ("in_flight", s.frames.in_flight),
            ],
            false,
        )?;
        to.latency(
            "packet_latency",
            "From a packet's arrival until the completion of its first write was taken",
            &s.packet_latency,
        )?;
        to.latency(
            "command_latency",
            "From a command's submission to its completion",
            &s.command_latency,
        )
    }
}

/// A label's value as OpenMetrics wants it: a backslash before a backslash and a quote, and `\\n` for a newline. The
/// encoder writes values as they are. Names of devices and interfaces may hold all three.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The statistics of one context, with labels for its interface, queue and device. Ends in "# EOF".
pub fn render(context: &Context) -> Result<String> {
    let (info, statistics) = (context.info(), context.statistics()?);
    let label = |name: &'static str, value: &str| (Cow::from(name), Cow::from(escape(value)));
    let queue = info.network.map_or(String::new(), |n| n.queue.to_string());
    let labels = [
        label("interface", context.ifname().unwrap_or_default()),
        label("queue", &queue),
        label("device", &info.device),
    ];
    let mut registry = Registry::with_prefix_and_labels("unified", labels.into_iter());
    registry.register_collector(Box::new(Snapshot(statistics)));
    let mut text = String::new();
    encode(&mut text, &registry)
        .map_err(|_| Error::new(libc::EINVAL, "the statistics cannot be written as text"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_end_early() {
        let forged = "a\"} 1\nunified_forged{x=\"b\\";
        assert_eq!(escape(forged), r#"a\"} 1\nunified_forged{x=\"b\\"#);
        let labels = [(Cow::from("device"), Cow::from(escape(forged)))];
        let mut registry = Registry::with_prefix_and_labels("unified", labels.into_iter());
        registry.register_collector(Box::new(Snapshot(Statistics::default())));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(
            text.contains(r#"{device="a\"} 1\nunified_forged{x=\"b\\"}"#),
            "{text}"
        );
        assert!(!text.lines().any(|line| line.starts_with("unified_forged")));
    }

    #[test]
    fn every_counter_has_its_own_line() {
        // Every number another one, so that none can stand in for another.
        let mut s = Statistics::default();
        s.xdp.seen = 101;
        s.xdp.merged = 106;
        s.xsk.rx_dropped = 102;
        s.received_bytes = 103;
        s.frames.in_flight = 104;
        s.link.up = true;
        s.packet_latency.buckets[0] = 105;
        s.packet_latency.buckets[4] = 1;
        s.packet_latency.buckets[latency::BUCKETS - 1] = 2;
        s.packet_latency.sum = 1_500_000_000;
        s.command_latency.max = 2_500_000;
        let mut text = String::new();
        let mut registry = Registry::with_prefix("unified");
        registry.register_collector(Box::new(Snapshot(s)));
        encode(&mut text, &registry).unwrap();
        for line in [
            "unified_xdp_seen_total 101",
            "unified_xdp_merged_total 106",
            "unified_dropped_total{cause=\"no_frame\"} 102",
            "unified_received_bytes_total 103",
            "# UNIT unified_received_bytes bytes",
            "unified_frames{state=\"in_flight\"} 104",
            "unified_link_up 1",
            "unified_stored_total 0",
            "# TYPE unified_packet_latency_seconds histogram",
            "unified_packet_latency_seconds_count 108",
            "unified_packet_latency_seconds_sum 1.5",
            "unified_packet_latency_seconds_bucket{le=\"0.000004\"} 105",
            "unified_packet_latency_seconds_bucket{le=\"0.000005\"} 106",
            "unified_packet_latency_seconds_bucket{le=\"67.108864\"} 106",
            "unified_packet_latency_seconds_bucket{le=\"+Inf\"} 108",
            "unified_command_latency_seconds_count 0",
            "unified_command_latency_max_seconds 0.0025",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
