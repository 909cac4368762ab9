//! What is wrong with a field: status, code, field and words, on every route alike.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::support::{Answer, Rig, chat, completion};

pub(super) const CHAT: &str = "/v1/chat/completions";
pub(super) const COMPLETIONS: &str = "/v1/completions";

/// One row each: route, fields, code, param, a part of the message.
const FIELDS: &str = include_str!("errors/fields.txt");

/// Checks an error answer: the envelope, and that `fragment` stands in the message.
pub(super) fn check(answer: &Answer, status: u16, code: &str, param: Option<&str>, fragment: &str) {
    let text = &answer.text;
    assert_eq!(answer.status, status, "{text}");
    assert_eq!(answer.headers["content-type"], "application/json");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{text}");
    assert_eq!(error["param"], json!(param), "{text}");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains(fragment), "{fragment:?} in {message:?}");
    let kind = if status < 500 {
        "invalid_request_error"
    } else {
        "service_unavailable_error"
    };
    assert_eq!(error["type"], kind, "{text}");
}

/// A route with the request that its rows change.
type Target = (&'static str, fn(Value) -> Value);

fn targets(route: &str) -> &'static [Target] {
    match route {
        "both" => &[(CHAT, chat), (COMPLETIONS, completion)],
        "chat" => &[(CHAT, chat)],
        "completions" => &[(COMPLETIONS, completion)],
        _ => panic!("{route} is no route"),
    }
}

#[tokio::test]
async fn every_field_is_checked_and_nothing_refused_reaches_the_engine() {
    let rig = Rig::new();
    for row in FIELDS.lines() {
        let columns: Vec<&str> = row.split(" | ").collect();
        let [route, fields, code, param, fragment] = columns[..] else {
            panic!("five columns: {row}");
        };
        for (path, body) in targets(route) {
            let fields: Value = serde_json::from_str(fields).expect(row);
            let answer = rig.post(path, &body(fields)).await;
            check(&answer, 400, code, Some(param), fragment);
        }
    }
    assert_eq!(rig.metric("octet_engine_steps_total").await, 0.0);
}

#[tokio::test]
async fn long_lists_and_texts_are_refused() {
    let rig = Rig::new();
    let biases = |n: usize| (0..n).map(|i| (i.to_string(), json!(1))).collect::<Value>();
    let message = |content: Value| json!({"role": "user", "content": content});
    let parts = vec![json!({"type": "text", "text": "x"}); 65];
    for (route, param, value, code, fragment) in [
        (
            "both",
            "stop",
            json!(vec!["x"; 17]),
            "array_above_max_length",
            "17 entries, more than the limit of 16",
        ),
        (
            "both",
            "stop",
            json!(vec!["x"; 100_000]),
            "array_above_max_length",
            "100000",
        ),
        (
            "both",
            "stop",
            json!("x".repeat(257)),
            "string_above_max_length",
            "257 bytes, more than the limit of 256",
        ),
        (
            "both",
            "stop_token_ids",
            json!(vec![1; 129]),
            "array_above_max_length",
            "limit of 128",
        ),
        (
            "both",
            "logit_bias",
            biases(1025),
            "object_above_max_properties",
            "1025 entries",
        ),
        (
            "both",
            "cache_salt",
            json!("x".repeat(1025)),
            "invalid_value",
            "not 1025",
        ),
        (
            "chat",
            "messages",
            json!(vec![message(json!("x")); 2049]),
            "array_above_max_length",
            "2048",
        ),
        (
            "chat",
            "messages[0].content",
            json!([message(json!(parts))]),
            "array_above_max_length",
            "64",
        ),
        (
            "completions",
            "prompt",
            json!(vec!["x"; 33]),
            "array_above_max_length",
            "33 entries",
        ),
    ] {
        for (path, body) in targets(route) {
            let name = param.split('[').next().expect("a name");
            let answer = rig.post(path, &body(json!({name: value}))).await;
            check(&answer, 400, code, Some(param), fragment);
        }
    }
}

#[tokio::test]
async fn values_at_the_borders_and_nulls_are_accepted() {
    let rig = Rig::new();
    let fields = [
        "temperature",
        "top_p",
        "n",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "seed",
        "stream",
        "stream_options",
        "top_k",
        "min_p",
        "repetition_penalty",
        "repeat_penalty",
        "ignore_eos",
        "min_tokens",
        "stop_token_ids",
        "skip_special_tokens",
        "include_stop_str_in_output",
        "cache_salt",
        "response_format",
        "best_of",
        "user",
        "model",
        "functions",
        "tools",
        "guided_json",
        "echo",
        "suffix",
        "nothing_known",
    ];
    let nulls: Value = fields
        .iter()
        .map(|name| ((*name).to_owned(), Value::Null))
        .collect();
    let rows = [
        nulls,
        json!({"temperature": 0, "top_p": 1, "n": 8.0, "top_k": -1, "min_p": 0}),
        json!({"temperature": 2.0, "top_p": 1e-300, "n": 1, "top_k": 2_147_483_647, "min_p": 1.0}),
        json!({"max_tokens": 5.0, "min_tokens": 5, "seed": i64::MIN, "stop": []}),
        json!({"max_tokens": 1, "seed": i64::MAX, "stop": vec!["x".repeat(256); 16]}),
        json!({"frequency_penalty": 2, "presence_penalty": -2, "repetition_penalty": 0.01}),
        json!({"frequency_penalty": -2.0, "presence_penalty": -0.0, "repeat_penalty": 100}),
        json!({"logit_bias": {"0": -100, "258": 100.0}, "max_tokens": 1}),
        json!({"stop_token_ids": [0, 258.0], "response_format": {"type": "text"}, "best_of": 1}),
        json!({"model": "default", "cache_salt": "x".repeat(1024), "top_k": 0}),
        json!({"model": "", "priority": 0, "use_beam_search": false, "return_token_ids": false}),
    ];
    for row in rows {
        for (path, body) in [
            (CHAT, chat(row.clone())),
            (COMPLETIONS, completion(row.clone())),
        ] {
            let answer = rig.post(path, &body).await;
            assert_eq!(answer.status, StatusCode::OK, "{row}: {}", answer.text);
            assert!(!answer.headers.contains_key("x-ignored-params") || row["user"].is_string());
        }
    }
    for content in [
        json!(""),
        json!(" \n"),
        json!([]),
        json!([{"type": "text", "text": "x"}]),
    ] {
        let body = chat(json!({"messages": [{"role": "system", "content": content}]}));
        assert_eq!(rig.post(CHAT, &body).await.status, 200, "{content}");
    }
}

#[tokio::test]
async fn the_newer_name_of_the_token_limit_wins() {
    let rig = Rig::new();
    let body = chat(json!({"max_tokens": 5, "max_completion_tokens": 6, "ignore_eos": true}));
    let usage = rig.post(CHAT, &body).await.json()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 6);
}
