//! Answers: every status, header and field that occurs is documented, and every documented one occurs.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use engine::EngineStatus;
use engine::fake::{FakeModel, Fault};
use http_body_util::BodyExt;
use metrics::Metrics;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::requests::field_errors;
use super::schema::{Document, Marks, Schema};
use crate::error::ApiError;
use crate::tests::support::{
    Answer, EMBEDDER, FAILING, Rig, embedder_only, embedder_under, embedder_with, encoder_config,
    engine_config, get, model, post,
};
use crate::{Gateway, GatewayConfig, router};

/// The generating routes, each with the start of a request.
const GENERATING: [&str; 2] = ["/v1/chat/completions", "/v1/completions"];

const EMBEDDINGS: &str = "/v1/embeddings";

/// The routes that only translate, each with a request.
const TOKENIZING: [(&str, &str); 2] = [
    ("/tokenize", r#"{"prompt": "a", "unknown": 1}"#),
    ("/detokenize", r#"{"tokens": [97], "unknown": 1}"#),
];

/// Headers that mean something to a client of the API.
const HEADERS: [&str; 4] = [
    "x-request-id",
    "x-ignored-params",
    "retry-after",
    "www-authenticate",
];

/// Compares answers with the document.
struct Recorder {
    document: Document,
    seen: Marks,
}

impl Recorder {
    /// Checks an answer to `method path`, both as the document writes them.
    fn record(&mut self, method: &str, path: &str, answer: &Answer) {
        let status = answer.status.as_str();
        let at = format!("{method} {path} {status}");
        let operation = &self.document.at("/paths")[path][method];
        let response = operation["responses"].get(status);
        let response =
            response.unwrap_or_else(|| panic!("{at} is not documented: {}", answer.text));
        let response = self.document.resolve(response);
        let mut seen = Marks::from([at.clone()]);
        self.check_headers(&at, response, answer, &mut seen);
        let kind = answer.headers["content-type"].to_str().expect("text");
        let contents = response["content"].as_object().expect("content");
        let content = contents
            .iter()
            .find(|(documented, _)| kind.starts_with(*documented));
        let (documented, content) = content.unwrap_or_else(|| panic!("{at}: {kind}"));
        let at = format!("{at} {documented}");
        let schema = Schema::new(&at, &content["schema"]);
        let values = match documented.as_str() {
            "application/json" => vec![answer.json()],
            "text/event-stream" => answer.chunks(),
            _ => vec![Value::from(answer.text.as_str())],
        };
        for value in values {
            let checked = self.document.check(&schema, &value, &mut seen);
            checked.unwrap_or_else(|e| panic!("{at}: {e}"));
        }
        seen.insert(at);
        self.seen.append(&mut seen);
    }

    fn check_headers(&self, at: &str, response: &Value, answer: &Answer, seen: &mut Marks) {
        let documented = response["headers"].as_object().expect("headers");
        for name in HEADERS
            .iter()
            .filter(|name| answer.headers.contains_key(**name))
        {
            let is_documented = documented
                .keys()
                .any(|known| known.eq_ignore_ascii_case(name));
            assert!(is_documented, "{at}: {name} is not documented");
        }
        for (name, header) in documented {
            let header = self.document.resolve(header);
            let Some(value) = answer.headers.get(name) else {
                assert!(
                    header.get("required") != Some(&json!(true)),
                    "{at}: no {name}"
                );
                continue;
            };
            let text = value.to_str().expect("text");
            let value = text
                .parse::<u64>()
                .map_or_else(|_| json!(text), Value::from);
            let at = format!("{at} {name}");
            let checked = self
                .document
                .check(&Schema::new(&at, &header["schema"]), &value, seen);
            checked.unwrap_or_else(|e| panic!("{e}"));
            seen.insert(at);
        }
    }

    /// The error body of an answer that any route can give.
    fn record_error(&mut self, body: &Value) {
        let schema = self.document.schema("Error");
        let checked = self.document.check(&schema, body, &mut self.seen);
        checked.unwrap_or_else(|e| panic!("{e}"));
    }

    /// Documented places that no answer has visited.
    fn unseen(&self) -> Vec<String> {
        let mut expected = Marks::new();
        for (path, item) in self.document.at("/paths").as_object().expect("paths") {
            for method in ["get", "post"] {
                let responses = item[method]["responses"].as_object();
                for (status, response) in responses.into_iter().flatten() {
                    let at = format!("{method} {path} {status}");
                    self.expect(&at, self.document.resolve(response), &mut expected);
                }
            }
        }
        expected.difference(&self.seen).cloned().collect()
    }

    fn expect(&self, at: &str, response: &Value, expected: &mut Marks) {
        expected.insert(at.to_owned());
        for (name, header) in response["headers"].as_object().expect("headers") {
            let at = format!("{at} {name}");
            let schema = &self.document.resolve(header)["schema"];
            self.document.expect(&Schema::new(&at, schema), expected);
            expected.insert(at);
        }
        for (kind, content) in response["content"].as_object().expect("content") {
            let at = format!("{at} {kind}");
            self.document
                .expect(&Schema::new(&at, &content["schema"]), expected);
            expected.insert(at);
        }
    }
}

fn config() -> GatewayConfig {
    GatewayConfig::new("test-model")
}

/// The smallest request of a generating route, with more fields.
fn body(path: &str, more: Value) -> Value {
    let mut body = match path {
        "/v1/completions" => json!({"prompt": "hello", "max_tokens": 12}),
        _ => json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12}),
    };
    let fields = body.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    body
}

