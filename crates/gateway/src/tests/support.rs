//! A router over an engine with a scripted model, and calls to it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use encoder::{Encode, EncoderConfig, EncoderInfo, TextTokenizer};
use engine::fake::FakeModel;
use engine::{Engine, EngineConfig, EngineHandle};
use http_body_util::BodyExt;
use metrics::Metrics;
use model::{CausalLm, TextFiles};
use proptest::test_runner::Config as ProptestConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{Gateway, GatewayConfig, ServedEncoder, ServedModel, router};

/// Tokens of the test vocabulary: every byte, then the three control tokens.
pub(super) const VOCAB: usize = 259;
/// Longest sequence of the test model.
pub(super) const MAX_MODEL_LEN: usize = 512;
/// Ends an answer.
pub(super) const END: u32 = 258;

/// A gateway under test with its engine.
pub(super) struct Rig {
    pub(super) gateway: Gateway,
    /// None where an embedding model is served alone.
    pub(super) engine: Option<EngineHandle>,
    router: Router,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    /// The body as JSON.
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The payloads of an event stream; panics where one is not a `data:` line of its own.
    pub(super) fn events(&self) -> Vec<&str> {
        let mut blocks: Vec<&str> = self.text.split("\n\n").collect();
        assert_eq!(blocks.pop(), Some(""), "the stream ends with a blank line");
        let events = blocks.into_iter().filter(|block| *block != ": ping");
        events
            .map(|block| {
                assert!(!block.contains('\n'), "{block}");
                block.strip_prefix("data: ").expect("only data events")
            })
            .collect()
    }

    /// The JSON events of a stream that must end with `[DONE]`.
    pub(super) fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop(), Some("[DONE]"));
        events
            .into_iter()
            .map(|event| serde_json::from_str(event).expect("events are JSON"))
            .collect()
    }
}

impl Rig {
    /// The documented defaults over a model that never fails.
    pub(super) fn new() -> Self {
        Self::with(GatewayConfig::new("test-model"), engine_config(), model())
    }

    /// A rig of chosen parts.
    pub(super) fn with(
        config: GatewayConfig,
        engine: EngineConfig,
        model: impl CausalLm + Send + 'static,
    ) -> Self {
        Self::with_text(config, engine, model, text_files())
    }

    /// A rig of chosen parts with a chosen tokenizer and template.
    pub(super) fn with_text(
        config: GatewayConfig,
        engine: EngineConfig,
        model: impl CausalLm + Send + 'static,
        text: TextFiles,
    ) -> Self {
        let metrics = Metrics::new(&config.served_model_names[0]);
        let gateway = Gateway::new(config, metrics.clone());
        let build = move || Ok::<_, std::convert::Infallible>(Box::new(model) as _);
        let (engine, _thread) = Engine::spawn(engine, metrics, build);
        while engine.info().is_none() {
            std::thread::yield_now();
        }
        let served = ServedModel {
            engine: engine.clone(),
            text,
            root: "org/test-model".into(),
            fingerprint: vec!["weights".into(), "f32".into()],
        };
        gateway.set_model(served).expect("the model is served");
        Self {
            router: router(gateway.clone()),
            gateway,
            engine: Some(engine),
        }
    }

    /// The engine of a language model.
    pub(super) fn engine(&self) -> &EngineHandle {
        self.engine.as_ref().expect("a language model is served")
    }

    /// Sends a request and returns its response unread.
    pub(super) async fn send(&self, request: Request<Body>) -> axum::response::Response {
        let Ok(response) = self.router.clone().oneshot(request).await;
        response
    }

    /// Sends a request and reads its answer.
    pub(super) async fn call(&self, request: Request<Body>) -> Answer {
        let response = self.send(request).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("bodies do not fail").to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).expect("answers are UTF-8"),
        }
    }

    /// `GET path`.
    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call(get(path)).await
    }

    /// `POST path` with a JSON body.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(post(path, &body.to_string())).await
    }

    /// One line of `/metrics`: the value of a series that starts with `name`.
    pub(super) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text;
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no series {name}"));
        let value = line.rsplit(' ').next().expect("a value");
        value.parse().expect("a number")
    }
}

/// Name of the embedding model.
pub(super) const EMBEDDER: &str = "test-embedder";
/// Tokens that it takes.
pub(super) const MAX_EMBEDDED: usize = 32;
/// A text that it cannot embed.
pub(super) const FAILING: &str = "\u{7f}";

/// Vectors that tell apart lengths, beginnings and ends.
struct FakeEncoder;

impl Encode for FakeEncoder {
    fn encode(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
        let vector = |ids: &&[u32]| match ids[0] {
            0x7f => Err("asked for".to_owned()),
            first => {
                let last = ids[ids.len() - 1];
                Ok(vec![first as f32, last as f32, ids.len() as f32, 0.1])
            }
        };
        inputs.iter().map(vector).collect()
    }
}

/// Roomy limits of the embedding model.
pub(super) fn encoder_config() -> EncoderConfig {
    EncoderConfig {
        max_num_queued_reqs: 8,
        max_num_queued_tokens: 1 << 16,
        request_timeout: Duration::from_secs(60),
    }
}

