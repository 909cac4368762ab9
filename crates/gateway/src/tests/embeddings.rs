//! `/v1/embeddings`: inputs of every form, vectors of every form, refusals, and which models answer where.

use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::support::{EMBEDDER, MAX_EMBEDDED, Rig, embedder_only, with_embedder};
use crate::GatewayConfig;

const PATH: &str = "/v1/embeddings";

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    data.iter()
        .map(|entry| serde_json::from_value(entry["embedding"].clone()).expect("numbers"))
        .collect()
}

#[tokio::test]
async fn texts_and_their_token_ids_have_the_same_vectors() {
    let rig = embedder_only();
    // The tokenizer's ids are bytes.
    let ids = |text: &str| -> Vec<u32> { text.bytes().map(u32::from).collect() };
    let of = async |input: Value| vectors(&rig.post(PATH, &json!({"input": input})).await.json());
    let ab = of(json!(["a", "bcd"])).await;
    assert_eq!(ab.len(), 2);
    assert_ne!(ab[0], ab[1]);
    assert_eq!(of(json!([ids("a"), ids("bcd")])).await, ab);
    assert_eq!(of(json!("bcd")).await, ab[1..]);
    assert_eq!(of(json!(ids("bcd"))).await, ab[1..]);
}

#[tokio::test]
async fn an_answer_has_openais_form() {
    let rig = embedder_only();
    let answer = rig
        .post(PATH, &json!({"input": ["a", "bcd"], "user": "me"}))
        .await;
    assert_eq!(answer.headers["x-ignored-params"], "user");
    let answer = answer.json();
    assert_eq!(answer["object"], "list");
    assert_eq!(answer["model"], EMBEDDER);
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 4, "total_tokens": 4})
    );
    assert_eq!(answer["data"][1]["object"], "embedding");
    assert_eq!(answer["data"][1]["index"], 1);
    assert_eq!(rig.metric("octet_embedding_inputs_total").await, 2.0);
    assert_eq!(
        rig.metric("octet_requests_total{code=\"200\",endpoint=\"/v1/embeddings\"")
            .await,
        1.0
    );
}

#[tokio::test]
async fn base64_holds_the_same_bits() {
    let rig = embedder_only();
    let plain = rig.post(PATH, &json!({"input": "bcd"})).await.json();
    let packed = rig
        .post(PATH, &json!({"input": "bcd", "encoding_format": "base64"}))
        .await
        .json();
    let packed = packed["data"][0]["embedding"].as_str().expect("a string");
    let bytes = STANDARD.decode(packed).expect("base64");
    let (chunks, rest) = bytes.as_chunks::<4>();
    assert!(rest.is_empty());
    let floats: Vec<f32> = chunks
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    assert_eq!(vectors(&plain), [floats]);
}

#[tokio::test]
async fn vectors_are_cut_where_the_model_allows_it() {
    let whole = async |rig: &Rig, more: Value| {
        let mut body = json!({"input": "bcd"});
        body["dimensions"] = more;
        rig.post(PATH, &body).await
    };
    let rig = embedder_only();
    let own = vectors(&whole(&rig, Value::Null).await.json());
    let half = vectors(&whole(&rig, json!(2)).await.json()).remove(0);
    let length = own[0][..2].iter().map(|x| x * x).sum::<f32>().sqrt();
    let expected: Vec<f32> = own[0][..2].iter().map(|x| x / length).collect();
    assert_eq!(half, expected);
    assert_eq!(vectors(&whole(&rig, json!(4)).await.json()), own);
    assert_eq!(
        whole(&rig, json!(5)).await.json()["error"]["param"],
        "dimensions"
    );

    let rig = super::support::fixed_embedder();
    assert_eq!(vectors(&whole(&rig, json!(4)).await.json()), own);
    let refused = whole(&rig, json!(2)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.json()["error"]["code"], "unsupported_parameter");
    assert!(refused.text.contains("matryoshka"), "{}", refused.text);
}

#[tokio::test]
async fn what_is_too_long_is_refused_unless_it_may_be_cut() {
    let rig = embedder_only();
    let text = "x".repeat(MAX_EMBEDDED - 1) + "yz";
    for input in [
        json!(text),
        json!(["a", text]),
        json!(vec![1; MAX_EMBEDDED + 1]),
    ] {
        let refused = rig.post(PATH, &json!({"input": input})).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let error = &refused.json()["error"];
        assert_eq!(error["code"], "context_length_exceeded");
        assert_eq!(error["param"], "input");
        for number in [MAX_EMBEDDED, MAX_EMBEDDED + 1] {
            assert!(
                refused.text.contains(&number.to_string()),
                "{}",
                refused.text
            );
        }
    }
    let cut = async |more: Value| {
        let mut body = json!({"input": text});
        let fields = body.as_object_mut().expect("an object");
        fields.extend(more.as_object().expect("an object").clone());
        let answer = rig.post(PATH, &body).await.json();
        (
            vectors(&answer).remove(0),
            answer["usage"]["prompt_tokens"].clone(),
        )
    };
    let of = async |input: &str| {
        vectors(&rig.post(PATH, &json!({"input": input})).await.json()).remove(0)
    };
    let ids: Vec<u32> = text.bytes().map(u32::from).collect();
    let fitting = json!(MAX_EMBEDDED);
    for input in [json!(text), json!(ids)] {
        let with = |more: Value| super::support::merge(&json!({"input": input}), &more);
        let right = cut(with(json!({"truncate_prompt_tokens": -1}))).await;
        assert_eq!(right, (of(&text[..MAX_EMBEDDED]).await, fitting.clone()));
        let left = cut(with(
            json!({"truncate_prompt_tokens": -1, "truncation_side": "left"}),
        ))
        .await;
        assert_eq!(left, (of(&text[1..]).await, fitting.clone()));
        let few = cut(with(json!({"truncate_prompt_tokens": 3}))).await;
        assert_eq!(few, (of("xxx").await, json!(3)));
    }
    let beyond = json!({"input": "a", "truncate_prompt_tokens": MAX_EMBEDDED + 1});
    assert_eq!(
        rig.post(PATH, &beyond).await.json()["error"]["param"],
        "truncate_prompt_tokens"
    );
}

