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
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::context::Context;
use crate::counters::DeviceCounts;
use crate::error::{Error, Result};
use crate::latency::{self, Latency};
use crate::stats::Statistics;

/// Labels of a sample.
type Labels = Vec<(&'static str, String)>;

/// What was counted.
#[derive(Debug)]
struct Snapshot {
    /// With the labels that say by whom: once without labels, or once for each lane.
    counted: Vec<(Labels, Statistics)>,
    /// The names of the devices.
    devices: Vec<String>,
}

/// A number out of the statistics, or out of those of a device.
type Value = fn(&Statistics) -> u64;
type DeviceValue = fn(&DeviceCounts) -> u64;

struct Encoder<'a, 'b> {
    descriptors: DescriptorEncoder<'a>,
    counted: &'b [(Labels, Statistics)],
    devices: &'b [String],
}

/// Encodes a sample for each of those who counted.
fn samples(
    mut encoder: MetricEncoder<'_>,
    counted: &[(Labels, Statistics)],
    mut sample: impl FnMut(MetricEncoder<'_>, &Statistics) -> fmt::Result,
) -> fmt::Result {
    for (labels, s) in counted {
        if labels.is_empty() {
            return sample(encoder, s);
        }
        sample(encoder.encode_family(labels)?, s)?;
    }
    Ok(())
}

impl Encoder<'_, '_> {
    fn begin_counter<'s>(
        &'s mut self,
        name: &'s str,
        help: &'s str,
    ) -> std::result::Result<MetricEncoder<'s>, fmt::Error> {
        // The encoder appends the unit to the metric's name.
        let (name, unit) = match name.strip_suffix("_bytes") {
            Some(name) => (name, Some(&Unit::Bytes)),
            None => (name, None),
        };
        self.descriptors
            .encode_descriptor(name, help, unit, MetricType::Counter)
    }

    fn counter(&mut self, name: &str, help: &str, value: Value) -> fmt::Result {
        let counted = self.counted;
        samples(self.begin_counter(name, help)?, counted, |encoder, s| {
            ConstCounter::new(value(s)).encode(encoder)
        })
    }

    /// A number of each device. A device that is alone is in the labels of all metrics.
    fn of_devices(
        &mut self,
        (name, help): (&str, &str),
        kind: MetricType,
        value: DeviceValue,
    ) -> fmt::Result {
        let (counted, devices) = (self.counted, self.devices);
        let mut encoder = match kind {
            MetricType::Counter => self.begin_counter(name, help)?,
            _ => self.descriptors.encode_descriptor(name, help, None, kind)?,
        };
        let sample = |encoder: MetricEncoder<'_>, counts: &DeviceCounts| match kind {
            MetricType::Counter => ConstCounter::new(value(counts)).encode(encoder),
            _ => ConstGauge::new(value(counts) as i64).encode(encoder),
        };
        if devices.len() < 2 {
            return samples(encoder, counted, |encoder, s| {
                sample(encoder, &s.devices[0])
            });
        }
        for (labels, s) in counted {
            for (device, counts) in devices.iter().zip(&s.devices) {
                let mut labels = labels.clone();
                labels.push(("device", escape(device)));
                sample(encoder.encode_family(&labels)?, counts)?;
            }
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: Value) -> fmt::Result {
        let encoder = self
            .descriptors
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples(encoder, self.counted, |encoder, s| {
            ConstGauge::new(value(s) as i64).encode(encoder)
        })
    }

    /// A histogram, and the longest time, which a histogram does not contain.
    fn latency(&mut self, what: &str, help: &str, of: fn(&Statistics) -> &Latency) -> fmt::Result {
        const NS: f64 = 1e9;
        let encoder = self.descriptors.encode_descriptor(
            what,
            help,
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        samples(encoder, self.counted, |mut encoder, s| {
            let latency = of(s);
            let buckets: [(f64, u64); latency::BUCKETS] = std::array::from_fn(|i| {
                let bound = latency::bound(i).map_or(f64::MAX, |ns| ns as f64 / NS);
                (bound, latency.buckets[i])
            });
            encoder.encode_histogram::<NoLabelSet>(
                latency.sum as f64 / NS,
                latency.count(),
                &buckets,
                None,
            )
        })?;
        let name = format!("{what}_max");
        let encoder = self.descriptors.encode_descriptor(
            &name,
            "The longest of these times",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        samples(encoder, self.counted, |encoder, s| {
            ConstGauge::new(of(s).max as f64 / NS).encode(encoder)
        })
    }

    /// One metric with a label for each value.
    fn family(
        &mut self,
        (name, help, label): (&str, &str, &'static str),
        values: &[(&str, Value)],
        kind: MetricType,
    ) -> fmt::Result {
        let mut encoder = self.descriptors.encode_descriptor(name, help, None, kind)?;
        for (labels, s) in self.counted {
            for (which, value) in values {
                let mut labels = labels.clone();
                labels.push((label, (*which).into()));
                let sample = encoder.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value(s)).encode(sample)?,
                    _ => ConstGauge::new(value(s) as i64).encode(sample)?,
                }
            }
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Encoder {
            descriptors: encoder,
            counted: &self.counted,
            devices: &self.devices,
        };
        let counters: &[(&str, &str, Value)] = &[
            ("xdp_seen", "Packets that the XDP program saw", |s| {
                s.xdp.seen
            }),
            (
                "xdp_passed",
                "Packets handed on to the kernel's stack",
                |s| s.xdp.passed,
            ),
            ("xdp_redirected", "Packets sent to the AF_XDP socket", |s| {
                s.xdp.redirected
            }),
            ("xdp_matched", "UDP packets to one of the ports", |s| {
                s.xdp.matched
            }),
            (
                "xdp_no_socket",
                "Matching packets on a queue without a socket, passed",
                |s| s.xdp.no_socket,
            ),
            (
                "xdp_malformed",
                "Matching packets with invalid lengths, passed",
                |s| s.xdp.malformed,
            ),
            ("xdp_fragments", "IP fragments, passed", |s| s.xdp.fragments),
            (
                "xdp_merged",
                "Packets that are several merged datagrams to the ports, passed",
                |s| s.xdp.merged,
            ),
            ("events", "Metadata events written", |s| s.xdp.events),
            (
                "events_lost",
                "Metadata events lost because the ring buffer was full",
                |s| s.xdp.events_lost,
            ),
            ("no_metadata", "Packets without a timestamp", |s| {
                s.xdp.no_metadata
            }),
            (
                "rx_fill_ring_empty",
                "Times the fill ring was found empty",
                |s| s.xsk.rx_fill_ring_empty,
            ),
            ("received", "Packets handed out", |s| s.received),
            ("received_bytes", "Bytes of packets handed out", |s| {
                s.received_bytes
            }),
            ("stored", "Packets written with success", |s| s.stored),
            (
                "stored_bytes",
                "Bytes of these writes, padding included",
                |s| s.stored_bytes,
            ),
            ("failed", "Packets whose write failed", |s| s.failed),
            ("released", "Packets let go unwritten", |s| s.released),
            ("submitted", "Commands taken by the engine", |s| s.submitted),
            ("completed", "Commands completed", |s| s.completed),
            (
                "sq_full",
                "Submissions refused because the SQ ring was full",
                |s| s.sq_full,
            ),
            ("bounced", "Commands whose data the library copied", |s| {
                s.bounced
            }),
            ("bounced_bytes", "Bytes that the library copied", |s| {
                s.bounced_bytes
            }),
            (
                "packed",
                "Packets that were copied together with others",
                |s| s.packed,
            ),
            (
                "packed_bytes",
                "Bytes of packets that were copied together with others",
                |s| s.packed_bytes,
            ),
            (
                "misplaced",
                "Packets that do not begin where the headroom says",
                |s| s.misplaced,
            ),
            ("bad_descriptors", "Invalid RX descriptors", |s| {
                s.bad_descriptors
            }),
            (
                "link_changes",
                "Changes of the interface between up and down",
                |s| s.link.changes,
            ),
            (
                "xdp_changes",
                "Changes of the XDP program by somebody else",
                |s| s.link.xdp_changes,
            ),
        ];
        for (name, help, value) in counters {
            to.counter(name, help, *value)?;
        }
        let of_devices: &[(&str, &str, DeviceValue)] = &[
            ("errors", "Commands completed with an error", |d| d.errors),
            ("operations", "Operations given to the device", |d| {
                d.operations
            }),
            ("bytes_written", "Bytes written with success", |d| {
                d.bytes_written
            }),
            ("bytes_read", "Bytes read with success", |d| d.bytes_read),
            (
                "spilled",
                "Writes that the device failed and the spill took",
                |d| d.spilled,
            ),
            ("spilled_bytes", "Bytes that the spill took", |d| {
                d.spilled_bytes
            }),
        ];
        for (name, help, value) in of_devices {
            to.of_devices((name, help), MetricType::Counter, *value)?;
        }
        to.of_devices(
            (
                "device_out",
                "1: the device has failed, and recordings leave it out",
            ),
            MetricType::Gauge,
            |d| d.out.into(),
        )?;
        to.of_devices(
            (
                "device_in_flight",
                "Operations that the device has not answered yet",
            ),
            MetricType::Gauge,
            |d| d.in_flight,
        )?;
        to.family(
            (
                "dropped",
                "Redirected packets that the kernel lost",
                "cause",
            ),
            &[
                ("no_frame", |s| s.xsk.rx_dropped),
                ("rx_ring_full", |s| s.xsk.rx_ring_full),
                ("redirect_errors", |s| s.redirect_errors),
            ],
            MetricType::Counter,
        )?;
        let gauges: &[(&str, &str, Value)] = &[
            ("rx_pending", "Packets in the RX ring", |s| s.rx_pending),
            ("packets_held", "Packets that the program holds", |s| {
                s.frames.packets_held
            }),
            (
                "packets_in_flight",
                "Packets in flight to the device",
                |s| s.frames.packets_in_flight,
            ),
            ("commands_in_flight", "Commands that the device has", |s| {
                s.commands_in_flight()
            }),
            ("buffers", "Buffers that are allocated", |s| {
                s.buffers.buffers
            }),
            ("buffer_bytes", "Bytes of allocated buffers", |s| {
                s.buffers.bytes
            }),
            (
                "buffer_registered_bytes",
                "Bytes that are registered for buffers",
                |s| s.buffers.registered_bytes,
            ),
            ("link_up", "1: the interface is up and has a carrier", |s| {
                s.link.up.into()
            }),
            ("xdp_attached", "1: the XDP program is attached", |s| {
                s.link.xdp_attached.into()
            }),
        ];
        for (name, help, value) in gauges {
            to.gauge(name, help, *value)?;
        }
        to.family(
            ("frames", "Frames by state", "state"),
            &[
                ("free", |s| s.frames.free),
                ("filled", |s| s.frames.filled),
                ("held", |s| s.frames.held),
                ("in_flight", |s| s.frames.in_flight),
            ],
            MetricType::Gauge,
        )?;
        to.latency(
            "packet_latency",
            "From a packet's arrival until the completion of its first write was taken",
            |s| &s.packet_latency,
        )?;
        to.latency(
            "command_latency",
            "From a command's submission to its completion",
            |s| &s.command_latency,
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

/// The statistics of a context, with labels for its interface and device; of several devices, what was counted of each has a
/// label for it. Of one lane, or of a `lane` of several, with a label
/// for its queue; of several lanes each sample has labels for its lane and queue, and the lane `none` has what belongs to none
/// of them: packets of queues without a lane, and the reserve of frames. Ends in "# EOF".
pub fn render(context: &Context, lane: Option<u32>) -> Result<String> {
    let info = context.info();
    let (total, lanes) = context.all_statistics()?;
    let first = info.network.map(|network| network.queue);
    let queue = |lane: u32| first.map_or(String::new(), |first| (first + lane).to_string());
    let label = |name: &'static str, value: &str| (Cow::from(name), Cow::from(escape(value)));
    let mut labels = vec![label("interface", context.ifname().unwrap_or_default())];
    let of_lane = |number: u32| vec![("lane", number.to_string()), ("queue", queue(number))];
    let counted = match (lane, lanes.len()) {
        (_, 1) => {
            labels.push(label("queue", &queue(0)));
            vec![(Labels::new(), total)]
        }
        (Some(number), _) => {
            let stats = lanes.get(number as usize).copied().unwrap_or_default();
            vec![(of_lane(number), stats)]
        }
        (None, _) => {
            let rest = total.without(&lanes);
            let all = (0..).zip(lanes).map(|(number, s)| (of_lane(number), s));
            let none = vec![("lane", "none".into()), ("queue", String::new())];
            all.chain([(none, rest)]).collect()
        }
    };
    if let [device] = &*info.devices {
        labels.push(label("device", &device.path));
    }
    let mut registry = Registry::with_prefix_and_labels("unified", labels.into_iter());
    registry.register_collector(Box::new(Snapshot {
        counted,
        devices: info.devices.iter().map(|d| d.path.clone()).collect(),
    }));
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
        registry.register_collector(Box::new(Snapshot {
            counted: vec![(Labels::new(), Statistics::default())],
            devices: vec![forged.into()],
        }));
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
        s.devices[0].in_flight = 107;
        let mut text = String::new();
        let mut registry = Registry::with_prefix("unified");
        registry.register_collector(Box::new(Snapshot {
            counted: vec![(Labels::new(), s)],
            devices: vec!["a".into()],
        }));
        encode(&mut text, &registry).unwrap();
        for line in [
            "unified_xdp_seen_total 101",
            "unified_xdp_merged_total 106",
            "unified_dropped_total{cause=\"no_frame\"} 102",
            "unified_received_bytes_total 103",
            "# UNIT unified_received_bytes bytes",
            "unified_frames{state=\"in_flight\"} 104",
            "unified_link_up 1",
            "unified_device_in_flight 107",
            "unified_device_out 0",
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
