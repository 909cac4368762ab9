//! What becomes of single requests, and what of the whole.

use crate::fake::{Behaviour, FakeServer, MetricsPage};
use loadtest::app;
use loadtest::table::Table;
use loadtest::target::HttpUrl;

use crate::{config, count, failed_checks, measure};

#[tokio::test]
async fn every_behaviour_has_its_class() {
    let cases = [
        (Behaviour::Ok, "ok"),
        (Behaviour::OkThenClose, "ok"),
        (Behaviour::Short, "ok_short"),
        (Behaviour::Paired, "ok"),
        (Behaviour::ErrorEvent, "error_event"),
        (Behaviour::CutStream, "cut"),
        (Behaviour::NoDone, "cut"),
        (Behaviour::Status(429, "queue_full"), "refused_429"),
        (Behaviour::Status(503, "draining"), "refused_503_draining"),
        (Behaviour::Status(400, "x"), "http_4xx"),
        (Behaviour::Status(500, "x"), "http_5xx"),
        (Behaviour::BadJson, "protocol"),
        (Behaviour::NoUsage, "no_usage"),
        (Behaviour::Empty, "empty"),
        (Behaviour::AfterDone, "protocol"),
        (Behaviour::NoFinish, "protocol"),
        (Behaviour::NotAStream, "protocol"),
        (Behaviour::CloseBeforeHead, "cut"),
        (Behaviour::NotHttp, "protocol"),
    ];
    for api in ["chat", "completions"] {
        for (behaviour, class) in cases {
            let server = FakeServer::start(&[behaviour], MetricsPage::Absent).await;
            let line = format!("--api {api} --requests 2 --output-tokens 4");
            let report = measure(&server, &line).await;
            let outcomes = &report.outcomes;
            assert_eq!(
                count(&report, class),
                2,
                "{api} {behaviour:?}: {outcomes:?}"
            );
            let is_good = class.starts_with("ok");
            assert_eq!(report.is_clean(), is_good, "{behaviour:?}");
            let entered = report.latency.ttft.n;
            assert_eq!(
                entered,
                if is_good { 2 } else { 0 },
                "{behaviour:?} enters the latencies"
            );
            assert_eq!(
                report.rates.output_tokens > 0.0,
                is_good,
                "{behaviour:?} enters the throughput"
            );
        }
    }
}

#[tokio::test]
async fn mixed_outcomes_still_reconcile() {
    let script = [
        Behaviour::Ok,
        Behaviour::Status(429, "queue_full"),
        Behaviour::Short,
        Behaviour::ErrorEvent,
        Behaviour::Status(500, "internal_error"),
        Behaviour::CutStream,
    ];
    let server = FakeServer::start(&script, MetricsPage::Honest).await;
    let report = measure(
        &server,
        "--users 3 --requests 60 --warmup 0 --output-tokens 5",
    )
    .await;
    assert_eq!(
        (report.requests.succeeded, report.requests.failed),
        (20, 40)
    );
    for (class, expected) in [
        ("ok", 10),
        ("ok_short", 10),
        ("refused_429", 10),
        ("error_event", 10),
        ("http_5xx", 10),
        ("cut", 10),
    ] {
        assert_eq!(count(&report, class), expected, "{class}");
    }
    assert!(
        failed_checks(&report).is_empty(),
        "{:?}",
        failed_checks(&report)
    );
    assert!(!report.is_clean(), "a failed request fails the run");
    assert_eq!(report.latency.ttft_with_failures.n, 60);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named() {
    let server = FakeServer::start(&[Behaviour::CloseBeforeHead], MetricsPage::Absent).await;
    let mut config = config(&server, "--requests 1");
    // Nobody listens on port 1.
    config.urls = vec![HttpUrl::parse("http://127.0.0.1:1").unwrap()];
    let error = app::measure(&config, std::future::pending())
        .await
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("cannot reach http://127.0.0.1:1"),
        "{error:#}"
    );
}

#[tokio::test]
async fn objectives_count_failures_as_missed() {
    let script = [
        Behaviour::Ok,
        Behaviour::Ok,
        Behaviour::Ok,
        Behaviour::ErrorEvent,
    ];
    let server = FakeServer::start(&script, MetricsPage::Absent).await;
    let report = measure(&server, "--requests 40 --slo ttft=1m,tpot=1m").await;
    let goodput = report.goodput.clone().unwrap();
    assert_eq!((goodput.good, goodput.planned), (30, 40));
    let table = Table(&report).to_string();
    assert!(table.contains("attainment   30 of 40, 75.0 %"), "{table}");
}

#[tokio::test]
async fn the_gap_is_named_after_what_it_is() {
    let server = FakeServer::start(&[Behaviour::Paired], MetricsPage::Absent).await;
    let report = measure(&server, "--requests 6 --output-tokens 8").await;
    assert_eq!(
        (
            report.latency.events_per_token,
            report.latency.chunk_gap_is_itl
        ),
        (Some(0.5), false)
    );
    let table = Table(&report).to_string();
    assert!(
        table.contains("gap, 2.00 tokens each") && !table.contains("ITL"),
        "{table}"
    );
}