fn set_embedder(gateway: &Gateway, config: EncoderConfig, is_matryoshka: bool) {
    let info = EncoderInfo {
        dimension: 4,
        max_tokens: MAX_EMBEDDED,
        num_token_ids: VOCAB,
        is_matryoshka,
        batch_tokens: 64,
        pads: true,
        description: "fake".into(),
    };
    let (encoder, _thread) = encoder::spawn(config, info, gateway.metrics.clone(), FakeEncoder);
    let tokenizer = TextTokenizer::new(&text_files().tokenizer_json, false);
    let served = ServedEncoder {
        encoder,
        tokenizer: tokenizer.expect("a valid tokenizer"),
        names: vec![EMBEDDER.into()],
        root: "org/test-embedder".into(),
    };
    gateway.set_encoder(served).expect("the model is served");
}

/// An embedding model of chosen limits, alone.
pub(super) fn embedder_with(config: EncoderConfig, is_matryoshka: bool) -> Rig {
    embedder_under(GatewayConfig::new(EMBEDDER), config, is_matryoshka)
}

/// The same under chosen settings of the gateway.
pub(super) fn embedder_under(
    gateway: GatewayConfig,
    config: EncoderConfig,
    is_matryoshka: bool,
) -> Rig {
    let gateway = Gateway::new(gateway, Metrics::new(EMBEDDER));
    set_embedder(&gateway, config, is_matryoshka);
    Rig {
        router: router(gateway.clone()),
        gateway,
        engine: None,
    }
}

/// An embedding model whose vectors may be cut, alone.
pub(super) fn embedder_only() -> Rig {
    embedder_with(encoder_config(), true)
}

/// An embedding model whose vectors may not be cut, alone.
pub(super) fn fixed_embedder() -> Rig {
    embedder_with(encoder_config(), false)
}

/// An embedding model beside a language model.
pub(super) fn with_embedder(config: GatewayConfig) -> Rig {
    let rig = Rig::with(config, engine_config(), model());
    set_embedder(&rig.gateway, encoder_config(), true);
    rig
}

/// A short chat request with a fixed seed, and further or other fields.
pub(super) fn chat(extra: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "hello"}], "seed": 7,
                      "max_tokens": 24});
    merge(&body, &extra)
}

/// A short completions request with a fixed seed, and further or other fields.
pub(super) fn completion(extra: Value) -> Value {
    let body = json!({"prompt": "hello", "seed": 7, "max_tokens": 24});
    merge(&body, &extra)
}

/// The fields of both objects; those of `b` win.
pub(super) fn merge(a: &Value, b: &Value) -> Value {
    let mut fields = a.as_object().expect("an object").clone();
    fields.extend(b.as_object().expect("an object").clone());
    Value::Object(fields)
}

/// So many random cases; failures are printed and not written beside the sources.
pub(super) fn cases_without_files(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A `GET` request.
pub(super) fn get(path: &str) -> Request<Body> {
    Request::get(path)
        .header("host", "127.0.0.1:8000")
        .body(Body::empty())
        .expect("a valid request")
}

/// A `POST` request.
pub(super) fn post(path: &str, body: &str) -> Request<Body> {
    Request::post(path)
        .header("host", "127.0.0.1:8000")
        .body(Body::from(body.to_owned()))
        .expect("a valid request")
}

/// Roomy limits.
pub(super) fn engine_config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: Some(64),
        max_num_queued_reqs: 64,
        max_num_queued_tokens: 1 << 16,
        enable_prefix_caching: true,
        queue_timeout: Duration::from_secs(60),
        request_timeout: Duration::from_secs(60),
        stream_write_timeout: Duration::from_secs(60),
    }
}

/// A model whose every next token depends on the whole history.
pub(super) fn model() -> FakeModel {
    FakeModel::new(1, VOCAB, MAX_MODEL_LEN, 64)
}

/// A tokenizer of bytes and a ChatML-like template.
pub(super) fn text_files() -> TextFiles {
    let control = ["<s>", "<|user|>", "<|end|>"];
    let mut vocabulary: serde_json::Map<String, Value> = byte_characters()
        .enumerate()
        .map(|(id, c)| (c.to_string(), json!(id)))
        .collect();
    for (i, token) in control.iter().enumerate() {
        vocabulary.insert((*token).into(), json!(256 + i));
    }
    let added: Vec<Value> = control
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                       "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    TextFiles {
        tokenizer_json: tokenizer.to_string().into_bytes(),
        chat_templates: vec![(
            "default".into(),
            "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
                .into(),
        )],
        bos_token: Some("<s>".into()),
        eos_token: Some("<|end|>".into()),
        eos_token_ids: vec![END],
        ..TextFiles::default()
    }
}

/// The characters by which byte-level vocabularies spell the bytes 0 to 255 (GPT-2's table): printable
/// Latin-1 stands for itself, the rest is moved up to 256 and beyond.
fn byte_characters() -> impl Iterator<Item = char> {
    let mut moved = 0;
    (0..=255u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => {
            moved += 1;
            char::from_u32(255 + moved).expect("far below the surrogates")
        }
    })
}

/// Where a file of a real model lies that `cargo xtask assets` fetches. Nothing where it is absent, except
/// under `CI=true`.
pub(crate) fn asset_path(file: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/assets"),
        PathBuf::from,
    );
    let path = assets.join(file);
    if path.exists() {
        return Some(path);
    }
    let message = format!("{file} is missing; `cargo xtask assets` fetches it");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
    eprintln!("skipped: {message}");
    None
}

/// The bytes of such a file.
pub(crate) fn asset(file: &str) -> Option<Vec<u8>> {
    Some(std::fs::read(asset_path(file)?).expect("the file is readable"))
}