#[tokio::test]
async fn mistakes_are_named() {
    let rig = embedder_only();
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": ["a", ""]}), "input[1]"),
        (json!({"input": []}), "input"),
        (json!({"input": [[]]}), "input[0]"),
        (json!({"input": vec!["a"; 2049]}), "input"),
        (json!({"input": [1, -1]}), "input[1]"),
        (json!({"input": [[1], [259]]}), "input[1][0]"),
        (json!({"input": {"text": "a"}}), "input"),
        (
            json!({"input": "a", "encoding_format": "int8"}),
            "encoding_format",
        ),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
        (
            json!({"input": "a", "truncate_prompt_tokens": 0}),
            "truncate_prompt_tokens",
        ),
        (
            json!({"input": "a", "truncation_side": "middle"}),
            "truncation_side",
        ),
        (json!({"input": "a", "normalize": false}), "normalize"),
        (json!({"prompt": "a"}), "prompt"),
    ] {
        let answer = rig.post(PATH, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text);
    }
    let most = rig.post(PATH, &json!({"input": vec!["a"; 2048]})).await;
    assert_eq!(most.json()["data"].as_array().map(Vec::len), Some(2048));
}

#[tokio::test]
async fn an_embedding_model_alone_does_not_chat() {
    let rig = embedder_only();
    assert_eq!(rig.get("/health").await.status, StatusCode::OK);
    let models = rig.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], EMBEDDER);
    assert_eq!(models["data"][0]["max_model_len"], MAX_EMBEDDED);
    for (path, body) in [
        ("/v1/chat/completions", super::support::chat(json!({}))),
        ("/v1/completions", super::support::completion(json!({}))),
    ] {
        let answer = rig.post(path, &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.json()["error"]["code"], "unsupported_model");
        assert!(answer.text.contains("/v1/embeddings"), "{}", answer.text);
    }
    let other = rig
        .post(PATH, &json!({"input": "a", "model": "other"}))
        .await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
    assert!(other.text.contains(EMBEDDER));
    rig.gateway.drain();
    let answer = rig.post(PATH, &json!({"input": "a"})).await;
    assert_eq!(answer.json()["error"]["code"], "draining");
}

#[tokio::test]
async fn two_models_answer_under_their_own_names() {
    let rig = with_embedder(GatewayConfig::new("test-model"));
    let models = rig.get("/v1/models").await.json();
    let ids: Vec<_> = models["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["test-model", EMBEDDER]);
    for name in ["test-model", EMBEDDER] {
        let model = rig.get(&format!("/v1/models/{name}")).await.json();
        assert_eq!(model["id"], name);
    }
    for model in [json!(null), json!("default"), json!(EMBEDDER)] {
        let answer = rig.post(PATH, &json!({"input": "a", "model": model})).await;
        assert_eq!(answer.json()["model"], EMBEDDER);
    }
    let chat = super::support::chat(json!({"model": EMBEDDER}));
    let crossed = [
        rig.post("/v1/chat/completions", &chat).await,
        rig.post(PATH, &json!({"input": "a", "model": "test-model"}))
            .await,
    ];
    for answer in crossed {
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.json()["error"]["code"], "unsupported_model");
        assert_eq!(answer.json()["error"]["param"], "model");
    }
    let answer = rig
        .post("/v1/chat/completions", &super::support::chat(json!({})))
        .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_language_model_alone_does_not_embed() {
    let answer = Rig::new().post(PATH, &json!({"input": "a"})).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.text.contains("--embedding-model"), "{}", answer.text);
}

#[tokio::test]
async fn failures_of_the_worker_have_their_statuses() {
    use super::support::{FAILING, embedder_with, encoder_config};
    let rig = embedder_only();
    let failed = rig.post(PATH, &json!({"input": FAILING})).await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(
        rig.post(PATH, &json!({"input": "a"})).await.status,
        StatusCode::OK
    );

    let mut full = encoder_config();
    full.max_num_queued_reqs = 0;
    let refused = embedder_with(full, true)
        .post(PATH, &json!({"input": "a"}))
        .await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers.contains_key("retry-after"));

    let mut late = encoder_config();
    late.request_timeout = std::time::Duration::ZERO;
    let late = embedder_with(late, true)
        .post(PATH, &json!({"input": "a"}))
        .await;
    assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_key_is_asked_for() {
    let mut config = GatewayConfig::new("test-model");
    config.api_keys = vec!["secret".into()];
    let rig = with_embedder(config);
    assert_eq!(
        rig.post(PATH, &json!({"input": "a"})).await.status,
        StatusCode::UNAUTHORIZED
    );
}
