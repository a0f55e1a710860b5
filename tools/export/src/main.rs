//! Reads logs: writes them as pcapng, or reports what is in them and what is not.
#![forbid(unsafe_code)]

mod output;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::{DataLink, PcapError};
use unified::log_reader::{Item, LogReader};
use unified::record::Superblock;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the log as pcapng, which tshark, tcpdump and Wireshark open
    Pcapng {
        #[command(flatten)]
        log: Log,
        /// File to write; - is the standard output
        output: PathBuf,
        /// Start at this sequence number
        #[arg(long, conflicts_with = "since")]
        from: Option<u64>,
        /// Start at this time, in seconds since 1970-01-01 UTC
        #[arg(long)]
        since: Option<f64>,
        /// Stop after this many records (default: at the end of the log)
        #[arg(long)]
        count: Option<u64>,
        /// Follow the growing log until no record has come for this many seconds; without a number, until a signal
        #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "18446744073709551615")]
        follow: Option<u64>,
    },
    /// Report what the log holds, its gaps, and what was lost; the exit code is 1 if there is a gap or a loss
    Report {
        #[command(flatten)]
        log: Log,
    },
}

#[derive(Args)]
struct Log {
    /// Device or file; of a recording over several, all of them, separated by commas, in any order
    #[arg(
        value_delimiter = ',',
        required = true,
        num_args = 1,
        value_name = "PATH[,PATH...]"
    )]
    paths: Vec<PathBuf>,
    /// Byte of the device at which the log's range begins: one for all devices, or one for each
    #[arg(long, value_delimiter = ',', default_value = "0")]
    start: Vec<u64>,
    /// The spill: where the recorder put the writes that the device failed; one for each device, empty for one without
    #[arg(long, value_delimiter = ',')]
    spill: Vec<PathBuf>,
}

impl Log {
    fn open(&self) -> Outcome<LogReader> {
        let count = self.paths.len();
        if self.start.len() > 1 && self.start.len() != count {
            return Err(format!(
                "--start has {} numbers for {count} devices: give one, or one for each",
                self.start.len()
            )
            .into());
        }
        if self.spill.len() > count {
            return Err(format!(
                "--spill has {} paths for {count} devices: give one for each",
                self.spill.len()
            )
            .into());
        }
        let starts = self.start.iter().copied().cycle();
        let devices: Vec<_> = self.paths.iter().cloned().zip(starts).collect();
        let mut reader = LogReader::open_set(&devices)?;
        for (place, spill) in self.spills() {
            reader.add_spill_of(place, spill)?;
        }
        Ok(reader)
    }

    /// By the place of their device.
    fn spills(&self) -> impl Iterator<Item = (usize, &PathBuf)> {
        let all = self.spill.iter().enumerate();
        all.filter(|(_, path)| !path.as_os_str().is_empty())
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let spills = self.spills().map(|(_, path)| path);
        self.paths.iter().chain(spills).map(PathBuf::as_path)
    }
}

/// Which devices of the recording were not given; `None` if all were.
fn missing_devices(reader: &LogReader) -> Option<String> {
    let missing = reader.missing_devices();
    let (all, _) = reader.devices();
    let numbers: Vec<String> = missing.iter().map(u16::to_string).collect();
    let (device, is) = match numbers.len() {
        0 => return None,
        1 => ("device", "is"),
        _ => ("devices", "are"),
    };
    Some(format!(
        "{device} {} of the recording {:016x}, which has {all} (0 to {}), {is} not read: what only they have is missing",
        numbers.join(", "),
        reader.superblock().log_id,
        all - 1
    ))
}

