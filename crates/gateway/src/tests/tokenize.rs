//! `/tokenize` and `/detokenize`: the tokens that would be computed, and their text.

use axum::http::StatusCode;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::errors::{CHAT, COMPLETIONS, check};
use super::support::{
    EMBEDDER, END, MAX_EMBEDDED, MAX_MODEL_LEN, Rig, VOCAB, cases_without_files, embedder_only,
    engine_config, model, text_files, with_embedder,
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

/// llama.cpp's form, whose text is called content and is not marked unless asked.
#[tokio::test]
async fn content_is_a_prompt_with_other_names() {
    let rig = marking();
    for (ours, theirs) in [
        (
            json!({"prompt": "a é<|end|>", "add_special_tokens": false}),
            json!({"content": "a é<|end|>"}),
        ),
        (
            json!({"prompt": "a"}),
            json!({"content": "a", "add_special": true, "parse_special": true}),
        ),
        (
            json!({"prompt": ""}),
            json!({"content": "", "add_special": true, "with_pieces": false}),
        ),
    ] {
        assert_eq!(
            ok(&rig, TOKENIZE, ours).await,
            ok(&rig, TOKENIZE, theirs).await
        );
    }
    let body = json!({"content": "a é<|end|>", "with_pieces": true});
    let answer = ok(&rig, TOKENIZE, body).await;
    let pieces = json!([
        {"id": 97, "piece": "a"},
        {"id": 32, "piece": " "},
        // Two bytes make the character.
        {"id": 195, "piece": [195]},
        {"id": 169, "piece": [169]},
        {"id": END, "piece": "<|end|>"},
    ]);
    assert_eq!(
        (&answer["tokens"], &answer["token_strs"]),
        (&pieces, &Value::Null)
    );
}

/// Alone it is the one meant; beside a language model it is named.
#[tokio::test]
async fn the_tokens_of_an_embedding_model_are_those_that_it_computes() {
    let beside = with_embedder(GatewayConfig::new("test-model"));
    for (rig, name) in [(&embedder_only(), "default"), (&beside, EMBEDDER)] {
        let asked = |path: &'static str, mut body: Value| {
            body["model"] = json!(name);
            ok(rig, path, body)
        };
        let tokens = asked(
            TOKENIZE,
            json!({"prompt": "ab c", "return_token_strs": true}),
        )
        .await;
        let embedded = asked("/v1/embeddings", json!({"input": "ab c"})).await;
        assert_eq!(tokens["count"], embedded["usage"]["prompt_tokens"]);
        assert_eq!(tokens["max_model_len"], MAX_EMBEDDED);
        assert_eq!(tokens["token_strs"], json!(["a", "b", "Ġ", "c"]));
        let back = asked(DETOKENIZE, json!({"tokens": tokens["tokens"]})).await;
        assert_eq!(back["prompt"], "ab c");
        for (path, mut body, code) in [
            (
                TOKENIZE,
                super::support::chat(json!({"max_tokens": null})),
                "unsupported_parameter",
            ),
            (
                TOKENIZE,
                json!({"prompt": "x".repeat(4000)}),
                "context_length_exceeded",
            ),
            (
                DETOKENIZE,
                json!({"tokens": [VOCAB]}),
                "integer_above_max_value",
            ),
            (
                DETOKENIZE,
                json!({"tokens": vec![97; MAX_EMBEDDED + 1]}),
                "context_length_exceeded",
            ),
        ] {
            body["model"] = json!(name);
            let answer = rig.post(path, &body).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
            assert_eq!(answer.json()["error"]["code"], code);
        }
    }
    let other = json!({"model": "other", "prompt": "a"});
    assert_eq!(
        embedder_only().post(TOKENIZE, &other).await.status,
        StatusCode::NOT_FOUND
    );
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
            json!({"prompt": "a", "content": "a"}),
            "unsupported_parameter",
            "content",
            "either prompt or content",
        ),
        (
            TOKENIZE,
            json!({"content": "a", "return_token_strs": true}),
            "unsupported_parameter",
            "return_token_strs",
            "with_pieces",
        ),
        (
            TOKENIZE,
            json!({"content": long}),
            "context_length_exceeded",
            "content",
            "512",
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
