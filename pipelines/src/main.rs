//! `vw2-pipe`: parse, call the command, print the error, give the exit code.
//!
//! Data goes to stdout, talk to stderr. Exit codes: 0 done, 1 done but above `max_quarantined` or a store is damaged,
//! 2 could not run, 130 interrupted.

#![forbid(unsafe_code)]

mod cli;

mod commands;

mod loading;
mod numbered;
mod progress;
mod text;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("VW2_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match &cli.command {
        Command::Run(args) => commands::run::run(args),
        Command::Plan(args) => commands::plan::plan(args),
        Command::Stages(args) => commands::stages::stages(args),
        Command::Devices(args) => commands::devices::devices(args),
        Command::Status(args) => commands::status::status(args),
        Command::Quarantine(args) => commands::quarantine::quarantine(args),
        Command::Gc(args) => commands::gc::gc(args),
        Command::Verify(args) => commands::verify::verify(args),
        Command::Show(args) => commands::show::show(args),
        Command::Convert(args) => commands::convert::convert(args),
    };
    done.unwrap_or_else(|error| {
        text::say(format_args!("{error:?}"));
        ExitCode::from(cli::COULD_NOT_RUN)
    })
}
