//! Whole answers and streams hold the same.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::errors::{CHAT, COMPLETIONS};
use super::support::{Rig, cases_without_files, chat, completion, merge};

/// What a choice of a stream adds up to.
#[derive(Debug, Default, PartialEq)]
struct Gathered {
    text: String,
    finish_reason: Value,
    stop_reason: Value,
    /// Entries of the chat format, or the lists of the other one, each put together.
    logprobs: [Vec<Value>; 5],
}

const LISTS: [&str; 5] = [
    "content",
    "tokens",
    "token_logprobs",
    "top_logprobs",
    "text_offset",
];

impl Gathered {
    /// Takes a choice of an answer or of a chunk.
    fn add(&mut self, choice: &Value) {
        assert!(self.finish_reason.is_null(), "nothing follows the finish");
        let texts = [
            &choice["delta"]["content"],
            &choice["message"]["content"],
            &choice["text"],
        ];
        let text = texts.into_iter().find_map(Value::as_str);
        self.text.push_str(text.unwrap_or_default());
        for (list, name) in self.logprobs.iter_mut().zip(LISTS) {
            list.extend(
                choice["logprobs"][name]
                    .as_array()
                    .cloned()
                    .unwrap_or_default(),
            );
        }
        self.finish_reason = choice["finish_reason"].clone();
        self.stop_reason = choice["stop_reason"].clone();
    }
}

/// All choices of some events, by index.
fn gather(events: &[Value]) -> Vec<Gathered> {
    let mut gathered: Vec<Gathered> = Vec::new();
    for choice in events
        .iter()
        .flat_map(|e| e["choices"].as_array().expect("choices"))
    {
        let index = choice["index"].as_u64().expect("an index") as usize;
        if gathered.len() <= index {
            gathered.resize_with(index + 1, Gathered::default);
        }
        gathered[index].add(choice);
    }
    gathered
}

/// Asks for the same as a whole and as a stream, and compares everything.
async fn compare(rig: &Rig, path: &str, body: &Value, salt: &str) {
    // A salt of its own for each: cached tokens are equal too.
    let salted = |kind: &str| merge(body, &json!({"cache_salt": format!("{salt} {kind}")}));
    let whole = rig.post(path, &salted("whole")).await;
    assert_eq!(whole.status, 200, "{}", whole.text);
    let whole = whole.json();
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let streamed = rig.post(path, &merge(&salted("stream"), &options)).await;
    let chunks = streamed.chunks();
    assert_eq!(
        gather(std::slice::from_ref(&whole)),
        gather(&chunks),
        "{body}"
    );
    let last = chunks.last().expect("chunks");
    assert_eq!(
        (&last["usage"], &last["choices"]),
        (&whole["usage"], &json!([])),
        "{body}"
    );
    for chunk in &chunks {
        for field in ["id", "object", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[field], chunks[0][field]);
        }
    }
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
        compare(&rig, CHAT, &chat(extra), &i.to_string()).await;
    }
}

/// Fields of both routes that steer how an answer comes about.
fn fields() -> impl Strategy<Value = Value> {
    let stop = prop::collection::vec("[a-e\u{fffd} ]{1,2}", 0..4);
    let counts = (0..3_usize, 1..60_usize, 1..4_usize, any::<i64>());
    (stop, counts, any::<[bool; 4]>(), 0..=2_i32).prop_map(|(stop, counts, flags, temperature)| {
        let (min_tokens, more, n, seed) = counts;
        let [ignore_eos, include, skip, penalty] = flags;
        json!({
            "stop": stop, "min_tokens": min_tokens, "max_tokens": min_tokens + more, "n": n,
            "seed": seed, "ignore_eos": ignore_eos, "include_stop_str_in_output": include,
            "skip_special_tokens": skip, "temperature": temperature,
            "presence_penalty": f64::from(penalty),
        })
    })
}

/// Fields of one route, with its path.
fn request() -> impl Strategy<Value = (&'static str, Value)> {
    let own = (
        fields(),
        any::<bool>(),
        any::<bool>(),
        0..3_u32,
        "[aé😀]{0,3}",
    );
    own.prop_map(|(fields, is_chat, wants, top, text)| {
        if is_chat {
            let logprobs = json!({"logprobs": wants, "top_logprobs": wants.then_some(top)});
            let messages = json!({"messages": [{"role": "user", "content": text}]});
            return (CHAT, chat(merge(&merge(&fields, &logprobs), &messages)));
        }
        let own = json!({"logprobs": wants.then_some(top), "echo": top == 1,
                         "prompt": [text, "b"]});
        (COMPLETIONS, completion(merge(&fields, &own)))
    })
}

#[test]
fn so_it_is_whatever_the_parameters() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let rig = Rig::new();
    let cases = std::cell::Cell::new(0);
    proptest!(cases_without_files(100), |((path, body) in request())| {
        cases.set(cases.get() + 1);
        runtime.block_on(compare(&rig, path, &body, &format!("case {}", cases.get())));
    });
}

#[tokio::test]
async fn a_temperature_of_the_operator_wins_over_a_greedy_checkpoint() {
    let over = |temperature| model::GenerationDefaults {
        temperature,
        ..model::GenerationDefaults::default()
    };
    let text = model::TextFiles {
        generation: model::GenerationDefaults {
            do_sample: Some(false),
            ..model::GenerationDefaults::default()
        },
        ..super::support::text_files()
    };
    for (temperature, is_greedy) in [(None, true), (Some(2.0), false)] {
        let config = crate::GatewayConfig {
            generation_override: over(temperature),
            ..crate::GatewayConfig::new("test-model")
        };
        let engine = super::support::engine_config();
        let rig = Rig::with_text(config, engine, super::support::model(), text.clone());
        let mut texts = Vec::new();
        for seed in 0..4 {
            let body = chat(json!({"seed": seed, "ignore_eos": true}));
            let answer = rig.post("/v1/chat/completions", &body).await.json();
            texts.push(answer["choices"][0]["message"]["content"].clone());
        }
        let all_equal = texts.iter().all(|text| *text == texts[0]);
        assert_eq!(all_equal, is_greedy, "{temperature:?}: {texts:?}");
    }
}
