use super::*;
use crate::record::tests::{failure, success};
use crate::scrape::Snapshot;

/// What an honest server shows after the requests of `records()`.
const HONEST: &[(&str, u32)] = &[
    (
        "octet_requests_total{endpoint=\"/v1/chat/completions\",code=\"200\"}",
        3,
    ),
    (
        "octet_requests_total{endpoint=\"/v1/chat/completions\",code=\"429\"}",
        1,
    ),
    (
        "octet_requests_total{endpoint=\"/metrics\",code=\"200\"}",
        9,
    ),
    ("octet_requests_finished_total{finish_reason=\"length\"}", 3),
    (
        "octet_requests_finished_total{finish_reason=\"cancelled\"}",
        0,
    ),
    ("octet_requests_rejected_total{reason=\"queue_full\"}", 1),
    ("octet_prompt_tokens_total", 60),
    ("octet_prompt_tokens_cached_total", 0),
    ("octet_generation_tokens_total", 12),
    ("octet_time_to_first_token_seconds_count", 3),
    ("octet_inter_token_latency_seconds_count", 9),
    ("octet_e2e_request_latency_seconds_count", 3),
    ("octet_step_tokens_sum{phase=\"mixed\"}", 69),
    ("octet_preemptions_total", 0),
    ("octet_requests_running", 0),
    ("octet_requests_waiting", 0),
    ("octet_kv_cache_blocks_used", 0),
    ("octet_build_info{version=\"1\"}", 1),
    ("process_start_time_seconds", 7),
];

fn records() -> Vec<RequestRecord> {
    let mut records: Vec<_> = (0..3).map(|i| success(i, 100 * i, 20, 4)).collect();
    records.push(failure(3, 0, 429, Outcome::Refused429));
    records
}

/// A snapshot of the honest server in which the metrics that start with `name` have `value`, or
/// are absent.
fn snapshot(changes: &[(&str, Option<u32>)]) -> Snapshot {
    let mut text = String::new();
    for (name, honest) in HONEST {
        let change = changes
            .iter()
            .find(|(changed, _)| name.starts_with(changed));
        if let Some(value) = change.map_or(Some(*honest), |(_, value)| *value) {
            text += &format!("{name} {value}\n");
        }
    }
    Snapshot::parse(&text).unwrap()
}

fn zero() -> Snapshot {
    let text: String = HONEST
        .iter()
        .map(|(name, value)| {
            let stays = name.contains("info") || name.contains("start_time");
            format!("{name} {}\n", if stays { *value } else { 0 })
        })
        .collect();
    Snapshot::parse(&text).unwrap()
}

fn reconcile(records: &[RequestRecord], after: &Snapshot) -> Reconciliation {
    Reconciliation::new(
        records,
        &Delta {
            before: &zero(),
            after,
        },
        Api::Chat,
    )
}

/// The checks that have `verdict`.
fn with(reconciliation: &Reconciliation, verdict: Verdict) -> Vec<&str> {
    let checks = reconciliation.checks.iter();
    checks
        .filter(|check| check.verdict == verdict)
        .map(|check| &*check.what)
        .collect()
}

#[test]
fn an_honest_server_passes_every_check() {
    let result = reconcile(&records(), &snapshot(&[]));
    assert_eq!(with(&result, Verdict::Fail), [""; 0]);
    assert_eq!(with(&result, Verdict::Warn), [""; 0]);
    // The server of this test has no sum of times and no buckets.
    assert_eq!(
        with(&result, Verdict::NotPossible),
        ["mean TTFT in seconds", "gap between TTFT curves"]
    );
    assert!(!result.not_exclusive);
}

