use clap::Parser;

use super::*;
use crate::args::Args;
use crate::clock::Nanos;
use crate::driver::RunResult;
use crate::effort::{Effort, Lag};
use crate::give_up::{self, Early};
use crate::record::RequestRecord;
use crate::record::tests::success;
use crate::report::tests::{server, workload};
use crate::scene::Scene;
use crate::stats::Sample;

#[test]
fn a_server_without_metrics_is_left_alone_for_twice_the_time_of_its_slowest_answers() {
    let answers = |n: u64| (1..=n).map(|i| i * 1_000_000).collect::<Sample>().summary();
    let seconds = |n| rest(false, &answers(n)).as_secs_f64();
    assert!(
        (seconds(10) - 0.02).abs() < 1e-9,
        "too few for a percentile"
    );
    assert!((seconds(1000) - 1.98).abs() < 1e-9, "{}", seconds(1000));
    assert_eq!(rest(false, &answers(1_000_000)), REST);
    assert_eq!(rest(true, &answers(1000)), Duration::ZERO);
}

const MS: Nanos = 1_000_000;

/// A second of 200 requests, each sent `send_lag` milliseconds late and answered 100 ms after its plan, by a client that
/// woke `woke_late` milliseconds late.
struct Late {
    send_lag: fn(Nanos) -> Nanos,
    ttft: fn(Nanos) -> Nanos,
    woke_late: Nanos,
    early: Option<Early>,
}

const LATE: Late = Late {
    send_lag: |_| 20,
    ttft: |_| 100,
    woke_late: 0,
    early: None,
};

impl Late {
    fn record(&self, i: Nanos) -> RequestRecord {
        let mut record = success(i, i * 5 * MS, 7, 1);
        let t_first = record.t_plan + (self.ttft)(i) * MS;
        record.t_send = Some(record.t_plan + (self.send_lag)(i) * MS);
        (record.stream.t_first, record.stream.t_last) = (Some(t_first), Some(t_first));
        record.t_end = t_first;
        record
    }

    /// The probe of a search with a limit of the time to the first token.
    fn probe(&self, limit: &str) -> Probe {
        let slo = format!("ttft={limit},attainment=0.9");
        let config = Config::try_from(Args::parse_from(["loadtest", "--slo", &slo])).unwrap();
        let late = self.woke_late * MS;
        let lags = (0..300).map(|i| Lag {
            due: i * 3 * MS,
            late,
        });
        let result = RunResult {
            records: (0..200).map(|i| self.record(i)).collect(),
            window: (0, 1000 * MS),
            stopped: self.early.is_some(),
            gave_up: self.early,
            effort: Effort {
                lags: lags.collect(),
                cores: None,
            },
        };
        let report = Report::new(&config, &workload(), result, server(), Scene::default());
        probe(ProbeKind::Probe, &report, 0.9)
    }
}

fn check(late: &Late, limit: &str, verdict: ProbeVerdict, found: Found, words: &str) {
    let probe = late.probe(limit);
    assert_eq!((probe.verdict, probe.found()), (verdict, found), "{limit}");
    let text = probe.to_string();
    assert!(text.contains(words), "{text}");
}

#[test]
fn a_probe_of_a_late_client_is_judged_again_without_its_delay() {
    use ProbeVerdict::{Fail, Pass};
    let sent = "the client sent late by p99 20.0 ms and woke late by 0.0 ms; ";
    let with = |then: &str| format!("{sent}{then}");
    let kept = with("passes all the same");
    let missed = with("fails also when counted from sending");
    let hidden = with("misses the limits by no more than that");
    check(&LATE, "120ms", Pass, Found::Kept, &kept);
    check(&LATE, "79ms", Fail, Found::Missed, &missed);
    check(&LATE, "80ms", Fail, Found::Hidden, &hidden);
    let bound = give_up::bound(200, 200, 0.9).unwrap();
    let early = Late {
        early: Some(Early::OutOfReach(bound)),
        ..LATE
    };
    check(&early, "79ms", Fail, Found::Missed, &missed);
    check(&early, "80ms", Fail, Found::Hidden, &hidden);
    let punctual = Late {
        send_lag: |_| 0,
        ..LATE
    };
    assert_eq!(punctual.probe("80ms").without_client_delay, None);
    assert_eq!(punctual.probe("80ms").found(), Found::Missed);
}

/// Every request keeps its limit, so that only growth speaks against the probe.
#[test]
fn a_queue_that_grows_behind_a_late_client_is_the_servers_unless_it_is_the_clients() {
    let fail = ProbeVerdict::Fail;
    let server = Late {
        ttft: |i| 100 + i,
        ..LATE
    };
    check(&server, "1s", fail, Found::Missed, "fails also");
    let client = Late {
        ttft: |i| 100 + i,
        send_lag: |i| 20 + i,
        ..LATE
    };
    check(&client, "1s", fail, Found::Hidden, "no more than that");
}

/// A stamp can be as late as the client wakes.
#[test]
fn late_stamps_are_the_clients_delay_too() {
    let sluggish = Late {
        send_lag: |_| 0,
        woke_late: 30,
        ..LATE
    };
    check(
        &sluggish,
        "70ms",
        ProbeVerdict::Fail,
        Found::Hidden,
        "woke late by 30.0 ms",
    );
    check(
        &sluggish,
        "69ms",
        ProbeVerdict::Fail,
        Found::Missed,
        "fails also",
    );
}

#[test]
fn a_rate_is_asked_for_an_answers_time_before_its_window() {
    let seconds = Duration::from_secs;
    assert_eq!(warmup(seconds(60), seconds(2)), seconds(6));
    assert_eq!(warmup(seconds(10), seconds(3)), seconds(3));
    assert_eq!(warmup(seconds(10), seconds(40)), seconds(10), "overload");
}
