//! What is shown: the last looks at one context, and the lines made of them.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::format;
use crate::metrics::{Metrics, quantile};

/// Looks that are kept: as many as the widest history shows.
const LOOKS: usize = 240;
/// Percentiles of "now" are those of the last seconds, or there would be too few of them.
const WINDOW: f64 = 10.0;
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
/// Less than this says nothing that can be read.
const NARROWEST: u16 = 44;
const LOWEST: u16 = 8;
/// Lines of a table of lanes or devices that are shown even if other sections are not, then.
const LEAST_TABLE: usize = 6;

/// What the terminal can do.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub colour: bool,
    pub utf8: bool,
    /// The recorder answers: what is shown is how things are, and not how they were.
    pub answered: bool,
}

impl Look {
    fn paint(&self, colour: Color, without: Modifier) -> Style {
        match self.colour {
            true => Style::new().fg(colour),
            false => Style::new().add_modifier(without),
        }
    }

    fn head(&self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn dim(&self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn good(&self) -> Style {
        self.paint(Color::Green, Modifier::empty())
    }

    fn odd(&self) -> Style {
        self.paint(Color::Yellow, Modifier::BOLD)
    }

    pub fn lost(&self) -> Style {
        self.paint(Color::Red, Modifier::REVERSED)
            .add_modifier(Modifier::BOLD)
    }

    fn micro(&self) -> &'static str {
        if self.utf8 { "µs" } else { "us" }
    }
}

/// The last looks at one context.
#[derive(Debug, Default)]
pub struct View {
    looks: VecDeque<(f64, Metrics)>,
}

impl View {
    /// What was counted at `seconds` of any clock. A recorder that was started anew counts from 0 again.
    pub fn add(&mut self, seconds: f64, metrics: Metrics) {
        let backwards = |last: &Metrics| {
            ["received", "submitted", "xdp_seen"]
                .iter()
                .any(|name| metrics.get(name) < last.get(name))
        };
        if self.looks.back().is_some_and(|(_, last)| backwards(last)) {
            self.looks.clear();
        }
        if self.looks.len() == LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back((seconds, metrics));
    }

    fn now(&self) -> Option<&Metrics> {
        self.looks.back().map(|(_, metrics)| metrics)
    }

    fn total(&self, name: &str) -> f64 {
        self.now().map_or(0.0, |m| m.get(name))
    }

    /// A second, between each two updates; the newest last.
    fn rates<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = f64> + 'a {
        let pairs = self.looks.iter().zip(self.looks.iter().skip(1));
        pairs.map(move |((then, before), (now, after))| {
            (after.get(name) - before.get(name)).max(0.0) / (now - then).max(1e-3)
        })
    }

    /// A second, between the last two updates, of something that both have.
    fn rate_of(&self, value: impl Fn(&Metrics) -> Option<f64>) -> f64 {
        let mut last = self.looks.iter().rev();
        let (Some((now, after)), Some((then, before))) = (last.next(), last.next()) else {
            return 0.0;
        };
        match (value(after), value(before)) {
            (Some(after), Some(before)) => (after - before).max(0.0) / (now - then).max(1e-3),
            _ => 0.0,
        }
    }

    fn rate(&self, name: &str) -> f64 {
        self.rates(name).next_back().unwrap_or(0.0)
    }

    /// Percentiles of the last seconds, and of all; `None` if nothing came.
    fn latency(&self, name: &str) -> ([Option<f64>; 3], [Option<f64>; 3]) {
        let Some((now, last)) = self.looks.back() else {
            return ([None; 3], [None; 3]);
        };
        let buckets = last.buckets(name);
        let before = self
            .looks
            .iter()
            .rev()
            .find(|(then, _)| now - then >= WINDOW);
        let before = before
            .or(self.looks.front())
            .filter(|_| self.looks.len() > 1);
        let longest = last.get(&format!("{name}_max_seconds"));
        let of = |before: &[(f64, f64)]| {
            // No more than the longest: the bound of a bucket may be.
            QUANTILES.map(|(_, q)| quantile(buckets, before, q).map(|s| s.min(longest)))
        };
        let recent = match before {
            Some((_, metrics)) => of(metrics.buckets(name)),
            None => [None; 3],
        };
        (recent, of(&[]))
    }

