//! Requests that are given up, refused or measured.

use std::sync::mpsc::{Sender, channel};

use axum::Router;
use axum::http::header;
use engine::EngineConfig;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http_body_util::BodyExt;
use metrics::Metrics;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::errors::{CHAT, COMPLETIONS};
use super::support::{Rig, chat, completion, engine_config, get, merge, model, post};
use crate::{Gateway, GatewayConfig, router};

const BLOCKS: &str = "octet_kv_cache_blocks_used";
const WAITING: &str = "octet_requests_waiting";

/// A rig whose engine makes one step per message.
fn gated(engine: EngineConfig) -> (Rig, Sender<()>) {
    let (step, gate) = channel();
    let config = GatewayConfig::new("test-model");
    let rig = Rig::with(config, engine, model().with_gate(gate));
    (rig, step)
}

fn finished(reason: &str) -> String {
    format!("octet_requests_finished_total{{finish_reason=\"{reason}\"")
}

fn rejected(reason: &str) -> String {
    format!("octet_requests_rejected_total{{model_name=\"test-model\",reason=\"{reason}\"")
}

fn answered(path: &str, code: u16) -> String {
    format!("octet_requests_total{{code=\"{code}\",endpoint=\"{path}\"")
}

/// Lets the engine thread work until a series has this value.
async fn until(rig: &Rig, series: &str, value: f64) {
    while rig.metric(series).await != value {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_is_cancelled() {
    for (path, body, choices) in [
        (CHAT, chat(json!({"n": 2})), 2.0),
        (CHAT, chat(json!({"stream": true})), 1.0),
        (COMPLETIONS, completion(json!({"prompt": ["a", "b"]})), 2.0),
    ] {
        let (rig, step) = gated(engine_config());
        let mut request = Box::pin(rig.post(path, &body));
        // The engine has the request, and is held in its first step.
        while rig.metric(WAITING).await == 0.0 {
            assert!(request.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        drop(request);
        drop(step);
        for series in [WAITING, "octet_requests_running", BLOCKS] {
            until(&rig, series, 0.0).await;
        }
        assert_eq!(rig.metric(&finished("cancelled")).await, choices);
        assert_eq!(rig.metric(&answered(path, 499)).await, 1.0);
        assert_eq!(
            rig.metric("octet_time_to_first_token_seconds_count").await,
            0.0
        );
        assert_eq!(rig.post(path, &body).await.status, 200);
        assert_eq!(rig.metric(&answered(path, 200)).await, 1.0);
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_is_cancelled() {
    for (path, body, choices) in [
        (CHAT, chat(json!({})), 1.0),
        (CHAT, chat(json!({"n": 3})), 3.0),
        (COMPLETIONS, completion(json!({"prompt": ["a", "b"]})), 2.0),
    ] {
        let (rig, step) = gated(engine_config());
        (0..4).for_each(|_| step.send(()).expect("the model waits"));
        let own = json!({"stream": true, "ignore_eos": true, "max_tokens": 200, "temperature": 0});
        let response = rig.send(post(path, &merge(&body, &own).to_string())).await;
        assert_eq!(response.status(), 200);
        let mut stream = response.into_body().into_data_stream();
        while rig.metric("octet_generation_tokens_total").await < 3.0 {
            stream.next().await.expect("a piece").expect("no failure");
        }
        drop(stream);
        drop(step);
        for series in [WAITING, "octet_requests_running", BLOCKS] {
            until(&rig, series, 0.0).await;
        }
        assert_eq!(rig.metric(&finished("cancelled")).await, choices);
        assert_eq!(rig.metric(&answered(path, 499)).await, 1.0);
        assert!(rig.metric("octet_generation_tokens_total").await < 20.0);
        let in_flight = format!("octet_http_requests_in_flight{{endpoint=\"{path}\"");
        assert_eq!(rig.metric(&in_flight).await, 0.0);
    }
}

#[tokio::test]
async fn an_engine_that_is_given_up_ends_requests_with_an_error() {
    let config = EngineConfig {
        max_num_seqs: 1,
        ..engine_config()
    };
    let (rig, step) = gated(config);
    (0..4).for_each(|_| step.send(()).expect("the model waits"));
    let own = json!({"stream": true, "ignore_eos": true, "max_tokens": 200, "temperature": 0});
    let response = rig.send(post(CHAT, &chat(own).to_string())).await;
    let mut stream = response.into_body().into_data_stream();
    let mut text = Vec::new();
    while rig.metric("octet_generation_tokens_total").await < 3.0 {
        text.extend(stream.next().await.expect("a piece").expect("no failure"));
    }
    // Another comes, the engine does not go on.
    let body = completion(json!({"prompt": ["a", "b"]}));
    let mut waiting = Box::pin(rig.post(COMPLETIONS, &body));
    let in_flight = |path| format!("octet_http_requests_in_flight{{endpoint=\"{path}\"");
    while rig.metric(&in_flight(COMPLETIONS)).await < 1.0 {
        assert!(waiting.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    rig.gateway.give_up();
    while let Some(piece) = stream.next().await {
        text.extend(piece.expect("no failure"));
    }
    drop(stream);
    let text = String::from_utf8(text).expect("text");
    let end: Vec<&str> = text.trim_end().rsplit("\n\n").take(2).collect();
    assert_eq!(end[0], "data: [DONE]", "{text}");
    assert!(end[1].starts_with("data: {\"error\":"), "{text}");
    assert_eq!(waiting.await.status, 500);
    assert_eq!(rig.post(CHAT, &chat(json!({}))).await.status, 500);
    assert_eq!(rig.metric(&in_flight(CHAT)).await, 0.0);
    drop(step);
}

#[tokio::test]
async fn a_full_queue_refuses_the_surplus_and_finishes_the_rest() {
    let config = EngineConfig {
        max_num_seqs: 1,
        max_num_queued_reqs: 3,
        ..engine_config()
    };
    let (rig, step) = gated(config);
    let body = chat(json!({}));
    let mut first = Box::pin(rig.post(CHAT, &body));
    // The first one has left the queue and is held in its first step.
    while rig.metric("octet_request_queue_time_seconds_count").await == 0.0 {
        assert!(first.as_mut().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    let mut others: FuturesUnordered<_> = (0..8).map(|_| rig.post(CHAT, &body)).collect();
    for _ in 0..5 {
        let refused = others.next().await.expect("a surplus");
        assert_eq!(refused.status, 429, "{}", refused.text);
        let error = refused.json()["error"].clone();
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("queue_full"), &json!("rate_limit_error"))
        );
        let wait: u64 = refused.headers["retry-after"]
            .to_str()
            .expect("text")
            .parse()
            .expect("seconds");
        assert!((1..=30).contains(&wait));
    }
    assert_eq!(rig.metric(&rejected("queue_full")).await, 5.0);
    drop(step);
    assert_eq!(first.await.status, 200);
    while let Some(accepted) = others.next().await {
        assert_eq!(accepted.status, 200, "{}", accepted.text);
    }
    assert_eq!(rig.metric(&answered(CHAT, 200)).await, 4.0);
    assert_eq!(rig.metric(&answered(CHAT, 429)).await, 5.0);
}

/// A key that has all its requests is refused, whether they wait, compute or are being read; another is not.
#[tokio::test]
async fn a_key_has_so_many_requests_at_a_time_and_others_have_theirs() {
    let mut config = GatewayConfig::new("test-model");
    config.api_keys = vec!["a".into(), "b".into()];
    config.max_num_reqs_per_key = Some(2);
    let rig = Rig::with(config, engine_config(), model());
    let asked = |key: &str, path: &str, body: &Value| {
        let mut request = post(path, &body.to_string());
        let key = format!("Bearer {key}").parse().expect("a header");
        request.headers_mut().insert(header::AUTHORIZATION, key);
        request
    };
    let stream = json!({"prompt": "ab", "max_tokens": 1, "stream": true});
    let unread = [
        rig.send(asked("a", COMPLETIONS, &stream)).await,
        rig.send(asked("a", COMPLETIONS, &stream)).await,
    ];
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": "ab", "max_tokens": 1})),
        (CHAT, chat(json!({"stream": true}))),
        ("/v1/embeddings", json!({"input": "a"})),
    ] {
        let refused = rig.call(asked("a", path, &body)).await;
        assert_eq!(refused.status, 429, "{}", refused.text);
        assert!(refused.headers.contains_key(header::RETRY_AFTER));
        let error = refused.json()["error"].clone();
        assert_eq!(error["code"], "rate_limit_exceeded");
        assert!(refused.text.contains("2 requests"), "{}", refused.text);
    }
    assert_eq!(rig.metric(&rejected("rate_limit")).await, 3.0);
    // What computes nothing is not counted.
    let tokens = asked("a", "/tokenize", &json!({"prompt": "a"}));
    assert_eq!(rig.call(tokens).await.status, 200);
    let other = rig.call(asked("b", COMPLETIONS, &stream)).await;
    assert_eq!(other.status, 200, "{}", other.text);
    let [first, second] = unread;
    drop(first);
    let next = rig.call(asked("a", COMPLETIONS, &stream)).await;
    assert_eq!(next.status, 200, "{}", next.text);
    // It gave its place back, and so does a request that was not accepted.
    for _ in 0..3 {
        let bad = rig
            .call(asked("a", COMPLETIONS, &json!({"max_tokens": -1})))
            .await;
        assert_eq!(bad.status, 400, "{}", bad.text);
    }
    drop(second);
}

/// What one key has had computed tells another nothing, not even by being there already.
#[tokio::test]
async fn cached_prefixes_are_shared_within_a_key_and_not_beyond() {
    let mut config = GatewayConfig::new("test-model");
    config.api_keys = vec!["a".into(), "b".into()];
    let rig = Rig::with(config, engine_config(), model());
    let cached = async |key: &str| {
        let body = json!({"prompt": "x".repeat(200), "max_tokens": 1});
        let mut request = post(COMPLETIONS, &body.to_string());
        let key = format!("Bearer {key}").parse().expect("a header");
        request.headers_mut().insert(header::AUTHORIZATION, key);
        let answer = rig.call(request).await.json();
        let details = answer["usage"]["prompt_tokens_details"].clone();
        details["cached_tokens"].as_u64().expect("a number")
    };
    assert_eq!(cached("a").await, 0);
    assert!(cached("a").await > 100);
    assert_eq!(cached("b").await, 0);
}

/// What alone is more than may wait is not told for ever to come back; it runs whole, or not at all.
#[tokio::test]
async fn requests_and_tokens_that_wait_are_limited_and_a_larger_call_waits_alone() {
    let few_requests = EngineConfig {
        max_num_queued_reqs: 2,
        ..engine_config()
    };
    let few_tokens = EngineConfig {
        max_num_queued_tokens: 30,
        ..engine_config()
    };
    let long = "x".repeat(31);
    for (config, prompts, reason) in [
        (few_requests, vec!["a", "b", "c", "d"], "queue_full"),
        (few_tokens, vec![long.as_str(); 3], "queue_tokens"),
    ] {
        let (rig, step) = gated(EngineConfig {
            max_num_seqs: 2,
            ..config
        });
        let large = completion(json!({"prompt": prompts}));
        let mut large = Box::pin(rig.post(COMPLETIONS, &large));
        while rig.metric(WAITING).await == 0.0 {
            assert!(large.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        let next = completion(json!({"prompt": ["y", "z"]}));
        assert_eq!(rig.post(COMPLETIONS, &next).await.status, 429);
        assert_eq!(rig.metric(&rejected(reason)).await, 1.0);
        drop(step);
        assert_eq!(large.await.status, 200);
        for series in [WAITING, BLOCKS] {
            until(&rig, series, 0.0).await;
        }
        assert_eq!(rig.metric(&finished("cancelled")).await, 0.0);
        assert_eq!(rig.post(COMPLETIONS, &next).await.status, 200);
    }
}

async fn ask(
    router: &Router,
    request: axum::http::Request<axum::body::Body>,
) -> (axum::http::response::Parts, Value) {
    let Ok(response) = router.clone().oneshot(request).await;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("bodies do not fail").to_bytes();
    (parts, serde_json::from_slice(&bytes).expect("JSON"))
}

#[tokio::test]
async fn while_the_model_loads_there_is_progress_and_503() {
    let gateway = Gateway::new(GatewayConfig::new("test-model"), Metrics::new("test-model"));
    let router = router(gateway.clone());
    for (progress, shown) in [(0.0, 0.0), (0.42, 0.42), (7.0, 1.0)] {
        gateway.set_load_progress(progress);
        let (parts, body) = ask(&router, get("/health")).await;
        assert_eq!(parts.status, 503);
        assert_eq!(parts.headers["retry-after"], "5");
        assert_eq!(body, json!({"status": "loading", "progress": shown}));
    }
    let (live, _) = ask(&router, get("/health/live")).await;
    assert_eq!(live.status, 200);
    for request in [
        post(CHAT, "{}"),
        post(COMPLETIONS, "no JSON"),
        get("/v1/models"),
    ] {
        let (parts, body) = ask(&router, request).await;
        assert_eq!(parts.status, 503);
        assert_eq!(body["error"]["code"], "model_loading");
        assert_eq!(body["error"]["type"], "service_unavailable_error");
        let wait: u64 = parts.headers["retry-after"]
            .to_str()
            .expect("text")
            .parse()
            .expect("seconds");
        assert!((1..=30).contains(&wait));
    }
}

#[tokio::test]
async fn metrics_say_what_was_sent() {
    let rig = Rig::new();
    let mut sent = [0.0; 3];
    let mut gaps = 0.0;
    for (n, stream) in [(1, false), (1, true), (3, false), (2, true)] {
        let own = json!({"n": n, "temperature": 1, "logprobs": true, "stream": stream,
                         "stop": "e", "cache_salt": format!("{n}{stream}")});
        let own = match stream {
            true => merge(&own, &json!({"stream_options": {"include_usage": true}})),
            false => own,
        };
        let answer = rig.post(CHAT, &chat(own)).await;
        let events = if stream {
            answer.chunks()
        } else {
            vec![answer.json()]
        };
        let usage = &events.last().expect("an event")["usage"];
        let choices = events
            .iter()
            .flat_map(|event| event["choices"].as_array().expect("choices"));
        let entries: usize = choices
            .map(|choice| choice["logprobs"]["content"].as_array().map_or(0, Vec::len))
            .sum();
        assert_eq!(usage["completion_tokens"], entries);
        assert_eq!(
            usage["total_tokens"],
            usage["prompt_tokens"].as_u64().expect("a count") + entries as u64
        );
        sent[0] += usage["prompt_tokens"].as_f64().expect("a count");
        sent[1] += entries as f64;
        sent[2] += f64::from(n);
        gaps += entries as f64 - f64::from(n);
    }
    for (series, value) in [
        ("octet_prompt_tokens_total", sent[0]),
        ("octet_generation_tokens_total", sent[1]),
        ("octet_time_to_first_token_seconds_count", 4.0),
        ("octet_inter_token_latency_seconds_count", gaps),
        ("octet_e2e_request_latency_seconds_count", 4.0),
        ("octet_request_generation_tokens_sum", sent[1]),
        ("octet_request_max_tokens_sum", 4.0 * 24.0),
        ("octet_panics_total", 0.0),
    ] {
        assert_eq!(rig.metric(series).await, value, "{series}");
    }
    let ended = rig.metric(&finished("stop")).await + rig.metric(&finished("length")).await;
    assert_eq!(ended, sent[2]);
    assert_eq!(rig.metric(&answered(CHAT, 200)).await, 4.0);
}
