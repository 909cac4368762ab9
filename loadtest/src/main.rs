//! The `loadtest` binary: reads the command line, runs, prints, and turns the result into an exit
//! status.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use loadtest::app;
use loadtest::args::{Args, Cli, Command, CompareArgs, SearchArgs, SelfTestArgs, SuiteArgs};
use loadtest::command::command_line;
use loadtest::config::Config;
use loadtest::page;
use loadtest::repeat;
use loadtest::report::Report;
use loadtest::results::{PAGE, new_folder, write_json, write_search};
use loadtest::search::{self, SearchConfig, StopReason};
use loadtest::self_test::{self, Ladder};
use loadtest::suite::{self, Suite};
use loadtest::table::{Line, Table};
use loadtest::write_up;

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    cli.run.command = command_line(std::env::args());
    let mut err = std::io::stderr();
    let is_clean = match cli.command {
        Some(Command::Search(mut args)) => {
            args.run.command = cli.run.command;
            search(*args)
        }
        Some(Command::SelfTest(args)) => self_test(&args),
        Some(Command::Compare(mut args)) => {
            args.run.command = cli.run.command;
            compare(*args)
        }
        Some(Command::Suite(args)) => suite(&args),
        Some(Command::WriteUp {
            suite,
            results,
            pages,
        }) => Suite::read(&suite)
            .and_then(|suite| write_up::run(&suite, results.as_deref(), &pages))
            .map(|()| true),
        Some(Command::Index { folder }) => page::index::write(&folder).map(|()| true),
        Some(Command::Report { runs, output }) => page::write(&runs, &output).map(|()| true),
        None => run(cli.run),
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
    let (json, results) = (args.run.json.clone(), args.run.results.clone());
    ensure!(
        args.run.repeats == 1,
        "--repeats has no use in a search, which confirms its rate itself"
    );
    let config = SearchConfig::try_from(args)?;
    let runtime = runtime()?;
    let report = runtime.block_on(search::search(&config, |probe| {
        // A closed standard error is no reason to end the measurement.
        let _ = writeln!(std::io::stderr(), "{probe}");
    }))?;
    write!(std::io::stdout(), "{report}")?;
    if let Some(path) = json {
        write_json(&path, &report)?;
    }
    if let (Some(parent), Some(setting)) = (results, &report.setting) {
        let folder = new_folder(&parent, &setting.started, &setting.name)?;
        write_search(&folder, &report)?;
        writeln!(std::io::stdout(), "{}", folder.join(PAGE).display())?;
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
        write_json(path, &report)?;
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

/// Runs once or several times; true when every run is clean.
fn run(args: Args) -> Result<bool> {
    let (json, results, repeats) = (args.json.clone(), args.results.clone(), args.repeats);
    let config = Config::try_from(args)?;
    let Some(results) = results else {
        let report = runtime()?.block_on(app::measure(&config, repeat::interrupted()))?;
        write!(std::io::stdout(), "{}", Table(&report))?;
        if let Some(path) = json {
            write_json(&path, &report)?;
        }
        return Ok(report.is_clean());
    };
    let runs = runtime()?.block_on(repeat::run(&[config], repeats, &results, |report| {
        if repeats == 1 {
            // A closed standard output is no reason to lose the results.
            let _ = write!(std::io::stdout(), "{}", Table(report));
        } else {
            tell(report);
        }
    }))?;
    if let (Some(path), [report]) = (json, &runs.1[..]) {
        write_json(&path, report)?;
    }
    close(&runs)
}

/// Measures two servers by turns; true when every run is clean.
fn compare(mut args: CompareArgs) -> Result<bool> {
    let results = args.run.results.get_or_insert_with(|| "results".into());
    let results = results.clone();
    let each = args.each().map_err(anyhow::Error::msg)?;
    let sides = each.into_iter().map(Config::try_from);
    let sides = sides.collect::<Result<Vec<_>>>()?;
    let runs = runtime()?.block_on(repeat::run(&sides, args.pairs, &results, tell))?;
    close(&runs)
}

/// Runs a suite; true when every cell was measured or said why not.
fn suite(args: &SuiteArgs) -> Result<bool> {
    let suite = Suite::read(&args.file)?;
    if args.plan {
        writeln!(std::io::stdout(), "{}", suite::plan(&suite))?;
        return Ok(true);
    }
    runtime()?.block_on(suite::run(&suite, args, |line| {
        // A closed standard output is no reason to lose the results.
        let _ = writeln!(std::io::stdout(), "{line}");
    }))
}

/// One run of several in one line.
fn tell(report: &Report) {
    let _ = writeln!(std::io::stderr(), "{}", Line(report));
}

/// Says where the results are.
fn close((folder, reports): &(PathBuf, Vec<Report>)) -> Result<bool> {
    writeln!(std::io::stdout(), "{}", page::summary(folder)?)?;
    writeln!(std::io::stdout(), "{}", folder.join(PAGE).display())?;
    Ok(reports.iter().all(Report::is_clean))
}