fn merged(a: &Value, b: &Value) -> Value {
    let mut merged = a.as_object().expect("an object").clone();
    merged.extend(b.as_object().expect("an object").clone());
    Value::Object(merged)
}

/// Successful answers of a generating route, streamed and not, with everything that can be in them.
async fn record_texts(recorder: &mut Recorder, rig: &Rig, path: &str) {
    let greedy = json!({"temperature": 0, "ignore_eos": true});
    let first = rig.post(path, &body(path, greedy.clone())).await.json();
    let choice = &first["choices"][0];
    let text = choice["text"]
        .as_str()
        .or(choice["message"]["content"].as_str());
    let text = text.expect("a text");
    let letter = text
        .chars()
        .find(char::is_ascii)
        .expect("an ASCII character");
    let logprobs = match path {
        "/v1/completions" => json!({"logprobs": 2, "echo": true}),
        _ => json!({"logprobs": true, "top_logprobs": 2}),
    };
    for more in [
        json!({}),
        json!({"n": 2, "service_tier": "auto"}),
        json!({"stop": letter.to_string()}),
        json!({"stop_token_ids": [letter as u32]}),
        logprobs,
    ] {
        let whole = body(path, merged(&greedy, &more));
        recorder.record("post", path, &rig.post(path, &whole).await);
        for options in [
            json!(null),
            json!({"include_usage": true}),
            json!({"include_usage": true, "continuous_usage_stats": true}),
        ] {
            let stream = json!({"stream": true, "stream_options": options});
            let streamed = merged(&whole, &stream);
            recorder.record("post", path, &rig.post(path, &streamed).await);
        }
    }
}

/// Answers of `/v1/embeddings`, good and bad.
async fn record_embeddings(recorder: &mut Recorder) {
    let rig = embedder_only();
    for body in [
        json!({"input": ["a", "b"], "user": "me"}),
        json!({"input": [1, 2], "encoding_format": "base64"}),
        json!({"input": "a", "model": "other"}),
        json!({"input": "x".repeat(100)}),
        json!({"input": FAILING}),
    ] {
        recorder.record("post", EMBEDDINGS, &rig.post(EMBEDDINGS, &body).await);
    }
    record_bad_bodies(recorder, &rig, EMBEDDINGS).await;
    let mut full = encoder_config();
    full.max_num_queued_reqs = 0;
    let mut late = encoder_config();
    late.request_timeout = Duration::ZERO;
    for config in [full, late] {
        let rig = embedder_with(config, true);
        let answer = rig.post(EMBEDDINGS, &json!({"input": "a"})).await;
        recorder.record("post", EMBEDDINGS, &answer);
    }
    let mut slow = GatewayConfig::new(EMBEDDER);
    slow.timeouts.body_read = Duration::ZERO;
    record_slow_body(
        recorder,
        &embedder_under(slow, encoder_config(), true),
        EMBEDDINGS,
    )
    .await;
}