#[test]
fn every_wrong_count_is_found() {
    let cases = [
        (
            "octet_requests_finished_total{finish_reason=\"length",
            2,
            "finished by length",
        ),
        (
            "octet_requests_finished_total{finish_reason=\"cancelled",
            1,
            "finished by cancelled",
        ),
        ("octet_requests_rejected_total", 0, "refused"),
        ("octet_prompt_tokens_total", 61, "prompt tokens"),
        ("octet_prompt_tokens_cached", 1, "cached prompt tokens"),
        ("octet_generation_tokens", 11, "generated tokens"),
        ("octet_time_to_first", 4, "first tokens (TTFT count)"),
        ("octet_inter_token", 8, "tokens after the first (ITL count)"),
        ("octet_e2e", 4, "answers (E2E count)"),
        ("octet_requests_running", 1, "still running"),
        ("octet_requests_waiting", 1, "still waiting"),
        ("octet_kv_cache_blocks_used", 1, "cache blocks still owned"),
        ("process_start", 8, "restarts of the server"),
    ];
    for (name, value, what) in cases {
        let result = reconcile(&records(), &snapshot(&[(name, Some(value))]));
        assert_eq!(with(&result, Verdict::Fail), [what], "{name}");
        assert!(result.has_failed());
    }
    let fewer = reconcile(&records(), &snapshot(&[(HONEST[0].0, Some(2))]));
    assert_eq!(
        with(&fewer, Verdict::Fail),
        ["requests answered", "answers with status 200"]
    );
}

#[test]
fn recomputation_needs_a_preemption() {
    let recomputed = ("octet_step_tokens", Some(80));
    assert_eq!(
        with(
            &reconcile(&records(), &snapshot(&[recomputed])),
            Verdict::Warn
        ),
        ["tokens computed, 11 of them not explained"]
    );
    let explained = snapshot(&[recomputed, ("octet_preemptions", Some(1))]);
    assert_eq!(
        with(&reconcile(&records(), &explained), Verdict::Warn),
        [""; 0]
    );
    let told = reconcile(&records(), &explained).checks;
    let told = told.iter().find(|c| c.id == "R9").unwrap();
    assert_eq!(told.what, "tokens computed, 11 again after 1 preemptions");
    let skipped = snapshot(&[
        ("octet_step_tokens", Some(68)),
        ("octet_preemptions", Some(1)),
    ]);
    assert_eq!(
        with(&reconcile(&records(), &skipped), Verdict::Warn),
        ["tokens computed"]
    );
}

#[test]
fn a_missing_metric_is_never_passed() {
    for (name, what) in [
        ("octet_prompt_tokens_total", "prompt tokens"),
        ("octet_e2e", "answers (E2E count)"),
        ("octet_kv_cache_blocks_used", "cache blocks still owned"),
        ("octet_build_info", "changes of the build"),
    ] {
        let result = reconcile(&records(), &snapshot(&[(name, None)]));
        assert!(
            with(&result, Verdict::NotPossible).contains(&what),
            "{name}"
        );
        assert!(!with(&result, Verdict::Pass).contains(&what), "{name}");
    }
}

#[test]
fn foreign_traffic_makes_exact_checks_soft() {
    let after = snapshot(&[
        (HONEST[0].0, Some(4)),
        ("octet_prompt_tokens_total", Some(99)),
    ]);
    let result = reconcile(&records(), &after);
    assert!(result.not_exclusive && !result.has_failed());
    assert!(with(&result, Verdict::Warn).contains(&"prompt tokens"));
    // What does not depend on others stays exact.
    let restarted = snapshot(&[(HONEST[0].0, Some(4)), ("process_start", Some(8))]);
    assert_eq!(
        with(&reconcile(&records(), &restarted), Verdict::Fail),
        ["restarts of the server"]
    );
}

#[test]
fn a_counter_that_falls_is_a_restart() {
    let before = snapshot(&[("octet_e2e", Some(5))]);
    let result = Reconciliation::new(
        &[],
        &Delta {
            before: &before,
            after: &snapshot(&[]),
        },
        Api::Chat,
    );
    assert!(with(&result, Verdict::Fail).contains(&"restarts of the server"));
}

#[test]
fn two_models_that_answer_are_one_too_many() {
    let mut records = records();
    records[0].stream.model = Some("a".into());
    records[1].stream.model = Some("b".into());
    assert_eq!(
        with(&reconcile(&records, &snapshot(&[])), Verdict::Fail),
        ["models that answered"]
    );
}

