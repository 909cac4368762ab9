//! Searches for the highest rate, and for the most users.

use crate::fake::{Behaviour, FakeServer, MetricsPage};
use clap::Parser;
use loadtest::args::SearchArgs;
use loadtest::page;
use loadtest::results;
use loadtest::search::{self, ProbeKind, ProbeVerdict, SearchConfig, SearchReport, StopReason};

async fn find(server: &FakeServer, line: &str) -> SearchReport {
    let url = format!("http://{}", server.address);
    let fixed = ["search", "--quiet", "--url", &url, "--output-tokens", "2"];
    let args =
        SearchArgs::try_parse_from(fixed.into_iter().chain(line.split_whitespace())).unwrap();
    let config = SearchConfig::try_from(args).unwrap();
    search::search(&config, |_| {}).await.unwrap()
}

#[tokio::test]
async fn a_search_climbs_while_the_limits_are_kept() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let line =
        "--slo ttft=1m,attainment=0.5 --rate 200 --duration 100ms --requests 10 --max-probes 2";
    let report = find(&server, line).await;
    let kinds: Vec<_> = report.probes.iter().map(|p| (p.kind, p.verdict)).collect();
    let expected = [ProbeKind::Solo, ProbeKind::Probe, ProbeKind::Probe];
    assert_eq!(kinds, expected.map(|kind| (kind, ProbeVerdict::Pass)));
    assert_eq!(
        (report.stop, report.rate),
        (StopReason::MaxProbes, Some(280.0))
    );
    let text = report.to_string();
    assert!(text.contains("at least 280.000 requests/s"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&json["kind"], &json["stop"]),
        (&"search".into(), &"max_probes".into())
    );
    assert_eq!(json["probes"][1]["goodput"]["slo"]["ttft_seconds"], 60.0);
    let folder = tempfile::tempdir().unwrap();
    results::write_search(folder.path(), &report).unwrap();
    let first = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(
        first.contains("serves at least <strong>")
            && first.contains(">280</data> requests a second"),
        "{first}"
    );
    let again = folder.path().join("again.html");
    page::write(&[folder.path().to_owned()], &again).unwrap();
    assert_eq!(std::fs::read_to_string(again).unwrap(), first);
    let seeds: Vec<u64> = report.probes.iter().map(|p| p.seed).collect();
    assert_eq!(seeds, [0, 1, 2], "each probe draws anew");
}

#[tokio::test]
async fn a_search_ends_where_one_user_is_not_served() {
    let server = FakeServer::start(&[Behaviour::Status(500, "x")], MetricsPage::Absent).await;
    let report = find(&server, "--slo e2e=1m --duration 100ms").await;
    assert_eq!((report.stop, report.rate), (StopReason::SoloFails, None));
    assert_eq!(report.probes.len(), 1);
}

/// Users think, so that a probe has too few answers to say of chance growth that the server falls behind.
#[tokio::test]
async fn a_search_climbs_in_whole_users_too() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Absent).await;
    let line = "concurrency --slo ttft=1m,attainment=0.5 --users 3 --think 20ms --duration 60ms --requests 10 --max-probes 3";
    let report = find(&server, line).await;
    let users: Vec<Option<u64>> = serde_json::to_value(&report.probes)
        .unwrap()
        .as_array()
        .unwrap()
        .iter()
        .map(|probe| probe["arrival"]["users"].as_u64())
        .collect();
    assert_eq!(users, [1, 3, 4, 6].map(Some));
    assert_eq!((report.rate, report.users), (None, Some(6)));
    let text = report.to_string();
    assert!(text.contains("at least 6 users within ttft"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&json["over"], &json["users"]),
        (&"concurrency".into(), &6.into())
    );

    let folder = tempfile::tempdir().unwrap();
    results::write_search(&folder.path().join("s"), &report).unwrap();
    let page = std::fs::read_to_string(folder.path().join("s/report.html")).unwrap();
    let found = "serves at least <strong><data data-key=\"users\" data-of=\"search\" value=\"6\">6</data> users at once";
    assert!(page.contains(found), "{page}");
    assert!(page.contains("With more users") && !page.contains("asked for</text>"));
    page::index::write(folder.path()).unwrap();
    let index = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    let found = r#"<td>at least <data data-key="searches.0.users" data-of="index" value="6">6 users</data></td>"#;
    assert!(index.contains(found), "{index}");
}

#[test]
fn a_rate_is_no_number_of_users() {
    let words = "search concurrency --slo ttft=1s --rate 3".split(' ');
    let error = SearchConfig::try_from(SearchArgs::try_parse_from(words).unwrap()).unwrap_err();
    assert!(error.to_string().contains("--rate"), "{error}");
}
