//! Whole runs against a scripted server: every outcome class, exact counts, and reconciliation.

mod fake;

use clap::Parser;
use fake::{Behaviour, FakeServer, MetricsPage};
use loadtest::app;
use loadtest::args::{Args, SearchArgs};
use loadtest::config::Config;
use loadtest::metric_map::ServerKind;
use loadtest::page;
use loadtest::parts::PartKind;
use loadtest::reconcile::{Check, Verdict};
use loadtest::repeat;
use loadtest::report::{Report, RunVerdict};
use loadtest::results;
use loadtest::search::{self, ProbeKind, ProbeVerdict, SearchConfig, SearchReport, StopReason};
use loadtest::stats::Percentile;
use loadtest::table::Table;
use loadtest::target::HttpUrl;

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

#[tokio::test]
async fn two_targets_see_the_same_requests() {
    let line = "--users 3 --requests 12 --warmup 0 --seed 7 --cache warm --prompt-tokens uniform:5..40 --output-tokens uniform:1..9";
    let mut bodies = Vec::new();
    let mut digests = Vec::new();
    for _ in 0..2 {
        let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Absent).await;
        let report = measure(&server, line).await;
        let mut seen: Vec<String> = server.bodies().iter().map(ToString::to_string).collect();
        seen.sort_unstable();
        bodies.push(seen);
        digests.push(report.load.workload_sha256);
    }
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(digests[0], digests[1]);
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

#[tokio::test]
async fn the_json_file_holds_the_report() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let report = measure(&server, "--requests 6 --output-tokens 8").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    loadtest::results::write_json(&path, &report).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!((&json["schema"], &json["kind"]), (&1.into(), &"run".into()));
    assert_eq!(json["outcomes"]["ok"]["count"], 6);
    assert_eq!(json["load"]["arrival"]["kind"], "closed");
    assert_eq!(json["server"]["checks"][0]["verdict"], "pass");
    assert!(json["latency"]["ttft"]["p50"].is_number() && json["latency"]["ttft"]["p99"].is_null());
    let names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["run.json"], "no partial file stays");
}

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
        first.contains("serves at least <strong>280 requests a second"),
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

#[tokio::test]
async fn a_conversation_goes_on_with_the_answers_it_got() {
    for line in [
        "--rate 400 --turns 3 --requests 30",
        "--users 4 --turns 3 --requests 30 --think 1ms --api completions",
    ] {
        let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
        let line = format!("{line} --warmup 0 --output-tokens 2 --prompt-tokens 30");
        let report = measure(&server, &line).await;
        assert!(
            report.is_clean(),
            "{:?} {:?}",
            report.reasons,
            report.outcomes
        );
        assert_eq!((report.requests.succeeded, server.bodies().len()), (30, 30));
        let turns: Vec<usize> = [0, 1, 2]
            .map(|turn| report.samples.iter().filter(|s| s.turn == turn).count())
            .to_vec();
        assert!(
            turns[0] >= turns[1] && turns[1] >= turns[2] && turns[2] > 0,
            "{turns:?}"
        );
        let mut longest = 0;
        for body in server.bodies() {
            if let Some(messages) = body["messages"].as_array() {
                longest = longest.max(messages.len());
                for answer in messages.iter().skip(1).step_by(2) {
                    assert_eq!(answer["role"], "assistant");
                    assert_eq!(answer["content"], " word word");
                }
            } else {
                let lines: Vec<&str> = body["prompt"].as_str().unwrap().split('\n').collect();
                longest = longest.max(lines.len());
                assert!(lines.iter().skip(1).step_by(2).all(|l| *l == " word word"));
            }
        }
        assert_eq!(longest, 5);
        assert_eq!(report.load.turns.as_deref(), Some("3"));
    }
}

#[tokio::test]
async fn a_conversation_ends_with_its_first_failure() {
    let script = [Behaviour::ErrorEvent];
    let server = FakeServer::start(&script, MetricsPage::Absent).await;
    let report = measure(&server, "--users 1 --turns 3 --requests 5").await;
    assert!(
        server
            .bodies()
            .iter()
            .all(|b| b["messages"].as_array().unwrap().len() == 1)
    );
    assert_eq!(count(&report, "error_event"), 5);
}

#[tokio::test]
async fn a_trace_is_played_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv");
    let lines = "timestamp,input_length,output_length\n0.5,20,2\n0.0,30,3\n1.0,40,4\n";
    std::fs::write(&path, lines).unwrap();
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let line = format!("--trace {} --trace-speed 100", path.display());
    let report = measure(&server, &line).await;
    assert!(
        report.is_clean(),
        "{:?} {:?}",
        report.reasons,
        report.outcomes
    );
    let lengths: Vec<(u64, u64)> = report
        .samples
        .iter()
        .map(|s| (s.prompt_tokens, s.output_tokens))
        .collect();
    assert_eq!(lengths, [(30, 3), (20, 2), (40, 4)]);
    let planned: Vec<f64> = report.samples.iter().map(|s| s.t).collect();
    assert_eq!(planned, [0.0, 0.005, 0.01]);
}

#[tokio::test]
async fn several_servers_share_the_conversations() {
    let one = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let two = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let line = format!(
        "--url http://{} --users 4 --requests 36 --output-tokens 3",
        two.address
    );
    let report = measure(&one, &line).await;
    assert!(
        report.is_clean(),
        "{:?} {:?}",
        report.reasons,
        report.outcomes
    );
    assert_eq!((one.bodies().len(), two.bodies().len()), (20, 20));
    assert!(exact_passes(&report).contains(&"generated tokens".to_owned()));
    assert_eq!(report.target.urls.len(), 2);
    let by_server: Vec<u64> = report
        .parts
        .iter()
        .filter(|part| part.by == PartKind::Server)
        .map(|part| part.requests)
        .collect();
    assert_eq!(by_server, [18, 18]);
}

