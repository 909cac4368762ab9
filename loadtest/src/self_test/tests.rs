use super::*;
use crate::record::tests::success;

fn result(records: Vec<RequestRecord>) -> RunResult {
    RunResult {
        records,
        window: (0, 1_000_000_000),
        stopped: false,
        gave_up: None,
        effort: crate::effort::Effort::default(),
    }
}

/// What the server wrote if the client saw everything `late` nanoseconds later.
fn writes(records: &[RequestRecord], late: impl Fn(usize) -> Nanos) -> Writes {
    let written = |r: &RequestRecord| {
        let reads = reads(r).into_iter().enumerate();
        reads.map(|(k, t)| t - late(k)).collect()
    };
    records
        .iter()
        .map(|r| (r.conversation, written(r)))
        .collect()
}

fn records() -> Vec<RequestRecord> {
    let record = |i| {
        let mut record = success(i, 10_000_000 * (i + 1), 8, 5);
        record.stream.gaps = vec![10_000_000; 4];
        record
    };
    (0..400).map(record).collect()
}

#[test]
fn a_client_is_as_far_off_as_its_stamps() {
    let records = records();
    let constant = writes(&records, |_| 300_000);
    let level = Level::new(4, &result(records.clone()), &constant).unwrap();
    assert_eq!(level.first_token_bias.max, Some(0.0003));
    assert_eq!(
        level.gap_bias.max,
        Some(0.0),
        "what is always late has the right gaps"
    );
    assert!(level.passed);
    assert_eq!(level.events_per_second, 2000.0);

    let late_once = writes(&records, |k| if k == 2 { 2_000_000 } else { 0 });
    let level = Level::new(4, &result(records.clone()), &late_once).unwrap();
    assert_eq!(level.gap_bias.max, Some(0.002));
    assert!(!level.passed, "two of four gaps are off");

    let late_first = writes(&records, |k| if k == 0 { 1_500_000 } else { 0 });
    assert!(
        !Level::new(4, &result(records.clone()), &late_first)
            .unwrap()
            .passed
    );

    let mut lost = writes(&records, |_| 0);
    lost.get_mut(&0).unwrap().push(1);
    let level = Level::new(4, &result(records), &lost).unwrap();
    assert_eq!((level.events_missed, level.passed), (1, false));
}

#[test]
fn a_failure_on_a_server_of_this_process_is_an_error() {
    let mut records = records();
    records[3].outcome = crate::outcome::Outcome::Cut;
    let error = Level::new(4, &result(records), &Writes::new()).unwrap_err();
    assert!(error.to_string().contains("cut"), "{error}");
}

#[test]
fn the_bottleneck_is_where_the_client_first_falls_behind() {
    let base = Level::new(4, &result(records()), &writes(&records(), |_| 0)).unwrap();
    let level = |events_per_second, passed| Level {
        events_per_second,
        passed,
        ..base.clone()
    };
    let found = |levels: &[Level]| {
        let report = SelfTestReport::new(1000.0, levels.to_vec());
        (
            report.sustained_events_per_second,
            report.found_bottleneck,
            report.passed,
        )
    };
    let climb = [
        level(800.0, true),
        level(1600.0, true),
        level(3000.0, false),
    ];
    assert_eq!(found(&climb), (Some(1600.0), true, true));
    assert_eq!(found(&climb[..1]), (Some(800.0), false, false));
    assert_eq!(found(&climb[2..]), (None, true, false));
    // A pass above a failure is luck.
    let lucky = [level(800.0, false), level(1600.0, true)];
    assert_eq!(found(&lucky).0, None);
}

/// The whole way over sockets. How late the client is depends on the machine; that it counts every
/// event, and sees none before it was written, does not.
#[tokio::test]
async fn the_client_counts_what_the_server_wrote() {
    let level = measure(SCRIPT, 2, Duration::from_millis(700))
        .await
        .unwrap();
    assert_eq!(level.events_missed, 0);
    assert!(level.first_token_bias.n >= 2 && level.events_per_second > 0.0);
}
