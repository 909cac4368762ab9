//! What the metrics of each server are called. Everything else asks by what a number means, so that a
//! peer is measured like octet. Names are those of `/metrics` as the servers write them; where a server
//! renamed one, both stand here and the first that exists is read.

use serde::Serialize;

use crate::scrape::{Snapshot, names};

/// A server whose metrics are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum ServerKind {
    /// This project's.
    Octet,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// llama.cpp's server.
    LlamaCpp,
    /// Text Generation Inference.
    Tgi,
}

impl ServerKind {
    /// The server that writes these metrics, by the prefix of their names.
    pub fn of(snapshot: &Snapshot) -> Option<Self> {
        // octet also writes vLLM's names, so its own are looked for first.
        [
            ("octet_", Self::Octet),
            ("vllm:", Self::Vllm),
            ("sglang:", Self::Sglang),
            ("llamacpp:", Self::LlamaCpp),
            ("tgi_", Self::Tgi),
        ]
        .into_iter()
        .find(|(prefix, _)| snapshot.has_prefix(prefix))
        .map(|(_, kind)| kind)
    }

    /// Its name for a reader.
    pub fn name(self) -> &'static str {
        match self {
            Self::Octet => "octet",
            Self::Vllm => "vLLM",
            Self::Sglang => "SGLang",
            Self::LlamaCpp => "llama.cpp",
            Self::Tgi => "TGI",
        }
    }

    /// Its names.
    pub fn map(self) -> &'static MetricMap {
        match self {
            Self::Octet => &OCTET,
            Self::Vllm => &VLLM,
            Self::Sglang => &SGLANG,
            Self::LlamaCpp => &LLAMA_CPP,
            Self::Tgi => &TGI,
        }
    }
}

/// Names that mean one number; empty where a server has none.
pub type Names = &'static [&'static str];

/// Names of the numbers that are read, by what they mean.
#[derive(Debug)]
pub struct MetricMap {
    /// Gauge: sequences being computed.
    pub running: Names,
    /// Gauge: requests in the queue.
    pub waiting: Names,
    /// Gauge: share of the KV cache in use.
    pub kv_usage: Names,
    /// Counter: requests that ended well.
    pub finished: Names,
    /// Counter: prompt tokens.
    pub prompt_tokens: Names,
    /// Counter: generated tokens.
    pub generation_tokens: Names,
    /// Counter: prompt tokens from the prefix cache.
    pub cached_tokens: Names,
    /// Counter: prompt tokens looked up in the prefix cache.
    pub prefix_queries: Names,
    /// Counter: prompt tokens found there.
    pub prefix_hits: Names,
    /// Counter: preemptions.
    pub preemptions: Names,
    /// Histogram: sequences in a step, without suffix.
    pub batch_size: Names,
    /// Histogram: time of a step, without suffix.
    pub step_time: Names,
    /// Histogram: time between tokens, without suffix.
    pub itl: Names,
    /// Histogram of the time to the first token.
    pub ttft: Names,
    /// Histogram of the time to the last token.
    pub e2e: Names,
    /// Histogram of the time before the first step.
    pub queue_time: Names,
    /// Histogram of the time from there to the first token.
    pub prefill_time: Names,
    /// Histogram of the time from there to the last token.
    pub decode_time: Names,
}

const OCTET: MetricMap = MetricMap {
    running: &[names::RUNNING],
    waiting: &[names::WAITING],
    kv_usage: &["octet_kv_cache_usage_ratio"],
    finished: &[names::FINISHED],
    prompt_tokens: &[names::PROMPT_TOKENS],
    generation_tokens: &[names::GENERATION_TOKENS],
    cached_tokens: &[names::CACHED_TOKENS],
    prefix_queries: &["octet_prefix_cache_queries_total"],
    prefix_hits: &["octet_prefix_cache_hits_total"],
    preemptions: &[names::PREEMPTIONS],
    batch_size: &["octet_step_batch_size"],
    step_time: &["octet_step_duration_seconds"],
    itl: &[names::ITL],
    ttft: &[names::TTFT],
    e2e: &[names::E2E],
    queue_time: &["octet_request_queue_time_seconds"],
    prefill_time: &["octet_request_prefill_time_seconds"],
    decode_time: &["octet_request_decode_time_seconds"],
};

