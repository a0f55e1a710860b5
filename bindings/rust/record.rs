//! Records packets as a log until COUNT are stored, then reads the log back.
//!
//!     cargo run --release --example record IFACE FILE COUNT

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use unified::Result;
use unified::config::Config;
use unified::context::Context;
use unified::log_reader::{Item, LogReader};
use unified::pipeline::{Pipeline, PipelineConfig, StoreLayout};

/// Runs a pipeline until `count` packets are stored; says how many are.
fn record(iface: &str, path: &str, count: u64) -> Result<u64> {
    let mut config = Config {
        ifname: Some(iface.into()),
        ..Config::default()
    };
    config.device.path = path.into();
    config.device.file_size = 64 << 20;
    let context = Arc::new(Context::open(&config)?);
    let pipeline = Pipeline::start(
        context.clone(),
        PipelineConfig {
            layout: StoreLayout::Slot,
            ..PipelineConfig::default()
        },
    )?;
    let info = context.info();
    println!(
        "Receiving on {iface}, recording on {} ({})",
        info.devices[0].path,
        info.devices[0].kind.name()
    );
    loop {
        let now = pipeline.status();
        if now.stored + now.failed >= count || !now.running {
            break;
        }
        sleep(Duration::from_millis(10));
    }
    let (end, flushed) = pipeline.stop();
    flushed?;
    Ok(end.stored)
}

/// The records and the gaps that the log holds. The reader checks every record's sums.
fn read_back(path: &str) -> Result<(u64, u64)> {
    let mut log = LogReader::open(Path::new(path), 0)?;
    let (mut records, mut gaps) = (0, 0);
    while let Some(item) = log.next_item()? {
        match item {
            Item::Record { .. } => records += 1,
            Item::Gap { count, .. } | Item::Overwritten { count, .. } => gaps += count,
        }
    }
    Ok((records, gaps))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (iface, path, count) = match words.as_slice() {
        [iface, path, count] if count.parse::<u64>().is_ok_and(|n| n > 0) => {
            (iface, path, count.parse().unwrap_or_default())
        }
        _ => {
            eprintln!("usage: record IFACE FILE COUNT");
            return ExitCode::from(2);
        }
    };
    let result =
        record(iface, path, count).and_then(|stored| read_back(path).map(|found| (stored, found)));
    match result {
        Ok((stored, (records, gaps))) => {
            println!("Stored {stored}, read back {records}, {gaps} missing");
            ExitCode::from(u8::from(records != stored || gaps != 0))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
