//! What becomes of connections, and of requests that fail on them.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fake::{Behaviour, FakeServer, MetricsPage};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use loadtest::report::RunVerdict;
use tokio::net::TcpListener;

use crate::{config, count, failed_checks, measure};

#[tokio::test]
async fn cold_connections_are_opened_for_every_request_and_are_no_delay_of_the_client() {
    for (kind, opened) in [("cold", 12), ("warm", 2)] {
        let server = FakeServer::start(&[Behaviour::Ok], MetricsPage::Honest).await;
        let line = format!("--users 2 --requests 10 --output-tokens 2 --connections {kind}");
        let report = measure(&server, &line).await;
        assert_eq!(server.connections(), opened, "{kind}");
        let counted = report.client.connect.n;
        assert_eq!(counted, if kind == "cold" { 10 } else { 0 });
        assert!(failed_checks(&report).is_empty());
    }
}

#[tokio::test]
async fn what_failed_before_its_first_token_is_sent_again_and_both_are_told() {
    let script = [
        Behaviour::Status(503, "draining"),
        Behaviour::CloseBeforeHead,
        Behaviour::Ok,
    ];
    let server = FakeServer::start(&script, MetricsPage::Honest).await;
    // A connection that was used before and closes without a byte is no failure, and sent again anyhow.
    let line = "--requests 4 --output-tokens 2 --retries 2 --connections cold";
    let report = measure(&server, line).await;
    assert_eq!((report.requests.succeeded, report.requests.failed), (4, 0));
    assert_eq!(report.requests.retried, 8);
    for class in ["refused_503_draining", "cut"] {
        assert_eq!(report.outcomes_retried[class].count, 4, "{class}");
    }
    assert_eq!(server.bodies().len(), 12);
    assert_eq!(
        report.records.len(),
        12,
        "attempts have records of their own"
    );
    assert!(
        failed_checks(&report).is_empty(),
        "{:?}",
        failed_checks(&report)
    );
    assert_eq!(report.verdict, RunVerdict::Warning);
    assert!(report.reasons.iter().any(|r| r.contains("8 attempts")));
    // One more is too few for the script.
    let server = FakeServer::start(&script, MetricsPage::Honest).await;
    let report = measure(
        &server,
        "--requests 1 --output-tokens 2 --retries 1 --connections cold",
    )
    .await;
    assert_eq!((count(&report, "cut"), report.requests.retried), (1, 1));
}

#[tokio::test]
async fn a_token_that_came_is_not_asked_for_again() {
    let script = [
        Behaviour::CutStream,
        Behaviour::ErrorEvent,
        Behaviour::Status(400, "x"),
    ];
    let server = FakeServer::start(&script, MetricsPage::Absent).await;
    let report = measure(&server, "--requests 3 --output-tokens 2 --retries 5").await;
    assert_eq!((report.requests.failed, report.requests.retried), (3, 0));
    assert_eq!(server.bodies().len(), 3);
}

/// A server of HTTP/2 alone, which does not understand anything else.
async fn http2_server(served: Arc<AtomicU64>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let served = Arc::clone(&served);
            let service = service_fn(move |request: Request<Incoming>| {
                let served = Arc::clone(&served);
                async move {
                    assert_eq!(request.version(), Version::HTTP_2);
                    assert!(request.uri().authority().is_some());
                    Ok::<_, Infallible>(answer(request.uri().path(), &served))
                }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { drop(serving.await) });
        }
    });
    format!("http://{address}")
}

fn answer(path: &str, served: &AtomicU64) -> Response<Full<Bytes>> {
    let text = match path {
        "/v1/models" => r#"{"data": [{"id": "m"}]}"#.to_owned(),
        "/v1/chat/completions" => {
            served.fetch_add(1, Ordering::Relaxed);
            let event = |data: &str| format!("data: {data}\n\n");
            [
                r#"{"model":"m","choices":[{"index":0,"delta":{"content":"x"}}]}"#,
                r#"{"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
                r#"{"model":"m","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}"#,
                "[DONE]",
            ]
            .map(event)
            .concat()
        }
        _ => {
            return Response::builder()
                .status(404)
                .body(Full::default())
                .unwrap();
        }
    };
    Response::builder()
        .header("content-type", "text/event-stream")
        .body(Full::from(text))
        .unwrap()
}

#[tokio::test]
async fn http_2_is_spoken_where_it_is_asked_for() {
    let served = Arc::new(AtomicU64::new(0));
    let url = http2_server(Arc::clone(&served)).await;
    let fake = FakeServer::start(&[Behaviour::Ok], MetricsPage::Absent).await;
    let line = "--http2 --users 2 --requests 6 --warmup 0 --output-tokens 1 --tokens-per-word 1";
    let mut config = config(&fake, line);
    config.urls = vec![loadtest::target::HttpUrl::parse_base(&url).unwrap()];
    let report = loadtest::app::measure(&config, std::future::pending())
        .await
        .unwrap();
    assert_eq!(count(&report, "ok"), 6, "{:?}", report.outcomes);
    assert_eq!(served.load(Ordering::Relaxed), 6);
    assert_eq!(report.latency.ttft_from_send.n, 6);
}