    fn lost(&self) -> f64 {
        LOST.iter().map(|(_, name)| self.total(name)).sum()
    }

    /// One line, for output that is not a terminal.
    pub fn plain(&self) -> String {
        let Some(now) = self.now() else {
            return String::new();
        };
        let (recent, all) = self.latency("packet_latency");
        let latency = |parts: [Option<f64>; 3]| {
            let said = QUANTILES.iter().zip(parts).map(|((name, _), part)| {
                format!(
                    "{name} {}",
                    part.map_or("-".into(), |s| format::time(s, "us"))
                )
            });
            said.collect::<Vec<_>>().join(" ")
        };
        let lookless = self.looks.len() < 2;
        format!(
            "{}: received {:.0} ({}/s), stored {:.0} ({}/s, {}/s), lost {:.0}, failed {:.0}, released {:.0}, bounced {:.0}, \
             in flight {:.0}, latency {}, longest {}, link {}, XDP {}",
            name_of(now),
            now.get("received"),
            format::amount(self.rate("received")),
            now.get("stored"),
            format::amount(self.rate("stored")),
            format::bytes(self.rate("bytes_written")),
            dropped(now),
            now.get("failed"),
            now.get("released"),
            now.get("bounced"),
            now.get("commands_in_flight"),
            latency(if lookless { all } else { recent }),
            format::time(now.get("packet_latency_max_seconds"), "us"),
            if now.get("link_up") > 0.0 {
                "up"
            } else {
                "DOWN"
            },
            if now.get("xdp_attached") > 0.0 {
                "attached"
            } else {
                "OFF"
            },
        ) + &plain_devices(now)
    }

