//! Streams event by event, as they stand on the wire.

use serde_json::{Value, json};

use super::errors::{CHAT, COMPLETIONS};
use super::script::{LOGPROB, Script};
use super::support::{Answer, END, Rig, chat, completion, engine_config, merge};
use crate::GatewayConfig;

fn rig(script: Script) -> Rig {
    Rig::with(GatewayConfig::new("test-model"), engine_config(), script)
}

/// Asks for a stream and reads it.
pub(super) async fn stream(rig: &Rig, path: &str, body: Value) -> Answer {
    let answer = rig
        .post(path, &merge(&body, &json!({"stream": true})))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer
}

/// Compares a stream with its events but for what all of them share, which is checked to be shared.
fn check(answer: &Answer, object: &str, expected: &[Value]) {
    let first = &answer.chunks()[0];
    let events: Vec<String> = expected
        .iter()
        .map(|own| {
            let mut event = json!({
                "id": first["id"], "object": object, "created": first["created"],
                "model": "test-model", "system_fingerprint": first["system_fingerprint"],
            });
            let fields = event.as_object_mut().expect("an object");
            fields.extend(own.as_object().expect("an object").clone());
            format!("data: {event}\n\n")
        })
        .collect();
    assert_eq!(answer.text, events.concat() + "data: [DONE]\n\n");
}

fn role(index: usize) -> Value {
    json!({"choices": [{"index": index, "delta": {"role": "assistant", "content": ""},
                        "logprobs": null, "finish_reason": null}]})
}

fn piece(text: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {"content": text}, "logprobs": null,
                        "finish_reason": null}]})
}

fn finish(reason: &str, stop: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "logprobs": null, "finish_reason": reason,
                        "stop_reason": stop}]})
}

const CHUNK: &str = "chat.completion.chunk";

#[tokio::test]
async fn a_plain_chat() {
    let answer = stream(&rig(Script::saying("Hi")), CHAT, chat(json!({}))).await;
    let events = [role(0), piece("H"), piece("i"), finish("stop", Value::Null)];
    check(&answer, CHUNK, &events);
    for (name, value) in [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(answer.headers[name], value);
    }
    assert!(!answer.headers["x-request-id"].is_empty());
    let first = &answer.chunks()[0];
    let starts = |field: &str, with| first[field].as_str().expect("text").starts_with(with);
    assert!(starts("id", "chatcmpl-") && starts("system_fingerprint", "fp_"));
}

#[tokio::test]
async fn usage_stands_in_every_event_on_request() {
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"stream_options": options, "max_tokens": 2});
    for (path, body, expected) in [
        (CHAT, chat(body.clone()), vec![0, 1, 2, 2, 2]),
        (COMPLETIONS, completion(body), vec![1, 2, 2, 2]),
    ] {
        let rig = rig(Script::saying("Hi"));
        let chunks = stream(&rig, path, body).await.chunks();
        let prompt = &chunks[0]["usage"]["prompt_tokens"];
        assert!(prompt.as_u64() > Some(0));
        for (chunk, completion) in chunks.iter().zip(&expected) {
            assert_eq!(chunk["usage"]["completion_tokens"], *completion, "{path}");
            assert_eq!(chunk["usage"]["prompt_tokens"], *prompt);
        }
        assert_eq!(chunks.len(), expected.len());
    }
    let alone = json!({"stream_options": {"continuous_usage_stats": true}});
    for chunk in stream(&Rig::new(), CHAT, chat(alone)).await.chunks() {
        assert!(chunk.get("usage").is_none());
    }
}

