//! Closed and open loops from their first request to their end.

use crate::fake::{Behaviour, FakeServer, MetricsPage};
use loadtest::app;
use loadtest::give_up::Early;
use loadtest::report::RunVerdict;
use loadtest::self_test::Known;
use loadtest::stats::Percentile;

use crate::{config, count, exact_passes, failed_checks, measure};

#[tokio::test]
async fn a_closed_loop_counts_what_the_server_counts() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let line = "--users 8 --requests 40 --warmup 6 --prompt-tokens uniform:16..256 --output-tokens uniform:2..32";
    let report = measure(&server, line).await;

    assert!(
        report.is_clean(),
        "{:?} {:?}",
        report.reasons,
        report.outcomes
    );
    assert_eq!(
        (report.requests.measured, report.requests.succeeded),
        (40, 40)
    );
    assert_eq!((report.requests.warmup, report.requests.background), (6, 0));
    assert_eq!(count(&report, "ok"), 40);
    assert_eq!(server.bodies().len(), 46);
    assert_eq!(server.connections(), 8, "each user keeps its connection");
    let passes = exact_passes(&report);
    for what in [
        "requests answered",
        "answers with status 200",
        "finished by length",
        "prompt tokens",
        "generated tokens",
        "first tokens (TTFT count)",
        "tokens after the first (ITL count)",
        "answers (E2E count)",
        "tokens computed",
        "still running",
        "cache blocks still owned",
        "models that answered",
        "restarts of the server",
    ] {
        assert!(
            passes.iter().any(|pass| pass == what),
            "{what} is not among {passes:?}"
        );
    }
    assert_eq!(
        report.latency.ttft.n, 40,
        "warm-up stays out of the latencies"
    );
    assert!(report.latency.chunk_gap_is_itl);
    // The fake counts ten tokens around the prompt; calibration finds them.
    assert_eq!(report.load.tokens_per_word.per_word, 1.0);
    assert_eq!(report.load.tokens_per_word.overhead, 10.0);
    assert_eq!(report.lengths.prompt_mean, report.lengths.prompt_asked_mean);
    assert_eq!(report.lengths.output_mean, report.lengths.output_asked_mean);
}

#[tokio::test]
async fn an_open_loop_sends_its_schedule() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let report = measure(
        &server,
        "--rate 2000 --requests 30 --warmup 5 --output-tokens 4 --api chat",
    )
    .await;
    assert_eq!(
        (
            report.requests.measured,
            report.requests.succeeded,
            report.requests.warmup
        ),
        (30, 30, 5)
    );
    assert_eq!(server.bodies().len(), 35);
    assert!(
        failed_checks(&report).is_empty(),
        "{:?}",
        failed_checks(&report)
    );
}

#[tokio::test]
async fn a_duration_ends_the_window_and_not_the_requests_in_it() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    for loop_kind in ["--users 2", "--rate 200"] {
        let report = measure(
            &server,
            &format!("{loop_kind} --duration 100ms --output-tokens 2"),
        )
        .await;
        let requests = &report.requests;
        assert!(
            requests.measured > 0 && requests.failed + requests.failed_outside == 0,
            "{requests:?}"
        );
        assert_eq!(report.window.seconds, 0.1);
        assert!(
            failed_checks(&report).is_empty(),
            "{:?}",
            failed_checks(&report)
        );
    }
}

#[tokio::test]
async fn a_connection_closed_between_requests_is_not_a_failure() {
    let server = FakeServer::start(&[Behaviour::OkThenClose], MetricsPage::Honest).await;
    let report = measure(&server, "--users 1 --requests 5 --output-tokens 2").await;
    assert!(
        report.is_clean(),
        "{:?} {:?}",
        report.outcomes,
        report.reasons
    );
    assert_eq!(
        server.bodies().len(),
        5,
        "a request that was read is never repeated"
    );
}