const VLLM: MetricMap = MetricMap {
    running: &["vllm:num_requests_running"],
    waiting: &["vllm:num_requests_waiting"],
    kv_usage: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
    finished: &["vllm:request_success_total"],
    prompt_tokens: &["vllm:prompt_tokens_total"],
    generation_tokens: &["vllm:generation_tokens_total"],
    cached_tokens: &["vllm:prompt_tokens_cached_total"],
    prefix_queries: &["vllm:prefix_cache_queries_total"],
    prefix_hits: &["vllm:prefix_cache_hits_total"],
    preemptions: &["vllm:num_preemptions_total"],
    batch_size: &[],
    step_time: &[],
    itl: &[
        "vllm:inter_token_latency_seconds",
        "vllm:time_per_output_token_seconds",
    ],
    ttft: &["vllm:time_to_first_token_seconds"],
    e2e: &["vllm:e2e_request_latency_seconds"],
    queue_time: &["vllm:request_queue_time_seconds"],
    prefill_time: &["vllm:request_prefill_time_seconds"],
    decode_time: &["vllm:request_decode_time_seconds"],
};

const SGLANG: MetricMap = MetricMap {
    running: &["sglang:num_running_reqs"],
    waiting: &["sglang:num_queue_reqs"],
    kv_usage: &["sglang:token_usage"],
    finished: &["sglang:num_requests_total"],
    prompt_tokens: &["sglang:prompt_tokens_total"],
    generation_tokens: &["sglang:generation_tokens_total"],
    cached_tokens: &["sglang:cached_tokens_total"],
    prefix_queries: &[],
    prefix_hits: &[],
    preemptions: &[],
    batch_size: &[],
    step_time: &[],
    itl: &["sglang:inter_token_latency_seconds"],
    ttft: &["sglang:time_to_first_token_seconds"],
    e2e: &["sglang:e2e_request_latency_seconds"],
    queue_time: &[],
    prefill_time: &[],
    decode_time: &[],
};

const LLAMA_CPP: MetricMap = MetricMap {
    running: &["llamacpp:requests_processing"],
    waiting: &["llamacpp:requests_deferred"],
    kv_usage: &["llamacpp:kv_cache_usage_ratio"],
    finished: &[],
    prompt_tokens: &["llamacpp:prompt_tokens_total"],
    generation_tokens: &["llamacpp:tokens_predicted_total"],
    cached_tokens: &[],
    prefix_queries: &[],
    prefix_hits: &[],
    preemptions: &[],
    batch_size: &[],
    step_time: &[],
    itl: &[],
    ttft: &[],
    e2e: &[],
    queue_time: &[],
    prefill_time: &[],
    decode_time: &[],
};

const TGI: MetricMap = MetricMap {
    running: &["tgi_batch_current_size"],
    waiting: &["tgi_queue_size"],
    kv_usage: &[],
    finished: &["tgi_request_success"],
    prompt_tokens: &["tgi_request_input_length_sum"],
    generation_tokens: &["tgi_request_generated_tokens_sum"],
    cached_tokens: &[],
    prefix_queries: &[],
    prefix_hits: &[],
    preemptions: &[],
    batch_size: &["tgi_batch_next_size"],
    step_time: &["tgi_batch_forward_duration"],
    itl: &[],
    ttft: &[],
    e2e: &["tgi_request_duration"],
    queue_time: &["tgi_request_queue_duration"],
    prefill_time: &[],
    decode_time: &[],
};

impl MetricMap {
    /// Counters that stand still when the server does.
    pub fn counters(&self) -> impl Iterator<Item = Names> {
        [
            self.finished,
            self.prompt_tokens,
            self.generation_tokens,
            self.cached_tokens,
            self.preemptions,
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_its_names() {
        let of = |text: &str| ServerKind::of(&Snapshot::parse(text).unwrap());
        assert_eq!(of("vllm:x 1\noctet_x 1\n"), Some(ServerKind::Octet));
        assert_eq!(of("vllm:x 1\n"), Some(ServerKind::Vllm));
        assert_eq!(of("sglang:x 1\n"), Some(ServerKind::Sglang));
        assert_eq!(of("llamacpp:x 1\n"), Some(ServerKind::LlamaCpp));
        assert_eq!(of("tgi_x 1\n"), Some(ServerKind::Tgi));
        assert_eq!(of("python_info 1\n"), None);
    }

    #[test]
    fn the_first_name_that_exists_is_read() {
        let old = Snapshot::parse("vllm:gpu_cache_usage_perc 0.5\n").unwrap();
        let new = Snapshot::parse("vllm:kv_cache_usage_perc 0.25\n").unwrap();
        let names = ServerKind::Vllm.map().kv_usage;
        assert_eq!(
            (old.first(names), new.first(names)),
            (Some(0.5), Some(0.25))
        );
        assert_eq!(new.first(&[]), None);
    }
}
