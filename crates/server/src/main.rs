//! The octet binary: arguments, configuration, wiring, signals.
#![allow(
    clippy::print_stdout,
    reason = "a program talks on its standard output"
)]

mod args;
mod banner;
mod bench;
mod chat;
mod config;
mod devices;
mod load;
mod logging;
mod progress;
mod serve;
mod target;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};

use args::{Cli, Command};

/// The source revision, where the build knew it.
const COMMIT: &str = match option_env!("OCTET_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("octet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if cli.help_all {
        return help_all();
    }
    match cli.command {
        None => serve::run(cli.serve),
        Some(Command::Serve(args)) => serve::run(*args),
        Some(Command::Models) => {
            devices::print_models();
            Ok(())
        }
        Some(Command::Devices(args)) => devices::print_devices(&args),
        Some(Command::Chat(args)) => chat::run(&args),
        Some(Command::Bench(args)) => bench::run(*args),
    }
}

/// The help of `serve` with every flag.
fn help_all() -> Result<()> {
    let mut command = Cli::command().mut_subcommand("serve", |serve| {
        serve
            .mut_args(|arg| arg.hide(false))
            .bin_name("octet serve")
    });
    let serve = command
        .find_subcommand_mut("serve")
        .expect("serve is a subcommand");
    Ok(serve.print_long_help()?)
}