#[tokio::test]
async fn an_interrupted_run_reports_what_it_has() {
    let server = FakeServer::start(&[Behaviour::Ok, Behaviour::Stall], MetricsPage::Absent).await;
    let report = app::measure(&config(&server, "--users 1 --requests 9"), server.stalled())
        .await
        .unwrap();
    assert_eq!((count(&report, "ok"), count(&report, "unfinished")), (1, 1));
    assert_eq!(
        (report.verdict, report.window.stopped),
        (RunVerdict::Invalid, true)
    );
}

/// Nobody is answered before the last request has arrived, so each of them waits at least from its
/// planned start to that of the last one. A client that held requests back would not see it.
#[tokio::test]
async fn a_stalled_server_shows_in_the_tail_of_an_open_loop() {
    let requests = 60;
    let gate = Behaviour::AfterArrivals(requests);
    let server = FakeServer::start(&[gate], MetricsPage::Honest).await;
    let line = "--rate 1000 --arrival constant --requests 60 --output-tokens 2";
    let report = measure(&server, line).await;
    assert_eq!(report.requests.succeeded, 60, "{:?}", report.outcomes);
    assert_eq!(report.rates.in_flight_max, 60);
    for (n, sample) in report.samples.iter().enumerate() {
        let stalled = (requests - 1 - n) as f64 / 1000.0;
        let ttft = sample.ttft.unwrap();
        assert!(ttft >= stalled - 1e-6, "request {n}: {ttft} < {stalled}");
    }
    let p95 = report.latency.ttft.p95;
    assert!(
        matches!(p95, Percentile::Seconds(s) if s >= 0.055),
        "{p95:?}"
    );
    assert!(report.latency.ttft_from_send.max.unwrap() > 0.0);
}

/// A probe whose objective is out of reach does not go on to its end.
#[tokio::test]
async fn a_hopeless_run_ends_early() {
    let server = FakeServer::start(&[Behaviour::Status(500, "x")], MetricsPage::Absent).await;
    let line = "--rate 200 --arrival constant --duration 60s --warmup 0 --slo ttft=1m";
    let mut hopeless = config(&server, line);
    hopeless.may_give_up = true;
    let report = app::measure(&hopeless, std::future::pending())
        .await
        .unwrap();
    let Some(Early::OutOfReach(bound)) = report.window.gave_up else {
        panic!("{:?}", report.window);
    };
    assert_eq!((bound.planned, bound.wanted), (12_000, 0.99));
    assert!(
        bound.attainment_at_most < 0.99 && bound.missed < 200,
        "{bound}"
    );
    assert!(report.requests.measured < 6000, "{:?}", report.requests);
    let reason = format!("the run was ended early: {bound}");
    assert!(report.reasons.contains(&reason), "{:?}", report.reasons);
}

/// How far the client gets depends on the machine, that it says so does not.
#[tokio::test]
async fn the_client_tests_itself_before_a_run_that_is_kept() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let line = "--requests 2 --output-tokens 2 --results unused";
    assert_eq!(config(&server, "").self_test, Known::Nothing);
    let without = config(&server, "--results unused --no-self-test");
    assert_eq!(without.self_test, Known::Nothing);
    let report = measure(&server, line).await;
    let test = report.client.self_test.unwrap();
    assert!(test.used_events_per_second > 0.0, "{test:?}");
}

#[tokio::test]
async fn as_many_requests_leave_as_the_rate_says_for_the_time() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Absent).await;
    for seed in 0..3 {
        let line =
            format!("--rate 200 --duration 150ms --exact-count --output-tokens 1 --seed {seed}");
        let report = measure(&server, &line).await;
        assert_eq!(report.load.exact_count, Some(30));
        // The window begins with the first request and not with the schedule, so that a few come after the last.
        let last = report.samples[29].t - report.samples[0].t;
        assert!(last < 0.15 && report.requests.measured >= 30, "{last}");
    }
}