#[test]
fn what_the_client_did_not_see_is_a_range() {
    let mut records = records();
    // The client gave up after some tokens: the server may have counted any number of them.
    let left = &mut records[2];
    left.reach = Reach::Partial;
    left.outcome = Outcome::Timeout(crate::outcome::TimeoutPhase::Gap);
    left.stream.usage = None;
    left.stream.finish_reason = None;
    let at_most = |tokens| {
        snapshot(&[
            ("octet_generation_tokens", Some(tokens)),
            (
                "octet_requests_finished_total{finish_reason=\"length",
                Some(2),
            ),
            (
                "octet_requests_finished_total{finish_reason=\"cancelled",
                Some(1),
            ),
        ])
    };
    assert_eq!(
        with(&reconcile(&records, &at_most(10)), Verdict::Fail),
        [""; 0]
    );
    assert_eq!(
        with(&reconcile(&records, &at_most(7)), Verdict::Fail),
        ["generated tokens"]
    );
}

#[test]
fn requests_in_flight_may_differ_by_one_or_a_twentieth() {
    let verdict = |own: f64, server: Option<f64>| {
        let mut result = Reconciliation::default();
        result.in_flight(own, server);
        result.checks[0].verdict
    };
    assert_eq!(verdict(2.0, Some(2.9)), Verdict::Pass);
    assert_eq!(verdict(2.0, Some(3.1)), Verdict::Warn);
    assert_eq!(verdict(100.0, Some(95.1)), Verdict::Pass);
    assert_eq!(verdict(100.0, Some(94.9)), Verdict::Warn);
    assert_eq!(verdict(100.0, None), Verdict::NotPossible);
}

#[test]
fn curves_agree_where_the_client_is_a_little_later() {
    let times: Vec<f64> = (1..=100).map(|i| f64::from(i) / 100.0).collect();
    let curve = |late: f64| -> Vec<(f64, f64)> {
        [0.1, 0.25, 0.5, 1.0, f64::INFINITY]
            .map(|edge: f64| {
                (
                    edge,
                    times.iter().filter(|t| **t - late <= edge).count() as f64 / 100.0,
                )
            })
            .to_vec()
    };
    // The server saw each first token 10 ms before the client, which is allowed.
    assert_eq!(curve_gap(&times, &curve(0.010), 0.0101), 0.0);
    // A tenth of a second is not, and moves a tenth of the curve.
    let gap = curve_gap(&times, &curve(0.1), 0.0001);
    assert!((gap - 0.1).abs() < 0.011, "{gap}");
    // A server that is later than the client is wrong too.
    assert!(curve_gap(&times, &curve(-0.1), 0.01) > 0.08);
}

/// Every first token came 95 ns after its request left.
#[test]
fn a_server_that_saw_other_times_is_found() {
    let with_times = |sum: f64, below: u32| {
        let honest = snapshot(&[]);
        let text = format!(
            "octet_time_to_first_token_seconds_sum {sum}\n\
             octet_time_to_first_token_seconds_bucket{{le=\"0.00000005\"}} {below}\n\
             octet_time_to_first_token_seconds_bucket{{le=\"+Inf\"}} 3\n"
        );
        let mut after = Snapshot::parse(&text).unwrap();
        after.absorb(honest);
        reconcile(&records(), &after)
    };
    let agreed = with_times(0.0, 3);
    assert_eq!(with(&agreed, Verdict::Warn), [""; 0]);
    assert_eq!(with(&agreed, Verdict::NotPossible), [""; 0]);
    // A server that was slower than its client cannot be.
    let slower = with_times(0.3, 0);
    assert_eq!(with(&slower, Verdict::Warn), ["mean TTFT in seconds"]);
    assert!(!slower.has_failed(), "a soft check only warns");
}

#[test]
fn another_build_is_another_server() {
    let text = "octet_build_info{version=\"2\"} 1\n";
    let mut after = Snapshot::parse(text).unwrap();
    after.absorb(snapshot(&[("octet_build_info", None)]));
    let result = reconcile(&records(), &after);
    assert_eq!(with(&result, Verdict::Fail), ["changes of the build"]);
}

#[test]
fn a_version_that_changes_is_another_server() {
    let of = |before: serde_json::Value, after: serde_json::Value| {
        let mut result = Reconciliation::default();
        result.version(Some(&before), Some(&after));
        result.checks.remove(0).verdict
    };
    let version = |v: &str| serde_json::json!({ "version": v });
    assert_eq!(of(version("1"), version("1")), Verdict::Pass);
    assert_eq!(of(version("1"), version("2")), Verdict::Fail);
    let mut silent = Reconciliation::default();
    silent.version(None, Some(&version("1")));
    assert!(silent.checks.is_empty(), "not told, not compared");
}