#[tokio::test]
async fn a_workload_file_describes_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.toml");
    let text = r#"
        schema = 1
        api = "completions"
        arrival = { kind = "constant", rate = 500 }
        requests = 40
        [[mix]]
        prompt = 20
        output = { kind = "fixed", tokens = 3, ignore_eos = true }
        [[mix]]
        weight = 2
        prompt = 30
        output = 2
    "#;
    std::fs::write(&path, text).unwrap();
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let report = measure(&server, &format!("--workload {}", path.display())).await;
    assert!(
        report.is_clean(),
        "{:?} {:?}",
        report.reasons,
        report.outcomes
    );
    assert_eq!(report.load.prompt_tokens, "1× 20; 2× 30");
    assert_eq!(report.target.endpoint, "/v1/completions");
    for body in server.bodies() {
        let is_first = body["max_tokens"] == 3;
        assert_eq!(body["ignore_eos"] == true, is_first);
    }
    let parts: Vec<&str> = report.parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(parts, ["20 → 3", "30 → 2"]);
    let shorter = measure(
        &server,
        &format!("--workload {} --requests 4", path.display()),
    )
    .await;
    assert_eq!(shorter.requests.measured, 4, "flags go before the file");
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

/// A folder of repeats: every file a reader expects, an interval on its page, the same bytes when drawn
/// again, and an index that leads there.
#[tokio::test]
async fn repeats_make_a_folder_with_a_page_and_an_index() {
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let folder = tempfile::tempdir().unwrap();
    let config = config(
        &server,
        "--requests 6 --output-tokens 8 --name twice --seed 5",
    );
    let mut told = 0;
    let (made, reports) = repeat::run(&[config], 2, folder.path(), |_| told += 1)
        .await
        .unwrap();
    assert_eq!((told, reports.len()), (2, 2));
    let seeds: Vec<u64> = reports.iter().map(|report| report.load.seed).collect();
    assert_eq!(seeds, [5, 6], "each repeat draws anew");
    for run in ["1", "2"] {
        let lines = std::fs::read_to_string(made.join(run).join("requests.jsonl")).unwrap();
        let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        assert_eq!(lines.lines().count(), 6);
        assert_eq!(
            (&first["phase"], &first["outcome"]),
            (&"measured".into(), &"ok".into())
        );
        assert_eq!(
            (&first["plan"], &first["output_tokens"]),
            (&0.into(), &8.into())
        );
        let gaps = first["gaps"].as_array().unwrap().iter();
        assert_eq!(gaps.map(|gap| gap[1].as_u64().unwrap()).sum::<u64>(), 7);
        assert!(made.join(run).join("report.html").is_file());
    }
    let page = std::fs::read_to_string(made.join("report.html")).unwrap();
    assert!(page.contains("2 of 2 runs count") && page.contains("95 % over 2 runs"));
    assert!(
        page.contains("href=\"1/report.html\"") && page.contains("all runs in one histogram of 84")
    );
    let again = folder.path().join("again.html");
    page::write(std::slice::from_ref(&made), &again).unwrap();
    let again = std::fs::read_to_string(again).unwrap();
    let name = made.file_name().unwrap().to_str().unwrap();
    assert_eq!(again.replace(&format!("{name}/"), ""), page);
    page::index::write(folder.path()).unwrap();
    let index = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    assert!(
        index.contains(&format!("<a href=\"{name}/report.html\">twice</a>")),
        "{index}"
    );
    page::index::write(folder.path()).unwrap();
    assert_eq!(
        std::fs::read_to_string(folder.path().join("index.html")).unwrap(),
        index
    );
    let json = std::fs::read(folder.path().join("index.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (&json["results"][0]["runs"], &json["results"][0]["verdict"]),
        (&2.into(), &"warning".into())
    );
    assert!(json["results"][0]["output_tokens_per_second"]["plus_minus"].is_number());
}

#[tokio::test]
async fn two_servers_are_compared_by_turns() {
    let (first, second) = (
        FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await,
        FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await,
    );
    let sides = [
        config(&first, "--requests 6 --output-tokens 4 --name old"),
        config(&second, "--requests 6 --output-tokens 4 --name new"),
    ];
    let folder = tempfile::tempdir().unwrap();
    let mut order = Vec::new();
    let tell = |report: &Report| order.push(report.name.clone());
    let (made, _) = repeat::run(&sides, 2, folder.path(), tell).await.unwrap();
    assert_eq!(order, ["old", "new", "new", "old"]);
    let page = std::fs::read_to_string(made.join("report.html")).unwrap();
    assert!(page.contains("Too few runs to tell old from new"), "{page}");
    assert!(page.contains("2 pairs of runs made by turns") && !page.contains("Not comparable"));
    assert!(
        page::summary(&made)
            .unwrap()
            .starts_with("new against old, times as fast:")
    );
    page::index::write(folder.path()).unwrap();
    let index = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    assert_eq!(index.matches(">compared</a>").count(), 2, "{index}");
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
    let bound = report.window.gave_up.unwrap();
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
    assert!(!config(&server, "").self_test);
    assert!(!config(&server, "--results unused --no-self-test").self_test);
    let report = measure(&server, line).await;
    let test = report.client.self_test.unwrap();
    assert!(test.used_events_per_second > 0.0, "{test:?}");
}
