//! Whole runs against a scripted server: every outcome class, exact counts, and reconciliation.

mod connections;
#[path = "../fake/mod.rs"]
mod fake;
mod lengths;
mod loops;
mod outcomes;
mod pages;
mod requests;
mod results;
mod searches;
mod server;
#[path = "../tagged/mod.rs"]
mod tagged;

use clap::Parser;
use fake::FakeServer;
use loadtest::app;
use loadtest::args::Args;
use loadtest::config::Config;
use loadtest::reconcile::{Check, Verdict};
use loadtest::report::Report;

fn config(server: &FakeServer, line: &str) -> Config {
    let url = format!("http://{}", server.address);
    let fixed = ["loadtest", "--quiet", "--url", &url];
    let args = Args::try_parse_from(fixed.into_iter().chain(line.split_whitespace())).unwrap();
    Config::try_from(args).unwrap()
}

async fn measure(server: &FakeServer, line: &str) -> Report {
    app::measure(&config(server, line), std::future::pending())
        .await
        .unwrap()
}

fn count(report: &Report, class: &str) -> u64 {
    report
        .outcomes
        .get(class)
        .map_or(0, |outcome| outcome.count)
}

fn failed_checks(report: &Report) -> Vec<&Check> {
    report
        .server
        .reconciliation
        .checks
        .iter()
        .filter(|check| check.verdict == Verdict::Fail)
        .collect()
}

/// Every check with an exact count on both sides.
fn exact_passes(report: &Report) -> Vec<String> {
    let checks = &report.server.reconciliation.checks;
    let exact = checks
        .iter()
        .filter(|c| c.verdict == Verdict::Pass && c.client.1 == Some(c.client.0));
    exact.map(|check| check.what.clone()).collect()
}
