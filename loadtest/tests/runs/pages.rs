//! Pages against the files that they are drawn from: every number that names its key is the one that stands there.

use std::path::{Path, PathBuf};
use std::slice::from_ref;

use loadtest::{page, repeat};
use serde_json::Value;

use crate::config;
use crate::fake::{Behaviour, FakeServer, MetricsPage};
use crate::tagged::{Tag, at, says, tags};

/// What a tag should be by the groups of a page.
fn expected(tag: &Tag, groups: &[Vec<Value>]) -> f64 {
    let words: Vec<&str> = tag.of.split(' ').collect();
    let number = |i: usize| words[i].parse::<usize>().unwrap() - 1;
    let group = &groups[number(1)];
    let all = || group.iter();
    let counted = || all().filter(|run| run["verdict"] != "invalid");
    let n = counted().count();
    let values: Vec<f64> = match words[0] {
        "run" => vec![at(&group[number(2)], &tag.key)],
        "total" => all().map(|run| at(run, &tag.key)).collect(),
        "mean" | "sum" | "low" | "high" if n == 0 => all().map(|run| at(run, &tag.key)).collect(),
        "mean" | "sum" | "low" | "high" => counted().map(|run| at(run, &tag.key)).collect(),
        other => panic!("{other}"),
    };
    let sum: f64 = values.iter().sum();
    let interval = || loadtest::interval::of_mean(&values).unwrap();
    match words[0] {
        "low" => interval().low.max(0.0),
        "high" => interval().high,
        "mean" => sum / values.len() as f64,
        _ => sum,
    }
}