/// Prints a progress line. An error is ignored.
fn tell(line: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The output of a report.
struct Output(io::StdoutLock<'static>);

impl Output {
    fn stdout() -> Output {
        Output(io::stdout().lock())
    }

    fn line(&mut self, line: fmt::Arguments) -> Outcome<()> {
        writeln!(self.0, "{line}").map_err(|e| format!("writing the standard output: {e}").into())
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    // A reader of the output that has seen enough ends the program, as it ends others.
    sigpipe::reset();
    let result = match Cli::parse().command {
        Command::Pcapng {
            log,
            output,
            from,
            since,
            count,
            follow,
        } => pcapng(
            &log,
            &output,
            from,
            since,
            count.unwrap_or(u64::MAX),
            follow,
        ),
        Command::Report { log } => report(&log),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tell(format_args!("unified-export: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Lanes that are described before their first packet, at most.
const MOST_INTERFACES: u16 = 64;

/// Nanoseconds: pcapng's if_tsresol, 10 to the minus 9.
const NANOSECONDS: u8 = 9;

fn pcapng(
    log: &Log,
    output: &Path,
    from: Option<u64>,
    since: Option<f64>,
    count: u64,
    follow: Option<u64>,
) -> Outcome<bool> {
    let ended = ended_by_a_signal()?;
    let mut reader = log.open()?;
    if let Some(sequence) = from {
        reader.seek(sequence)?;
    }
    if let Some(seconds) = since {
        reader.seek_time((seconds * 1e9) as u64)?;
    }
    if let Some(missing) = missing_devices(&reader) {
        tell(format_args!("{missing}"));
    }
    let sink = output::create(output, log.files())?;
    let failed = |error| write_failed(output, error);
    let mut writer = PcapNgWriter::new(BufWriter::new(sink)).map_err(failed)?;
    // An interface for each lane: pcapng has no other place for it. A lane that comes later gets its own when it does.
    let mut interfaces = vec![None; 1 << 16];
    let lanes = reader.lanes();
    let mut described = 0;
    let mut describe_lane = |writer: &mut PcapNgWriter<_>, superblock: &Superblock, lane: u16| {
        let place = &mut interfaces[usize::from(lane)];
        if let Some(id) = *place {
            return Ok(id);
        }
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: 0,
            options: interface_options(superblock, (lanes > 1).then_some(lane)),
        };
        *place = Some(described);
        described += 1;
        writer.write_pcapng_block(interface)?;
        Ok::<u32, PcapError>(described - 1)
    };
    for lane in 0..lanes.min(MOST_INTERFACES) {
        describe_lane(&mut writer, reader.superblock(), lane).map_err(failed)?;
    }
    // The reader lends its records.
    let about = *reader.superblock();
    let mut written = 0u64;
    let mut latest = reader.superblock().created;
    let mut last = Instant::now();
    let mut flushed = true;
    // Asked after each block, so that the file never ends inside one.
    while written < count && !ended.load(Ordering::Relaxed) {
        let item = match follow {
            None => reader.next_item()?,
            // Before it waits, whoever reads gets what there is.
            Some(_) if flushed => reader.follow(LOOK)?,
            Some(_) => reader.follow(Duration::ZERO)?,
        };
        if item.is_some() {
            last = Instant::now();
        }
        match item {
            None if !flushed => {
                writer
                    .get_mut()
                    .flush()
                    .map_err(|e| failed(PcapError::IoError(e)))?;
                flushed = true;
            }
            None if follow.is_some_and(|seconds| last.elapsed() < Duration::from_secs(seconds)) => {
            }
            None => break,
            Some(Item::Record { header, packet }) => {
                latest = latest.max(header.timestamp);
                let lane = if lanes > 1 { header.lane } else { 0 };
                let interface_id = describe_lane(&mut writer, &about, lane).map_err(failed)?;
                let block = EnhancedPacketBlock {
                    interface_id,
                    timestamp: Duration::from_nanos(header.timestamp),
                    original_len: packet.len() as u32,
                    data: packet.into(),
                    options: Vec::new(),
                };
                writer.write_pcapng_block(block).map_err(failed)?;
                written += 1;
                flushed = false;
            }
            Some(gap) => tell(format_args!("{}", describe(gap, lanes > 1))),
        }
    }
    // Of the whole recording, also if only some of it was exported: that is what such a block says.
    let end = reader.end()?;
    if let Some(block) = statistics(reader.superblock(), end, latest) {
        writer.write_pcapng_block(block).map_err(failed)?;
    }
    writer
        .get_mut()
        .flush()
        .map_err(|e| failed(PcapError::IoError(e)))?;
    tell(format_args!("{written} packets"));
    let losses = reader.superblock().losses;
    if losses.total() > 0 {
        tell(format_args!("{}", describe_losses(reader.superblock())));
    }
    // Followers are meant to be ended so; otherwise records may be missing.
    Ok(follow.is_some() || !ended.load(Ordering::Relaxed))
}

/// The crate's error for a failed write does not name the file.
fn write_failed(output: &Path, error: PcapError) -> String {
    let name = match output.as_os_str() == "-" {
        true => "the standard output".to_string(),
        false => format!("'{}'", output.display()),
    };
    match error {
        PcapError::IoError(error) => {
            format!("writing {name}: {error}; what is there already is cut short")
        }
        other => format!("writing {name}: {other}"),
    }
}

/// `lane`: which it is, if there are several.
fn interface_options(
    superblock: &Superblock,
    lane: Option<u16>,
) -> Vec<InterfaceDescriptionOption<'static>> {
    let name = superblock.interface_name().map(str::to_string);
    let description = lane.map(|lane| format!("lane {lane}"));
    name.map(|name| InterfaceDescriptionOption::IfName(name.into()))
        .into_iter()
        .chain(description.map(|text| InterfaceDescriptionOption::IfDescription(text.into())))
        .chain([InterfaceDescriptionOption::IfTsResol(NANOSECONDS)])
        .collect()
}

/// Packets that came to the interface for this log, and those that are not in it; `None` if the recorder did not record that.
fn statistics(
    superblock: &Superblock,
    recorded: u64,
    latest: u64,
) -> Option<InterfaceStatisticsBlock<'static>> {
    superblock.interface_name()?;
    let losses = superblock.losses;
    Some(InterfaceStatisticsBlock {
        interface_id: 0,
        timestamp: halves(latest.max(losses.last)),
        options: vec![
            InterfaceStatisticsOption::IsbStartTime(halves(superblock.created)),
            InterfaceStatisticsOption::IsbIfRecv(recorded.saturating_add(losses.total())),
            InterfaceStatisticsOption::IsbIfDrop(losses.total()),
        ],
    })
}

/// A time as the crate is to be given it: the format has the upper half first in either byte order, and the crate writes a
/// whole number.
fn halves(time: u64) -> u64 {
    match cfg!(target_endian = "little") {
        true => time.rotate_left(32),
        false => time,
    }
}

fn describe_losses(superblock: &Superblock) -> String {
    let losses = superblock.losses;
    let seconds = |ns: u64| ns as f64 / 1e9;
    let times = match losses.total() {
        0 => String::new(),
        // As --since takes them.
        _ => format!(
            "; noticed from {:.3} to {:.3} (seconds since 1970)",
            seconds(losses.first),
            seconds(losses.last)
        ),
    };
    format!(
        "lost before they could be recorded: {} dropped by the kernel, {} seen and not recorded{times}",
        losses.dropped, losses.unrecorded
    )
}

/// How often a follower checks whether to end.
const LOOK: Duration = Duration::from_millis(50);

/// Set by the first SIGINT, SIGTERM or SIGHUP. A second one ends the program at once.
fn ended_by_a_signal() -> Outcome<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_shutdown(signal, 128 + signal, ended.clone())?;
        flag::register(signal, ended.clone())?;
    }
    Ok(ended)
}

/// `lanes`: there are several.
fn describe(item: Item, lanes: bool) -> String {
    let range = |lane: u16, first: u64, count: u64| {
        let lane = match lanes {
            true => format!("lane {lane}, "),
            false => String::new(),
        };
        match count {
            1 => format!("{lane}record {first}"),
            _ => format!("{lane}records {first} to {}", first + count - 1),
        }
    };
    match item {
        Item::Record { header, .. } => range(header.lane, header.sequence, 1),
        Item::Gap {
            lane,
            first,
            count,
            damaged: true,
        } => format!("{}: damaged", range(lane, first, count)),
        Item::Gap {
            lane, first, count, ..
        } => format!("{}: never completed", range(lane, first, count)),
        Item::Overwritten { lane, first, count } => format!(
            "{}: overwritten before they were read",
            range(lane, first, count)
        ),
    }
}

/// What a lane has.
#[derive(Default)]
struct LaneReport {
    /// Records from each device.
    records: BTreeMap<u16, u64>,
    missing: u64,
    damaged: u64,
    overwritten: u64,
}

impl LaneReport {
    fn line(&self, lane: u16) -> String {
        let each: Vec<String> = self
            .records
            .iter()
            .map(|(device, records)| format!("{records} from device {device}"))
            .collect();
        let from = match each.len() {
            0 => String::new(),
            _ => format!(" ({})", each.join(", ")),
        };
        format!(
            "lane {lane}: {} records{from}; {} missing, {} damaged, {} overwritten",
            self.records.values().sum::<u64>(),
            self.missing,
            self.damaged,
            self.overwritten
        )
    }
}

fn report(log: &Log) -> Outcome<bool> {
    let mut reader = log.open()?;
    let mut out = Output::stdout();
    let superblock = *reader.superblock();
    out.line(format_args!(
        "log {:016x}: version {}, {} slots of {} bytes, blocks of {}, {}",
        superblock.log_id,
        reader.version(),
        superblock.slots,
        superblock.slot_size,
        superblock.block_size,
        if superblock.wraps {
            "wraps"
        } else {
            "ends when full"
        }
    ))?;
    out.line(format_args!(
        "oldest {}, end {}",
        reader.oldest()?,
        reader.end()?
    ))?;
    let (devices, given) = reader.devices();
    let lanes = reader.lanes();
    let several = lanes > 1 || devices > 1;
    if several {
        out.line(format_args!("{given} of {devices} devices, {lanes} lanes"))?;
    }
    let lost = missing_devices(&reader);
    if let Some(lost) = &lost {
        out.line(format_args!("{lost}"))?;
    }
    let mut by_lane: BTreeMap<u16, LaneReport> = BTreeMap::new();
    let (mut first, mut last, mut bytes) = (None, 0, 0u64);
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Record { header, .. } => {
                let lane = by_lane.entry(header.lane).or_default();
                *lane.records.entry(header.device).or_default() += 1;
            }
            Item::Gap {
                lane,
                count,
                damaged,
                ..
            } => {
                let lane = by_lane.entry(lane).or_default();
                match damaged {
                    true => lane.damaged += count,
                    false => lane.missing += count,
                }
            }
            Item::Overwritten { lane, count, .. } => {
                by_lane.entry(lane).or_default().overwritten += count;
            }
        }
        match item {
            Item::Record { header, packet } => {
                first.get_or_insert(header.timestamp);
                last = header.timestamp;
                bytes += packet.len() as u64;
            }
            gap => out.line(format_args!("{}", describe(gap, lanes > 1)))?,
        }
    }
    let tally = reader.tally();
    let seconds = last.saturating_sub(first.unwrap_or(last)) as f64 / 1e9;
    out.line(format_args!(
        "{} records of {bytes} bytes over {seconds:.3} s; {} missing, {} damaged, {} overwritten",
        tally.records, tally.missing, tally.damaged, tally.overwritten
    ))?;
    if several {
        for (lane, report) in &by_lane {
            out.line(format_args!("{}", report.line(*lane)))?;
        }
    }
    // Again, for a recorder may have gone on.
    reader.end()?;
    let superblock = reader.superblock();
    match superblock.interface_name() {
        Some(name) => out.line(format_args!(
            "interface {name}; {}",
            describe_losses(superblock)
        ))?,
        None => out.line(format_args!(
            "losses are not known: the recorder did not say"
        ))?,
    }
    Ok(tally.missing + tally.damaged + superblock.losses.total() == 0 && lost.is_none())
}