#[tokio::test]
async fn usage_is_null_until_its_own_event() {
    let body = chat(json!({"stream_options": {"include_usage": true}, "max_tokens": 1}));
    let answer = stream(&rig(Script::saying("Hi")), CHAT, body).await;
    let null = json!({"usage": null});
    let usage = json!({
        "prompt_tokens": 13, "completion_tokens": 1, "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    });
    let events = [
        merge(&role(0), &null),
        merge(&piece("H"), &null),
        merge(&finish("length", Value::Null), &null),
        json!({"choices": [], "usage": usage}),
    ];
    check(&answer, CHUNK, &events);
}

#[tokio::test]
async fn roles_of_all_choices_come_first_in_order() {
    let answer = stream(&Rig::new(), CHAT, chat(json!({"n": 3, "temperature": 1}))).await;
    let chunks = answer.chunks();
    for (index, chunk) in chunks[..3].iter().enumerate() {
        assert_eq!(chunk["choices"], role(index)["choices"]);
    }
    for chunk in &chunks[3..] {
        let delta = &chunk["choices"][0]["delta"];
        assert!(delta.get("role").is_none());
        let is_last = !chunk["choices"][0]["finish_reason"].is_null();
        assert_eq!(
            is_last,
            delta["content"].as_str().unwrap_or_default().is_empty()
        );
    }
    let ends = |index: usize| {
        let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
        choices
            .filter(|c| c["index"] == index && !c["finish_reason"].is_null())
            .count()
    };
    assert_eq!([ends(0), ends(1), ends(2)], [1, 1, 1]);
}

#[tokio::test]
async fn log_probabilities_belong_to_the_text_beside_them() {
    let body = chat(json!({"logprobs": true, "top_logprobs": 2}));
    let answer = stream(&rig(Script::saying("é")), CHAT, body).await;
    let top = |token: &str, byte: u8, logprob: f32| json!({"token": token, "logprob": logprob, "bytes": [byte]});
    let entry = |byte: u8| {
        let mut entry = top("\u{fffd}", byte, LOGPROB);
        entry["top_logprobs"] = json!([
            top("\u{fffd}", byte, LOGPROB),
            top("\u{fffd}", byte + 1, LOGPROB - 1.0)
        ]);
        entry
    };
    let mut text = piece("é");
    text["choices"][0]["logprobs"] =
        json!({"content": [entry(0xC3), entry(0xA9)], "refusal": null});
    let mut end = finish("stop", Value::Null);
    let spelled =
        |token: &str| json!({"token": token, "logprob": LOGPROB, "bytes": token.as_bytes()});
    let mut last = spelled("<|end|>");
    last["top_logprobs"] = json!([
        spelled("<|end|>"), {"token": "\u{0}", "logprob": LOGPROB - 1.0, "bytes": [0]}
    ]);
    end["choices"][0]["logprobs"] = json!({"content": [last], "refusal": null});
    check(&answer, CHUNK, &[role(0), text, end]);
}

#[tokio::test]
async fn stop_strings_do_not_leak() {
    for (said, stop, pieces, reason, matched) in [
        (
            "a STOP b",
            json!("STOP"),
            vec!["a", " "],
            "stop",
            json!("STOP"),
        ),
        (
            "a STOq",
            json!("STOP"),
            vec!["a", " ", "STOq"],
            "stop",
            json!(null),
        ),
        ("STOP", json!(["x", "STOP"]), vec![], "stop", json!("STOP")),
        ("xé!", json!("é"), vec!["x"], "stop", json!("é")),
        (
            "ababac",
            json!(["abac", "zz"]),
            vec!["ab"],
            "stop",
            json!("abac"),
        ),
    ] {
        let answer = stream(
            &rig(Script::saying(said)),
            CHAT,
            chat(json!({"stop": stop})),
        )
        .await;
        let mut events = vec![role(0)];
        events.extend(pieces.into_iter().map(piece));
        events.push(finish(reason, matched));
        check(&answer, CHUNK, &events);
    }
    // Cut off by the token limit, what was held back is no stop string.
    let body = chat(json!({"stop": "STOP", "max_tokens": 3}));
    let answer = stream(&rig(Script::saying("STOP")), CHAT, body).await;
    check(
        &answer,
        CHUNK,
        &[role(0), piece("STO"), finish("length", Value::Null)],
    );
}

#[tokio::test]
async fn characters_leave_whole() {
    for (said, max, pieces, reason) in [
        ("a😀b".as_bytes(), 24, vec!["a", "😀", "b"], "stop"),
        (
            "👩‍👩‍👧".as_bytes(),
            24,
            vec!["👩", "\u{200d}", "👩", "\u{200d}", "👧"],
            "stop",
        ),
        ("😀".as_bytes(), 3, vec!["\u{fffd}"], "length"),
        (b"\xF0\x9F!", 24, vec!["\u{fffd}!"], "stop"),
        (b"\xFFx", 24, vec!["\u{fffd}", "x"], "stop"),
        (
            b"\n\r\xE2\x80\xA8",
            24,
            vec!["\n", "\r", "\u{2028}"],
            "stop",
        ),
        (b"", 24, vec![], "stop"),
    ] {
        let answer = stream(
            &rig(Script::saying(said)),
            CHAT,
            chat(json!({"max_tokens": max})),
        )
        .await;
        let mut events = vec![role(0)];
        events.extend(pieces.into_iter().map(piece));
        events.push(finish(reason, Value::Null));
        check(&answer, CHUNK, &events);
    }
}

#[tokio::test]
async fn control_tokens_are_left_out_or_spelled() {
    let said = || {
        Script::of(vec![
            u32::from(b'a'),
            256,
            u32::from(b'b'),
            END,
            u32::from(b'c'),
        ])
    };
    for (fields, pieces, reason) in [
        (json!({}), vec!["a", "b"], "stop"),
        (
            json!({"skip_special_tokens": false}),
            vec!["a", "<s>", "b"],
            "stop",
        ),
        (
            json!({"ignore_eos": true, "max_tokens": 5}),
            vec!["a", "b", "c"],
            "length",
        ),
    ] {
        let answer = stream(&rig(said()), CHAT, chat(fields)).await;
        let mut events = vec![role(0)];
        events.extend(pieces.into_iter().map(piece));
        events.push(finish(reason, Value::Null));
        check(&answer, CHUNK, &events);
    }
}

fn text(index: usize, text: &str, logprobs: Value) -> Value {
    json!({"choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": null}]})
}