    /// The whole screen. `status` is its last line.
    pub fn screen(
        &self,
        width: u16,
        height: u16,
        look: Look,
        status: Line<'static>,
    ) -> Vec<Line<'static>> {
        if width < NARROWEST || height < LOWEST {
            let text = format!("{width}x{height} is too small: {NARROWEST}x{LOWEST}");
            return vec![Line::raw(
                text.chars().take(width.into()).collect::<String>(),
            )];
        }
        let width = usize::from(width);
        let room = usize::from(height) - 2;
        let mut sections = vec![self.packets(width, look), self.losses(width, look)];
        let after = [
            self.latencies(width, look),
            self.storage(width, look),
            self.frames(width, look),
        ];
        // Tables have as many rows as the other sections leave room for, and some in any case.
        let rest: usize = after.iter().map(Vec::len).sum();
        for table in [View::devices, View::lanes] {
            let taken: usize = sections.iter().map(Vec::len).sum();
            let left = room.saturating_sub(taken);
            let room = left.saturating_sub(rest).max(LEAST_TABLE.min(left));
            sections.push(table(self, width, room, look));
        }
        sections.extend(after);
        sections.retain(|section| !section.is_empty());
        // Whole sections, the first ones first; empty lines between them if there is room for all.
        let all: usize = sections.iter().map(Vec::len).sum();
        let airy = all + sections.len() <= room;
        let mut lines = vec![self.title(width, look)];
        for section in sections {
            if lines.len() - 1 + section.len() + usize::from(airy) > room {
                break;
            }
            if airy {
                lines.push(Line::default());
            }
            lines.extend(section);
        }
        lines.resize(usize::from(height) - 1, Line::default());
        lines.push(status);
        lines
    }

    fn title(&self, width: usize, look: Look) -> Line<'static> {
        let Some(now) = self.now() else {
            return Line::raw("unified-top");
        };
        let state = |name: &str, good: &str, bad: &str| match now.get(name) > 0.0 {
            true => Span::styled(good.to_string(), look.good()),
            false => Span::styled(bad.to_string(), look.lost()),
        };
        let right = match now.interface.as_str() {
            _ if !look.answered => vec![Span::styled("NO ANSWER", look.lost())],
            "" => vec![Span::styled("storage only", look.dim())],
            _ => vec![
                state("link_up", "link up", "LINK DOWN"),
                Span::raw("  "),
                state("xdp_attached", "XDP attached", "XDP OFF"),
            ],
        };
        let taken: usize = right.iter().map(Span::width).sum();
        // A path is cut at its front; the interface stays.
        let whole = name_of(now);
        let head = &whole[..whole.len() - now.device.len()];
        let room = width.saturating_sub(taken + 2 + head.len());
        let name = format!("{head}{}", fit(&now.device, room));
        let gap = width.saturating_sub(name.chars().count() + taken);
        let mut spans = vec![Span::styled(name, look.head()), Span::raw(" ".repeat(gap))];
        spans.extend(right);
        Line::from(spans)
    }

    fn packets(&self, width: usize, look: Look) -> Vec<Line<'static>> {
        const RATE: usize = 13;
        let sum = if width < 64 { 14 } else { 20 };
        let history = width.saturating_sub(NAME + RATE + sum + 3);
        let mut lines = vec![Line::styled(
            format!(
                "{:NAME$}{:>RATE$}  {:history$} {:>sum$}",
                "PACKETS",
                "now",
                if history < 7 { "" } else { "history" },
                "total"
            ),
            look.head(),
        )];
        for (label, name, is_bytes) in [
            ("to our ports", "xdp_matched", false),
            ("received", "received", false),
            ("stored", "stored", false),
            ("written", "bytes_written", true),
        ] {
            let (rate, total) = (self.rate(name), self.total(name));
            let (rate_text, total_text) = match is_bytes {
                true => (format::bytes(rate), format::bytes(total)),
                false => (format::amount(rate), format::exact(total)),
            };
            let (rate, rate_text) = match look.answered {
                true => (rate, format!("{rate_text}/s")),
                false => (0.0, "-".to_string()),
            };
            let style = if rate > 0.0 { Style::new() } else { look.dim() };
            lines.push(Line::from(vec![
                Span::raw(format!("{label:NAME$}")),
                Span::styled(format!("{rate_text:>RATE$}"), style),
                Span::raw("  "),
                Span::styled(
                    self.history(name, history, look),
                    look.paint(Color::Cyan, Modifier::empty()),
                ),
                Span::raw(format!(" {total_text:>sum$}")),
            ]));
        }
        lines
    }

    /// The last rates, the newest at the right, from nothing to the highest of them.
    fn history(&self, name: &str, width: usize, look: Look) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const PLAIN: [char; 8] = ['_', '.', ':', '-', '=', '+', '*', '#'];
        let steps = if look.utf8 { BARS } else { PLAIN };
        let mut rates: Vec<f64> = self.rates(name).rev().take(width).collect();
        rates.reverse();
        let highest = rates.iter().copied().fold(0.0, f64::max);
        let bars = rates.iter().map(|rate| match highest > 0.0 {
            true => steps[(rate / highest * 7.0).ceil() as usize],
            false => steps[0],
        });
        format!("{:>width$}", bars.collect::<String>())
    }

    fn losses(&self, width: usize, look: Look) -> Vec<Line<'static>> {
        let lost = self.lost();
        let head = match lost > 0.0 {
            true => Span::styled(format!("LOST  {}", format::exact(lost)), look.lost()),
            false => Span::styled("LOST  nothing", look.head()),
        };
        let cells = LOST
            .iter()
            .map(|cell| (cell, look.lost()))
            .chain(LEFT.iter().map(|cell| (cell, look.odd())));
        let cells = cells.map(|((label, name), style)| {
            let total = self.total(name);
            (
                *label,
                format::exact(total),
                if total > 0.0 { style } else { look.dim() },
            )
        });
        let mut lines = vec![Line::from(head)];
        lines.extend(grid(cells.collect(), width, look));
        lines
    }

    /// A row for each of several devices, and for one that is out.
    fn devices(&self, width: usize, room: usize, look: Look) -> Vec<Line<'static>> {
        let Some(now) = self.now() else {
            return Vec::new();
        };
        let of = |values: &BTreeMap<String, f64>, name| values.get(name).copied().unwrap_or(0.0);
        let is_out = |values: &BTreeMap<String, f64>| of(values, "device_out") > 0.0;
        if now.devices.len() < 2 && !now.devices.iter().any(|(_, values)| is_out(values)) {
            return Vec::new();
        }
        let wide = width >= 80;
        // What fits beside the name, and how wide it is.
        let columns: &[(&str, usize)] = match wide {
            true => &[
                ("now", 12),
                ("written", 10),
                ("read", 10),
                ("errors", 9),
                ("in flight", 10),
                ("", 5),
            ],
            false => &[("written", 10), ("errors", 8), ("flight", 7), ("", 5)],
        };
        let name_width = width - columns.iter().map(|(_, width)| width).sum::<usize>();
        let header: String = columns
            .iter()
            .map(|(name, w)| format!("{name:>w$}"))
            .collect();
        let head = Line::styled(format!("{:name_width$}{header}", "DEVICES"), look.head());
        // Those that are out are seen, also if there is no room for all.
        let mut devices: Vec<_> = now.devices.iter().collect();
        devices.sort_by_key(|(_, values)| !is_out(values));
        let row = |(name, values): &(String, BTreeMap<String, f64>)| {
            let rate = self.rate_of(|metrics| {
                let same = metrics.devices.iter().find(|(other, _)| other == name)?;
                Some(of(&same.1, "bytes_written"))
            });
            let calm = |value: f64, style: Style| if value > 0.0 { style } else { look.dim() };
            let cell = |(column, w): &(&str, usize)| {
                let (text, style) = match *column {
                    "now" if !look.answered => ("-".into(), look.dim()),
                    "now" => (
                        format!("{}/s", format::bytes(rate)),
                        calm(rate, Style::new()),
                    ),
                    "written" => (format::bytes(of(values, "bytes_written")), Style::new()),
                    "read" => (format::bytes(of(values, "bytes_read")), look.dim()),
                    "errors" => {
                        let errors = of(values, "errors");
                        (format::exact(errors), calm(errors, look.lost()))
                    }
                    "" if is_out(values) => ("OUT".into(), look.lost()),
                    "" => ("ok".into(), look.good()),
                    _ => {
                        let flying = of(values, "device_in_flight");
                        (format::exact(flying), calm(flying, Style::new()))
                    }
                };
                let gap = w.saturating_sub(text.chars().count());
                [Span::raw(" ".repeat(gap)), Span::styled(text, style)]
            };
            let name = fit(name, name_width);
            let name = Span::raw(format!("{name:name_width$}"));
            Line::from_iter(std::iter::once(name).chain(columns.iter().flat_map(cell)))
        };
        table(head, devices.into_iter().map(row).collect(), room, look)
    }

    /// A row for each of several lanes.
    fn lanes(&self, width: usize, room: usize, look: Look) -> Vec<Line<'static>> {
        let Some(now) = self.now().filter(|now| now.parts.len() > 1) else {
            return Vec::new();
        };
        let columns: &[(&str, usize)] = match width >= 80 {
            true => &[
                ("received", 13),
                ("stored", 13),
                ("lost", 12),
                ("failed", 10),
                ("in flight", 11),
            ],
            false => &[("received", 11), ("stored", 11), ("lost", 8)],
        };
        let header: String = columns
            .iter()
            .map(|(name, w)| format!("{name:>w$}"))
            .collect();
        let head = Line::styled(format!("{:NAME$}{header}", "LANES"), look.head());
        let row = |lane: &Metrics| {
            let cell = |(column, w): &(&str, usize)| {
                let (text, style) = match *column {
                    "received" | "stored" if !look.answered => ("-".into(), look.dim()),
                    "received" | "stored" => {
                        let rate = self.rate_of(|metrics| {
                            let same = metrics.parts.iter().find(|part| part.lane == lane.lane)?;
                            Some(same.get(column))
                        });
                        let style = if rate > 0.0 { Style::new() } else { look.dim() };
                        (format!("{}/s", format::amount(rate)), style)
                    }
                    other => {
                        let (count, style) = match other {
                            "lost" => (dropped(lane), look.lost()),
                            "failed" => (lane.get("failed"), look.lost()),
                            _ => (lane.get("commands_in_flight"), Style::new()),
                        };
                        let style = if count > 0.0 { style } else { look.dim() };
                        (format::exact(count), style)
                    }
                };
                let gap = w.saturating_sub(text.chars().count());
                [Span::raw(" ".repeat(gap)), Span::styled(text, style)]
            };
            let name = match lane.queue.as_str() {
                "" => lane.lane.clone(),
                queue => format!("{} queue {queue}", lane.lane),
            };
            let name = Span::raw(format!("{name:NAME$}"));
            Line::from_iter(std::iter::once(name).chain(columns.iter().flat_map(cell)))
        };
        table(head, now.parts.iter().map(row).collect(), room, look)
    }

    fn latencies(&self, width: usize, look: Look) -> Vec<Line<'static>> {
        const CELL: usize = 9;
        let wide = width >= NAME + 7 * CELL;
        let longest = width >= NAME + 4 * CELL;
        let since = match (wide, longest) {
            (true, _) => format!("{:>1$}", "since the start", 4 * CELL),
            (_, true) => format!("{:>CELL$}", "in all"),
            _ => String::new(),
        };
        let columns =
            |names: &[&str]| -> String { names.iter().map(|n| format!("{n:>CELL$}")).collect() };
        let names = QUANTILES.map(|(name, _)| name);
        let mut lines = vec![Line::from(vec![
            Span::styled(format!("{:NAME$}", "LATENCY"), look.head()),
            Span::styled(format!("{:>1$}", "last 10 s", 3 * CELL), look.head()),
            Span::styled(since, look.dim()),
        ])];
        lines.push(Line::from(vec![
            Span::raw(" ".repeat(NAME)),
            Span::styled(columns(&names), look.head()),
            match wide {
                true => Span::styled(columns(&[&names[..], &["longest"]].concat()), look.dim()),
                false if longest => Span::styled(columns(&["longest"]), look.dim()),
                false => Span::raw(""),
            },
        ]));
        for (label, name) in [
            ("packets", "packet_latency"),
            ("commands", "command_latency"),
        ] {
            let (recent, all) = self.latency(name);
            let cell = |part: Option<f64>| match part {
                Some(seconds) => format!("{:>CELL$}", format::time(seconds, look.micro())),
                None => format!("{:>CELL$}", "-"),
            };
            let most = all[0].map(|_| self.total(&format!("{name}_max_seconds")));
            let mut spans = vec![Span::raw(format!("{label:NAME$}"))];
            spans.extend(recent.map(|part| match part {
                Some(_) => Span::raw(cell(part)),
                None => Span::styled(cell(part), look.dim()),
            }));
            if wide {
                spans.extend(all.map(|part| Span::styled(cell(part), look.dim())));
            }
            if longest {
                spans.push(Span::styled(cell(most), look.dim()));
            }
            lines.push(Line::from(spans));
        }
        lines
    }

    fn storage(&self, width: usize, look: Look) -> Vec<Line<'static>> {
        let calm = |value: f64, style: Style| if value > 0.0 { style } else { look.dim() };
        let mut cells = Vec::new();
        for (label, name) in [("commands", "completed"), ("operations", "operations")] {
            let rate = self.rate(name);
            let text = match look.answered {
                true => format!("{}/s", format::amount(rate)),
                false => "-".to_string(),
            };
            cells.push((label, text, calm(rate, Style::new())));
        }
        for (label, name, style) in [
            ("in flight", "commands_in_flight", Style::new()),
            ("RX ring", "rx_pending", Style::new()),
            ("errors", "errors", look.lost()),
            ("bounced", "bounced", look.odd()),
            ("SQ full", "sq_full", look.odd()),
            ("fill ring dry", "rx_fill_ring_empty", look.odd()),
        ] {
            let total = self.total(name);
            cells.push((label, format::exact(total), calm(total, style)));
        }
        let mut lines = vec![Line::styled("STORAGE", look.head())];
        lines.extend(grid(cells, width, look));
        lines
    }

    fn frames(&self, width: usize, look: Look) -> Vec<Line<'static>> {
        let states = [
            (
                "in flight",
                "frames in_flight",
                if look.utf8 { '█' } else { '#' },
                Color::Magenta,
            ),
            (
                "held",
                "frames held",
                if look.utf8 { '▓' } else { '=' },
                Color::Yellow,
            ),
            (
                "filled",
                "frames filled",
                if look.utf8 { '▒' } else { '-' },
                Color::Blue,
            ),
            (
                "free",
                "frames free",
                if look.utf8 { '░' } else { '.' },
                Color::DarkGray,
            ),
        ];
        let all: f64 = states.iter().map(|(_, name, ..)| self.total(name)).sum();
        let mut bar = Vec::new();
        let mut legend = Vec::new();
        let (mut sum, mut drawn) = (0.0, 0);
        for (label, name, fill, colour) in states {
            let count = self.total(name);
            sum += count;
            // What is there at all is seen, while there is room.
            let end = ((sum / all.max(1.0) * width as f64).round() as usize)
                .max(drawn + usize::from(count > 0.0))
                .min(width);
            let style = look.paint(colour, Modifier::empty());
            bar.push(Span::styled(fill.to_string().repeat(end - drawn), style));
            drawn = end;
            legend.push(Span::styled(format!("{fill} "), style));
            let text = Style::new();
            legend.push(Span::styled(
                format!("{label} {}   ", format::exact(count)),
                if count > 0.0 { text } else { look.dim() },
            ));
        }
        vec![
            Line::styled(format!("FRAMES  {}", format::exact(all)), look.head()),
            Line::from(bar),
            Line::from(legend),
        ]
    }
}