/// Answers of the routes that only translate, good and bad.
async fn record_tokenizing(recorder: &mut Recorder, rig: &Rig) {
    for (path, body) in TOKENIZING {
        let mut body: Value = serde_json::from_str(body).expect("JSON");
        recorder.record("post", path, &rig.post(path, &body).await);
        body["model"] = json!("other");
        recorder.record("post", path, &rig.post(path, &body).await);
        record_bad_bodies(recorder, rig, path).await;
        let mut slow = config();
        slow.timeouts.body_read = Duration::ZERO;
        record_slow_body(recorder, &Rig::with(slow, engine_config(), model()), path).await;
    }
    let spelled =
        json!({"messages": [{"role": "user", "content": "a"}], "return_token_strs": true});
    recorder.record("post", "/tokenize", &rig.post("/tokenize", &spelled).await);
    // A character of two bytes is two tokens.
    let pieces = json!({"content": "aé", "with_pieces": true});
    recorder.record("post", "/tokenize", &rig.post("/tokenize", &pieces).await);
}

/// Failures of a generating route that need nothing but a certain request.
async fn record_refusals(recorder: &mut Recorder, rig: &Rig, path: &str) {
    let part = json!({"role": "user", "content": [{"type": "image_url"}]});
    for more in [
        json!({"n": 0}),
        json!({"model": "other"}),
        json!({"max_tokens": 100_000}),
        json!({"messages": [part]}),
    ] {
        recorder.record("post", path, &rig.post(path, &body(path, more)).await);
    }
    record_bad_bodies(recorder, rig, path).await;
}

/// Bodies and origins that no route takes.
async fn record_bad_bodies(recorder: &mut Recorder, rig: &Rig, path: &str) {
    recorder.record("post", path, &rig.call(post(path, "{")).await);
    let mut foreign = post(path, "{}");
    foreign
        .headers_mut()
        .insert("origin", "https://attacker.test".parse().expect("a value"));
    recorder.record("post", path, &rig.call(foreign).await);
    let mut large = post(path, "{}");
    large
        .headers_mut()
        .insert("content-length", (1u64 << 40).into());
    recorder.record("post", path, &rig.call(large).await);
}

/// Failures of a generating route that need a certain server.
async fn record_failures(recorder: &mut Recorder, path: &str) {
    let mut slow = config();
    slow.timeouts.body_read = Duration::ZERO;
    record_slow_body(recorder, &Rig::with(slow, engine_config(), model()), path).await;
    record_engine_failures(recorder, path).await;
}

/// A body that never ends.
async fn record_slow_body(recorder: &mut Recorder, rig: &Rig, path: &str) {
    let never = futures::stream::pending::<Result<&[u8], Infallible>>();
    let request = Request::post(path).header("host", "localhost");
    let request = request
        .body(Body::from_stream(never))
        .expect("a valid request");
    recorder.record("post", path, &rig.call(request).await);
}

/// A full queue, a late answer, failing steps.
async fn record_engine_failures(recorder: &mut Recorder, path: &str) {
    let mut full = engine_config();
    full.max_num_queued_reqs = 0;
    let mut late = engine_config();
    late.request_timeout = Duration::ZERO;
    let failing = |step: usize| model().with_fault(step, Fault::Error);
    for (engine, model) in [
        (full, model()),
        (late, model()),
        (engine_config(), failing(0)),
    ] {
        let rig = Rig::with(config(), engine, model);
        recorder.record("post", path, &rig.post(path, &body(path, json!({}))).await);
    }
    let rig = Rig::with(config(), engine_config(), failing(3));
    let streamed = body(path, json!({"stream": true, "ignore_eos": true}));
    recorder.record("post", path, &rig.post(path, &streamed).await);
}

/// A server whose model is not there yet.
async fn record_loading(recorder: &mut Recorder) {
    let router = router(Gateway::new(config(), Metrics::new("test-model")));
    for (method, path, documented) in [
        ("get", "/health", "/health"),
        ("get", "/health/live", "/health/live"),
        ("get", "/v1/models", "/v1/models"),
        ("get", "/v1/models/test-model", "/v1/models/{id}"),
        ("post", GENERATING[0], GENERATING[0]),
        ("post", GENERATING[1], GENERATING[1]),
        ("post", EMBEDDINGS, EMBEDDINGS),
        ("post", TOKENIZING[0].0, TOKENIZING[0].0),
        ("post", TOKENIZING[1].0, TOKENIZING[1].0),
    ] {
        let request = if method == "get" {
            get(path)
        } else {
            post(path, "{}")
        };
        let Ok(response) = router.clone().oneshot(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("bodies do not fail").to_bytes();
        let answer = Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).expect("answers are UTF-8"),
        };
        recorder.record(method, documented, &answer);
    }
}

