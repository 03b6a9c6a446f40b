//! The program `vionet`.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vionetd::cli::{Cli, Command, with_command};
use vionetd::{bench, demo, doctor, serve};

fn main() -> ExitCode {
    let cli = Cli::parse_from(with_command(std::env::args_os()));
    let result = match &cli.command {
        Command::Serve(args) => {
            log_to_stderr(args.verbose, args.quiet);
            serve::run(args)
        }
        Command::Demo(args) => {
            log_to_stderr(0, true);
            demo::run(args)
        }
        Command::Bench(args) => {
            log_to_stderr(0, true);
            bench::run(args)
        }
        Command::Inspect(args) => serve::inspect(args),
        Command::Control(args) => serve::change(args),
        Command::Doctor(args) => {
            doctor::run(args.json);
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            eprintln!("vionet: {stop}");
            stop.code.into()
        }
    }
}

/// Human lines on standard error; `VIONET_LOG` overrides what is shown.
fn log_to_stderr(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_env("VIONET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