/// Width of the labels at the left.
const NAME: usize = 14;

/// Packets that were ours and are gone.
const LOST: [(&str, &str); 4] = [
    ("no frame", "dropped no_frame"),
    ("RX ring full", "dropped rx_ring_full"),
    ("redirect", "dropped redirect_errors"),
    ("failed writes", "failed"),
];
/// Packets that are not stored, for a reason that may be a good one.
const LEFT: [(&str, &str); 5] = [
    ("released", "released"),
    ("wrong queue", "xdp_no_socket"),
    ("malformed", "xdp_malformed"),
    ("fragments", "xdp_fragments"),
    ("merged", "xdp_merged"),
];

/// What the kernel dropped.
fn dropped(metrics: &Metrics) -> f64 {
    LOST[..3].iter().map(|(_, name)| metrics.get(name)).sum()
}

/// For a line of several devices: each of them.
fn plain_devices(now: &Metrics) -> String {
    if now.devices.len() < 2 {
        return String::new();
    }
    let device = |(name, values): &(String, BTreeMap<String, f64>)| {
        let of = |name| values.get(name).copied().unwrap_or(0.0);
        format!(
            "; {name}: written {}, read {}, errors {:.0}, in flight {:.0}, {}",
            format::bytes(of("bytes_written")),
            format::bytes(of("bytes_read")),
            of("errors"),
            of("device_in_flight"),
            if of("device_out") > 0.0 { "OUT" } else { "ok" }
        )
    };
    now.devices.iter().map(device).collect()
}