/// Probes of a server that ends well and of one that does not.
async fn record_health(recorder: &mut Recorder) {
    let rig = Rig::new();
    rig.gateway.drain();
    recorder.record("get", "/health", &rig.get("/health").await);
    let broken: FakeModel = model().with_fault(0, Fault::Device);
    let rig = Rig::with(config(), engine_config(), broken);
    rig.post(GENERATING[1], &body(GENERATING[1], json!({})))
        .await;
    while rig.engine().status() != EngineStatus::Dead {
        std::thread::yield_now();
    }
    for path in ["/health", "/health/live"] {
        recorder.record("get", path, &rig.get(path).await);
    }
}

async fn record_without_key(recorder: &mut Recorder) {
    let mut closed = config();
    closed.api_keys = vec!["secret".into()];
    closed.metrics_require_key = true;
    let rig = Rig::with(closed, engine_config(), model());
    let tokenizing = TOKENIZING.map(|(path, _)| path);
    for path in GENERATING.into_iter().chain(tokenizing).chain([EMBEDDINGS]) {
        recorder.record("post", path, &rig.post(path, &json!({})).await);
    }
    for (path, documented) in [
        ("/v1/models", "/v1/models"),
        ("/v1/models/test-model", "/v1/models/{id}"),
        ("/metrics", "/metrics"),
    ] {
        recorder.record("get", documented, &rig.get(path).await);
    }
}

/// Errors that any route gives, that only strict parameters bring out, or that take a broken machine.
async fn record_errors(recorder: &mut Recorder, rig: &Rig) {
    recorder.record_error(&rig.get("/unknown").await.json());
    let embeds = rig.post(EMBEDDINGS, &json!({"input": "a"})).await;
    recorder.record_error(&embeds.json());
    recorder.record_error(&rig.get(GENERATING[0]).await.json());
    let mut strict = config();
    strict.strict_params = true;
    let rig = Rig::with(strict, engine_config(), model());
    let unknown = body(GENERATING[0], json!({"unknown": 1}));
    recorder.record_error(&rig.post(GENERATING[0], &unknown).await.json());
    for error in field_errors(&recorder.document) {
        recorder.record_error(&error.body());
    }
    for error in [
        ApiError::TooBusy,
        ApiError::TooManyOfKey {
            limit: 1,
            retry_after: Duration::from_secs(1),
        },
        ApiError::QueueTimeout,
        ApiError::Draining,
        ApiError::EngineDead,
        ApiError::Numerical,
    ] {
        recorder.record_error(&error.body());
    }
}

#[tokio::test]
async fn answers_hold_what_is_documented() {
    let mut recorder = Recorder {
        document: Document::load(),
        seen: Marks::new(),
    };
    let mut versioned = config();
    versioned.version.features = vec!["cuda".into()];
    let rig = Rig::with(versioned, engine_config(), model());
    for path in [
        "/",
        "/health",
        "/health/live",
        "/metrics",
        "/v1/models",
        "/version",
    ] {
        recorder.record("get", path, &rig.get(path).await);
    }
    for name in ["test-model", "other"] {
        let answer = rig.get(&format!("/v1/models/{name}")).await;
        recorder.record("get", "/v1/models/{id}", &answer);
    }
    for path in GENERATING {
        record_texts(&mut recorder, &rig, path).await;
        record_refusals(&mut recorder, &rig, path).await;
        record_failures(&mut recorder, path).await;
    }
    record_embeddings(&mut recorder).await;
    record_tokenizing(&mut recorder, &rig).await;
    record_loading(&mut recorder).await;
    record_health(&mut recorder).await;
    record_without_key(&mut recorder).await;
    record_errors(&mut recorder, &rig).await;
    let unseen = recorder.unseen();
    assert!(
        unseen.is_empty(),
        "documented, but no answer has it: {unseen:#?}"
    );
}
