//! `/tokenize` and `/detokenize`: the tokens that would be computed, and their text.

use axum::http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::errors::{CHAT, COMPLETIONS, check};
use super::support::{
    END, MAX_MODEL_LEN, Rig, VOCAB, cases_without_files, embedder_only, engine_config, model,
    text_files,
};
use crate::GatewayConfig;

const TOKENIZE: &str = "/tokenize";
const DETOKENIZE: &str = "/detokenize";

/// A rig whose checkpoint marks beginnings, and whose template says where an answer begins.
fn marking() -> Rig {
    let mut text = text_files();
    text.add_bos_token = Some(true);
    text.chat_templates[0].1 += "{% if add_generation_prompt %}<|user|>assistant{% endif %}";
    Rig::with_text(
        GatewayConfig::new("test-model"),
        engine_config(),
        model(),
        text,
    )
}

async fn ok(rig: &Rig, path: &str, body: Value) -> Value {
    let answer = rig.post(path, &body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

#[tokio::test]
async fn tokens_are_those_that_a_request_computes() {
    let rig = marking();
    let conversations = [
        json!([{"role": "user", "content": "hello"}]),
        json!([{"role": "user", "content": "a<|end|>b 世界"}, {"role": "assistant", "content": "c"},
               {"role": "user", "content": [{"type": "text", "text": "d"}]}]),
    ];
    for messages in conversations {
        let tokens = ok(&rig, TOKENIZE, json!({"messages": messages})).await;
        let answer = ok(&rig, CHAT, json!({"messages": messages, "max_tokens": 1})).await;
        assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
        assert_eq!(tokens["max_model_len"], MAX_MODEL_LEN);
        assert_eq!(tokens["token_strs"], Value::Null);
        let open = json!({"messages": messages, "add_generation_prompt": false});
        let open = ok(&rig, TOKENIZE, open).await["tokens"].clone();
        let (whole, open) = (tokens["tokens"].as_array(), open.as_array().cloned());
        let (whole, open) = (whole.expect("ids"), open.expect("ids"));
        assert_eq!(open.last(), Some(&json!(END)));
        assert_eq!(whole.strip_prefix(&open[..]).map(<[_]>::len), Some(10));
    }
    for prompt in ["", "hello", "é\u{0}<|end|>"] {
        let tokens = ok(&rig, TOKENIZE, json!({"prompt": prompt})).await;
        let answer = ok(
            &rig,
            COMPLETIONS,
            json!({"prompt": prompt, "max_tokens": 1}),
        )
        .await;
        assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
        assert_eq!(tokens["tokens"][0], 256, "the beginning is marked");
        let bare = json!({"prompt": prompt, "add_special_tokens": false});
        let bare = ok(&rig, TOKENIZE, bare).await;
        assert_eq!(
            bare["tokens"].as_array(),
            tokens["tokens"]
                .as_array()
                .map(|t| t[1..].to_vec())
                .as_ref()
        );
    }
    assert_eq!(
        rig.metric("octet_requests_total{code=\"200\",endpoint=\"/tokenize\"")
            .await,
        10.0
    );
}

#[tokio::test]
async fn spellings_are_those_of_the_vocabulary() {
    let body = json!({"prompt": "a é<|end|>", "return_token_strs": true});
    let answer = ok(&Rig::new(), TOKENIZE, body).await;
    assert_eq!(answer["token_strs"], json!(["a", "Ġ", "Ã", "©", "<|end|>"]));
    assert_eq!(answer["count"], 5);
}

#[test]
fn texts_come_back_as_they_were() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let rig = marking();
    let there_and_back = |text: &str| {
        let body = json!({"prompt": text, "add_special_tokens": false});
        let tokens = runtime.block_on(ok(&rig, TOKENIZE, body))["tokens"].clone();
        let back = runtime.block_on(ok(&rig, DETOKENIZE, json!({"tokens": tokens})));
        assert_eq!(back, json!({"prompt": text, "content": text}));
    };
    for text in [
        "",
        " ",
        "  a",
        "é€😀",
        "👩‍👩‍👧‍👦",
        "a\u{301}",
        "\u{10FFFF}\u{0}\u{7f}",
        "\u{FFFD}",
        "\r\n\t",
        "नि",
        "<s><|user|>x<|end|>",
        "\u{feff}\u{202e}",
    ] {
        there_and_back(text);
    }
    proptest!(cases_without_files(100), |(text in "\\PC{0,24}")| there_and_back(&text));
}

#[tokio::test]
async fn what_is_no_text_or_no_token_is_refused_with_the_limit() {
    let rig = Rig::new();
    let too_many = vec![97; MAX_MODEL_LEN + 1];
    let long = "x".repeat(100_000);
    for (path, body, code, param, fragment) in [
        (
            DETOKENIZE,
            json!({"tokens": [1, VOCAB]}),
            "integer_above_max_value",
            "tokens[1]",
            "at most 258, not 259",
        ),
        (
            DETOKENIZE,
            json!({"tokens": [1, -1]}),
            "integer_below_min_value",
            "tokens[1]",
            "at least 0",
        ),
        (
            DETOKENIZE,
            json!({"tokens": [1u64 << 40]}),
            "integer_above_max_value",
            "tokens[0]",
            "larger",
        ),
        (
            DETOKENIZE,
            json!({"tokens": [[1]]}),
            "invalid_type",
            "tokens",
            "array of token ids",
        ),
        (
            DETOKENIZE,
            json!({"tokens": "a"}),
            "invalid_type",
            "tokens",
            "array of token ids",
        ),
        (
            DETOKENIZE,
            json!({"tokens": [1, "a"]}),
            "invalid_type",
            "tokens",
            "array of token ids",
        ),
        (
            DETOKENIZE,
            json!({}),
            "missing_required_parameter",
            "tokens",
            "required",
        ),
        (
            DETOKENIZE,
            json!({"tokens": too_many}),
            "context_length_exceeded",
            "tokens",
            "513",
        ),
        (
            TOKENIZE,
            json!({}),
            "missing_required_parameter",
            "prompt",
            "required",
        ),
        (
            TOKENIZE,
            json!({"prompt": ["a"]}),
            "invalid_type",
            "prompt",
            "a string, not an array",
        ),
        (
            TOKENIZE,
            json!({"prompt": "a", "messages": []}),
            "unsupported_parameter",
            "prompt",
            "either",
        ),
        (
            TOKENIZE,
            json!({"messages": []}),
            "empty_array",
            "messages",
            "empty",
        ),
        (
            TOKENIZE,
            json!({"content": "a"}),
            "unsupported_parameter",
            "content",
            "use prompt",
        ),
        (
            TOKENIZE,
            json!({"prompt": long}),
            "context_length_exceeded",
            "prompt",
            "512",
        ),
        (
            TOKENIZE,
            json!({"messages": [{"role": "user", "content": long}]}),
            "context_length_exceeded",
            "messages",
            "512",
        ),
    ] {
        check(
            &rig.post(path, &body).await,
            400,
            code,
            Some(param),
            fragment,
        );
    }
    for (path, body) in [
        (TOKENIZE, json!({"model": "other", "prompt": "a"})),
        (DETOKENIZE, json!({"model": "other", "tokens": [1]})),
    ] {
        assert_eq!(rig.post(path, &body).await.status, StatusCode::NOT_FOUND);
    }
    let embeds = embedder_only()
        .post(TOKENIZE, &json!({"prompt": "a"}))
        .await;
    assert_eq!(embeds.json()["error"]["code"], "unsupported_model");
}

#[tokio::test]
async fn unknown_fields_are_named() {
    let body = json!({"prompt": "a", "colour": 1, "tokens": [1]});
    let answer = Rig::new().post(TOKENIZE, &body).await;
    assert_eq!(answer.headers["x-ignored-params"], "colour,tokens");
    let mut config = GatewayConfig::new("test-model");
    config.strict_params = true;
    let strict = Rig::with(config, engine_config(), model());
    for (path, body) in [
        (TOKENIZE, body),
        (DETOKENIZE, json!({"tokens": [1], "colour": 1})),
    ] {
        check(
            &strict.post(path, &body).await,
            400,
            "unknown_parameter",
            Some("colour"),
            "colour",
        );
    }
}