/// A head and as many rows as there is room for; the last line says how many more there are.
fn table(
    head: Line<'static>,
    mut rows: Vec<Line<'static>>,
    room: usize,
    look: Look,
) -> Vec<Line<'static>> {
    // Not worth it: the head and a line about the rest.
    if room < 3 {
        return Vec::new();
    }
    let shown = room - 1;
    if rows.len() > shown {
        let more = rows.len() - (shown - 1);
        rows.truncate(shown - 1);
        rows.push(Line::styled(format!("and {more} more"), look.dim()));
    }
    rows.insert(0, head);
    rows
}

fn name_of(metrics: &Metrics) -> String {
    let Metrics {
        interface,
        queue,
        device,
        ..
    } = metrics;
    match (interface.as_str(), metrics.lane.as_str(), metrics.lanes) {
        ("", "", 0) => device.clone(),
        ("", "", lanes) => format!("all {lanes} lanes > {device}"),
        ("", lane, _) => format!("lane {lane} > {device}"),
        (_, "", 0) => format!("{interface} queue {queue} > {device}"),
        (_, "", lanes) => format!("{interface} all {lanes} queues > {device}"),
        (_, lane, _) => format!("{interface} lane {lane} queue {queue} > {device}"),
    }
}

/// No more characters than `width`; what is left out is at the front, where paths differ least.
fn fit(text: &str, width: usize) -> String {
    let count = text.chars().count();
    match count <= width {
        true => text.into(),
        false => text.chars().skip(count - width).collect(),
    }
}

