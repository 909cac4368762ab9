//! What is wrong with a request as a whole: its JSON, its size, its length in tokens, its model.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::Request;
use futures::FutureExt;
use model::TextFiles;
use serde_json::{Value, json};

use super::errors::{CHAT, COMPLETIONS, check};
use super::support::{
    MAX_MODEL_LEN, Rig, chat, completion, engine_config, model, post, text_files,
};
use crate::{GatewayConfig, RequestLimits};

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_in_words_that_clients_know() {
    let rig = Rig::new();
    let prompt = |tokens: usize, max: Value| {
        completion(json!({"prompt": "x".repeat(tokens), "max_tokens": max}))
    };
    for (tokens, max, ok) in [
        (MAX_MODEL_LEN - 1, json!(1), true),
        (MAX_MODEL_LEN - 1, json!(2), false),
        (MAX_MODEL_LEN - 16, json!(null), true),
        (MAX_MODEL_LEN, json!(1), false),
        (MAX_MODEL_LEN + 1, json!(1), false),
    ] {
        let answer = rig.post(COMPLETIONS, &prompt(tokens, max.clone())).await;
        if ok {
            assert_eq!(answer.status, 200, "{}", answer.text);
            continue;
        }
        check(
            &answer,
            400,
            "context_length_exceeded",
            Some("prompt"),
            "(context_length_exceeded)",
        );
        let error = &answer.json()["error"];
        let message = error["message"].as_str().expect("text");
        let sentence = format!("{tokens} prompt tokens plus {max} requested");
        for part in [
            "maximum context length is 512 tokens",
            "prompt is too long",
            &sentence,
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(
            (&error["prompt_tokens"], &error["max_model_len"]),
            (&json!(tokens), &json!(512))
        );
    }
    let rejected =
        "octet_requests_rejected_total{model_name=\"test-model\",reason=\"context_length\"}";
    assert_eq!(rig.metric(rejected).await, 3.0);
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(100_000)}]});
    let answer = rig.post(CHAT, &chat(long)).await;
    check(
        &answer,
        400,
        "context_length_exceeded",
        Some("messages"),
        "at least ",
    );
    // Without a limit of its own, a chat may fill the context.
    let filled = json!({"messages": [{"role": "user", "content": "x".repeat(480)}], "ignore_eos": true, "max_tokens": null});
    let answer = rig.post(CHAT, &chat(filled)).await.json();
    assert_eq!(answer["usage"]["total_tokens"], MAX_MODEL_LEN);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn control_tokens_count_once_however_long_they_are_spelled() {
    let rig = Rig::new();
    let body = completion(json!({"prompt": "<|user|>".repeat(MAX_MODEL_LEN - 1), "max_tokens": 1}));
    let answer = rig.post(COMPLETIONS, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["usage"]["prompt_tokens"], MAX_MODEL_LEN - 1);
}