fn end(index: usize, reason: &str, logprobs: Value) -> Value {
    json!({"choices": [{"index": index, "text": "", "logprobs": logprobs, "finish_reason": reason,
                        "stop_reason": null}]})
}

#[tokio::test]
async fn completions_begin_with_the_echo() {
    let none = || Value::Null;
    let body = completion(json!({"echo": true, "max_tokens": 2, "n": 2, "prompt": "ab"}));
    let answer = stream(&rig(Script::saying("xyz")), COMPLETIONS, body).await;
    let events = [
        text(0, "ab", none()),
        text(1, "ab", none()),
        text(0, "x", none()),
        text(1, "x", none()),
        text(0, "y", none()),
        end(0, "length", none()),
        text(1, "y", none()),
        end(1, "length", none()),
    ];
    check(&answer, "text_completion", &events);
    let scores = json!({"echo": true, "max_tokens": 0, "logprobs": 1, "prompt": "ab"});
    let answer = stream(&rig(Script::saying("x")), COMPLETIONS, completion(scores)).await;
    let scores = json!({"tokens": ["a", "b"], "token_logprobs": [null, LOGPROB],
                        "top_logprobs": [null, {"b": LOGPROB}], "text_offset": [0, 1]});
    let events = [
        text(0, "ab", none()),
        text(0, "", scores),
        end(0, "length", none()),
    ];
    check(&answer, "text_completion", &events);
}

#[tokio::test]
async fn choices_of_several_prompts_are_numbered_through() {
    let prompts = [vec![104_u32, 105], vec![97], vec![98, 99, 100]];
    let body = completion(json!({"prompt": prompts, "n": 2, "max_tokens": 3, "ignore_eos": true}));
    let rig = Rig::new();
    let whole = rig.post(COMPLETIONS, &body).await.json();
    let answer = stream(&rig, COMPLETIONS, body).await;
    let mut texts = vec![String::new(); 6];
    for chunk in answer.chunks() {
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().expect("an index") as usize;
        texts[index].push_str(choice["text"].as_str().expect("text"));
    }
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(whole["choices"][index]["index"], index);
        assert_eq!(whole["choices"][index]["text"], *text);
    }
    assert_eq!(whole["usage"]["prompt_tokens"], 6);
    assert_eq!(whole["usage"]["completion_tokens"], 18);
}
