//! The client's counts against those of the server.

use crate::fake::{Behaviour, FakeServer, MetricsPage};
use loadtest::metric_map::ServerKind;
use loadtest::report::RunVerdict;
use loadtest::table::Table;

use crate::{exact_passes, failed_checks, measure};

#[tokio::test]
async fn a_wrong_count_of_the_server_fails_the_run() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::CountsOneTooMany).await;
    let report = measure(&server, "--requests 3 --output-tokens 4").await;
    let failed: Vec<&str> = failed_checks(&report)
        .into_iter()
        .map(|check| &*check.what)
        .collect();
    assert_eq!(failed, ["generated tokens"]);
    assert_eq!(
        (report.verdict, report.is_clean()),
        (RunVerdict::Invalid, false)
    );
    assert_eq!(report.requests.failed, 0, "only the counts are wrong");
}

#[tokio::test]
async fn traffic_of_others_makes_exact_checks_soft() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::SharedWithOthers).await;
    let report = measure(&server, "--requests 3 --output-tokens 4").await;
    assert!(report.server.reconciliation.not_exclusive);
    assert_eq!(
        (report.verdict, report.is_clean()),
        (RunVerdict::Warning, true)
    );
}

#[tokio::test]
async fn a_server_without_the_metrics_is_no_error() {
    for (page, part) in [
        (MetricsPage::Absent, "answers 404"),
        (MetricsPage::Foreign, "of no known server"),
        (MetricsPage::Broken, "line "),
    ] {
        let server = FakeServer::start(&[Behaviour::Ok], page).await;
        let report = measure(&server, "--requests 2 --output-tokens 4").await;
        let reason = report.server.not_available.clone().unwrap();
        assert!(reason.contains(part), "{page:?}: {reason}");
        assert!(report.is_clean() && report.server.reconciliation.checks.is_empty());
        assert!(Table(&report).to_string().contains("not available"));
    }
}

/// What the server counts of the warm-up is not in the window: its counters are read when that opens.
#[tokio::test]
async fn the_server_is_asked_at_both_ends_of_the_window() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let line = "--users 2 --warmup 30 --duration 50ms --output-tokens 4";
    let report = measure(&server, line).await;
    let counted = report.server.in_window.unwrap();
    assert!(
        counted.from >= 0.0 && counted.to > 0.05 - 1e-6,
        "{counted:?}"
    );
    let all = (report.requests.warmup + report.requests.measured + report.requests.background) * 4;
    let most = (all - 29 * 4) as f64;
    let grown = counted.grown["generation_tokens"];
    // One of two users may not have sent the last request of the warm-up when the other opens the window.
    assert!(grown <= most, "{grown} of {all}");
    // Without an end of its own the window ends with the run.
    let report = measure(&server, "--users 2 --requests 300 --output-tokens 4").await;
    let counted = report.server.in_window.unwrap();
    assert!((counted.to - report.window.seconds).abs() < 1e-6);
    assert!(counted.grown["generation_tokens"] <= 302.0 * 4.0);
}

#[tokio::test]
async fn whose_metrics_they_are_can_be_said() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Vllm).await;
    let line = "--requests 2 --output-tokens 4 --target-kind sglang";
    let report = measure(&server, line).await;
    assert_eq!(report.server.kind, Some(ServerKind::Sglang));
}

#[tokio::test]
async fn a_peer_is_joined_under_its_own_names() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Vllm).await;
    let report = measure(&server, "--requests 6 --output-tokens 4").await;
    assert!(
        report.is_clean(),
        "{:?} {:?}",
        report.reasons,
        report.outcomes
    );
    assert_eq!(report.server.kind, Some(ServerKind::Vllm));
    let passes = exact_passes(&report);
    for what in [
        "answers that ended well",
        "prompt tokens",
        "generated tokens",
    ] {
        assert!(passes.iter().any(|pass| pass == what), "{what}: {passes:?}");
    }
    let timeline = report.server.timeline.as_ref().unwrap();
    assert_eq!(timeline.series["running"].len(), timeline.t.len());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["server"]["kind"], "vllm");
}