#[tokio::test]
async fn bodies_that_are_not_json_are_told_where() {
    let rig = Rig::new();
    for (body, fragment) in [
        ("", "line 1 column 0"),
        ("{\n \"a\": x}", "line 2 column 7"),
        ("[1]", "a JSON object"),
        ("{} {}", "line 1 column 4"),
        ("{\"n\": 1, \"n\": 2}", "duplicate key \"n\""),
        (
            "{\"prompt\": \"a\", \"prompt\": \"b\"}",
            "duplicate key \"prompt\"",
        ),
        (
            "{\"logit_bias\": {\"1\": 1, \"1\": 2}}",
            "duplicate key \"1\"",
        ),
        ("{\"temperature\": 1e999}", "line 1"),
        ("{\"temperature\": NaN}", "line 1"),
        ("{\"user\": \"\\ud800\"}", "line 1"),
        ("\u{feff}{}", "line 1"),
        ("\u{1f}\u{8b}\u{8}", "line 1"),
    ] {
        for path in [CHAT, COMPLETIONS] {
            let answer = rig.call(post(path, body)).await;
            check(&answer, 400, "invalid_json", None, fragment);
        }
    }
    for depth in [65, 10_000, 1_000_000] {
        let body = format!("{{\"prompt\":{}", "[".repeat(depth));
        let answer = rig.call(post(COMPLETIONS, &body)).await;
        check(&answer, 400, "invalid_json", None, "64 levels");
    }
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_announced_or_not() {
    let config = GatewayConfig {
        limits: RequestLimits {
            max_body: 1000,
            ..RequestLimits::default()
        },
        ..GatewayConfig::new("test-model")
    };
    let rig = Rig::with(config, engine_config(), model());
    let body = completion(json!({"max_tokens": 1})).to_string();
    let padded = |len: usize| body.clone() + &" ".repeat(len - body.len());
    let pieces = |text: String| {
        let pieces: Vec<Result<Bytes, Infallible>> = text
            .into_bytes()
            .chunks(7)
            .map(|piece| Ok(Bytes::copy_from_slice(piece)))
            .collect();
        Body::from_stream(futures::stream::iter(pieces))
    };
    for (len, status) in [(1000, 200), (1001, 413)] {
        let text = padded(len);
        let announced = Request::post(COMPLETIONS).header("content-length", len);
        for request in [
            announced.body(Body::from(text.clone())),
            Request::post(COMPLETIONS).body(pieces(text)),
        ] {
            let answer = rig.call(request.expect("a valid request")).await;
            assert_eq!(answer.status, status, "{}", answer.text);
            if status == 413 {
                check(&answer, 413, "request_too_large", None, "1000 bytes");
            }
        }
    }
}

#[tokio::test]
async fn unknown_models_are_named_beside_those_served() {
    let config = GatewayConfig {
        served_model_names: vec!["a".into(), "org/b".into()],
        ..GatewayConfig::new("")
    };
    let rig = Rig::with(config.clone(), engine_config(), model());
    for (path, body) in [
        (CHAT, chat(json!({"model": "gpt"}))),
        (COMPLETIONS, completion(json!({"model": "gpt"}))),
    ] {
        let answer = rig.post(path, &body).await;
        check(
            &answer,
            404,
            "model_not_found",
            Some("model"),
            "`gpt` does not exist here; served: a, org/b",
        );
    }
    let answer = rig.post(CHAT, &chat(json!({"model": "org/b"}))).await;
    assert_eq!(answer.json()["model"], "org/b");
    let any = Rig::with(
        GatewayConfig {
            accept_any_model: true,
            ..config
        },
        engine_config(),
        model(),
    );
    let answer = any
        .post(CHAT, &chat(json!({"model": "../../etc/passwd"})))
        .await;
    assert_eq!(answer.json()["model"], "a");
}

#[tokio::test]
async fn a_model_without_a_template_completes_but_does_not_chat() {
    let text = TextFiles {
        chat_templates: Vec::new(),
        ..text_files()
    };
    let rig = Rig::with_text(GatewayConfig::new("m"), engine_config(), model(), text);
    let answer = rig.post(CHAT, &chat(json!({}))).await;
    check(
        &answer,
        400,
        "unsupported_parameter",
        Some("messages"),
        "no chat template",
    );
    assert_eq!(
        rig.post(COMPLETIONS, &completion(json!({}))).await.status,
        200
    );
}

#[tokio::test]
async fn a_template_that_refuses_is_quoted() {
    let mut text = text_files();
    text.chat_templates[0].1 = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}{{ messages[-1].content }}".into();
    let rig = Rig::with_text(GatewayConfig::new("m"), engine_config(), model(), text);
    let body = chat(json!({"messages": [{"role": "system", "content": "x"}]}));
    let answer = rig.post(CHAT, &body).await;
    check(
        &answer,
        400,
        "invalid_value",
        Some("messages"),
        "no system here",
    );
}

/// What bodies that are still arriving take in memory is limited over all of them.
#[tokio::test]
async fn bodies_being_read_share_a_budget_and_give_it_back() {
    let config = GatewayConfig {
        limits: RequestLimits {
            max_bodies: 1000,
            ..RequestLimits::default()
        },
        ..GatewayConfig::new("test-model")
    };
    let rig = Rig::with(config, engine_config(), model());
    let (sender, arriving) = futures::channel::mpsc::unbounded();
    let frame = |text: String| Ok::<_, Infallible>(Bytes::from(text));
    let unfinished = Request::post(COMPLETIONS)
        .header("host", "localhost")
        .body(Body::from_stream(arriving))
        .expect("a valid request");
    let body = completion(json!({"prompt": "a".repeat(200)}));
    let mut unfinished = Box::pin(rig.call(unfinished));
    let text = format!("{{\"prompt\": \"{}", "a".repeat(900));
    sender.unbounded_send(frame(text)).expect("it is read");
    assert!(unfinished.as_mut().now_or_never().is_none());
    let refused = rig.post(COMPLETIONS, &body).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert_eq!(refused.json()["error"]["code"], "too_busy");
    assert!(refused.headers.contains_key("retry-after"));
    drop(unfinished);
    let answer = rig.post(COMPLETIONS, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}
