//! Whole answers and streams hold the same.

use serde_json::{Value, json};

use super::support::Rig;

fn chat(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "seed": 7,
                          "max_tokens": 24});
    let fields = body.as_object_mut().expect("an object");
    fields.extend(extra.as_object().expect("an object").clone());
    body
}

/// The text and finish reason of a choice, put together from a stream.
fn gather(chunks: &[Value], index: usize) -> (String, Value) {
    let mut text = String::new();
    let mut finish = Value::Null;
    for choice in chunks
        .iter()
        .flat_map(|c| c["choices"].as_array().expect("choices"))
    {
        if choice["index"] == index {
            let piece = choice["delta"].get("content").unwrap_or(&choice["text"]);
            text.push_str(piece.as_str().unwrap_or_default());
            if !choice["finish_reason"].is_null() {
                assert!(finish.is_null(), "one finish per choice");
                finish = choice["finish_reason"].clone();
            }
        }
    }
    (text, finish)
}

#[tokio::test]
async fn a_stream_holds_what_the_whole_answer_holds() {
    let rig = Rig::new();
    for (i, extra) in [
        json!({"temperature": 0}),
        json!({"temperature": 1.3, "n": 3}),
        json!({"temperature": 2, "n": 2, "logprobs": true, "top_logprobs": 2}),
        json!({"temperature": 1, "ignore_eos": true, "stop": ["e", "\u{fffd}"]}),
    ]
    .into_iter()
    .enumerate()
    {
        // A salt of its own per case, and the same for both: cached tokens are equal too.
        let salted = |salt: String| chat(merge(&extra, &json!({"cache_salt": salt})));
        let whole = rig
            .post("/v1/chat/completions", &salted(format!("{i}a")))
            .await;
        assert_eq!(whole.status, 200, "{}", whole.text);
        let whole = whole.json();
        let streamed = merge(
            &salted(format!("{i}b")),
            &json!({"stream": true, "stream_options": {"include_usage": true}}),
        );
        let answer = rig.post("/v1/chat/completions", &streamed).await;
        let chunks = answer.chunks();
        for (index, choice) in whole["choices"]
            .as_array()
            .expect("choices")
            .iter()
            .enumerate()
        {
            let (text, finish) = gather(&chunks, index);
            assert_eq!(choice["message"]["content"], text);
            assert_eq!(choice["finish_reason"], finish);
            let entries: Vec<Value> = chunks
                .iter()
                .flat_map(|c| c["choices"].as_array().expect("choices"))
                .filter(|c| c["index"] == index)
                .filter_map(|c| c["logprobs"]["content"].as_array().cloned())
                .flatten()
                .collect();
            let expected = choice["logprobs"]["content"].as_array().cloned();
            assert_eq!(expected.unwrap_or_default(), entries);
        }
        assert_eq!(chunks.last().expect("chunks")["usage"], whole["usage"]);
    }
}

fn merge(a: &Value, b: &Value) -> Value {
    let mut fields = a.as_object().expect("an object").clone();
    fields.extend(b.as_object().expect("an object").clone());
    Value::Object(fields)
}
