//! Bodies that are nearly right: refused or answered, never a failure of the server.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use super::errors::{CHAT, COMPLETIONS};
use super::support::{Rig, cases_without_files, post};
use crate::request::fields;

/// A request with every kind of field.
fn valid(path: &str) -> Value {
    let mut body = json!({
        "model": "test-model", "max_tokens": 3, "temperature": 1.0, "top_p": 0.9, "n": 2,
        "stop": ["a", "bc"], "logit_bias": {"5": 1.5}, "seed": 3, "stream": true,
        "stream_options": {"include_usage": true}, "top_k": 5, "min_tokens": 1,
        "stop_token_ids": [7], "cache_salt": "x", "user": "u", "metadata": {"a": "b"},
        "response_format": {"type": "text"},
    });
    let own = if path == CHAT {
        json!({"messages": [
            {"role": "system", "content": "s"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "content": "t", "tool_call_id": "1"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "n"}],
            "logprobs": true, "top_logprobs": 2, "chat_template_kwargs": {"x": [1]}})
    } else {
        json!({"prompt": [[1, 2], [3]], "logprobs": 2, "echo": true})
    };
    let fields = body.as_object_mut().expect("an object");
    fields.extend(own.as_object().expect("an object").clone());
    body
}

/// Values that are too large, too small, of the wrong type or just odd.
fn odd() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(-0.0),
            json!(1.5),
            json!(1e308),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(4_294_967_296_u64),
            json!(""),
            json!("1"),
            json!("<|end|>"),
            json!("\u{0}\u{10fffd}"),
            json!("x".repeat(300)),
        ]),
        any::<i32>().prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let key = select(vec!["role", "content", "type", "text", "5", "", "é"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..3).prop_map(|fields| {
                fields
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value))
                    .collect()
            }),
        ]
    })
}

/// Every value inside `value`, itself first, as pointers.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    places.push(at.to_owned());
    match value {
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                self::places(item, &format!("{at}/{i}"), places);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                self::places(field, &format!("{at}/{name}"), places);
            }
        }
        _ => {}
    }
}

/// Replaces a value somewhere in the body.
fn replace(body: &mut Value, place: Index, value: Value) {
    let mut all = Vec::new();
    places(body, "", &mut all);
    if let Some(old) = body.pointer_mut(&all[place.index(all.len())]) {
        *old = value;
    }
}

fn names() -> Vec<&'static str> {
    let tables = fields::CHAT.iter().chain(fields::COMPLETIONS).copied();
    tables.flatten().map(|(name, _)| *name).collect()
}

fn body() -> impl Strategy<Value = (&'static str, Value)> {
    let replaced = prop::collection::vec((any::<Index>(), odd()), 0..3);
    let added = prop::collection::vec((select(names()), odd()), 0..2);
    (select(vec![CHAT, COMPLETIONS]), replaced, added).prop_map(|(path, replaced, added)| {
        let mut body = valid(path);
        for (place, value) in replaced {
            replace(&mut body, place, value);
        }
        if let Value::Object(fields) = &mut body {
            fields.extend(
                added
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value)),
            );
        }
        (path, body)
    })
}

fn check(rig: &Rig, runtime: &tokio::runtime::Runtime, path: &str, body: &str) {
    let answer = runtime.block_on(rig.call(post(path, body)));
    let status = answer.status.as_u16();
    assert!(
        matches!(status, 200 | 400 | 404),
        "{status}: {body}\n{}",
        answer.text
    );
    if status != 200 {
        let error = &answer.json()["error"];
        assert!(
            error["code"].is_string() && error["message"].is_string(),
            "{error}"
        );
    } else if answer.headers["content-type"] == "application/json" {
        assert!(answer.json()["usage"].is_object());
    } else {
        let chunks = answer.chunks();
        assert!(
            chunks.iter().all(|chunk| chunk.get("error").is_none()),
            "{body}"
        );
    }
}

#[test]
fn nearly_right_bodies_are_answered_or_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let rig = Rig::new();
    for path in [CHAT, COMPLETIONS] {
        let answer = runtime.block_on(rig.post(path, &valid(path)));
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    proptest!(cases_without_files(400), |((path, body) in body())| {
        check(&rig, &runtime, path, &body.to_string());
    });
    // The same with bytes changed, so that JSON itself breaks.
    let bytes = (
        body(),
        prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
    );
    proptest!(cases_without_files(200), |(((path, body), changes) in bytes)| {
        let mut bytes = body.to_string().into_bytes();
        for (place, byte) in changes {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        check(&rig, &runtime, path, &String::from_utf8_lossy(&bytes));
    });
    assert_eq!(runtime.block_on(rig.metric("octet_panics_total")), 0.0);
    assert_eq!(
        runtime.block_on(rig.metric("octet_engine_restarts_total")),
        0.0
    );
}
