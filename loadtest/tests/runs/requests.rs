//! What is asked: conversations, traces, workload files, several servers.

use crate::fake::{Behaviour, FakeServer, MetricsPage};
use loadtest::content::Prompts;
use loadtest::dataset::Filtered;
use loadtest::parts::PartKind;

use crate::{count, exact_passes, measure};

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

/// The set that ships, as the file beside it asks it: nothing of it is left out.
#[tokio::test]
async fn the_small_set_is_asked_whole() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/workloads/chat-small.toml");
    let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
    let line = format!("--workload {file} --users 3 --requests 30 --warmup 0");
    let config = crate::config(&server, &line);
    for content in &config.contents {
        let Prompts::Dataset(set) = &content.prompts else {
            panic!("{content:?}");
        };
        let turns: usize = set.conversations.iter().map(Vec::len).sum();
        assert_eq!((set.conversations.len(), turns), (24, 36));
        assert_eq!(set.filtered, Filtered::default());
    }
    let line = format!("--workload {file} --rate 300 --requests 20 --warmup 0");
    let report = measure(&server, &line).await;
    assert_eq!(report.requests.succeeded, 20, "{:?}", report.outcomes);
}
