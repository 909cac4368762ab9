//! The `loadtest` binary: reads the command line, runs, prints, and turns the result into an exit
//! status.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use loadtest::app;
use loadtest::args::{Args, Cli, Command, SearchArgs, SelfTestArgs};
use loadtest::config::Config;
use loadtest::page;
use loadtest::report::Report;
use loadtest::search::{self, SearchConfig, StopReason};
use loadtest::self_test::{self, Ladder};
use loadtest::table::Table;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut err = std::io::stderr();
    let is_clean = match cli.command {
        Some(Command::Search(args)) => search(*args),
        Some(Command::SelfTest(args)) => self_test(&args),
        Some(Command::Report { runs, output }) => page::write(&runs, &output).map(|()| true),
        None => run(cli.run).map(|report| report.is_clean()),
    };
    match is_clean {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let _ = writeln!(err, "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Finds a rate; true when one was found and confirmed.
fn search(args: SearchArgs) -> Result<bool> {
    let json = args.run.json.clone();
    let config = SearchConfig::try_from(args)?;
    let runtime = runtime()?;
    let report = runtime.block_on(search::search(&config, |probe| {
        // A closed standard error is no reason to end the measurement.
        let _ = writeln!(std::io::stderr(), "{probe}");
    }))?;
    write!(std::io::stdout(), "{report}")?;
    if let Some(path) = json {
        app::write_json(&report, &path)?;
    }
    Ok(report.stop == StopReason::Converged)
}

/// Measures the client itself; true when it keeps up with what was asked.
fn self_test(args: &SelfTestArgs) -> Result<bool> {
    let ladder = Ladder {
        wanted: args.events,
        highest: args.max_events,
        length: args.duration,
    };
    let report = runtime()?.block_on(self_test::run(ladder))?;
    write!(std::io::stdout(), "{report}")?;
    if let Some(path) = &args.json {
        app::write_json(&report, path)?;
    }
    Ok(report.passed)
}

/// One thread: time stamps come in order, and the load takes at most one core from the server.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    Ok(built?)
}

fn run(args: Args) -> Result<Report> {
    let json = args.json.clone();
    let config = Config::try_from(args)?;
    let report = runtime()?.block_on(app::measure(&config, async {
        // Without a handler for the signal the run simply cannot be cut short.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }))?;
    write!(std::io::stdout(), "{}", Table(&report))?;
    if let Some(path) = json {
        app::write_json(&report, &path)?;
    }
    Ok(report)
}
