//! Sends UDP payloads that identify themselves, and later finds them again on a device: every byte of
//! every payload follows from its number, so a single wrong, foreign or doubled one is seen.
#![forbid(unsafe_code)]

mod payload;
mod send;
mod stripe;
mod verify;

use std::fmt;
use std::io::{self, Error, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send payloads to a UDP address
    Send(send::Options),
    /// Read a device or file back and compare every byte with what was sent
    Verify(verify::Options),
}

/// A line on the standard output.
fn print(line: fmt::Arguments) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
        .map_err(|e| Error::new(e.kind(), format!("writing the standard output: {e}")))
}

fn main() -> ExitCode {
    // A reader of the output that has seen enough ends the program, as it ends others.
    sigpipe::reset();
    let result = match Cli::parse().command {
        Command::Send(options) => send::run(&options).map(|()| true),
        Command::Verify(options) => verify::run(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // If that cannot be written either, the exit code says it.
            let _ = writeln!(io::stderr(), "unified-traffic: {error}");
            ExitCode::from(2)
        }
    }
}
