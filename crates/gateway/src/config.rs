//! What the gateway is told at start, by value.

use std::time::Duration;

use model::GenerationDefaults;
use serde_json::{Map, Value};

/// Settings of the gateway, resolved once at start.
#[derive(Clone)]
pub struct GatewayConfig {
    /// Names under which the model answers; the first is the main one. At least one.
    pub served_model_names: Vec<String>,
    /// Answer to any name in `model`.
    pub accept_any_model: bool,
    /// Accepted API keys in clear text; kept only as keyed hashes. Without any, no key is asked for.
    pub api_keys: Vec<String>,
    /// Further keys, which [`Gateway::replace_api_keys`](crate::Gateway::replace_api_keys) replaces.
    pub replaceable_api_keys: Vec<String>,
    /// Requests that each key may have at the same time, waiting ones included.
    pub max_num_reqs_per_key: Option<usize>,
    /// Origins of web pages that may call state-changing routes, such as `https://chat.example`.
    pub allowed_origins: Vec<String>,
    /// The socket is bound to a loopback address: only loopback host names are answered.
    pub loopback: bool,
    /// `/metrics` asks for a key like everything else.
    pub metrics_require_key: bool,
    /// `/metrics` is not among the routes: [`serve_metrics`](crate::serve_metrics) has it.
    pub metrics_apart: bool,
    /// Every series of `/metrics` again under the names vLLM gives them.
    pub vllm_metrics: bool,
    /// Unknown request fields are refused instead of reported.
    pub strict_params: bool,
    /// Sizes and counts a request may have.
    pub limits: RequestLimits,
    /// Times a connection or a stream may take.
    pub timeouts: Timeouts,
    /// Whether sampling defaults of the checkpoint apply where a request leaves a field out.
    pub generation_config: GenerationPolicy,
    /// Sampling defaults of the operator; they win over those of the checkpoint.
    pub generation_override: GenerationDefaults,
    /// Seed of requests that bring none; a random one for each when there is none.
    pub default_seed: Option<u64>,
    /// A chat template that replaces the checkpoint's.
    pub chat_template: Option<String>,
    /// Template variables of the operator; those of a request win.
    pub chat_template_kwargs: Map<String, Value>,
    /// Answer 200 as soon as a request runs instead of with its first token.
    pub stream_early_headers: bool,
    /// What `/version` says.
    pub version: VersionInfo,
    /// Threads that parse, render and tokenise.
    pub text_threads: usize,
    /// Open connections; more wait in the socket's backlog.
    pub max_connections: usize,
}

/// Sizes and counts that a request may have at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of a body.
    pub max_body: usize,
    /// Choices per prompt.
    pub max_n: u32,
    /// Stop strings.
    pub max_stop: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: usize,
    /// Alternatives beside a token's own log-probability.
    pub max_logprobs: u32,
    /// Prompts in one completions call.
    pub max_prompts: usize,
    /// Inputs in one embeddings call.
    pub max_embedding_inputs: usize,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Entries of `stop_token_ids`.
    pub max_stop_token_ids: usize,
    /// Messages of a conversation.
    pub max_messages: usize,
    /// Parts of one message.
    pub max_content_parts: usize,
    /// Tools.
    pub max_tools: usize,
    /// Nesting of the JSON body.
    pub max_json_depth: usize,
    /// Values in the JSON body, beside token ids.
    pub max_json_values: usize,
    /// Bytes of the request line's URI.
    pub max_uri: usize,
    /// Bytes of all header fields together.
    pub max_header_bytes: usize,
    /// Header fields.
    pub max_headers: usize,
    /// Bytes of all bodies being read at the same time.
    pub max_bodies: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_body: 32 << 20,
            max_n: 16,
            max_stop: 16,
            max_stop_bytes: 256,
            max_logprobs: 20,
            max_prompts: 32,
            max_embedding_inputs: 2048,
            max_logit_bias: 1024,
            max_stop_token_ids: 128,
            max_messages: 2048,
            max_content_parts: 64,
            max_tools: 128,
            max_json_depth: 64,
            max_json_values: 500_000,
            max_uri: 8 << 10,
            max_header_bytes: 32 << 10,
            max_headers: 100,
            max_bodies: 256 << 20,
        }
    }
}

/// Times a connection or a stream may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For the head of a request.
    pub header_read: Duration,
    /// For the body of a request, plus one second for each KiB of it.
    pub body_read: Duration,
    /// Between requests of one connection.
    pub keep_alive: Duration,
    /// Between comments of a stream that has nothing else to send.
    pub sse_ping: Duration,
    /// For a client to take any of what waits to be sent; a connection that takes nothing is cut. Longer
    /// than the engine waits for one, so that a client that comes back learns why its stream ended.
    pub write: Duration,
    /// For running streams after the server was told to stop.
    pub shutdown: Duration,
    /// Age of the engine's heartbeat beyond which the engine counts as dead.
    pub heartbeat: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header_read: Duration::from_secs(10),
            body_read: Duration::from_secs(30),
            keep_alive: Duration::from_secs(75),
            sse_ping: Duration::from_secs(10),
            write: Duration::from_secs(60),
            shutdown: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
        }
    }
}

/// Whether `generation_config.json` sets sampling defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPolicy {
    /// It does.
    Auto,
    /// It does not; a left-out field has OpenAI's default.
    None,
}

/// What `/version` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VersionInfo {
    /// Version of the program.
    pub version: String,
    /// Source revision it was built from.
    pub commit: String,
    /// Optional parts built in.
    pub features: Vec<String>,
}

impl GatewayConfig {
    /// The documented defaults for a model served under `name` on a loopback address, without keys.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            served_model_names: vec![name.into()],
            accept_any_model: false,
            api_keys: Vec::new(),
            replaceable_api_keys: Vec::new(),
            max_num_reqs_per_key: None,
            allowed_origins: Vec::new(),
            loopback: true,
            metrics_require_key: false,
            metrics_apart: false,
            vllm_metrics: true,
            strict_params: false,
            limits: RequestLimits::default(),
            timeouts: Timeouts::default(),
            generation_config: GenerationPolicy::Auto,
            generation_override: GenerationDefaults::default(),
            default_seed: None,
            chat_template: None,
            chat_template_kwargs: Map::new(),
            stream_early_headers: false,
            version: VersionInfo::default(),
            text_threads: 2,
            max_connections: 1024,
        }
    }
}
