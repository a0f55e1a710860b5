//! The OpenMetrics text of `unified_stats_render`, taken apart. Of metrics that are not the library's nothing is kept.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Labels that name a context; all others say which of several values it is.
const CONTEXT: [&str; 4] = ["interface", "queue", "device", "lane"];

/// The lane of what belongs to no lane: it is part of the sum of all.
const NO_LANE: &str = "none";

type Values = BTreeMap<String, f64>;

/// Adds what another lane, or another device, counts.
fn add(sums: &mut Values, values: &Values) {
    for (name, value) in values {
        let sum = sums.entry(name.clone()).or_default();
        // What is of the interface is the same at every lane; a longest time is that of one of them; a device is out if one
        // lane says so.
        *sum = match name.as_str() {
            "link_up" | "xdp_attached" | "link_changes" | "xdp_changes" | "device_out" => {
                sum.max(*value)
            }
            name if name.ends_with("_max_seconds") => sum.max(*value),
            _ => *sum + value,
        };
    }
}

/// What one context counts, or one of its lanes.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Metrics {
    pub interface: String,
    pub queue: String,
    pub device: String,
    /// Empty, if the context has one lane.
    pub lane: String,
    /// Of several lanes: how many this is the sum of.
    pub lanes: usize,
    /// And each of them, without its histograms.
    pub parts: Vec<Metrics>,
    /// Each device, by its name: what is counted of devices one by one. Of the sum of all lanes, what all did.
    pub devices: Vec<(String, Values)>,
    /// By name without `unified_` and `_total`; after a space the value of its own label, if it has one.
    values: Values,
    /// Upper bounds in seconds, and how many did not exceed them.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Metrics {
    /// Adds what a lane counts.
    fn add(&mut self, lane: &Metrics) {
        if lane.lane != NO_LANE {
            self.lanes += 1;
            self.parts.push(Metrics {
                buckets: BTreeMap::new(),
                devices: Vec::new(),
                ..lane.clone()
            });
        }
        add(&mut self.values, &lane.values);
        for (name, values) in &lane.devices {
            match self.devices.iter_mut().find(|(known, _)| known == name) {
                Some((_, sums)) => add(sums, values),
                None => self.devices.push((name.clone(), values.clone())),
            }
        }
        for (name, buckets) in &lane.buckets {
            let sums = self.buckets.entry(name.clone()).or_default();
            for (i, (bound, count)) in buckets.iter().enumerate() {
                match sums.get_mut(i) {
                    Some((_, sum)) => *sum += count,
                    None => sums.push((*bound, *count)),
                }
            }
        }
    }

    /// 0 for what is not there.
    pub fn get(&self, name: &str) -> f64 {
        self.values.get(name).copied().unwrap_or(0.0)
    }

    /// The buckets of `NAME_seconds`.
    pub fn buckets(&self, name: &str) -> &[(f64, f64)] {
        self.buckets.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The contexts in a text, in its order. The error says which line is not OpenMetrics, or that it was cut.
pub fn parse(text: &str) -> Result<Vec<Metrics>, String> {
    let mut contexts: Vec<Metrics> = Vec::new();
    let mut ended = false;
    for line in text.lines() {
        if line.starts_with('#') || line.is_empty() {
            ended = line == "# EOF";
            continue;
        }
        let (name, labels, value) =
            sample(line).ok_or_else(|| format!("not a line of OpenMetrics: {line}"))?;
        let Some(name) = name.strip_prefix("unified_") else {
            continue;
        };
        let label = |wanted: &str| {
            let found = labels.iter().find(|(label, _)| label == wanted);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let [interface, queue, device, lane] = CONTEXT.map(label);
        let same = |m: &Metrics| {
            m.interface == interface && m.queue == queue && m.device == device && m.lane == lane
        };
        let at = contexts.iter().position(same).unwrap_or_else(|| {
            contexts.push(Metrics {
                interface: interface.clone(),
                queue: queue.clone(),
                device: device.clone(),
                lane: lane.clone(),
                ..Metrics::default()
            });
            contexts.len() - 1
        });
        let context = &mut contexts[at];
        if let Some(name) = name.strip_suffix("_seconds_bucket") {
            let bound = match label("le").as_str() {
                "+Inf" => f64::INFINITY,
                bound => bound
                    .parse()
                    .map_err(|_| format!("a bucket without a bound: {line}"))?,
            };
            let buckets = context.buckets.entry(name.into()).or_default();
            buckets.push((bound, value));
            continue;
        }
        let name = name.strip_suffix("_total").unwrap_or(name);
        let own = labels
            .iter()
            .find(|(label, _)| !CONTEXT.contains(&label.as_str()));
        let key = match own {
            Some((_, which)) => format!("{name} {which}"),
            None => name.into(),
        };
        context.values.insert(key, value);
    }
    match (contexts.is_empty(), ended) {
        (true, _) => Err("there is no metric of unified in it".into()),
        (_, false) => Err("its end is missing (# EOF)".into()),
        _ => Ok(with_sums(with_devices(contexts))),
    }
}

/// What is counted of each device goes to the context, or the lane, that has the rest. A device that is alone is in the labels
/// of everything.
fn with_devices(found: Vec<Metrics>) -> Vec<Metrics> {
    let of_a_device = |one: &Metrics| {
        let rest = |m: &Metrics| {
            m.device.is_empty()
                && (&m.interface, &m.queue, &m.lane) == (&one.interface, &one.queue, &one.lane)
        };
        match one.device.is_empty() {
            true => None,
            false => found.iter().position(rest),
        }
    };
    let mut contexts: Vec<Metrics> = found.clone();
    for one in &found {
        if let Some(at) = of_a_device(one) {
            let whole = &mut contexts[at];
            whole.devices.push((one.device.clone(), one.values.clone()));
            add(&mut whole.values, &one.values);
        }
    }
    let keep: Vec<bool> = found.iter().map(|one| of_a_device(one).is_none()).collect();
    let mut keep = keep.into_iter();
    contexts.retain(|_| keep.next().unwrap_or(true));
    for context in &mut contexts {
        match context.devices.len() {
            0 => {
                let own = context
                    .values
                    .iter()
                    .filter(|(name, _)| is_of_devices(name));
                let own = own.map(|(name, value)| (name.clone(), *value)).collect();
                context.devices.push((context.device.clone(), own));
            }
            several => context.device = format!("{several} devices"),
        }
    }
    contexts
}

/// Whether a device has such a value of its own.
fn is_of_devices(name: &str) -> bool {
    [
        "errors",
        "operations",
        "bytes_written",
        "bytes_read",
        "spilled",
        "spilled_bytes",
        "device_out",
        "device_in_flight",
    ]
    .contains(&name)
}

/// Before the lanes of a context: the sum of all of them.
fn with_sums(contexts: Vec<Metrics>) -> Vec<Metrics> {
    let mut all: Vec<Metrics> = Vec::new();
    for one in contexts {
        if !one.lane.is_empty() {
            let same = |m: &&mut Metrics| {
                m.lanes > 0 && m.interface == one.interface && m.device == one.device
            };
            match all.iter_mut().find(same) {
                Some(sum) => sum.add(&one),
                None => {
                    let mut sum = Metrics {
                        interface: one.interface.clone(),
                        device: one.device.clone(),
                        ..Metrics::default()
                    };
                    sum.add(&one);
                    all.push(sum);
                }
            }
        }
        if one.lane != NO_LANE {
            all.push(one);
        }
    }
    all
}

type Labels = Vec<(String, String)>;

/// `name{label="value",...} number`, perhaps followed by a timestamp or exemplar.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, behind) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, behind) = quoted(behind)?;
            labels.push((label.into(), value));
            rest = behind;
        }
        rest = &rest[1..];
    }
    let number = rest.split_ascii_whitespace().next()?;
    Some((name, labels, number.parse().ok()?))
}

