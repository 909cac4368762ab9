use clap::Parser;
use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};

use super::*;
use crate::args::Args;
use crate::outcome::Outcome;
use crate::reconcile::{Check, Strength, Verdict};
use crate::record::tests::{failure, success};
use crate::scene::Scene;
use crate::table::Table;

pub fn server() -> ServerInfo {
    ServerInfo {
        not_available: None,
        lost: false,
        quiet: true,
        kind: None,
        build: BTreeMap::new(),
        timeline: None,
        in_window: None,
        times: crate::server_times::ServerTimes::default(),
        reconciliation: Reconciliation::default(),
    }
}

pub fn workload() -> Workload {
    Workload {
        api: crate::workload::Api::Chat,
        model: "m".into(),
        seed: 0,
        contents: vec![crate::content::Content::words(
            crate::lengths::Lengths::Fixed(4),
            crate::lengths::Lengths::Fixed(4),
        )],
        trace: None,
        tokens_per_word: TokensPerWord {
            per_word: 1.0,
            overhead: 0.0,
        },
        vocabulary: None,
        temperature: 0.0,
        nonce: None,
    }
}

fn report(records: Vec<RequestRecord>, server: ServerInfo) -> Report {
    let config = Config::try_from(Args::parse_from(["loadtest", "--api-key", "secret"])).unwrap();
    let result = RunResult {
        records,
        window: (0, 1_000_000_000),
        stopped: false,
        gave_up: None,
        effort: crate::effort::Effort::default(),
    };
    Report::new(&config, &workload(), result, server, Scene::default())
}

fn many(count: u64) -> Vec<RequestRecord> {
    (0..count).map(|i| success(i, i * 1000, 20, 4)).collect()
}

#[test]
fn rates_count_what_fell_into_the_window() {
    let mut records = many(10);
    // A warm-up request of which half the events came inside the window.
    records[0].phase = Phase::Warmup;
    records[0].stream.events_in_window = 2;
    records[0].stream.first_in_window = false;
    records.push(failure(10, 5, 500, Outcome::Http5xx));
    let rates = report(records, server()).rates;
    assert_eq!(rates.output_tokens, 9.0 * 4.0 + 2.0);
    assert_eq!((rates.prompt_tokens, rates.total_tokens), (180.0, 218.0));
    assert_eq!(
        (
            rates.offered_requests,
            rates.sent_requests,
            rates.completed_requests
        ),
        (11.0, 11.0, 10.0)
    );
}

#[test]
fn failures_and_warm_up_stay_out_of_latencies() {
    let mut records = many(70);
    records[0].phase = Phase::Warmup;
    records[1].outcome = Outcome::Cut;
    records[1].detail = "x".into();
    let report = report(records, server());
    let requests = &report.requests;
    assert_eq!(
        (
            requests.measured,
            requests.succeeded,
            requests.failed,
            requests.warmup
        ),
        (69, 68, 1, 1)
    );
    assert_eq!(report.latency.ttft.n, 68);
    assert_eq!(report.latency.ttft_with_failures.n, 69);
    assert_eq!(report.latency.chunk_gap.n, 68 * 3);
    assert_eq!(
        report.outcomes["cut"],
        OutcomeCount {
            count: 1,
            first_detail: "x".into()
        }
    );
    assert!(!report.is_clean());
}

#[test]
fn requests_in_flight_are_weighted_with_time() {
    // Two requests from 5 to 133 and from 105 to 233 in a window of 0..1000.
    let records = vec![success(0, 0, 1, 4), success(1, 100, 1, 4)];
    assert_eq!(in_flight(&records, (0, 1000)), (2.0 * 128.0 / 1000.0, 2));
    assert_eq!(in_flight(&records, (133, 200)), (1.0, 1));
    assert_eq!(in_flight(&[], (0, 0)), (0.0, 0));
}

