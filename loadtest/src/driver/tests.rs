use tokio::net::TcpListener;

use super::*;
use crate::clock::SECOND;
use crate::content::Content;
use crate::lengths::Lengths;
use crate::outcome::Outcome;
use crate::record::tests::success;
use crate::target::HttpUrl;
use crate::transport::Protocol;
use crate::workload::{Api, TokensPerWord};

fn plan(warmup: u64, requests: Option<u64>, duration: Option<u64>) -> Plan {
    // No test here waits for a limit.
    let limit = Duration::from_secs(600);
    Plan {
        arrival: Arrival::Closed { users: 1 },
        warmup: Warmup::Requests(warmup),
        requests,
        exact_count: None,
        duration: duration.map(Duration::from_secs),
        ramp_up: Duration::ZERO,
        timeouts: Timeouts {
            connect: limit,
            head: limit,
            first: limit,
            gap: limit,
            total: limit,
        },
        connections: Connections::Warm,
        retries: 0,
        samples_texts: false,
        gives_up_on: None,
    }
}

/// A run whose target answers nobody: the listener is returned so that it can be closed.
async fn idle_run(plan: Plan) -> (Arc<Run>, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = HttpUrl::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let clock = Clock::start();
    let workload = Workload {
        api: Api::Chat,
        model: "m".into(),
        seed: 0,
        contents: vec![Content::words(Lengths::Fixed(4), Lengths::Fixed(4))],
        trace: None,
        tokens_per_word: TokensPerWord {
            per_word: 1.0,
            overhead: 0.0,
        },
        vocabulary: None,
        temperature: 0.0,
        nonce: None,
    };
    (
        Run::new(
            plan,
            vec![
                Target::resolve(url, None, Protocol::Http1, clock)
                    .await
                    .unwrap(),
            ],
            workload,
            clock,
        ),
        listener,
    )
}

fn phase(run: &Run, t: Nanos) -> Option<Phase> {
    run.issue(t).map(|ticket| ticket.phase)
}

fn end(run: &Run, phase: Phase) {
    run.keep(RequestRecord {
        phase,
        ..success(0, 0, 1, 1)
    });
}

#[tokio::test]
async fn a_number_of_requests_is_exact() {
    let (run, _listener) = idle_run(plan(2, Some(3), None)).await;
    let phases: Vec<_> = (0..7).map(|t| phase(&run, t)).collect();
    let (warm, measured) = (Some(Phase::Warmup), Some(Phase::Measured));
    assert_eq!(
        phases,
        [warm, warm, measured, measured, measured, None, None]
    );
    assert_eq!((run.window.start(), run.window.end()), (Some(2), None));
}

#[tokio::test]
async fn load_goes_on_until_the_last_measured_request_has_ended() {
    let (run, _listener) = idle_run(plan(1, None, Some(10))).await;
    assert_eq!(phase(&run, SECOND), Some(Phase::Warmup));
    assert_eq!(phase(&run, 2 * SECOND), Some(Phase::Measured));
    assert_eq!(run.window.end(), Some(12 * SECOND));
    assert_eq!(phase(&run, 12 * SECOND - 1), Some(Phase::Measured));
    end(&run, Phase::Measured);
    assert_eq!(
        phase(&run, 12 * SECOND),
        Some(Phase::Background),
        "one measured request is still open"
    );
    end(&run, Phase::Background);
    assert_eq!(phase(&run, 13 * SECOND), Some(Phase::Background));
    end(&run, Phase::Measured);
    assert_eq!(phase(&run, 14 * SECOND), None);
}

#[tokio::test]
async fn whichever_limit_comes_first_ends_the_run() {
    let (run, _listener) = idle_run(plan(0, Some(2), Some(10))).await;
    assert_eq!(phase(&run, 0), Some(Phase::Measured));
    assert_eq!(phase(&run, 1), Some(Phase::Measured));
    assert_eq!(phase(&run, 2), None);
    run.all_issued().await;
}

#[tokio::test]
async fn nothing_is_issued_after_a_stop() {
    let (run, _listener) = idle_run(plan(5, Some(5), None)).await;
    run.stop();
    assert_eq!(phase(&run, 0), None);
    run.all_issued().await;
}

#[tokio::test]
async fn a_server_that_went_away_is_a_failure_to_connect() {
    for arrival in [
        Arrival::Closed { users: 2 },
        Arrival::Poisson {
            rate: 5000.0,
            max_in_flight: 10,
        },
    ] {
        let (run, listener) = idle_run(Plan {
            arrival,
            ..plan(0, Some(3), None)
        })
        .await;
        drop(listener);
        let result = run.run().await;
        assert_eq!(result.records.len(), 3);
        for record in &result.records {
            assert_eq!(
                (&record.outcome, record.reach, record.t_send),
                (&Outcome::Connect, Reach::NotSent, None)
            );
        }
    }
}

#[tokio::test]
async fn an_open_loop_sheds_beyond_its_cap() {
    let arrival = Arrival::Poisson {
        rate: 5000.0,
        max_in_flight: 2,
    };
    // The listener accepts into its backlog and never answers, so nothing leaves the flight early.
    let (run, _listener) = idle_run(Plan {
        arrival,
        ..plan(0, Some(6), None)
    })
    .await;
    let stopper = Arc::clone(&run);
    let (result, ()) = tokio::join!(run.run(), async move {
        while stopper.counts().ended.load(Ordering::Relaxed) < 4 {
            tokio::task::yield_now().await;
        }
        stopper.stop();
    });
    let shed = result
        .records
        .iter()
        .filter(|r| r.outcome == Outcome::ShedByClient)
        .count();
    let unfinished = result
        .records
        .iter()
        .filter(|r| r.outcome == Outcome::Unfinished)
        .count();
    assert_eq!((shed, unfinished), (4, 2));
}

#[tokio::test]
async fn a_warm_up_of_a_time_ends_with_it() {
    let warmup = Warmup::Time(Duration::from_secs(2));
    let (run, _listener) = idle_run(Plan {
        warmup,
        ..plan(0, None, Some(10))
    })
    .await;
    assert_eq!(phase(&run, 7 * SECOND), Some(Phase::Warmup));
    assert_eq!(phase(&run, 9 * SECOND - 1), Some(Phase::Warmup));
    assert_eq!(phase(&run, 9 * SECOND), Some(Phase::Measured));
    assert_eq!(run.window.end(), Some(19 * SECOND));
}