/// Label and number, in as many columns as there is room for.
fn grid(cells: Vec<(&'static str, String, Style)>, width: usize, look: Look) -> Vec<Line<'static>> {
    const GAP: usize = 3;
    // Four beside each other, or two, or one: columns then stand below each other in every section.
    let needed = |(label, value, _): &(&str, String, Style)| label.len() + 1 + value.len();
    let needed = cells.iter().map(needed).max().unwrap_or(0);
    let fitting = |columns: &usize| (width + GAP) / columns >= needed + GAP;
    let columns = [4, 2].into_iter().find(fitting).unwrap_or(1);
    let column = (width + GAP) / columns - GAP;
    let line = |row: &[(&'static str, String, Style)]| {
        let mut spans = Vec::new();
        for (label, value, style) in row {
            let space = column.saturating_sub(label.len());
            let dull = *style == look.dim();
            spans.push(Span::styled(
                label.to_string(),
                if dull { look.dim() } else { Style::new() },
            ));
            spans.push(Span::raw(" ".repeat(space.saturating_sub(value.len()))));
            spans.push(Span::styled(value.clone(), *style));
            spans.push(Span::raw(" ".repeat(GAP)));
        }
        spans.pop();
        Line::from(spans)
    };
    cells.chunks(columns).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::parse;

    const LOOK: Look = Look {
        colour: false,
        utf8: false,
        answered: true,
    };

    fn metrics(received: u32, lost: u32) -> Metrics {
        let label = "interface=\"eth0\",queue=\"0\",device=\"/dev/ng0n1\"";
        let text = format!(
            "unified_received_total{{{label}}} {received}\nunified_dropped_total{{{label},cause=\"no_frame\"}} {lost}\n\
             unified_link_up{{{label}}} 1\nunified_frames{{{label},state=\"free\"}} 64\n\
             unified_packet_latency_seconds_bucket{{{label},le=\"0.000005\"}} {received}\n\
             unified_packet_latency_seconds_bucket{{{label},le=\"+Inf\"}} {received}\n\
             unified_packet_latency_max_seconds{{{label}}} 0.0000045\n# EOF\n"
        );
        parse(&text).unwrap().remove(0)
    }

    fn text(view: &View, width: u16, height: u16) -> String {
        let lines = view.screen(width, height, LOOK, Line::raw("status"));
        let lines = lines.iter().map(|line| {
            assert!(line.width() <= width.into(), "{width}x{height}: {line}");
            line.to_string()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn rates_totals_and_losses_are_shown() {
        let mut view = View::default();
        view.add(0.0, metrics(1000, 0));
        view.add(2.0, metrics(3000, 5));
        let shown = text(&view, 100, 40);
        for part in [
            "eth0 queue 0 > /dev/ng0n1",
            "link up  XDP OFF",
            "1.00 k/s",
            "3 000",
            "LOST  5",
            "4.50 us",
            "FRAMES  64",
        ] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        // A recorder that does not answer, because it was killed, say, is in no known state.
        let gone = Look {
            answered: false,
            ..LOOK
        };
        let lines = view.screen(100, 40, gone, Line::raw("status"));
        let shown: String = lines.iter().map(|line| format!("{line}\n")).collect();
        assert!(shown.contains("NO ANSWER") && shown.contains("3 000"));
        for part in ["link up", "XDP", "/s"] {
            assert!(!shown.contains(part), "{part} is in\n{shown}");
        }
        // Started anew: what was before counts no more.
        view.add(3.0, metrics(10, 0));
        assert_eq!((view.rate("received"), view.lost()), (0.0, 0.0));
    }

    /// Of so many lanes and devices; device 1 is out.
    fn several(lanes: u32, devices: u32, n: u32) -> Metrics {
        let mut text = String::new();
        for lane in 0..lanes {
            let l = format!("interface=\"eth0\",lane=\"{lane}\",queue=\"{}\"", lane + 4);
            text += &format!("unified_received_total{{{l}}} {}\n", n * (lane + 1));
            text += &format!("unified_dropped_total{{{l},cause=\"no_frame\"}} {lane}\n");
            for device in 0..devices {
                let d = format!("{l},device=\"/dev/nvme{device}n1\"");
                text += &format!("unified_bytes_written_total{{{d}}} {}\n", n * 1000);
                text += &format!("unified_errors_total{{{d}}} {device}\n");
                text += &format!("unified_device_in_flight{{{d}}} {}\n", device * 7);
                text += &format!("unified_device_out{{{d}}} {}\n", u32::from(device == 1));
            }
        }
        parse(&(text + "# EOF\n")).unwrap().remove(0)
    }

    #[test]
    fn lanes_and_devices_have_rows() {
        let mut view = View::default();
        view.add(0.0, several(3, 2, 0));
        view.add(2.0, several(3, 2, 1000));
        let shown = text(&view, 100, 50);
        let row = |begin: &str| {
            let line = shown.lines().find(|line| line.starts_with(begin));
            let line = line.unwrap_or_else(|| panic!("no {begin} in\n{shown}"));
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            row("eth0 all"),
            "eth0 all 3 queues > 2 devices LINK DOWN XDP OFF"
        );
        assert_eq!(row("DEVICES"), "DEVICES now written read errors in flight");
        assert_eq!(
            row("/dev/nvme0n1"),
            "/dev/nvme0n1 1.50 MB/s 3.00 MB 0 B 0 0 ok"
        );
        assert_eq!(
            row("/dev/nvme1n1"),
            "/dev/nvme1n1 1.50 MB/s 3.00 MB 0 B 3 21 OUT"
        );
        assert_eq!(row("LANES"), "LANES received stored lost failed in flight");
        assert_eq!(row("2 queue 6"), "2 queue 6 1.50 k/s 0/s 2 0 0");
        // One that is out is seen first, in what room there is.
        let mut many = View::default();
        many.add(0.0, several(64, 16, 5));
        for (width, height) in [(60, 20), (79, 24), (80, 24), (120, 40), (200, 120)] {
            let shown = text(&many, width, height);
            let out = shown.find("/dev/nvme1n1");
            let out = out.unwrap_or_else(|| panic!("{width}x{height}:\n{shown}"));
            assert!(shown.find("/dev/nvme0n1").is_none_or(|other| out < other));
        }
        assert!(text(&many, 80, 24).contains(" more"));
        assert!(view.plain().ends_with(
            "; /dev/nvme0n1: written 3.00 MB, read 0 B, errors 0, in flight 0, ok\
             ; /dev/nvme1n1: written 3.00 MB, read 0 B, errors 3, in flight 21, OUT"
        ));
    }

    #[test]
    fn every_size_is_filled_and_never_left() {
        let mut view = View::default();
        view.add(0.0, metrics(1_000_000_000, 4_000_000_000));
        for (width, height) in [
            (1, 1),
            (40, 8),
            (41, 13),
            (60, 20),
            (78, 24),
            (80, 24),
            (300, 90),
        ] {
            let shown = text(&view, width, height);
            if width < NARROWEST {
                continue;
            }
            assert_eq!(shown.lines().count(), usize::from(height));
            assert!(shown.ends_with("status"));
            assert!(shown.contains("PACKETS"), "{shown}");
        }
    }
}