#[test]
fn the_gap_is_itl_only_with_an_event_per_token() {
    for (events, is_itl) in [(4, true), (3, false)] {
        let mut records = many(1);
        records[0].stream.events = events;
        assert_eq!(report(records, server()).latency.chunk_gap_is_itl, is_itl);
    }
}

#[test]
fn verdicts() {
    let good = || report(many(80), server());
    assert_eq!(
        (good().verdict, good().is_clean()),
        (RunVerdict::Valid, true),
        "{:?}",
        good().reasons
    );
    let reasons = |report: Report| (report.verdict, report.reasons.join(", "));

    let (verdict, text) = reasons(report(many(20), server()));
    assert!(
        verdict == RunVerdict::Warning && text.contains("too few"),
        "{text}"
    );

    let mut slow = many(80);
    slow.iter_mut()
        .for_each(|r| r.stream.t_last = Some(r.t_plan + 200_000_000));
    let (verdict, text) = reasons(report(slow, server()));
    assert!(
        verdict == RunVerdict::Warning && text.contains("window of 1.0 s is too short"),
        "{text}"
    );

    let mut late = many(80);
    late.iter_mut()
        .for_each(|r| r.t_send = Some(r.t_plan + 3_000_000));
    let (verdict, text) = reasons(report(late, server()));
    assert!(
        verdict == RunVerdict::Warning && text.contains("sent late"),
        "{text}"
    );

    let mut shed = many(80);
    shed[3].outcome = Outcome::ShedByClient;
    let (verdict, text) = reasons(report(shed, server()));
    assert!(
        verdict == RunVerdict::Invalid && text.contains("shed"),
        "{text}"
    );

    let (verdict, text) = reasons(report(Vec::new(), server()));
    assert!(
        verdict == RunVerdict::Invalid && text.contains("no measured request"),
        "{text}"
    );

    let (verdict, text) = reasons(report(
        many(80),
        ServerInfo {
            lost: true,
            ..server()
        },
    ));
    assert!(
        verdict == RunVerdict::Invalid && text.contains("could not be read"),
        "{text}"
    );

    let (verdict, text) = reasons(report(
        many(80),
        ServerInfo {
            quiet: false,
            ..server()
        },
    ));
    assert!(
        verdict == RunVerdict::Warning && text.contains("come to rest"),
        "{text}"
    );

    for (verdict, strength, expected) in [
        (Verdict::Fail, Strength::Exact, RunVerdict::Invalid),
        (Verdict::Warn, Strength::Soft, RunVerdict::Warning),
        (Verdict::NotPossible, Strength::Exact, RunVerdict::Valid),
    ] {
        let check = Check {
            id: "R3",
            what: "x".into(),
            strength,
            client: (1.0, Some(1.0)),
            server: Some(2.0),
            verdict,
        };
        let reconciliation = Reconciliation {
            checks: vec![check],
            not_exclusive: false,
        };
        let report = report(
            many(80),
            ServerInfo {
                reconciliation,
                ..server()
            },
        );
        assert_eq!(report.verdict, expected);
        assert_eq!(report.is_clean(), expected != RunVerdict::Invalid);
    }
}

#[test]
fn no_key_reaches_the_results() {
    let report = report(many(3), server());
    assert!(!serde_json::to_string(&report).unwrap().contains("secret"));
    assert!(!Table(&report).to_string().contains("secret"));
}

#[test]
fn the_table_prints_only_what_the_sample_carries() {
    let report = report(many(80), server());
    let table = Table(&report).to_string();
    assert!(table.lines().all(|line| line == line.trim_end()), "{table}");
    let row = table.lines().find(|line| line.starts_with("TTFT")).unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    // Mean, p50, p90 and p95 have a number and a unit; p99 and p99.9 are left open.
    assert_eq!(cells[1], "80");
    assert_eq!((cells[10], cells[11]), ("–", "–"), "{row}");
}

