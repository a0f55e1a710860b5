//! Reads logs of the slot layout: writes them as pcapng, or reports what is in them and what is not.
#![forbid(unsafe_code)]

mod output;

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
    /// Device or file
    path: PathBuf,
    /// Byte of the device at which the log's range begins
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// The spill: where the recorder put the writes that the device failed
    #[arg(long)]
    spill: Option<PathBuf>,
}

impl Log {
    fn open(&self) -> Outcome<LogReader> {
        let mut reader = LogReader::open(&self.path, self.start)?;
        if let Some(spill) = &self.spill {
            reader.add_spill(spill)?;
        }
        Ok(reader)
    }
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
        reader.seek(sequence);
    }
    if let Some(seconds) = since {
        reader.seek_time((seconds * 1e9) as u64)?;
    }
    let inputs = std::iter::once(&log.path).chain(&log.spill);
    let sink = output::create(output, inputs.map(PathBuf::as_path))?;
    let failed = |error| write_failed(output, error);
    let mut writer = PcapNgWriter::new(BufWriter::new(sink)).map_err(failed)?;
    let interface = InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: 0,
        options: interface_options(reader.superblock()),
    };
    writer.write_pcapng_block(interface).map_err(failed)?;
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
                let block = EnhancedPacketBlock {
                    interface_id: 0,
                    timestamp: Duration::from_nanos(header.timestamp),
                    original_len: packet.len() as u32,
                    data: packet.into(),
                    options: Vec::new(),
                };
                writer.write_pcapng_block(block).map_err(failed)?;
                written += 1;
                flushed = false;
            }
            Some(gap) => tell(format_args!("{}", describe(gap))),
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

fn interface_options(superblock: &Superblock) -> Vec<InterfaceDescriptionOption<'static>> {
    let name = superblock.interface_name().map(str::to_string);
    name.map(|name| InterfaceDescriptionOption::IfName(name.into()))
        .into_iter()
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

fn describe(item: Item) -> String {
    let range = |first: u64, count: u64| match count {
        1 => format!("record {first}"),
        _ => format!("records {first} to {}", first + count - 1),
    };
    match item {
        Item::Record { header, .. } => format!("record {}", header.sequence),
        Item::Gap {
            first,
            count,
            damaged: true,
        } => format!("{}: damaged", range(first, count)),
        Item::Gap { first, count, .. } => {
            format!("{}: never completed", range(first, count))
        }
        Item::Overwritten { first, count } => {
            format!("{}: overwritten before they were read", range(first, count))
        }
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
    let (mut first, mut last, mut bytes) = (None, 0, 0u64);
    while let Some(item) = reader.next_item()? {
        match item {
            Item::Record { header, packet } => {
                first.get_or_insert(header.timestamp);
                last = header.timestamp;
                bytes += packet.len() as u64;
            }
            gap => out.line(format_args!("{}", describe(gap)))?,
        }
    }
    let tally = reader.tally();
    let seconds = last.saturating_sub(first.unwrap_or(last)) as f64 / 1e9;
    out.line(format_args!(
        "{} records of {bytes} bytes over {seconds:.3} s; {} missing, {} damaged, {} overwritten",
        tally.records, tally.missing, tally.damaged, tally.overwritten
    ))?;
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
    Ok(tally.missing + tally.damaged + superblock.losses.total() == 0)
}