/// Up to the closing quote, without its escapes; and the rest.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

/// The time in seconds that a part `q` of the samples between two updates did not exceed: the bound of its bucket.
/// `None` if nothing came, infinity if it is above the last bound.
pub fn quantile(now: &[(f64, f64)], before: &[(f64, f64)], q: f64) -> Option<f64> {
    let came = |i: usize| now[i].1 - before.get(i).map_or(0.0, |b| b.1);
    let all = came(now.len().checked_sub(1)?);
    if all <= 0.0 {
        return None;
    }
    let rank = (q * all).ceil().max(1.0);
    let at = (0..now.len()).find(|i| came(*i) >= rank)?;
    Some(now[at].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# TYPE unified_received counter
unified_received_total{interface="eth0",queue="0",device="/tmp/a,b=\"c\\"} 12
unified_received_total{interface="eth1",queue="3",device="d"} 7
unified_dropped_total{interface="eth0",queue="0",device="/tmp/a,b=\"c\\",cause="no_frame"} 3
unified_packet_latency_seconds_sum{interface="eth1",queue="3",device="d"} 1.5
unified_packet_latency_seconds_bucket{interface="eth1",queue="3",device="d",le="0.000001"} 1
unified_packet_latency_seconds_bucket{interface="eth1",queue="3",device="d",le="0.000002"} 9
unified_packet_latency_seconds_bucket{interface="eth1",queue="3",device="d",le="+Inf"} 10
other_total 5
# EOF
"#;

    #[test]
    fn a_text_is_taken_apart_by_context() {
        let contexts = parse(TEXT).unwrap();
        assert_eq!(contexts.len(), 2);
        let (a, b) = (&contexts[0], &contexts[1]);
        assert_eq!(
            (a.interface.as_str(), a.device.as_str()),
            ("eth0", "/tmp/a,b=\"c\\")
        );
        assert_eq!((a.get("received"), a.get("dropped no_frame")), (12.0, 3.0));
        assert_eq!((b.get("received"), b.get("dropped no_frame")), (7.0, 0.0));
        let buckets = b.buckets("packet_latency");
        assert_eq!(
            buckets,
            [(0.000001, 1.0), (0.000002, 9.0), (f64::INFINITY, 10.0)]
        );
        assert_eq!(quantile(buckets, &[], 0.5), Some(0.000002));
        assert_eq!(quantile(buckets, &[], 0.1), Some(0.000001));
        assert_eq!(quantile(buckets, &[], 0.99), Some(f64::INFINITY));
        assert_eq!(quantile(buckets, buckets, 0.5), None);
        assert_eq!(quantile(&[], &[], 0.5), None);
    }

    #[test]
    fn the_lanes_of_a_context_are_summed_up() {
        let of = |lane: &str, queue: &str, n: u32| {
            let l = format!("interface=\"eth0\",device=\"d\",lane=\"{lane}\",queue=\"{queue}\"");
            format!(
                "unified_received_total{{{l}}} {n}\nunified_link_up{{{l}}} 1\n\
                 unified_packet_latency_max_seconds{{{l}}} {n}\n\
                 unified_frames{{{l},state=\"free\"}} 10\n\
                 unified_packet_latency_seconds_bucket{{{l},le=\"0.1\"}} {n}\n\
                 unified_packet_latency_seconds_bucket{{{l},le=\"+Inf\"}} {n}\n"
            )
        };
        let text = of("0", "4", 5) + &of("1", "5", 7) + &of("none", "", 0) + "# EOF\n";
        let all = parse(&text).unwrap();
        let names: Vec<_> = all.iter().map(|m| (m.lane.as_str(), m.lanes)).collect();
        assert_eq!(names, [("", 2), ("0", 0), ("1", 0)]);
        let sum = &all[0];
        assert_eq!((sum.get("received"), sum.get("link_up")), (12.0, 1.0));
        assert_eq!(sum.get("packet_latency_max_seconds"), 7.0);
        assert_eq!(sum.get("frames free"), 30.0);
        assert_eq!(
            sum.buckets("packet_latency"),
            [(0.1, 12.0), (f64::INFINITY, 12.0)]
        );
        assert_eq!(all[2].get("received"), 7.0);
        assert_eq!(all[2].queue, "5");
    }

    #[test]
    fn devices_are_parts_of_their_context() {
        let of = |lane: &str, n: u32| {
            let l = format!("interface=\"eth0\",lane=\"{lane}\",queue=\"{lane}\"");
            let device = |name: &str, n: u32, out: u32| {
                format!(
                    "unified_bytes_written_total{{{l},device=\"{name}\"}} {n}\n\
                     unified_device_in_flight{{{l},device=\"{name}\"}} {n}\n\
                     unified_device_out{{{l},device=\"{name}\"}} {out}\n"
                )
            };
            format!("unified_received_total{{{l}}} {n}\n")
                + &device("/dev/a", n, 0)
                + &device("/dev/b", 10 * n, n % 2)
        };
        let all = parse(&(of("0", 4) + &of("1", 7) + "# EOF\n")).unwrap();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|one| one.device == "2 devices"));
        let sum = &all[0];
        assert_eq!(
            (sum.get("received"), sum.get("bytes_written")),
            (11.0, 121.0)
        );
        let written: Vec<_> = sum
            .devices
            .iter()
            .map(|(name, of)| (name.as_str(), of["bytes_written"], of["device_out"]))
            .collect();
        assert_eq!(written, [("/dev/a", 11.0, 0.0), ("/dev/b", 110.0, 1.0)]);
        assert_eq!(all[1].devices[1].1["device_in_flight"], 40.0);
        let lanes: Vec<_> = sum.parts.iter().map(|lane| lane.get("received")).collect();
        assert_eq!(lanes, [4.0, 7.0]);
        // One device, and one lane.
        let one = parse("unified_bytes_written_total{device=\"d\"} 5\n# EOF\n").unwrap();
        assert_eq!((one.len(), one[0].parts.len()), (1, 0));
        assert_eq!(one[0].devices[0].1["bytes_written"], 5.0);
    }

    #[test]
    fn what_is_no_such_text_is_told() {
        for (text, word) in [
            (TEXT.strip_suffix("# EOF\n").unwrap(), "EOF"),
            ("<html>no</html>", "OpenMetrics: <html>"),
            ("unified_a{b=\"c} 1\n# EOF\n", "OpenMetrics"),
            ("other 1\n# EOF\n", "no metric"),
            ("", "no metric"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(word), "{said}");
        }
    }
}