#[test]
fn a_client_that_had_too_much_to_do_is_a_reservation() {
    let of = |lag: Nanos, cores: f64| {
        let config = Config::try_from(Args::parse_from(["loadtest"])).unwrap();
        let result = RunResult {
            records: many(400),
            window: (0, 1_000_000_000),
            stopped: false,
            gave_up: None,
            effort: crate::effort::Effort {
                lags: vec![crate::effort::Lag { due: 0, late: lag }; 400],
                cores: Some(cores),
            },
        };
        Report::new(&config, &workload(), result, server(), Scene::default())
    };
    let has = |report: &Report, part: &str| report.reasons.iter().any(|r| r.contains(part));
    let good = of(1_000_000, 0.5);
    assert!(
        !has(&good, "woke late") && !has(&good, "processor"),
        "{:?}",
        good.reasons
    );
    let late = of(3_000_000, 0.5);
    assert!(has(&late, "woke late") && late.verdict == RunVerdict::Warning);
    assert!(has(&of(1_000_000, 0.7), "processor"));
}

/// A thousand events in a second, against what the client kept up with before.
#[test]
fn more_events_than_in_the_self_test_are_a_reservation() {
    let of = |sustained: Option<f64>| {
        let config = Config::try_from(Args::parse_from(["loadtest"])).unwrap();
        let result = RunResult {
            records: many(250),
            window: (0, 1_000_000_000),
            stopped: false,
            gave_up: None,
            effort: crate::effort::Effort::default(),
        };
        let scene = Scene {
            self_test: Some(sustained),
            ..Scene::default()
        };
        Report::new(&config, &workload(), result, server(), scene)
    };
    let reason = "the client read more events than it kept up with in its self-test".to_owned();
    let tested = of(Some(1000.0));
    assert!(!tested.reasons.contains(&reason) && !tested.client.may_be_the_bottleneck());
    assert_eq!(
        tested.client.self_test.unwrap().used_events_per_second,
        1000.0
    );
    let beyond = of(Some(999.0));
    assert!(beyond.reasons.contains(&reason) && beyond.client.may_be_the_bottleneck());
    assert!(!of(None).reasons.contains(&reason));
}

/// Ten answers a second that take a fifth of one.
#[test]
fn a_closed_loop_tells_its_users_by_the_law_of_little() {
    let mut records = many(10);
    records
        .iter_mut()
        .for_each(|r| r.stream.t_last = Some(r.t_plan + 200_000_000));
    let report = report(records, server());
    assert_eq!(report.rates.users_by_little, Some(2.0));
    let table = Table(&report).to_string();
    assert!(table.contains("Little's law 2.00 users"), "{table}");
}

/// What is reasoned before the first visible text is a token, and nothing that a reader sees.
#[test]
fn the_first_visible_output_is_told_apart_where_it_comes_later() {
    let mut records = many(3);
    assert!(report(records.clone(), server()).latency.ttfo.is_none());
    records[0].stream.t_visible = Some(records[0].t_plan + 900);
    let found = report(records, server()).latency;
    assert_eq!(found.ttft.max, Some(100e-9));
    assert_eq!(found.ttfo.unwrap().max, Some(900e-9));
}

/// The committed schema, `schemas/run.json`, is that of the types: `WRITE_SCHEMAS=1` with this test writes it anew.
#[test]
fn the_schema_is_that_of_the_types() {
    let mut schema = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Report>();
    RecursiveTransform(no_other_keys).transform(&mut schema);
    schema.insert("title".into(), "Results of a run".into());
    let written = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("WRITE_SCHEMAS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/run.json");
        std::fs::write(path, &written).unwrap();
    }
    let committed = include_str!("../../schemas/run.json");
    assert!(
        written == committed,
        "schemas/run.json is not that of the types"
    );
}

/// What is written has no keys but those that the types have.
fn no_other_keys(schema: &mut Schema) {
    let is_open =
        schema.get("properties").is_some() && schema.get("additionalProperties").is_none();
    if is_open {
        schema.insert("additionalProperties".into(), false.into());
    }
}
