//! Completions: prompts of every shape, echo with scores, and what steers the choice of tokens.

use serde_json::{Value, json};

use super::errors::{CHAT, COMPLETIONS};
use super::script::{LOGPROB, Script};
use super::support::{END, Rig, chat, completion, engine_config};
use crate::GatewayConfig;

fn rig(script: Script) -> Rig {
    Rig::with(GatewayConfig::new("test-model"), engine_config(), script)
}

async fn complete(rig: &Rig, fields: Value) -> Value {
    let answer = rig.post(COMPLETIONS, &completion(fields)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

#[tokio::test]
async fn a_prompt_means_the_same_in_every_shape() {
    let rig = Rig::new();
    let expected = complete(&rig, json!({"prompt": "ab"})).await["choices"][0].clone();
    for prompt in [
        json!(["ab"]),
        json!([97, 98]),
        json!([97.0, 98.0]),
        json!([[97, 98]]),
    ] {
        let answer = complete(&rig, json!({"prompt": prompt})).await;
        assert_eq!(answer["choices"], json!([expected]));
        assert_eq!(answer["usage"]["prompt_tokens"], 2);
    }
    let several = complete(&rig, json!({"prompt": ["x", "ab"]})).await;
    assert_eq!(several["choices"][1]["text"], expected["text"]);
    // Without a prompt, and with an empty one, the document starts.
    let start = complete(&rig, json!({"prompt": [256]})).await["choices"].clone();
    for prompt in [json!(null), json!(""), json!([""])] {
        let answer = complete(&rig, json!({"prompt": prompt})).await;
        assert_eq!(
            (&answer["choices"], &answer["usage"]["prompt_tokens"]),
            (&start, &json!(1))
        );
    }
    // Control tokens spelled in a prompt are read.
    let spelled = complete(&rig, json!({"prompt": "a<|user|>"})).await;
    let ids = complete(&rig, json!({"prompt": [97, 257]})).await;
    assert_eq!(spelled["choices"], ids["choices"]);
}

#[tokio::test]
async fn a_whole_answer_has_its_shape() {
    let answer = rig(Script::saying("Hi"))
        .post(COMPLETIONS, &completion(json!({})))
        .await
        .json();
    assert!(answer["id"].as_str().expect("text").starts_with("cmpl-"));
    assert_eq!(answer["object"], "text_completion");
    let choice = json!({"index": 0, "text": "Hi", "logprobs": null, "finish_reason": "stop", "stop_reason": null});
    assert_eq!(answer["choices"], json!([choice]));
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let body = chat(json!({"service_tier": "auto", "logprobs": true}));
    let answer = rig(Script::saying("")).post(CHAT, &body).await.json();
    assert_eq!(answer["service_tier"], "default");
    let entry =
        json!({"token": "<|end|>", "logprob": LOGPROB, "bytes": b"<|end|>", "top_logprobs": []});
    let message = json!({"role": "assistant", "content": "", "refusal": null, "annotations": []});
    let choice = json!({"index": 0, "finish_reason": "stop", "stop_reason": null,
        "logprobs": {"content": [entry], "refusal": null}, "message": message});
    assert_eq!(answer["choices"], json!([choice]));
}

#[tokio::test]
async fn the_token_limit_is_sixteen_or_what_is_asked() {
    let rig = Rig::new();
    for (max_tokens, expected) in [(json!(null), 16), (json!(1), 1), (json!(40), 40)] {
        let fields = json!({"max_tokens": max_tokens, "ignore_eos": true});
        let answer = complete(&rig, fields).await;
        assert_eq!(answer["usage"]["completion_tokens"], expected);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test]
async fn echo_scores_the_prompt() {
    let scores = |tokens: &[&str], offsets: &[usize]| {
        let logprobs: Vec<Value> = (0..tokens.len())
            .map(|i| if i == 0 { Value::Null } else { json!(LOGPROB) })
            .collect();
        json!({"tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets})
    };
    let replaced = "\u{fffd}";
    for (prompt, text, expected) in [
        (json!("a"), "a", scores(&["a"], &[0])),
        (json!("abc"), "abc", scores(&["a", "b", "c"], &[0, 1, 2])),
        (
            json!("aéb"),
            "aéb",
            scores(&["a", replaced, replaced, "b"], &[0, 1, 1, 2]),
        ),
        (
            json!("😀b"),
            "😀b",
            scores(
                &[replaced, replaced, replaced, replaced, "b"],
                &[0, 0, 0, 0, 1],
            ),
        ),
        (json!([256, 97]), "a", scores(&["<s>", "a"], &[0, 0])),
        (
            json!([97, 255, 98, 99]),
            "a\u{fffd}bc",
            scores(&["a", replaced, "b", "c"], &[0, 1, 2, 3]),
        ),
        (
            json!([97, 0xC3]),
            "a\u{fffd}",
            scores(&["a", replaced], &[0, 1]),
        ),
        (
            json!("a<s>b"),
            "a<s>b",
            scores(&["a", "<s>", "b"], &[0, 1, 4]),
        ),
        (json!(""), "", scores(&["<s>"], &[0])),
    ] {
        for n in [1, 2] {
            let fields =
                json!({"prompt": prompt, "echo": true, "max_tokens": 0, "logprobs": 0, "n": n});
            let answer = complete(&rig(Script::saying("x")), fields).await;
            assert_eq!(answer["choices"].as_array().expect("choices").len(), n);
            for choice in answer["choices"].as_array().expect("choices") {
                assert_eq!(choice["text"], text);
                assert_eq!(choice["finish_reason"], "length");
                for field in ["tokens", "token_logprobs", "text_offset"] {
                    assert_eq!(
                        choice["logprobs"][field], expected[field],
                        "{prompt} {field}"
                    );
                }
            }
            assert_eq!(answer["usage"]["completion_tokens"], 0);
        }
    }
}

#[tokio::test]
async fn offsets_go_on_from_the_echo() {
    let fields = json!({"prompt": "é", "echo": true, "max_tokens": 6, "logprobs": 2});
    let answer = complete(&rig(Script::saying("x😀y")), fields).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], "éx😀y");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2, 2, 2, 2, 3]));
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(
        logprobs["top_logprobs"][2],
        json!({"x": LOGPROB, "y": LOGPROB - 1.0})
    );
    // Two tokens with one text: the more probable one is kept.
    assert_eq!(logprobs["top_logprobs"][3], json!({"\u{fffd}": LOGPROB}));
    let plain = complete(
        &rig(Script::saying("x")),
        json!({"echo": true, "max_tokens": 1}),
    )
    .await;
    assert_eq!(plain["choices"][0]["text"], "hellox");
    assert_eq!(plain["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test]
async fn what_ends_a_choice_is_named() {
    let abc = || Script::saying("abc");
    for (fields, text, reason, stop_reason, tokens) in [
        (json!({}), "abc", "stop", json!(null), 4),
        (json!({"max_tokens": 2}), "ab", "length", json!(null), 2),
        (json!({"stop": "b"}), "a", "stop", json!("b"), 2),
        (json!({"stop": ["zz", "bc"]}), "a", "stop", json!("bc"), 3),
        (
            json!({"stop": "b", "include_stop_str_in_output": true}),
            "ab",
            "stop",
            json!("b"),
            2,
        ),
        (
            json!({"stop": "bc", "max_tokens": 3}),
            "a",
            "stop",
            json!("bc"),
            3,
        ),
        (json!({"stop_token_ids": [98]}), "a", "stop", json!(98), 2),
        (
            json!({"stop_token_ids": [END], "ignore_eos": true}),
            "abc",
            "stop",
            json!(END),
            4,
        ),
        (
            json!({"min_tokens": 2, "stop": "a"}),
            "abc",
            "stop",
            json!(null),
            4,
        ),
        (
            json!({"min_tokens": 1, "stop": "b"}),
            "a",
            "stop",
            json!("b"),
            2,
        ),
        // A banned stop token gives way to the next one.
        (
            json!({"min_tokens": 3, "stop_token_ids": [98], "max_tokens": 3}),
            "acc",
            "length",
            json!(null),
            3,
        ),
        (
            json!({"logit_bias": {"122": 100}, "max_tokens": 3}),
            "zzz",
            "length",
            json!(null),
            3,
        ),
        (
            json!({"logit_bias": {"97": -100}}),
            "bbc",
            "stop",
            json!(null),
            4,
        ),
        (
            json!({"ignore_eos": true, "max_tokens": 5}),
            "abc",
            "length",
            json!(null),
            5,
        ),
        // Before the minimum an end token gives way even where it would end nothing.
        (
            json!({"ignore_eos": true, "min_tokens": 4, "max_tokens": 5}),
            "abc\0",
            "length",
            json!(null),
            5,
        ),
    ] {
        for n in [1, 2] {
            let mut fields = fields.clone();
            fields["n"] = json!(n);
            let answer = complete(&rig(abc()), fields.clone()).await;
            for choice in answer["choices"].as_array().expect("choices") {
                assert_eq!(choice["text"], text, "{fields}");
                assert_eq!(choice["finish_reason"], reason, "{fields}");
                assert_eq!(choice["stop_reason"], stop_reason, "{fields}");
            }
            assert_eq!(answer["usage"]["completion_tokens"], n * tokens, "{fields}");
            assert_eq!(answer["usage"]["prompt_tokens"], 5, "counted once");
        }
    }
}

#[tokio::test]
async fn a_seed_fixes_the_answer_and_choices_do_not_depend_on_their_number() {
    let rig = Rig::new();
    let seeded =
        |seed: Value, n: u32| json!({"seed": seed, "n": n, "temperature": 1, "ignore_eos": true});
    let texts = |answer: Value| -> Vec<Value> {
        let choices = answer["choices"].as_array().expect("choices");
        choices
            .iter()
            .map(|choice| choice["text"].clone())
            .collect()
    };
    let one = texts(complete(&rig, seeded(json!(5), 1)).await);
    let two = texts(complete(&rig, seeded(json!(5), 2)).await);
    assert_eq!(one[0], two[0]);
    assert_ne!(two[0], two[1]);
    assert_eq!(texts(complete(&rig, seeded(json!(5), 2)).await), two);
    assert_ne!(texts(complete(&rig, seeded(json!(-5), 1)).await), one);
    let free = texts(complete(&rig, seeded(json!(null), 1)).await);
    assert_ne!(texts(complete(&rig, seeded(json!(null), 1)).await), free);
    let greedy = json!({"n": 2, "temperature": 0, "ignore_eos": true});
    let greedy = texts(complete(&rig, greedy).await);
    assert_eq!(greedy[0], greedy[1]);
}