/// Draws a page and holds its numbers against the results; gives the keys that it has.
fn check(places: &[PathBuf], groups: &[Vec<PathBuf>]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report.html");
    page::write(places, &out).unwrap();
    let read = |run: &PathBuf| -> Value {
        let text = std::fs::read_to_string(run.join("run.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let groups: Vec<Vec<Value>> = groups
        .iter()
        .map(|runs| runs.iter().map(read).collect())
        .collect();
    let tags = tags(&std::fs::read_to_string(&out).unwrap());
    for tag in &tags {
        tag.check(expected(tag, &groups));
    }
    tags.into_iter()
        .map(|tag| format!("{} {}", tag.of, tag.key))
        .collect()
}

fn has(keys: &[String], wanted: &[&str]) {
    for key in wanted {
        assert!(keys.iter().any(|known| known == key), "{key}: {keys:?}");
    }
}

fn runs(folder: &Path, n: usize) -> Vec<PathBuf> {
    (1..=n).map(|i| folder.join(i.to_string())).collect()
}

#[tokio::test]
async fn the_numbers_of_a_run_are_those_of_its_file() {
    let script = [Behaviour::Ok, Behaviour::Status(500, "broken")];
    let server = FakeServer::start(&script, MetricsPage::Honest).await;
    let folder = tempfile::tempdir().unwrap();
    let line = "--requests 40 --users 4 --output-tokens 8 --slo ttft=10s,attainment=0.1 --price-per-hour 0.75 --name half";
    let mut config = config(&server, line);
    config.watches_machine = true;
    let (run, _) = repeat::run(&[config], 1, folder.path(), |_| ())
        .await
        .unwrap();
    let keys = check(from_ref(&run), &[vec![run.clone()]]);
    has(
        &keys,
        &[
            "mean 1 rates.output_tokens",
            "mean 1 goodput.requests_per_second",
            "mean 1 goodput.attainment.value",
            "mean 1 latency.ttft.p50",
            "mean 1 latency.e2e.p50",
            "sum 1 requests.measured",
            "mean 1 cost.uses.2.per_million_output_tokens",
            "mean 1 cost.uses.0.per_million_total_tokens",
            "mean 1 cost.price.per_hour",
            "sum 1 requests.succeeded",
            "run 1 1 latency.chunk_gap.mean",
            "run 1 1 client.send_lag.max",
            "run 1 1 outcomes.http_5xx.count",
            "run 1 1 window.seconds",
            "mean 1 rates.offered_requests",
            "mean 1 rates.users_by_little",
            "run 1 1 rates.in_flight_mean",
            "run 1 1 server.in_window.grown.generation_tokens",
            "run 1 1 calibration.memory_read_bytes_per_second.before",
            "run 1 1 calibration.memory_read_bytes_per_second.after",
        ],
    );
    // Failures are seen where they were to start.
    let text = std::fs::read_to_string(run.join("run.json")).unwrap();
    let result: Value = serde_json::from_str(&text).unwrap();
    let failures = result["failures"].as_array().unwrap();
    assert_eq!(failures.len() as f64, at(&result, "requests.failed"));
    assert!(!failures.is_empty());
    assert!(
        failures
            .iter()
            .all(|f| f["outcome"] == "http_5xx" && f["t"].is_number())
    );
    let drawn = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert_eq!(
        drawn.matches("<path class=\"stroke\"").count(),
        failures.len()
    );
}

#[tokio::test]
async fn the_numbers_of_repeats_and_comparisons_are_those_of_their_files() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| {
        let line = format!("--requests 30 --users 2 --output-tokens 8 --name {name}");
        config(&server, &line)
    });
    let (repeats, _) = repeat::run(from_ref(&first), 2, &folder.path().join("a"), |_| ())
        .await
        .unwrap();
    let keys = check(from_ref(&repeats), &[runs(&repeats, 2)]);
    has(
        &keys,
        &[
            "mean 1 rates.output_tokens",
            "run 1 2 latency.ttft.p50",
            "run 1 2 load.seed",
            "run 1 2 latency.e2e.mean",
            "low 1 rates.output_tokens",
            "high 1 latency.ttft.p50",
            "run 1 2 server.checks.0.client.0",
            "run 1 2 server.checks.0.server",
        ],
    );
    let (compared, _) = repeat::run(&[first, second], 2, &folder.path().join("b"), |_| ())
        .await
        .unwrap();
    let sides = ["1-first", "2-second"].map(|side| runs(&compared.join(side), 2));
    let keys = check(&[compared], &sides);
    has(
        &keys,
        &[
            "mean 1 rates.output_tokens",
            "mean 2 rates.output_tokens",
            "total 2 requests.failed",
            "run 2 1 latency.ttft.p50",
        ],
    );
}

#[tokio::test]
async fn the_numbers_of_an_index_are_those_of_its_file() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        let line = format!("--requests 8 --output-tokens 8 --name {name} --model {name}");
        repeat::run(
            &[config(&server, &line)],
            2,
            &folder.path().join(name),
            |_| (),
        )
        .await
        .unwrap();
    }
    page::index::write(folder.path()).unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let index: Value = serde_json::from_str(&read("index.json")).unwrap();
    let tags = tags(&read("index.html"));
    for tag in &tags {
        assert_eq!(tag.of, "index");
        tag.check(at(&index, &tag.key));
    }
    let keys: Vec<&str> = tags.iter().map(|tag| tag.key.as_str()).collect();
    for key in [
        "output_tokens_per_second",
        "ttft_p50_seconds",
        "tpot_p50_seconds",
    ] {
        assert!(
            keys.contains(&format!("results.1.{key}.mean").as_str()),
            "{keys:?}"
        );
    }
}

#[test]
fn a_number_that_is_not_what_it_says_is_seen() {
    for (text, value) in [
        ("12.3 ms", 0.012_34),
        ("101 ± 4 /s", 100.7),
        ("97.5 %", 0.975_4),
    ] {
        assert!(says(text, value), "{text}");
    }
    for (text, value) in [
        ("12.3 ms", 0.0125),
        ("12.3 s", 0.0123),
        ("101 ± 4 /s", 101.6),
    ] {
        assert!(!says(text, value), "{text}");
    }
}
