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
mod cuda;
mod devices;
mod embeddings;
mod eval;
mod health;
mod load;
mod logging;
mod manual;
mod model_source;
mod progress;
mod quantize;
mod serve;
mod supervisor;
mod target;
#[cfg(feature = "cuda")]
mod tuning;

use std::io::Write;
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
    let cli = Cli::try_parse().unwrap_or_else(|error| args::name_variable(error).exit());
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
        Some(Command::Models) => say(&devices::models()?),
        Some(Command::Devices(args)) => say(&devices::devices(&args)?),
        Some(Command::Chat(args)) => chat::run(&args),
        Some(Command::Bench(args)) => bench::run(*args),
        Some(Command::Eval(args)) => eval::run(&args),
        Some(Command::Health(args)) => health::run(&args),
        Some(Command::Completions { shell }) => manual::completions(shell),
        Some(Command::Man) => manual::man(),
        Some(Command::Quantize(args)) => say(&quantize::run(&args)?),
    }
}

/// Prints a text; a reader that has seen enough is no error.
fn say(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
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
